// Package rollout decides which clusters of a bundle move to the wanted release now. It is pure: state in, steps out.
//
// # Partitions
//
// Clusters are updated partition by partition. Those that the strategy lists come in its order; a cluster may be in several,
// and clusters that none of them names form a last one. Without a list, fleets of autoPartitionThreshold clusters or more (200)
// are cut into slices of autoPartitionSize (25%) of the clusters in the order of their names; smaller ones are one partition.
//
// # The budget: how many move at once
//
// A cluster is unavailable from the moment something is ordered until it says that it is applied and ready; so is one that
// says it is not ready, or that it went back to the release before. A cluster without a link is what it said last:
// it counts as unavailable only while an order waits for it. Clusters move while fewer than maxUnavailable (100%) clusters of
// the bundle, and of the partition, are unavailable: those with a link first, so that the others do not use the budget up
// before them. A first install is a move like any other; maxNew bounds it as well. Clusters that are broken anyway do not
// wait for the budget: holding them back protects nothing.
//
// # The gate: when the next partition begins
//
// The next partition begins when at most maxNotReady (0) clusters of this one are behind or unavailable. Clusters that cannot
// show anything now, because they are paused or have no link and have not seen the order, are not waited for once another cluster
// of the partition runs the release and is ready; where none does, nothing has been shown and all of them count. While no more
// than maxUnavailablePartitions (0) partitions are over that number the rollout goes on all the same. A release that fails
// therefore does not get beyond its partition, whatever the budget.
//
// A cluster that has nothing of the bundle does not wait at the gate for what a ready cluster of its own partition runs already:
// one that joins a fleet gets what the others have, also while some other cluster is broken.
package rollout

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"

	"shoal.dev/shoal/bundlefmt"
)

// Release is what a cluster is to run of a bundle. The zero value is nothing.
type Release struct {
	Digest bundlefmt.Digest
	Policy bundlefmt.Policy
}

// Equal reports whether two releases are the same.
func (r Release) Equal(o Release) bool { return r.Digest == o.Digest && r.Policy.Equal(o.Policy) }

// IsZero reports whether there is no release.
func (r Release) IsZero() bool { return r.Digest.IsZero() }

// Member is one cluster that should have the bundle.
type Member struct {
	Cluster   string
	Wanted    Release // zero: not known, because it cannot be rendered or the cluster has never connected; it stays where it is
	Ordered   Release // what the cluster was told last; zero: nothing yet
	Available bool    // the ordered release is applied and ready, as far as the cluster has said
	Paused    bool    // the cluster takes no updates
	Away      bool    // it has no link and has said nothing since it was told, so it cannot show how the release does
}

// Strategy bounds an update. Fields that are nil have the defaults of the package comment.
type Strategy struct {
	Paused                   bool
	MaxUnavailable           *intstr.IntOrString
	MaxNotReady              *intstr.IntOrString
	MaxUnavailablePartitions *intstr.IntOrString
	AutoPartitionSize        *intstr.IntOrString
	AutoPartitionThreshold   *int32
	MaxNew                   *int32
	Partitions               []Partition
}

// Partition is a set of clusters that is updated before the next one.
type Partition struct {
	Name           string
	Clusters       []string
	MaxUnavailable *intstr.IntOrString // nil: the strategy's
	MaxNotReady    *intstr.IntOrString // nil: the strategy's
}

// Check says what is wrong with a strategy, naming the field. Next takes only strategies that pass.
func (s Strategy) Check() error {
	if err := cmp.Or(
		atLeast(1, "maxUnavailable", s.MaxUnavailable), atLeast(0, "maxNotReady", s.MaxNotReady),
		atLeast(0, "maxUnavailablePartitions", s.MaxUnavailablePartitions), atLeast(math.MinInt, "autoPartitionSize", s.AutoPartitionSize),
	); err != nil {
		return err
	}
	if s.MaxNew != nil && *s.MaxNew < 1 {
		return fmt.Errorf("maxNew: %d lets no cluster get the bundle, ever: use 1 or more", *s.MaxNew)
	}
	for i, p := range s.Partitions {
		if err := cmp.Or(atLeast(1, "maxUnavailable", p.MaxUnavailable), atLeast(0, "maxNotReady", p.MaxNotReady)); err != nil {
			return fmt.Errorf("partitions[%d].%w", i, err)
		}
	}
	return nil
}

func atLeast(least int, field string, v *intstr.IntOrString) error {
	if v == nil {
		return nil
	}
	n, err := strconv.Atoi(strings.TrimSuffix(v.String(), "%"))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %q must be a whole number or a percentage such as \"10%%\"", field, v)
	case n == 0 && least > 0:
		return fmt.Errorf("%s: %s lets no cluster move, ever: use 1 or more, or paused: true to hold updates back", field, v)
	case n < least:
		return fmt.Errorf("%s: %s is too small: use %d or more", field, v, least)
	}
	return nil
}

