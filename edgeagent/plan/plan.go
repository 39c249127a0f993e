// Package plan decides what an agent does next. It is pure: no clock, disk, network or log; everything a decision depends
// on is in State and now, so a decision that went wrong on a site can be replayed from its report.
//
// Rules that shape it. Absence deletes nothing: only a removal in the desired document leads to Remove, and one that
// would take unusually much waits until somebody has confirmed it. What runs is kept running: while a newer release is
// on its way, refused or held, the one that is applied is still checked and repaired. A deployment waits only for itself,
// and for what it depends on: back-off, downloads and failures of one never delay another.
//
// # What holds a change
//
// A change is an apply of another release, or a removal. It begins only when its dependencies are in an accepted state, no
// lock of the site is held and, if the document has windows for it, one of them is open. Checks and repairs are no change.
// What has begun is finished when its window closes meanwhile, also after a restart; a failed attempt is repeated only in a
// window. Going back from a failed release waits for locks, not for windows or dependencies: the broken one runs.
//
// # The way back
//
// With [bundlefmt.Policy.Rollback] a release is on trial until it has been ready once. It is given up when the time for that
// has passed, or at once when an object says that it will never be ready; what could not be applied is given up after
// the same time. The way back leads to the last release that was ready. A release that was given up is not tried again under
// its serial; a newer serial that names the same bundle is a person's retry. Without a release to go back to, nothing is done:
// a first installation that fails stays as it is, to be looked at, and is not deleted.
package plan

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"shoal.dev/shoal/bundlefmt"
)

// Release is a deployment at one serial, as a desired document ordered it.
type Release struct {
	Serial bundlefmt.Serial
	Digest bundlefmt.Digest
	Policy bundlefmt.Policy
	Parts  int
	Group  string
}

// Equal reports whether two orders say the same.
func (r Release) Equal(o Release) bool {
	return r.Serial == o.Serial && r.Digest == o.Digest && r.Parts == o.Parts && r.Group == o.Group && r.Policy.Equal(o.Policy)
}

// Of is the release that a document's entry orders.
func Of(d bundlefmt.Deployment) Release {
	return Release{Serial: d.Serial, Digest: d.Digest, Policy: d.Policy, Parts: d.Parts, Group: d.Group}
}

// Verb is what to do.
type Verb string

// Verbs. All but Fetch, Wait, Adopt and GiveUp occupy the deployment until they end; only one of them is asked for at a time.
const (
	Fetch    Verb = "fetch"    // get the parts of Release that are not on disk; goes on beside everything else
	Apply    Verb = "apply"    // make the cluster be at Release, prune what it no longer has
	Repair   Verb = "repair"   // apply Release, which is applied already, over what was changed on the site
	Check    Verb = "check"    // compare the cluster with Release; no writes
	Adopt    Verb = "adopt"    // note Release as applied: nothing in it asks for a change on the cluster
	GiveUp   Verb = "give-up"  // note that Release failed, Message being why; what comes next is the way back
	Rollback Verb = "rollback" // make the cluster be at Release again, which ran before
	Prune    Verb = "prune"    // apply Release, which is applied already, to delete what was held back
	Remove   Verb = "remove"   // delete, or with Keep let go of, the objects; then forget the deployment
	Wait     Verb = "wait"     // nothing, until Until or until something happens
)

// Action is what to do with one deployment, and what to say of it meanwhile.
type Action struct {
	Verb       Verb
	Deployment string
	Release    Release   // of all but Remove and Wait
	Keep       bool      // of Remove
	Until      time.Time // of Wait; zero: nothing is due by itself
	Cancel     bool      // of Wait: what is under way is for a release that is not wanted any more

	State   bundlefmt.State // of the deployment; empty on Fetch
	Message string
}

// Local is what the site knows of one deployment. The zero value of each field means: nothing of that kind.
type Local struct {
	Applied *Release // applied in full
	Begun   *Release // its apply began and did not end: the cluster may have half of it
	Leaving bool     // its removal began: the cluster may have half of Applied
	Busy    bool     // an action is under way
	Doing   *Release // that action is an apply or a rollback of this

	Good     bool      // Applied has been ready
	Previous *Release  // ran before Applied and was ready
	Trial    Trial     // of Begun, or else of Applied
	Rejected *Rejected // was given up
	Piled    time.Time // its removal has been held since then because it came with unusually many others, see Pile; zero: it has not
	Pruning  string    // Applied is on the cluster, but deleting what it no longer has is held: why
	Linked   bool      // there was a link when the last apply began, and it is not known yet that there still can be one

	Health  *Health   // what the last check of Applied found; nil: none since the agent started
	Changed time.Time // when the site was first seen to change since that check
	Last    bundlefmt.State
	Note    string // message that goes with Last

	Failed  *Failure
	Repairs Repairs
	Jitter  float64 // 0 ≤ Jitter < 1, the deployment's own: spreads rechecks
}

