package charts

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal.dev/shoal/controller/source"
)

type ref = source.ChartRef

func TestRepository(t *testing.T) {
	t.Parallel()
	s := newSite(t, true)
	for _, v := range []string{"1.9.0", "1.10.0", "1.10.1+build.7", "2.0.0-rc.1", "0.3.0"} {
		s.add(t, "web", v, nil)
	}
	s.add(t, "early", "0.1.0-alpha.1", nil)
	s.publish(nil)
	c := newClient(t, Options{CA: s.ca()})
	for _, tt := range []struct{ name, version, want, err string }{
		{"web", "", "1.10.1+build.7", ""},
		{"web", "1.9.0", "1.9.0", ""},
		{"web", "1.9", "1.9.0", ""},
		{"web", "^1.0.0", "1.10.1+build.7", ""},
		{"web", ">=1.0.0 <1.10.0", "1.9.0", ""},
		{"web", "~0.3", "0.3.0", ""},
		{"web", "1.10.1+build.7", "1.10.1+build.7", ""},
		{"web", "2.0.0-rc.1", "2.0.0-rc.1", ""},
		{"web", ">0-0", "2.0.0-rc.1", ""},
		{"web", "^3.0.0", "", "no version matches ^3.0.0: the newest are 2.0.0-rc.1, 1.10.1+build.7, 1.10.0, 1.9.0, 0.3.0"},
		{"web", "newest", "", `version "newest" is neither a version nor a range`},
		{"early", "", "", "only prereleases: give a version, the newest are 0.1.0-alpha.1"},
		{"wep", "", "", "there is no chart wep in this repository"},
	} {
		ch, err := c.Get(t.Context(), ref{Chart: tt.name, Repo: s.URL + "/r/", Version: tt.version})
		if tt.err != "" {
			wantError(t, err, tt.err)
			continue
		}
		if err != nil {
			t.Errorf("%s %q: %v", tt.name, tt.version, err)
			continue
		}
		if ch.Name != tt.name || ch.Version != tt.want {
			t.Errorf("%s %q: got %s %s, want %s", tt.name, tt.version, ch.Name, ch.Version, tt.want)
		}
		if want := "sha256:" + sum(s.files["/r/"+tt.name+"-"+tt.want+".tgz"]); ch.Digest != want {
			t.Errorf("digest %s, want %s", ch.Digest, want)
		}
		if got := slices.Sorted(maps.Keys(ch.Files)); !slices.Equal(got, []string{"Chart.yaml", "templates/cm.yaml"}) {
			t.Errorf("files %q", got)
		}
	}
	if n := s.times("/r/index.yaml"); n != 1 {
		t.Errorf("index.yaml was read %d times", n)
	}
}

