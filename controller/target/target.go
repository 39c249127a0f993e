// Package target decides which clusters get a bundle, and with which options. It is pure: no client, no clock, no logger.
//
// # Matching
//
// The criteria that a target sets (clusterName, clusterSelector, clusterGroup, clusterGroupSelector) must all hold; a
// target that sets none matches nothing. An empty selector ({}) matches everything, an absent one is no criterion.
// clusterGroup and clusterGroupSelector must hold for the same group of the cluster; a cluster in no group counts as in
// one group without name and labels, so a clusterGroupSelector of {} or NotIn or DoesNotExist matches it.
// A group whose selector cannot be read is an error of the bundles that refer to it, and of no other. That a named group does not
// exist is one, too, where all groups are known: see CheckGroups.
//
// # From targets to options
//
// A bundle without targets is for the cluster group "default". With n targetRestrictions, the last n targets select clusters,
// and a cluster must pass a restriction as well; the targets before those are customizations, which only change options. Without
// restrictions every target does both. Targets and customizations are tried in their order:
//
//   - FirstMatch: the first one that matches counts. If it says doNotDeploy, the cluster does not get the bundle.
//   - AllMatches: all that match are merged in their order, see Merge. If any says doNotDeploy, the cluster does not get it.
//
// Where no customization matches, the target's own options hold.
//
// # Templating
//
// Values that begin with global.fleet.clusterLabels. become that label of the cluster, or empty. Then helm.templateValues and
// the texts and keys in helm.values are executed as Go templates with the delimiters ${ and } and the functions of sprig. The texts of
// helm.values are one template, in the order of their keys; what is all of a value keeps its type, see fill.
// What templates see is Vars; a key that is not there is an error. Functions that read the hub's environment or network are left
// out. Those that give something else every time (random, time, certificates) are refused: they would deploy the bundle for ever,
// and made predictable they would make predictable passwords. Text, lists, loops and nesting are bounded.
// With templating: all the namespaces, the release name, serviceAccount, kustomize.dir, yaml.overlays and the labels and annotations
// of the namespace are templated too, and Match.Vars is set for the files.
//
// A mistake that concerns one cluster (a label it lacks) is that cluster's alone: see Match.Err.
//
// Every rule has a case in testdata.
package target

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// DefaultGroup is the cluster group of bundles without targets.
const DefaultGroup = "default"

// DisplayNameLabel is a second name of a cluster that clusterName accepts, as Fleet has it.
const DisplayNameLabel = "management.cattle.io/cluster-display-name"

// Cluster is what matching and templates know of a cluster.
type Cluster struct {
	Name        string
	Namespace   string
	Labels      map[string]string
	Annotations map[string]string
	Values      map[string]any // its spec.templateValues
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
	Target  string // name of the target whose options it gets, or "targets[i]"; several, if they were merged
	// Err says why its options are not known: a template fails for it. It is to keep what it has.
	Err     error
	Options v1alpha1.BundleOptions // templated; shared by clusters: read only
	Vars    *Vars                  // what its files are templated with; nil: they are not
	// Distinct is the same number for matches with the same Options and Vars.
	Distinct int
	Notes    []string // what its owner should know about the options
}

// AllMatches is the mode in which all targets that match are merged.
const AllMatches = "AllMatches"

// Select returns the clusters that get the bundle, sorted by name. All targets are checked before any is tried, so that
// a mistake in the last one is not hidden by the first.
func Select(spec v1alpha1.BundleSpec, clusters []Cluster, groups []Group) ([]Match, error) {
	s, err := compile(spec)
	if err != nil {
		return nil, err
	}
	gs, err := s.compileGroups(groups)
	if err != nil {
		return nil, err
	}
	var out []Match
	for _, c := range clusters {
		if chosen := s.chosen(c, gs.of(c)); len(chosen) > 0 {
			out = append(out, s.match(s.choice(chosen), c))
		}
	}
	slices.SortFunc(out, func(a, b Match) int { return strings.Compare(a.Cluster, b.Cluster) })
	return out, nil
}

