package target_test

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// fleet makes n clusters in ten regions.
func fleet(n int) []target.Cluster {
	out := make([]target.Cluster, n)
	for i := range out {
		out[i] = target.Cluster{
			Name: fmt.Sprintf("store-%05d", i), Namespace: "shops",
			Labels: map[string]string{"region": fmt.Sprintf("r%d", i%10), "env": "prod", "shoal.dev/cluster": fmt.Sprint(i)},
			Values: map[string]any{"size": int64(i % 10)},
		}
	}
	return out
}

func everywhere(o v1alpha1.BundleOptions) v1alpha1.BundleSpec {
	return v1alpha1.BundleSpec{BundleOptions: o, Targets: []v1alpha1.BundleTarget{{ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{}}}}}
}

func values(v map[string]any) v1alpha1.BundleOptions {
	return v1alpha1.BundleOptions{Helm: &v1alpha1.HelmOptions{Values: v}}
}

// Clusters for which templates give the same share their options, whatever their names.
func TestDistinct(t *testing.T) {
	byRegion := map[string]any{"image": map[string]any{"tag": "1.0"}, "region": "${ .ClusterLabels.region }"}
	for _, c := range []struct {
		name string
		spec v1alpha1.BundleSpec
		want int
	}{
		{"no template", everywhere(values(map[string]any{"a": "b"})), 1},
		{"by region", everywhere(values(byRegion)), 10},
		{"old form", everywhere(values(map[string]any{"region": "global.fleet.clusterLabels.region"})), 10},
		{"by values", everywhere(values(map[string]any{"size": "${ .ClusterValues.size }"})), 10},
		{"by name", everywhere(values(map[string]any{"name": "${ .ClusterName }"})), 200},
		{"errors", everywhere(values(map[string]any{"name": "${ .ClusterLabels.none }"})), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			ms, err := target.Select(c.spec, fleet(200), nil)
			if err != nil || len(ms) != 200 {
				t.Fatalf("%d matches, %v", len(ms), err)
			}
			options := map[int]v1alpha1.BundleOptions{}
			for _, m := range ms {
				if o, ok := options[m.Distinct]; ok {
					if d := cmp.Diff(o, m.Options); d != "" {
						t.Fatalf("%s has the number %d and other options: %s", m.Cluster, m.Distinct, d)
					}
				}
				options[m.Distinct] = m.Options
			}
			if len(options) != c.want {
				t.Errorf("%d distinct options, want %d", len(options), c.want)
			}
		})
	}
}

