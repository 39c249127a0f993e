package reconcile

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

func TestDependsOn(t *testing.T) {
	on := func(names ...string) (ds []v1alpha1.BundleDependency) {
		for _, n := range names {
			ds = append(ds, v1alpha1.BundleDependency{Name: n})
		}
		return ds
	}
	labelled := func(k, v string, states ...v1alpha1.State) []v1alpha1.BundleDependency {
		return []v1alpha1.BundleDependency{{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{k: v}}, AcceptedStates: states}}
	}
	bundle := func(name string, labels map[string]string, region string, deps ...v1alpha1.BundleDependency) v1alpha1.Bundle {
		b := v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: v1alpha1.BundleSpec{DependsOn: deps}}
		sel := &metav1.LabelSelector{}
		if region != "" {
			sel.MatchLabels = map[string]string{"region": region}
		}
		b.Spec.Targets = []v1alpha1.BundleTarget{{ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: sel}}}
		return b
	}
	others := []v1alpha1.Bundle{
		bundle("db-eu", map[string]string{"app": "db"}, "eu"), bundle("db-us", map[string]string{"app": "db"}, "us"), bundle("queue", map[string]string{"tier": "base"}, ""),
		bundle("ring-a", nil, "", on("ring-b")...), bundle("ring-b", nil, "", labelled("app", "web")...), bundle("of-ring", nil, "", on("ring-a")...),
	}
	clusters := []target.Cluster{{Name: "eu-1", Labels: map[string]string{"region": "eu"}}, {Name: "us-1", Labels: map[string]string{"region": "us"}}, {Name: "x-1"}}
	for _, c := range []struct {
		name   string
		deps   []v1alpha1.BundleDependency
		labels map[string]string
		want   string
	}{
		{name: "none", want: "eu-1: []; us-1: []; x-1: []"},
		{name: "by name", deps: on("queue"), want: "eu-1: [{queue []}]; us-1: [{queue []}]; x-1: [{queue []}]"},
		{name: "by labels: those that are on the cluster", deps: labelled("app", "db", "Ready", "Modified"), want: "eu-1: [{db-eu [Ready Modified]}]; us-1: [{db-us [Ready Modified]}]; x-1: dependsOn[0]: no bundle with labels app=db is for cluster x-1"},
		{name: "several", deps: append(on("queue"), labelled("tier", "base", "NotReady")...), want: "eu-1: [{queue [NotReady]} {queue []}]; us-1: [{queue [NotReady]} {queue []}]; x-1: [{queue [NotReady]} {queue []}]"},
		{name: "there is none", deps: on("nobody"), want: "eu-1: dependsOn[0]: no bundle nobody is for cluster eu-1; us-1: dependsOn[0]: no bundle nobody is for cluster us-1; x-1: dependsOn[0]: no bundle nobody is for cluster x-1"},
		{name: "name and labels", deps: []v1alpha1.BundleDependency{{Name: "queue", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}}}, want: "no bundle queue with labels app=db is for cluster eu-1"},
		{name: "itself by name", deps: on("web"), want: "dependsOn[0]: the bundle depends on itself (web)"},
		{name: "itself by labels", deps: labelled("app", "web"), labels: map[string]string{"app": "web"}, want: "dependsOn[0]: the bundle depends on itself (with labels app=web)"},
		{name: "neither", deps: []v1alpha1.BundleDependency{{}}, want: "dependsOn[0]: name or selector must be given"},
		{name: "no state", deps: []v1alpha1.BundleDependency{{Name: "queue", AcceptedStates: []v1alpha1.State{"Redy"}}}, want: `dependsOn[0]: acceptedStates: "Redy" is no state`},
		{name: "no selector", deps: []v1alpha1.BundleDependency{{Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}}}, want: "dependsOn[0]: selector"},
		{name: "in a circle", deps: on("ring-a"), labels: map[string]string{"app": "web"}, want: "dependsOn: the bundles depend on each other in a circle: web → ring-a → ring-b → web"},
		{name: "beside a circle", deps: on("of-ring"), want: "eu-1: [{of-ring []}]; us-1: [{of-ring []}]; x-1: [{of-ring []}]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bundle("web", c.labels, "", c.deps...)
			d, err := dependsOn(&b, append([]v1alpha1.Bundle{b}, others...), clusters, nil)
			got := fmt.Sprint(err)
			if err == nil {
				var lines []string
				for _, cl := range clusters {
					ds, err := d.of(cl.Name)
					line := fmt.Sprint(ds)
					if err != nil {
						line = err.Error()
					}
					lines = append(lines, cl.Name+": "+line)
				}
				got = strings.Join(lines, "; ")
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("got %s\nwant %s", got, c.want)
			}
		})
	}
}
