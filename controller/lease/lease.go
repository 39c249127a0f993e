// Package lease lets one hub at a time work on an API. It keeps a Lease in the hub's namespace and renews it every two
// seconds; the same requests tell whether the API answers, and whether it was put back to an older state.
//
// The fence: requests through Guard and messages through Carrier wait until the Lease is held and the API has answered the last
// renewal. A hub that cannot renew stops writing and publishing before another one may begin, and goes on by itself when
// the Lease is still its own afterwards: an API that is away costs no restart, and no connection of an agent.
package lease

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/connrotation"

	"shoal.dev/shoal/internal/mqtt"
)

// Name of the Lease.
const Name = "shoal-controller"

const (
	// Duration is how long a hub that is gone keeps the next one waiting, unless it stopped in order.
	Duration = 15 * time.Second
	// interval between renewals; timeout of one.
	interval = 2 * time.Second
	timeout  = 5 * time.Second
	// margin is left between the last write of a hub that cannot renew and the first of the next: requests take time.
	margin = 3 * time.Second
	// remind is how often the log repeats what goes on.
	remind = time.Minute
)

var (
	// ErrTaken: another hub has the Lease now.
	ErrTaken = errors.New("another hub took over")
	// ErrWentBack: what this hub has read is newer than what the API has now. Its watches would wait for revisions that were used
	// for something else, so everything has to be read anew.
	ErrWentBack = errors.New("the Kubernetes API went back to an older state (restored from a backup?)")
)

// Options of Acquire.
type Options struct {
	Kubernetes *rest.Config
	Namespace  string
	// Holder is the same over restarts of one hub, and different for every other: a hub takes its own Lease back at once.
	Holder string
	Log    zerolog.Logger
}

// Lease is safe for concurrent use.
type Lease struct {
	o          Options
	client     coordinationclient.LeaseInterface
	namespaces corev1client.NamespaceInterface
	dialer     *connrotation.Dialer // of guarded connections

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when something below changes
	mine     *coordinationv1.Lease
	sent     []metav1.MicroTime // of the renewals without an answer since then: each of them may have been done
	until    time.Time          // end of what was renewed last
	answered time.Time
	failure  error // why the last attempt failed; nil: it did not
	failing  time.Time
	reminded time.Time
	other    string // who has it, while we wait
	over     error  // nothing may be written any more
	seen     func() []Seen
}

// Seen is what the hub has read of a kind.
type Seen struct {
	Revision string                                // the newest one
	Now      func(context.Context) (string, error) // asks the API for the one of today
}

// Compare makes every renewal compare what it wrote with what the hub had seen before. The Lease alone does not show that the API
// went back to a time since the renewal before.
func (l *Lease) Compare(seen func() []Seen) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = seen
}

// State is what a Lease knows, for probes and metrics.
type State struct {
	Held     bool
	Other    string    // the holder that is waited for
	Answered time.Time // when the API last answered; zero: never
	Failure  error     // why it does not answer now
}

// New prepares a Lease that is not held.
func New(o Options) (*Lease, error) {
	cfg := rest.CopyConfig(o.Kubernetes)
	// A connection of its own for each request that hangs: the next one must not wait behind it.
	cfg.NextProtos = []string{"http/1.1"}
	cfg.QPS = -1
	c, err := coordinationclient.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("reach the hub's Kubernetes API at %s: %w", o.Kubernetes.Host, err)
	}
	n, err := corev1client.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("reach the hub's Kubernetes API at %s: %w", o.Kubernetes.Host, err)
	}
	return &Lease{
		o: o, client: c.Leases(o.Namespace), namespaces: n.Namespaces(), changed: make(chan struct{}),
		dialer: connrotation.NewDialer((&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 10 * time.Second}).DialContext),
	}, nil
}

