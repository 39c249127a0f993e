package reconcile

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/fleet"
)

func TestTally(t *testing.T) {
	var sum tally
	for range 12 {
		sum.add("not-ready", fleet.Status{State: v1alpha1.StateNotReady}, false)
	}
	sum.add("broken", fleet.Status{State: v1alpha1.StateErrApplied, Message: "quota"}, true)
	sum.add("fine", fleet.Status{State: v1alpha1.StateReady}, false)
	if sum.summary.Desired != 14 || sum.summary.NotReady != 12 || sum.summary.ErrApplied != 1 || sum.summary.Ready != 1 || sum.summary.Offline != 1 {
		t.Errorf("counts: %+v", sum.summary)
	}
	items := sum.causesFirst()
	if len(items) != shown || items[0].Name != "broken" || sum.message() != "broken: quota (and 12 more)" || sum.ready() != "1/14" || sum.worst != v1alpha1.StateErrApplied {
		t.Errorf("shows %d, first %+v, message %q, ready %q, worst %s", len(items), items[0], sum.message(), sum.ready(), sum.worst)
	}
}

// TestHeadline: the message names the cluster that is the cause, and of several the one that does not heal by itself.
func TestHeadline(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 11, n, 0, 0, 0, 0, time.UTC) }
	is := func(s v1alpha1.State, message string, since time.Time) fleet.Status {
		return fleet.Status{State: s, Message: message, Since: since}
	}
	follower := is(v1alpha1.StateOutOfSync, "waits for partition canary", day(1))
	for _, c := range []struct {
		name  string
		items []fleet.Status // of a, b, c …
		want  string
		state v1alpha1.State
	}{
		{"all ready", []fleet.Status{{State: v1alpha1.StateReady}}, "", v1alpha1.StateReady},
		{"one", []fleet.Status{is(v1alpha1.StateNotReady, "0 of 1", day(1))}, "a: 0 of 1", v1alpha1.StateNotReady},
		{"without a message", []fleet.Status{is(v1alpha1.StateNotReady, "", day(1)), is(v1alpha1.StateNotReady, "", day(1))}, "a (and 1 more)", v1alpha1.StateNotReady},
		{"a canary that is not ready, and followers", []fleet.Status{follower, follower, is(v1alpha1.StateNotReady, "0 of 1", day(2))}, "c NotReady: 0 of 1 (and 2 more)", v1alpha1.StateOutOfSync},
		{"a canary that is offline, and followers", []fleet.Status{follower, is(v1alpha1.StateWaitApplied, "offline", day(2))}, "b: offline (and 1 more)", v1alpha1.StateWaitApplied},
		{"a canary whose window is closed, and followers", []fleet.Status{follower, is(v1alpha1.StateHeld, "the window opens at 2", day(2))}, "b Held: the window opens at 2 (and 1 more)", v1alpha1.StateOutOfSync},
		{"first installs that wait for a canary", []fleet.Status{is(v1alpha1.StatePending, "waits", day(1)), is(v1alpha1.StateNotReady, "0 of 1", day(2))}, "b NotReady: 0 of 1 (and 1 more)", v1alpha1.StatePending},
		{"a failure before what is under way", []fleet.Status{is(v1alpha1.StateWaitApplied, "offline", day(1)), is(v1alpha1.StateDownloading, "1 of 2", day(1)), is(v1alpha1.StateRolledBack, "given up", day(2))}, "c: given up (and 2 more)", v1alpha1.StateRolledBack},
		{"what is not ready before what waits to be applied", []fleet.Status{is(v1alpha1.StateWaitApplied, "offline", day(1)), is(v1alpha1.StateNotReady, "0 of 1", day(2))}, "b NotReady: 0 of 1 (and 1 more)", v1alpha1.StateWaitApplied},
		{"of the same state the oldest", []fleet.Status{is(v1alpha1.StateNotReady, "young", day(3)), is(v1alpha1.StateNotReady, "unknown", time.Time{}), is(v1alpha1.StateNotReady, "old", day(1))}, "c: old (and 2 more)", v1alpha1.StateNotReady},
	} {
		t.Run(c.name, func(t *testing.T) {
			var sum tally
			for i, s := range c.items {
				sum.add(string(rune('a'+i)), s, false)
			}
			if got := sum.message(); got != c.want || sum.worst != c.state {
				t.Errorf("got %s %q, want %s %q", sum.worst, got, c.state, c.want)
			}
		})
	}
	// Hundreds of followers do not push the cause out of the list.
	var sum tally
	for range 500 {
		sum.add("s", follower, false)
	}
	sum.add("canary", is(v1alpha1.StateNotReady, "0 of 1", day(2)), false)
	if items := sum.causesFirst(); len(items) != shown || items[0].Name != "canary" {
		t.Errorf("the list shows %+v", items)
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

// TestWord: what somebody said about bundles that are deleted at once holds for all of them, whichever of them it was said on.
func TestWord(t *testing.T) {
	for _, c := range []struct {
		said []string // on each
		want string
	}{
		{[]string{"", ""}, ""}, {[]string{"", "2"}, "2"}, {[]string{"2", ""}, "2"}, {[]string{"7", "2"}, "2"}, {[]string{"2", "7"}, "2"},
		{[]string{"", "7"}, "7"}, {[]string{"2", Keep}, Keep}, {[]string{Keep, ""}, Keep}, {[]string{Keep}, Keep},
	} {
		var bundles []v1alpha1.Bundle
		for _, s := range c.said {
			var b v1alpha1.Bundle
			if s != "" {
				b.Annotations = map[string]string{ConfirmRemoval: s}
			}
			bundles = append(bundles, b)
		}
		if got := word(bundles); got != c.want {
			t.Errorf("%q: got %q, want %q", c.said, got, c.want)
		}
	}
}