// Targeted returns the names of the clusters that a bundle is for, sorted: those of Select, without templating anything.
func Targeted(spec v1alpha1.BundleSpec, clusters []Cluster, groups []Group) ([]string, error) {
	s, err := compile(spec)
	if err != nil {
		return nil, err
	}
	gs, err := s.compileGroups(groups)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range clusters {
		if len(s.chosen(c, gs.of(c))) > 0 {
			out = append(out, c.Name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Matching returns the names of the clusters that match, sorted.
func Matching(match v1alpha1.ClusterMatch, clusters []Cluster, groups []Group) ([]string, error) {
	return Targeted(v1alpha1.BundleSpec{Targets: []v1alpha1.BundleTarget{{ClusterMatch: match}}}, clusters, groups)
}

// CheckGroups says which cluster group a bundle names that does not exist. A group may have been deleted, or renamed, which is deleted
// and made again, or not made yet: that it is not there must take nothing from the clusters that had the bundle through it.
func CheckGroups(spec v1alpha1.BundleSpec, groups []Group) error {
	check := func(where string, m v1alpha1.ClusterMatch) error {
		if m.ClusterGroup == "" || slices.ContainsFunc(groups, func(g Group) bool { return g.Name == m.ClusterGroup }) {
			return nil
		}
		return fmt.Errorf("%s: cluster group %q does not exist; clusters keep what they have until it does, or another one is named", where, m.ClusterGroup)
	}
	if len(spec.Targets) == 0 && check("", v1alpha1.ClusterMatch{ClusterGroup: DefaultGroup}) != nil {
		return fmt.Errorf("it has no targets, so it is for the cluster group %q, which does not exist: give it targets, or make that group", DefaultGroup)
	}
	for i, t := range spec.Targets {
		if err := check(titled("targets", i, t.Name), t.ClusterMatch); err != nil {
			return err
		}
	}
	for i, t := range spec.TargetRestrictions {
		if err := check(titled("targetRestrictions", i, t.Name), t.ClusterMatch); err != nil {
			return err
		}
	}
	if spec.RolloutStrategy != nil {
		for i, p := range spec.RolloutStrategy.Partitions {
			if err := check(titled("rolloutStrategy.partitions", i, p.Name), p.ClusterMatch); err != nil {
				return err
			}
		}
	}
	return nil
}

// Vacant names the groups by which a bundle selects clusters and that hold none; it returns nothing for a bundle that Select refuses.
func Vacant(spec v1alpha1.BundleSpec, clusters []Cluster, groups []Group) []string {
	s, err := compile(spec)
	if err != nil {
		return nil
	}
	gs, err := s.compileGroups(groups)
	if err != nil {
		return nil
	}
	var out []string
	for _, m := range slices.Concat(s.plain, s.restrictions) {
		if m.ClusterGroup == "" && m.group == nil || m.DoNotDeploy ||
			slices.ContainsFunc(clusters, func(c Cluster) bool { return m.matchesGroup(gs.of(c)) }) {
			continue
		}
		what := "cluster group " + m.ClusterGroup
		if m.ClusterGroup == "" {
			what = "every cluster group with the labels " + metav1.FormatLabelSelector(m.ClusterGroupSelector)
		}
		if !slices.Contains(out, what) {
			out = append(out, what)
		}
	}
	return out
}

// titled is an entry of a list of targets for people.
func titled(list string, i int, name string) string {
	where := fmt.Sprintf("%s[%d]", list, i)
	if name != "" {
		where += fmt.Sprintf(" (%s)", name)
	}
	return where
}

// selection is a bundle's targets on their way through Select.
type selection struct {
	spec         v1alpha1.BundleSpec
	custom       []matcher // customizations; none: plain targets customize as well
	plain        []matcher
	restrictions []matcher
	choices      map[string]*choice // by the targets that make it
	distinct     int
	vars         map[string]int // distinct number by result and Vars
}

// chosen returns the targets whose options a cluster gets; none: it does not get the bundle.
func (s *selection) chosen(c Cluster, in []Group) []matcher {
	matches := func(m matcher) bool { return m.matches(c, in) }
	first := slices.IndexFunc(s.plain, matches)
	if first < 0 || len(s.restrictions) > 0 && !slices.ContainsFunc(s.restrictions, matches) {
		return nil
	}
	from := s.plain[first:]
	if len(s.restrictions) > 0 {
		if s.plain[first].DoNotDeploy {
			return nil
		}
		if from = s.custom; !slices.ContainsFunc(from, matches) {
			from = s.plain[first : first+1]
		}
	}
	var chosen []matcher
	for _, m := range from {
		if !m.matches(c, in) {
			continue
		}
		if m.DoNotDeploy {
			return nil
		}
		chosen = append(chosen, m)
		if s.spec.TargetCustomizationMode != AllMatches {
			break
		}
	}
	return chosen
}

// choice merges once a combination of targets, not once a cluster.
func (s *selection) choice(chosen []matcher) *choice {
	var k strings.Builder
	for _, m := range chosen {
		k.WriteString(m.where)
		k.WriteByte(0)
	}
	key := k.String()
	if c, ok := s.choices[key]; ok {
		return c
	}
	o := s.spec.BundleOptions
	titles := make([]string, 0, len(chosen))
	for _, m := range chosen {
		o = Merge(o, m.BundleOptions)
		titles = append(titles, m.title)
	}
	c := newChoice(o, strings.Join(titles, ","), s.spec.Templating == "all")
	s.choices[key] = c
	return c
}

func (s *selection) match(ch *choice, c Cluster) Match {
	r := ch.of(c, &s.distinct)
	m := Match{Cluster: c.Name, Target: ch.title, Options: r.options, Distinct: r.number, Notes: r.notes}
	if r.err != nil {
		m.Err = fmt.Errorf("target %s, cluster %s: %w", ch.title, c.Name, r.err)
		m.Options = v1alpha1.BundleOptions{}
		return m
	}
	if ch.all {
		m.Vars = NewVars(c)
		key := strconv.Itoa(r.number) + m.Vars.Key()
		n, ok := s.vars[key]
		if !ok {
			n = s.distinct
			s.distinct++
			s.vars[key] = n
		}
		m.Distinct = n
	}
	return m
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
	where   string
	cluster labels.Selector // nil: no criterion
	group   labels.Selector // nil: no criterion
}

func compile(spec v1alpha1.BundleSpec) (*selection, error) {
	s := &selection{spec: spec, choices: map[string]*choice{}, vars: map[string]int{}}
	switch spec.TargetCustomizationMode {
	case "", "FirstMatch", AllMatches:
	default:
		return nil, fmt.Errorf("targetCustomizationMode: %q: use FirstMatch or AllMatches", spec.TargetCustomizationMode)
	}
	switch spec.Templating {
	case "", "values", "all":
	default:
		return nil, fmt.Errorf("templating: %q: use values or all", spec.Templating)
	}
	targets := spec.Targets
	if len(targets) == 0 {
		targets = []v1alpha1.BundleTarget{{Name: DefaultGroup, ClusterMatch: v1alpha1.ClusterMatch{ClusterGroup: DefaultGroup}}}
	}
	ms, err := compileAll("targets", targets)
	if err != nil {
		return nil, err
	}
	var restrictions []v1alpha1.BundleTarget
	for _, r := range spec.TargetRestrictions {
		restrictions = append(restrictions, v1alpha1.BundleTarget{Name: r.Name, ClusterMatch: r.ClusterMatch})
	}
	if s.restrictions, err = compileAll("targetRestrictions", restrictions); err != nil {
		return nil, err
	}
	s.plain = ms
	if n := len(ms) - len(restrictions); len(restrictions) > 0 && n > 0 {
		s.custom, s.plain = ms[:n], ms[n:]
	}
	return s, nil
}

func compileAll(list string, targets []v1alpha1.BundleTarget) ([]matcher, error) {
	ms := make([]matcher, 0, len(targets))
	for i, t := range targets {
		m := matcher{BundleTarget: t, title: t.Name, where: fmt.Sprintf("%s[%d]", list, i)}
		if m.title == "" {
			m.title = m.where
		}
		if err := m.compile(); err != nil {
			return nil, fmt.Errorf("%s: %w", titled(list, i, t.Name), err)
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
	return m.matchesGroup(in)
}

func (m matcher) matchesGroup(in []Group) bool {
	return slices.ContainsFunc(in, func(g Group) bool {
		return (m.ClusterGroup == "" || m.ClusterGroup == g.Name) &&
			(m.group == nil || m.group.Matches(labels.Set(g.Labels)))
	})
}

type compiledGroup struct {
	Group
	selector labels.Selector
}

type compiledGroups []compiledGroup

// compileGroups leaves out groups whose selectors cannot be read, unless the bundle refers to them.
func (s *selection) compileGroups(groups []Group) (compiledGroups, error) {
	var out compiledGroups
	for _, g := range groups {
		sel, err := selector(g.Selector)
		if err == nil {
			out = append(out, compiledGroup{g, sel})
			continue
		}
		refers := func(m matcher) bool { return m.ClusterGroup == g.Name || m.ClusterGroup == "" && m.group != nil }
		if slices.ContainsFunc(slices.Concat(s.custom, s.plain, s.restrictions), refers) {
			return nil, fmt.Errorf("cluster group %s: selector: %w", g.Name, err)
		}
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
