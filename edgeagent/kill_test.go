package edgeagent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent"
	"shoal.dev/shoal/internal/kubetest"
)

// childVariable makes the test binary an agent instead: one that can be killed. Its value is a child as JSON.
const childVariable = "SHOAL_TEST_AGENT"

type child struct {
	DataDir, TokenFile, Cluster, Kubeconfig, Namespace string
	Timing                                             edgeagent.Timing
}

func (c child) run() error {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return err
	}
	a, err := edgeagent.New(edgeagent.Options{
		DataDir: c.DataDir, TokenFile: c.TokenFile, Cluster: c.Cluster, Kubernetes: cfg, Namespace: c.Namespace, Version: "v0-child",
		Timing: c.Timing, Log: zerolog.New(os.Stderr).Level(zerolog.InfoLevel),
	})
	if err != nil {
		return err
	}
	return a.Run(context.Background())
}

func TestMain(m *testing.M) {
	if v := os.Getenv(childVariable); v != "" {
		var c child
		err := json.Unmarshal([]byte(v), &c)
		if err == nil {
			err = c.run()
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	kubetest.Main(m)
}

// TestKill kills the agent with SIGKILL at random instants of an update with hooks, prunes and store writes: every next start
// converges on exactly the objects of the last release. SHOAL_KILLS=200 does it so often.
func TestKill(t *testing.T) {
	kills := 8
	if v := os.Getenv("SHOAL_KILLS"); v != "" {
		var err error
		if kills, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("SHOAL_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	h := newHub(t)
	s := newSite(t, h, "store-1")
	arg, err := json.Marshal(child{
		DataDir: s.o.DataDir, TokenFile: s.o.TokenFile, Cluster: s.o.Cluster, Kubeconfig: kubeconfig(t, s.o.Kubernetes), Namespace: s.ns, Timing: s.o.Timing,
	})
	if err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		t.Helper()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+string(arg))
		cmd.Stdout, cmd.Stderr = s.log, s.log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	kill := func(cmd *exec.Cmd) {
		t.Helper()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
			t.Fatalf("the agent ended by itself: %v", err)
		}
	}
	cmd := start()
	t.Cleanup(func() { kill(cmd) })

	// Two apps: one is updated again and again, the other one comes and goes.
	var serial bundlefmt.Serial
	order := func() map[string]string {
		serial++
		want := map[string]string{}
		var objects []string
		for i := range 24 {
			if i == 0 || r.IntN(2) == 0 {
				n, v := fmt.Sprintf("web-%d", i), strconv.Itoa(int(serial))
				want[n] = v
				objects = append(objects, s.configMap(n, v))
			}
		}
		events := []bundlefmt.HookEvent{bundlefmt.PreInstall, bundlefmt.PreUpgrade, bundlefmt.PostInstall, bundlefmt.PostUpgrade}
		var hooks []bundlefmt.Hook
		for i, e := range events {
			hooks = append(hooks, bundlefmt.Hook{Object: len(objects), Events: []bundlefmt.HookEvent{e}, Delete: []bundlefmt.HookDelete{bundlefmt.HookSucceeded, bundlefmt.BeforeCreation}})
			objects = append(objects, s.configMap(fmt.Sprintf("hook-%d", i), "1"))
		}
		web := h.sealWith(bundlefmt.Handling{Hooks: hooks}, objects...)
		h.put(s.c, "", web)
		db := h.seal(s.configMap("db", "1"), s.configMap("db-2", "1"))
		h.put(s.c, "", db)
		p := fix
		p.ConfirmPrune = true // what half-done releases left can be more than the release has
		entries := []bundlefmt.Deployment{entry("web", serial, web, p)}
		var gone []bundlefmt.Removal
		if serial%2 == 0 {
			entries = append(entries, entry("db", serial, db, fix))
			want["db"], want["db-2"] = "1", "1"
		} else {
			gone = append(gone, bundlefmt.Removal{Name: "db", Serial: serial})
		}
		h.publish(prefix.Desired(s.c), h.document(s.c, serial, func(d *bundlefmt.Desired) { d.Remove = gone }, entries...))
		return want
	}
	converge := func(want map[string]string) {
		t.Helper()
		h.awaitReport(s.c, "the last order", func(r *bundlefmt.Reported) bool {
			d, ok := of(r, "web")
			_, db := of(r, "db")
			return ok && r.Serial == serial && d.Serial == serial && d.State == bundlefmt.Ready && db == (serial%2 == 0)
		})
		kubetest.Wait(t, "exactly the objects of the last release", func(ctx context.Context) error {
			list, err := s.kube.Resource(configMaps).Namespace(s.ns).List(ctx, metav1.ListOptions{LabelSelector: "shoal.dev/deployment"})
			if err != nil {
				return err
			}
			got := map[string]string{}
			for _, u := range list.Items {
				got[u.GetName()], _, _ = unstructured.NestedString(u.Object, "data", "v")
			}
			if !maps.Equal(got, want) {
				return fmt.Errorf("got %v\nwant %v", got, want)
			}
			return nil
		})
	}
	converge(order())
	var took []time.Duration
	for n := range kills {
		began := time.Now()
		want := order()
		// From before the order arrives to after all of it is done.
		<-time.After(time.Duration(r.IntN(300)) * time.Millisecond)
		kill(cmd)
		if r.IntN(3) == 0 { // and once more, in the middle of getting up
			cmd = start()
			<-time.After(time.Duration(r.IntN(500)) * time.Millisecond)
			kill(cmd)
		}
		if r.IntN(2) == 0 { // a newer order waits when it is back: what the one before made has to be known to go
			want = order()
		}
		cmd = start()
		converge(want)
		took = append(took, time.Since(began))
		if t.Failed() {
			t.Fatalf("kill %d", n)
		}
	}
	slices.Sort(took)
	t.Logf("%d kills; a round took %s, at most %s", kills, took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
}