// whole: the cluster has all of Applied and nothing else, as far as the agent's own doing goes.
func (l Local) whole() bool { return l.Applied != nil && l.Begun == nil && !l.Leaving }

// Health is the outcome of a check.
type Health struct {
	At         time.Time
	Modified   int       // objects that were changed or are missing
	SiteValues int       // of Modified: they differ only in what the site itself fills in, which has changed
	NotReady   int       // objects that are not ready
	Failed     bool      // one of them never will be
	Since      time.Time // of NotReady; zero when all are ready
	Message    string
}

// Failure is an action that ended badly, or has to be repeated.
type Failure struct {
	Verb    Verb
	Serial  bundlefmt.Serial // of the release it was about
	Digest  bundlefmt.Digest
	Count   int       // in a row
	Until   time.Time // not to be tried again before
	Message string
	Waits   bool // nothing is wrong: it waits for another deployment
}

// Rejected is a release that was given up.
type Rejected struct {
	Serial bundlefmt.Serial
	Digest bundlefmt.Digest
	Reason string
}

func (r *Rejected) is(o Release) bool {
	return r != nil && r.Serial == o.Serial && r.Digest == o.Digest
}

// Trial is for how long a release has been looked at without being ready. It counts only time between two looks of one
// process: neither a site that was off, nor an API server that was away, nor a clock that was set uses it up.
type Trial struct {
	Waited time.Duration
	Looked time.Time // zero: nobody could look since
}

// Look counts the time since the last look.
func (t Trial) Look(now time.Time) Trial {
	if !t.Looked.IsZero() {
		t.Waited += max(0, now.Sub(t.Looked))
	}
	t.Looked = now
	return t
}

// Link is the link to the hub.
type Link struct {
	Up    bool
	Since time.Time // of Up, or of its end; zero: neither was seen yet
}

// Repairs counts repairs that did not last.
type Repairs struct {
	Count int
	Last  time.Time
}

// Pace is how often things that tell nothing by themselves are looked at.
type Pace struct {
	Recheck  time.Duration
	NotReady time.Duration
	Settle   time.Duration
}

// State is everything a decision depends on.
type State struct {
	Desired *bundlefmt.Desired // nil: there is none that could be verified
	Local   map[string]Local
	OnDisk  map[bundlefmt.Digest]bool   // bundles that are complete here
	Bad     map[bundlefmt.Digest]string // bundles whose content is not acceptable, and why
	Pace    Pace

	Windows []Window
	Locks   []Lock
	Unread  bool // what the cluster itself has on record is not known yet: a deployment without a record may run all the same

	ReadyTimeout time.Duration // of releases that name none
	Link         Link
	RemovalShare int           // percent; 0: 50
	LinkTimeout  time.Duration // a release after which the link does not come back within this is given up; 0: never
}

// Next says what to do now: for each deployment at most one Fetch and exactly one other action, ordered by name.
//
// Without a desired document the site goes on with what it has: every deployment is kept as it was last ordered.
func Next(s State, now time.Time) []Action {
	d := decision{s: &s, now: now, ordered: map[string]Release{}, removed: map[string]bundlefmt.Removal{}}
	d.read()
	actions := d.all()
	if !d.depends() {
		return actions
	}
	// A second time, with the states that came out: waiting for another one changes no state that others wait for.
	d.states = map[string]bundlefmt.State{}
	for _, a := range actions {
		if a.Verb != Fetch {
			d.states[a.Deployment] = a.State
		}
	}
	return d.all()
}

// decision is one run of Next.
type decision struct {
	s       *State
	now     time.Time
	names   []string
	ordered map[string]Release
	removed map[string]bundlefmt.Removal
	states  map[string]bundlefmt.State // nil: dependencies are not looked at
	pile    map[string]bool            // removals that are held, see Pile
	total   int                        // deployments that run
}

