package apply

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
)

// Each case is live and wanted, and the patch that a report shows.
func TestPatch(t *testing.T) {
	files, err := filepath.Glob("testdata/patch/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
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
			live, want := parse(t, part["live"]), parse(t, part["want"])
			o := &object{ref: Ref{Kind: live.GetKind(), Name: live.GetName(), Namespace: live.GetNamespace()}}
			gvk := live.GroupVersionKind()
			o.ref.Group, o.ref.Version = gvk.Group, gvk.Version
			var patches []bundlefmt.ComparePatch
			if err := yaml.UnmarshalStrict([]byte(part["comparePatches"]), &patches); err != nil {
				t.Fatal(err)
			}
			e := exemptions(patches, o.ref)
			if got := patch(o, diff(e.forCompare(live.Object, want.Object), e.forCompare(want.Object, want.Object))); got != strings.TrimSpace(part["patch"]) {
				t.Errorf("got  %s\nwant %s", got, part["patch"])
			}
		})
	}
}

func parse(t testing.TB, text string) *unstructured.Unstructured {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(b); err != nil {
		t.Fatal(err)
	}
	return u
}

func TestRemovalOrder(t *testing.T) {
	refs := []Ref{
		{Kind: "Namespace", Name: "n"}, {Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition", Name: "c"},
		{Kind: "ServiceAccount", Name: "s"}, {Group: "apps", Kind: "Deployment", Name: "d"}, {Group: "x.example.com", Kind: "Widget", Name: "w"},
		{Group: "gateway.networking.k8s.io", Kind: "Gateway", Name: "g"}, {Group: "networking.k8s.io", Kind: "Ingress", Name: "i"},
	}
	var got []string
	for _, r := range inRemovalOrder(refs) {
		got = append(got, r.Name)
	}
	if fmt.Sprint(got) != "[g w i d s c n]" {
		t.Errorf("got %v", got)
	}
}

func TestObjectErrorsNamesOneAndCounts(t *testing.T) {
	f := Finding{Ref{Group: "apps", Kind: "Deployment", Namespace: "n", Name: "d"}, Invalid, "invalid: spec.x: no"}
	if got := (&ObjectErrors{Total: 9, Findings: []Finding{f, f, f}}).Error(); got != "Deployment.apps n/d: invalid: spec.x: no (and 2 more of 9 objects)" {
		t.Error(got)
	}
}

// manifest is a Deployment of a usual size with n environment variables.
func manifest(n int) []byte {
	env := make([]any, n)
	for i := range env {
		env[i] = map[string]any{"name": fmt.Sprintf("V%d", i), "value": strings.Repeat("x", 20)}
	}
	b, _ := json.Marshal(map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "web", "labels": map[string]any{"a": "b"}},
		"spec":   map[string]any{"replicas": 3, "template": map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"name": "c", "image": "i", "env": env}}}}},
		"status": map[string]any{"replicas": 3},
	})
	return b
}

func benchObject(b *testing.B) *unstructured.Unstructured {
	o, err := bundlefmt.NewObject(manifest(40))
	if err != nil {
		b.Fatal(err)
	}
	return decode(o, "x").want
}

func BenchmarkDiffEqual(b *testing.B) {
	live := benchObject(b)
	want := live.DeepCopy()
	b.ReportAllocs()
	for b.Loop() {
		if diff(live.Object, want.Object) != nil {
			b.Fatal("differs")
		}
	}
}

func BenchmarkJudge(b *testing.B) {
	live := benchObject(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := judge(live, live, exempt{}, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	o, err := bundlefmt.NewObject(manifest(40))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		decode(o, "x")
	}
}
