package apply

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	coalesce   = 250 * time.Millisecond // changes within it are one call
	backoffMin = 250 * time.Millisecond
	backoffMax = 30 * time.Second
	watchLife  = 30 * time.Minute // asked of the server; twice that at most
)

// tracked is what is watched and for whom. Apply and Check fill it, Remove empties it.
type tracked struct {
	mu      sync.Mutex
	byName  map[string][]schema.GroupVersionResource
	sources map[string][]source // with values for a deployment
	memory  memory
	seen    map[objectKey]sighting
	ended   map[types.UID]ending
	changed chan struct{} // holds one token: the set of kinds may differ
}

type objectKey struct {
	gvr             schema.GroupVersionResource
	namespace, name string
}

// sighting is the newest state of an object that a caller knows already: its own write, or what Check read.
type sighting struct {
	resourceVersion string
	uid             types.UID
	deployment      string
}

func (t *tracked) init() {
	t.byName = map[string][]schema.GroupVersionResource{}
	t.sources = map[string][]source{}
	t.memory = memory{live: map[schema.GroupVersionResource]bool{}, objects: map[objectKey]*remembered{}}
	t.seen = map[objectKey]sighting{}
	t.ended = map[types.UID]ending{}
	t.changed = make(chan struct{}, 1)
}

// begin makes news of a deployment count from now on, before its kinds are known.
func (t *tracked) begin(deployment string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.byName[deployment]; !ok {
		t.byName[deployment] = nil
	}
}

// set says which kinds a deployment uses; none: it is gone.
func (t *tracked) set(deployment string, gvrs []schema.GroupVersionResource) {
	t.mu.Lock()
	if len(gvrs) == 0 {
		delete(t.byName, deployment)
		delete(t.sources, deployment)
		for k, s := range t.seen {
			if s.deployment == deployment {
				delete(t.seen, k)
			}
		}
	} else {
		t.byName[deployment] = gvrs
	}
	t.mu.Unlock()
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// reads says where a deployment's values come from.
func (t *tracked) reads(deployment string, s []source) {
	t.mu.Lock()
	same := slices.Equal(t.sources[deployment], s)
	t.sources[deployment] = s
	t.mu.Unlock()
	if !same {
		select {
		case t.changed <- struct{}{}:
		default:
		}
	}
}

// saw notes what the caller knows, so that the watch does not tell it again.
func (t *tracked) saw(gvr schema.GroupVersionResource, m metav1.Object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := objectKey{gvr, m.GetNamespace(), m.GetName()}
	t.seen[key] = sighting{m.GetResourceVersion(), m.GetUID(), m.GetLabels()[Label]}
	// Only what the watch has told of: an object that was deleted meanwhile must not come back to stay.
	if old := t.memory.objects[key]; old != nil && old.uid == m.GetUID() && newer(m.GetResourceVersion(), old.resourceVersion) {
		t.memory.objects[key] = newRemembered(gvr, m)
	}
}

// item is one event that is news for a deployment unless the caller turns out to know it.
type item struct {
	deployment string
	key        objectKey
	sighting   sighting
}

// news is what an event may tell, and to whom.
func (t *tracked) news(gvr schema.GroupVersionResource, e watch.EventType, m metav1.Object) []item {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := objectKey{gvr, m.GetNamespace(), m.GetName()}
	now := sighting{m.GetResourceVersion(), m.GetUID(), m.GetLabels()[Label]}
	before, known := t.seen[key]
	t.remember(key, e, m)
	t.end(e, m)
	if e == watch.Deleted {
		delete(t.seen, key)
	}
	var out []item
	if _, ours := t.byName[now.deployment]; ours {
		out = append(out, item{now.deployment, key, now})
	}
	if _, ours := t.byName[before.deployment]; known && ours && before.deployment != now.deployment {
		out = append(out, item{before.deployment, key, now})
	}
	return out
}

// knows reports whether the caller has seen or written just that. It is asked when an event is about to be told, not when
// it comes: the event of a write can overtake the answer to the writer.
func (t *tracked) knows(i item) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.seen[i.key]
	return ok && s == i.sighting
}

