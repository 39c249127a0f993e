package render

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
)

// FuzzHook: whatever annotations say, a hook is refused, left out, or one that a bundle can carry; the same annotations give the
// same hook, and their order does not matter.
func FuzzHook(f *testing.F) {
	f.Add("pre-install,post-upgrade", "-5", "hook-succeeded")
	f.Add("Test, test-success,", "1e3", "")
	f.Add("crd-install", "", "before-hook-creation,hook-failed")
	f.Add(" PRE-DELETE ,pre-delete", "99999999999999999999", ",")
	o, err := bundlefmt.NewObject([]byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, events, weight, policy string) {
		read := func(events, policy string) (*bundlefmt.Hook, error) {
			r := &rendering{notes: map[string]bool{}}
			return r.hook("x", map[string]string{hookAnnotation: events, weightAnnotation: weight, deleteAnnotation: policy})
		}
		h, err := read(events, policy)
		reversed := func(s string) string {
			parts := strings.Split(s, ",")
			slices.Reverse(parts)
			return strings.Join(parts, ",")
		}
		again, err2 := read(reversed(events), reversed(policy))
		if (err == nil) != (err2 == nil) && !strings.Contains(strings.ToLower(events), "crd-install") {
			t.Fatalf("order decides: %v, %v", err, err2)
		}
		if err != nil || err2 != nil || h == nil {
			return
		}
		r := &rendering{objs: []object{{Object: o, hook: h}}, notes: map[string]bool{}}
		b, err := r.bundle()
		if err != nil {
			t.Fatalf("%+v cannot be carried: %v", h, err)
		}
		r2 := &rendering{objs: []object{{Object: o, hook: again}}, notes: map[string]bool{}}
		if b2, err := r2.bundle(); err != nil || b2.Digest() != b.Digest() {
			t.Fatalf("order matters: %+v, %+v, %v", h, again, err)
		}
	})
}

// FuzzOverlayFiles: which file an overlay replaces, deletes or patches depends on names that tenants choose. It may change the files
// it names and those it patches, and no others.
func FuzzOverlayFiles(f *testing.F) {
	f.Add("a.yaml", "a_patch.yaml", "data: {x: z}")
	f.Add("a.json", "a.json", " ")
	f.Add("dir/a_patch.yaml", "dir/a_patch_patch.yaml", "- {op: remove, path: /data}")
	f.Add("_patch.yaml", "_patch.yaml", "x")
	f.Fuzz(func(t *testing.T, base, name, content string) {
		const cm = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: y}\n"
		files := map[string][]byte{base: []byte(cm), "other.yaml": []byte(cm)}
		if err := overlay(files, map[string][]byte{name: []byte(content)}, "overlays/o/"); err != nil {
			return
		}
		target, isPatch := patched(name)
		if !isPatch {
			target = name
		}
		for _, n := range []string{base, "other.yaml"} {
			if n != target && string(files[n]) != cm {
				t.Fatalf("%s changed %s", name, n)
			}
		}
		if len(files) > 3 || isPatch && len(files) > 2 {
			t.Fatalf("%s made %d files", name, len(files))
		}
	})
}

// FuzzQuickYAML: what our own reader of simple YAML reads, the library reads too, and as the same.
func FuzzQuickYAML(f *testing.F) {
	for _, s := range quickCases() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) { sameAsLibrary(t, text) })
}

// sameAsLibrary returns whether the quick reader reads a text.
func sameAsLibrary(t *testing.T, text string) bool {
	t.Helper()
	v, ok := quickYAML(text)
	if !ok {
		return false
	}
	got, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	want, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		t.Fatalf("%q is %s here, but the library says %v", text, got, err)
	}
	if string(got) != string(want) {
		t.Fatalf("%q\nlibrary %s\nhere    %s", text, want, got)
	}
	if d, ok := quickDocument(text); ok {
		objs, err := objects(nil, want, 0)
		if err != nil || len(objs) != 1 || string(objs[0].JSON) != string(d.objects[0].JSON) || objs[0].Ref != d.objects[0].Ref {
			t.Fatalf("%q is the object %s here, but the library says %v, %v", text, d.objects[0].JSON, objs, err)
		}
	}
	return true
}

func quickCases() []string {
	return []string{
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  a: \"<&>\"\n", "apiVersion: v1\nkind: XList\nmetadata:\n  name: a\nitems: []\n", "a: b\n", "a:\n  b: c\n  d: [e, 1, true]\n", "a:\n- b\n- c: d\n  e: f\n-\n  g: h\n- - i\n  - j\n", "a: |\n  x\n\n   y\nb: |-\n  z\n",
		"a: 'b' # c\n\"d e\": \"f\"\n", "a: {b: c, d: {e: f}}\n", "a:\n# x\n  b: 100m\n  c: 1.2.3\n  d: 0\n  e: -12\n", "a: yes\n", "a: b\n  c\n",
		"a: x: y\n", "a: b #c\n", "a:b\n", "- a\n", "a: |\n    x\n  y\n", "a: {}\nb: []\nc:\nd: null\n", "a: 0x1f\n", "a: 1e3\n", "a: 2001-01-01\n",
		"a: 'it''s'\n", "a: \"x\\n\"\n", "a: &x b\nc: *x\n", "a: b\na: c\n", "on: x\n", "<<: {a: b}\n", "a: {\"b\": \"c\"}\n", "a: http://x:80/y#z\n",
		"a:\n  - b: |\n      x\n    c: d\n  - e\nf: g\n", "a: |\n\n  x\n\n\nb: c\n", "a: |\n  # x\n # y\nb: c", "a: |\n  x", "a: 123456789012345678901\n",
		"a: [ ]\nb: { }\nc: [a , b]\n", "a: -\n", "a: - b\n", "a: b:\n", "a: 1_000\n", "a: 10h\nb: 12p\nc: 1w\n", "a: $(X)\nb: (y)\nc: _z\n",
	}
}

// TestQuickYAML: the quick reader is worth nothing if it gives up at what charts write.
func TestQuickYAML(t *testing.T) {
	for _, s := range quickCases() {
		sameAsLibrary(t, s)
	}
	files, err := decode(benchChart(1))
	if err != nil {
		t.Fatal(err)
	}
	c, err := loadChart(files)
	if err != nil {
		t.Fatal(err)
	}
	top, err := chartutil.ToRenderValues(c, nil, chartutil.ReleaseOptions{Name: "demo"}, chartutil.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := engine.Render(c, top)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range rendered {
		if !sameAsLibrary(t, text) {
			t.Errorf("gave up at %s:\n%s", name, text)
		}
	}
}
