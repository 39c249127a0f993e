package edgeagent_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/kubetest"
)

// TestFootprint measures the built agent: size, memory idle and with 68 bundles of 565 objects, requests at rest, and how long an edit
// stands. It runs when SHOAL_BENCH is set; the limits are those of the goals.
func TestFootprint(t *testing.T) {
	if os.Getenv("SHOAL_BENCH") == "" {
		t.Skip("set SHOAL_BENCH=1 to measure")
	}
	h := newHub(t)
	s := newSite(t, h, "store-1")
	binary := filepath.Join(t.TempDir(), "shoal-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "shoal.dev/shoal/cmd/shoal-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("binary: %.1f MB", float64(info.Size())/1e6)

	var stderr logBuffer
	cmd := exec.Command(binary, "run", "--data-dir", s.o.DataDir, "--token-file", s.o.TokenFile, "--cluster-name", "store-1", "--namespace", s.ns,
		"--kubeconfig", kubeconfig(t, s.o.Kubernetes), "--metrics-listen", "127.0.0.1:0", "--log-format", "json")
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, &stderr)
		}
	})
	h.awaitPresence(s.c, "online", func(p *bundlefmt.Presence) bool { return p.Online })
	h.awaitReport(s.c, "facts", func(r *bundlefmt.Reported) bool { return r.Facts != "" })
	t.Logf("idle: %s", memory(t, cmd.Process.Pid))

	var entries []bundlefmt.Deployment
	const bundles, all = 68, 565
	for i := range bundles {
		var objects []string
		for j := range (all+bundles-1-i)/bundles - 1 {
			objects = append(objects, s.configMap(fmt.Sprintf("b%d-%d", i, j), "some configuration of a shop"))
		}
		b := h.seal(append(objects, s.workload(fmt.Sprintf("app-%d", i)))...)
		h.put(s.c, "", b)
		entries = append(entries, entry(fmt.Sprintf("app-%d", i), 1, b, fix))
	}
	began := time.Now()
	h.order(s.c, 1, entries...)
	h.awaitReport(s.c, "all ready", func(r *bundlefmt.Reported) bool {
		for _, d := range r.Deployments {
			if d.State != bundlefmt.Ready {
				return false
			}
		}
		return len(r.Deployments) == bundles
	})
	t.Logf("%d bundles of %d objects ready after %s: %s", bundles, all, time.Since(began).Round(time.Second), memory(t, cmd.Process.Pid))
	kubetest.Wait(t, "every record to be kept on the cluster", func(ctx context.Context) error {
		list, err := s.kube.Resource(configMaps).Namespace(s.ns).List(ctx, metav1.ListOptions{LabelSelector: "shoal.dev/record"})
		if err == nil && len(list.Items) < bundles {
			err = fmt.Errorf("there are %d", len(list.Items))
		}
		return err
	})
	before, rest := requests(t, stderr.String()), time.Now()
	kubetest.Wait(t, "a minute at rest", func(context.Context) error {
		if left := time.Minute - time.Since(rest); left > 0 {
			return fmt.Errorf("%s to go", left)
		}
		return nil
	})
	t.Logf("a minute later: %s, %d requests to the API server in it", memory(t, cmd.Process.Pid), requests(t, stderr.String())-before)
	var worst, sum time.Duration
	const edits = 10
	for i := range edits {
		name, began := fmt.Sprintf("b%d-%d", i*6, i%7), time.Now()
		s.edit(name, "by hand")
		s.awaitValue(name, "some configuration of a shop")
		took := time.Since(began)
		worst, sum = max(worst, took), sum+took
	}
	t.Logf("an edit stands %s, at most %s", (sum / edits).Round(time.Millisecond), worst.Round(time.Millisecond))
}

func kubeconfig(t *testing.T, c *rest.Config) string {
	t.Helper()
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["c"] = &clientcmdapi.Cluster{Server: c.Host, CertificateAuthority: c.CAFile, CertificateAuthorityData: c.CAData}
	cfg.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificate: c.CertFile, ClientCertificateData: c.CertData, ClientKey: c.KeyFile, ClientKeyData: c.KeyData, Token: c.BearerToken}
	cfg.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	cfg.CurrentContext = "x"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*cfg, path); err != nil {
		t.Fatal(err)
	}
	return path
}

var rss = regexp.MustCompile(`VmRSS:\s+(\d+) kB`)

func memory(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := rss.FindSubmatch(b)
	if m == nil {
		t.Fatal("no VmRSS")
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%.1f MB resident", float64(kb)/1024)
}

var (
	address = regexp.MustCompile(`"address":"([^"]+)"`)
	asked   = regexp.MustCompile(`(?m)^shoal_agent_api_requests_total\{.*\} (\d+)`)
)

func requests(t *testing.T, log string) int {
	t.Helper()
	res, err := http.Get("http://" + address.FindStringSubmatch(log)[1] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, m := range asked.FindAllSubmatch(b, -1) {
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}
