package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	// LockLabel marks a Lease in the agent's namespace as a lock; its value means nothing.
	LockLabel = "shoal.dev/lock"
	// ReasonAnnotation on such a Lease says why nothing is to be changed.
	ReasonAnnotation = "shoal.dev/reason"
)

// Lock is a Lease by which an application on the cluster asks for no changes. It holds as any Lease does: while it names a
// holder, from renewTime (acquireTime, creation) on for leaseDurationSeconds.
type Lock struct {
	Name   string
	Holder string
	Reason string
	Since  time.Time
	Until  time.Time // zero: nobody said
}

var leases = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}

// WatchLocks calls tell with all locks now and whenever that changes, until ctx ends or the watch does; then call it again
// after a pause. One connection, and a list whenever it begins.
func (a *Applier) WatchLocks(ctx context.Context, tell func([]Lock)) error {
	if a.o.Namespace == "" {
		<-ctx.Done()
		return nil
	}
	client := a.dyn.Resource(leases).Namespace(a.o.Namespace)
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	list, err := client.List(rctx, metav1.ListOptions{LabelSelector: LockLabel})
	if err != nil {
		return fmt.Errorf("list locks (leases in namespace %s): %w", a.o.Namespace, err)
	}
	held := map[string]Lock{}
	for i := range list.Items {
		note(held, &list.Items[i])
	}
	tell(sorted(held))
	life := int64(watchLife.Seconds())
	w, err := client.Watch(ctx, metav1.ListOptions{LabelSelector: LockLabel, ResourceVersion: list.GetResourceVersion(), TimeoutSeconds: &life})
	if err != nil {
		return fmt.Errorf("watch locks: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.ResultChan():
			if !ok {
				return errors.New("watch locks: the connection ended")
			}
			u, isObject := e.Object.(*unstructured.Unstructured)
			if !isObject {
				return fmt.Errorf("watch locks: %w", apierrors.FromObject(e.Object))
			}
			switch e.Type {
			case "DELETED":
				delete(held, u.GetName())
			case "ADDED", "MODIFIED":
				note(held, u)
			default:
				continue
			}
			tell(sorted(held))
		}
	}
}

func note(held map[string]Lock, u *unstructured.Unstructured) {
	l := Lock{Name: u.GetName(), Reason: short(u.GetAnnotations()[ReasonAnnotation], patchLength), Since: u.GetCreationTimestamp().UTC()}
	l.Holder, _, _ = unstructured.NestedString(u.Object, "spec", "holderIdentity")
	if l.Holder == "" || u.GetDeletionTimestamp() != nil { // released
		delete(held, l.Name)
		return
	}
	for _, f := range []string{"acquireTime", "renewTime"} {
		s, _, _ := unstructured.NestedString(u.Object, "spec", f)
		if t, err := time.Parse(time.RFC3339, s); err == nil && t.After(l.Since) {
			l.Since = t.UTC()
		}
	}
	if n, ok, _ := unstructured.NestedInt64(u.Object, "spec", "leaseDurationSeconds"); ok && n > 0 {
		l.Until = l.Since.Add(time.Duration(n) * time.Second)
	}
	held[l.Name] = l
}

func sorted(held map[string]Lock) []Lock {
	out := make([]Lock, 0, len(held))
	for _, l := range held {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Lock) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}