// TestIndexForms: what repositories other than Helm's own write is read as well.
func TestIndexForms(t *testing.T) {
	t.Parallel()
	s := newSite(t, false)
	s.add(t, "web", "1.2.0", nil)
	other := newSite(t, false)
	other.files["/files/web.tgz"] = s.files["/r/web-1.2.0.tgz"]
	digest := sum(s.files["/r/web-1.2.0.tgz"])
	for name, index := range map[string]string{
		"json":            `{"apiVersion":"v1","entries":{"web":[{"version":"1.2.0","urls":["web-1.2.0.tgz"]}]}}`,
		"quoted keys":     "entries:\n    \"web\":\n        - version: 1.2.0\n          urls: [web-1.2.0.tgz]\n",
		"flow":            "entries: {web: [{version: 1.2.0, urls: [web-1.2.0.tgz]}]}\n",
		"flow list":       "entries:\n  web: [{version: 1.2.0, urls: [web-1.2.0.tgz]}]\n",
		"windows":         "\xef\xbb\xbfapiVersion: v1\r\nentries:\r\n  a:\r\n  - version: 1.0.0\r\n  web:\r\n  - version: 1.2.0\r\n    urls:\r\n    - web-1.2.0.tgz\r\n",
		"aliases":         "x: &u [web-1.2.0.tgz]\nentries:\n  web:\n  - version: 1.2.0\n    urls: *u\n",
		"comments":        "# c\nentries: # c\n  # c\n  web: # c\n# c\n  - version: 1.2.0\n    urls: [web-1.2.0.tgz]\n",
		"broken siblings": "entries:\n  web:\n  -\n  - version: latest\n    urls: [x]\n  - version: 1.3.0\n  - version: 1.2.0\n    urls: [web-1.2.0.tgz]\n",
		"other host":      "entries:\n  web:\n  - version: 1.2.0\n    urls: [\"" + other.URL + "/files/web.tgz\"]\n",
		"digest":          "entries:\n  web:\n  - version: 1.2.0\n    digest: sha256:" + strings.ToUpper(digest) + "\n    urls: [web-1.2.0.tgz]\n",
	} {
		s.files["/r/index.yaml"] = []byte(index)
		ch, err := newClient(t, Options{}).Get(t.Context(), ref{Chart: "web", Repo: s.URL + "/r"})
		if err != nil || ch.Version != "1.2.0" {
			t.Errorf("%s: %s %v", name, ch.Version, err)
		}
	}
	for index, want := range map[string]string{
		"<html>sign in</html>": "is this a chart repository?",
		"apiVersion: v1\n":     "it has no entries",
		"entries:\n  web:\n  - version: 1.2.0\n    digest: md5:00\n    urls: [web-1.2.0.tgz]\n":                          `"md5:00" is not supported`,
		"entries:\n  web:\n  - version: 1.2.0\n    digest: " + strings.Repeat("a", 64) + "\n    urls: [web-1.2.0.tgz]\n": "wrong digest",
		"entries:\n  web:\n  - version: 1.2.0\n    urls: [file:///etc/passwd]\n":                                         "file://, which is not supported",
		"entries:\n  web:\n  - version: 1.2.0\n    urls: [\"http://u:s3cret@x/\"]\n":                                     "is not valid",
		"entries:\n  web:\n  - version: 1.2.0\n    urls: [gone.tgz]\n":                                                   "not found",
		"entries:\n  web:\n":                      "there is no chart web",
		"entries:\n  web: {}\n":                   "is this a chart repository?",
		"entries:\n  web:\n  - version: 1.2.0\n":  "there is no chart web",
		"entries:\n  web:\n  - urls: [a.tgz]\n\t": "is this a chart repository?",
	} {
		s.files["/r/index.yaml"] = []byte(index)
		_, err := newClient(t, Options{}).Get(t.Context(), ref{Chart: "web", Repo: s.URL + "/r"})
		wantError(t, err, want, "get chart "+s.URL+"/r web: ")
	}
	delete(s.files, "/r/index.yaml")
	_, err := newClient(t, Options{}).Get(t.Context(), ref{Chart: "web", Repo: s.URL + "/r"})
	wantError(t, err, "/r/index.yaml: not found", "this is no chart repository")
}

