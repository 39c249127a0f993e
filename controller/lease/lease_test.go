package lease

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"shoal.dev/shoal/internal/kubetest"
	"shoal.dev/shoal/internal/mqtt"
)

func TestMain(m *testing.M) { kubetest.Main(m) }

// side is one hub's Lease on the real API server of the package, over a wire that can be cut.
type side struct {
	*Lease
	cfg    *rest.Config
	log    *buffer
	cut    atomic.Bool // requests do not arrive
	silent atomic.Bool // requests arrive, answers do not
	ended  chan error
}

func newSide(t *testing.T, cfg *rest.Config, namespace, holder string) *side {
	t.Helper()
	s := &side{cfg: rest.CopyConfig(cfg), log: &buffer{}, ended: make(chan error, 1)}
	s.cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return wire{s, next} })
	var err error
	s.Lease, err = New(Options{Kubernetes: s.cfg, Namespace: namespace, Holder: holder, Log: zerolog.New(s.log)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *side) acquire(t *testing.T) {
	t.Helper()
	if err := s.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (s *side) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.ended <- s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if t.Failed() {
			t.Log(s.log)
		}
	})
}

type wire struct {
	s    *side
	next http.RoundTripper
}

func (w wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if w.s.cut.Load() {
		return nil, errors.New("the wire is cut")
	}
	res, err := w.next.RoundTrip(r)
	if err == nil && w.s.silent.Load() {
		_ = res.Body.Close()
		return nil, errors.New("the answer is lost")
	}
	return res, err
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func says(l *buffer, text string) func(context.Context) error {
	return func(context.Context) error {
		if !strings.Contains(l.String(), text) {
			return errors.New("the log is " + l.String())
		}
		return nil
	}
}

// sink counts what is published.
type sink struct {
	mqtt.Carrier
	n atomic.Int32
}

func (s *sink) Publish(context.Context, mqtt.Message) error { s.n.Add(1); return nil }

func renewed(s *side) func(context.Context) error {
	s.mu.Lock()
	before := s.mine.ResourceVersion
	s.mu.Unlock()
	return func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.failure != nil || s.mine.ResourceVersion == before {
			return errors.New("not renewed: " + s.mine.ResourceVersion)
		}
		return nil
	}
}

func stillHeld(t *testing.T, s *side) {
	t.Helper()
	select {
	case err := <-s.ended:
		t.Fatalf("the Lease ended: %v", err)
	default:
	}
	if st := s.State(); !st.Held || st.Failure != nil {
		t.Fatalf("%+v", st)
	}
}

// The second hub waits, says so, and goes on as soon as the first has stopped in order. The namespace is made for the first.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	cfg := kubetest.Shared(t)
	ns := kubetest.Namespace(t, cfg) + "-new"
	core := kubernetes.NewForConfigOrDie(cfg).CoreV1()
	t.Cleanup(func() { _ = core.Namespaces().Delete(context.Background(), ns, metav1.DeleteOptions{}) })
	a, b := newSide(t, cfg, ns, "a"), newSide(t, cfg, ns, "b")
	a.acquire(t)
	a.run(t)
	got := make(chan error, 1)
	go func() { got <- b.Acquire(t.Context()) }()
	kubetest.Wait(t, "the second to say that it waits", says(b.log, "another hub works on this API"))
	kubetest.Wait(t, "a renewal", renewed(a))
	if st := b.State(); st.Held || st.Other != "a" {
		t.Fatalf("%+v", st)
	}
	out := &sink{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Carrier(out).Publish(ctx, mqtt.Message{}); err == nil || out.n.Load() != 0 {
		t.Errorf("who waits has published: %v", err)
	}
	stillHeld(t, a)
	a.Release(t.Context())
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if err := a.Wait(t.Context()); err == nil {
		t.Error("who has given the Lease up may still write")
	}
	if st := b.State(); !st.Held || st.Other != "" {
		t.Fatalf("%+v", st)
	}
}

// A hub that was killed takes its own Lease back without waiting, and another one gets it after its end.
func TestKilled(t *testing.T) {
	t.Parallel()
	cfg := kubetest.Shared(t)
	ns := kubetest.Namespace(t, cfg)
	newSide(t, cfg, ns, "a").acquire(t)
	again := newSide(t, cfg, ns, "a")
	again.acquire(t)
	if strings.Contains(again.log.String(), "another hub") {
		t.Errorf("it waited for itself: %s", again.log)
	}
	other := newSide(t, cfg, ns, "b")
	other.acquire(t)
	if !strings.Contains(other.log.String(), "does not renew its Lease any more") {
		t.Errorf("%s", other.log)
	}
}

