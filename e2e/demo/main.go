// Demo shows Shoal at work on this machine: a hub and two sites, each a real Kubernetes cluster, and a link that is cut. It needs
// Go, git and a C compiler; what is missing is built first.
//
//	go run ./e2e/demo           shows it, then stays up until Ctrl-C
//	go run ./e2e/demo --check   the same story unattended; exit status 0 if every step went as it should
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"shoal.dev/shoal/e2e/fleet"
	"shoal.dev/shoal/internal/kubetest"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	check := flags.Bool("check", false, "run the story unattended, check every step, print numbers, and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil || flags.NArg() > 0:
		fmt.Fprintln(stderr, "usage: go run ./e2e/demo [--check]")
		return 2
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once; children end with it

	fleet.Quiet()
	d := &demo{screen: newScreen(stdout), shown: map[string]string{}}
	err := d.play(ctx, *check)
	interrupted := ctx.Err() != nil
	if err != nil && !interrupted {
		d.failed(err)
	}
	if cerr := d.close(); cerr != nil {
		d.say("cleaning up: %v", cerr)
		if err == nil {
			err = cerr
		}
	} else if d.dir != "" {
		d.say("everything is stopped and removed")
	}
	switch {
	case interrupted && !*check:
		return 0
	case err != nil || interrupted:
		d.say("FAILED")
		return 1
	}
	return 0
}

// demo is one performance.
type demo struct {
	*screen
	dir      string
	bin      fleet.Binaries
	fleet    *fleet.Fleet
	clusters map[string]*kubetest.Cluster
	bundle   string            // the directory that is deployed
	shown    map[string]string // what was last said of an object
	numbers  []string
}

func (d *demo) play(ctx context.Context, check bool) error {
	d.title("Shoal: one hub, two sites, each a real Kubernetes cluster on this machine")
	if err := d.prepare(ctx); err != nil {
		return err
	}
	for _, scene := range []struct {
		title string
		play  func(context.Context) error
	}{
		{"Three Kubernetes clusters", d.startClusters},
		{"The hub", d.startHub},
		{"Two sites enrol, each with a token that gives it a label", d.enroll},
		{"A Helm chart is deployed; what differs between env=prod and env=test is in its fleet.yaml", d.deploy},
		{"Somebody breaks something on store-1", d.repair},
		{"The link of store-2 is cut, the bundle is updated, the link comes back", d.cutLink},
	} {
		d.title(scene.title)
		if err := scene.play(ctx); err != nil {
			return fmt.Errorf("%s: %w", scene.title, err)
		}
	}
	if check {
		return d.measure(ctx)
	}
	if err := d.explain(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	d.title("Ctrl-C: stopping hub, agents and clusters")
	return nil
}

// prepare builds what is missing.
func (d *demo) prepare(ctx context.Context) error {
	d.say("building what is missing; the first time that is Kubernetes itself and takes about ten minutes on two cores")
	begin := time.Now()
	var err error
	if d.bin, err = fleet.Build(ctx, lines{d.screen}); err != nil {
		return err
	}
	d.say("built, or found built, in %s", time.Since(begin).Round(time.Second))
	if d.dir, err = os.MkdirTemp("", "shoal-demo-"); err != nil {
		return err
	}
	root, err := fleet.SourceRoot(ctx)
	if err != nil {
		return err
	}
	d.bundle = filepath.Join(d.dir, "shop")
	if err := os.CopyFS(d.bundle, os.DirFS(filepath.Join(root, "deploy", "examples", "helm"))); err != nil {
		return err
	}
	d.fleet, err = fleet.New(fleet.Options{Dir: d.dir, Binaries: d.bin})
	return err
}

// startClusters starts all three at once.
func (d *demo) startClusters(ctx context.Context) error {
	d.clusters = map[string]*kubetest.Cluster{}
	var mu sync.Mutex
	var all sync.WaitGroup
	var errs []error
	for _, name := range []string{"hub", "store-1", "store-2"} {
		all.Go(func() {
			begin := time.Now()
			c, err := kubetest.Start(ctx, kubetest.Options{Dir: filepath.Join(d.dir, "kube-"+name), Name: name})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			d.clusters[name] = c
			d.say("cluster %-7s  API server, kine on SQLite, controller manager, scheduler, a simulated node: ready after %.1f s", name, time.Since(begin).Seconds())
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// failed shows what is needed to understand it.
func (d *demo) failed(err error) {
	d.say("%v", err)
	if d.fleet != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		d.say("the ends of the logs:\n%s", d.fleet.Tails(ctx, 25))
	}
}

func (d *demo) close() error {
	var errs []error
	if d.fleet != nil {
		errs = append(errs, d.fleet.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	for _, c := range d.clusters {
		all.Go(func() {
			err := c.Stop(ctx)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	all.Wait()
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}
