package source

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzFleetYAML: no input may panic, and what is accepted must make a Bundle that survives JSON.
func FuzzFleetYAML(f *testing.F) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range cases {
		ar, err := txtar.ParseFile(c)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range ar.Files {
			if isFleetYAML(file.Name) {
				f.Add(file.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := bundle(map[string][]byte{"fleet.yaml": data, "values.yaml": data, "Chart.yaml": nil, "overlays/a/x.yaml": nil})
		if err != nil {
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
	})
}
