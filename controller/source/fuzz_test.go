package source

import (
	"encoding/json"
	"maps"
	"path"
	"path/filepath"
	"runtime"
	"testing"

	"shoal.dev/shoal/internal/cases"
)

// seeds adds the entries of a name of all cases.
func seeds(f *testing.F, name string) {
	f.Helper()
	for _, pattern := range []string{"testdata/*.txtar", "testdata/*/*.txtar"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			all, err := cases.Load(file)
			if err != nil {
				f.Fatal(err)
			}
			for _, c := range all {
				for _, e := range c.Files {
					if path.Base(e.Name) == name {
						f.Add(e.Data)
					}
				}
			}
		}
	}
}

// accepted makes a bundle with options; no input may panic or take memory without bound, and what is accepted must survive JSON.
func accepted(t *testing.T, options string, data []byte, files map[string][]byte) {
	tr := &tree{base: "repo", taken: map[string]bool{}}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b, _, err := tr.make(t.Context(), place{dir: ".", options: options}, maps.Clone(files), data)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<30 {
		t.Fatalf("%d bytes were allocated for %d bytes", n, len(data))
	}
	if err != nil {
		if ps := problems("", err); len(ps) == 0 || ps[0].Message == "" {
			t.Fatalf("an error without a word: %#v", err)
		}
		return
	}
	first, err := json.Marshal(b)
	if err != nil {
		t.Fatalf("bundle cannot be written: %v", err)
	}
	again := b.DeepCopy()
	if err := json.Unmarshal(first, again); err != nil {
		t.Fatalf("bundle cannot be read back: %v\n%s", err, first)
	}
}

func FuzzFleetYAML(f *testing.F) {
	seeds(f, "fleet.yaml")
	chart := []byte("apiVersion: v2\nname: web\nversion: 1.0.0\n")
	f.Fuzz(func(t *testing.T, data []byte) {
		accepted(t, "fleet.yaml", data, map[string][]byte{"v.yaml": data, "Chart.yaml": chart, "chart/Chart.yaml": chart, "a.tgz": data, "overlays/a/x.yaml": nil, "k/kustomization.yaml": nil})
	})
}

func Fuzz2020(f *testing.F) {
	seeds(f, bundleFile)
	f.Fuzz(func(t *testing.T, data []byte) {
		is2020(data)
		accepted(t, bundleFile, data, map[string][]byte{"manifests/a.yaml": nil, "overlays/a/b.yaml": nil, "kustomize/a/kustomization.yaml": nil})
		accepted(t, bundleFile, data, map[string][]byte{"chart/a/Chart.yaml": nil, "manifests/a.yaml": nil})
	})
}

func FuzzFleetIgnore(f *testing.F) {
	seeds(f, ignoreFile)
	f.Fuzz(func(t *testing.T, data []byte) {
		ps, wrong := parseIgnore(ignoreFile, data)
		for _, p := range ps {
			p.matches("templates", true)
			p.matches("a.yaml", false)
		}
		if len(ps) > maxPatterns || len(wrong) > maxProblems {
			t.Fatalf("%d patterns, %d problems", len(ps), len(wrong))
		}
	})
}
