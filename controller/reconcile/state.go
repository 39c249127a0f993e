// Package reconcile connects the Kubernetes API to the pure parts of the hub, one file per kind: read, decide, act, and
// write the status once.
//
//	Bundle   targets → rendered releases → rollout → assignments, one per cluster     (bundle.go)
//	Cluster  assignments + what was ordered → desired document → topics               (cluster.go)
//	both     what clusters report → status                                            (state.go)
package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/fleet"
)

// tally counts deployments by state and remembers the ones to show.
type tally struct {
	summary v1alpha1.Summary
	worst   v1alpha1.State
	items   []v1alpha1.NotReadyItem
}

// severity orders states for summaries, worst first. It is bundlefmt's order with the hub's own states put in.
var severity = []v1alpha1.State{
	v1alpha1.StateErrRendered, v1alpha1.StateErrApplied, v1alpha1.StateRefused, v1alpha1.StateRolledBack, v1alpha1.StateWaitApplied,
	v1alpha1.StateDownloading, v1alpha1.StateModified, v1alpha1.StateOutOfSync, v1alpha1.StateHeld, v1alpha1.StateRemoving, v1alpha1.StatePending,
	v1alpha1.StateOrphaned, v1alpha1.StateStale, v1alpha1.StateNotReady, v1alpha1.StateReady,
}

// causes orders states for the headline: first what does not end by itself, then what may, then what is only under way, and last
// what waits for others. It is not the order of severity: there a canary that is NotReady comes behind the clusters that wait for it.
var causes = []v1alpha1.State{
	v1alpha1.StateErrRendered, v1alpha1.StateErrApplied, v1alpha1.StateRefused, v1alpha1.StateRolledBack,
	v1alpha1.StateNotReady, v1alpha1.StateModified, v1alpha1.StateOrphaned, v1alpha1.StateStale,
	v1alpha1.StateHeld, v1alpha1.StateRemoving, v1alpha1.StateDownloading, v1alpha1.StateWaitApplied,
	v1alpha1.StateOutOfSync, v1alpha1.StatePending,
}

// worse says whether a state is worse than another; an empty one is better than all.
func worse(a, b v1alpha1.State) bool {
	return b == "" || slices.Index(severity, a) < slices.Index(severity, b)
}

func (t *tally) add(name string, s fleet.Status, offline bool) {
	t.summary.Desired++
	*t.count(s.State)++
	if offline {
		t.summary.Offline++
	}
	t.note(name, s)
}

// leaving counts a deployment that is to go and is not gone yet: it is none of those there should be.
func (t *tally) leaving(name string, s fleet.Status) {
	t.summary.Removing++
	t.note(name, s)
}

func (t *tally) note(name string, s fleet.Status) {
	if worse(s.State, t.worst) {
		t.worst = s.State
	}
	if s.State != v1alpha1.StateReady {
		t.items = append(t.items, v1alpha1.NotReadyItem{Name: name, State: s.State, Message: clip(s.Message), Since: metav1.NewTime(s.Since)})
	}
}

func (t *tally) count(s v1alpha1.State) *int32 {
	c := &t.summary
	switch s {
	case v1alpha1.StateReady:
		return &c.Ready
	case v1alpha1.StateNotReady:
		return &c.NotReady
	case v1alpha1.StateOutOfSync:
		return &c.OutOfSync
	case v1alpha1.StateModified:
		return &c.Modified
	case v1alpha1.StateWaitApplied:
		return &c.WaitApplied
	case v1alpha1.StateErrRendered:
		return &c.ErrRendered
	case v1alpha1.StateErrApplied:
		return &c.ErrApplied
	case v1alpha1.StateDownloading:
		return &c.Downloading
	case v1alpha1.StateRefused:
		return &c.Refused
	case v1alpha1.StateRolledBack:
		return &c.RolledBack
	case v1alpha1.StateHeld:
		return &c.Held
	case v1alpha1.StateOrphaned:
		return &c.Orphaned
	}
	return &c.Pending
}

// shown is how many names a status lists; the counts cover all.
const shown = 10

// causesFirst returns the items to show: causes before what follows from them, and of the same state the oldest first.
func (t *tally) causesFirst() []v1alpha1.NotReadyItem {
	slices.SortStableFunc(t.items, func(a, b v1alpha1.NotReadyItem) int {
		if c := cmp.Compare(slices.Index(causes, a.State), slices.Index(causes, b.State)); c != 0 || a.Since.Equal(&b.Since) {
			return c
		}
		if b.Since.IsZero() || !a.Since.IsZero() && a.Since.Before(&b.Since) {
			return -1
		}
		return 1
	})
	if len(t.items) == 0 {
		return nil
	}
	return t.items[:min(shown, len(t.items))]
}

// message is one line for people: what most likely needs them, and how much else is not ready. It is the only place that makes a
// headline of many.
func (t *tally) message() string {
	items := t.causesFirst()
	if len(items) == 0 {
		return ""
	}
	out := items[0].Name
	if items[0].State != t.worst {
		out += " " + string(items[0].State)
	}
	if items[0].Message != "" {
		out += ": " + items[0].Message
	}
	if n := len(t.items) - 1; n > 0 {
		out += fmt.Sprintf(" (and %d more)", n)
	}
	return out
}

func (t *tally) ready() string { return fmt.Sprintf("%d/%d", t.summary.Ready, t.summary.Desired) }

// clip keeps messages of foreign origin from filling a status. It cuts between characters: half of one would come back from the
// API as another, and the status would be written again at every look.
func clip(s string) string {
	const most = 500
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= most {
		return s
	}
	cut := most
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// since is when a shown state began: now if it just changed.
func since(old, state v1alpha1.State, at metav1.Time, now time.Time) metav1.Time {
	if old == state && !at.IsZero() {
		return at
	}
	return metav1.NewTime(now.Truncate(time.Second))
}