func (d *decision) read() {
	s := d.s
	d.names = slices.Collect(maps.Keys(s.Local))
	if s.Desired != nil {
		for _, e := range s.Desired.Deployments {
			d.ordered[e.Name] = Of(e)
			d.names = append(d.names, e.Name)
		}
		for _, r := range s.Desired.Remove {
			d.removed[r.Name] = r
			d.names = append(d.names, r.Name)
		}
		d.pile, d.total = pile(s, d.now)
	} else {
		for name, l := range s.Local {
			switch {
			case l.Leaving: // whether the order to remove it stands is not known
			case l.Begun != nil:
				d.ordered[name] = *l.Begun
			case l.Applied != nil:
				d.ordered[name] = *l.Applied
			}
		}
	}
	slices.Sort(d.names)
	d.names = slices.Compact(d.names)
}

func (d *decision) all() []Action {
	var out []Action
	for _, name := range d.names {
		l, known := d.s.Local[name]
		one := step{decision: d, name: name, l: l}
		if r, ok := d.removed[name]; ok {
			switch {
			case known:
				out = append(out, one.remove(r)...)
			case d.s.Unread: // to say nothing of it would mean that it is gone
				out = append(out, one.wait(time.Time{}, bundlefmt.WaitApplied, unread))
			}
			continue
		}
		if want, ok := d.ordered[name]; ok {
			out = append(out, one.keep(want)...)
			continue
		}
		if d.s.Desired == nil {
			out = append(out, one.wait(time.Time{}, bundlefmt.WaitApplied, "its removal waits for the desired document"))
			continue
		}
		out = append(out, Action{Verb: Wait, Deployment: name, State: bundlefmt.Orphaned,
			Message: "in neither list of the desired document: left alone; order it again or remove it"})
	}
	return out
}

const unread = "waits for the API server: what ran here before is on record there"

// step decides about one deployment.
type step struct {
	*decision
	name string
	l    Local
	held bool // a pause ordered with a newer release holds for the one that runs as well
}

func (x step) act(v Verb, r Release, st bundlefmt.State, msg string) Action {
	return Action{Verb: v, Deployment: x.name, Release: r, State: st, Message: msg}
}

func (x step) wait(until time.Time, st bundlefmt.State, msg string) Action {
	return Action{Verb: Wait, Deployment: x.name, Until: until, State: st, Message: msg}
}

// BeingRemoved is the message of a removal of which nothing more is known yet.
const BeingRemoved = "is being removed"

func (x step) remove(r bundlefmt.Removal) []Action {
	if x.pile[x.name] {
		return x.meanwhile(bundlefmt.Held, fmt.Sprintf(bundlefmt.RemovalsHeld+"%d of %d deployments; confirm on the hub: kubectl -n %s annotate --overwrite clusters.shoal.dev %s shoal.dev/confirm-removal=%d",
			len(x.pile), x.total, x.s.Desired.Workspace, x.s.Desired.Cluster, len(x.pile)), time.Time{}, false)
	}
	why, until := x.locked()
	if why == "" && !x.l.Leaving {
		why, until = x.closed(applying)
	}
	if why != "" {
		return x.meanwhile(bundlefmt.Held, "its removal waits: "+why, until, false)
	}
	a := Action{Verb: Remove, Deployment: x.name, State: bundlefmt.WaitApplied, Message: BeingRemoved}
	a.Keep = r.Keep || x.l.Applied != nil && x.l.Applied.Policy.KeepResources
	f := x.l.Failed
	if f != nil && f.Verb == Remove {
		a.Message = f.Message
	}
	switch {
	case x.l.Busy:
		a.Verb, a.Cancel = Wait, x.l.Doing != nil
	case f != nil && f.Verb == Remove && x.now.Before(f.Until) && !x.settled():
		a.Verb, a.Until = Wait, f.Until
		if !x.l.Changed.IsZero() {
			a.Until = x.l.Changed.Add(x.s.Pace.Settle)
		}
	}
	return []Action{a}
}

// settled: the site changed, and some time ago.
func (x step) settled() bool {
	return !x.l.Changed.IsZero() && !x.now.Before(x.l.Changed.Add(x.s.Pace.Settle))
}

