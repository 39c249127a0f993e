package edgeagent_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent"
	"shoal.dev/shoal/internal/kubetest"
	"shoal.dev/shoal/internal/link"
)

// TestRandom lets a site live through releases that come faster than they can be applied, releases that fail, removals, edits and
// deletions by hand, restarts, crashes, cut links to hub and API server, locks, damaged files and lost disks. Whenever it is left in
// peace for a moment, the cluster has exactly the objects of the last release, and in all the time the agent has deleted nothing
// that its orders did not drop.
//
// SHOAL_RANDOM=30m runs it for so long, SHOAL_SEED=N repeats a run.
func TestRandom(t *testing.T) {
	length := 20 * time.Second
	if v := os.Getenv("SHOAL_RANDOM"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("SHOAL_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d: SHOAL_SEED=%d SHOAL_RANDOM=%s go test -run '^TestRandom$' ./edgeagent", seed, seed, length)
	c := newChaos(t, rand.New(rand.NewPCG(seed, 1)))
	rounds := 0
	for end := time.Now().Add(length); time.Now().Before(end) && !t.Failed(); rounds++ {
		for range 3 + c.r.IntN(10) {
			c.something()
		}
		c.settle()
		switch c.r.IntN(3) {
		case 0:
			c.loseDisk()
		case 1:
			c.failingRelease()
		}
	}
	t.Logf("%d rounds, %v", rounds, c.did)
}

// chaos is a site, what it was told, and what may happen to it.
type chaos struct {
	t   *testing.T
	r   *rand.Rand
	h   *hub
	s   *site
	api *link.Link

	serial bundlefmt.Serial
	apps   map[string]*app
	did    map[string]int
	up     bool

	mu      sync.Mutex // guards orders of apps, and:
	byHand  map[string]bool
	audited int
}

// app is a deployment as its orders go.
type app struct {
	name   string
	entry  bundlefmt.Deployment
	wanted bool
	values map[string]string   // ConfigMaps of the last release
	orders []map[string]string // the last few; nil: its removal
	sealed []bundlefmt.Sealed
}

const variants = 6

func newChaos(t *testing.T, r *rand.Rand) *chaos {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	c := &chaos{t: t, r: r, h: h, s: s, apps: map[string]*app{}, did: map[string]int{}, byHand: map[string]bool{}}
	s.o.Namespace, s.o.IdentitySecret = s.ns, "identity"
	s.o.Timing.Locks, s.o.Timing.Recheck = 100*time.Millisecond, 5*time.Second
	s.o.Log = s.o.Log.Level(1) // info: what is not worth keeping for 30 minutes
	c.api = s.apiLink()
	for i := range 4 {
		c.apps[fmt.Sprintf("app-%d", i)] = &app{name: fmt.Sprintf("app-%d", i)}
	}
	// What others have here. Nothing may happen to it.
	for _, o := range []string{"bystander", "app-0-1-bystander"} {
		c.create(o, map[string]any{"x": "y"})
	}
	c.create("foreign", map[string]any{"shoal.dev/deployment": "not-ours"})
	c.audit()
	c.start()
	return c
}

func (c *chaos) create(name string, labels map[string]any) {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name, "labels": labels}}}
	if _, err := c.maps().Create(c.t.Context(), u, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// audit watches deletions. One of an object that is no part of what was ordered to go is the end of the test.
func (c *chaos) audit() {
	ctx, cancel := context.WithCancel(context.Background())
	list, err := c.maps().List(ctx, metav1.ListOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		at := list.GetResourceVersion()
		for ctx.Err() == nil {
			w, err := c.maps().Watch(ctx, metav1.ListOptions{ResourceVersion: at, AllowWatchBookmarks: true})
			if err != nil {
				if ctx.Err() == nil {
					c.t.Errorf("watch deletions: %v", err)
				}
				return
			}
			for e := range w.ResultChan() {
				u, ok := e.Object.(*unstructured.Unstructured)
				if !ok {
					if ctx.Err() == nil {
						c.t.Errorf("watch deletions: %v", apierrors.FromObject(e.Object))
					}
					return
				}
				if at = u.GetResourceVersion(); e.Type == watch.Deleted {
					c.deleted(u)
				}
			}
		}
	})
	c.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

func (c *chaos) deleted(u *unstructured.Unstructured) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byHand[string(u.GetUID())] || u.GetLabels()["shoal.dev/record"] != "" {
		return
	}
	c.audited++
	a := c.apps[u.GetLabels()["shoal.dev/deployment"]]
	if a == nil {
		c.t.Errorf("%s is none of ours and was deleted", u.GetName())
		return
	}
	for _, o := range a.orders {
		if _, has := o[u.GetName()]; !has {
			return
		}
	}
	c.t.Errorf("%s was deleted, although every recent order of %s names it: %v", u.GetName(), a.name, a.orders)
}

