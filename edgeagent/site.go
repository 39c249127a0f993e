package edgeagent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/apply"
	"shoal.dev/shoal/edgeagent/plan"
	"shoal.dev/shoal/edgeagent/store"
	"shoal.dev/shoal/topics"
)

// workers bounds how many deployments are worked on at once: one that hangs must not hold up the others, and an API server
// on a small box has other clients.
const workers = 3

// maxLinger is how long a report waits after a start for the first checks, so that the hub does not see counts of zero.
const maxLinger = 5 * time.Second

// site is everything the agent knows, owned by the goroutine of run.
type site struct {
	a      *Agent
	o      Options
	log    zerolog.Logger
	store  *store.Store
	limits bundlefmt.Limits
	inbox  chan func()
	done   chan struct{} // closed when run has returned
	work   sync.WaitGroup
	ctx    context.Context // of run

	id      store.Identity
	cluster topics.Cluster
	floor   store.Floor
	signers []ed25519.PublicKey // who may sign, now
	desired *bundlefmt.Desired  // nil: none that could be verified
	waiting map[string][]byte   // documents that may be acceptable later, by topic; see receive

	again bool // waiting is being looked at

	windows   []plan.Window // of desired
	windowsOf *bundlefmt.Desired
	locks     locks
	mirror    mirror

	records map[string]store.Record
	local   map[string]*local
	onDisk  map[bundlefmt.Digest]bool
	bad     map[bundlefmt.Digest]string
	fetches map[bundlefmt.Digest]*fetch
	slots   chan struct{} // part subscriptions
	running int
	kept    map[bundlefmt.Digest]bool // bundles that the last collection left

	link  linkState
	facts factsState
	say   reporting

	began time.Time
	retry time.Time // of waiting documents, and of records that could not be written
}

// local is what is known of a deployment beyond its record, which is on disk.
type local struct {
	plan.Local
	started  time.Time // of the last action, for fairness
	status   *apply.Status
	errors   []apply.Finding // why the last apply did not succeed
	standing standing
	doing    string                  // what the action under way waits for
	cancel   context.CancelCauseFunc // of the action under way
	applied  time.Time               // when a release was brought to the cluster by this process
}

// errSuperseded ends an apply between two objects: a newer order came.
var errSuperseded = errors.New("superseded by a newer order")

type standing struct {
	state   bundlefmt.State
	message string
	since   time.Time
}

// newSite reads the disk. What is damaged there is said and left out.
func newSite(a *Agent) (*site, error) {
	s := &site{
		a: a, o: a.o, log: a.log, store: a.store, limits: bundlefmt.DefaultLimits(),
		inbox: make(chan func()), done: make(chan struct{}),
		waiting: map[string][]byte{},
		local:   map[string]*local{},
		onDisk:  map[bundlefmt.Digest]bool{},
		bad:     map[bundlefmt.Digest]string{},
		fetches: map[bundlefmt.Digest]*fetch{},
		slots:   make(chan struct{}, 4),
		began:   time.Now(),
	}
	s.say.init()
	s.mirror.read = a.o.Namespace == ""
	var err error
	if s.records, err = s.store.Records(); err != nil {
		return nil, fmt.Errorf("read data directory: %w", err)
	}
	if s.floor, err = s.store.Floor(); err != nil {
		return nil, fmt.Errorf("read data directory: %w", err)
	}
	_, derr := s.store.Desired()
	s.mirror.fresh = derr != nil && s.floor == store.Floor{}
	for _, r := range s.records {
		s.local[r.Name] = s.localOf(r) // a document is never older than what was applied by it
		s.floor.Desired = max(s.floor.Desired, newest(r))
	}
	id, err := s.store.Identity()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if len(s.records) > 0 {
			s.log.Error().Msg("the identity of this site is lost, but deployments are recorded: they are left as they are until the site has enrolled again")
		}
	case err != nil:
		return nil, fmt.Errorf("read data directory: %w", err)
	default:
		s.identify(id)
	}
	return s, nil
}

func (s *site) localOf(r store.Record) *local {
	l := &local{}
	l.Jitter = rand.Float64() //nolint:gosec // spreads load, keeps no secret
	l.Last, l.Note = r.State, r.Message
	l.standing = standing{r.State, r.Message, r.Since}
	l.Trial.Waited = r.Waited
	l.follow(r)
	return l
}

// follow copies from the record what decisions depend on.
func (l *local) follow(r store.Record) {
	conv := func(r *store.Release) *plan.Release {
		if r == nil {
			return nil
		}
		p := plan.Release(*r)
		return &p
	}
	l.Applied, l.Begun, l.Leaving = conv(r.Applied), conv(r.Applying), r.Removing
	l.Good, l.Previous, l.Pruning, l.Linked = r.Good, conv(r.Previous), r.Pruning, r.Linked
	l.Rejected = (*plan.Rejected)(r.Rejected)
}

