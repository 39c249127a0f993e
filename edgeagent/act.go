package edgeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/apply"
	"shoal.dev/shoal/edgeagent/plan"
	"shoal.dev/shoal/edgeagent/store"
)

// act does what takes long, in a goroutine of its own; what it returns is run by the loop and takes the outcome over.
func (s *site) act(ctx context.Context, a plan.Action) func(now time.Time) {
	switch a.Verb {
	case plan.Remove:
		return s.remove(ctx, a)
	case plan.Check:
		return s.check(ctx, a)
	case plan.Apply, plan.Repair, plan.Rollback, plan.Prune:
		return s.apply(ctx, a)
	}
	return func(time.Time) {}
}

// bundle opens a bundle from disk. The outcome of an error is noted in such a way that the plan asks for the right thing next.
func (s *site) bundle(a plan.Action) (*bundlefmt.Bundle, func(time.Time)) {
	var keys store.Keys
	if err := s.ask(func() error { keys = s.keys(); return nil }); err != nil {
		return nil, func(time.Time) {}
	}
	b, err := s.store.Bundle(a.Release.Digest, keys)
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, store.ErrIncomplete), errors.Is(err, bundlefmt.ErrUntrusted):
		return nil, func(time.Time) { s.onDisk[a.Release.Digest] = false }
	}
	return nil, func(now time.Time) { s.spoiled(a.Deployment, a.Release.Digest, err) }
}

// spoiled notes a bundle whose hashes hold and whose content is not acceptable.
func (s *site) spoiled(name string, d bundlefmt.Digest, err error) {
	s.bad[d] = fmt.Sprintf("bundle %s is not acceptable: %v", d.Short(), err)
	s.log.Error().Err(err).Str("deployment", name).Stringer("digest", d).Msg("bundle refused")
	s.a.metrics.refuse(err)
}

func deployment(a plan.Action, b *bundlefmt.Bundle) apply.Deployment {
	return apply.Deployment{Name: a.Deployment, Serial: a.Release.Serial, Objects: b.Objects(), Policy: a.Release.Policy, Handling: b.Handling()}
}

func (s *site) check(ctx context.Context, a plan.Action) func(time.Time) {
	b, failed := s.bundle(a)
	if failed != nil {
		return failed
	}
	d := deployment(a, b)
	_ = s.ask(func() error {
		s.localFor(a.Deployment).Changed = time.Time{}
		d.Runs = runsOf(s.records[a.Deployment])
		return nil
	})
	ctx, stop, overdue := s.limited(ctx, a, 0)
	defer stop()
	st, err := s.a.applier.Check(ctx, d)
	err = overdue(err)
	return func(now time.Time) {
		if s.stopping(err) {
			return
		}
		s.checked(a, st, err, now)
	}
}

func (s *site) stopping(err error) bool { return err != nil && s.ctx.Err() != nil }

func (s *site) checked(a plan.Action, st apply.Status, err error, now time.Time) {
	l := s.localFor(a.Deployment)
	if err != nil {
		l.Trial.Looked = time.Time{}
		s.failed(a, plan.Check, "cannot look at the cluster: "+err.Error(), now)
		return
	}
	if l.Failed != nil && (l.Failed.Verb == plan.Check || l.Failed.Verb == plan.Repair && st.Modified.Count == 0) {
		l.Failed = nil
	}
	s.keepRuns(a.Deployment, st.Runs)
	s.judge(a, st, now)
	h := &plan.Health{At: now, Modified: st.Modified.Count, SiteValues: st.SiteValues, NotReady: st.NotReady.Count, Failed: st.Failed.Count > 0, Message: describe(st)}
	if h.NotReady > 0 {
		h.Since = now
		if l.Health != nil && l.Health.NotReady > 0 {
			h.Since = l.Health.Since
		}
	}
	if !sameStatus(l.status, &st) {
		s.say.soon(now, s.o.Timing.Report)
	}
	l.Health, l.status, l.errors = h, &st, nil
}

