package apply

import (
	"context"
	"fmt"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// readiness tells for one pass which objects do their work.
type readiness struct {
	a *Applier
	d Deployment

	later map[string]bool // storage classes: does a claim wait for a Pod?
}

// of is nil for an object that does its work, else why it does not. Reason Failed means that waiting will not help.
//
// In this order: the object is being deleted; a health rule of the bundle, which has the last word; what we know better than
// kstatus; kstatus.
func (r *readiness) of(ctx context.Context, o *object) *Finding {
	if o.live.GetDeletionTimestamp() != nil {
		return &Finding{o.ref, Terminating, terminating(o.live)}
	}
	live := r.dropConditions(o.live)
	if decided, f := r.a.healthOf(r.d.Handling.Health, o.ref, live); decided {
		return f
	}
	if decided, f := r.special(ctx, o.ref, live); decided {
		return f
	}
	res, err := status.Compute(live)
	if err != nil {
		return &Finding{o.ref, InProgress, "readiness cannot be told: " + err.Error()}
	}
	switch res.Status {
	case status.CurrentStatus:
		return nil
	case status.FailedStatus:
		return &Finding{o.ref, Failed, short(res.Message, patchLength)}
	}
	return &Finding{o.ref, InProgress, short(res.Message, patchLength)}
}

// dropConditions leaves out what the bundle says does not count. The live object is not changed.
func (r *readiness) dropConditions(live *unstructured.Unstructured) *unstructured.Unstructured {
	if len(r.d.Handling.IgnoreConditions) == 0 {
		return live
	}
	conds, ok, _ := unstructured.NestedSlice(live.Object, "status", "conditions")
	if !ok {
		return live
	}
	var kept []any
	for _, c := range conds {
		if m, _ := c.(map[string]any); !r.ignored(m) {
			kept = append(kept, c)
		}
	}
	if len(kept) == len(conds) {
		return live
	}
	out := live.DeepCopy()
	st, _ := out.Object["status"].(map[string]any)
	st["conditions"] = kept
	return out
}

func (r *readiness) ignored(c map[string]any) bool {
	for _, pairs := range r.d.Handling.IgnoreConditions {
		all := len(pairs) > 0
		for k, v := range pairs {
			all = all && fmt.Sprint(c[k]) == v
		}
		if all {
			return true
		}
	}
	return false
}

func (r *readiness) special(ctx context.Context, ref Ref, live *unstructured.Unstructured) (decided bool, f *Finding) {
	wait := func(format string, args ...any) (bool, *Finding) {
		return true, &Finding{ref, InProgress, fmt.Sprintf(format, args...)}
	}
	switch (schema.GroupKind{Group: ref.Group, Kind: ref.Kind}) {
	case schema.GroupKind{Kind: "Service"}:
		typ, _, _ := unstructured.NestedString(live.Object, "spec", "type")
		given, _, _ := unstructured.NestedSlice(live.Object, "status", "loadBalancer", "ingress")
		external, _, _ := unstructured.NestedSlice(live.Object, "spec", "externalIPs")
		if typ == "LoadBalancer" && len(given) == 0 && len(external) == 0 {
			return wait("no address yet: nothing on this cluster has given the load balancer one")
		}
	case schema.GroupKind{Kind: "PersistentVolumeClaim"}:
		phase, _, _ := unstructured.NestedString(live.Object, "status", "phase")
		if phase == "Pending" && r.waitsForPod(ctx, live) {
			return true, nil // it is bound when a Pod uses it, and whether one does is for the Pod's owner to say
		}
		if phase == "Lost" {
			return true, &Finding{ref, Failed, "its volume is lost"}
		}
	case schema.GroupKind{Group: "batch", Kind: "Job"}:
		if r.d.Policy.WaitForJobs && condition(live, "Complete")["status"] != "True" && condition(live, "Failed")["status"] != "True" {
			return wait("Job %s", jobProgress(live))
		}
	}
	if !builtIn(ref.Group) && condition(live, "Ready") == nil {
		if c := condition(live, "Available"); c["status"] == "False" {
			return wait("%s", short(fmt.Sprintf("Available is False: %v %v", orNone(c["reason"]), orNone(c["message"])), patchLength))
		}
	}
	return false, nil
}

func orNone(v any) any {
	if v == nil {
		return ""
	}
	return v
}

var storageClasses = schema.GroupVersionResource{Group: "storage.k8s.io", Version: "v1", Resource: "storageclasses"}

// waitsForPod: the claim's storage class makes a volume only when a Pod is scheduled that uses it, as K3s' own class does.
func (r *readiness) waitsForPod(ctx context.Context, claim *unstructured.Unstructured) bool {
	if claim.GetAnnotations()["volume.kubernetes.io/selected-node"] != "" {
		return false // there is one
	}
	class, _, _ := unstructured.NestedString(claim.Object, "spec", "storageClassName")
	if class == "" {
		return false
	}
	later, ok := r.later[class]
	if !ok {
		rctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		// That it cannot be read leaves the claim pending, which is the truth as well.
		if u, err := r.a.dyn.Resource(storageClasses).Get(rctx, class, metav1.GetOptions{}); err == nil {
			mode, _, _ := unstructured.NestedString(u.Object, "volumeBindingMode")
			later = mode == "WaitForFirstConsumer"
		}
		if r.later == nil {
			r.later = map[string]bool{}
		}
		r.later[class] = later
	}
	return later
}
