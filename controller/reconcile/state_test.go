package reconcile

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/fleet"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/rollout"
)

var (
	oldDigest = bundlefmt.Sum([]byte("old"))
	newDigest = bundlefmt.Sum([]byte("new"))
)

// member is a cluster that was ordered a release and reported something.
func member(ordered bundlefmt.Digest, reports *bundlefmt.DeploymentReport) fleet.Member {
	m := fleet.Member{Link: fleet.Online, Assigned: map[string]publish.Assignment{}}
	if !ordered.IsZero() {
		m.Ordered = &bundlefmt.Desired{Serial: 7, Deployments: []bundlefmt.Deployment{{Name: "a", Serial: 5, Digest: ordered}}}
	}
	if reports != nil {
		reports.Name = "a"
		m.Reported = &bundlefmt.Reported{Serial: 7, Deployments: []bundlefmt.DeploymentReport{*reports}}
	}
	return m
}

func TestStand(t *testing.T) {
	report := func(d bundlefmt.Digest, serial bundlefmt.Serial, s bundlefmt.State, msg string) *bundlefmt.DeploymentReport {
		return &bundlefmt.DeploymentReport{Digest: d, Serial: serial, State: s, Message: msg}
	}
	none := bundlefmt.Digest{}
	for _, c := range []struct {
		name      string
		m         fleet.Member
		assigned  publish.Assignment
		offline   bool
		state     v1alpha1.State
		message   string
		available bool
	}{
		{name: "nothing ordered yet", m: member(none, nil), assigned: publish.Assignment{Wait: "the bundle is paused"}, state: v1alpha1.StatePending, message: "the bundle is paused"},
		{name: "ordered, no report", m: member(newDigest, nil), state: v1alpha1.StateWaitApplied, message: "has not reported yet"},
		{name: "ordered, still at the release before", m: member(newDigest, report(oldDigest, 3, bundlefmt.Ready, "")), state: v1alpha1.StateWaitApplied},
		{name: "ordered, without a link", m: member(newDigest, report(oldDigest, 3, bundlefmt.Ready, "")), offline: true, state: v1alpha1.StateWaitApplied, message: "offline: gets it when it is back"},
		{name: "on its way", m: member(newDigest, report(oldDigest, 3, bundlefmt.Downloading, "2 of 9 parts")), state: v1alpha1.StateDownloading, message: "2 of 9 parts"},
		{name: "a failed install is ErrApplied, never NotReady", m: member(newDigest, report(oldDigest, 3, bundlefmt.ErrApplied, "forbidden")), state: v1alpha1.StateErrApplied, message: "forbidden"},
		{name: "same content, but an older release: not confirmed", m: member(newDigest, report(newDigest, 4, bundlefmt.Ready, "")), state: v1alpha1.StateWaitApplied},
		{name: "applied, not healthy", m: member(newDigest, report(newDigest, 5, bundlefmt.NotReady, "0 of 1 Pods")), state: v1alpha1.StateNotReady, message: "0 of 1 Pods"},
		{name: "ready", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), state: v1alpha1.StateReady, available: true},
		{name: "ready without a link is ready", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), offline: true, state: v1alpha1.StateReady, available: true},
		{name: "changed by hand", m: member(newDigest, report(newDigest, 5, bundlefmt.Modified, "replicas")), state: v1alpha1.StateModified, message: "replicas", available: true},
		{name: "ready, a newer release waits", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), assigned: publish.Assignment{Wait: "2 of 2 clusters are updating"}, state: v1alpha1.StateOutOfSync, message: "2 of 2 clusters are updating", available: true},
		{name: "not rendered hides everything else", m: member(newDigest, report(newDigest, 5, bundlefmt.Ready, "")), assigned: publish.Assignment{Failed: true, Wait: "values.yaml: no such key"}, state: v1alpha1.StateErrRendered, message: "values.yaml: no such key", available: true},
		{name: "promised, not published yet", m: member(oldDigest, report(oldDigest, 5, bundlefmt.Ready, "")), assigned: publish.Assignment{Release: rollout.Release{Digest: newDigest}}, state: v1alpha1.StateReady, available: false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.m.Assigned["a"] = c.assigned
			if c.offline {
				c.m.Link = fleet.Offline
			}
			got := stand(c.m, "a")
			if got.State != c.state || got.Message != c.message {
				t.Errorf("got %s %q, want %s %q", got.State, got.Message, c.state, c.message)
			}
			if got := available(c.m, "a"); got != c.available {
				t.Errorf("available is %v", got)
			}
		})
	}
}

func TestTally(t *testing.T) {
	var sum tally
	for range 12 {
		sum.add("not-ready", standing{State: v1alpha1.StateNotReady}, false)
	}
	sum.add("broken", standing{State: v1alpha1.StateErrApplied, Message: "quota"}, true)
	sum.add("fine", standing{State: v1alpha1.StateReady}, false)
	if sum.summary.Desired != 14 || sum.summary.NotReady != 12 || sum.summary.ErrApplied != 1 || sum.summary.Ready != 1 || sum.summary.Offline != 1 {
		t.Errorf("counts: %+v", sum.summary)
	}
	items := sum.worstFirst()
	if len(items) != shown || items[0].Name != "broken" || sum.message() != "broken: quota" || sum.ready() != "1/14" || sum.worst != v1alpha1.StateErrApplied {
		t.Errorf("shows %d, first %+v, message %q, ready %q, worst %s", len(items), items[0], sum.message(), sum.ready(), sum.worst)
	}
}

func TestSince(t *testing.T) {
	t0 := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	first := since("", v1alpha1.StateReady, v1alpha1.BundleStatus{}.StateSince, t0)
	if !first.Time.Equal(t0) {
		t.Errorf("a new state began at %v", first)
	}
	if got := since(v1alpha1.StateReady, v1alpha1.StateReady, first, t0.Add(time.Hour)); !got.Time.Equal(t0) {
		t.Errorf("an unchanged state began at %v", got)
	}
	if got := since(v1alpha1.StateReady, v1alpha1.StateNotReady, first, t0.Add(time.Hour)); !got.Time.Equal(t0.Add(time.Hour)) {
		t.Errorf("a changed state began at %v", got)
	}
}

// TestClip: the API gives a text back as it was only if it is valid UTF-8.
func TestClip(t *testing.T) {
	for in, want := range map[string]string{
		"short":                            "short",
		strings.Repeat("a", 501):           strings.Repeat("a", 500) + "…",
		strings.Repeat("a", 499) + "ü":     strings.Repeat("a", 499) + "…",
		strings.Repeat("a", 499) + "€uros": strings.Repeat("a", 499) + "…",
		"half \xc3":                        "half \uFFFD",
	} {
		if got := clip(in); got != want || !utf8.ValidString(got) {
			t.Errorf("%.20q…: got %q", in, got[max(0, len(got)-10):])
		}
	}
}
