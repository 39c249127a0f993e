package apply

import (
	"context"
	"fmt"
	"strings"

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

// of is nil for an object that does its work, else why it does not. Reason Failed means that waiting will not help, Suspended
// that it does nothing because it is told so, which is as good as ready.
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
	msg := res.Message
	if c := condition(live, "ReplicaFailure"); c["status"] == "True" { // a quota or a webhook, say
		msg += ": " + text(c)
	}
	return &Finding{o.ref, InProgress, short(msg, patchLength)}
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

// special decides about the built-in kinds, with each of their strategies and policies, where kstatus does not know them, or
// does not tell what they are for: https://kubernetes.io/docs/reference/kubernetes-api/.
func (r *readiness) special(ctx context.Context, ref Ref, live *unstructured.Unstructured) (decided bool, f *Finding) {
	say := func(reason Reason, format string, args ...any) (bool, *Finding) {
		return true, &Finding{ref, reason, short(fmt.Sprintf(format, args...), patchLength)}
	}
	spec := func(fields ...string) any { return valueAt(live, append([]string{"spec"}, fields...)...) }
	count := func(fields ...string) int64 { n, _ := valueAt(live, fields...).(int64); return n }
	replicas := int64(1)
	if n, ok := spec("replicas").(int64); ok {
		replicas = n
	}
	observed, generation := count("status", "observedGeneration"), live.GetGeneration()
	behind := func() (bool, *Finding) {
		return say(InProgress, "its controller has not looked at it since it was changed")
	}

	switch (schema.GroupKind{Group: ref.Group, Kind: ref.Kind}) {
	case schema.GroupKind{Group: "apps", Kind: "Deployment"}:
		if spec("paused") == true && observed >= generation {
			return say(Suspended, "spec.paused: its Pods are left as they are")
		}
	case schema.GroupKind{Group: "apps", Kind: "StatefulSet"}:
		// minReadySeconds counts for available only. OnDelete: somebody deletes Pods to update them, but they have to be there.
		ready := min(count("status", "readyReplicas"), count("status", "availableReplicas"))
		if valueAt(live, "status", "availableReplicas") == nil && spec("minReadySeconds") == nil {
			ready = count("status", "readyReplicas")
		}
		switch onDelete := spec("updateStrategy", "type") == "OnDelete"; {
		case observed < generation:
			return behind()
		case ready < replicas:
			return say(InProgress, "Ready: %d/%d", ready, replicas)
		case onDelete && count("status", "replicas") > replicas:
			return say(InProgress, "Pending termination: %d", count("status", "replicas")-replicas)
		case onDelete:
			return true, nil
		}
	case schema.GroupKind{Group: "apps", Kind: "DaemonSet"}:
		if spec("updateStrategy", "type") == "OnDelete" && observed > 0 {
			want, have := count("status", "desiredNumberScheduled"), min(count("status", "numberReady"), count("status", "numberAvailable"))
			switch {
			case observed < generation:
				return behind()
			case have < want:
				return say(InProgress, "Available: %d/%d", have, want)
			}
			return true, nil
		}
	case schema.GroupKind{Kind: "ReplicationController"}:
		switch failure := condition(live, "ReplicaFailure"); {
		case observed < generation || observed == 0:
			return behind()
		case failure["status"] == "True":
			return say(InProgress, "Available: %d/%d: %s", count("status", "availableReplicas"), replicas, text(failure))
		case count("status", "availableReplicas") < replicas:
			return say(InProgress, "Available: %d/%d", count("status", "availableReplicas"), replicas)
		case count("status", "replicas") > replicas:
			return say(InProgress, "Pending termination: %d", count("status", "replicas")-replicas)
		}
		return true, nil
	case schema.GroupKind{Kind: "Pod"}:
		switch phase := valueAt(live, "status", "phase"); phase {
		case "Failed": // with restartPolicy Always only when the node has put it out
			return say(Failed, "the Pod ended with an error: %s", podTrouble(live))
		case "Pending": // a node may come, or an image: waiting helps
			return say(InProgress, "%s", podTrouble(live))
		}
	case schema.GroupKind{Group: "batch", Kind: "Job"}:
		complete, failed := condition(live, "Complete")["status"] == "True", condition(live, "Failed")
		parallelism, limited := spec("parallelism").(int64)
		switch {
		case complete:
		case failed["status"] == "True":
			return say(Failed, "the Job has failed: %s", text(failed))
		case spec("suspend") == true:
			return say(Suspended, "spec.suspend: its Pods do not run")
		case limited && parallelism == 0:
			return say(Suspended, "spec.parallelism: 0: no Pod of it runs")
		case r.d.Policy.WaitForJobs:
			return say(InProgress, "Job %s", jobProgress(live))
		}
	case schema.GroupKind{Group: "batch", Kind: "CronJob"}:
		if spec("suspend") == true {
			return say(Suspended, "spec.suspend: it starts no Jobs")
		}
	case schema.GroupKind{Kind: "Service"}:
		given, _ := valueAt(live, "status", "loadBalancer", "ingress").([]any)
		external, _ := spec("externalIPs").([]any)
		if spec("type") == "LoadBalancer" && len(given) == 0 && len(external) == 0 {
			return say(InProgress, "no address yet: nothing on this cluster has given the load balancer one")
		}
	case schema.GroupKind{Kind: "PersistentVolumeClaim"}:
		switch phase := valueAt(live, "status", "phase"); {
		case phase == "Pending" && r.waitsForPod(ctx, live):
			return true, nil // it is bound when a Pod uses it, and whether one does is for the Pod's owner to say
		case phase == "Lost":
			return say(Failed, "its volume is lost")
		}
	case schema.GroupKind{Kind: "PersistentVolume"}:
		if valueAt(live, "status", "phase") == "Failed" {
			return say(Failed, "its storage could not be reclaimed: %v", orNone(valueAt(live, "status", "message")))
		}
	case schema.GroupKind{Group: "autoscaling", Kind: "HorizontalPodAutoscaler"}:
		// Without metrics it keeps what there is; without its target it does nothing.
		if c := condition(live, "AbleToScale"); c["status"] == "False" && c["reason"] == "FailedGetScale" {
			return say(InProgress, "%s", text(c))
		}
	case schema.GroupKind{Group: "apiregistration.k8s.io", Kind: "APIService"}:
		if c := condition(live, "Available"); c["status"] != "True" {
			return say(InProgress, "the API does not answer: %s", text(c))
		}
		return true, nil
	case schema.GroupKind{Group: "certificates.k8s.io", Kind: "CertificateSigningRequest"}:
		for _, typ := range []string{"Denied", "Failed"} {
			if c := condition(live, typ); c["status"] == "True" {
				return say(Failed, "%s: %s", strings.ToLower(typ), text(c))
			}
		}
		if cert, _ := valueAt(live, "status", "certificate").(string); cert == "" {
			return say(InProgress, "no certificate yet: kubectl certificate approve %s, unless its signer approves it", ref.Name)
		}
		return true, nil
	}
	if !builtIn(ref.Group) && condition(live, "Ready") == nil {
		if c := condition(live, "Available"); c["status"] == "False" {
			return say(InProgress, "Available is False: %s", text(c))
		}
	}
	return false, nil
}

func valueAt(u *unstructured.Unstructured, path ...string) any {
	v, _, _ := unstructured.NestedFieldNoCopy(u.Object, path...)
	return v
}

// text is what a condition says.
func text(c map[string]any) string {
	reason, msg := orNone(c["reason"]), orNone(c["message"])
	switch {
	case c == nil:
		return "its controller has not looked at it"
	case msg == "":
		return fmt.Sprint(reason)
	case reason == "":
		return fmt.Sprint(msg)
	}
	return fmt.Sprintf("%v: %v", reason, msg)
}

// podTrouble says why a Pod does not run, or did not end well: what its containers wait for or died of, else its conditions.
func podTrouble(pod *unstructured.Unstructured) string {
	if msg, _ := valueAt(pod, "status", "message").(string); msg != "" {
		return fmt.Sprintf("%v: %s", orNone(valueAt(pod, "status", "reason")), msg)
	}
	for _, list := range []string{"initContainerStatuses", "containerStatuses"} {
		containers, _ := valueAt(pod, "status", list).([]any)
		for _, c := range containers {
			m := mapOf(c)
			if w := mapOf(mapOf(m["state"])["waiting"]); w != nil && w["reason"] != "PodInitializing" && w["reason"] != "ContainerCreating" {
				return fmt.Sprintf("container %v waits: %s", m["name"], text(w))
			}
			if t := mapOf(mapOf(m["state"])["terminated"]); t != nil && fmt.Sprint(t["exitCode"]) != "0" {
				return fmt.Sprintf("container %v ended with exit code %v: %s", m["name"], t["exitCode"], text(t))
			}
		}
	}
	if c := condition(pod, "PodScheduled"); c["status"] == "False" {
		return "it is not scheduled: " + text(c)
	}
	return fmt.Sprintf("the Pod is %v", orNone(valueAt(pod, "status", "phase")))
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
