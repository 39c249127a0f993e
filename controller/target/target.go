// Package target decides which clusters get a bundle, and with which options. It is pure: no client, no clock, no logger.
//
// # Matching
//
// The criteria that a target sets (clusterName, clusterSelector, clusterGroup, clusterGroupSelector) must all hold; a
// target that sets none matches nothing. An empty selector ({}) matches everything, an absent one is no criterion.
// clusterGroup and clusterGroupSelector must hold for the same group of the cluster; a cluster in no group counts as in
// one group without name and labels, so a clusterGroupSelector of {} or NotIn or DoesNotExist matches it.
// Targets are tried in the order of the bundle and the first that matches a cluster counts; if it says doNotDeploy, the
// cluster does not get the bundle. A bundle without targets is for the cluster group "default".
//
// Every rule has a case in testdata.
package target

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// DefaultGroup is the cluster group of bundles without targets.
const DefaultGroup = "default"

// DisplayNameLabel is a second name of a cluster that clusterName accepts, as Fleet has it.
const DisplayNameLabel = "management.cattle.io/cluster-display-name"

// Cluster is what matching knows of a cluster.
type Cluster struct {
	Name   string
	Labels map[string]string
}

// Group is a cluster group of the same namespace.
type Group struct {
	Name     string
	Labels   map[string]string
	Selector *metav1.LabelSelector // nil: no cluster is in the group
}

// Match is one cluster that gets the bundle.
type Match struct {
	Cluster string
	Target  string                 // name of the target that matched, or "targets[i]"
	Options v1alpha1.BundleOptions // shared by all clusters of the target: read only
}

// Select returns the clusters that get the bundle, sorted by name. All targets are checked before any is tried, so that
// a mistake in the last one is not hidden by the first.
func Select(spec v1alpha1.BundleSpec, clusters []Cluster, groups []Group) ([]Match, error) {
	ts, err := compile(spec)
	if err != nil {
		return nil, err
	}
	gs, err := compileGroups(groups)
	if err != nil {
		return nil, err
	}
	merged := make([]*v1alpha1.BundleOptions, len(ts)) // once a target, not once a cluster
	var out []Match
	for _, c := range clusters {
		in := gs.of(c)
		i := slices.IndexFunc(ts, func(t matcher) bool { return t.matches(c, in) })
		if i < 0 || ts[i].DoNotDeploy {
			continue
		}
		if merged[i] == nil {
			o := Merge(spec.BundleOptions, ts[i].BundleOptions)
			merged[i] = &o
		}
		out = append(out, Match{Cluster: c.Name, Target: ts[i].title, Options: *merged[i]})
	}
	slices.SortFunc(out, func(a, b Match) int { return strings.Compare(a.Cluster, b.Cluster) })
	return out, nil
}

// Groups returns the names of the groups a cluster is in, sorted. A group with an invalid selector holds no cluster here;
// Select reports it.
func Groups(cluster Cluster, groups []Group) []string {
	var names []string
	for _, g := range groups {
		s, err := selector(g.Selector)
		if err == nil && s != nil && s.Matches(labels.Set(cluster.Labels)) {
			names = append(names, g.Name)
		}
	}
	slices.Sort(names)
	return names
}

// matcher is a target with its selectors compiled.
type matcher struct {
	v1alpha1.BundleTarget
	title   string
	cluster labels.Selector // nil: no criterion
	group   labels.Selector // nil: no criterion
}

func compile(spec v1alpha1.BundleSpec) ([]matcher, error) {
	targets := spec.Targets
	if len(targets) == 0 {
		targets = []v1alpha1.BundleTarget{{Name: DefaultGroup, ClusterMatch: v1alpha1.ClusterMatch{ClusterGroup: DefaultGroup}}}
	}
	ms := make([]matcher, 0, len(targets))
	for i, t := range targets {
		m := matcher{BundleTarget: t, title: t.Name}
		where := fmt.Sprintf("targets[%d]", i)
		if m.title == "" {
			m.title = where
		} else {
			where += fmt.Sprintf(" (%s)", t.Name)
		}
		if err := m.compile(); err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		ms = append(ms, m)
	}
	return ms, nil
}

// Check says what is wrong with a target, naming the field.
func Check(t v1alpha1.BundleTarget) error {
	return (&matcher{BundleTarget: t}).compile()
}

func (m *matcher) compile() (err error) {
	if m.cluster, err = selector(m.ClusterSelector); err != nil {
		return fmt.Errorf("clusterSelector: %w", err)
	}
	if m.group, err = selector(m.ClusterGroupSelector); err != nil {
		return fmt.Errorf("clusterGroupSelector: %w", err)
	}
	if m.CreateNamespace != nil {
		return errors.New("createNamespace holds for the whole bundle: set it outside of targets")
	}
	return nil
}

func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return nil, nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

func (m matcher) matches(c Cluster, in []Group) bool {
	if m.ClusterName == "" && m.ClusterGroup == "" && m.cluster == nil && m.group == nil {
		return false
	}
	if m.ClusterName != "" && m.ClusterName != c.Name && m.ClusterName != c.Labels[DisplayNameLabel] {
		return false
	}
	if m.cluster != nil && !m.cluster.Matches(labels.Set(c.Labels)) {
		return false
	}
	return slices.ContainsFunc(in, func(g Group) bool {
		return (m.ClusterGroup == "" || m.ClusterGroup == g.Name) &&
			(m.group == nil || m.group.Matches(labels.Set(g.Labels)))
	})
}

type compiledGroups []struct {
	Group
	selector labels.Selector
}

func compileGroups(groups []Group) (compiledGroups, error) {
	out := make(compiledGroups, len(groups))
	for i, g := range groups {
		s, err := selector(g.Selector)
		if err != nil {
			return nil, fmt.Errorf("cluster group %s: selector: %w", g.Name, err)
		}
		out[i].Group, out[i].selector = g, s
	}
	return out, nil
}

// of returns the groups of a cluster, or the one nameless group of a cluster that is in none.
func (gs compiledGroups) of(c Cluster) []Group {
	var in []Group
	for _, g := range gs {
		if g.selector != nil && g.selector.Matches(labels.Set(c.Labels)) {
			in = append(in, g.Group)
		}
	}
	if in == nil {
		return []Group{{}}
	}
	return in
}
