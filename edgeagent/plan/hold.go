package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"shoal.dev/shoal/bundlefmt"
)

// Window is a window of a document, read. One that cannot be read is closed, and Err says why.
type Window struct {
	Download, Apply bool

	opens  cron.Schedule
	zone   *time.Location
	length time.Duration
	err    error
}

var fields = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

// ReadWindows reads the windows of a document. local is the site's own time zone, load finds others by name.
func ReadWindows(ws []bundlefmt.Window, local *time.Location, load func(string) (*time.Location, error)) []Window {
	var out []Window
	for _, w := range ws {
		r := Window{Download: w.Download, Apply: w.Apply, zone: local, length: time.Duration(w.Seconds) * time.Second}
		if w.TimeZone != "" {
			if r.zone, r.err = load(w.TimeZone); r.err != nil {
				r.err = fmt.Errorf("window %q: time zone %q is not known here", w.Schedule, w.TimeZone)
			}
		}
		if r.err == nil {
			r.opens, r.err = readSchedule(w.Schedule)
		}
		out = append(out, r)
	}
	return out
}

// readSchedule keeps what the library would understand beyond five fields (time zones, "@every") out: it is not in the format.
func readSchedule(text string) (cron.Schedule, error) {
	if len(strings.Fields(text)) != 5 || strings.ContainsAny(text, "=@") {
		return nil, fmt.Errorf("window %q: want five fields, as in cron: minute, hour, day of month, month, day of week", text)
	}
	s, err := fields.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("window %q: %w", text, err)
	}
	return s, nil
}

// at says whether the window is open, and if it is not when it opens next. Zero: never.
func (w Window) at(now time.Time) (open bool, next time.Time) {
	now = now.In(w.zone)
	if o := w.opens.Next(now.Add(-w.length)); !o.IsZero() && !o.After(now) {
		return true, o
	}
	return false, w.opens.Next(now)
}

// activity is what windows are for.
type activity int

const (
	applying activity = iota
	downloading
)

// clockSlack is how much older than the newest order a clock may say it is.
const clockSlack = 24 * time.Hour

// closed says why what is not begun yet has to wait for a window, and until when; empty: it may begin.
//
// A clock that is far behind the order opens no window: nobody can tell what time it is at the site, and a change in
// the middle of the day is what windows are there to prevent. Whoever cannot set the clock takes the windows off the cluster.
func (d *decision) closed(what activity) (why string, opens time.Time) {
	var relevant []Window
	for _, w := range d.s.Windows {
		if what == applying && w.Apply || what == downloading && w.Download {
			relevant = append(relevant, w)
		}
	}
	if len(relevant) == 0 {
		return "", time.Time{}
	}
	if s := d.s.Desired; s != nil && d.now.Before(s.IssuedAt.Add(-clockSlack)) {
		return fmt.Sprintf("no window opens while the clock of this site is wrong: it says %s, and the order is of %s; set the clock, or take the windows off the cluster",
			d.now.UTC().Format(time.RFC3339), s.IssuedAt.UTC().Format(time.RFC3339)), time.Time{}
	}
	var bad []string
	for _, w := range relevant {
		if w.err != nil {
			bad = append(bad, w.err.Error())
			continue
		}
		open, next := w.at(d.now)
		if open {
			return "", time.Time{}
		}
		if !next.IsZero() && (opens.IsZero() || next.Before(opens)) {
			opens = next
		}
	}
	why = "no window ever opens"
	if !opens.IsZero() {
		why = "the window opens at " + opens.Format(time.RFC3339)
	}
	if len(bad) > 0 {
		why += "; cannot be read: " + strings.Join(bad, "; ")
	}
	return why, opens
}

// Closed says why new releases wait for a window at now, and until when; empty: no window holds them.
func Closed(s State, now time.Time) (why string, opens time.Time) {
	d := decision{s: &s, now: now}
	return d.closed(applying)
}

// Lock is the site's own say: while it is held nothing is changed.
type Lock struct {
	Name   string
	Holder string // empty: nobody said
	Reason string
	Since  time.Time
	Until  time.Time // zero: nobody said
}

// MaxLock is how long a lock holds after it was taken or renewed, whatever it says: one that was forgotten must not keep a
// site from its updates for ever.
const MaxLock = 7 * 24 * time.Hour

// End is when the lock no longer holds.
func (l Lock) End() time.Time {
	end := l.Since.Add(MaxLock)
	if !l.Until.IsZero() && l.Until.Before(end) {
		end = l.Until
	}
	return end
}

// Held reports whether the lock holds.
func (l Lock) Held(now time.Time) bool { return now.Before(l.End()) }

// String says until when it is held, why, and by whom.
func (l Lock) String() string {
	s := fmt.Sprintf("lock %s until %s", l.Name, l.End().Format(time.RFC3339))
	if l.Reason != "" {
		s += ": " + l.Reason
	}
	if l.Holder != "" {
		s += fmt.Sprintf(" (%s)", l.Holder)
	}
	return s
}