// identify takes an identity and whatever documents it makes readable.
func (s *site) identify(id store.Identity) {
	s.id = id
	if !id.Enrolled() {
		return
	}
	s.cluster = topics.Cluster{Workspace: id.Workspace, Name: id.Cluster}
	if err := s.loadTrust(); err != nil {
		s.log.Error().Err(err).Msg("trust document on disk cannot be used: waiting for one from the hub")
	}
	s.loadDesired()
	s.survey(true)
}

func (s *site) loadTrust() error {
	raw, err := s.store.Trust()
	if err != nil {
		return err
	}
	doc, err := bundlefmt.OpenTrust(raw, s.id.Root, s.id.Workspace, 0) // what was accepted stays accepted
	if err != nil {
		return err
	}
	s.signers = doc.Keys
	s.floor.Trust = max(s.floor.Trust, doc.Serial)
	return nil
}

// loadDesired verifies the document on disk as if it had just arrived. It is never below the floor, because it is written
// first; if it is (somebody restored a backup of one file), nothing is done with it.
func (s *site) loadDesired() {
	raw, err := s.store.Desired()
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		var d *bundlefmt.Desired
		if d, err = bundlefmt.OpenDesired(raw, s.keys().Trust(), s.audience(), s.limits); err == nil {
			s.desired = d
			s.floor.Desired, s.floor.Document = d.Serial, bundlefmt.Sum(raw)
			s.log.Info().Stringer("serial", d.Serial).Int("deployments", len(d.Deployments)).Msg("going on with the desired document on disk")
			return
		}
	}
	s.log.Error().Err(err).Msg("desired document on disk cannot be used: keeping what is applied, waiting for one from the hub")
}

func (s *site) audience() bundlefmt.Audience {
	return bundlefmt.Audience{Workspace: s.id.Workspace, Cluster: s.id.Cluster, Floor: s.floor.Desired}
}

// survey finds out which of the bundles that matter are complete on disk: of all of them, or of those not looked at yet.
func (s *site) survey(all bool) {
	for d := range s.needed() {
		if _, known := s.onDisk[d]; known && !all {
			continue
		}
		missing, _, err := s.store.Missing(d, s.keys())
		s.onDisk[d] = err == nil && len(missing) == 0
	}
}

func (s *site) keys() store.Keys { return store.Keys{Public: s.signers, Limits: s.limits} }

// needed are the bundles that are ordered, applied, begun, or the way back.
func (s *site) needed() map[bundlefmt.Digest]bool {
	out := map[bundlefmt.Digest]bool{}
	if s.desired != nil {
		for _, d := range s.desired.Deployments {
			out[d.Digest] = true
		}
	}
	for _, r := range s.records {
		for _, rel := range []*store.Release{r.Applied, r.Applying, r.Previous} {
			if rel != nil {
				out[rel.Digest] = true
			}
		}
	}
	return out
}

// post runs f in the goroutine that owns the site and waits until it has begun to. It reports false when the site is gone.
func (s *site) post(f func()) bool {
	select {
	case s.inbox <- f:
		return true
	case <-s.done:
		return false
	}
}

// ask is post for what has an outcome.
func (s *site) ask(f func() error) error {
	out := make(chan error, 1)
	if !s.post(func() { out <- f() }) {
		return context.Canceled
	}
	return <-out
}

// spawn runs f beside the loop; run's end waits for it.
func (s *site) spawn(f func()) { s.work.Go(f) }

// run is the loop.
func (s *site) run(ctx context.Context) {
	defer close(s.done)
	s.ctx = ctx
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			s.writeStatus(time.Now())
			return
		case f := <-s.inbox:
			f()
			s.drain()
		case <-timer.C:
		}
		now := time.Now()
		next := s.step(now)
		timer.Reset(max(next.Sub(now), 10*time.Millisecond))
	}
}

// drain takes what else is waiting, so that a burst leads to one decision.
func (s *site) drain() {
	for range 64 {
		select {
		case f := <-s.inbox:
			f()
		default:
			return
		}
	}
}

