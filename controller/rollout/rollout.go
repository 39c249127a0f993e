// Package rollout decides which clusters of a bundle move to the wanted release now. It is pure: state in, steps out.
//
// # Partitions
//
// Clusters are updated partition by partition. Those that the strategy lists come in its order; a cluster may be in several,
// and clusters that none of them names form a last one. Without a list, fleets of autoPartitionThreshold clusters or more (200)
// are cut into slices of autoPartitionSize (25%) of the clusters in the order of their names; smaller ones are one partition.
//
// # Budgets
//
// A cluster is unavailable from the moment something is ordered until it says that it is applied and ready; so is one that
// says it is not ready, or that it went back to the release before. A cluster without a link is what it said last:
// it counts as unavailable only while an order waits for it. Healthy clusters move while fewer than maxUnavailable clusters of
// the bundle, and of the partition, are unavailable. First installs (maxNew at a time) and clusters that are broken anyway
// do not wait for these budgets: holding them back protects nothing.
//
// The next partition begins when at most maxUnavailable clusters of this one are behind or unavailable, or while no
// more than maxUnavailablePartitions (0) partitions are over that number. Paused clusters are not waited for. A release that
// fails therefore stops where the budget is used up: clusters that went back to the release before use it up like any other.
// The default budget is 100%: then nothing waits for anything.
package rollout

import (
	"fmt"
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
	Wanted    Release
	Ordered   Release // what the cluster was told last; zero: nothing yet
	Available bool    // the ordered release is applied and ready, as far as the cluster has said
	Paused    bool    // the cluster takes no updates
}

// Strategy bounds an update. Fields that are nil have the defaults of the package comment.
type Strategy struct {
	Paused                   bool
	MaxUnavailable           *intstr.IntOrString
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
}

// Step is the decision for a member whose wanted release is not ordered yet.
type Step struct {
	Cluster string
	Move    bool
	Reason  string // why it waits
}

// Next decides for every member that is not where it should be. Steps are sorted by partition, then by name.
func Next(s Strategy, members []Member) []Step {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Cluster, b.Cluster) })
	r := round{Strategy: s, members: len(members), budget: Limit(len(members), s.MaxUnavailable), fresh: maxNew(s.MaxNew, len(members)), decided: make(map[string]bool, len(members))}
	for _, m := range members {
		if m.unavailable() {
			r.unavailable++
		}
	}
	parts := partitions(s, members)
	over, most := 0, 0
	if s.MaxUnavailablePartitions != nil {
		most = Limit(len(parts), s.MaxUnavailablePartitions)
	}
	for i, p := range parts {
		r.partition(p)
		if behind := r.behind(p); behind > p.budget {
			if over++; over > most {
				r.stop(parts[i+1:], fmt.Sprintf("waits for partition %s, where %d of %d clusters are updating or not ready and %d may be", p.name, behind, len(p.members), p.budget))
				break
			}
		}
	}
	return r.steps
}

// part is a partition with its members.
type part struct {
	name    string
	members []Member
	budget  int
}

// partitions puts every member into at least one.
func partitions(s Strategy, members []Member) []part {
	one := func(name string, ms []Member, v *intstr.IntOrString) part {
		if v == nil {
			v = s.MaxUnavailable
		}
		return part{name, ms, Limit(len(ms), v)}
	}
	if len(s.Partitions) > 0 {
		return listed(s.Partitions, members, one)
	}
	threshold := int32(200)
	if s.AutoPartitionThreshold != nil {
		threshold = *s.AutoPartitionThreshold
	}
	size := Limit(len(members), &intstr.IntOrString{Type: intstr.String, StrVal: "25%"})
	if s.AutoPartitionSize != nil {
		size = Limit(len(members), s.AutoPartitionSize)
	}
	if size <= 0 || threshold <= 0 || len(members) < int(threshold) {
		return []part{one("all", members, nil)}
	}
	var parts []part
	for chunk := range slices.Chunk(members, size) {
		parts = append(parts, one(strconv.Itoa(len(parts)+1), chunk, nil))
	}
	return parts
}