func (c *chaos) start() {
	if !c.up {
		c.s.start()
		c.up = true
	}
}

func (c *chaos) stop() {
	if c.up {
		c.s.halt()
		c.up = false
	}
}

func (c *chaos) pick() *app { return c.apps[fmt.Sprintf("app-%d", c.r.IntN(len(c.apps)))] }

// release makes new content of an app: one object stays in all releases, others come and go.
func (c *chaos) release(a *app, more ...string) (bundlefmt.Sealed, map[string]string) {
	values := map[string]string{}
	for i := range variants {
		if i == 0 || c.r.IntN(2) == 0 {
			values[fmt.Sprintf("%s-%d", a.name, i)] = strconv.Itoa(c.r.IntN(1000))
		}
	}
	var objects []string
	for _, n := range slices.Sorted(maps.Keys(values)) {
		objects = append(objects, c.s.configMap(n, values[n]))
	}
	b := c.h.seal(append(objects, more...)...)
	return b, values
}

// order publishes a new release of an app, or with nil values its removal.
func (c *chaos) order(a *app, b bundlefmt.Sealed, values map[string]string, p bundlefmt.Policy) {
	c.serial++
	c.mu.Lock()
	a.wanted = values != nil
	if a.wanted {
		a.values = values
		a.entry = entry(a.name, c.serial, b, p)
		a.sealed = append(a.sealed, b)
	}
	a.orders = append(a.orders[max(0, len(a.orders)-3):], values)
	c.mu.Unlock()
	if a.wanted {
		c.h.put(c.s.c, "", b)
	}
	c.publish()
}

func (c *chaos) publish() {
	var entries []bundlefmt.Deployment
	var gone []bundlefmt.Removal
	for _, n := range slices.Sorted(maps.Keys(c.apps)) {
		if a := c.apps[n]; a.wanted {
			entries = append(entries, a.entry)
		} else {
			gone = append(gone, bundlefmt.Removal{Name: n, Serial: c.serial, Confirmed: true})
		}
	}
	c.h.publish(prefix.Desired(c.s.c), c.h.document(c.s.c, c.serial, func(d *bundlefmt.Desired) { d.Remove = gone }, entries...))
}