// Acquire waits until the Lease is held. An API that does not answer is waited for as well; one that refuses is an error.
func (l *Lease) Acquire(ctx context.Context) error {
	var seen *coordinationv1.Lease // what the other holder wrote last, and when that was noticed: clocks may differ
	var since time.Time
	for {
		found, err := l.read(ctx)
		now := time.Now()
		switch {
		case err != nil:
		case found == nil:
			found = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: l.o.Namespace, Name: Name}}
			if err = l.write(ctx, found); apierrors.IsNotFound(err) {
				err = l.makeNamespace(ctx)
			}
		case l.free(found):
			err = l.write(ctx, found)
		case seen == nil || seen.ResourceVersion != found.ResourceVersion:
			seen, since = found, now
			l.waiting(holder(found))
		case now.Sub(since) > lasts(found):
			l.o.Log.Warn().Str("holder", holder(found)).Msg("the other hub does not renew its Lease any more: taking over")
			err = l.write(ctx, found)
		}
		if l.State().Held {
			l.o.Log.Info().Str("lease", l.o.Namespace+"/"+Name).Str("holder", l.o.Holder).Msg("this hub has the Lease")
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			if Refused(err) {
				return fmt.Errorf("take the Lease %s/%s: %w (the hub's identity needs get, create and update on leases.coordination.k8s.io)", l.o.Namespace, Name, err)
			}
			l.failed(err, now)
		}
		if !sleep(ctx, interval/2) {
			return ctx.Err()
		}
	}
}

func (l *Lease) makeNamespace(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.o.Namespace}}
	_, err := l.namespaces.Create(ctx, ns, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make namespace %s: %w", l.o.Namespace, err)
	}
	return nil
}

func holder(x *coordinationv1.Lease) string {
	if x.Spec.HolderIdentity == nil {
		return ""
	}
	return *x.Spec.HolderIdentity
}

func lasts(x *coordinationv1.Lease) time.Duration {
	if x.Spec.LeaseDurationSeconds == nil {
		return Duration
	}
	return time.Duration(*x.Spec.LeaseDurationSeconds) * time.Second
}

func (l *Lease) free(x *coordinationv1.Lease) bool {
	h := holder(x)
	return h == "" || h == l.o.Holder
}

// Run renews the Lease until ctx ends, or until it must not be used any more.
func (l *Lease) Run(ctx context.Context) error {
	for sleep(ctx, interval) {
		err := l.renew(ctx)
		if errors.Is(err, ErrTaken) || errors.Is(err, ErrWentBack) {
			l.mu.Lock()
			l.over = err
			l.change()
			l.mu.Unlock()
			return err
		}
	}
	return nil
}

func (l *Lease) renew(ctx context.Context) error {
	l.mu.Lock()
	next := l.mine.DeepCopy()
	l.mu.Unlock()
	err := l.write(ctx, next)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		err = l.compare(ctx)
	}
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrTaken) || errors.Is(err, ErrWentBack) {
		return err
	}
	l.failed(err, time.Now())
	return err
}

// compare finds out why the Lease is not as this hub left it.
func (l *Lease) compare(ctx context.Context) error {
	l.mu.Lock()
	mine, sent := l.mine, slices.Clone(l.sent)
	l.mu.Unlock()
	found, err := l.read(ctx)
	if err != nil {
		return err
	}
	if found == nil {
		return l.restore(ctx, mine)
	}
	if older(found.ResourceVersion, mine.ResourceVersion) {
		return fmt.Errorf("%w: its Lease is at revision %s, this hub wrote %s", ErrWentBack, found.ResourceVersion, mine.ResourceVersion)
	}
	if holder(found) != l.o.Holder {
		return fmt.Errorf("%w: %q has the Lease %s/%s", ErrTaken, holder(found), l.o.Namespace, Name)
	}
	at := found.Spec.RenewTime
	if ours := slices.ContainsFunc(sent, func(t metav1.MicroTime) bool { return at.Equal(&t) }); !ours && !at.Equal(mine.Spec.RenewTime) {
		return fmt.Errorf("%w: it has the same identity %q: is the data directory a copy?", ErrTaken, l.o.Holder)
	}
	return l.write(ctx, found) // somebody edited it, or the answer to a renewal was lost
}

