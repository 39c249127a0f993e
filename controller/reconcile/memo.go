package reconcile

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/topics"
)

// writeStatus writes a status once, and only if it changed.
func (h *Hub) writeStatus(ctx context.Context, before, after client.Object) error {
	if equality.Semantic.DeepEqual(before, after) {
		return nil
	}
	if err := h.Client.Status().Patch(ctx, after, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write status: %w", err)
	}
	h.written.set(after)
	return nil
}

// written remembers the newest version of each object that the hub wrote a status of, to notice when somebody else writes one.
type written struct {
	mu sync.Mutex
	m  map[types.UID]string
}

func (w *written) set(o client.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.m == nil {
		w.m = map[types.UID]string{}
	}
	w.m[o.GetUID()] = o.GetResourceVersion()
}

func (w *written) is(o client.Object) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.m[o.GetUID()] == o.GetResourceVersion()
}

func (w *written) forget(o client.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.m, o.GetUID())
}

// floors remembers serials that were written down but may not show in the cache yet, and whether their documents went out.
type floors struct {
	mu sync.Mutex
	m  map[topics.Cluster]floor
}

type floor struct {
	serial    bundlefmt.Serial
	published bool
}

func (f *floors) get(c topics.Cluster, cached bundlefmt.Serial) bundlefmt.Serial {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(f.m[c].serial, cached)
}

func (f *floors) set(c topics.Cluster, s bundlefmt.Serial) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		f.m = map[topics.Cluster]floor{}
	}
	f.m[c] = floor{serial: s}
}

func (f *floors) publish(c topics.Cluster) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x, ok := f.m[c]; ok {
		f.m[c] = floor{x.serial, true}
	}
}

// unused: this process has written a number down, and its document did not go out.
func (f *floors) unused(c topics.Cluster) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	x, ok := f.m[c]
	return ok && !x.published
}

func (f *floors) forget(c topics.Cluster) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.m, c)
}

// keyring remembers which keys a cluster had, to notice when one goes.
type keyring struct {
	mu sync.Mutex
	m  map[topics.Cluster][]string
}

func (k *keyring) swap(c topics.Cluster, keys []string) (old []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.m == nil {
		k.m = map[topics.Cluster][]string{}
	}
	old = k.m[c]
	k.m[c] = keys
	return old
}

func (k *keyring) forget(c topics.Cluster) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.m, c)
}

func lines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

func joinLines(s []string) string { return strings.Join(s, "\n") }
