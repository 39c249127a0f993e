package fleet

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/rollout"
)

// Status is where one deployment (a bundle on a cluster) is.
type Status struct {
	State   v1alpha1.State
	Message string
	Since   time.Time
}

// Problem is why nothing can be ordered for a cluster: Reason is one word for a condition, Message says what to do. The zero value
// is none.
type Problem struct {
	Reason, Message string
	// Conflict: hub and cluster do not mean the same by a document. What the cluster reports is not about what the hub has ordered.
	Conflict bool
}

// Release is what the cluster was told to run of a bundle, or is about to be told.
func (m Member) Release(name string) rollout.Release {
	if a, ok := m.Assigned[name]; ok && !a.Remove && !a.Release.IsZero() {
		return a.Release
	}
	return m.ordered(name)
}

// ordered is what the document in force says.
func (m Member) ordered(name string) rollout.Release {
	e, ok := m.Entry(name)
	if !ok {
		return rollout.Release{}
	}
	return rollout.Release{Digest: e.Digest, Policy: e.Policy}
}

// applied says whether the cluster has confirmed the release that is ordered now. A report that is ahead of the document in force is
// about an order that this hub does not know.
func (m Member) applied(name string) (bundlefmt.DeploymentReport, bool) {
	e, ordered := m.Entry(name)
	r, reported := m.Report(name)
	return r, ordered && reported && r.Digest == e.Digest && r.Serial >= e.Serial && r.Serial <= m.Ordered.Serial
}

// Available says whether the release that the cluster is to run is ordered, applied and healthy, as far as the cluster has said.
func (m Member) Available(name string) bool {
	r, ok := m.applied(name)
	return ok && !m.Problem.Conflict && m.Release(name).Equal(m.ordered(name)) && (r.State == bundlefmt.Ready || r.State == bundlefmt.Modified)
}

// Away says that the cluster has no link, or never had one, and has said nothing since it was told to run what is wanted, if it was:
// it cannot show how the release does.
func (m Member) Away(name string, wanted rollout.Release) bool {
	if m.Link == Online || m.Link == Unknown && m.Reported != nil { // one that this hub has not heard since it started may have a link
		return false
	}
	e, _ := m.Entry(name)
	return m.Reported == nil || !wanted.Equal(m.ordered(name)) || m.Reported.Serial < e.Serial
}

// behind says whether something else is wanted than the document in force orders.
func (m Member) behind(name string) bool {
	a, ok := m.Assigned[name]
	return ok && (a.Wait != "" || a.Remove || !m.Release(name).Equal(m.ordered(name)))
}

// Status says where a deployment is. It is the one place that does: Ready is only what is wanted now, ordered so, and reported so.
// The first that holds counts: being removed, not rendered, not ordered, not applied, not healthy, not the newest, changed by hand.
func (m Member) Status(name string) Status {
	if s, ok := m.Removal(name); ok {
		return s
	}
	a := m.Assigned[name]
	_, ordered := m.Entry(name)
	r, done := m.applied(name)
	if m.Problem.Conflict {
		return m.conflict(r)
	}
	s := Status{v1alpha1.State(r.State), r.Message, r.Since}
	switch {
	case a.Failed:
		return Status{v1alpha1.StateErrRendered, a.Wait, r.Since}
	case !ordered:
		return Status{v1alpha1.StatePending, m.waits(name), m.LinkSince}
	case !done:
		s.State, s.Message = waiting(r.State), m.waitMessage(r)
	}
	behind, blocked := m.behind(name), cmp.Or(m.LeftOut[name], m.Problem.Message)
	switch {
	case behind && s.State == v1alpha1.StateReady:
		s.State, s.Message = v1alpha1.StateOutOfSync, m.waits(name)
	case blocked != "" && s.State == v1alpha1.StateWaitApplied: // the cluster says nothing of it because it cannot get it
		s.Message = blocked
	case blocked != "" && behind:
		s.Message = strings.TrimPrefix(s.Message+"; the newest release is not ordered: "+blocked, "; ")
	}
	return s
}

// conflict is where a deployment is while nobody knows whether what the cluster reports is what the hub has ordered.
func (m Member) conflict(r bundlefmt.DeploymentReport) Status {
	return Status{v1alpha1.StateHeld, m.Problem.Message, r.Since}
}