// restore makes a Lease again that was deleted, unless the API went back to a time before it.
func (l *Lease) restore(ctx context.Context, mine *coordinationv1.Lease) error {
	short, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	list, err := l.client.List(short, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	if older(list.ResourceVersion, mine.ResourceVersion) {
		return fmt.Errorf("%w: it is at revision %s, this hub wrote %s", ErrWentBack, list.ResourceVersion, mine.ResourceVersion)
	}
	l.o.Log.Warn().Msg("the hub's Lease was deleted: it is made again")
	return l.write(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: l.o.Namespace, Name: Name}})
}

// older compares revisions of one API server, which count up.
func older(a, b string) bool {
	x, err1 := strconv.ParseUint(a, 10, 64)
	y, err2 := strconv.ParseUint(b, 10, 64)
	return err1 == nil && err2 == nil && x < y
}

// read returns nil if there is no Lease.
func (l *Lease) read(ctx context.Context) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	found, err := l.client.Get(ctx, Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return found, err
}

// write makes x ours, on the condition that nobody has changed it since it was read.
func (l *Lease) write(ctx context.Context, x *coordinationv1.Lease) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	now := metav1.NewMicroTime(time.Now().Truncate(time.Microsecond)) // as it is stored
	if holder(x) != l.o.Holder {
		n := int32(0)
		if x.Spec.LeaseTransitions != nil {
			n = *x.Spec.LeaseTransitions + 1
		}
		x.Spec.LeaseTransitions, x.Spec.AcquireTime = &n, &now
	}
	seconds := int32(Duration / time.Second)
	x.Spec.HolderIdentity, x.Spec.LeaseDurationSeconds, x.Spec.RenewTime = &l.o.Holder, &seconds, &now
	l.mu.Lock()
	l.sent = append(l.sent, now)
	var seen []Seen
	if l.seen != nil {
		seen = l.seen()
	}
	l.mu.Unlock()
	begin := time.Now()
	var err error
	if x.ResourceVersion == "" {
		x, err = l.client.Create(ctx, x, metav1.CreateOptions{})
	} else {
		x, err = l.client.Update(ctx, x, metav1.UpdateOptions{})
	}
	if err == nil {
		err = lost(ctx, seen, x.ResourceVersion)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil {
		l.o.Log.Info().Stringer("after", time.Since(l.failing).Round(time.Second)).Msg("the Kubernetes API answers again, the Lease is renewed")
		l.dialer.CloseAll() // connections from before may hang for a long time
	}
	l.mine, l.sent, l.until = x, nil, begin.Add(Duration-margin)
	l.answered, l.failure, l.other = time.Now(), nil, ""
	l.change()
	return nil
}

// lost says whether the API does not know any more what the hub has seen, now that it has written a newer revision. Kinds may be in
// different datastores, so in doubt a kind is compared with itself.
func lost(ctx context.Context, seen []Seen, written string) error {
	for _, s := range seen {
		if older(s.Revision, written) {
			continue
		}
		now, err := s.Now(ctx)
		if err != nil {
			return err
		}
		if older(now, s.Revision) {
			return fmt.Errorf("%w: it is at revision %s, this hub has seen %s", ErrWentBack, now, s.Revision)
		}
	}
	return nil
}

func (l *Lease) waiting(other string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered, l.failure = time.Now(), nil
	if l.other != other {
		l.o.Log.Warn().Str("holder", other).Str("lease", l.o.Namespace+"/"+Name).
			Msg("another hub works on this API: this one waits until that one stops, or has not renewed its Lease for 15 s")
	}
	l.other = other
}

