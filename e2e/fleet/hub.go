package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/internal/kubetest"
)

// Hub is the process "shoal controller" and the cluster that serves its API. Its addresses stay the same over restarts.
type Hub struct {
	f          *Fleet
	cluster    *kubetest.Cluster
	client     client.Client
	kubeconfig string
	mqtt       string // address
	metrics    string
	process    *process
}

// AddHub prepares the hub; Start starts it.
func (f *Fleet) AddHub(ctx context.Context, c *kubetest.Cluster) (*Hub, error) {
	if f.hub != nil {
		return nil, errors.New("there is a hub already")
	}
	h := &Hub{f: f, cluster: c, kubeconfig: f.path("hub.kubeconfig")}
	var err error
	if h.client, err = kubeClient(c); err != nil {
		return nil, err
	}
	if h.mqtt, err = freeAddr(); err != nil {
		return nil, err
	}
	if h.metrics, err = freeAddr(); err != nil {
		return nil, err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: f.o.Workspace}}
	if err := h.client.Create(ctx, ns); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("make workspace %s: %w", f.o.Workspace, err)
	}
	if err := h.writeKubeconfig(); err != nil {
		return nil, err
	}
	f.hub = h
	return h, nil
}

// writeKubeconfig makes the operator's kubeconfig: the administrator's, with the workspace as its namespace.
func (h *Hub) writeKubeconfig() error {
	cfg, err := clientcmd.LoadFromFile(h.cluster.Kubeconfig())
	if err != nil {
		return err
	}
	for _, c := range cfg.Contexts {
		c.Namespace = h.f.o.Workspace
	}
	return clientcmd.WriteToFile(*cfg, h.kubeconfig)
}

// Kubeconfig is the operator's: its namespace is the workspace.
func (h *Hub) Kubeconfig() string { return h.kubeconfig }

// Client reads and writes the hub's API.
func (h *Hub) Client() client.Client { return h.client }

// MetricsAddr serves /metrics, /healthz and /readyz.
func (h *Hub) MetricsAddr() string { return h.metrics }

// URL is where the broker listens.
func (h *Hub) URL() string { return "mqtts://" + h.mqtt }

func (h *Hub) command() command {
	c := command{
		name: "hub", path: h.f.bin.Shoal, log: h.f.path("logs", "hub.log"), ready: h.metrics + "/readyz",
		args: []string{
			"controller", "--kubeconfig", h.kubeconfig, "--data-dir", h.f.path("hub"), "--mqtt-listen", h.mqtt, "--mqtt-url", h.URL(),
			"--min-keep-alive", h.f.o.KeepAlive.String(), "--metrics-listen", h.metrics, "--log-level", "debug", "--log-format", "json",
		},
	}
	for _, s := range h.f.sites {
		if s.gateway != "" {
			c.args = append(c.args, "--mqtt-host", s.gateway)
		}
	}
	return c
}

// Start starts the hub and waits until it serves.
func (h *Hub) Start(ctx context.Context) error {
	if h.Running() {
		return errors.New("the hub runs already")
	}
	var err error
	if h.process, err = start(ctx, h.command()); err != nil {
		return err
	}
	err = Until(ctx, func(ctx context.Context) error {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", h.mqtt)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for the broker: %w\n%s", err, h.process.tail(30))
	}
	return nil
}

// Running tells whether the process is there.
func (h *Hub) Running() bool { return h.process != nil && h.process.running() }

// Stop stops the hub in order and says how long that took. More than StopLimit is an error.
func (h *Hub) Stop() (time.Duration, error) {
	if h.process == nil {
		return 0, nil
	}
	p := h.process
	h.process = nil
	return p.terminate()
}

// Kill is a power cut for the hub's process.
func (h *Hub) Kill() {
	if h.process != nil {
		h.process.kill()
		h.process = nil
	}
}

// WipeBroker deletes everything the hub has on disk, while it is stopped: the retained messages of its broker.
func (h *Hub) WipeBroker() error {
	if h.Running() {
		return errors.New("stop the hub before its store is wiped")
	}
	return os.RemoveAll(h.f.path("hub"))
}

// SaveStore copies what the stopped hub has on disk: the retained messages of its broker, and its name.
func (h *Hub) SaveStore(dir string) error {
	if h.Running() {
		return errors.New("stop the hub before its store is copied")
	}
	return os.CopyFS(dir, os.DirFS(h.f.path("hub")))
}

// LoadStore puts a copy that SaveStore made in the place of what the stopped hub has on disk.
func (h *Hub) LoadStore(dir string) error {
	if err := h.WipeBroker(); err != nil {
		return err
	}
	return os.CopyFS(h.f.path("hub"), os.DirFS(dir))
}

// Output is what the hub has logged since it was last started.
func (h *Hub) Output() []byte {
	if h.process == nil {
		return nil
	}
	return h.process.output()
}

// RSS is the hub's resident memory in bytes; 0 where that cannot be told.
func (h *Hub) RSS() int64 { return h.process.rss() }

// Bundle reads a bundle of the workspace.
func (h *Hub) Bundle(ctx context.Context, name string) (*v1alpha1.Bundle, error) {
	var b v1alpha1.Bundle
	return &b, h.client.Get(ctx, client.ObjectKey{Namespace: h.f.o.Workspace, Name: name}, &b)
}

// ClusterObject reads what the hub says of a cluster of the workspace.
func (h *Hub) ClusterObject(ctx context.Context, name string) (*v1alpha1.Cluster, error) {
	var c v1alpha1.Cluster
	return &c, h.client.Get(ctx, client.ObjectKey{Namespace: h.f.o.Workspace, Name: name}, &c)
}