// judge keeps count of a release's trial: for how long it has been seen not to be ready, or that it has been.
func (s *site) judge(a plan.Action, st apply.Status, now time.Time) {
	l, r := s.localFor(a.Deployment), s.records[a.Deployment]
	if r.Applied == nil || r.Applying != nil || r.Good {
		return
	}
	switch {
	case st.NotReady.Count == 0 && st.Missing == 0:
		r.Good, r.Waited, l.Trial = true, 0, plan.Trial{}
	default:
		l.Trial = l.Trial.Look(now)
		if l.Trial.Waited < r.Waited+s.readyTimeout(r.Applied.Policy)/10 {
			return
		}
		r.Waited = l.Trial.Waited
	}
	if err := s.put(r); err != nil {
		s.log.Error().Err(err).Str("deployment", a.Deployment).Msg("keep how the release does")
	}
}

func sameStatus(a, b *apply.Status) bool {
	return a != nil && a.Total == b.Total && a.Ready == b.Ready && a.Modified.Count == b.Modified.Count && a.NotReady.Count == b.NotReady.Count &&
		slices.Equal(a.Modified.First, b.Modified.First) && slices.Equal(a.NotReady.First, b.NotReady.First)
}

// describe says the worst in one line.
func describe(st apply.Status) string {
	pick := func(f apply.Findings, what string) string {
		s := fmt.Sprintf("%d of %d objects %s: %s", f.Count, st.Total, what, f.First[0])
		return s
	}
	switch {
	case st.Modified.Count > 0:
		return pick(st.Modified, "differ from what is ordered")
	case st.NotReady.Count > 0:
		return pick(st.NotReady, "are not ready")
	case st.Unverified.Count > 0:
		return pick(st.Unverified, "cannot be compared")
	case st.Suspended.Count > 0:
		return pick(st.Suspended, "are suspended")
	}
	return ""
}

// failed notes a failure and when to try again.
func (s *site) failed(a plan.Action, v plan.Verb, msg string, now time.Time) {
	l := s.localFor(a.Deployment)
	f := plan.Failure{Verb: v, Serial: a.Release.Serial, Digest: a.Release.Digest, Count: 1, Message: msg}
	if o := l.Failed; o != nil && o.Verb == v && o.Serial == f.Serial && o.Digest == f.Digest {
		f.Count = o.Count + 1
	}
	f.Until = now.Add(s.backoff(f.Count))
	l.Failed = &f
	ev := s.log.Warn()
	if f.Count > 1 {
		ev = s.log.Debug()
	}
	ev.Str("deployment", a.Deployment).Stringer("serial", a.Release.Serial).Str("action", string(v)).Str("why", msg).Int("count", f.Count).
		Time("again", f.Until).Msg("action did not succeed")
}

// apply brings a release to the cluster, or brings it back (Repair, Rollback), or deletes what was held back (Prune).
func (s *site) apply(ctx context.Context, a plan.Action) func(time.Time) {
	b, failed := s.bundle(a)
	if failed != nil {
		return failed
	}
	d := deployment(a, b)
	s.inherit(&d)
	d.Progress = s.waits(a.Deployment)
	var before []bundlefmt.Ref
	if err := s.intend(ctx, a, &d, &before); err != nil {
		return func(now time.Time) {
			if !s.stopping(err) && !superseded(ctx) {
				s.applyFailed(a, err, now)
			}
		}
	}
	ctx, stop, overdue := s.limited(ctx, a, d.HookTime())
	defer stop()
	res, err := s.a.applier.Apply(ctx, d, before)
	if err = overdue(err); err == nil {
		err = res.Err()
	}
	if superseded(ctx) && err != nil {
		return func(time.Time) {
			s.keepRuns(a.Deployment, res.Runs)
			s.log.Info().Str("deployment", a.Deployment).Stringer("serial", a.Release.Serial).Msg("apply ended early: a newer order came")
		}
	}
	d.Runs = res.Runs
	st, cerr := s.a.applier.Check(ctx, d)
	cerr = overdue(cerr)
	return func(now time.Time) {
		if s.stopping(err) || s.stopping(cerr) && err == nil {
			return
		}
		s.keepRuns(a.Deployment, res.Runs) // also of a release that did not succeed: what has run is not run again with the next attempt
		s.applied(a, res, err, now)
		l := s.localFor(a.Deployment)
		if err == nil {
			s.checked(a, st, cerr, now)
		} else if cerr == nil {
			l.status = &st
			l.errors = res.Errors
		}
	}
}

// runsOf are the runs of a record.
func runsOf(r store.Record) []apply.Run {
	out := make([]apply.Run, 0, len(r.Runs))
	for _, x := range r.Runs {
		out = append(out, apply.Run(x))
	}
	return out
}

