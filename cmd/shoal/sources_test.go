package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"shoal.dev/shoal/controller/source"
)

// TestChartsFromElsewhere runs shoal render on a bundle whose chart is in a repository that wants credentials and has a CA of its own.
func TestChartsFromElsewhere(t *testing.T) {
	t.Parallel()
	archive := chartArchive(t)
	served := 0
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "pass word" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		switch r.URL.Path {
		case "/index.yaml":
			fmt.Fprintf(w, "apiVersion: v1\nentries:\n  web:\n  - {name: web, version: 1.2.3+up4.5.6, digest: %x, urls: [web-1.2.3.tgz]}\n", sha256.Sum256(archive))
		case "/web-1.2.3.tgz":
			served++
			_, _ = w.Write(archive)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("web/fleet.yaml", "helm: {repo: "+server.URL+", chart: web, version: \">=1.0.0 <2\"}\ntargets: [{clusterSelector: {}}]\n")
	file("web/kustomization.yaml", "commonAnnotations: {by: kustomize}\n") // beside a chart whose version has a +
	ca := file("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	password := file("password", "pass word\n")
	docker := file("docker/config.json", `{"auths":{}}`)
	host := strings.TrimPrefix(server.URL, "https://")
	web := filepath.Join(dir, "web")
	render := func(env map[string]string, args ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), append([]string{"render", web}, args...), func(k string) string { return env[k] }, &stdout, &stderr)
		for _, s := range []string{stdout.String(), stderr.String()} {
			if strings.Contains(s, "pass word") {
				t.Errorf("%v: the password is printed: %s", args, s)
			}
		}
		return code, stdout.String(), stderr.String()
	}
	home := map[string]string{"HOME": dir}

	code, out, said := render(home, "--helm-ca-file", ca, "--helm-host", host, "--helm-username", "me", "--helm-password-file", password, "--docker-config", docker)
	if code != exitOK || !strings.Contains(out, "name: from-repository") || !strings.Contains(out, "by: kustomize") || !strings.Contains(said, "fetching chart "+server.URL+" web >=1.0.0 <2") || !strings.Contains(said, "fetched chart web 1.2.3+up4.5.6") {
		t.Errorf("exit %d\n%s\n%s", code, out, said)
	}
	// From the environment; the archive is in the cache now.
	env := map[string]string{"HOME": dir, "SHOAL_HELM_HOST": host, "SHOAL_HELM_USERNAME": "me", "SHOAL_HELM_PASSWORD": "pass word", "SHOAL_HELM_CA_FILE": ca}
	if code, out, said = render(env); code != exitOK || !strings.Contains(out, "from-repository") || served != 1 {
		t.Errorf("exit %d, archive served %d times\n%s\n%s", code, served, out, said)
	}
	if code, _, said = render(env, "--chart-cache", "none"); code != exitOK || served != 2 {
		t.Errorf("exit %d, archive served %d times\n%s", code, served, said)
	}

	// What goes wrong says what to do.
	for _, tt := range []struct {
		env  map[string]string
		args []string
		want string
	}{
		{home, []string{"--helm-ca-file", ca}, "--helm-host, --helm-username and --helm-password-file"},
		{home, []string{"--helm-ca-file", ca, "--helm-host", "other.example.com", "--helm-username", "me", "--helm-password-file", password}, "--helm-host, --helm-username"}, // not sent
		{home, []string{"--helm-username", "me", "--helm-password-file", password}, "say which host the user name and password for charts are for"},
		{home, []string{"--helm-username", "me"}, "a user name and a password for charts belong together"},
		{home, []string{"--helm-password-file", filepath.Join(dir, "none")}, "--helm-password-file: open"},
		{home, []string{"--helm-ca-file", password}, "certificate"},
		{home, []string{"--docker-config", filepath.Join(dir, "none")}, "--docker-config: open"},
		{home, []string{"--docker-config", password}, "--docker-config " + password + ": docker config.json: not valid JSON"},
		{home, nil, "certificate"},
	} {
		code, out, said := render(tt.env, append(tt.args, "--chart-cache", "none")...)
		if code != exitFailed || out != "" || !strings.Contains(said, tt.want) {
			t.Errorf("%v: exit %d, want %q:\n%s", tt.args, code, tt.want, said)
		}
	}
}

