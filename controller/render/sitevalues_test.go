package render_test

import (
	"fmt"
	"strings"
	"testing"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/render"
)

func siteChart(values, template string) render.Input {
	return render.Input{Name: "demo",
		Options: v1alpha1.BundleOptions{Helm: &v1alpha1.HelmOptions{ValuesFrom: []v1alpha1.ValuesFrom{{SecretKeyRef: &v1alpha1.ValuesKey{Name: "site"}}}}},
		Resources: []v1alpha1.BundleResource{
			{Name: "Chart.yaml", Content: "{apiVersion: v2, name: web, version: 1.2.3}"},
			{Name: "values.yaml", Content: values},
			{Name: "templates/a.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n" + template},
		}}
}

// TestSiteValuesOfRandomChart: what differs at each run says nothing about a value, and hides none either.
func TestSiteValuesOfRandomChart(t *testing.T) {
	in := siteChart("host: a\nlower: B\n", "  random: {{ randAlphaNum 8 }}\n  host: {{ .Values.host }}\n  lower: {{ lower .Values.lower }}\n")
	r, err := render.WithNotes(in)
	if err != nil {
		t.Fatal(err)
	}
	v := r.Bundle.Handling().SiteValues
	if len(v) != 2 || v[0].Path != "host" || v[0].Fixed || v[1].Path != "lower" || !v[1].Fixed {
		t.Errorf("got %+v", v)
	}
}

// TestSiteValuesAreBounded: a large chart is not rendered without end, and what was not found out counts as fixed. The same
// input stops at the same place.
func TestSiteValuesAreBounded(t *testing.T) {
	var values, template strings.Builder
	for i := range 300 {
		fmt.Fprintf(&values, "v%03d: a\n", i)
		if i%2 == 0 {
			fmt.Fprintf(&template, "  v%03d: {{ .Values.v%03d }}\n", i, i)
		} else {
			fmt.Fprintf(&template, "  v%03d: {{ upper .Values.v%03d }}\n", i, i)
		}
	}
	template.WriteString("{{/*" + strings.Repeat(" ", 1<<20) + "*/}}")
	in := siteChart(values.String(), template.String())
	a, err := render.WithNotes(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "too large to find out") {
		t.Errorf("notes %q", a.Notes)
	}
	passing := 0
	for _, v := range a.Bundle.Handling().SiteValues {
		if v.Fixed {
			continue
		}
		passing++
		if (v.Path[3]-'0')%2 == 1 {
			t.Errorf("%s passes, though the chart computes with it", v.Path)
		}
	}
	if passing == 0 || passing == 150 {
		t.Errorf("%d values pass", passing)
	}
	if b, err := render.Render(in); err != nil || b.Digest() != a.Bundle.Digest() {
		t.Errorf("another result at the second time: %v", err)
	}
}
