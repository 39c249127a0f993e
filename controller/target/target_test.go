package target_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
	"shoal.dev/shoal/internal/cases"
)

// TestSelect runs testdata/*.txtar: a bundle's spec, clusters and groups; want has one line a cluster that gets it
// ("cluster <- target options"), or the error. A section whose name begins with file/ is what a cluster's Vars make of that file.
func TestSelect(t *testing.T) {
	cases.Run(t, "testdata/*.txtar", func(t *testing.T, files []txtar.File) string {
		var spec v1alpha1.BundleSpec
		var clusters []target.Cluster
		var groups []struct {
			Name     string
			Labels   map[string]string
			Selector *metav1.LabelSelector
		}
		var bundleFiles []txtar.File
		for _, f := range files {
			var err error
			switch f.Name {
			case "bundle":
				err = yaml.UnmarshalStrict(f.Data, &spec)
			case "clusters":
				err = yaml.UnmarshalStrict(f.Data, &clusters)
			case "groups":
				err = yaml.UnmarshalStrict(f.Data, &groups)
			default:
				if !strings.HasPrefix(f.Name, "file/") {
					t.Fatalf("unknown section %s", f.Name)
				}
				bundleFiles = append(bundleFiles, f)
			}
			if err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
		}
		var gs []target.Group
		for _, g := range groups {
			gs = append(gs, target.Group(g))
		}
		return run(t, spec, clusters, gs, bundleFiles)
	})
}

func run(t *testing.T, spec v1alpha1.BundleSpec, clusters []target.Cluster, groups []target.Group, files []txtar.File) string {
	t.Helper()
	before, _ := json.Marshal([]any{spec, clusters})
	ms, err := target.Select(spec, clusters, groups)
	if after, _ := json.Marshal([]any{spec, clusters}); string(after) != string(before) {
		t.Errorf("Select changed its argument:\n%s\n%s", before, after)
	}
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	var b strings.Builder
	for _, m := range ms {
		if m.Err != nil {
			fmt.Fprintf(&b, "%s: error: %v\n", m.Cluster, m.Err)
			continue
		}
		o, err := json.Marshal(m.Options)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s <- %s %s\n", m.Cluster, m.Target, strings.TrimSuffix(string(o), "{}"))
		for _, n := range m.Notes {
			fmt.Fprintf(&b, "%s note: %s\n", m.Cluster, n)
		}
		for _, f := range files {
			text, err := m.Vars.Expand(f.Name, string(f.Data))
			if err != nil {
				text = "error: " + err.Error() + "\n"
			}
			fmt.Fprintf(&b, "%s %s: %s", m.Cluster, f.Name, text)
		}
	}
	if b.Len() == 0 {
		return "nobody\n"
	}
	return strings.ReplaceAll(b.String(), " \n", "\n")
}

func TestGroups(t *testing.T) {
	groups := []target.Group{
		{Name: "z", Selector: &metav1.LabelSelector{}},
		{Name: "none"},
		{Name: "bad", Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}},
		{Name: "eu", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"region": "eu"}}},
	}
	got := target.Groups(target.Cluster{Name: "a", Labels: map[string]string{"region": "eu"}}, groups)
	if d := cmp.Diff([]string{"eu", "z"}, got); d != "" {
		t.Error(d)
	}
}