func TestPrintableChart(t *testing.T) {
	t.Parallel()
	got := printableChart(source.ChartRef{Repo: "https://me:secret@example.com/x?token=secret", Chart: "we\x1bb", Version: "1"})
	if want := "https://example.com/x we\ufffdb 1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func chartArchive(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for _, f := range [][2]string{
		{"web/Chart.yaml", "apiVersion: v2\nname: web\nversion: 1.2.3+up4.5.6\n"},
		{"web/templates/a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: from-repository}\n"},
	} {
		if err := w.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestRemoteResources runs shoal render on kustomizations that name resources by address.
func TestRemoteResources(t *testing.T) {
	t.Parallel()
	const crd = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: far}\n"
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "pass word" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		switch r.URL.Path {
		case "/raw/far.yaml":
			fmt.Fprint(w, crd)
		case "/page":
			fmt.Fprint(w, "<!doctype html><p>a repository</p>")
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := file("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	env := map[string]string{
		"SHOAL_HELM_CA_FILE": ca, "SHOAL_HELM_HOST": strings.TrimPrefix(server.URL, "https://"),
		"SHOAL_HELM_USERNAME": "me", "SHOAL_HELM_PASSWORD": "pass word",
	}
	run := func(name, resource string, args ...string) (int, string, string) {
		t.Helper()
		web := filepath.Dir(file(name+"/fleet.yaml", "kustomize: {dir: overlays/prod}\ntargets: [{clusterSelector: {}}]\n"))
		file(name+"/overlays/prod/kustomization.yaml", "resources: [../../base]\nnamePrefix: prod-\n")
		file(name+"/overlays/test/kustomization.yaml", "resources: [https://unused.invalid/a.yaml]\n")
		file(name+"/base/kustomization.yaml", "resources:\n- "+resource+"\n")
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), append([]string{args[0], web}, args[1:]...), func(k string) string { return env[k] }, &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(crd)))
	for name, resource := range map[string]string{"plain": server.URL + "/raw/far.yaml", "sum": server.URL + "/raw/far.yaml?checksum=sha256:" + sum} {
		if code, out, stderr := run(name, resource, "render"); code != 0 || !strings.Contains(out, "name: prod-far") {
			t.Errorf("%s: exit %d\n%s\n%s", name, code, out, stderr)
		}
		code, out, stderr := run(name, resource, "apply", "-o", "yaml")
		if code != 0 || !strings.Contains(out, source.FilesAnnotation) || !strings.Contains(out, sum) || strings.Contains(out, "pass word") {
			t.Errorf("%s: exit %d\n%s\n%s", name, code, out, stderr)
		}
	}
	for name, c := range map[string]struct{ resource, want string }{
		"checksum":   {server.URL + "/raw/far.yaml?checksum=sha256:" + strings.Repeat("0", 64), "wrong digest"},
		"page":       {server.URL + "/page", "is no YAML file but a page, or a repository"},
		"missing":    {server.URL + "/gone.yaml", "not found"},
		"repository": {server.URL + "/owner/repo//deploy?ref=v1", "is a git repository, from which nothing is got"},
		"password":   {strings.Replace(server.URL, "https://", "https://a:secret@", 1) + "/raw/far.yaml", "a username or password in an address is refused"},
		"ssh":        {"git@example.com:a/b.git", "is remote: nothing is fetched while rendering"},
	} {
		code, out, stderr := run(name, c.resource, "lint")
		if code != 1 || !strings.Contains(out, c.want) || !strings.Contains(out, "base/kustomization.yaml") || strings.Contains(out+stderr, "secret") {
			t.Errorf("%s: exit %d, want %q\n%s\n%s", name, code, c.want, out, stderr)
		}
	}
}
