package charts

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func bytesOf(m map[string]string) map[string][]byte {
	out := map[string][]byte{}
	for k, v := range m {
		out[k] = []byte(v)
	}
	return out
}

func TestDependencies(t *testing.T) {
	t.Parallel()
	s := newSite(t, false)
	for _, v := range []string{"1.0.0", "1.1.0", "2.0.0"} {
		s.add(t, "db", v, nil)
	}
	s.add(t, "cache", "3.0.0", nil)
	s.publish(nil)
	reg := newRegistry(t, false, "queue:4.0.0", "queue:4.1.0")
	c := newClient(t, Options{PlainHTTP: []string{reg.host()}})
	chart := func(deps string) string {
		deps = strings.NewReplacer("REPO", s.URL+"/r", "OCI", "oci://"+reg.host()+"/charts").Replace(deps)
		return "apiVersion: v2\nname: app\nversion: 1.0.0\ndependencies:\n" + deps
	}
	const db = "- {name: db, version: ^1.0.0, repository: REPO}\n"
	lockOf := func(deps ...*dependency) string {
		req, err := require(bytesOf(map[string]string{"Chart.yaml": chart(db)}))
		if err != nil {
			t.Fatal(err)
		}
		text := "dependencies:\n"
		for _, d := range deps {
			text += "- name: " + d.Name + "\n  repository: " + d.Repository + "\n  version: " + d.Version + "\n"
		}
		return text + "digest: " + digestOf([2][]*dependency{req.list, deps}) + "\ngenerated: \"2026-11-01T10:00:00Z\"\n"
	}
	locked := lockOf(&dependency{Name: "db", Repository: s.URL + "/r", Version: "1.0.0"})
	dbMeta := "apiVersion: v2\nname: db\nversion: 1.0.5\n"
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []string // directories below charts/
		err   string
	}{
		{"none", map[string]string{"Chart.yaml": chart("  []\n")}, nil, ""},
		{"a repository", map[string]string{"Chart.yaml": chart(db)}, []string{"db-1.1.0"}, ""},
		{"a registry", map[string]string{"Chart.yaml": chart("- {name: queue, version: 4.x, repository: OCI}\n")}, []string{"queue-4.1.0"}, ""},
		{"condition, tags, alias and values do not matter", map[string]string{"Chart.yaml": chart("- {name: db, version: 1.0.0, repository: REPO, alias: primary, condition: primary.enabled, tags: [x], import-values: [a]}\n- {name: db, version: 1.0.0, repository: REPO, alias: second}\n- {name: db, version: 2.0.0, repository: REPO, alias: third}\n")}, []string{"db-1.0.0", "db-2.0.0"}, ""},
		{"what is vendored stays", map[string]string{"Chart.yaml": chart(db), "charts/db/Chart.yaml": dbMeta}, nil, ""},
		{"what is vendored in an archive stays", map[string]string{"Chart.yaml": chart(db), "charts/db-1.0.0.tgz": string(s.files["/r/db-1.0.0.tgz"])}, nil, ""},
		{"only what is missing is got", map[string]string{"Chart.yaml": chart(db + "- {name: cache, version: \"\", repository: REPO}\n"), "charts/db/Chart.yaml": dbMeta}, []string{"cache-3.0.0"}, ""},
		{"vendored, of another version", map[string]string{"Chart.yaml": chart("- {name: db, version: ^2.0.0, repository: REPO}\n"), "charts/db/Chart.yaml": dbMeta}, nil, "dependency db: version ^2.0.0 is asked for, there is 1.0.5: run `helm dependency update`"},
		{"the lock decides", map[string]string{"Chart.yaml": chart(db), "Chart.lock": locked}, []string{"db-1.0.0"}, ""},
		{"lock out of sync", map[string]string{"Chart.yaml": chart("- {name: db, version: ^1.1.0, repository: REPO}\n"), "Chart.lock": locked}, nil, "the lock file (Chart.lock) is out of sync with the dependencies file (Chart.yaml): run `helm dependency update`"},
		{"lock of other charts", map[string]string{"Chart.yaml": chart(db + "- {name: cache, repository: REPO}\n"), "Chart.lock": locked}, nil, "out of sync"},
		{"lock out of sync, but nothing is missing", map[string]string{"Chart.yaml": chart(db), "Chart.lock": "digest: x\n", "charts/db/Chart.yaml": dbMeta}, nil, ""},
		{"of Helm 2", map[string]string{"Chart.yaml": "name: app\nversion: 1.0.0\n", "requirements.yaml": strings.SplitAfterN(chart(db), "\n", 4)[3]}, []string{"db-1.1.0"}, ""},
		{"of Helm 2, lock out of sync", map[string]string{"Chart.yaml": "name: app\nversion: 1.0.0\n", "requirements.yaml": strings.SplitAfterN(chart(db), "\n", 4)[3], "requirements.lock": "digest: sha256:00\n"}, nil, "the lock file (requirements.lock) is out of sync with the dependencies file (requirements.yaml)"},
		{"beside the chart", map[string]string{"Chart.yaml": chart("- {name: lib, version: 0.x, repository: \"file://../lib\"}\n"), "../lib/Chart.yaml": "name: lib\nversion: 0.2.0\n", "../lib/templates/_h.tpl": "", "../other/x": ""}, []string{"lib-0.2.0"}, ""},
		{"beside the chart, with its own", map[string]string{"Chart.yaml": chart("- {name: lib, version: 0.x, repository: \"file://../lib\"}\n"), "../lib/Chart.yaml": "apiVersion: v2\nname: lib\nversion: 0.2.0\ndependencies: [{name: base, version: 1.x, repository: \"file://../base\"}]\n", "../base/Chart.yaml": "name: base\nversion: 1.0.0\n"}, []string{"lib-0.2.0"}, ""},
		{"in a circle", map[string]string{"Chart.yaml": chart("- {name: a, repository: \"file://../a\"}\n"), "../a/Chart.yaml": "name: a\nversion: 1.0.0\ndependencies: [{name: b, repository: \"file://../b\"}]\n", "../b/Chart.yaml": "name: b\nversion: 1.0.0\ndependencies: [{name: a, repository: \"file://../a\"}]\n"}, nil, "is not in the directory of the bundle"},
		{"outside", map[string]string{"Chart.yaml": chart("- {name: lib, repository: \"file://../../../etc\"}\n")}, nil, "is not in the directory of the bundle"},
		{"absolute", map[string]string{"Chart.yaml": chart("- {name: lib, repository: \"file:///etc\"}\n")}, nil, "an absolute path"},
		{"by a name", map[string]string{"Chart.yaml": chart("- {name: db, repository: \"@stable\"}\n")}, nil, "name in somebody's Helm settings"},
		{"by a word", map[string]string{"Chart.yaml": chart("- {name: db, repository: stable}\n")}, nil, "repository stable is no address"},
		{"nowhere", map[string]string{"Chart.yaml": chart("- {name: db, version: 1.x}\n")}, nil, "it has no repository, and is not in charts/"},
		{"not there", map[string]string{"Chart.yaml": chart("- {name: none, repository: REPO}\n")}, nil, "Chart.yaml: dependency none: get chart " + s.URL + "/r none: there is no chart none"},
		{"another chart than it says", map[string]string{"Chart.yaml": chart("- {name: lib, repository: \"file://../lib\"}\n"), "../lib/Chart.yaml": "name: other\nversion: 0.2.0\n"}, nil, "the chart there is called other"},
		{"a name that is a path", map[string]string{"Chart.yaml": chart("- {name: ../../x, repository: REPO}\n")}, nil, "has no valid name"},
		{"null", map[string]string{"Chart.yaml": chart("- \n")}, nil, "has no valid name"},
		{"no YAML", map[string]string{"Chart.yaml": "{"}, nil, "Chart.yaml: "},
	} {
		got, err := c.Dependencies(t.Context(), bytesOf(tt.files))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want %q", tt.name, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		dirs := map[string]bool{}
		for f := range got {
			parts := strings.Split(f, "/")
			if len(parts) < 3 || parts[0] != "charts" {
				t.Errorf("%s: file %s", tt.name, f)
				continue
			}
			dirs[parts[1]] = true
		}
		if d := cmp.Diff(tt.want, slices.Sorted(maps.Keys(dirs))); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}