// TestLargeIndex: of an index with 30 MB only what is asked for is parsed.
func TestLargeIndex(t *testing.T) { // not parallel: it measures
	var b strings.Builder
	b.WriteString("apiVersion: v1\nentries:\n")
	for i := range 300 {
		fmt.Fprintf(&b, "  chart%03d:\n", i)
		for v := range 300 {
			fmt.Fprintf(&b, "  - apiVersion: v2\n    name: chart%03d\n    version: 1.%d.0\n    description: %s\n    urls:\n    - https://charts.example.com/chart%03d-1.%d.0.tgz\n", i, v, strings.Repeat("words ", 35), i, v)
		}
	}
	index := []byte(b.String())
	if len(index) < 20<<20 {
		t.Fatalf("%d bytes are not large", len(index))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	list, err := entries(index, "chart299")
	runtime.ReadMemStats(&after)
	if err != nil || len(list) != 300 || list[299].Version != "1.299.0" {
		t.Errorf("%d versions, %v", len(list), err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("reading one chart of %d bytes of index took %d bytes of memory", len(index), n)
	}
}

func TestURL(t *testing.T) {
	t.Parallel()
	s := newSite(t, false)
	data := packed(t, "web", "1.2.3", nil)
	s.files["/web.tgz"] = data
	s.files["/src.tar.gz"] = packed(t, "web", "9.9.9", map[string]string{"charts/inner/Chart.yaml": "name: inner\nversion: 4.0.0\n", "charts/inner/values.yaml": "a: 1\n"})
	s.files["/bomb.tgz"] = packed(t, "web", "1.0.0", map[string]string{"a": strings.Repeat("\x00", 8<<20), "b": strings.Repeat("\x00", 8<<20), "c": strings.Repeat("\x00", 8<<20), "d": strings.Repeat("\x00", 8<<20)})
	s.files["/out.tgz"] = packed(t, "web", "1.0.0", map[string]string{"../../etc/passwd": "x"})
	s.files["/large.tgz"] = make([]byte, 17<<20)
	s.handle["/cut.tgz"] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:len(data)/2])
	}
	s.handle["/encoded.tgz"] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip") // wrong, and common
		_, _ = w.Write(data)
	}
	c := newClient(t, Options{})
	for _, tt := range []struct{ path, version, want, err string }{
		{"/web.tgz", "", "1.2.3", ""},
		{"/web.tgz", "^1.0.0", "1.2.3", ""},
		{"/web.tgz", "^2.0.0", "", "the chart has version 1.2.3, asked for is ^2.0.0"},
		{"/web.tgz?checksum=sha256:" + sum(data), "", "1.2.3", ""},
		{"/web.tgz?archive=tgz&checksum=" + sum(data), "", "1.2.3", ""},
		{"/web.tgz?checksum=sha256:" + strings.Repeat("0", 64), "", "", "wrong digest: it must be sha256:0000"},
		{"/web.tgz?checksum=md5:00", "", "", `checksum "md5:00" is not supported`},
		{"/src.tar.gz//web/charts/inner", "", "4.0.0", ""},
		{"/src.tar.gz//web/none", "", "", "directory web/none of the archive: no Chart.yaml in it"},
		{"/encoded.tgz", "", "1.2.3", ""},
		{"/bomb.tgz", "", "", "more than 25165824 bytes in all"},
		{"/out.tgz", "", "", "leads out of the chart"},
		{"/large.tgz", "", "", "it has more than 16777216 bytes"},
		{"/cut.tgz", "", "", "is truncated"},
		{"/none.tgz?X-Signature=s3cret", "", "", "not found: " + s.host() + " answers 404"},
	} {
		ch, err := c.Get(t.Context(), ref{Chart: s.URL + tt.path, Version: tt.version})
		if tt.err != "" {
			wantError(t, err, tt.err)
			continue
		}
		if err != nil || ch.Version != tt.want {
			t.Errorf("%s: %s, %v", tt.path, ch.Version, err)
		}
	}
	if n := s.times("/cut.tgz"); n != attempts {
		t.Errorf("a truncated answer was asked for %d times", n)
	}
	if n := s.times("/none.tgz"); n != 1 {
		t.Errorf("a missing file was asked for %d times", n)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	c := newClient(t, Options{})
	for _, tt := range []struct {
		ref
		want string
	}{
		{ref{}, "neither chart nor repo"},
		{ref{Chart: "web"}, "chart is no address"},
		{ref{Chart: "git::https://example.com/x"}, "git repository"},
		{ref{Chart: "git@example.com:x/y"}, "git repository"},
		{ref{Chart: "https://example.com/x.git//charts/web?ref=main"}, "git repository"},
		{ref{Chart: "ssh://git@example.com/x"}, "ssh"},
		{ref{Chart: "github.com/x/y//charts"}, "git repository"},
		{ref{Chart: "s3::https://s3.example.com/x.tgz"}, "s3:: is not supported"},
		{ref{Chart: "s3://bucket/x.tgz"}, "s3:// is not supported"},
		{ref{Chart: "web", Repo: "@stable"}, "name in somebody's Helm settings"},
		{ref{Chart: "web", Repo: "stable"}, "repo is no address"},
		{ref{Chart: "web", Repo: "file:///etc"}, "file:// is not supported"},
		{ref{Repo: "https://charts.example.com"}, "chart must name one"},
		{ref{Chart: "../web", Repo: "https://charts.example.com"}, "is no name of a chart"},
		{ref{Chart: "oci://example.com/web", Repo: "https://charts.example.com"}, "both addresses"},
		{ref{Chart: "https://me:s3cret@example.com/x.tgz"}, "refused"},
		{ref{Chart: "web", Repo: "oci://me:s3cret@example.com/x"}, "refused"},
		{ref{Chart: "oci://UPPER/Case"}, "is no address of a chart in a registry"},
		{ref{Chart: "https://exa mple.com/%zz?s3cret"}, "not a valid address"},
		{ref{Chart: "https://me:s3cret/x@example.com/x.tgz"}, "not a valid address"},
	} {
		_, err := c.Get(t.Context(), tt.ref)
		wantError(t, err, tt.want)
	}
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	s := newRegistry(t, true, "web:1.9.0", "web:1.10.0", "web:1.10.1+build.7", "web:2.0.0-rc.1", "other:7.0.0")
	s.push(t, "charts/web", "latest", configType, packed(t, "web", "0.0.1", nil))
	s.push(t, "charts/web", "9", configType, packed(t, "web", "9.0.0", nil)) // a moving tag is no version
	s.push(t, "charts/image", "1.0.0", "application/vnd.oci.image.config.v1+json", []byte("x"))
	c := newClient(t, Options{CA: s.ca()})
	base := "oci://" + s.host() + "/charts"
	for _, tt := range []struct{ repo, chart, version, want, err string }{
		{base, "web", "", "1.10.1+build.7", ""},
		{base + "/", "web", "^1.0.0", "1.10.1+build.7", ""},
		{base + "/web", "", "1.9.x", "1.9.0", ""},
		{"", base + "/web", "1.10.1+build.7", "1.10.1+build.7", ""},
		{"", base + "/web", ">0-0", "2.0.0-rc.1", ""},
		{"", base + "/web:1.9.0", "", "1.9.0", ""},
		{"", base + "/web:1.9.0", "^2.0.0", "", "the chart has version 1.9.0"},
		{base, "web", "^3.0.0", "", "no version matches ^3.0.0: the newest are 2.0.0-rc.1, 1.10.1+build.7"},
		{base, "web", "1.9.9", "", "1.9.9: not found: " + s.host() + " answers 404: the newest versions are 2.0.0-rc.1, "},
		{base, "none", "", "", "not found"},
		{base, "image", "1.0.0", "", "is no Helm chart: its type is"},
	} {
		ch, err := c.Get(t.Context(), ref{Chart: tt.chart, Repo: tt.repo, Version: tt.version})
		if tt.err != "" {
			wantError(t, err, tt.err)
			continue
		}
		if err != nil || ch.Version != tt.want || ch.Digest == "" {
			t.Errorf("%s %s %q: %s, %v", tt.repo, tt.chart, tt.version, ch.Version, err)
		}
	}
	// An exact version is not looked for: some registries list tags for nobody.
	before := s.times("/v2/charts/other/tags/list")
	if ch, err := c.Get(t.Context(), ref{Chart: "other", Repo: base, Version: "7.0.0"}); err != nil || ch.Version != "7.0.0" || s.times("/v2/charts/other/tags/list") != before {
		t.Errorf("%s %v, tags were listed %d times", ch.Version, err, s.times("/v2/charts/other/tags/list"))
	}
}

