package apply

import (
	"encoding/json"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"shoal.dev/shoal/bundlefmt"
)

// Run is the one time that an object of a bundle does its work: a Job, a Pod of its own, a request for a certificate. When it
// has ended it may be collected (ttlSecondsAfterFinished, the collection of ended Pods and of old requests, somebody who
// tidies up), and is done until the bundle states something else for it: it is neither missing nor made again. Runs are the
// only thing that the caller keeps for [Applier.Apply] and [Applier.Check].
type Run struct {
	Ref   Ref
	Spec  bundlefmt.Digest // of the spec that the bundle states
	Force uint64           // Policy.ForceSync: another one runs it again
	UID   string
	End   string // RunComplete, RunFailed; empty: it was not seen to end
	Why   string // of a failure
}

// Ends of a run.
const (
	RunComplete = "complete"
	RunFailed   = "failed"
)

// runsOnce reports whether a kind does its work once.
func runsOnce(r Ref) bool {
	return r.Group == "batch" && r.Kind == "Job" || r.Group == "" && r.Kind == "Pod" ||
		r.Group == "certificates.k8s.io" && r.Kind == "CertificateSigningRequest"
}

// endOf is how an object's run has ended.
func endOf(u *unstructured.Unstructured) (end, why string) {
	switch u.GetKind() {
	case "Job":
		if condition(u, "Complete")["status"] == "True" {
			return RunComplete, ""
		}
		if c := condition(u, "Failed"); c["status"] == "True" {
			return RunFailed, short(text(c), patchLength)
		}
	case "Pod":
		if valueAt(u, "status", "phase") == "Succeeded" {
			return RunComplete, ""
		}
	case "CertificateSigningRequest":
		if cert, _ := valueAt(u, "status", "certificate").(string); cert != "" {
			return RunComplete, ""
		}
	}
	return "", ""
}

// ending is what the watch has seen last of an object that runs once.
type ending struct {
	end, why string
}

// end notes how a run stands, from an event. It needs mu.
func (t *tracked) end(e watch.EventType, m metav1.Object) {
	u, ok := m.(*unstructured.Unstructured)
	if !ok || m.GetLabels()[Label] == "" {
		return
	}
	gvk := u.GroupVersionKind()
	if !runsOnce(Ref{Group: gvk.Group, Kind: gvk.Kind}) {
		return
	}
	end, why := endOf(u)
	if e != watch.Deleted && end == "" {
		return
	}
	if len(t.ended) >= maxEnded { // nobody asked for them
		clear(t.ended)
	}
	t.ended[u.GetUID()] = ending{end, why}
}

// maxEnded bounds what is remembered of Jobs and Pods that nobody asks for.
const maxEnded = 4096

func (t *tracked) endingOf(uid types.UID) (ending, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.ended[uid]
	return e, ok
}

// expects: the watch knows the object, and has not told yet that it is gone.
func (t *tracked) expects(key objectKey, uid types.UID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.memory.objects[key]
	return r != nil && r.uid == uid
}

// specOf is the hash of the spec that a bundle states.
func specOf(o *unstructured.Unstructured) (d bundlefmt.Digest) {
	if b, err := json.Marshal(o.Object["spec"]); err == nil {
		d = bundlefmt.Sum(b)
	}
	return d
}

// runOf is what is known of an object's run, and has been kept or is to be; nil: nothing. over: the object is not on the
// cluster, and need not be, since its run was seen to end, or the object was collected while nobody looked: only what has
// ended is.
func (a *Applier) runOf(d *Deployment, o *object) (r *Run, over bool) {
	if !runsOnce(o.ref) {
		return nil, false
	}
	i := slices.IndexFunc(d.Runs, func(r Run) bool {
		return idOf(r.Ref) == idOf(o.ref) && r.Spec == o.spec && r.Force == d.Policy.ForceSync
	})
	if i >= 0 {
		known := d.Runs[i]
		r = &known
	}
	switch {
	case o.live != nil && owner(o.live) == d.Name:
		now := Run{Ref: o.ref, Spec: o.spec, Force: d.Policy.ForceSync, UID: string(o.live.GetUID())}
		now.End, now.Why = endOf(o.live)
		return &now, false
	case o.live != nil || o.fail != nil || !o.looked || r == nil: // not ours, or not known to be gone
		return r, false
	case r.End != "":
		return r, true
	}
	if e, seen := a.tracked.endingOf(types.UID(r.UID)); seen {
		if r.End, r.Why = e.end, e.why; r.End == "" {
			return nil, false
		}
		return r, true
	}
	if a.tracked.expects(o.key(), types.UID(r.UID)) { // the watch is about to tell how it ended
		return r, true
	}
	if valueAt(o.want, "spec", "ttlSecondsAfterFinished") == nil || valueAt(o.want, "spec", "suspend") == true {
		return nil, false
	}
	r.End = RunComplete
	return r, true
}

// runs are those of all objects.
func (a *Applier) runs(d *Deployment, objects []*object) (out []Run) {
	for _, o := range objects {
		if r, _ := a.runOf(d, o); r != nil {
			out = append(out, *r)
		}
	}
	return out
}
