package render

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// TestKindOrder compares our order of kinds with Helm's: the same, but for namespaces and CRDs, which come first.
func TestKindOrder(t *testing.T) {
	var helm []string
	for _, k := range releaseutil.InstallOrder {
		if k != "Namespace" && k != "CustomResourceDefinition" && !strings.HasSuffix(k, "List") {
			helm = append(helm, k)
		}
	}
	if d := cmp.Diff(append([]string{"Namespace", "CustomResourceDefinition"}, helm...), kindOrder()); d != "" {
		t.Error(d)
	}
}

func benchInput(b *testing.B) Input {
	ar, err := txtar.ParseFile("testdata/helm_values.txtar")
	if err != nil {
		b.Fatal(err)
	}
	in := Input{Name: "demo", Options: v1alpha1.BundleOptions{Helm: &v1alpha1.HelmOptions{Values: v1alpha1.Values{"replicas": int64(3)}}}}
	for _, f := range ar.Files {
		if f.Name != "input" && f.Name != "want" {
			in.Resources = append(in.Resources, v1alpha1.NewResource(f.Name, f.Data))
		}
	}
	// A chart of the usual size: the templates thirty times over.
	for _, r := range slices.Clone(in.Resources) {
		if !strings.HasPrefix(r.Name, "templates/") || !strings.HasSuffix(r.Name, ".yaml") {
			continue
		}
		for i := range 30 {
			c := strings.ReplaceAll(r.Content, "name: {{ ", "name: n"+string(rune('a'+i%26))+string(rune('a'+i/26))+"-{{ ")
			in.Resources = append(in.Resources, v1alpha1.BundleResource{Name: strings.Replace(r.Name, "templates/", "templates/x"+string(rune('a'+i%26))+string(rune('a'+i/26))+"-", 1), Content: c})
		}
	}
	return in
}

// BenchmarkRender compares, in one run: Helm's engine alone on a parsed chart, Helm with loading, our whole rendering,
// and our cache.
func BenchmarkRender(b *testing.B) {
	in := benchInput(b)
	files, err := decode(in.Resources)
	if err != nil {
		b.Fatal(err)
	}
	var buf []*loader.BufferedFile
	for _, n := range sortedNames(files) {
		buf = append(buf, &loader.BufferedFile{Name: n, Data: files[n]})
	}
	c, err := loader.LoadFiles(buf)
	if err != nil {
		b.Fatal(err)
	}
	vals := func() chartutil.Values {
		v, err := chartutil.ToRenderValues(c, map[string]any{"replicas": 3.0}, chartutil.ReleaseOptions{Name: "demo", Namespace: "default"}, chartutil.DefaultCapabilities)
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
	b.Run("helm-engine", func(b *testing.B) {
		for b.Loop() {
			if _, err := engine.Render(c, vals()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("helm-load-and-engine", func(b *testing.B) {
		for b.Loop() {
			if c, err = loader.LoadFiles(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := engine.Render(c, vals()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("render", func(b *testing.B) {
		for b.Loop() {
			if _, err := Render(in); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, key := range map[string][32]byte{"cache-hit": {}, "cache-hit-known-files": ResourcesKey(in.Resources)} {
		b.Run(name, func(b *testing.B) {
			cache := NewCache(0)
			in := in
			in.ResourcesKey = key
			for b.Loop() {
				if _, err := cache.Render(in); err != nil {
					b.Fatal(err)
				}
			}
			if cache.Renders() != 1 {
				b.Fatalf("%d renderings", cache.Renders())
			}
		})
	}
}

// FuzzDocuments: splitting neither panics nor loses bytes of content, and every piece is free of markers.
func FuzzDocuments(f *testing.F) {
	for _, s := range []string{"", "a: 1\n", "---\na: 1\n---\nb: 2\n", "--- # x\na: 1\n...\n---\n", "a: |\n  ---\n  x\n", "\xef\xbb\xbf---\r\na: 1\r\n---\r\nb: 2", "--- {a: 1}\n--- {b: 2}\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs := documents(data)
		if len(docs) == 0 {
			t.Fatal("no document at all")
		}
		size := 0
		for _, d := range docs {
			size += len(d)
			for i, line := range strings.SplitAfter(string(d), "\n") {
				if i > 0 && strings.TrimRight(line, " \t\r\n") == "---" {
					t.Fatalf("a marker is left in %q", d)
				}
			}
		}
		if size > len(data) {
			t.Fatalf("%d bytes became %d", len(data), size)
		}
		r := &rendering{notes: map[string]bool{}}
		_ = r.addYAML("fuzz", data, true)
	})
}

// FuzzOverlay: no patch may panic or grow a file without bounds.
func FuzzOverlay(f *testing.F) {
	cm := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: y}\n"
	f.Add([]byte(cm), []byte("data: {x: z}\n"))
	f.Add([]byte(cm), []byte("- {op: replace, path: /data/x, value: z}\n"))
	f.Add([]byte("apiVersion: x/v1\nkind: X\nmetadata: {name: a}\n"), []byte("spec: {a: null}\n"))
	f.Fuzz(func(t *testing.T, base, p []byte) {
		out, err := patch(base, p)
		if err == nil && len(out) > 64*(len(base)+len(p))+(2<<20) {
			t.Fatalf("%d bytes became %d", len(base)+len(p), len(out))
		}
	})
}
