package fleet

import (
	"testing"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/rollout"
)

var (
	oldDigest = bundlefmt.Sum([]byte("old"))
	newDigest = bundlefmt.Sum([]byte("new"))
)

// member is a cluster that was ordered a release and reported something.
func member(ordered bundlefmt.Digest, reports *bundlefmt.DeploymentReport) Member {
	m := Member{Link: Online, Assigned: map[string]publish.Assignment{}}
	if !ordered.IsZero() {
		m.Ordered = &bundlefmt.Desired{Serial: 7, Deployments: []bundlefmt.Deployment{{Name: "a", Serial: 5, Digest: ordered}}}
	}
	if reports != nil {
		reports.Name = "a"
		m.Reported = &bundlefmt.Reported{Serial: 7, Deployments: []bundlefmt.DeploymentReport{*reports}}
	}
	return m
}

// removes is a cluster that was ordered to remove what it reports.
func removes(reports *bundlefmt.DeploymentReport) Member {
	m := member(bundlefmt.Digest{}, reports)
	m.Ordered = &bundlefmt.Desired{Serial: 7, Remove: []bundlefmt.Removal{{Name: "a", Serial: 7}}}
	return m
}

func TestStatus(t *testing.T) {
	report := func(d bundlefmt.Digest, serial bundlefmt.Serial, s bundlefmt.State, msg string) *bundlefmt.DeploymentReport {
		return &bundlefmt.DeploymentReport{Digest: d, Serial: serial, State: s, Message: msg}
	}
	none := bundlefmt.Digest{}
	for _, c := range []struct {
		name      string
		m         Member
		assigned  publish.Assignment
		offline   bool
		problem   string
		state     v1alpha1.State
		message   string
		available bool
	}{
		{name: "nothing ordered yet", m: member(none, nil), assigned: publish.Assignment{Wait: "the bundle is paused"}, state: v1alpha1.StatePending, message: "the bundle is paused"},
		{name: "ordered, no report", m: member(newDigest, nil), state: v1alpha1.StateWaitApplied, message: "has not reported yet"},
		{name: "ordered, still at the release before", m: member(newDigest, report(oldDigest, 3, bundlefmt.Ready, "")), state: v1alpha1.StateWaitApplied, message: "ordered, the cluster has not confirmed it yet"},
		{name: "ordered, without a link", m: member(newDigest, report(oldDigest, 3, bundlefmt.Ready, "")), offline: true, state: v1alpha1.StateWaitApplied, message: "offline: gets it when it is back"},
		{name: "on its way", m: member(newDigest, report(oldDigest, 3, bundlefmt.Downloading, "2 of 9 parts")), state: v1alpha1.StateDownloading, message: "2 of 9 parts"},
		{name: "a failed install is ErrApplied, never NotReady", m: member(newDigest, report(oldDigest, 3, bundlefmt.ErrApplied, "forbidden")), state: v1alpha1.StateErrApplied, message: "forbidden"},
		{name: "same content, but an older release: not confirmed", m: member(newDigest, report(newDigest, 4, bundlefmt.Ready, "")), state: v1alpha1.StateWaitApplied, message: "ordered, the cluster has not confirmed it yet"},
		{name: "applied, not healthy", m: member(newDigest, report(newDigest, 5, bundlefmt.NotReady, "0 of 1 Pods")), state: v1alpha1.StateNotReady, message: "0 of 1 Pods"},
		{name: "ready", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), state: v1alpha1.StateReady, available: true},
		{name: "ready without a link is ready", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), offline: true, state: v1alpha1.StateReady, available: true},
		{name: "changed by hand", m: member(newDigest, report(newDigest, 5, bundlefmt.Modified, "replicas")), state: v1alpha1.StateModified, message: "replicas", available: true},
		{name: "ready, a newer release waits", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), assigned: publish.Assignment{Wait: "2 of 2 clusters are updating"}, state: v1alpha1.StateOutOfSync, message: "2 of 2 clusters are updating", available: true},
		{name: "not rendered hides everything else", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), assigned: publish.Assignment{Failed: true, Wait: "values.yaml: no such key"}, state: v1alpha1.StateErrRendered, message: "values.yaml: no such key", available: true},
		{name: "promised, not published yet", m: member(oldDigest, report(oldDigest, 5, bundlefmt.Ready, "")), assigned: publish.Assignment{Release: rollout.Release{Digest: newDigest}}, state: v1alpha1.StateOutOfSync, message: "the newest release is not ordered yet", available: false},
		{name: "the same content under another policy, not published yet", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")),
			assigned: publish.Assignment{Release: rollout.Release{Digest: newDigest, Policy: bundlefmt.Policy{CorrectDrift: true}}}, state: v1alpha1.StateOutOfSync, message: "the newest release is not ordered yet"},
		{name: "cannot be published", m: member(oldDigest, report(oldDigest, 5, bundlefmt.Ready, "")), problem: "disk full", assigned: publish.Assignment{Release: rollout.Release{Digest: newDigest}}, state: v1alpha1.StateOutOfSync, message: "disk full"},
		{name: "cannot be published, and what runs is broken", m: member(oldDigest, report(oldDigest, 5, bundlefmt.NotReady, "0 of 1 Pods")), problem: "disk full",
			assigned: publish.Assignment{Release: rollout.Release{Digest: newDigest}}, state: v1alpha1.StateNotReady, message: "0 of 1 Pods; the newest release is not ordered: disk full"},
		{name: "the cluster cannot take what is ordered", m: member(newDigest, report(oldDigest, 3, bundlefmt.Ready, "")), problem: "conflict", state: v1alpha1.StateWaitApplied, message: "conflict"},
		{name: "nothing is to be published that cannot be", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), problem: "disk full", assigned: publish.Assignment{Release: rollout.Release{Digest: newDigest}}, state: v1alpha1.StateReady, available: true},
		{name: "reported of an order that is not known", m: member(newDigest, report(newDigest, 8, bundlefmt.Ready, "")), state: v1alpha1.StateWaitApplied, message: "ordered, the cluster has not confirmed it yet"},
		{name: "to be removed, not ordered yet", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), assigned: publish.Assignment{Remove: true}, state: v1alpha1.StateRemoving, message: "the removal is not ordered yet", available: true},
		{name: "to be removed, held", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), assigned: publish.Assignment{Remove: true, Wait: "the cluster is paused"}, state: v1alpha1.StateHeld, message: "the cluster is paused", available: true},
		{name: "removal ordered", m: removes(report(newDigest, 5, bundlefmt.WaitApplied, "2 objects are still to go")), state: v1alpha1.StateRemoving, message: "2 objects are still to go"},
		{name: "removal ordered, without a link", m: removes(report(newDigest, 5, bundlefmt.Ready, "")), offline: true, state: v1alpha1.StateRemoving, message: "offline: it is removed when the cluster is back"},
		{name: "removal ordered, held at the site", m: removes(report(newDigest, 5, bundlefmt.Held, "the window opens at noon")), state: v1alpha1.StateHeld, message: "the window opens at noon"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.m.Assigned["a"] = c.assigned
			c.m.Problem = Problem{Message: c.problem}
			if c.offline {
				c.m.Link = Offline
			}
			got := c.m.Status("a")
			if got.State != c.state || got.Message != c.message {
				t.Errorf("got %s %q, want %s %q", got.State, got.Message, c.state, c.message)
			}
			if got := c.m.Available("a"); got != c.available {
				t.Errorf("available is %v", got)
			}
		})
	}
}
