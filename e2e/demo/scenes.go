package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/e2e/fleet"
)

// patience is how long a step may take before the demo has failed. None takes nearly so long.
const patience = 90 * time.Second

func (d *demo) startHub(ctx context.Context) error {
	hub, err := d.fleet.AddHub(ctx, d.clusters["hub"])
	if err != nil {
		return err
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := hub.Start(ctx); err != nil {
		return err
	}
	d.say("shoal controller serves after %.1f s; its MQTT broker is at %s", time.Since(begin).Seconds(), hub.URL())
	return nil
}

func (d *demo) enroll(ctx context.Context) error {
	for _, x := range []struct{ site, env string }{{"store-1", "prod"}, {"store-2", "test"}} {
		site, err := d.fleet.AddSite(x.site, d.clusters[x.site])
		if err != nil {
			return err
		}
		token, err := d.shoal(ctx, "token", "create", x.env, "--label", "env="+x.env)
		if err != nil {
			return err
		}
		d.say("$ shoal token create %s --label env=%s > token-%s", x.env, x.env, x.site)
		// Its link leads through this program, which can cut it.
		if err := site.GiveToken(token); err != nil {
			return err
		}
		d.say("$ shoal-agent --cluster-name %s --token-file token-%s --kubeconfig …", x.site, x.site)
		if err := site.StartAgent(ctx); err != nil {
			return err
		}
	}
	return d.watch(ctx, patience, func(s state) error {
		for _, name := range d.fleet.SiteNames() {
			if s.clusters[name].Status.Presence != v1alpha1.PresenceOnline || s.clusters[name].Status.KubernetesVersion == "" {
				return fmt.Errorf("cluster %s is not online", name)
			}
		}
		return nil
	})
}

func (d *demo) deploy(ctx context.Context) error {
	begin := time.Now()
	if err := d.apply(ctx); err != nil {
		return err
	}
	if err := d.watch(ctx, patience, d.ready); err != nil {
		return err
	}
	took := time.Since(begin)
	d.number("from `shoal apply` to Ready on both sites", "%.1f s", took.Seconds())
	d.say("Ready on both sites %.1f s after the command. The same chart, with what each label asks for:", took.Seconds())
	return errors.Join(d.runs(ctx, "store-1", 3, "Welcome, dear customer!"), d.runs(ctx, "store-2", 1, "This shop is a test. Please do not buy anything."))
}

func (d *demo) repair(ctx context.Context) error {
	for _, args := range [][]string{{"scale", "deployment", "shop", "--replicas=0"}, {"delete", "service", "shop"}} {
		args = append([]string{"-n", "shop"}, args...)
		d.say("$ kubectl %s        on store-1", strings.Join(args, " "))
		if _, err := d.kubectl(ctx, "store-1", args...); err != nil {
			return err
		}
	}
	begin := time.Now()
	// Every site is asked, not only told about: what counts is what runs.
	err := d.watch(ctx, patience, func(s state) error {
		if _, err := d.kubectl(ctx, "store-1", "-n", "shop", "get", "service", "shop"); err != nil {
			return err
		}
		out, err := d.kubectl(ctx, "store-1", "-n", "shop", "get", "deployment", "shop", "-o", "jsonpath={.spec.replicas} {.status.readyReplicas}")
		if err == nil && out != "3 3" {
			err = fmt.Errorf("replicas wanted and ready: %s", out)
		}
		return errors.Join(err, d.ready(s))
	})
	if err != nil {
		return err
	}
	d.number("hand edit to repaired and Ready", "%.1f s", time.Since(begin).Seconds())
	d.say("the agent has set both back, %.1f s later:", time.Since(begin).Seconds())
	return d.runs(ctx, "store-1", 3, "Welcome, dear customer!")
}

func (d *demo) cutLink(ctx context.Context) error {
	site, err := d.fleet.Site("store-2")
	if err != nil {
		return err
	}
	site.Cut()
	limit := d.fleet.KeepAlive() * 3 / 2
	d.say("cut: nothing passes any more. The keep-alive is %s, so the hub sees it after %s at the latest", d.fleet.KeepAlive(), limit)
	begin := time.Now()
	// One second more is for the hub to write down what its broker noticed.
	err = d.watch(ctx, limit+time.Second, func(s state) error {
		if p := s.clusters["store-2"].Status.Presence; p != v1alpha1.PresenceOffline {
			return fmt.Errorf("store-2 is %s", p)
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.number("link cut to shown as Offline (keep-alive "+d.fleet.KeepAlive().String()+")", "%.1f s", time.Since(begin).Seconds())

	if err := d.edit("Welcome, dear customer!", "Today: everything at half price!", "This shop is a test. Please do not buy anything.", "Still a test. Nothing is for sale."); err != nil {
		return err
	}
	d.say("both messages in fleet.yaml are changed")
	if err := d.apply(ctx); err != nil {
		return err
	}
	err = d.watch(ctx, patience, func(s state) error {
		b := s.bundles["shop"]
		if b.Status.ObservedGeneration != b.Generation || b.Status.Summary.Ready != 1 || b.Status.Summary.Desired != 2 {
			return fmt.Errorf("bundle shop is ready on %s", b.Status.Display.ReadyClusters)
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.say("the site that can be reached has the update, the other goes on with what it has:")
	if err := errors.Join(d.runs(ctx, "store-1", 3, "Today: everything at half price!"), d.runs(ctx, "store-2", 1, "This shop is a test. Please do not buy anything.")); err != nil {
		return err
	}
	site.Restore()
	d.say("the link of store-2 is back")
	begin = time.Now()
	if err := d.watch(ctx, patience, d.ready); err != nil {
		return err
	}
	d.number("link back to update Ready", "%.1f s", time.Since(begin).Seconds())
	d.say("store-2 has caught up, %.1f s later:", time.Since(begin).Seconds())
	return d.runs(ctx, "store-2", 1, "Still a test. Nothing is for sale.")
}

// apply runs the command that users run.
func (d *demo) apply(ctx context.Context) error {
	d.say("$ shoal apply shop %s", d.bundle)
	out, err := d.shoal(ctx, "apply", "shop", d.bundle)
	if err == nil {
		d.say("%s", out)
	}
	return err
}

// edit changes texts in the bundle's fleet.yaml.
func (d *demo) edit(oldnew ...string) error {
	name := filepath.Join(d.bundle, "fleet.yaml")
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	text := strings.NewReplacer(oldnew...).Replace(string(b))
	if text == string(b) {
		return fmt.Errorf("%s does not hold the texts that the demo changes", name)
	}
	return os.WriteFile(name, []byte(text), 0o644)
}

// runs checks and shows what a site runs.
func (d *demo) runs(ctx context.Context, site string, replicas int, message string) error {
	out, err := d.kubectl(ctx, site, "-n", "shop", "get", "deployment", "shop", "-o", "jsonpath={.spec.replicas} {.status.readyReplicas}")
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("%d %d", replicas, replicas); out != want {
		return fmt.Errorf("%s: replicas wanted and ready are %q, expected %q", site, out, want)
	}
	page, err := d.kubectl(ctx, site, "-n", "shop", "get", "configmap", "shop", "-o", `jsonpath={.data.index\.html}`)
	if err != nil {
		return err
	}
	if !strings.Contains(page, "<h1>"+message+"</h1>") {
		return fmt.Errorf("%s: its page does not say %q:\n%s", site, message, page)
	}
	d.say("    %s  %d of %d replicas ready, says %q", site, replicas, replicas, message)
	return nil
}

func (d *demo) shoal(ctx context.Context, args ...string) (string, error) {
	return output(d.fleet.Shoal(ctx, d.dir, args...), "shoal "+strings.Join(args, " "))
}

func (d *demo) kubectl(ctx context.Context, cluster string, args ...string) (string, error) {
	cmd, err := d.fleet.Kubectl(ctx, cluster, args...)
	if err != nil {
		return "", err
	}
	return output(cmd, "kubectl "+strings.Join(args, " ")+" on "+cluster)
}

func output(cmd *exec.Cmd, what string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", what, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// state is what the hub says.
type state struct {
	clusters map[string]v1alpha1.Cluster
	bundles  map[string]v1alpha1.Bundle
}

func (d *demo) look(ctx context.Context) (state, error) {
	var clusters v1alpha1.ClusterList
	var bundles v1alpha1.BundleList
	in := client.InNamespace(d.fleet.Workspace())
	if err := errors.Join(d.fleet.Hub().Client().List(ctx, &clusters, in), d.fleet.Hub().Client().List(ctx, &bundles, in)); err != nil {
		return state{}, err
	}
	s := state{clusters: map[string]v1alpha1.Cluster{}, bundles: map[string]v1alpha1.Bundle{}}
	for _, c := range clusters.Items {
		s.clusters[c.Name] = c
	}
	for _, b := range bundles.Items {
		s.bundles[b.Name] = b
	}
	return s, nil
}

// watch prints what the hub says of each object whenever that has changed, until done returns nil.
func (d *demo) watch(ctx context.Context, limit time.Duration, done func(state) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	show := func(name, text string) {
		if d.shown[name] != text {
			d.shown[name] = text
			d.say("    %s", strings.TrimRight(fmt.Sprintf("%-16s %s", name, text), " "))
		}
	}
	return fleet.Until(ctx, func(ctx context.Context) error {
		s, err := d.look(ctx)
		if err != nil {
			return err
		}
		for _, name := range d.fleet.SiteNames() {
			if c, ok := s.clusters[name]; ok && c.Status.Presence != "" {
				show("cluster "+name, fmt.Sprintf("%-8s %s bundles   %-12s %s", c.Status.Presence, c.Status.Display.ReadyBundles, c.Status.Display.State, c.Status.Display.Message))
			}
		}
		for name, b := range s.bundles {
			if b.Status.ObservedGeneration == b.Generation {
				show("bundle "+name, fmt.Sprintf("%-8s %s clusters  %-12s %s", "", b.Status.Display.ReadyClusters, b.Status.Display.State, b.Status.Display.Message))
			}
		}
		return done(s)
	})
}

// ready: the bundle as it is now is Ready on both sites, and both have a link.
func (d *demo) ready(s state) error {
	b := s.bundles["shop"]
	if b.Status.ObservedGeneration != b.Generation || b.Status.Display.State != v1alpha1.StateReady || b.Status.Summary.Ready != 2 {
		return fmt.Errorf("bundle shop is %s on %s: %s", b.Status.Display.State, b.Status.Display.ReadyClusters, b.Status.Display.Message)
	}
	for _, name := range d.fleet.SiteNames() {
		if c := s.clusters[name]; c.Status.Presence != v1alpha1.PresenceOnline {
			return fmt.Errorf("cluster %s is %s", name, c.Status.Presence)
		}
	}
	return nil
}