func (c *chaos) maps() interface {
	Create(context.Context, *unstructured.Unstructured, metav1.CreateOptions, ...string) (*unstructured.Unstructured, error)
	List(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
	Delete(context.Context, string, metav1.DeleteOptions, ...string) error
	Get(context.Context, string, metav1.GetOptions, ...string) (*unstructured.Unstructured, error)
} {
	return c.s.kube.Resource(configMaps).Namespace(c.s.ns)
}

// bad is an object that no API server takes, or one that never becomes ready.
func (c *chaos) bad(name string) string {
	if c.r.IntN(2) == 0 {
		return c.s.stuckWorkload(name)
	}
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q,"namespace":%q},"data":{"no key":""}}`, name, c.s.ns)
}

// a moment is a random while: long enough for something to have begun, too short for all of it.
func (c *chaos) moment() {
	<-time.After(time.Duration(c.r.IntN(250)) * time.Millisecond)
}

func (c *chaos) something() {
	do := []struct {
		name   string
		weight int
		f      func()
	}{
		{"release", 10, func() {
			a := c.pick()
			b, values := c.release(a)
			p := fix
			p.Rollback = c.r.IntN(2) == 0
			c.order(a, b, values, p)
		}},
		{"bad release", 3, func() {
			a := c.pick()
			b, values := c.release(a, c.bad("bad-"+a.name))
			p := rollback
			p.ReadyTimeoutSecond = 1
			c.order(a, b, values, p)
		}},
		{"removal", 2, func() { c.order(c.pick(), bundlefmt.Sealed{}, nil, bundlefmt.Policy{}) }},
		{"edit", 4, func() { c.meddle(false) }},
		{"deletion by hand", 3, func() { c.meddle(true) }},
		{"restart", 2, func() { c.stop(); c.start() }},
		{"crash", 3, func() {
			c.api.Cut()
			c.s.link.Cut()
			c.stop()
			c.api.Restore()
			c.s.link.Restore()
			c.start()
		}},
		{"off", 1, c.stop},
		{"on", 2, c.start},
		{"cut hub", 2, c.s.link.Cut},
		{"restore hub", 3, c.s.link.Restore},
		{"cut API", 2, c.api.Cut},
		{"restore API", 3, c.api.Restore},
		{"lock", 1, func() { c.lock(true) }},
		{"unlock", 2, func() { c.lock(false) }},
		{"damage", 1, c.damage},
	}
	total := 0
	for _, d := range do {
		total += d.weight
	}
	n := c.r.IntN(total)
	for _, d := range do {
		if n -= d.weight; n < 0 {
			c.did[d.name]++
			d.f()
			break
		}
	}
	c.moment()
}

// meddle is somebody on the site.
func (c *chaos) meddle(remove bool) {
	list, err := c.maps().List(c.t.Context(), metav1.ListOptions{LabelSelector: "shoal.dev/deployment"})
	if err != nil {
		c.t.Fatal(err)
	}
	items := slices.DeleteFunc(list.Items, func(u unstructured.Unstructured) bool { return u.GetName() == "foreign" })
	if len(items) == 0 {
		return
	}
	u := items[c.r.IntN(len(items))]
	if remove {
		c.mu.Lock()
		c.byHand[string(u.GetUID())] = true
		c.mu.Unlock()
		uid := u.GetUID()
		err = c.maps().Delete(c.t.Context(), u.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	} else {
		patch := fmt.Appendf(nil, `{"metadata":{"uid":%q},"data":{"v":"by hand"}}`, u.GetUID())
		_, err = c.s.kube.Resource(configMaps).Namespace(c.s.ns).Patch(c.t.Context(), u.GetName(), "application/merge-patch+json", patch, metav1.PatchOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		c.t.Fatal(err)
	}
}

func (c *chaos) lock(take bool) {
	file := filepath.Join(c.s.o.DataDir, "locks", "chaos")
	err := os.Remove(file)
	if take {
		err = os.WriteFile(file, []byte("chaos"), 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.t.Fatal(err)
	}
}

// damage hits one file of a stopped agent. Of what exists twice the copy stays.
func (c *chaos) damage() {
	c.stop()
	defer c.start()
	var files []string
	for _, glob := range []string{"desired", "floor", "trust", "identity", "records/*", "bundles/*/0"} {
		found, err := filepath.Glob(filepath.Join(c.s.o.DataDir, glob))
		if err != nil {
			c.t.Fatal(err)
		}
		files = append(files, slices.DeleteFunc(found, func(f string) bool { return strings.HasSuffix(f, ".copy") })...)
	}
	if len(files) > 0 {
		if err := os.WriteFile(files[c.r.IntN(len(files))], []byte("garbage"), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
}

// settle leaves the site in peace and compares. Where the last order was bad, a good one follows: what a site went back to when
// orders come faster than they can be judged is not foreseeable.
func (c *chaos) settle() {
	c.t.Helper()
	c.api.Restore()
	c.s.link.Restore()
	c.lock(false)
	c.start()
	for _, n := range slices.Sorted(maps.Keys(c.apps)) {
		if a := c.apps[n]; a.wanted && a.entry.Policy.ReadyTimeoutSecond == 1 {
			b, values := c.release(a)
			c.order(a, b, values, fix)
		}
	}
	c.await(bundlefmt.Ready, nil)
	c.compare(nil)
	for _, a := range c.apps { // old parts are not kept by a hub either
		for len(a.sealed) > 1 {
			if a.sealed[0].Digest != a.sealed[len(a.sealed)-1].Digest {
				for i := range a.sealed[0].Parts {
					c.h.publish(prefix.Part(c.s.c, "", a.sealed[0].Digest.Short(), i), nil)
				}
			}
			a.sealed = a.sealed[1:]
		}
	}
}

// await waits until each deployment stands as ordered, but for one.
func (c *chaos) await(st bundlefmt.State, but *app) {
	c.t.Helper()
	c.h.awaitReport(c.s.c, "the site to settle", func(r *bundlefmt.Reported) bool {
		if r.Serial != c.serial {
			return false
		}
		n := 0
		for _, a := range c.apps {
			d, ok := of(r, a.name)
			switch {
			case !a.wanted && ok:
				return false
			case !a.wanted:
				continue
			case a == but && d.State != st:
				return false
			case a != but && (d.State != bundlefmt.Ready || d.Serial != a.entry.Serial):
				return false
			}
			n++
		}
		return n == len(r.Deployments)
	})
}

// compare holds the cluster to the last orders, but for one app that is held to other values.
func (c *chaos) compare(instead map[string]map[string]string) {
	c.t.Helper()
	kubetest.Wait(c.t, "exactly the objects of the last release", func(ctx context.Context) error {
		list, err := c.maps().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		got, want := map[string]string{}, map[string]string{"bystander ": "", "app-0-1-bystander ": "", "foreign not-ours": ""}
		for _, u := range list.Items {
			if u.GetLabels()["shoal.dev/record"] != "" || u.GetName() == "kube-root-ca.crt" {
				continue
			}
			v, _, _ := unstructured.NestedString(u.Object, "data", "v")
			got[u.GetName()+" "+u.GetLabels()["shoal.dev/deployment"]] = v
		}
		for _, a := range c.apps {
			values := a.values
			if other, ok := instead[a.name]; ok {
				values = other
			}
			for n, v := range values {
				if a.wanted {
					want[n+" "+a.name] = v
				}
			}
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("got %v\nwant %v", got, want)
		}
		workloads, err := c.s.kube.Resource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}).Namespace(c.s.ns).List(ctx, metav1.ListOptions{})
		if err == nil && len(workloads.Items) > 0 {
			err = fmt.Errorf("%s is left over", workloads.Items[0].GetName())
		}
		return err
	})
}

// failingRelease is a bad release on a site that is well: it goes back to exactly what it had.
func (c *chaos) failingRelease() {
	c.t.Helper()
	a := c.pick()
	if !a.wanted {
		return
	}
	c.did["way back"]++
	had := a.values
	b, values := c.release(a, c.bad("bad-"+a.name))
	p := rollback
	p.ReadyTimeoutSecond = 1
	c.order(a, b, values, p)
	c.await(bundlefmt.RolledBack, a)
	c.compare(map[string]map[string]string{a.name: had})
}

// loseDisk takes the data directory away once the cluster has everything on record.
func (c *chaos) loseDisk() {
	c.t.Helper()
	for _, a := range c.apps {
		if a.wanted {
			c.s.awaitRecord(a.name, a.entry.Digest)
		}
	}
	kubetest.Wait(c.t, "the identity to be kept", func(ctx context.Context) error {
		u, err := c.s.kube.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(c.s.ns).Get(ctx, "identity", metav1.GetOptions{})
		if err == nil && u.Object["data"] == nil {
			err = errors.New("it is empty")
		}
		return err
	})
	c.did["lost disk"]++
	c.stop()
	if err := os.RemoveAll(c.s.o.DataDir); err != nil {
		c.t.Fatal(err)
	}
	c.start()
	// What it says now is what it said before: only the site itself knows when it has taken everything over.
	c.s.awaitStatus("everything to be known again", func(st edgeagent.Status) bool {
		for _, a := range c.apps {
			if d, ok := of(&st.Reported, a.name); a.wanted && (!ok || d.State != bundlefmt.Ready || d.Total == 0) {
				return false
			}
		}
		return st.Serial == c.serial
	})
	c.compare(nil)
}
