package apply

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"shoal.dev/shoal/internal/kubetest"
)

// calls notes what Watch tells.
type calls struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *calls) changed(d string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[d]++
}

func (c *calls) count(d string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[d]
}

func (s *site) watch() *calls {
	s.Helper()
	c := &calls{n: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.a.Watch(ctx, c.changed) }()
	s.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
	})
	return c
}

// told waits until d was told more often than n times.
func (s *site) told(c *calls, d string, n int) time.Duration {
	s.Helper()
	began := time.Now()
	kubetest.Wait(s, "news of "+d, func(context.Context) error {
		if got := c.count(d); got <= n {
			return fmt.Errorf("told %d times", got)
		}
		return nil
	})
	return time.Since(began)
}

// settled waits until everything that happened up to now has been told: an edit of the deployment "mark" is the last news.
func (s *site) settled(c *calls, mark Deployment) {
	s.Helper()
	for range 3 {
		n := c.count(mark.Name)
		s.edit(configMaps, mark.Objects[0].Name, fmt.Sprintf(`{"data":{"tick":"%d"}}`, time.Now().UnixNano()))
		s.told(c, mark.Name, n)
	}
}

func TestWatchTellsEditsAndDeletionsAndOnlyThem(t *testing.T) {
	s := newSite(t)
	c := s.watch()
	mark := s.deployment("mark", configMap("mark", "1"))
	d := s.deployment("edited", configMap("a", "1")+"\n---\n"+configMap("b", "1"))
	s.apply(mark, nil)
	inv := s.apply(d, nil).Inventory
	s.told(c, "mark", 0) // the watch stands
	s.settled(c, mark)

	n := c.count("edited")
	s.edit(configMaps, "a", `{"data":{"v":"2"}}`)
	t.Logf("edit told after %v", s.told(c, "edited", n))
	s.settled(c, mark)
	n = c.count("edited")
	s.apply(d, inv) // our own repair is no news, nor is somebody else's object
	s.create(configMaps, configMap("nobodys", "1"))
	s.settled(c, mark)
	if got := c.count("edited"); got != n {
		t.Errorf("told %d times about our own write", got-n)
	}
	s.delete(configMaps, "b")
	s.told(c, "edited", n)

	// The label given to another deployment is news for both.
	s.settled(c, mark)
	nx, nm := c.count("edited"), c.count("mark")
	s.edit(configMaps, "a", `{"metadata":{"labels":{"shoal.dev/deployment":"mark"}}}`)
	s.told(c, "edited", nx)
	s.told(c, "mark", nm)
}

func TestWatchTellsProgress(t *testing.T) {
	s := newSite(t)
	c := s.watch()
	mark, d := s.deployment("mark", configMap("mark", "1")), s.deployment("web", web)
	s.apply(mark, nil)
	s.apply(d, nil)
	s.ready(d)
	s.told(c, "web", 0)
	s.settled(c, mark)
	n := c.count("web")
	_, err := s.hand.Resource(deployments).Namespace(s.ns).Patch(t.Context(), "web", types.MergePatchType,
		[]byte(`{"status":{"conditions":[{"type":"Odd","status":"True"}]}}`), metav1.PatchOptions{}, "status")
	if err != nil {
		t.Fatal(err)
	}
	s.told(c, "web", n)
}

func TestWatchDropsKindsNobodyUses(t *testing.T) {
	s := newSite(t)
	s.watch()
	d := s.deployment("x", configMap("a", "1"))
	inv := s.apply(d, nil).Inventory
	if n := len(s.a.tracked.kinds()); n != 1 {
		t.Errorf("%d kinds watched", n)
	}
	s.removeAll("x", inv)
	if n, seen := len(s.a.tracked.kinds()), len(s.a.tracked.seen); n != 0 || seen != 0 {
		t.Errorf("%d kinds watched, %d objects remembered", n, seen)
	}
}