func (t *tracked) kinds() map[schema.GroupVersionResource]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[schema.GroupVersionResource]bool{}
	for _, gvrs := range t.byName {
		for _, g := range gvrs {
			out[g] = true
		}
	}
	return out
}

// told is who is to hear of a source that has changed.
func (t *tracked) told(s source) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for name, from := range t.sources {
		if _, ours := t.byName[name]; ours && slices.Contains(from, s) {
			out = append(out, name)
		}
	}
	return out
}

// watches are the connections there should be: one for each kind, in all namespaces, and one for each source of values.
func (t *tracked) watches() map[source]bool {
	out := map[source]bool{}
	for g := range t.kinds() {
		out[source{gvr: g}] = true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, from := range t.sources {
		if _, ours := t.byName[name]; ours {
			for _, s := range from {
				out[s] = true
			}
		}
	}
	return out
}

func (t *tracked) users(gvr schema.GroupVersionResource) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for name, gvrs := range t.byName {
		for _, g := range gvrs {
			if g == gvr {
				out = append(out, name)
				break
			}
		}
	}
	return out
}

// Watch calls changed, from one goroutine, whenever a deployment that Apply or Check has seen may stand differently: one
// of its objects was edited, deleted, or reports progress, or the site's values for it have changed. It watches only the
// kinds these deployments use and only objects that carry our label; of Secrets, ConfigMaps and others (see [bodiless]) only
// their metadata. Check uses what was seen. Calls are coalesced; changed should only take note.
//
// changed is also called for every deployment that uses a kind when the watch of that kind starts and when it comes back
// after an outage: what happened before is unknown then. The Applier's own writes are not told, so repairing does not
// lead to another round.
//
// Watch returns when ctx ends, with all its goroutines joined. Only one may run.
func (a *Applier) Watch(ctx context.Context, changed func(deployment string)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	news := make(chan item)
	wg.Go(func() { dispatch(ctx, news, a.tracked.knows, changed) })
	tell := func(i item) {
		select {
		case news <- i:
		case <-ctx.Done():
		}
	}
	running := map[source]context.CancelFunc{}
	var out outages
	for {
		want := a.tracked.watches()
		for gvr, stop := range running {
			if !want[gvr] {
				stop()
				delete(running, gvr)
			}
		}
		for gvr := range want {
			if running[gvr] == nil {
				wctx, stop := context.WithCancel(ctx)
				running[gvr] = stop
				w := kindWatch{a: a, gvr: gvr.gvr, source: gvr, tell: tell, outages: &out}
				wg.Go(func() { defer stop(); w.run(wctx) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.tracked.changed:
		}
	}
}

// dispatch collects news for a moment and tells each deployment once, unless all of its news is known.
func dispatch(ctx context.Context, news <-chan item, knows func(item) bool, changed func(string)) {
	pending := map[string][]item{}
	var order []string
	timer := time.NewTimer(coalesce)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case i := <-news:
			if len(order) == 0 {
				timer.Reset(coalesce)
			}
			if pending[i.deployment] == nil {
				order = append(order, i.deployment)
			}
			pending[i.deployment] = append(pending[i.deployment], i)
		case <-timer.C:
			for _, d := range order {
				if slices.ContainsFunc(pending[d], func(i item) bool { return !knows(i) }) {
					changed(d)
				}
			}
			clear(pending)
			order = order[:0]
		}
	}
}

// outages counts the kinds whose watch is down, so that an API server that goes away is one line in the log.
type outages struct {
	mu sync.Mutex
	n  int
}

func (o *outages) begin() (first bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n++
	return o.n == 1
}

func (o *outages) end() (last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n--
	return o.n == 0
}

// bare is err without the URL, which is long and the same every time.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// kindWatch watches one kind until its context ends.
type kindWatch struct {
	a    *Applier
	gvr  schema.GroupVersionResource
	tell func(item)

	source source // with a name: only that object, for the sake of the values in it

	outages *outages

	at string // resource version to go on from; empty: from now, everything untold
}

func (w *kindWatch) run(ctx context.Context) {
	wait, down := backoffMin, false
	defer func() {
		if down {
			w.outages.end()
		}
	}()
	if w.source.name == "" {
		defer w.a.tracked.over(w.gvr)
	}
	for ctx.Err() == nil {
		began := time.Now()
		err := w.once(ctx, func() {
			if w.at == "" && w.source.name == "" {
				w.a.tracked.stands(w.gvr)
				for _, d := range w.a.tracked.users(w.gvr) {
					w.tell(item{deployment: d}) // of no object: nobody knows it
				}
			}
			if down && w.outages.end() {
				w.a.log.Info().Msg("watching again")
			}
			down = false
		})
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errExpired):
			w.at = ""
		case err != nil:
			if !down && w.outages.begin() {
				w.a.log.Warn().Err(bare(err)).Str("resource", w.gvr.Resource).Msg("watch is interrupted, trying again")
			}
			// What the server has kept could be read on from here, but what is told after an outage should not depend on it.
			down, w.at = true, ""
			if w.source.name == "" {
				w.a.tracked.over(w.gvr)
			}
		}
		// Also after an orderly end: a server that ends watches at once must not be asked in a loop.
		if time.Since(began) > backoffMax {
			wait = backoffMin
		}
		if !pause(ctx, wait/2+rand.N(wait/2)) {
			return
		}
		wait = min(2*wait, backoffMax)
	}
}