// helmDigest is what Helm 3.22 makes of the two lists in TestLockOfHelm.
const helmDigest = "sha256:115e838896ebfb7c6022e9c6b71bf2eb8a3996a2134526bb161fe52c39a77a57"

// TestLockOfHelm compares with the digest that Helm makes: for a range, an alias and an address by name.
func TestLockOfHelm(t *testing.T) {
	t.Parallel()
	chart := "apiVersion: v2\nname: app\nversion: 1.0.0\ndependencies:\n- name: db\n  version: ^1.0.0\n  repository: https://charts.example.com\n  condition: db.enabled\n  tags: [back]\n- name: db\n  version: ^1.0.0\n  repository: https://charts.example.com\n  alias: second\n  import-values:\n  - child: a\n    parent: b\n"
	lock := "dependencies:\n- name: db\n  repository: https://charts.example.com\n  version: 1.0.0\n- name: db\n  repository: https://charts.example.com\n  version: 1.0.0\ndigest: DIGEST\n"
	for name, text := range map[string]string{"by address": chart, "by name": strings.ReplaceAll(chart, "https://charts.example.com", "\"@x\"")} {
		r, err := require(bytesOf(map[string]string{"Chart.yaml": text, "Chart.lock": strings.ReplaceAll(lock, "DIGEST", helmDigest)}))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.inSync(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGetWithDependencies: an archive that was packed without its dependencies gets them.
func TestGetWithDependencies(t *testing.T) {
	t.Parallel()
	s := newSite(t, false)
	s.add(t, "db", "1.0.0", nil)
	s.add(t, "app", "1.0.0", map[string]string{"Chart.yaml": "apiVersion: v2\nname: app\nversion: 1.0.0\ndependencies: [{name: db, version: 1.x, repository: \"" + s.URL + "/r\"}]\n"})
	s.add(t, "loop", "1.0.0", map[string]string{"Chart.yaml": "apiVersion: v2\nname: loop\nversion: 1.0.0\ndependencies: [{name: loop, version: 1.x, repository: \"" + s.URL + "/r\"}]\n"})
	s.add(t, "out", "1.0.0", map[string]string{"Chart.yaml": "apiVersion: v2\nname: out\nversion: 1.0.0\ndependencies: [{name: db, version: 1.x, repository: \"file://../db\"}]\n"})
	s.publish(nil)
	c := newClient(t, Options{})
	ch, err := c.Get(t.Context(), ref{Chart: "app", Repo: s.URL + "/r"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(ch.Files)), []string{"Chart.yaml", "charts/db-1.0.0/Chart.yaml", "charts/db-1.0.0/templates/cm.yaml", "templates/cm.yaml"}; !slices.Equal(got, want) {
		t.Errorf("files %q", got)
	}
	_, err = c.Get(t.Context(), ref{Chart: "loop", Repo: s.URL + "/r"})
	wantError(t, err, "nested deeper than")
	_, err = c.Get(t.Context(), ref{Chart: "out", Repo: s.URL + "/r"})
	wantError(t, err, "is not in the directory of the bundle")
}