// TestRegistryLies: a registry that answers something else than its digests say is caught.
func TestRegistryLies(t *testing.T) {
	t.Parallel()
	s := newRegistry(t, false, "web:1.0.0")
	data := packed(t, "web", "1.0.0", nil)
	blob := "/v2/charts/web/blobs/sha256:" + sum(data)
	evil := slices.Clone(data)
	evil[len(evil)-1] ^= 1
	c := newClient(t, Options{PlainHTTP: []string{s.host()}})
	get := func() error {
		_, err := c.Get(t.Context(), ref{Chart: "oci://" + s.host() + "/charts/web:1.0.0"})
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	answer := func(b []byte, length int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.handle[blob] = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(length))
			_, _ = w.Write(b)
		}
	}
	answer(evil, len(evil))
	wantError(t, get(), "wrong digest")
	answer(data[:20], len(data))
	wantError(t, get(), "is truncated")
	if n := s.times(blob); n < attempts {
		t.Errorf("a truncated blob was asked for %d times", n)
	}
	s.handle["/v2/charts/web/manifests/1.0.0"] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
		_, _ = w.Write([]byte("{}"))
	}
	if err := get(); err == nil {
		t.Error("a manifest with another digest was accepted")
	} else {
		wantError(t, err, "digest")
	}
}