// keepRuns writes down what has run, or has begun to.
func (s *site) keepRuns(name string, runs []apply.Run) {
	r := s.records[name]
	if r.Name == "" || slices.Equal(runsOf(r), runs) {
		return
	}
	r.Runs = nil
	for _, x := range runs {
		r.Runs = append(r.Runs, store.Run(x))
	}
	s.note(r, "keep what has run")
}

func superseded(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errSuperseded) }

// moves: the action brings another release to the cluster.
func moves(v plan.Verb) bool { return v == plan.Apply || v == plan.Rollback }

// intend writes down everything that the apply may create, together with what is there already, before anything is
// created: after a power cut in the middle all of it is still known, and pruned when it is not wanted.
func (s *site) intend(ctx context.Context, a plan.Action, d *apply.Deployment, before *[]bundlefmt.Ref) error {
	var will []bundlefmt.Ref
	if moves(a.Verb) {
		ctx, stop, overdue := s.limited(ctx, a, 0)
		defer stop()
		var err error
		if will, err = s.a.applier.Inventory(ctx, *d); err != nil {
			return overdue(err)
		}
	}
	return s.ask(func() error {
		l := s.localFor(a.Deployment)
		l.Changed = time.Time{}
		r := s.records[a.Deployment]
		r.Name = a.Deployment
		d.Was, d.Runs = r.Objects, runsOf(r)
		if moves(a.Verb) {
			d.Operation = operation(a.Verb, r)
			rel := store.Release(a.Release)
			d.Before = s.objectsOf(rel.Digest, s.keys(), r.Applied, r.Applying)
			if o := r.Applying; o == nil || o.Serial != rel.Serial || o.Digest != rel.Digest {
				r.Waited, l.Trial = 0, plan.Trial{}
			}
			r.Applying, r.Removing = &rel, false
			r.Refs = union(r.Refs, will)
			r.Linked = a.Verb == plan.Apply && s.link.up && s.o.LinkTimeout > 0 && rel.Policy.Rollback
		}
		*before = r.Refs
		if err := s.put(r); err != nil {
			return fmt.Errorf("nothing was changed on the cluster, because it could not be written down first: %w", err)
		}
		return nil
	})
}

// objectsOf reads what releases state, but for those that are the same as digest. What is not on disk is left out.
func (s *site) objectsOf(but bundlefmt.Digest, keys store.Keys, releases ...*store.Release) func() []bundlefmt.Object {
	return func() (out []bundlefmt.Object) {
		for _, r := range releases {
			if r == nil || r.Digest == but {
				continue
			}
			if b, err := s.store.Bundle(r.Digest, keys); err == nil {
				out = append(out, b.Objects()...)
			}
		}
		return out
	}
}

// operation decides which hooks run. A first installation that did not succeed is still one.
func operation(v plan.Verb, r store.Record) apply.Operation {
	switch {
	case v == plan.Rollback:
		return apply.Rollback
	case r.Applied == nil:
		return apply.Install
	}
	return apply.Upgrade
}

// union keeps the order of a and adds what only b has. The version of an object is no part of what it is; the newer is kept.
func union(a, b []bundlefmt.Ref) []bundlefmt.Ref {
	type id struct{ group, kind, namespace, name string }
	of := func(r bundlefmt.Ref) id { return id{r.Group, r.Kind, r.Namespace, r.Name} }
	at := make(map[id]int, len(a)+len(b))
	out := make([]bundlefmt.Ref, 0, len(a)+len(b))
	for _, r := range slices.Concat(a, b) {
		if i, ok := at[of(r)]; ok {
			out[i] = r
			continue
		}
		at[of(r)] = len(out)
		out = append(out, r)
	}
	return out
}

