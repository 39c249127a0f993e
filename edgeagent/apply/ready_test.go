package apply

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
)

// Each case is a live object, what the bundle says about readiness, and what a report says: "ready", or the reason and the
// message.
func TestReady(t *testing.T) {
	files, err := filepath.Glob("testdata/ready/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	a := &Applier{}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			part := map[string]string{}
			for _, f := range txtar.Parse(data).Files {
				part[f.Name] = string(f.Data)
			}
			var says struct {
				bundlefmt.Handling
				WaitForJobs bool `json:"waitForJobs"`
			}
			if err := yaml.UnmarshalStrict([]byte(part["bundle"]), &says); err != nil {
				t.Fatal(err)
			}
			live := parse(t, part["live"])
			gvk := live.GroupVersionKind()
			r := readiness{a: a, d: Deployment{Handling: says.Handling, Policy: bundlefmt.Policy{WaitForJobs: says.WaitForJobs}}}
			got := "ready"
			if f := r.of(t.Context(), &object{ref: Ref{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Name: "x"}, live: live}); f != nil {
				got = string(f.Reason) + ": " + f.Message
			}
			if want := strings.TrimSpace(part["want"]); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}