func listed(list []Partition, members []Member, one func(string, []Member, *intstr.IntOrString) part) []part {
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
		name := p.Name
		if name == "" {
			name = strconv.Itoa(i + 1)
		}
		parts = append(parts, one(name, ms, p.MaxUnavailable))
	}
	rest := slices.DeleteFunc(slices.Clone(members), func(m Member) bool { return seen[m.Cluster] })
	if len(rest) > 0 {
		parts = append(parts, one("of all others", rest, nil))
	}
	return parts
}

// round is one call of Next on its way.
type round struct {
	Strategy
	members     int
	budget      int
	unavailable int
	fresh       int             // first installs that may still begin
	decided     map[string]bool // whether it moves, for clusters that have a step
	steps       []Step
}

// partition decides for one partition's members.
func (r *round) partition(p part) {
	unavailable := 0
	for _, m := range p.members {
		if m.unavailable() || r.decided[m.Cluster] {
			unavailable++
		}
	}
	for _, m := range p.members {
		if _, done := r.decided[m.Cluster]; done || m.Wanted.Equal(m.Ordered) {
			continue
		}
		step := Step{Cluster: m.Cluster}
		switch {
		case r.Paused:
			step.Reason = "the bundle is paused"
		case m.Paused:
			step.Reason = "the cluster is paused"
		case m.Ordered.IsZero() && r.fresh <= 0:
			step.Reason = "other clusters get the bundle for the first time now, maxNew bounds how many at once"
		case m.Ordered.IsZero():
			r.fresh--
			step.Move = true
		case m.unavailable():
			step.Move = true
		case r.unavailable >= r.budget:
			step.Reason = fmt.Sprintf("%d of %d clusters are updating or not ready, maxUnavailable allows %d", r.unavailable, r.members, r.budget)
		case unavailable >= p.budget:
			step.Reason = fmt.Sprintf("%d of %d clusters of partition %s are updating or not ready, maxUnavailable allows %d", unavailable, len(p.members), p.name, p.budget)
		default:
			step.Move = true
			r.unavailable++
			unavailable++
		}
		r.add(step)
	}
}

func (r *round) add(s Step) {
	r.decided[s.Cluster] = s.Move
	r.steps = append(r.steps, s)
}

// behind counts the members of a partition that are not where they should be, or that are unavailable, once the steps are done.
func (r *round) behind(p part) (n int) {
	for _, m := range p.members {
		if !m.Paused && (m.unavailable() || !m.Wanted.Equal(m.Ordered)) {
			n++
		}
	}
	return n
}

// stop lets the members of later partitions wait.
func (r *round) stop(parts []part, reason string) {
	for _, p := range parts {
		for _, m := range p.members {
			if _, done := r.decided[m.Cluster]; !done && !m.Wanted.Equal(m.Ordered) {
				r.add(Step{Cluster: m.Cluster, Reason: reason})
			}
		}
	}
}

func (m Member) unavailable() bool { return !m.Ordered.IsZero() && !m.Available }

// maxNew is how many first installs one call of Next begins: 50, or 5% of a large fleet, so that it takes 20 calls at most.
func maxNew(v *int32, n int) int {
	if v != nil {
		return int(*v)
	}
	return max(50, n/20)
}

// Limit turns maxUnavailable into a number of clusters: default all; a percentage is rounded down but at least 1; a number
// above n is n, a negative one 0. Without clusters it is 1.
func Limit(n int, v *intstr.IntOrString) int {
	switch {
	case n <= 0:
		return 1
	case v == nil:
		return n
	case v.Type == intstr.Int:
		return max(0, min(n, v.IntValue()))
	}
	if p, ok := strings.CutSuffix(v.StrVal, "%"); ok {
		if percent, err := strconv.Atoi(p); err == nil {
			return max(1, min(n, n*max(0, percent)/100))
		}
		return n
	}
	if count, err := strconv.Atoi(v.StrVal); err == nil {
		return max(0, min(n, count))
	}
	return n
}

// removalsAtOnce is how many clusters may always lose a bundle by one change of targets or labels.
const removalsAtOnce = 10

// HoldRemoval says whether a change would remove a bundle from unusually many of the clusters that have it: more than ten
// and more than half. Such a change waits until somebody confirms it; deleting the bundle is confirmation enough.
func HoldRemoval(have, lose int) bool { return lose > removalsAtOnce && lose*2 > have }
