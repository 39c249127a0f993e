package kubetest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	startTimeout = 20 * time.Minute // with a build; go test's own timeout is usually first
	stopTimeout  = 15 * time.Second
)

// shared is the one cluster of a test process. A package variable, because
// nothing but TestMain outlives a test.
var shared struct {
	main    bool
	once    sync.Once
	cluster *Cluster
	err     error
}

// Main runs the tests of a package, stops the cluster of Shared and exits. Call
// it from TestMain.
func Main(m *testing.M) {
	shared.main = true
	code := m.Run()
	if shared.cluster != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		if err := shared.cluster.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "kubetest: stop:", err)
			code = max(code, 1)
		}
		cancel()
	}
	os.Exit(code)
}

// Shared returns the administrator's access to one cluster with a simulated
// node, the same for all tests of the package. Tests keep apart by Namespace;
// what they make outside of namespaces, they must name and remove themselves.
func Shared(tb testing.TB) *rest.Config {
	tb.Helper()
	if !shared.main {
		tb.Fatal("kubetest.Shared needs func TestMain(m *testing.M) { kubetest.Main(m) } in this package")
	}
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		shared.cluster, shared.err = Start(ctx, Options{Log: os.Stderr})
	})
	if shared.err != nil {
		tb.Fatalf("start the shared cluster: %v", shared.err)
	}
	cfg, err := shared.cluster.RESTConfig()
	if err != nil {
		tb.Fatal(err)
	}
	return cfg
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// Namespace makes a namespace named after the test, in which Pods can be created
// at once, and deletes it when the test ends.
func Namespace(tb testing.TB, cfg *rest.Config) string {
	tb.Helper()
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(tb.Name()), "-"), "-")
	ns, err := client.CoreV1().Namespaces().Create(tb.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: name[:min(len(name), 50)] + "-"},
	}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatalf("create namespace: %v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil {
			tb.Logf("delete namespace %s: %v", ns.Name, err)
		}
	})
	// Pods are refused until their ServiceAccount exists.
	Wait(tb, "the default ServiceAccount of "+ns.Name, func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts(ns.Name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return ns.Name
}

// Wait calls try until it returns nil. After two minutes the test fails with
// the last error, which should say what is missing.
func Wait(tb testing.TB, what string, try func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("wait for %s: %v", what, err)
		}
	}
}

// RequireReal skips the test, saying why, on a machine that cannot run a
// cluster with real nodes. Where CI=true it fails the test instead.
func RequireReal(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), startTimeout)
	defer cancel()
	binary, err := Binary(ctx, os.Stderr)
	if err != nil {
		tb.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, binary, "preflight").CombinedOutput()
	if err == nil {
		return
	}
	why := fmt.Sprintf("real containers are impossible here: %s", bytes.TrimSpace(out))
	if os.Getenv("CI") == "true" {
		tb.Fatal(why)
	}
	fmt.Fprintf(os.Stderr, "SKIPPED %s: %s\n", tb.Name(), why)
	tb.Skip(why)
}
