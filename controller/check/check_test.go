package check_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/check"
	"shoal.dev/shoal/internal/cases"
)

// TestObjects runs testdata/*.txtar: objects, in a file "version" that of the cluster; want is what is wrong with them.
func TestObjects(t *testing.T) {
	cases.Run(t, "testdata/*.txtar", func(t *testing.T, files []txtar.File) string {
		var objects []map[string]any
		version := ""
		for _, f := range files {
			if f.Name == "version" {
				version = strings.TrimSpace(string(f.Data))
				continue
			}
			for _, doc := range strings.Split("\n"+string(f.Data), "\n---\n") {
				var o map[string]any
				if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
					t.Fatal(err)
				}
				objects = append(objects, o)
			}
		}
		c := check.New(objects, version)
		var out strings.Builder
		for _, o := range objects {
			meta, _ := o["metadata"].(map[string]any)
			for _, p := range c.Object(o) {
				word := "error"
				if p.Warning {
					word = "warning"
				}
				fmt.Fprintf(&out, "%s: %v %v: %s\n", word, o["kind"], meta["name"], p)
			}
		}
		return out.String()
	})
}