// TestCredentials: the same for a repository and a registry: right, wrong, missing, and how to give them.
func TestCredentials(t *testing.T) {
	t.Parallel()
	web := newSite(t, true)
	web.add(t, "web", "1.0.0", nil)
	web.publish(nil)
	web.user = "me:s3cret"
	reg := newRegistry(t, true, "web:1.0.0")
	reg.user = "me:s3cret"
	for name, tt := range map[string]struct {
		ref
		s *site
	}{
		"repository": {ref{Chart: "web", Repo: web.URL + "/r"}, web},
		"archive":    {ref{Chart: web.URL + "/r/web-1.0.0.tgz"}, web},
		"registry":   {ref{Chart: "web", Repo: "oci://" + reg.host() + "/charts"}, reg},
		"exact tag":  {ref{Chart: "oci://" + reg.host() + "/charts/web:1.0.0"}, reg},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			get := func(cr ...Credential) error {
				_, err := newClient(t, Options{CA: tt.s.ca(), Credentials: cr, Login: "say shoal login"}).Get(t.Context(), tt.ref)
				return err
			}
			if err := get(Credential{Host: tt.s.host(), Username: "me", Password: "s3cret"}); err != nil {
				t.Error(err)
			}
			wantError(t, get(), tt.s.host()+" wants credentials, and none are given for it", "say shoal login")
			wantError(t, get(Credential{Host: "other.example.com", Username: "me", Password: "s3cret"}), "none are given for it")
			wantError(t, get(Credential{Host: tt.s.host(), Username: "me", Password: "wrong-s3cret"}), "refuses the credentials given for it (401)", "say shoal login")
		})
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	s := newSite(t, true)
	s.files["/web.tgz"] = packed(t, "web", "1.0.0", nil)
	s.user = "s3cret-token"
	c := newClient(t, Options{CA: s.ca(), Credentials: []Credential{{Host: s.host(), Token: "s3cret-token"}}})
	if _, err := c.Get(t.Context(), ref{Chart: s.URL + "/web.tgz"}); err != nil {
		t.Error(err)
	}
}

// TestTokenServer: registries such as Docker Hub exchange a password for a token elsewhere.
func TestTokenServer(t *testing.T) {
	t.Parallel()
	s := newRegistry(t, true, "web:1.0.0")
	inner := s.Config.Handler
	var tokens []string
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			u, p, _ := r.BasicAuth()
			s.mu.Lock()
			tokens = append(tokens, u+":"+p+" "+r.URL.Query().Get("scope"))
			s.mu.Unlock()
			if u != "me" || p != "s3cret" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			_, _ = w.Write([]byte(`{"token":"abc"}`))
		case r.Header.Get("Authorization") != "Bearer abc":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="test",scope="repository:charts/web:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			inner.ServeHTTP(w, r)
		}
	})
	get := func(password string) error {
		c := newClient(t, Options{CA: s.ca(), Credentials: []Credential{{Host: s.host(), Username: "me", Password: password}}})
		_, err := c.Get(t.Context(), ref{Chart: "web", Repo: "oci://" + s.host() + "/charts", Version: "^1"})
		return err
	}
	if err := get("s3cret"); err != nil {
		t.Error(err)
	}
	wantError(t, get("wrong-s3cret"), "refuses the credentials given for it (401)")
	if want := "me:s3cret repository:charts/web:pull"; !slices.Contains(tokens, want) {
		t.Errorf("asked for tokens with %q, want %q", tokens, want)
	}
}