func (l *Lease) failed(err error, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure == nil {
		l.failing, l.reminded = now, time.Time{}
	}
	l.failure = err
	message := "the Kubernetes API does not answer: nothing is ordered until it does; sites go on with what they have"
	if Refused(err) {
		l.answered = now
		message = "the Kubernetes API refuses the hub's Lease: nothing is ordered until it is renewed; sites go on with what they have"
	}
	if now.Sub(l.reminded) >= remind {
		l.reminded = now
		l.o.Log.Error().Err(err).Time("last_answer", l.since()).Msg(message)
	}
	l.change()
}

// Refused tells an answer that is no from no answer.
func Refused(err error) bool {
	var s apierrors.APIStatus
	return errors.As(err, &s) && s.Status().Code < 500 && s.Status().Code != http.StatusTooManyRequests
}

// since is when the API last answered, or when this hub began to ask.
func (l *Lease) since() time.Time {
	if l.answered.IsZero() {
		return l.failing
	}
	return l.answered
}

func (l *Lease) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// State tells where the Lease stands.
func (l *Lease) State() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return State{Held: l.held(), Other: l.other, Answered: l.answered, Failure: l.failure}
}

// Since is when the API last answered, or when the first question went unanswered.
func (l *Lease) Since() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since()
}

func (l *Lease) held() bool { return l.over == nil && l.mine != nil && time.Now().Before(l.until) }

// Wait returns when the Lease is held and the API answers.
func (l *Lease) Wait(ctx context.Context) error {
	for {
		l.mu.Lock()
		ok, over, changed, failure := l.held() && l.failure == nil, l.over, l.changed, l.failure
		l.mu.Unlock()
		switch {
		case over != nil:
			return over
		case ok:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if failure != nil {
				return fmt.Errorf("the hub's Kubernetes API does not answer: %w", ctx.Err())
			}
			return fmt.Errorf("the hub does not hold its Lease: %w", ctx.Err())
		}
	}
}

// Release gives the Lease up, so that the next hub need not wait. It is called when nothing writes any more.
func (l *Lease) Release(ctx context.Context) {
	l.mu.Lock()
	x, over := l.mine.DeepCopy(), l.over
	l.over = errors.New("the hub stops")
	l.change()
	l.mu.Unlock()
	if x == nil || over != nil {
		return
	}
	none := ""
	x.Spec.HolderIdentity = &none
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := l.client.Update(ctx, x, metav1.UpdateOptions{}); err != nil {
		l.o.Log.Warn().Err(err).Msg("the Lease is not given up: another hub has to wait for its end")
	}
}

// Absent says when a hub last worked, if its Lease tells that none does now; zero: one does.
func Absent(x *coordinationv1.Lease, now time.Time) time.Time {
	if x.Spec.RenewTime == nil || holder(x) != "" && now.Sub(x.Spec.RenewTime.Time) <= lasts(x) {
		return time.Time{}
	}
	return x.Spec.RenewTime.Time
}

// Guard returns access whose requests wait as Wait does.
func (l *Lease) Guard(cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.Dial = l.dialer.DialContext
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return guarded{l, next} })
	return cfg
}

type guarded struct {
	lease *Lease
	next  http.RoundTripper
}

func (g guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := g.lease.Wait(r.Context()); err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	return g.next.RoundTrip(r)
}

// WrappedRoundTripper lets client-go see through.
func (g guarded) WrappedRoundTripper() http.RoundTripper { return g.next }

// Carrier returns c with a Publish that waits as Wait does.
func (l *Lease) Carrier(c mqtt.Carrier) mqtt.Carrier { return carrier{c, l} }

type carrier struct {
	mqtt.Carrier
	lease *Lease
}

func (c carrier) Publish(ctx context.Context, m mqtt.Message) error {
	if err := c.lease.Wait(ctx); err != nil {
		return fmt.Errorf("publish to %s: %w", m.Topic, err)
	}
	return c.Carrier.Publish(ctx, m)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