// applied takes the outcome of an apply or repair over.
func (s *site) applied(a plan.Action, res apply.Result, err error, now time.Time) {
	l := s.localFor(a.Deployment)
	if a.Verb == plan.Repair {
		l.Repairs = l.Repairs.Made(now)
		s.a.metrics.repairs.Inc()
	}
	for _, f := range slices.Concat(res.Taken, res.Kept) {
		s.log.Info().Str("deployment", a.Deployment).Stringer("object", f.Ref).Str("why", string(f.Reason)).Str("detail", f.Message).Msg("object needs attention")
	}
	if err == nil {
		err = s.settle(a, res)
	}
	if err != nil {
		s.applyFailed(a, err, now)
		return
	}
	if moves(a.Verb) {
		l.Health, l.applied, l.Trial = nil, now, plan.Trial{}
	}
	s.wake(now)
	s.a.metrics.applies.WithLabelValues("ok").Inc()
	l.Failed = nil
	s.log.Info().Str("deployment", a.Deployment).Stringer("serial", a.Release.Serial).Str("action", string(a.Verb)).
		Int("objects", res.Total).Int("written", len(res.Written)).Int("pruned", len(res.Pruned)).Msg("applied")
	if a.Verb == plan.Repair {
		s.event(bundlefmt.Event{At: now, Deployment: a.Deployment, Serial: a.Release.Serial, State: bundlefmt.Modified,
			Message: fmt.Sprintf("repaired %d objects that were changed on the site", len(res.Written))})
	}
	if slices.ContainsFunc(res.Written, func(r bundlefmt.Ref) bool { return r.Kind == "CustomResourceDefinition" }) {
		s.facts.due = now // there are new API versions
	}
}

// settle writes down that a release is applied in full.
func (s *site) settle(a plan.Action, res apply.Result) error {
	r := s.records[a.Deployment]
	r.Name, r.Refs = a.Deployment, res.Inventory
	if moves(a.Verb) {
		rel := store.Release(a.Release)
		changed := r.Applied == nil || r.Applied.Digest != rel.Digest
		switch {
		case a.Verb == plan.Rollback:
			r.Good = true
			if r.Previous != nil && r.Previous.Digest == rel.Digest {
				r.Previous = nil
			}
		case changed && r.Good:
			r.Previous, r.Good = r.Applied, false
		case changed:
			r.Good = false
		}
		r.Applied, r.Applying, r.Waited = &rel, nil, 0
	}
	if r.Pruning = ""; res.Held != nil {
		r.Pruning = res.Held.Message
	} else {
		r.Objects = res.Total
	}
	if err := s.put(r); err != nil {
		return fmt.Errorf("applied, but it could not be written down: %w", err)
	}
	return nil
}

func (s *site) applyFailed(a plan.Action, err error, now time.Time) {
	s.a.metrics.applies.WithLabelValues("error").Inc()
	if a.Verb == plan.Apply {
		l := s.localFor(a.Deployment)
		if errors.Is(err, apply.ErrUnavailable) { // says nothing about the release
			l.Trial.Looked = time.Time{}
		} else {
			l.Trial = l.Trial.Look(now)
			if r := s.records[a.Deployment]; r.Name != "" && l.Trial.Waited >= r.Waited+s.readyTimeout(a.Release.Policy)/10 {
				r.Waited = l.Trial.Waited
				if perr := s.put(r); perr != nil {
					s.log.Error().Err(perr).Str("deployment", a.Deployment).Msg("keep how the release does")
				}
			}
		}
	}
	s.failed(a, a.Verb, err.Error(), now)
	if o := (*apply.ObjectErrors)(nil); errors.As(err, &o) {
		s.localFor(a.Deployment).Failed.Waits = waits(o.Findings)
	}
}

// adopt notes an order that asks for no change on the cluster.
func (s *site) adopt(a plan.Action, now time.Time) {
	r := s.records[a.Deployment]
	rel := store.Release(a.Release)
	if !r.Good && r.Applied != nil && r.Applied.Serial != rel.Serial { // somebody wants it tried once more
		r.Waited, s.localFor(a.Deployment).Trial = 0, plan.Trial{}
	}
	r.Applied = &rel
	s.note(r, "keep release")
	s.say.soon(now, 0)
}

// giveUp notes that a release failed. It is not tried again, after a restart either.
func (s *site) giveUp(a plan.Action, now time.Time) {
	r := s.records[a.Deployment]
	r.Rejected = &store.Rejected{Serial: a.Release.Serial, Digest: a.Release.Digest, Reason: a.Message}
	r.Linked = false
	s.note(r, "keep that a release failed")
	s.log.Warn().Str("deployment", a.Deployment).Stringer("serial", a.Release.Serial).Str("why", a.Message).Msg("release is given up")
	s.event(bundlefmt.Event{At: now, Deployment: a.Deployment, Serial: a.Release.Serial, State: bundlefmt.ErrApplied, Message: "release is given up: " + a.Message})
}

