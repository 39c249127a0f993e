package plan

import (
	"fmt"
	"strings"
	"time"

	"shoal.dev/shoal/bundlefmt"
)

// wayBack is the release to go back to from want; nil: there is none.
func (x step) wayBack(want Release) *Release {
	if a := x.l.Applied; a != nil && x.l.Good && !(a.Serial == want.Serial && a.Digest == want.Digest) {
		return a
	}
	return x.l.Previous
}

func (x step) timeout(r Release) time.Duration {
	if s := r.Policy.ReadyTimeoutSecond; s > 0 {
		return time.Duration(s) * time.Second
	}
	return x.s.ReadyTimeout
}

// fresh: r is what is there, and it was never ready.
func (x step) fresh(r Release) bool {
	if x.l.Begun != nil {
		return x.l.Begun.Serial == r.Serial && x.l.Begun.Digest == r.Digest
	}
	return x.l.Applied != nil && x.l.Applied.Digest == r.Digest && !x.l.Good
}

// onTrial: r is given up if it does not become ready in time.
func (x step) onTrial(r Release) bool {
	return r.Policy.Rollback && x.timeout(r) > 0 && x.fresh(r) && x.wayBack(r) != nil
}

// deadline is when r has to be looked at for the last time; zero: it is not on trial, or nobody can look.
func (x step) deadline(r Release) time.Time {
	if t := x.l.Trial; x.onTrial(r) && !t.Looked.IsZero() {
		return t.Looked.Add(max(0, x.timeout(r)-t.Waited))
	}
	return time.Time{}
}

// failedTrial says why want, which is applied, is to be given up; empty: it is not.
func (x step) failedTrial(want Release) string {
	p := want.Policy
	if !p.Rollback || p.Paused || x.wayBack(want) == nil {
		return ""
	}
	if by := x.linkDeadline(want); !by.IsZero() && !x.now.Before(by) {
		return fmt.Sprintf("the link to the hub was lost after it was applied and did not come back within %s", span(x.s.LinkTimeout))
	}
	h := x.l.Health
	switch {
	case !x.onTrial(want) || h == nil || h.NotReady == 0:
		return ""
	case h.Failed:
		return "it failed: " + h.Message
	case x.l.Trial.Waited >= x.timeout(want):
		return fmt.Sprintf("it was not ready within %s: %s", span(x.timeout(want)), h.Message)
	}
	return ""
}

// linkDeadline is when r is given up because it may have cut the site off; zero: it has not.
func (x step) linkDeadline(r Release) time.Time {
	l := x.s.Link
	if !r.Policy.Rollback || r.Policy.Paused || !x.l.Linked || x.s.LinkTimeout <= 0 || l.Up || l.Since.IsZero() || x.wayBack(r) == nil {
		return time.Time{}
	}
	return l.Since.Add(x.s.LinkTimeout)
}

// span is a duration as people write it.
func span(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// stuck adds to a message that a release would be given up if there were another one.
func (x step) stuck(r Release, msg string) string {
	if r.Policy.Rollback && x.fresh(r) && x.wayBack(r) == nil && x.timeout(r) > 0 && x.l.Trial.Waited >= x.timeout(r) {
		msg += fmt.Sprintf(" (for %s now; there is no release to go back to, so it is left as it is)", span(x.timeout(r)))
	}
	return msg
}

// goBack leaves want, which was given up, for the release before it, and stays there.
func (x step) goBack(want Release) []Action {
	why := fmt.Sprintf("release %d was given up: %s", want.Serial, x.l.Rejected.Reason)
	if l := x.l; l.whole() && !(l.Applied.Serial == want.Serial && l.Applied.Digest == want.Digest) {
		if st, now := x.standing(); st != bundlefmt.Ready && now != "" {
			why += fmt.Sprintf("; release %d: %s", l.Applied.Serial, now)
		}
		return x.meanwhile(bundlefmt.RolledBack, why, time.Time{}, false)
	}
	back := x.wayBack(want)
	if back == nil { // its record was lost in between
		return []Action{x.wait(time.Time{}, bundlefmt.ErrApplied, why+"; there is no release to go back to")}
	}
	msg := fmt.Sprintf("%s; going back to release %d", why, back.Serial)
	stop := func(until time.Time, because string) Action {
		return x.wait(until, bundlefmt.ErrApplied, msg+": "+because)
	}
	if because, bad := x.s.Bad[back.Digest]; bad {
		return []Action{stop(time.Time{}, because)}
	}
	if !x.s.OnDisk[back.Digest] {
		return []Action{{Verb: Fetch, Deployment: x.name, Release: *back}, stop(time.Time{}, "its bundle is damaged on disk and has to be fetched")}
	}
	if f := x.failure(*back, Rollback); f != nil {
		if x.now.Before(f.Until) {
			return []Action{stop(f.Until, f.Message)}
		}
		msg += ": " + f.Message
	}
	if because, until := x.locked(); because != "" {
		return []Action{stop(until, because)}
	}
	if x.l.Busy {
		return []Action{x.wait(time.Time{}, bundlefmt.ErrApplied, msg)}
	}
	return []Action{x.act(Rollback, *back, bundlefmt.ErrApplied, msg)}
}