// An API server that goes away and comes back: typed errors meanwhile, then news of everything and everything works.
func TestServerRestart(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	ctx := t.Context()
	cluster, err := kubetest.Start(ctx, kubetest.Options{Name: "restarts"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	cfg, err := cluster.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{TB: t, cfg: cfg, ns: "default", a: newApplier(t, cfg)}
	if s.hand, err = dynamic.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	wctx, cancel := context.WithCancel(ctx)
	c := &calls{n: map[string]int{}}
	done := make(chan error)
	go func() { done <- s.a.Watch(wctx, c.changed) }()
	x, y := s.deployment("x", web), s.deployment("y", configMap("yy", "1"))
	s.apply(x, nil)
	s.apply(y, nil)
	s.told(c, "x", 0) // y may stay untold: its kind was watched already and the write was ours

	if err := cluster.Halt(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.a.Check(ctx, x); !errors.Is(err, ErrUnavailable) {
		t.Errorf("check while the server is down: %v", err)
	}
	if _, err := s.a.Apply(ctx, x, nil); !errors.Is(err, ErrUnavailable) {
		t.Errorf("apply while the server is down: %v", err)
	}
	nx, ny := c.count("x"), c.count("y")
	if err := cluster.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.told(c, "x", nx)
	s.told(c, "y", ny)
	t.Logf("told of everything %v after the server was back", time.Since(began))
	s.edit(configMaps, "web", `{"data":{"mode":"loud"}}`)
	s.modified(x)
	s.apply(x, nil)
	s.clean(x)
	n := c.count("y")
	s.edit(configMaps, "yy", `{"data":{"v":"2"}}`)
	s.told(c, "y", n)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := cluster.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	s.a.Close()
	goleak.VerifyNone(t, leaks)
}

// A connection that is cut while the server goes on: the watch could resume without a gap, and still tells everything.
func TestConnectionCut(t *testing.T) {
	s := newSite(t)
	var cut atomic.Bool
	var mu sync.Mutex
	var conns []net.Conn
	cfg := rest.CopyConfig(s.cfg)
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if cut.Load() {
			return nil, errors.New("cut")
		}
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, c)
		}
		return c, err
	}
	s.a = newApplier(t, cfg)
	c := s.watch()
	mark := s.deployment("mark", configMap("mark", "1"))
	s.apply(mark, nil)
	s.told(c, "mark", 0)
	s.settled(c, mark)
	n := c.count("mark")
	cut.Store(true)
	mu.Lock()
	for _, conn := range conns {
		conn.Close()
	}
	mu.Unlock()
	kubetest.Wait(t, "the cut to be noticed", func(ctx context.Context) error {
		if _, err := s.a.Check(ctx, mark); !errors.Is(err, ErrUnavailable) {
			return fmt.Errorf("check says %v", err)
		}
		return nil
	})
	before := s.a.Requests().Watch
	kubetest.Wait(t, "the watch to try again", func(context.Context) error {
		if s.a.Requests().Watch < before+2 {
			return errors.New("no attempt")
		}
		return nil
	})
	cut.Store(false)
	s.told(c, "mark", n)
}

// What the watch knows already is not told again; what it does not know is.
func TestNews(t *testing.T) {
	var tr tracked
	tr.init()
	tr.set("x", []schema.GroupVersionResource{configMaps})
	tr.set("y", []schema.GroupVersionResource{configMaps})
	o := func(rv, owner string) *object {
		u := (&site{TB: t, ns: "ns"}).deployment("x", configMap("a", "1"))
		obj := decode(u.Objects[0], owner)
		obj.want.SetResourceVersion(rv)
		return obj
	}
	steps := []struct {
		why  string
		e    watch.EventType
		o    *object
		want string
	}{
		{"first sight", watch.Added, o("1", "x"), "[x]"},
		{"the caller has seen it", watch.Added, o("1", "x"), "[]"},
		{"edited", watch.Modified, o("2", "x"), "[x]"},
		{"given away", watch.Modified, o("3", "y"), "[y x]"},
		{"nobody's deployment", watch.Modified, o("4", "z"), "[y]"},
		{"deleted", watch.Deleted, o("5", "y"), "[y]"},
		{"made again", watch.Added, o("6", "x"), "[x]"},
	}
	for _, st := range steps {
		got := []string{}
		for _, i := range tr.news(configMaps, st.e, st.o.want) {
			if !tr.knows(i) {
				got = append(got, i.deployment)
			}
		}
		if fmt.Sprint(got) != st.want {
			t.Errorf("%s: told %s, want %s", st.why, got, st.want)
		}
		if st.e != watch.Deleted && owner(st.o.want) != "z" {
			tr.saw(configMaps, st.o.want)
		}
	}
}
