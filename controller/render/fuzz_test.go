package render

import (
	"slices"
	"strings"
	"testing"

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
