package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	podsResource   = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	eventsResource = schema.GroupVersionResource{Version: "v1", Resource: "events"}
)

// terminating says what an object waits for that is being deleted: its finalizers, and a namespace for its content, in its own
// words.
func terminating(u *unstructured.Unstructured) string {
	msg := "is being deleted"
	if t := u.GetDeletionTimestamp(); t != nil {
		msg += " since " + t.UTC().Format(time.RFC3339)
	}
	if fin := u.GetFinalizers(); len(fin) > 0 {
		msg += fmt.Sprintf(", waiting for finalizers %v", fin)
	}
	if u.GetKind() == "Namespace" {
		conditions, _ := valueAt(u, "status", "conditions").([]any)
		for _, c := range conditions {
			if m := mapOf(c); m["status"] == "True" && strings.HasPrefix(fmt.Sprint(m["type"]), "Namespace") {
				msg += fmt.Sprintf("; %v: %v", m["type"], orNone(m["message"]))
			}
		}
	}
	return msg
}

// whyStays is more about a workload that is being deleted and waits for its Pods; empty: nothing.
func (a *Applier) whyStays(ctx context.Context, u *unstructured.Unstructured) string {
	if !slices.Contains(u.GetFinalizers(), metav1.FinalizerDeleteDependents) {
		return ""
	}
	selector, _ := valueAt(u, "spec", "selector", "matchLabels").(map[string]any)
	set := labels.Set{}
	for k, v := range selector {
		set[k] = fmt.Sprint(v)
	}
	if len(set) == 0 {
		return ""
	}
	pods, err := a.podsOf(ctx, u.GetNamespace(), set.String())
	if err != nil || len(pods) == 0 {
		return ""
	}
	pod := pods[0]
	msg := fmt.Sprintf("; %d Pods are still there: Pod %s ", len(pods), pod.GetName())
	if pod.GetDeletionTimestamp() == nil {
		return msg + "is not being deleted yet"
	}
	msg += terminating(pod)
	if node, _ := valueAt(pod, "spec", "nodeName").(string); node != "" {
		msg += fmt.Sprintf(" (on node %s)", node)
	}
	return msg
}

// podsOf are the Pods with these labels, newest first.
func (a *Applier) podsOf(ctx context.Context, ns, selector string) ([]*unstructured.Unstructured, error) {
	list, err := a.listPage(ctx, a.dyn.Resource(podsResource).Namespace(ns).List, metav1.ListOptions{LabelSelector: selector, Limit: 100})
	if err != nil {
		return nil, err
	}
	out := make([]*unstructured.Unstructured, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
	}
	slices.SortStableFunc(out, func(a, b *unstructured.Unstructured) int {
		return b.GetCreationTimestamp().Compare(a.GetCreationTimestamp().Time)
	})
	return out, nil
}

// warning is the newest that was said about an object; empty: nothing was, or it may not be seen.
func (a *Applier) warning(ctx context.Context, u *unstructured.Unstructured) string {
	list, err := a.listPage(ctx, a.dyn.Resource(eventsResource).Namespace(u.GetNamespace()).List, metav1.ListOptions{
		FieldSelector: fmt.Sprintf("involvedObject.uid=%s,type=Warning", u.GetUID()), Limit: 100,
	})
	if err != nil {
		return ""
	}
	var newest time.Time
	msg := ""
	for i := range list.Items {
		e := &list.Items[i]
		at := e.GetCreationTimestamp().Time
		for _, f := range []string{"lastTimestamp", "eventTime"} {
			if s, _ := valueAt(e, f).(string); s != "" {
				if t, err := time.Parse(time.RFC3339, s); err == nil && t.After(at) {
					at = t
				}
			}
		}
		if !at.Before(newest) {
			newest, msg = at, text(e.Object)
		}
	}
	return msg
}

// whyWaits says why a Job or a Pod has not ended; empty: there is nothing more to say, or it may not be seen.
func (a *Applier) whyWaits(ctx context.Context, ref Ref, u *unstructured.Unstructured) string {
	pod := u
	switch (schema.GroupKind{Group: ref.Group, Kind: ref.Kind}) {
	case schema.GroupKind{Group: "batch", Kind: "Job"}:
		if valueAt(u, "spec", "suspend") == true {
			return "the Job is suspended"
		}
		pods, err := a.podsOf(ctx, ref.Namespace, "job-name="+ref.Name)
		switch {
		case apierrors.IsForbidden(err):
			return "why cannot be seen: the agent may not list Pods"
		case err != nil:
			return ""
		case len(pods) == 0:
			if w := a.warning(ctx, u); w != "" {
				return "it has no Pod: " + w
			}
			return "it has no Pod"
		}
		pod = pods[0]
	case schema.GroupKind{Kind: "Pod"}:
	default:
		return ""
	}
	if valueAt(pod, "status", "phase") == "Running" && condition(pod, "Ready")["status"] == "True" {
		return fmt.Sprintf("Pod %s runs", pod.GetName())
	}
	msg := podTrouble(pod)
	if w := a.warning(ctx, pod); w != "" && !strings.Contains(msg, w) {
		msg += "; " + w
	}
	return fmt.Sprintf("Pod %s: %s", pod.GetName(), msg)
}

// whyEvery is how often it is found out why something still waits.
const whyEvery = 5 * time.Second

// vigil tells of a long wait, to [Deployment.Progress].
type vigil struct {
	a     *Applier
	d     *Deployment
	what  string // begins the message
	began time.Time
	limit time.Duration
	asked time.Time
	why   string
}

func (a *Applier) vigil(d *Deployment, limit time.Duration, format string, args ...any) *vigil {
	return &vigil{a: a, d: d, what: fmt.Sprintf(format, args...), began: time.Now(), limit: limit}
}

// tell says how the wait goes. doing is cheap to know, why is asked for now and then; it may be nil.
func (v *vigil) tell(doing string, why func() string) {
	if why != nil && time.Since(v.asked) >= whyEvery {
		v.why, v.asked = why(), time.Now()
	}
	if v.d.Progress == nil {
		return
	}
	msg := fmt.Sprintf("%s since %s", v.what, v.began.UTC().Format(time.RFC3339))
	if v.limit > 0 {
		msg += fmt.Sprintf(", for at most %s", v.limit)
	}
	v.d.Progress(short(msg+": "+v.state(doing), 2*patchLength))
}

// state is what is known of the wait.
func (v *vigil) state(doing string) string {
	if v.why == "" {
		return doing
	}
	return doing + "; " + v.why
}