// note writes a record whose loss costs no more than finding the same out again: in memory it counts in any case.
func (s *site) note(r store.Record, what string) {
	if err := s.put(r); err != nil {
		s.log.Error().Err(err).Str("deployment", r.Name).Msg(what)
		s.records[r.Name] = r
		s.localFor(r.Name).follow(r)
	}
}

// proveLink ends the time in which the loss of the link counts against a release: a connection was made, or has lasted, since.
func (s *site) proveLink(now time.Time) {
	if !s.link.up {
		return
	}
	for name, r := range s.records {
		l := s.local[name]
		if r.Linked && !l.Busy && (s.link.since.After(l.applied) || !now.Before(l.applied.Add(s.o.LinkTimeout))) {
			r.Linked = false
			s.note(r, "keep that the link is there")
		}
	}
}

func (s *site) remove(ctx context.Context, a plan.Action) func(time.Time) {
	d := apply.Deployment{Name: a.Deployment, Progress: s.waits(a.Deployment)}
	s.inherit(&d)
	var refs []bundlefmt.Ref
	var keys store.Keys
	err := s.ask(func() error {
		s.localFor(a.Deployment).Changed = time.Time{}
		r := s.records[a.Deployment]
		refs, keys = r.Refs, s.keys()
		if rel := cmp.Or(r.Applied, r.Applying); rel != nil {
			d.Serial, d.Policy = rel.Serial, rel.Policy
			if b, err := s.store.Bundle(rel.Digest, keys); err == nil { // for the hooks of its removal; it goes on without them
				d.Objects, d.Handling = b.Objects(), b.Handling()
			}
		}
		r.Name, r.Removing = a.Deployment, true
		return s.put(r)
	})
	var res apply.Removed
	ctx, stop, overdue := s.limited(ctx, a, d.RemovalTime())
	defer stop()
	if err == nil {
		res, err = s.a.applier.Remove(ctx, d, refs, a.Keep)
	}
	if err == nil && len(res.Remaining) == 0 && s.o.Namespace != "" {
		// Before the one on disk: a record that stays on the cluster would come back when the disk is lost.
		err = s.a.applier.DeleteRecord(ctx, a.Deployment)
	}
	err = overdue(err)
	return func(now time.Time) {
		if s.stopping(err) {
			return
		}
		s.removed(a, res, err, now)
	}
}

// stillToGo names what holds a removal up, and counts what only waits for that.
func stillToGo(remaining []apply.Finding) string {
	holding := slices.DeleteFunc(slices.Clone(remaining), func(f apply.Finding) bool { return f.Reason == apply.InProgress })
	if len(holding) == 0 {
		holding = remaining[:1]
	}
	var said []string
	for _, f := range holding[:min(len(holding), 5)] {
		said = append(said, f.String())
	}
	msg := fmt.Sprintf("%d objects are still to go: %s", len(remaining), strings.Join(said, "; "))
	if n := len(remaining) - len(said); n > 0 {
		msg += fmt.Sprintf("; and %d more", n)
	}
	return msg
}

func (s *site) removed(a plan.Action, res apply.Removed, err error, now time.Time) {
	for _, f := range res.Kept {
		s.log.Info().Str("deployment", a.Deployment).Stringer("object", f.Ref).Str("why", f.Message).Msg("object stays")
	}
	if res.Note != "" {
		s.log.Warn().Str("deployment", a.Deployment).Str("why", res.Note).Msg("removal leaves something out")
	}
	r := s.records[a.Deployment]
	switch {
	case err != nil:
		s.failed(a, plan.Remove, "removal did not succeed: "+err.Error(), now)
		return
	case len(res.Remaining) > 0:
		r.Refs = res.Refs()
		if perr := s.put(r); perr != nil {
			s.log.Error().Err(perr).Msg("keep record")
		}
		s.failed(a, plan.Remove, stillToGo(res.Remaining), now)
		s.localFor(a.Deployment).Failed.Waits = waits(res.Remaining)
		return
	}
	if err := s.store.DeleteRecord(a.Deployment); err != nil {
		s.failed(a, plan.Remove, "removed, but it could not be written down: "+err.Error(), now)
		return
	}
	delete(s.records, a.Deployment)
	delete(s.local, a.Deployment)
	s.log.Info().Str("deployment", a.Deployment).Int("objects", len(res.Deleted)).Int("kept", len(res.Kept)).Msg("removed")
	s.wake(now)
	s.event(bundlefmt.Event{At: now, Deployment: a.Deployment, Message: "removed"})
	s.say.soon(now, 0)
}