// step decides and begins what is due; it says when something will be due by itself.
func (s *site) step(now time.Time) time.Time {
	if !s.retry.IsZero() && !now.Before(s.retry) {
		s.retry = time.Time{}
		s.reconsider()
	}
	next := now.Add(s.o.Timing.Refresh)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	sooner(s.lookForLocks(now))
	s.proveLink(now)
	s.pile(now)
	actions := plan.Next(s.state(), now)
	wanted := map[bundlefmt.Digest]bool{}
	var todo []plan.Action
	for _, a := range actions {
		switch a.Verb {
		case plan.Fetch:
			wanted[a.Release.Digest] = true
			s.fetch(a)
			continue
		case plan.Wait:
			sooner(a.Until)
			if l := s.local[a.Deployment]; a.Cancel && l != nil && l.cancel != nil {
				l.cancel(errSuperseded)
			}
		case plan.GiveUp:
			s.giveUp(a, now)
			sooner(now)
			continue
		case plan.Adopt:
			s.adopt(a, now)
			sooner(now)
		default:
			todo = append(todo, a)
		}
		if s.mirror.older {
			a.State, a.Message = bundlefmt.Held, older
		}
		s.stand(a, now)
	}
	s.stopFetches(wanted)
	if s.mirror.read && !s.mirror.older { // else it is not known how far this site has come
		s.begin(todo, now)
	}
	s.collect()
	s.forgetStandings(actions)
	if s.desired != nil && !plan.Stale(s.desired, now) {
		sooner(s.desired.StaleAfter)
	}
	sooner(s.retry)
	sooner(s.lookAround(now))
	sooner(s.keepRecords(now))
	sooner(s.report(now))
	return next
}

func (s *site) state() plan.State {
	t := s.o.Timing
	if s.windowsOf != s.desired {
		s.windows, s.windowsOf = nil, s.desired
		if s.desired != nil {
			s.windows = plan.ReadWindows(s.desired.Windows, s.o.Zone, time.LoadLocation)
		}
	}
	st := plan.State{
		Desired: s.desired, Local: make(map[string]plan.Local, len(s.records)), OnDisk: s.onDisk, Bad: s.bad,
		Pace:    plan.Pace{Recheck: t.Recheck, NotReady: t.NotReady, Settle: t.Settle},
		Windows: s.windows, Locks: s.locks.all(), Unread: !s.mirror.read,
		ReadyTimeout: s.o.ReadyTimeout, RemovalShare: s.o.RemovalShare,
		Link: plan.Link{Up: s.link.up, Since: s.link.since}, LinkTimeout: s.o.LinkTimeout,
	}
	for name := range s.records {
		st.Local[name] = s.local[name].Local
	}
	// What was never begun has no record, but may be busy or have failed already.
	for name, l := range s.local {
		if _, ok := s.records[name]; !ok && (l.Busy || l.Failed != nil) && s.ordered(name) {
			st.Local[name] = l.Local
		}
	}
	return st
}

// pile keeps since when removals are held because they are many.
func (s *site) pile(now time.Time) {
	held := plan.Pile(s.state(), now)
	for name, l := range s.local {
		switch {
		case !held[name]:
			l.Piled = time.Time{}
		case l.Piled.IsZero():
			l.Piled = now
		}
	}
}

// wake has those tried again at once that could not go on because of another deployment: one has let go, or it is known what it is
// to be.
func (s *site) wake(now time.Time) {
	for _, l := range s.local {
		f := l.Failed
		if f != nil && (f.Waits || f.Verb == plan.Apply && slices.ContainsFunc(l.errors, func(e apply.Finding) bool { return e.Reason == apply.OwnedByOther })) {
			f.Until = now
		}
	}
}

func (s *site) ordered(name string) bool {
	return s.desired != nil && slices.ContainsFunc(s.desired.Deployments, func(d bundlefmt.Deployment) bool { return d.Name == name })
}

// begin starts actions while there are workers; those that waited longest go first.
func (s *site) begin(todo []plan.Action, now time.Time) {
	slices.SortStableFunc(todo, func(a, b plan.Action) int {
		return s.localFor(a.Deployment).started.Compare(s.localFor(b.Deployment).started)
	})
	for _, a := range todo {
		if s.running == workers {
			return
		}
		l := s.localFor(a.Deployment)
		l.Busy, l.started = true, now
		ctx, cancel := context.WithCancelCause(s.ctx)
		if a.Verb == plan.Apply || a.Verb == plan.Rollback {
			rel := a.Release
			l.Doing, l.cancel = &rel, cancel
		}
		s.running++
		s.spawn(func() {
			defer cancel(nil)
			done := s.act(ctx, a)
			s.post(func() {
				l.Busy, l.Doing, l.cancel, l.doing = false, nil, nil, ""
				s.running--
				done(time.Now())
			})
		})
	}
}

// limited bounds an action whose hooks may take extra, on top of what the action itself may. Before stop, overdue makes of an
// error that the bound led to one that names it.
func (s *site) limited(ctx context.Context, a plan.Action, extra time.Duration) (_ context.Context, stop func(), overdue func(error) error) {
	limit := s.o.Timing.ActionLimit
	if moves(a.Verb) {
		limit = max(limit, s.readyTimeout(a.Release.Policy))
	}
	limit += extra
	ctx, stop = context.WithTimeout(ctx, limit)
	return ctx, stop, func(err error) error {
		if errors.Is(err, context.DeadlineExceeded) && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &tooLong{limit, err}
		}
		return err
	}
}