// Two selections of the same fleet in another order give the same.
func TestOrderOfClusters(t *testing.T) {
	spec := everywhere(values(map[string]any{"labels": "${ toJson .ClusterLabels }", "n": "${ .ClusterName }"}))
	clusters := fleet(50)
	a, err := target.Select(spec, clusters, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range clusters[:25] {
		clusters[i], clusters[49-i] = clusters[49-i], clusters[i]
	}
	b, err := target.Select(spec, clusters, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range a {
		if d := cmp.Diff(a[i].Options, b[i].Options); d != "" || a[i].Cluster != b[i].Cluster {
			t.Errorf("%s and %s: %s", a[i].Cluster, b[i].Cluster, d)
		}
	}
}

// With templating: all, clusters that differ in anything a template may read have another key, and only those.
func TestVarsKey(t *testing.T) {
	base := target.Cluster{Name: "a", Namespace: "n", Labels: map[string]string{"x": "1"}}
	same := target.Cluster{Name: "a", Namespace: "n", Labels: map[string]string{"x": "1"}, Annotations: map[string]string{}, Values: map[string]any{}}
	if target.NewVars(base).Key() != target.NewVars(same).Key() {
		t.Error("nil and empty maps have different keys")
	}
	seen := map[string]string{target.NewVars(base).Key(): "base"}
	for name, c := range map[string]target.Cluster{
		"name": {Name: "b", Namespace: "n", Labels: base.Labels}, "namespace": {Name: "a", Namespace: "m", Labels: base.Labels},
		"labels": {Name: "a", Namespace: "n"}, "annotations": {Name: "a", Namespace: "n", Labels: base.Labels, Annotations: base.Labels},
		"values": {Name: "a", Namespace: "n", Labels: base.Labels, Values: map[string]any{"x": "1"}},
	} {
		k := target.NewVars(c).Key()
		if was, ok := seen[k]; ok {
			t.Errorf("%s has the key of %s", name, was)
		}
		seen[k] = name
	}
}

// FuzzTemplate: whatever stands in values, Select ends, in bounded time and memory, and gives the same twice.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{
		"${ .ClusterName }", "${ get .ClusterLabels \"env\" | default \"x\" | quote }", "${ range $k, $v := .ClusterLabels }${ $k }: ${ $v }\n${ end }",
		"${ toJson . }", "${ until 99999 | join \",\" }", "${ define \"x\" }${ template \"x\" }${ end }${ template \"x\" }", "${`${`}", "${ $a := list 1 }${ $a = list $a $a }${ $a }",
		"${ set .ClusterValues \"a\" .ClusterValues }", "${ printf \"%9d\" 1 }", "${ seq 1 1 99999 }", "${ range 1000000000 }${ end }", "global.fleet.clusterLabels.env",
		"${ regexReplaceAll \"a*\" \"aaa\" \"${1}${1}\" }", "${/* c */}", "${- 1 -}", "{a: &x [*x]}", "${ keys . }", "${ dict \"a\" }", "${ index . 1 }", "${ with $x := 1 }${ $x }${ else }${ end }",
	} {
		f.Add(s, s)
	}
	clusters := fleet(2)
	f.Fuzz(func(t *testing.T, value, top string) {
		spec := everywhere(v1alpha1.BundleOptions{Namespace: value, Helm: &v1alpha1.HelmOptions{Values: map[string]any{"a": value, value: top}, TemplateValues: map[string]string{"b": top}}})
		spec.Templating = "all"
		var printed [2]string
		for i := range printed {
			ms, err := target.Select(spec, clusters, nil)
			printed[i] = fmt.Sprint(err)
			for _, m := range ms {
				text := ""
				if m.Vars != nil {
					text, err = m.Vars.Expand("file", top)
				}
				options, _ := json.Marshal(m.Options)
				printed[i] += fmt.Sprint(m.Cluster, m.Err, string(options), text, err)
			}
		}
		if d := cmp.Diff(printed[0], printed[1]); d != "" {
			t.Errorf("twice the same gives (-first +second)\n%s", d)
		}
	})
}

func BenchmarkSelect(b *testing.B) {
	clusters := fleet(10_000)
	groups := []target.Group{{Name: "r1", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"region": "r1"}}}, {Name: "all", Selector: &metav1.LabelSelector{}}}
	plain := map[string]any{"image": map[string]any{"tag": "1.0", "repository": "registry.example.com/web"}, "replicas": int64(2)}
	templated := func(text string) map[string]any {
		v := v1alpha1.Values(plain).DeepCopy()
		v["x"] = text
		return v
	}
	for _, c := range []struct {
		name string
		v    map[string]any
	}{{"plain", plain}, {"by-region", templated("${ .ClusterLabels.region }")}, {"by-name", templated("${ .ClusterName }")}} {
		b.Run(c.name, func(b *testing.B) {
			spec := everywhere(values(c.v))
			b.ReportAllocs()
			for b.Loop() {
				if ms, err := target.Select(spec, clusters, groups); err != nil || len(ms) != len(clusters) {
					b.Fatal(len(ms), err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(clusters)), "ns/cluster")
		})
	}
}

// TestVarsKeyConcurrently: the race detector would see a write without a lock.
func TestVarsKeyConcurrently(t *testing.T) {
	v := target.NewVars(fleet(1)[0])
	want := target.NewVars(fleet(1)[0]).Key()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got := v.Key(); got != want {
				t.Errorf("key %s, want %s", got, want)
			}
		})
	}
	wg.Wait()
}