// locked names the lock that ends last; empty: none holds.
func (d *decision) locked() (why string, until time.Time) {
	var last Lock
	n := 0
	for _, l := range d.s.Locks {
		if l.Held(d.now) {
			if n++; n == 1 || l.End().After(last.End()) {
				last = l
			}
		}
	}
	if n == 0 {
		return "", time.Time{}
	}
	why = "held by " + last.String()
	if n > 1 {
		why += fmt.Sprintf("; and %d more", n-1)
	}
	return why, last.End()
}

// Removals are held when they are at least minRemovals and more than removalShare percent of what runs.
const (
	minRemovals  = 3
	removalShare = 50
	// gather is how long after others a removal may come and still be one of them.
	gather = 10 * time.Minute
)

// Pile names the removals that wait for somebody to confirm them, because they are unusually many at once. Those that came within
// gather after them are held with them; a later one is judged by itself, so that neither a forgotten pile holds everything that
// comes after it, nor the number that confirms it changes. Whoever calls this keeps since when in Local.Piled.
func Pile(s State, now time.Time) map[string]bool {
	if s.Desired == nil {
		return nil
	}
	held, _ := pile(&s, now)
	return held
}

// pile is Pile, and how many deployments run. Removals that keep their objects, that have begun, or that were confirmed do not count.
func pile(s *State, now time.Time) (held map[string]bool, total int) {
	var newest time.Time
	held = map[string]bool{}
	var fresh []string
	for _, r := range s.Desired.Remove {
		l, known := s.Local[r.Name]
		switch {
		case !known || l.Leaving || r.Confirmed || r.Keep || l.Applied == nil && l.Begun == nil:
		case l.Piled.IsZero():
			fresh = append(fresh, r.Name)
		default:
			held[r.Name] = true
			if l.Piled.After(newest) {
				newest = l.Piled
			}
		}
	}
	for _, l := range s.Local {
		if l.Applied != nil || l.Begun != nil {
			total++
		}
	}
	if !s.unusual(len(held), total) { // some were taken back
		for n := range held {
			fresh = append(fresh, n)
		}
		clear(held)
	}
	if len(held) > 0 && now.Sub(newest) < gather || s.unusual(len(fresh), total-len(held)) {
		for _, n := range fresh {
			held[n] = true
		}
	}
	return held, total
}

// unusual says whether n removals of total deployments are too many to go by themselves.
func (s *State) unusual(n, total int) bool {
	share := s.RemovalShare
	if share == 0 {
		share = removalShare
	}
	return n >= minRemovals && n*100 > total*share
}

// Ordered is what a deployment is to be, when nothing holds that back for good: nil and true, it is to be removed. What waits for a
// window, a lock or another deployment counts; a paused release, one that was given up and a removal to be confirmed do not.
func Ordered(s State, name string, now time.Time) (want *Release, ok bool) {
	if s.Desired == nil {
		return nil, false
	}
	l := s.Local[name]
	for _, r := range s.Desired.Remove {
		if r.Name == name {
			return nil, !Pile(s, now)[name]
		}
	}
	for _, e := range s.Desired.Deployments {
		if w := Of(e); e.Name == name && !w.Policy.Paused && !l.Rejected.is(w) {
			return &w, true
		}
	}
	return nil, false
}

// depends reports whether anything waits for anything.
func (d *decision) depends() bool {
	for _, r := range d.ordered {
		if len(r.Policy.DependsOn) > 0 {
			return true
		}
	}
	return false
}

// waitsFor says which dependency of want is not in an accepted state.
func (x step) waitsFor(want Release) (bundlefmt.State, string) {
	if x.states == nil {
		return "", ""
	}
	var waits []string
	for _, dep := range want.Policy.DependsOn {
		accepted := dep.States
		if len(accepted) == 0 {
			accepted = []bundlefmt.State{bundlefmt.Ready}
		}
		if _, ok := x.ordered[dep.Name]; !ok {
			waits = append(waits, dep.Name+", which is not ordered for this cluster")
			continue
		}
		st := x.states[dep.Name]
		if l := x.s.Local[dep.Name]; l.Applied != nil && l.Health == nil && !l.Busy { // what was true before a restart may not be now
			waits = append(waits, dep.Name+" (not looked at yet)")
		} else if !slices.Contains(accepted, st) {
			waits = append(waits, fmt.Sprintf("%s (%s)", dep.Name, st))
		}
	}
	if len(waits) == 0 {
		return "", ""
	}
	if c := x.cycle(); c != nil {
		return bundlefmt.ErrApplied, fmt.Sprintf("depends on itself: %s: take one of these out of dependsOn", strings.Join(c, " waits for "))
	}
	return bundlefmt.WaitApplied, "waits for " + strings.Join(waits, ", ")
}

// cycle is the shortest way from the deployment back to itself along dependencies; nil: there is none.
func (x step) cycle() []string {
	from := map[string]string{}
	for queue := []string{x.name}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		for _, dep := range x.ordered[at].Policy.DependsOn {
			if dep.Name == x.name {
				path := []string{x.name}
				for ; at != x.name; at = from[at] {
					path = append(path, at)
				}
				path = append(path, x.name)
				slices.Reverse(path)
				return path
			}
			if _, seen := from[dep.Name]; !seen {
				from[dep.Name] = at
				queue = append(queue, dep.Name)
			}
		}
	}
	return nil
}
