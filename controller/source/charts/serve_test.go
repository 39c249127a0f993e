package charts

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
)

// packed is a chart's archive; more are further files, and may replace Chart.yaml.
func packed(t testing.TB, name, version string, more map[string]string) []byte {
	t.Helper()
	files := map[string]string{
		"Chart.yaml":        fmt.Sprintf("apiVersion: v2\nname: %s\nversion: %s\n", name, version),
		"templates/cm.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + "}\ndata: {version: \"" + version + "\"}\n",
	}
	maps.Copy(files, more)
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	for _, f := range slices.Sorted(maps.Keys(files)) {
		if err := tw.WriteHeader(&tar.Header{Name: name + "/" + f, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[f]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, files[f]); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// site is a web server on loopback that counts.
type site struct {
	*httptest.Server
	mu      sync.Mutex
	files   map[string][]byte
	handle  map[string]http.HandlerFunc
	asked   []string            // paths
	headers map[string][]string // Authorization, by path
	user    string              // user:password or a token that is wanted; empty: public
}

func newSite(t testing.TB, useTLS bool) *site {
	s := &site{files: map[string][]byte{}, handle: map[string]http.HandlerFunc{}, headers: map[string][]string{}}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if useTLS {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.Path)
	s.headers[r.URL.Path] = append(s.headers[r.URL.Path], r.Header.Get("Authorization"))
	h, data, user := s.handle[r.URL.Path], s.files[r.URL.Path], s.user
	s.mu.Unlock()
	switch u, p, _ := r.BasicAuth(); {
	case user != "" && u+":"+p != user && r.Header.Get("Authorization") != "Bearer "+user:
		w.Header().Set("WWW-Authenticate", "Basic")
		w.WriteHeader(http.StatusUnauthorized)
	case h != nil:
		h(w, r)
	case data != nil:
		_, _ = w.Write(data)
	default:
		http.NotFound(w, r)
	}
}

func (s *site) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(s.URL, "https://"), "http://")
}

// ca is what a client must trust.
func (s *site) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func (s *site) times(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.asked {
		if p == path {
			n++
		}
	}
	return n
}

func (s *site) authorizations(path string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.headers[path])
}

// add puts a chart into the repository below /r.
func (s *site) add(t testing.TB, name, version string, more map[string]string) {
	s.files["/r/"+name+"-"+version+".tgz"] = packed(t, name, version, more)
}

// publish writes index.yaml; change may edit it.
func (s *site) publish(change func(string) string) {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nentries:\n")
	byName := map[string][]string{}
	for p := range s.files {
		if base, ok := strings.CutSuffix(strings.TrimPrefix(p, "/r/"), ".tgz"); ok {
			name, version, _ := strings.Cut(base, "-")
			byName[name] = append(byName[name], version)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		fmt.Fprintf(&b, "  %s:\n", name)
		for _, v := range byName[name] { // in no order: that of the index does not matter
			file := name + "-" + v + ".tgz"
			fmt.Fprintf(&b, "  - apiVersion: v2\n    name: %s\n    version: %s\n    description: |-\n      Entries:\n\n       x\n    digest: %s\n    urls:\n    - %s\n", name, v, sum(s.files["/r/"+file]), file)
		}
	}
	b.WriteString("generated: \"2026-11-01T10:00:00Z\"\n")
	index := b.String()
	if change != nil {
		index = change(index)
	}
	s.files["/r/index.yaml"] = []byte(index)
}

// newRegistry is a real registry behind a site, which asks for credentials. charts are name:version.
func newRegistry(t testing.TB, useTLS bool, charts ...string) *site {
	inner := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	s := newSite(t, useTLS)
	outer := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		_, special := s.handle[r.URL.Path]
		s.mu.Unlock()
		if special {
			outer.ServeHTTP(w, r)
			return
		}
		s.mu.Lock()
		s.asked = append(s.asked, r.URL.Path)
		s.headers[r.URL.Path] = append(s.headers[r.URL.Path], r.Header.Get("Authorization"))
		user := s.user
		s.mu.Unlock()
		if u, p, _ := r.BasicAuth(); user != "" && u+":"+p != user {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	})
	for _, c := range charts {
		name, version, _ := strings.Cut(c, ":")
		s.push(t, "charts/"+name, strings.ReplaceAll(version, "+", "_"), configType, packed(t, name, version, nil))
	}
	s.asked = nil
	return s
}

// push stores an archive as `helm push` does.
func (s *site) push(t testing.TB, repo, tag, config string, data []byte) {
	t.Helper()
	ctx := context.Background()
	r := &remote.Repository{Client: s.Client(), Reference: registry.Reference{Registry: s.host(), Repository: repo}, PlainHTTP: s.TLS == nil}
	blob := func(kind string, data []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: kind, Digest: digest.FromBytes(data), Size: int64(len(data))}
		if err := r.Blobs().Push(ctx, d, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: blob(config, []byte("{}")), Layers: []ocispec.Descriptor{blob(chartType, data)}}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := r.Manifests().PushReference(ctx, d, bytes.NewReader(b), tag); err != nil {
		t.Fatal(err)
	}
}

func newClient(t testing.TB, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	c.backoff = 0
	t.Cleanup(c.Close)
	return c
}

// wantError checks an error, that it is one line, and that no secret of these tests is in it.
func wantError(t testing.TB, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", texts)
		return
	}
	for _, w := range texts {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q has no %q", err, w)
		}
	}
	for _, bad := range []string{"s3cret", "%!", "\n"} {
		if strings.Contains(err.Error(), bad) {
			t.Errorf("error %q has %q in it", err, bad)
		}
	}
}