// keep makes the deployment be at want.
func (x step) keep(want Release) []Action {
	if x.l.Rejected.is(want) {
		return x.goBack(want)
	}
	if x.l.whole() && sameOnCluster(*x.l.Applied, want) {
		if x.l.Applied.Equal(want) && !x.l.Busy {
			if why := x.failedTrial(want); why != "" {
				return []Action{x.act(GiveUp, want, bundlefmt.NotReady, why)}
			}
		}
		out := x.stay(want)
		if last := &out[len(out)-1]; last.Verb == Wait {
			last.Until = earliest(last.Until, x.linkDeadline(want))
		}
		return out
	}
	if x.s.Unread && x.l.Applied == nil && x.l.Begun == nil {
		return []Action{x.wait(time.Time{}, bundlefmt.WaitApplied, unread)}
	}
	if want.Policy.Paused {
		return x.meanwhile(bundlefmt.Held, fmt.Sprintf("release %d is held: the bundle is paused", want.Serial), time.Time{}, true)
	}
	if why, bad := x.s.Bad[want.Digest]; bad {
		return x.meanwhile(bundlefmt.Refused, why, time.Time{}, false)
	}
	if !x.s.OnDisk[want.Digest] {
		if why, until := x.closed(downloading); why != "" {
			return x.meanwhile(bundlefmt.Held, "its download waits: "+why, until, false)
		}
		fetch := Action{Verb: Fetch, Deployment: x.name, Release: want}
		return append([]Action{fetch}, x.meanwhile(bundlefmt.Downloading, "", time.Time{}, false)...)
	}
	st, msg := bundlefmt.WaitApplied, ""
	f := x.failure(want, Apply)
	if f != nil {
		if x.onTrial(want) && x.l.Trial.Waited >= x.timeout(want) && !x.l.Busy && !f.Waits {
			return []Action{x.act(GiveUp, want, bundlefmt.ErrApplied, fmt.Sprintf("it could not be applied within %s: %s", span(x.timeout(want)), f.Message))}
		}
		if st, msg = bundlefmt.ErrApplied, x.stuck(want, f.Message); f.Waits {
			st = bundlefmt.WaitApplied
		}
		if until := earliest(f.Until, x.deadline(want)); x.now.Before(until) {
			return x.meanwhile(st, msg, until, false)
		}
	}
	if hst, why, until := x.hold(want, f); why != "" {
		if f != nil {
			hst, why = st, msg+"; tried again later: "+why
		}
		return x.meanwhile(hst, why, until, false)
	}
	if x.l.Busy {
		a := x.wait(time.Time{}, st, msg)
		a.Cancel = x.l.Doing != nil && !x.l.Doing.Equal(want)
		return []Action{a}
	}
	return []Action{x.act(Apply, want, st, msg)}
}

// hold says what keeps an apply of want from beginning now, and until when if that is known. f is how it failed before.
func (x step) hold(want Release, f *Failure) (st bundlefmt.State, why string, until time.Time) {
	if st, why := x.waitsFor(want); why != "" {
		return st, why, time.Time{}
	}
	if why, until := x.locked(); why != "" {
		return bundlefmt.Held, why, until
	}
	if f == nil && x.l.Begun != nil && x.l.Begun.Equal(want) { // half of it is there: a restart came between
		return "", "", time.Time{}
	}
	why, until = x.closed(applying)
	return bundlefmt.Held, why, until
}

// meanwhile goes on with the release that is applied while the wanted one cannot be. The state is that of the wanted one.
func (x step) meanwhile(st bundlefmt.State, msg string, until time.Time, paused bool) []Action {
	if !x.l.whole() || x.l.Busy { // half of another release is no state to go back to by itself
		return []Action{x.wait(until, st, msg)}
	}
	x.held = paused
	out := x.stay(*x.l.Applied)
	for i := range out {
		if out[i].Verb == Fetch {
			continue
		}
		out[i].State, out[i].Message = st, msg
		if out[i].Verb == Wait {
			out[i].Until = earliest(out[i].Until, until)
		}
	}
	return out
}