// Two processes with the same identity, as with a copied data directory: the first ends. So does one whose Lease was taken.
func TestTaken(t *testing.T) {
	t.Parallel()
	cfg := kubetest.Shared(t)
	for name, next := range map[string]string{"by another": "b", "by a copy": "a"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := kubetest.Namespace(t, cfg)
			a := newSide(t, cfg, ns, "a")
			a.acquire(t)
			leases := kubernetes.NewForConfigOrDie(cfg).CoordinationV1().Leases(ns)
			l, err := leases.Get(t.Context(), Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			now := metav1.NowMicro()
			l.Spec.HolderIdentity, l.Spec.RenewTime = &next, &now
			if _, err := leases.Update(t.Context(), l, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			a.run(t)
			if err := <-a.ended; !errors.Is(err, ErrTaken) {
				t.Fatalf("got %v", err)
			}
			core := kubernetes.NewForConfigOrDie(a.Guard(cfg)).CoreV1()
			cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}}
			if _, err := core.ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{}); !errors.Is(err, ErrTaken) {
				t.Errorf("a write after the Lease was lost: %v", err)
			}
			out := &sink{}
			if err := a.Carrier(out).Publish(t.Context(), mqtt.Message{}); !errors.Is(err, ErrTaken) || out.n.Load() != 0 {
				t.Errorf("a message after the Lease was lost: %v", err)
			}
			a.Release(t.Context())
			if l, err = leases.Get(t.Context(), Name, metav1.GetOptions{}); err != nil || holder(l) != next {
				t.Errorf("the Lease of another was given up: %v %v", l, err)
			}
		})
	}
}

// What is no other hub ends nothing: an edit by hand, a Lease that was deleted, answers that were lost.
func TestKept(t *testing.T) {
	t.Parallel()
	cfg := kubetest.Shared(t)
	ns := kubetest.Namespace(t, cfg)
	a := newSide(t, cfg, ns, "a")
	a.acquire(t)
	a.run(t)
	leases := kubernetes.NewForConfigOrDie(cfg).CoordinationV1().Leases(ns)
	kubetest.Wait(t, "an edit", func(ctx context.Context) error {
		l, err := leases.Get(ctx, Name, metav1.GetOptions{})
		if err == nil {
			l.Annotations = map[string]string{"note": "by hand"}
			_, err = leases.Update(ctx, l, metav1.UpdateOptions{})
		}
		return err
	})
	kubetest.Wait(t, "a renewal after an edit", renewed(a))
	stillHeld(t, a)
	if err := leases.Delete(t.Context(), Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var l *coordinationv1.Lease
	kubetest.Wait(t, "the Lease to be made again", func(ctx context.Context) (err error) {
		select {
		case err := <-a.ended:
			t.Fatal(err)
		default:
		}
		l, err = leases.Get(ctx, Name, metav1.GetOptions{})
		return err
	})
	if holder(l) != "a" {
		t.Errorf("%+v", l.Spec)
	}
	kubetest.Wait(t, "a renewal", renewed(a))
	again := renewed(a)
	a.silent.Store(true)
	kubetest.Wait(t, "lost answers to be noticed", says(a.log, "does not answer"))
	a.mu.Lock()
	asked := len(a.sent)
	a.mu.Unlock()
	kubetest.Wait(t, "several lost answers", func(context.Context) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.sent) < asked+1 {
			return errors.New("none yet")
		}
		return nil
	})
	a.silent.Store(false)
	kubetest.Wait(t, "a renewal after lost answers", again)
	stillHeld(t, a)
}

// While the API is away requests and messages wait, and go on without anybody's help.
func TestAway(t *testing.T) {
	t.Parallel()
	cfg := kubetest.Shared(t)
	ns := kubetest.Namespace(t, cfg)
	a := newSide(t, cfg, ns, "a")
	a.acquire(t)
	a.run(t)
	a.cut.Store(true)
	kubetest.Wait(t, "it to be noticed", says(a.log, "the Kubernetes API does not answer"))
	if st := a.State(); st.Failure == nil || st.Answered.IsZero() {
		t.Fatalf("%+v", st)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := a.Wait(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("got %v", err)
	}
	core := kubernetes.NewForConfigOrDie(a.Guard(a.cfg)).CoreV1()
	out := &sink{}
	done := make(chan error, 2)
	go func() {
		_, err := core.ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})
		done <- err
	}()
	go func() { done <- a.Carrier(out).Publish(t.Context(), mqtt.Message{}) }()
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	a.cut.Store(false)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if out.n.Load() != 1 || !strings.Contains(a.log.String(), "answers again") {
		t.Errorf("%d messages, log %s", out.n.Load(), a.log)
	}
	stillHeld(t, a)
}

func TestOlder(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{{"9", "10", true}, {"10", "9", false}, {"10", "10", false}, {"", "10", false}, {"x", "10", false}} {
		if got := older(c.a, c.b); got != c.want {
			t.Errorf("older(%q, %q) = %v", c.a, c.b, got)
		}
	}
}

// A renewal that writes an older revision than the hub has seen shows that the API went back, though its Lease is as it was.
func TestSeenMore(t *testing.T) {
	t.Parallel()
	cfg := kubetest.Shared(t)
	ns := kubetest.Namespace(t, cfg)
	a := newSide(t, cfg, ns, "a")
	a.acquire(t)
	asked := make(chan struct{}, 100)
	now := "999999999"
	a.Compare(func() []Seen {
		return []Seen{{Revision: "1"}, {Revision: "999999999", Now: func(context.Context) (string, error) { asked <- struct{}{}; return now, nil }}}
	})
	a.run(t)
	<-asked // a kind in another datastore: no reason to end
	kubetest.Wait(t, "a renewal", renewed(a))
	stillHeld(t, a)
	a.Compare(func() []Seen {
		return []Seen{{Revision: "999999999", Now: func(context.Context) (string, error) { return "999999998", nil }}}
	})
	if err := <-a.ended; !errors.Is(err, ErrWentBack) || a.Wait(t.Context()) == nil {
		t.Errorf("got %v", err)
	}
}
