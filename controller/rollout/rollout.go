// Package rollout decides which clusters of a bundle move to the wanted release now. It is pure: state in, steps out.
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

// Strategy bounds an update.
type Strategy struct {
	MaxUnavailable *intstr.IntOrString
	Paused         bool
}

// Step is the decision for a member whose wanted release is not ordered yet.
type Step struct {
	Cluster string
	Move    bool
	Reason  string // why it waits
}

// Next decides for every member that is not where it should be. First installs, and clusters that are broken anyway, never
// wait for the budget: holding them back protects nothing. Clusters without a link count as unavailable only
// while an order waits for them.
func Next(s Strategy, members []Member) []Step {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Cluster, b.Cluster) })
	budget := Limit(len(members), s.MaxUnavailable)
	unavailable := 0
	for _, m := range members {
		if !m.Ordered.IsZero() && !m.Available {
			unavailable++
		}
	}
	var steps []Step
	for _, m := range members {
		if m.Wanted.Equal(m.Ordered) {
			continue
		}
		step := Step{Cluster: m.Cluster}
		switch {
		case s.Paused:
			step.Reason = "the bundle is paused"
		case m.Paused:
			step.Reason = "the cluster is paused"
		case m.Ordered.IsZero() || !m.Available:
			step.Move = true
		case unavailable < budget:
			step.Move = true
			unavailable++
		default:
			step.Reason = fmt.Sprintf("%d of %d clusters are updating or not ready, maxUnavailable allows %d", unavailable, len(members), budget)
		}
		steps = append(steps, step)
	}
	return steps
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