// tooLong is an error that the bound of an action led to.
type tooLong struct {
	limit time.Duration
	err   error
}

func (t *tooLong) Error() string { return fmt.Sprintf("it took longer than %s", t.limit) }
func (t *tooLong) Unwrap() error { return t.err }

func (s *site) readyTimeout(p bundlefmt.Policy) time.Duration {
	if p.ReadyTimeoutSecond > 0 {
		return time.Duration(p.ReadyTimeoutSecond) * time.Second
	}
	return s.o.ReadyTimeout
}

func (s *site) localFor(name string) *local {
	l := s.local[name]
	if l == nil {
		l = &local{}
		l.Jitter = rand.Float64() //nolint:gosec // spreads load, keeps no secret
		s.local[name] = l
	}
	return l
}

// waits is told what an action waits for while it goes on.
func (s *site) waits(name string) func(string) {
	return func(what string) {
		s.post(func() {
			if l := s.localFor(name); l.Busy {
				l.doing = what
			}
		})
	}
}

// changed notes that something happened on the cluster.
func (s *site) changed(name string) {
	if l := s.local[name]; l != nil && l.Changed.IsZero() {
		l.Changed = time.Now()
	}
}

// put writes a record and takes it over; with the disk full it is neither.
func (s *site) put(r store.Record) error {
	if err := s.store.PutRecord(r); err != nil {
		return err
	}
	s.records[r.Name] = r
	s.localFor(r.Name).follow(r)
	return nil
}

// stand notes where a deployment stands, tells of a transition, and keeps it for the next start.
func (s *site) stand(a plan.Action, now time.Time) {
	l := s.localFor(a.Deployment)
	msg := a.Message
	if a.State == bundlefmt.Downloading && msg == "" {
		msg = s.progress(a.Deployment)
	}
	if l.doing != "" {
		switch msg {
		case "", plan.BeingRemoved:
			msg = l.doing
		default: // how it went the last time
			msg += "; now " + l.doing
		}
	}
	if l.standing.state == a.State {
		if l.standing.message != msg {
			l.standing.message = msg
			s.say.soon(now, s.o.Timing.Report*5)
		}
		return
	}
	was := l.standing.state
	l.standing = standing{a.State, msg, now}
	s.say.soon(now, 0)
	r, recorded := s.records[a.Deployment]
	ev := bundlefmt.Event{At: now, Deployment: a.Deployment, State: a.State, Message: msg}
	if o := s.orderOf(a.Deployment); o != nil {
		ev.Serial = o.Serial
	}
	s.event(ev)
	s.log.Info().Str("deployment", a.Deployment).Str("state", string(a.State)).Str("was", string(was)).Stringer("serial", ev.Serial).
		Str("why", msg).Msg("deployment changed state")
	if recorded {
		r.State, r.Message, r.Since = a.State, msg, now.UTC()
		if err := s.put(r); err != nil { // only where it stood is lost by that
			s.log.Error().Err(err).Msg("keep state of deployment")
		}
	}
}

func (s *site) orderOf(name string) *bundlefmt.Deployment {
	if s.desired != nil {
		for i := range s.desired.Deployments {
			if s.desired.Deployments[i].Name == name {
				return &s.desired.Deployments[i]
			}
		}
	}
	return nil
}

// forgetStandings drops deployments that are neither here nor ordered any more.
func (s *site) forgetStandings(actions []plan.Action) {
	known := map[string]bool{}
	for _, a := range actions {
		known[a.Deployment] = true
	}
	for name, l := range s.local {
		if _, recorded := s.records[name]; !recorded && !known[name] && !l.Busy {
			delete(s.local, name)
			s.say.soon(time.Now(), 0)
		}
	}
}

// collect removes bundles that nobody needs, whenever what is needed has changed.
func (s *site) collect() {
	if !s.id.Enrolled() || s.desired == nil && len(s.records) == 0 {
		return
	}
	need := s.needed()
	if maps.Equal(need, s.kept) {
		return
	}
	n, err := s.store.Collect(need)
	if err != nil {
		s.log.Warn().Err(err).Msg("remove bundles that are not needed")
		return
	}
	s.kept = need
	maps.DeleteFunc(s.onDisk, func(d bundlefmt.Digest, _ bool) bool { return !need[d] })
	maps.DeleteFunc(s.bad, func(d bundlefmt.Digest, _ string) bool { return !need[d] })
	if n > 0 {
		s.log.Debug().Int("bundles", n).Msg("removed bundles that are not needed")
	}
}

// backoff is jittered; count starts at 1.
func (s *site) backoff(count int) time.Duration {
	d := plan.Backoff(count, s.o.Timing.RetryMin, s.o.Timing.RetryMax)
	return d/2 + rand.N(d/2+1) //nolint:gosec // spreads load, keeps no secret
}