// Step is the decision for a member whose wanted release is not ordered yet.
type Step struct {
	Cluster string
	Move    bool
	Reason  string // why it waits
}

// Next decides for every member that is not where it should be. Steps are sorted by partition, then by link, then by name.
func Next(s Strategy, members []Member) []Step {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Cluster, b.Cluster) })
	r := round{
		Strategy: s, members: members, budget: Limit(len(members), s.MaxUnavailable), fresh: maxNew(s.MaxNew, len(members)),
		decided: make(map[string]bool, len(members)),
	}
	for _, m := range members {
		if m.unavailable() {
			r.unavailable++
		}
	}
	parts := partitions(s, members)
	over, most := 0, 0
	if s.MaxUnavailablePartitions != nil {
		most = share(len(parts), s.MaxUnavailablePartitions)
	}
	gate := "" // why later partitions wait
	for _, p := range parts {
		r.partition(p, gate)
		if reason := p.gate(); reason != "" && gate == "" {
			if over++; over > most {
				gate = reason
			}
		}
	}
	return r.steps
}

// part is a partition with its members.
type part struct {
	name    string
	members []Member
	budget  int // how many may be unavailable while others move
	most    int // how many may be behind or unavailable when the next partition begins
}

// partitions puts every member into at least one.
func partitions(s Strategy, members []Member) []part {
	one := func(ms []Member, p Partition) part {
		return part{p.Name, ms, Limit(len(ms), cmp.Or(p.MaxUnavailable, s.MaxUnavailable)), allowed(len(ms), cmp.Or(p.MaxNotReady, s.MaxNotReady))}
	}
	if len(s.Partitions) > 0 {
		return listed(s.Partitions, members, one)
	}
	threshold := int32(200)
	if s.AutoPartitionThreshold != nil {
		threshold = *s.AutoPartitionThreshold
	}
	size := share(len(members), cmp.Or(s.AutoPartitionSize, &intstr.IntOrString{Type: intstr.String, StrVal: "25%"}))
	if size <= 0 || threshold <= 0 || len(members) < int(threshold) {
		return []part{one(members, Partition{Name: "all"})}
	}
	var parts []part
	for chunk := range slices.Chunk(members, size) {
		parts = append(parts, one(chunk, Partition{Name: strconv.Itoa(len(parts) + 1)}))
	}
	return parts
}

func listed(list []Partition, members []Member, one func([]Member, Partition) part) []part {
	var parts []part
	seen := make(map[string]bool, len(members))
	for i, p := range list {
		in := make(map[string]bool, len(p.Clusters))
		for _, c := range p.Clusters {
			in[c] = true
		}
		var ms []Member
		for _, m := range members {
			if in[m.Cluster] {
				ms = append(ms, m)
				seen[m.Cluster] = true
			}
		}
		p.Name = cmp.Or(p.Name, strconv.Itoa(i+1))
		parts = append(parts, one(ms, p))
	}
	rest := slices.DeleteFunc(slices.Clone(members), func(m Member) bool { return seen[m.Cluster] })
	if len(rest) > 0 {
		parts = append(parts, one(rest, Partition{Name: "of all others"}))
	}
	return parts
}

// round is one call of Next on its way.
type round struct {
	Strategy
	members     []Member
	budget      int
	unavailable int
	fresh       int             // first installs that may still begin
	decided     map[string]bool // whether it moves, for clusters that have a step
	steps       []Step
}

// partition decides for one partition's members. gate is why it has not begun; empty: it has.
func (r *round) partition(p part, gate string) {
	unavailable := 0
	for _, m := range p.members {
		if m.unavailable() || r.decided[m.Cluster] {
			unavailable++
		}
	}
	runs := p.runs()
	whole, own := "", "" // why no more may move, once that is so
	for _, m := range linkFirst(p.members) {
		if _, done := r.decided[m.Cluster]; done || m.Wanted.IsZero() || m.Wanted.Equal(m.Ordered) {
			continue
		}
		step := Step{Cluster: m.Cluster}
		switch {
		case r.Paused:
			step.Reason = "the bundle is paused"
		case m.Paused:
			step.Reason = "the cluster is paused"
		case gate != "" && !(m.Ordered.IsZero() && slices.ContainsFunc(runs[m.Wanted.Digest], m.Wanted.Equal)):
			step.Reason = gate
		case m.unavailable():
			step.Move = true
		case m.Ordered.IsZero() && r.fresh <= 0:
			step.Reason = "other clusters get the bundle for the first time now, maxNew bounds how many at once"
		case r.unavailable >= r.budget:
			if whole == "" {
				whole = fmt.Sprintf("%d of %d clusters are updating or not ready (%s), maxUnavailable allows %d",
					r.unavailable, len(r.members), r.some(r.members), r.budget)
			}
			step.Reason = whole
		case unavailable >= p.budget:
			if own == "" {
				own = fmt.Sprintf("%d of %d clusters of partition %s are updating or not ready (%s), maxUnavailable allows %d",
					unavailable, len(p.members), p.name, r.some(p.members), p.budget)
			}
			step.Reason = own
		default:
			step.Move = true
			r.unavailable++
			unavailable++
			if m.Ordered.IsZero() {
				r.fresh--
			}
		}
		r.decided[step.Cluster] = step.Move
		r.steps = append(r.steps, step)
	}
}