// waits says why what is wanted is not ordered.
func (m Member) waits(name string) string {
	return cmp.Or(m.Assigned[name].Wait, m.LeftOut[name], m.Problem.Message, "the newest release is not ordered yet")
}

// Removal is where the removal of a deployment is, and whether there is one: it is wanted or ordered, and the cluster has not said
// yet that the deployment is gone.
func (m Member) Removal(name string) (Status, bool) {
	a := m.Assigned[name]
	r, reported := m.Report(name)
	_, runs := m.Entry(name)
	switch {
	case m.Problem.Conflict && (a.Remove || m.Removes(name)) && (runs || reported):
		return m.conflict(r), true
	case a.Remove && a.Wait != "" && (runs || reported):
		return Status{v1alpha1.StateHeld, a.Wait, r.Since}, true
	case m.Removes(name):
		return m.leaving(r, reported), true
	case a.Remove && runs:
		return Status{v1alpha1.StateRemoving, cmp.Or(m.Problem.Message, "the removal is not ordered yet"), r.Since}, true
	}
	return Status{}, false
}

// Removes says whether the document in force takes a deployment away and the cluster has not confirmed that.
func (m Member) Removes(name string) bool {
	if m.Ordered == nil {
		return false
	}
	i := slices.IndexFunc(m.Ordered.Remove, func(r bundlefmt.Removal) bool { return r.Name == name })
	if i < 0 {
		return false
	}
	_, reported := m.Report(name)
	return m.Reported == nil || m.Reported.Serial < m.Ordered.Remove[i].Serial || reported
}

// leaving is where a removal is that is ordered.
func (m Member) leaving(r bundlefmt.DeploymentReport, reported bool) Status {
	switch {
	case reported && r.State == bundlefmt.Held:
		return Status{v1alpha1.StateHeld, r.Message, r.Since}
	case reported && m.Reported.Serial >= m.Ordered.Serial && r.Message != "":
		return Status{v1alpha1.StateRemoving, r.Message, r.Since}
	case m.Link == Offline:
		return Status{v1alpha1.StateRemoving, "offline: it is removed when the cluster is back", m.LinkSince}
	}
	return Status{v1alpha1.StateRemoving, "is ordered to be removed", r.Since}
}

// waiting is the state of a release that is not applied yet: what the cluster says of its attempt, if anything.
func waiting(s bundlefmt.State) v1alpha1.State {
	switch s {
	case bundlefmt.Downloading, bundlefmt.ErrApplied, bundlefmt.Refused, bundlefmt.RolledBack, bundlefmt.Held:
		return v1alpha1.State(s)
	}
	return v1alpha1.StateWaitApplied
}

func (m Member) waitMessage(r bundlefmt.DeploymentReport) string {
	switch {
	case waiting(r.State) != v1alpha1.StateWaitApplied && r.Message != "":
		return r.Message
	case m.Link == Offline:
		return "offline: gets it when it is back"
	case m.Reported == nil:
		return "has not reported yet"
	case m.Reported.Refused != nil:
		return "refused a message: " + m.Reported.Refused.Reason
	}
	return cmp.Or(r.Message, "ordered, the cluster has not confirmed it yet")
}

// Deployments names everything the cluster has been ordered or is to be ordered, except what is being taken away.
func (m Member) Deployments() []string {
	var names []string
	for n, a := range m.Assigned {
		if !a.Remove {
			names = append(names, n)
		}
	}
	if m.Ordered != nil {
		for _, d := range m.Ordered.Deployments {
			if _, ok := m.Assigned[d.Name]; !ok {
				names = append(names, d.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// Leaving names what is being taken away and is not gone yet.
func (m Member) Leaving() []string {
	var names []string
	for n, a := range m.Assigned {
		if a.Remove {
			names = append(names, n)
		}
	}
	if m.Ordered != nil {
		for _, r := range m.Ordered.Remove {
			if _, ok := m.Assigned[r.Name]; !ok {
				names = append(names, r.Name)
			}
		}
	}
	names = slices.DeleteFunc(names, func(n string) bool { _, ok := m.Removal(n); return !ok })
	slices.Sort(names)
	return names
}

// Unseen says whether something was decided for an older generation of the Cluster, and not for this one yet.
func (m Member) Unseen(generation int64) bool {
	for _, a := range m.Assigned {
		if !a.Remove && a.Generation < generation {
			return true
		}
	}
	return false
}
