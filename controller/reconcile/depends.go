package reconcile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// dependencies are the bundles that one bundle depends on, resolved for each cluster.
type dependencies struct {
	entries []dependency
}

// dependency is one entry of dependsOn.
type dependency struct {
	where    string
	what     string // for people
	states   []bundlefmt.State
	bundles  []string                   // of the workspace that it names or selects, sorted
	clusters map[string]map[string]bool // that each of them is for
}

// dependsOn resolves what a bundle depends on. all are the bundles of the workspace. An error is a mistake in the bundle.
func dependsOn(b *v1alpha1.Bundle, all []v1alpha1.Bundle, clusters []target.Cluster, groups []target.Group) (dependencies, error) {
	var out dependencies
	if len(b.Spec.DependsOn) == 0 {
		return out, nil
	}
	for i, d := range b.Spec.DependsOn {
		e := dependency{where: fmt.Sprintf("dependsOn[%d]", i), clusters: map[string]map[string]bool{}}
		for _, s := range d.AcceptedStates {
			if !slices.Contains(acceptable, s) {
				return out, fmt.Errorf("%s: acceptedStates: %q is no state of a deployment: use one of %s", e.where, s, states())
			}
			e.states = append(e.states, bundlefmt.State(s))
		}
		var err error
		if e.bundles, e.what, err = named(d, all); err != nil {
			return out, fmt.Errorf("%s: %w", e.where, err)
		}
		if slices.Contains(e.bundles, b.Name) {
			return out, fmt.Errorf("%s: the bundle depends on itself (%s)", e.where, e.what)
		}
		for _, o := range all {
			if !slices.Contains(e.bundles, o.Name) {
				continue
			}
			names, err := target.Targeted(o.Spec, clusters, groups)
			if err != nil {
				continue // its own status says so; here it is for no cluster
			}
			e.clusters[o.Name] = make(map[string]bool, len(names))
			for _, n := range names {
				e.clusters[o.Name][n] = true
			}
		}
		out.entries = append(out.entries, e)
	}
	if c := circle(b.Name, all); c != nil {
		return out, fmt.Errorf("dependsOn: the bundles depend on each other in a circle: %s; none of them would ever change: take one out", strings.Join(c, " → "))
	}
	return out, nil
}

// acceptable are the states that acceptedStates can name.
var acceptable = []v1alpha1.State{
	v1alpha1.StateReady, v1alpha1.StateNotReady, v1alpha1.StatePending, v1alpha1.StateOutOfSync, v1alpha1.StateModified, v1alpha1.StateWaitApplied,
	v1alpha1.StateErrApplied, v1alpha1.StateDownloading, v1alpha1.StateRefused, v1alpha1.StateRolledBack, v1alpha1.StateHeld, v1alpha1.StateOrphaned,
}

func states() string {
	var names []string
	for _, s := range acceptable {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// named lists the bundles of a workspace that an entry means.
func named(d v1alpha1.BundleDependency, all []v1alpha1.Bundle) (names []string, what string, err error) {
	var sel labels.Selector
	switch {
	case d.Name == "" && d.Selector == nil:
		return nil, "", fmt.Errorf("name or selector must be given")
	case d.Selector != nil:
		if sel, err = metav1.LabelSelectorAsSelector(d.Selector); err != nil {
			return nil, "", fmt.Errorf("selector: %w", err)
		}
		what = "with labels " + metav1.FormatLabelSelector(d.Selector)
	}
	if d.Name != "" {
		what = strings.TrimSpace(d.Name + " " + what)
	}
	for _, o := range all {
		if o.DeletionTimestamp == nil && (d.Name == "" || d.Name == o.Name) && (sel == nil || sel.Matches(labels.Set(o.Labels))) {
			names = append(names, o.Name)
		}
	}
	slices.Sort(names)
	return names, what, nil
}

// circle returns the way from a bundle over its dependencies back to itself; nil: there is none.
func circle(name string, all []v1alpha1.Bundle) []string {
	next := map[string][]string{}
	for _, o := range all {
		for _, d := range o.Spec.DependsOn {
			names, _, err := named(d, all)
			if err == nil {
				next[o.Name] = append(next[o.Name], names...)
			}
		}
	}
	came := map[string]string{}
	queue := []string{name}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for _, n := range next[at] {
			if n == name {
				way := []string{name}
				for x := at; x != name; x = came[x] {
					way = append(way, x)
				}
				way = append(way, name)
				slices.Reverse(way)
				return way
			}
			if _, seen := came[n]; !seen {
				came[n] = at
				queue = append(queue, n)
			}
		}
	}
	return nil
}

// of returns what comes first on one cluster. That nothing does although the bundle asks for it is an error.
func (d dependencies) of(cluster string) ([]bundlefmt.Dependency, error) {
	found := map[string]bundlefmt.Dependency{} // by name and states
	for _, e := range d.entries {
		n := 0
		for _, b := range e.bundles {
			if e.clusters[b][cluster] {
				found[fmt.Sprint(b, e.states)] = bundlefmt.Dependency{Name: b, States: e.states}
				n++
			}
		}
		if n == 0 {
			return nil, fmt.Errorf("%s: no bundle %s is for cluster %s", e.where, e.what, cluster)
		}
	}
	if len(found) > maxDependencies {
		return nil, fmt.Errorf("dependsOn: %d bundles on cluster %s, an order can carry %d", len(found), cluster, maxDependencies)
	}
	var out []bundlefmt.Dependency
	for _, k := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[k])
	}
	return out, nil
}

// maxDependencies is how many an order can carry.
const maxDependencies = 64
