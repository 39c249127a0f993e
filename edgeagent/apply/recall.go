package apply

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// memory is what the watches know of the objects of deployments, so that [Applier.Check] need not ask. An object is in it
// only between an event of a watch that stands and the end of that watch: what is not in it is asked for, and nothing in it
// is older than what the API server has told.
//
// It holds a body only until Check has found the object to be ready and as wanted. After that the resource version is
// enough, so a site at rest costs a few hundred bytes an object. Secrets and ConfigMaps, CRDs, and kinds without a status
// are watched by their metadata alone and never have a body.
type memory struct {
	live    map[schema.GroupVersionResource]bool
	objects map[objectKey]*remembered
}

type remembered struct {
	resourceVersion string
	uid             types.UID
	deployment      string
	body            []byte            // JSON; nil: only what is above is known
	fine            [sha256.Size]byte // what was asked for when it was found to be ready and as wanted; zero: it was not
}

// bodiless kinds are large, secret, or have no status: only an edit moves them, and then they are read.
func bodiless(g schema.GroupVersionResource) bool {
	switch g.Group {
	case "":
		return slices.Contains([]string{"secrets", "configmaps", "serviceaccounts", "limitranges"}, g.Resource)
	case "rbac.authorization.k8s.io", "apiextensions.k8s.io", "scheduling.k8s.io", "admissionregistration.k8s.io":
		return true
	}
	return false
}

// stands notes that a watch begins from now, so that it will tell of everything there is; over notes that it has ended.
func (t *tracked) stands(g schema.GroupVersionResource) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetKind(g)
	t.memory.live[g] = true
}

func (t *tracked) over(g schema.GroupVersionResource) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetKind(g)
	delete(t.memory.live, g)
}

func (t *tracked) forgetKind(g schema.GroupVersionResource) {
	for k := range t.memory.objects {
		if k.gvr == g {
			delete(t.memory.objects, k)
		}
	}
}

// remember takes an event over. It needs mu.
func (t *tracked) remember(key objectKey, e watch.EventType, m metav1.Object) {
	if !t.memory.live[key.gvr] {
		return
	}
	if e == watch.Deleted {
		delete(t.memory.objects, key)
		return
	}
	old := t.memory.objects[key]
	if old != nil && old.uid == m.GetUID() && !newer(m.GetResourceVersion(), old.resourceVersion) {
		return // the answer to our own write was here first
	}
	t.memory.objects[key] = newRemembered(key.gvr, m)
}

func newRemembered(g schema.GroupVersionResource, m metav1.Object) *remembered {
	r := &remembered{resourceVersion: m.GetResourceVersion(), uid: m.GetUID(), deployment: m.GetLabels()[Label]}
	if u, ok := m.(*unstructured.Unstructured); ok && !bodiless(g) {
		if b, err := u.MarshalJSON(); err == nil { // else it is asked for
			r.body = b
		}
	}
	return r
}

// newer compares as the API server defines it; versions that are no numbers are newer when they differ.
func newer(a, b string) bool {
	x, err1 := strconv.ParseUint(a, 10, 64)
	y, err2 := strconv.ParseUint(b, 10, 64)
	if err1 != nil || err2 != nil {
		return a != b
	}
	return x > y
}

// recall is an object as the watch knows it. known: it was found to be ready and as wanted in just that state, so nothing
// more needs to be looked at. Neither: it has to be asked for.
func (t *tracked) recall(o *object) (live *unstructured.Unstructured, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.memory.objects[o.key()]
	if r == nil || r.deployment != o.want.GetLabels()[Label] {
		return nil, false
	}
	if r.fine == o.asked {
		return nil, true
	}
	if r.body == nil {
		return nil, false
	}
	u := &unstructured.Unstructured{}
	if u.UnmarshalJSON(r.body) != nil {
		return nil, false
	}
	return u, false
}

// settled notes that an object is ready and as wanted in the state that was looked at.
func (t *tracked) settled(o *object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.memory.objects[o.key()]; r != nil && r.uid == o.live.GetUID() && r.resourceVersion == o.live.GetResourceVersion() {
		r.fine, r.body = o.asked, nil
	}
}

// lose drops what is known of an object that is being deleted.
func (t *tracked) lose(key objectKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.memory.objects, key)
}

func (o *object) key() objectKey { return objectKey{o.kind.gvr, o.ref.Namespace, o.ref.Name} }

// asked is the hash of a wanted object and of how it is judged.
func asked(want *unstructured.Unstructured, how []byte) ([sha256.Size]byte, error) {
	b, err := json.Marshal(want.Object)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("hash object: %w", err)
	}
	return sha256.Sum256(append(b, how...)), nil
}