var (
	errExpired = errors.New("the resource version is too old")
	errEmpty   = errors.New("the connection ended before it began")
)

// once runs one watch connection; up is called when it stands. nil means that the server ended it in an orderly way.
func (w *kindWatch) once(ctx context.Context, up func()) error {
	life := int64((watchLife + rand.N(watchLife)).Seconds())
	conn, err := w.connect(ctx, metav1.ListOptions{
		LabelSelector: Label + ",!" + HookLabel, ResourceVersion: w.at, AllowWatchBookmarks: true, TimeoutSeconds: &life,
	})
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return errExpired
		}
		return err
	}
	defer conn.Stop()
	// client-go answers a reset connection with a watch that is closed already, and no error.
	select {
	case e, ok := <-conn.ResultChan():
		if !ok {
			return errEmpty
		}
		up()
		if err := w.event(e); err != nil {
			return err
		}
	default:
		up()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-conn.ResultChan():
			if !ok {
				return nil
			}
			if err := w.event(e); err != nil {
				return err
			}
		}
	}
}

func (w *kindWatch) connect(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	switch {
	case w.source.name != "":
		o.LabelSelector, o.FieldSelector = "", "metadata.name="+w.source.name
		return w.a.meta.Resource(w.gvr).Namespace(w.source.namespace).Watch(ctx, o)
	case bodiless(w.gvr):
		return w.a.meta.Resource(w.gvr).Watch(ctx, o)
	}
	return w.a.dyn.Resource(w.gvr).Watch(ctx, o)
}

func (w *kindWatch) event(e watch.Event) error {
	if e.Type == watch.Error {
		err := apierrors.FromObject(e.Object)
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return errExpired
		}
		return err
	}
	m, ok := e.Object.(metav1.Object)
	if !ok {
		return nil
	}
	w.at = m.GetResourceVersion()
	if e.Type == watch.Bookmark {
		return nil
	}
	if w.source.name != "" {
		for _, d := range w.a.tracked.told(w.source) {
			w.tell(item{deployment: d})
		}
		return nil
	}
	for _, i := range w.a.tracked.news(w.gvr, e.Type, m) {
		w.tell(i)
	}
	return nil
}