// TestRedirect: credentials go to their own host only: not to another port, not back after a detour, not without TLS.
func TestRedirect(t *testing.T) {
	t.Parallel()
	s, other, plain := newSite(t, true), newSite(t, true), newSite(t, false)
	s.user = "me:s3cret"
	data := packed(t, "web", "1.0.0", nil)
	for _, x := range []*site{s, other, plain} {
		x.files["/web.tgz"] = data
	}
	to := func(u string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, u, http.StatusFound) }
	}
	s.handle["/same"] = to(s.URL + "/web.tgz")
	s.handle["/other"] = to(other.URL + "/web.tgz?sig=s3cret")
	s.handle["/gone"] = to(other.URL + "/gone?sig=s3cret")
	s.handle["/detour"] = to(other.URL + "/back")
	other.handle["/back"] = to(s.URL + "/web.tgz")
	s.handle["/plain"] = to(plain.URL + "/web.tgz?sig=s3cret")
	s.handle["/loop"] = to(s.URL + "/loop")
	other.handle["/locked"] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }
	s.handle["/locked"] = to(other.URL + "/locked?sig=s3cret")
	c := newClient(t, Options{CA: append(s.ca(), other.ca()...), Credentials: []Credential{
		{Host: s.host(), Username: "me", Password: "s3cret"}, {Host: plain.host(), Username: "me", Password: "s3cret"}}})
	get := func(path string) error {
		_, err := c.Get(t.Context(), ref{Chart: s.URL + path})
		return err
	}
	for _, ok := range []string{"/same", "/other"} {
		if err := get(ok); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	wantError(t, get("/gone"), s.host()+" redirects, and "+other.host()+" answers 404")
	wantError(t, get("/locked"), s.host()+" redirects, and "+other.host()+" answers 401")
	wantError(t, get("/detour"), "refuses the credentials given for it (401)")
	wantError(t, get("/plain"), "has no TLS")
	wantError(t, get("/loop"), "more than 10 redirects")
	for path, got := range map[string][]string{"other": other.authorizations("/web.tgz"), "detour": other.authorizations("/back"), "plain": plain.authorizations("/web.tgz")} {
		if strings.Join(got, "") != "" {
			t.Errorf("%s got credentials: %q", path, got)
		}
	}
	// As the user wrote it, http is used; but credentials are not sent then, unless that is allowed.
	if _, err := newClient(t, Options{}).Get(t.Context(), ref{Chart: plain.URL + "/web.tgz"}); err != nil {
		t.Error(err)
	}
	_, err := c.Get(t.Context(), ref{Chart: plain.URL + "/web.tgz"})
	wantError(t, err, "would go over the network without TLS")
	allowed := newClient(t, Options{PlainHTTP: []string{plain.host()}, Credentials: []Credential{{Host: plain.host(), Username: "me", Password: "s3cret"}}})
	if _, err := allowed.Get(t.Context(), ref{Chart: plain.URL + "/web.tgz"}); err != nil {
		t.Error(err)
	}
}

// TestRegistryRedirect: a registry that keeps blobs elsewhere, as most large ones do.
func TestRegistryRedirect(t *testing.T) {
	t.Parallel()
	s, store := newRegistry(t, true, "web:1.0.0"), newSite(t, true)
	data := packed(t, "web", "1.0.0", nil)
	store.files["/blob"] = data
	s.user = "me:s3cret"
	s.handle["/v2/charts/web/blobs/sha256:"+sum(data)] = func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, store.URL+"/blob?sig=s3cret", http.StatusTemporaryRedirect)
	}
	c := newClient(t, Options{CA: append(s.ca(), store.ca()...), Credentials: []Credential{{Host: s.host(), Username: "me", Password: "s3cret"}}})
	get := func() error {
		_, err := c.Get(t.Context(), ref{Chart: "oci://" + s.host() + "/charts/web:1.0.0"})
		return err
	}
	if err := get(); err != nil {
		t.Error(err)
	}
	if got := store.authorizations("/blob"); !slices.Equal(got, []string{""}) {
		t.Errorf("the store got %q", got)
	}
	store.files["/blob"] = data[:10]
	if err := get(); err == nil {
		t.Error("a short blob was accepted")
	} else {
		wantError(t, err, s.host())
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	s, plain := newSite(t, true), newSite(t, false)
	c := newClient(t, Options{})
	for r, want := range map[ref]string{
		{Chart: "https://" + host + "/x.tgz"}:                  host + " is unreachable: ",
		{Chart: "web", Repo: "http://" + host}:                 host + " is unreachable: ",
		{Chart: "web", Repo: "oci://" + host + "/charts"}:      "list tags: " + host + " is unreachable: ",
		{Chart: "web", Repo: "oci://" + plain.host() + "/c"}:   "does not speak TLS",
		{Chart: "https://" + plain.host() + "/x.tgz"}:          "does not speak TLS",
		{Chart: s.URL + "/x.tgz"}:                              "authority that is not trusted here: give the certificate of its CA",
		{Chart: "oci://" + s.host() + "/charts/web:1.0.0"}:     "authority that is not trusted here",
		{Chart: "https://charts.shoal.invalid/x.tgz?t=s3cret"}: "charts.shoal.invalid",
	} {
		_, err := c.Get(t.Context(), r)
		wantError(t, err, want)
	}
}

