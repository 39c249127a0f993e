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