// stay keeps what is applied: looks, and repairs if that is ordered.
func (x step) stay(want Release) []Action {
	st, msg := x.standing()
	if x.l.Busy {
		return []Action{x.wait(time.Time{}, st, msg)}
	}
	if !x.l.Applied.Equal(want) {
		return []Action{x.act(Adopt, want, st, msg)}
	}
	if !x.s.OnDisk[want.Digest] { // damaged since: without it there is nothing to compare with
		if why, bad := x.s.Bad[want.Digest]; bad {
			return []Action{x.wait(time.Time{}, bundlefmt.Refused, why)}
		}
		return []Action{{Verb: Fetch, Deployment: x.name, Release: want}, x.wait(time.Time{}, st, msg)}
	}
	if f := x.failure(want, Repair); f != nil && x.now.Before(f.Until) {
		return []Action{x.wait(f.Until, bundlefmt.ErrApplied, f.Message)}
	}
	if x.l.Pruning != "" && want.Policy.ConfirmPrune {
		if f := x.failure(want, Prune); f != nil && x.now.Before(f.Until) {
			return []Action{x.wait(f.Until, bundlefmt.ErrApplied, f.Message)}
		}
		why, until := x.locked()
		if why == "" {
			why, until = x.closed(applying)
		}
		if why == "" {
			return []Action{x.act(Prune, want, st, msg)}
		}
		due := x.checkDue()
		if x.now.Before(due) {
			return []Action{x.wait(earliest(until, due), bundlefmt.Held, x.l.Pruning+"; "+why)}
		}
	}
	if f := x.failure(want, Check); f != nil {
		if x.now.Before(f.Until) {
			return []Action{x.wait(f.Until, st, msg)}
		}
		return []Action{x.act(Check, want, st, msg)}
	}
	due := x.checkDue()
	if !x.now.Before(due) {
		return []Action{x.act(Check, want, st, msg)}
	}
	// New values of the site are no drift: they are wanted. With drift beside them that is not to be corrected, they wait.
	h := x.l.Health
	repair := h.Modified > 0 && (want.Policy.CorrectDrift || h.SiteValues == h.Modified)
	if !repair || want.Policy.Paused || x.held {
		return []Action{x.wait(due, st, msg)}
	}
	if after := x.l.Repairs.after(); x.now.Before(after) {
		msg = fmt.Sprintf("changed again after each of %d repairs: another controller or a person works against the bundle: %s", x.l.Repairs.Count, msg)
		return []Action{x.wait(earliest(after, due), st, msg)}
	}
	return []Action{x.act(Repair, want, st, msg)}
}

// standing is what to say of a deployment that is as ordered.
func (x step) standing() (bundlefmt.State, string) {
	if f := x.l.Failed; f != nil && x.failure(*x.l.Applied, f.Verb) == f {
		switch f.Verb {
		case Repair, Prune:
			return bundlefmt.ErrApplied, f.Message
		case Check: // nobody knows how it stands: not to be called ready
			return bundlefmt.NotReady, f.Message
		}
	}
	h := x.l.Health
	switch {
	case h == nil && slices.Contains([]bundlefmt.State{bundlefmt.Ready, bundlefmt.NotReady, bundlefmt.Modified}, x.l.Last):
		return x.l.Last, x.l.Note
	case h == nil:
		return bundlefmt.NotReady, "not looked at yet"
	case h.Modified > 0:
		return bundlefmt.Modified, h.Message
	case h.NotReady > 0:
		return bundlefmt.NotReady, x.stuck(*x.l.Applied, h.Message)
	case x.l.Pruning != "":
		return bundlefmt.Held, x.l.Pruning
	}
	return bundlefmt.Ready, h.Message
}

func (x step) failure(r Release, v Verb) *Failure {
	if f := x.l.Failed; f != nil && f.Verb == v && f.Serial == r.Serial && f.Digest == r.Digest {
		return f
	}
	return nil
}

// checkDue is when the cluster is to be looked at again.
func (x step) checkDue() time.Time {
	h := x.l.Health
	if h == nil {
		return time.Time{}
	}
	p := x.s.Pace
	due := h.At.Add(time.Duration(float64(p.Recheck) * (0.75 + 0.5*x.l.Jitter)))
	if h.NotReady > 0 {
		// What has not become ready for long is looked at less often; progress is told by the watch.
		every := min(max(h.At.Sub(h.Since)/4, p.NotReady), 20*p.NotReady)
		if x.onTrial(*x.l.Applied) {
			every = p.NotReady
			due = earliest(due, x.deadline(*x.l.Applied))
		}
		due = earliest(due, h.At.Add(every))
	}
	if !x.l.Changed.IsZero() {
		due = earliest(due, x.l.Changed.Add(p.Settle))
	}
	return due
}

// sameOnCluster: going from a to b needs no write. A policy field that is not known to be harmless is not: it matters
// only to a later change (its way back, what it waits for, what it may delete), or to what is reported.
func sameOnCluster(a, b Release) bool {
	harmless := func(p bundlefmt.Policy) bundlefmt.Policy {
		p.CorrectDrift, p.CorrectDriftStrict, p.Paused, p.KeepResources, p.ReadyTimeoutSecond = false, false, false, false, 0
		p.Rollback, p.WaitForJobs, p.DependsOn = false, false, nil
		p.ConfirmPrune, p.DeleteNamespace, p.DeleteCRDs, p.DeleteVolumes = false, false, false, false
		return p
	}
	return a.Digest == b.Digest && harmless(a.Policy).Equal(harmless(b.Policy))
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
