package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-logr/zerologr"
	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	crlog "sigs.k8s.io/controller-runtime/pkg/log"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/internal/kubetest"
)

// Options of a Fleet.
type Options struct {
	// Dir holds logs and data of hub and agents. It exists and outlives the fleet.
	Dir      string
	Binaries Binaries
	// KeepAlive of the agents' connections, in whole seconds; a lost link shows after 1.5 times as long. Default: 4 s.
	KeepAlive time.Duration
	// Workspace is the namespace on the hub. Default: "default".
	Workspace string
}

// Fleet is one hub and its sites.
type Fleet struct {
	o     Options
	bin   Binaries
	hub   *Hub
	sites map[string]*Site
}

// Quiet gives controller-runtime a logger, without which its clients complain at length. A program calls it once.
func Quiet() {
	silent := zerolog.Nop()
	crlog.SetLogger(zerologr.New(&silent))
}

// New prepares a fleet without hub and sites.
func New(o Options) (*Fleet, error) {
	if o.KeepAlive == 0 {
		o.KeepAlive = 4 * time.Second
	}
	if o.Workspace == "" {
		o.Workspace = "default"
	}
	f := &Fleet{o: o, sites: map[string]*Site{}}
	for _, d := range []string{"bin", "logs"} {
		if err := os.MkdirAll(f.path(d), 0o755); err != nil {
			return nil, err
		}
	}
	var err error
	f.bin, err = o.Binaries.into(f.path("bin"))
	return f, err
}

func (f *Fleet) path(elem ...string) string {
	return filepath.Join(append([]string{f.o.Dir}, elem...)...)
}

// KeepAlive is how often agents say at least that they are there.
func (f *Fleet) KeepAlive() time.Duration { return f.o.KeepAlive }

// Workspace is the namespace on the hub that holds the fleet.
func (f *Fleet) Workspace() string { return f.o.Workspace }

// Binaries are the fleet's own names for its programs.
func (f *Fleet) Binaries() Binaries { return f.bin }

// Hub returns the hub; nil before AddHub.
func (f *Fleet) Hub() *Hub { return f.hub }

// Site returns a site by its name.
func (f *Fleet) Site(name string) (*Site, error) {
	s := f.sites[name]
	if s == nil {
		return nil, fmt.Errorf("there is no site %q (sites: %q)", name, f.SiteNames())
	}
	return s, nil
}

// SiteNames returns the names of all sites, sorted.
func (f *Fleet) SiteNames() []string { return slices.Sorted(maps.Keys(f.sites)) }

// Cluster returns the Kubernetes cluster of a site, or with "hub" the one that serves the hub's API.
func (f *Fleet) Cluster(name string) (*kubetest.Cluster, error) {
	if name == "hub" {
		if f.hub == nil {
			return nil, errors.New("there is no hub yet")
		}
		return f.hub.cluster, nil
	}
	s, err := f.Site(name)
	if err != nil {
		return nil, err
	}
	return s.cluster, nil
}

// Close ends hub, agents and links, everything in order; what does not end in order is in the error. The clusters belong to
// the caller.
func (f *Fleet) Close() error {
	var errs []error
	for _, name := range f.SiteNames() {
		s := f.sites[name]
		if _, err := s.StopAgent(); err != nil {
			errs = append(errs, err)
		}
		errs = append(errs, s.link.Close())
	}
	if f.hub != nil {
		if _, err := f.hub.Stop(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Shoal runs the operator's tool as an operator of the hub does.
func (f *Fleet) Shoal(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, f.bin.Shoal, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GORACE=exitcode=66")
	if f.hub != nil {
		cmd.Env = append(cmd.Env, "KUBECONFIG="+f.hub.Kubeconfig())
	}
	return cmd
}

// Kubectl runs kubectl, as it is in shoal-kube, on the cluster of a site or of the "hub".
func (f *Fleet) Kubectl(ctx context.Context, cluster string, args ...string) (*exec.Cmd, error) {
	c, err := f.Cluster(cluster)
	if err != nil {
		return nil, err
	}
	config := c.Kubeconfig()
	if cluster == "hub" {
		config = f.hub.Kubeconfig()
	}
	cmd := exec.CommandContext(ctx, f.bin.Kube, append([]string{"kubectl", "--kubeconfig", config}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+f.o.Dir) // its discovery cache
	return cmd, nil
}

// Logs is the directory with the logs of hub and agents.
func (f *Fleet) Logs() string { return f.path("logs") }

// Tails returns the end of every log, and what the hub says of clusters and bundles: what one needs to see when a step fails.
func (f *Fleet) Tails(ctx context.Context, lines int) string {
	var out bytes.Buffer
	if f.hub != nil {
		for _, kind := range []string{"clusters", "bundles"} {
			cmd, err := f.Kubectl(ctx, "hub", "get", kind+".shoal.dev", "-A", "-o", "wide")
			if err != nil {
				continue
			}
			b, err := cmd.CombinedOutput()
			fmt.Fprintf(&out, "--- hub: %s\n%s", kind, b)
			if err != nil {
				fmt.Fprintln(&out, err)
			}
		}
	}
	names, _ := filepath.Glob(f.path("logs", "*.log"))
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			b = []byte(err.Error())
		}
		fmt.Fprintf(&out, "--- %s\n%s", name, tail(b, lines))
	}
	return out.String()
}

// access is the administrator's. The server's warnings about old kinds, which an inventory lists too, are for nobody here.
func access(c *kubetest.Cluster) (*rest.Config, error) {
	cfg, err := c.RESTConfig()
	if err == nil {
		cfg.WarningHandler = rest.NoWarnings{}
	}
	return cfg, err
}

// kubeClient reads and writes Kubernetes and Shoal objects.
func kubeClient(c *kubetest.Cluster) (client.Client, error) {
	cfg, err := access(c)
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	return client.New(cfg, client.Options{Scheme: scheme})
}