// TestRetry: what may pass is tried again, three times in all.
func TestRetry(t *testing.T) {
	t.Parallel()
	s := newSite(t, false)
	data := packed(t, "web", "1.0.0", nil)
	fail := func(times int, how http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if s.times(r.URL.Path) <= times {
				how(w, r)
				return
			}
			_, _ = w.Write(data)
		}
	}
	busy := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	cut := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	s.handle["/busy-once"] = fail(1, busy)
	s.handle["/busy"] = fail(1000, busy)
	s.handle["/cut-twice"] = fail(2, cut)
	s.handle["/limited"] = fail(1, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) })
	c := newClient(t, Options{})
	for path, want := range map[string]string{"/busy-once": "", "/cut-twice": "", "/limited": "", "/busy": "answers 503 Service Unavailable: try again later"} {
		_, err := c.Get(t.Context(), ref{Chart: s.URL + path})
		if want != "" {
			wantError(t, err, want)
		} else if err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if n := s.times("/busy"); n != attempts {
		t.Errorf("%d attempts", n)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	s.handle["/hangs"] = func(_ http.ResponseWriter, r *http.Request) {
		cancel(errors.New("the user gave up"))
		<-r.Context().Done()
	}
	_, err := c.Get(ctx, ref{Chart: s.URL + "/hangs"})
	wantError(t, err, "the user gave up")
}

func TestCache(t *testing.T) {
	t.Parallel()
	s := newSite(t, false)
	s.add(t, "web", "1.0.0", nil)
	s.publish(nil)
	const file = "/r/web-1.0.0.tgz"
	digest := sum(s.files[file])
	dir := filepath.Join(t.TempDir(), "deep", "cache")
	get := func() {
		t.Helper()
		ch, err := newClient(t, Options{CacheDir: dir}).Get(t.Context(), ref{Chart: "web", Repo: s.URL + "/r"})
		if err != nil || ch.Version != "1.0.0" {
			t.Fatalf("%s %v", ch.Version, err)
		}
	}
	get()
	get()
	if n := s.times(file); n != 1 {
		t.Errorf("got %d times, once is enough", n)
	}
	kept := filepath.Join(dir, digest+".tgz")
	if err := os.WriteFile(kept, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	get()
	get()
	if n := s.times(file); n != 2 {
		t.Errorf("got %d times, want 2: a damaged file is replaced", n)
	}
	if b, err := os.ReadFile(kept); err != nil || sum(b) != digest {
		t.Errorf("the file was not repaired: %v", err)
	}
	// A cache that cannot be written does no harm.
	dir = filepath.Join(kept, "in-a-file")
	get()
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for want, o := range map[string]Options{
		"no certificate":    {CA: []byte("x")},
		"not both":          {Credentials: []Credential{{Host: "a", Username: "u", Password: "s3cret", Token: "s3cret"}}},
		`host "a/b"`:        {Credentials: []Credential{{Host: "a/b", Password: "s3cret"}}},
		`credentials: host`: {Credentials: []Credential{{Password: "s3cret"}}},
	} {
		_, err := New(o)
		wantError(t, err, want)
	}
}

func TestDockerCredentials(t *testing.T) {
	t.Parallel()
	b64 := base64.StdEncoding.EncodeToString
	got, err := DockerCredentials([]byte(`{"credsStore":"desktop","auths":{
		"https://index.docker.io/v1/":{"auth":"` + b64([]byte("hub:pw:with:colons")) + `"},
		"registry.example.com:5000":{"username":"u","password":"p"},
		"helper.example.com":{},
		"azure.example.com":{"auth":"` + b64([]byte("00000000-0000-0000-0000-000000000000:")) + `","identitytoken":"refresh"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b Credential) int { return strings.Compare(a.Host, b.Host) })
	want := []Credential{
		{Host: "azure.example.com", Username: "00000000-0000-0000-0000-000000000000", RefreshToken: "refresh"},
		{Host: "registry-1.docker.io", Username: "hub", Password: "pw:with:colons"},
		{Host: "registry.example.com:5000", Username: "u", Password: "p"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"s3cret", `{"auths":{"a":{"auth":"s3cret!"}}}`, `{"auths":{"a":{"auth":"` + b64([]byte("s3cret")) + `"}}}`, `{"auths":"s3cret"}`} {
		_, err := DockerCredentials([]byte(bad))
		wantError(t, err, "docker config.json")
	}
	if c := newClient(t, Options{Credentials: got}); c.creds[canonical("docker.io")].Username != "hub" {
		t.Error("Docker Hub is not found by its short name")
	}
}

// FuzzIndex: cutting one chart out of an index gives what parsing it as a whole gives, and nothing panics.
func FuzzIndex(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nentries:\n  a:\n  - version: 1.0.0\n    urls: [x]\n  web:\n  - version: 1.2.0\n    description: |-\n      x\n\n       web:\n    urls:\n    - y\ngenerated: x\n"))
	f.Add([]byte("entries: {web: [{version: 1.2.0, urls: [x]}]}\n"))
	f.Add([]byte("{\"entries\":{\"web\":[{\"version\":\"1.0.0\"}]}}"))
	f.Add([]byte("entries:\n  \"web\": # c\n# c\n  - &a\n    version: 1.0.0\n  other:\n  - *a\n"))
	f.Fuzz(func(t *testing.T, index []byte) {
		list, err := entries(index, "web")
		if err != nil {
			return
		}
		_, _ = pick(versionsOf(list), "")
		part, ok := section(index, "web")
		if !ok || part == nil {
			return
		}
		if len(part) > len(index) {
			t.Fatal("a part larger than the whole")
		}
	})
}

func versionsOf(list []entry) []string {
	var out []string
	for _, e := range list {
		out = append(out, e.Version)
	}
	return out
}

// TestBundle goes the whole way: from a directory's fleet.yaml to a Bundle with the chart in it.
func TestBundle(t *testing.T) {
	t.Parallel()
	s := newSite(t, true)
	s.add(t, "web", "1.0.0", nil)
	s.add(t, "web", "1.1.0", nil)
	s.publish(nil)
	s.user = "me:s3cret"
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "fleet.yaml"), []byte("name: shop\nhelm:\n  chart: web\n  repo: "+s.URL+"/r\n  version: 1.x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := source.Dir(t.Context(), dir, source.Options{Charts: newClient(t, Options{CA: s.ca(), Credentials: []Credential{{Host: s.host(), Username: "me", Password: "s3cret"}}})})
	if err != nil {
		t.Fatal(err)
	}
	digest := sum(s.files["/r/web-1.1.0.tgz"])
	var names []string
	for _, r := range b.Spec.Resources {
		names = append(names, r.Name)
	}
	want := ".charts/web-1.1.0-" + digest[:8]
	if b.Spec.Helm.Chart != want || b.Spec.Helm.Repo != "" || !slices.Contains(names, want+"/templates/cm.yaml") {
		t.Errorf("chart %q of repo %q, files %q", b.Spec.Helm.Chart, b.Spec.Helm.Repo, names)
	}
	_, err = source.Dir(t.Context(), dir, source.Options{Charts: newClient(t, Options{CA: s.ca()})})
	wantError(t, err, "fleet.yaml:", "wants credentials")
}
