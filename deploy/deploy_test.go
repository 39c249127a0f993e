package deploy_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/deploy"
)

// TestGenerated generates CRDs and deepcopy again and compares: a changed type that was not generated would silently
// lose its new field in every API server.
func TestGenerated(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("go", "tool", "-modfile=internal/tools/go.mod", "controller-gen",
		"paths=./controller/api/...", "crd", "output:crd:dir="+dir, "object", "output:object:dir="+dir)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	generated, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	committed, err := filepath.Glob("crds/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(generated) != len(committed)+1 {
		t.Errorf("%d files are generated, want the %d in crds/ and the deepcopy file", len(generated), len(committed))
	}
	for _, e := range generated {
		have := filepath.Join("crds", e.Name())
		if strings.HasSuffix(e.Name(), ".go") {
			have = filepath.Join("..", "controller", "api", "v1alpha1", e.Name())
		}
		want, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(have)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what controller-gen makes of controller/api now: run `go tool task gen` (see Taskfile.yml) and commit the result", have)
		}
	}
}

// TestCRDs: each kind is there, namespaced, with a status of its own and columns that say since when.
func TestCRDs(t *testing.T) {
	kinds := map[string]bool{}
	for _, doc := range deploy.CRDs() {
		var crd apiextensions.CustomResourceDefinition
		if err := yaml.UnmarshalStrict(doc, &crd); err != nil {
			t.Fatal(err)
		}
		kind := crd.Spec.Names.Kind
		kinds[kind] = true
		v := crd.Spec.Versions[0]
		if crd.Spec.Scope != apiextensions.NamespaceScoped || v.Subresources == nil || v.Subresources.Status == nil || len(crd.Spec.Names.ShortNames) == 0 {
			t.Errorf("%s: want namespaced, with a status subresource and a short name", kind)
		}
		columns := ""
		for _, c := range v.AdditionalPrinterColumns {
			columns += c.Name + " "
		}
		if !strings.Contains(columns, "Since") && !strings.Contains(columns, "Age") {
			t.Errorf("%s: columns %q do not say since when", kind, columns)
		}
		undocumented(t, kind, v.Schema.OpenAPIV3Schema.Properties["spec"])
		undocumented(t, kind, v.Schema.OpenAPIV3Schema.Properties["status"])
	}
	for _, k := range []string{"Bundle", "Cluster", "ClusterGroup", "ClusterRegistrationToken"} {
		if !kinds[k] {
			t.Errorf("no CRD for %s", k)
		}
	}
}

// undocumented finds fields of which kubectl explain would say nothing.
func undocumented(t *testing.T, at string, s apiextensions.JSONSchemaProps) {
	t.Helper()
	if s.Description == "" {
		t.Errorf("%s has no description", at)
	}
	if s.Items != nil && s.Items.Schema != nil {
		s.Properties = s.Items.Schema.Properties
	}
	for name, p := range s.Properties {
		undocumented(t, at+"."+name, p)
	}
}