// linkFirst puts members without a link behind the others: what is ordered for them uses the budget up until they are back.
func linkFirst(members []Member) []Member {
	out := slices.Clone(members)
	slices.SortStableFunc(out, func(a, b Member) int {
		switch {
		case a.Away == b.Away:
			return 0
		case b.Away:
			return -1
		}
		return 1
	})
	return out
}

// some names clusters that use the budget up.
func (r *round) some(members []Member) string {
	return names(slices.DeleteFunc(slices.Clone(members), func(m Member) bool { return !m.unavailable() && !r.decided[m.Cluster] }))
}

// runs are the releases that some member runs and is ready with, by digest.
func (p part) runs() map[bundlefmt.Digest][]Release {
	runs := map[bundlefmt.Digest][]Release{}
	for _, m := range p.members {
		if of := runs[m.Ordered.Digest]; m.done() && !slices.ContainsFunc(of, m.Ordered.Equal) {
			runs[m.Ordered.Digest] = append(of, m.Ordered)
		}
	}
	return runs
}

// gate says why the partition after this one does not begin; empty: it may.
func (p part) gate() string {
	shown := slices.ContainsFunc(p.members, Member.done)
	var behind []Member
	for _, m := range p.members {
		if !m.done() && !(shown && (m.Paused || m.Away)) {
			behind = append(behind, m)
		}
	}
	if len(behind) <= p.most {
		return ""
	}
	return fmt.Sprintf("waits for partition %s: %d of %d clusters are updating or not ready (%s), maxNotReady allows %d",
		p.name, len(behind), len(p.members), names(behind), p.most)
}

// names lists a few members, those first that were told and are not ready although they could say so.
func names(members []Member) string {
	const most = 3
	slices.SortStableFunc(members, func(a, b Member) int { return cmp.Compare(a.rank(), b.rank()) })
	var out []string
	for _, m := range members[:min(most, len(members))] {
		switch {
		case m.Away:
			out = append(out, m.Cluster+" is offline")
		case m.Paused:
			out = append(out, m.Cluster+" is paused")
		default:
			out = append(out, m.Cluster)
		}
	}
	if n := len(members) - most; n > 0 {
		out = append(out, fmt.Sprintf("%d more", n))
	}
	return strings.Join(out, ", ")
}

func (m Member) rank() int {
	switch {
	case m.unavailable() && !m.Away:
		return 0
	case m.Away || m.Paused:
		return 1
	}
	return 2
}

// done: the wanted release is ordered, applied and ready.
func (m Member) done() bool { return !m.Wanted.IsZero() && m.Wanted.Equal(m.Ordered) && m.Available }

func (m Member) unavailable() bool { return !m.Ordered.IsZero() && !m.Available }

// maxNew is how many first installs one call of Next begins: 50, or 5% of a large fleet, so that it takes 20 calls at most.
func maxNew(v *int32, n int) int {
	if v != nil {
		return int(*v)
	}
	return max(50, n/20)
}

// Limit turns maxUnavailable into a number of clusters: default all; a percentage is rounded down but at least 1; a number
// above n is n. Without clusters it is 1.
func Limit(n int, v *intstr.IntOrString) int {
	switch {
	case n <= 0:
		return 1
	case v == nil:
		return n
	}
	return max(1, share(n, v))
}

// share turns a number or percentage into a number of at most n; a percentage is rounded down but at least 1.
func share(n int, v *intstr.IntOrString) int {
	if v.Type == intstr.String && strings.HasSuffix(v.StrVal, "%") {
		return max(1, allowed(n, v))
	}
	return allowed(n, v)
}

// allowed turns maxNotReady into a number of clusters: default none; a percentage is rounded down.
func allowed(n int, v *intstr.IntOrString) int {
	if v == nil {
		return 0
	}
	text, percent := strings.CutSuffix(v.String(), "%")
	count, err := strconv.Atoi(text)
	if err != nil {
		return 0 // see Check
	}
	if percent {
		count = n * min(100, count) / 100
	}
	return max(0, min(n, count))
}

// removalsAtOnce is how many clusters may always lose a bundle by one change of targets or labels.
const removalsAtOnce = 10

// HoldDeletion says whether so many of a workspace's bundles are deleted at once that somebody has to confirm it: at least two, and
// more than half of them or more than ten.
func HoldDeletion(have, lose int) bool { return lose > 1 && (lose*2 > have || lose > removalsAtOnce) }

// HoldRemoval says whether a change would remove a bundle from unusually many of the clusters that have it: more than ten
// and more than half. Such a change waits until somebody confirms it; deleting the bundle is confirmation enough.
func HoldRemoval(have, lose int) bool { return lose > removalsAtOnce && lose*2 > have }
