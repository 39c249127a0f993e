package enroll

import (
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// Refusals counts refused attempts to enrol until the status of their token says so. Its size is bounded by the tokens there are:
// only attempts with a token that exists are noted.
type Refusals struct {
	// Noted is called for the token of each one, so that its status is written soon.
	Noted func(token types.NamespacedName)

	mu sync.Mutex
	m  map[types.NamespacedName]refusals
}

type refusals struct {
	n    int64
	last v1alpha1.Refusal
}

// longest reason that is kept, in bytes.
const longest = 1024

// Note takes an attempt down.
func (r *Refusals) Note(token types.NamespacedName, cluster string, reason error) {
	text := reason.Error()
	if len(text) > longest {
		text = text[:longest-3] + "..."
	}
	r.mu.Lock()
	if r.m == nil {
		r.m = map[types.NamespacedName]refusals{}
	}
	r.m[token] = refusals{r.m[token].n + 1, v1alpha1.Refusal{Time: metav1.Now(), Cluster: cluster, Reason: text}}
	r.mu.Unlock()
	r.Noted(token)
}

// Add brings a token's status up to date. Done takes away what was added, once the status is written.
func (r *Refusals) Add(t *v1alpha1.ClusterRegistrationToken) (done func()) {
	key := types.NamespacedName{Namespace: t.Namespace, Name: t.Name}
	r.mu.Lock()
	x := r.m[key]
	r.mu.Unlock()
	if x.n == 0 {
		return func() {}
	}
	t.Status.Refused += x.n
	last := x.last
	last.Time = metav1.NewTime(last.Time.Truncate(time.Second))
	t.Status.LastRefusal = &last
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		now := r.m[key]
		if now.n -= x.n; now.n > 0 {
			r.m[key] = now
		} else {
			delete(r.m, key)
		}
	}
}
