package render

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// Kustomize reads field names whatever their case: what looks for addresses must as well, or a tenant lets the hub fetch what it likes.
func TestKustomizeFetchesNothingInAnyCase(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 16)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.URL.Path:
		default:
		}
	}))
	defer s.Close()
	for _, field := range []string{
		"Resources: [%s]", "RESOURCES: [%s]", "reſources: [%s]", "Components: [%s]", "Crds: [%s]", "Patches: [{Path: %s}]",
		"ConfigMapGenerator: [{name: a, Files: [%s]}]", "Configurations: [%s]", "Transformers: [%s]", "Replacements: [{Path: %s}]",
		"OpenAPI: {Path: %s}", "resources: [a.yaml]\nResources: [%s]",
	} {
		_, err := Render(Input{Name: "a", Resources: []v1alpha1.BundleResource{
			{Name: "kustomization.yaml", Content: fmt.Sprintf(field, s.URL+"/x.yaml") + "\n"},
			{Name: "a.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"},
		}})
		if err == nil || !strings.Contains(err.Error(), "is remote") && !strings.Contains(err.Error(), "not supported") {
			t.Errorf("%s: got %v", field, err)
		}
	}
	if len(asked) > 0 {
		t.Errorf("the hub asked for %s", <-asked)
	}
}

// The chart's objects must not get lost beside a field that is written in another case.
func TestKustomizeChartResourceInAnyCase(t *testing.T) {
	t.Parallel()
	b, err := Render(Input{Name: "a", Resources: []v1alpha1.BundleResource{
		{Name: "kustomization.yaml", Content: "Resources: [other.yaml]\n"},
		{Name: "other.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n"},
		{Name: "chart/Chart.yaml", Content: "apiVersion: v2\nname: a\nversion: 1.0.0\n"},
		{Name: "chart/templates/a.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"},
	}, Options: v1alpha1.BundleOptions{Helm: &v1alpha1.HelmOptions{Chart: "chart"}}})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(b.Objects()); n != 2 {
		t.Errorf("%d objects, want 2", n)
	}
}

// Directories that each name two others would be read 2^20 times, with everybody else's kustomizations waiting.
func TestKustomizeDoublingIsRefused(t *testing.T) {
	t.Parallel()
	files := []v1alpha1.BundleResource{{Name: "kustomization.yaml", Content: "resources: [p0, q0]\n"}}
	for i := range 20 {
		for _, d := range []string{"p", "q"} {
			files = append(files, v1alpha1.BundleResource{
				Name: fmt.Sprintf("%s%d/kustomization.yaml", d, i), Content: fmt.Sprintf("namePrefix: %s%d-\nresources: [../p%d, ../q%d]\n", d, i, i+1, i+1),
			})
		}
	}
	for _, d := range []string{"p", "q"} {
		files = append(files, v1alpha1.BundleResource{Name: d + "20/kustomization.yaml", Content: "namePrefix: " + d + "-\nresources: [a.yaml]\n"},
			v1alpha1.BundleResource{Name: d + "20/a.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"})
	}
	_, err := Render(Input{Name: "a", Resources: files})
	if err == nil || !strings.Contains(err.Error(), "would be read more than") {
		t.Errorf("got %v", err)
	}
}

// With templating: all the chart is loaded once for all clusters, so nothing of one cluster may be in it.
func TestTemplatingKeepsClustersApart(t *testing.T) {
	t.Parallel()
	c, err := NewCache(CacheOptions{})
	if err != nil {
		t.Fatal(err)
	}
	in := Input{Name: "a", Resources: []v1alpha1.BundleResource{
		{Name: "kustomization.yaml", Content: "namePrefix: ${ .ClusterName }-\n"},
		{Name: "Chart.yaml", Content: "apiVersion: v2\nname: a\nversion: 1.0.0\n"},
		{Name: "config/x.yaml", Content: "site: ${ .ClusterName }\n"},
		{Name: "templates/a.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: {{ .Files.Get \"config/x.yaml\" | quote }}}\n"},
	}}
	for _, name := range []string{"north", "south"} {
		in.Vars = target.NewVars(target.Cluster{Name: name})
		r, err := c.Render(in)
		if err != nil {
			t.Fatal(err)
		}
		const want = `"x":"site: ${ .ClusterName }\n"`
		if js := string(r.Bundle.Objects()[0].JSON); !strings.Contains(js, want) || !strings.Contains(js, name+"-a") {
			t.Errorf("%s: want %s in %s", name, want, js)
		}
	}
}
