package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"shoal.dev/shoal/bundlefmt"
)

// HookLabel marks the object of a hook, beside the label of its deployment: it is in no inventory, is not watched and not
// compared, and is found by this when the deployment is removed.
const HookLabel = "shoal.dev/hook"

const (
	hookTimeout = 5 * time.Minute // Helm's default
	maxHookTime = 30 * 24 * time.Hour
	hookPoll    = time.Second // at most: a Job may delete itself soon after it is done

	// A Job that is created again under its name at once can meet the Job controller still waiting for Pods of the one
	// before. It does so for five minutes then; a moment lets it see that the old one is gone.
	jobGone = time.Second
)

func isHook(u *unstructured.Unstructured) bool { _, ok := u.GetLabels()[HookLabel]; return ok }

// HookTime is how long the hooks of an Apply of d may take: of each no more than its own limit, and of the wait for readiness
// before the last ones. Every other request of an Apply has limits that do not depend on the bundle.
func (d Deployment) HookTime() time.Duration {
	before, after := d.Operation.moments()
	out := d.hookTime(before, after)
	if d.hookTime(after) > 0 {
		out += time.Duration(d.Policy.ReadyTimeoutSecond) * time.Second
	}
	return out
}

// RemovalTime is the same for Remove.
func (d Deployment) RemovalTime() time.Duration {
	return d.hookTime(bundlefmt.PreDelete, bundlefmt.PostDelete)
}

func (d Deployment) hookTime(events ...bundlefmt.HookEvent) (out time.Duration) {
	for _, h := range d.Handling.Hooks {
		for _, e := range events {
			if slices.Contains(h.Events, e) {
				out = min(out+hookLimit(d.Policy), maxHookTime)
			}
		}
	}
	return out
}

// hookLimit is how long one hook may take.
func hookLimit(p bundlefmt.Policy) time.Duration {
	if p.ReadyTimeoutSecond > 0 {
		return time.Duration(p.ReadyTimeoutSecond) * time.Second
	}
	return hookTimeout
}

// hook is an object that is created at a moment of a release and is no part of what runs.
type hook struct {
	*object
	spec bundlefmt.Hook
}

// hooked are the positions of hooks in a bundle's objects.
func hooked(h bundlefmt.Handling) map[int]bool {
	out := map[int]bool{}
	for _, k := range h.Hooks {
		out[k.Object] = true
	}
	return out
}

// kindOrder is the order in which Helm installs kinds; what is not in it comes last.
var kindOrder = []string{
	"PriorityClass", "Namespace", "NetworkPolicy", "ResourceQuota", "LimitRange", "PodSecurityPolicy", "PodDisruptionBudget", "ServiceAccount",
	"Secret", "ConfigMap", "StorageClass", "PersistentVolume", "PersistentVolumeClaim", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding",
	"Role", "RoleBinding", "Service", "DaemonSet", "Pod", "ReplicationController", "ReplicaSet", "Deployment", "HorizontalPodAutoscaler", "StatefulSet",
	"Job", "CronJob", "IngressClass", "Ingress", "APIService",
}

func kindRank(k string) int {
	if i := slices.Index(kindOrder, k); i >= 0 {
		return i
	}
	return len(kindOrder)
}

// hooksAt are the hooks of one moment in the order in which they run: by weight, kind and name.
func hooksAt(all []*hook, e bundlefmt.HookEvent) []*hook {
	var out []*hook
	for _, h := range all {
		if slices.Contains(h.spec.Events, e) {
			out = append(out, h)
		}
	}
	slices.SortStableFunc(out, func(a, b *hook) int {
		return cmp.Or(cmp.Compare(a.spec.Weight, b.spec.Weight), cmp.Compare(kindRank(a.ref.Kind), kindRank(b.ref.Kind)), cmp.Compare(a.ref.Name, b.ref.Name))
	})
	return out
}

// runHooks runs the hooks of one moment one after the other. A finding says which one did not succeed; those after it have
// not run. As Helm does it, those that succeeded are deleted only when all have run: a Job may use an account that is a
// hook as well.
func (a *Applier) runHooks(ctx context.Context, p *pass, hooks []*hook, e bundlefmt.HookEvent) (*Finding, error) {
	run := hooksAt(hooks, e)
	for i, h := range run {
		a.log.Info().Str("deployment", p.d.Name).Str("hook", string(e)).Stringer("object", h.ref).Msg("running hook")
		f, err := a.runHook(ctx, p, h, e)
		if err != nil {
			return nil, fmt.Errorf("%s hook %s: %w", e, h.ref, err)
		}
		if f == nil {
			continue
		}
		if f.Reason == HookFailed {
			f.Message = fmt.Sprintf("the %s hook %s", e, f.Message)
		}
		a.log.Warn().Str("deployment", p.d.Name).Str("hook", string(e)).Stringer("object", h.ref).Str("why", f.Message).Msg("hook did not succeed")
		if slices.Contains(h.spec.Delete, bundlefmt.HookFailed) {
			if err := a.clearHook(ctx, p, h); err != nil {
				return f, err
			}
		}
		return f, a.clearHooks(ctx, p, run[:i])
	}
	return nil, a.clearHooks(ctx, p, run)
}

func (a *Applier) clearHooks(ctx context.Context, p *pass, hooks []*hook) error {
	for _, h := range slices.Backward(hooks) {
		if slices.Contains(h.spec.Delete, bundlefmt.HookSucceeded) {
			if err := a.clearHook(ctx, p, h); err != nil {
				return err
			}
		}
	}
	return nil
}

// clearHook deletes the object of a hook that has run. That it cannot be deleted does not fail a release.
func (a *Applier) clearHook(ctx context.Context, p *pass, h *hook) error {
	d := deletion{a: a, kinds: p, deployment: p.d.Name}
	k, live, f, err := d.look(ctx, h.ref)
	if f == nil && err == nil && live != nil && owner(live) == p.d.Name && isHook(live) {
		_, f, err = d.deleteFound(ctx, victim{h.ref, k, live})
	}
	if f != nil {
		a.log.Warn().Str("deployment", p.d.Name).Stringer("object", h.ref).Str("why", f.Message).Msg("hook is left behind")
	}
	return err
}

// runHook creates one hook's object and waits until it has done its work.
func (a *Applier) runHook(ctx context.Context, p *pass, h *hook, e bundlefmt.HookEvent) (*Finding, error) {
	if err := h.place(ctx, p, p.d.Policy); err != nil || h.fail != nil {
		return h.fail, err
	}
	timeout := hookLimit(p.d.Policy)
	hctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	f, err := a.runPlaced(hctx, p, h, a.vigil(&p.d, timeout, "the %s hook %s has not ended,", e, h.ref))
	if err != nil && ctx.Err() == nil && hctx.Err() != nil {
		why := "did not succeed within " + timeout.String()
		if w := (*waiting)(nil); errors.As(err, &w) {
			why += ": " + w.what
		}
		return &Finding{h.ref, HookFailed, why}, nil
	}
	return f, err
}

// waiting is the error of a wait that its context ended.
type waiting struct {
	what string
	err  error
}

func (w *waiting) Error() string { return fmt.Sprintf("%v while it %s", w.err, w.what) }
func (w *waiting) Unwrap() error { return w.err }

func (a *Applier) runPlaced(ctx context.Context, p *pass, h *hook, v *vigil) (*Finding, error) {
	if f, err := a.makeWay(ctx, p, h, v); f != nil || err != nil {
		return f, err
	}
	got, f, err := a.patch(ctx, p, h.object, h.want, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
	if f != nil {
		return f, nil
	}
	if out := a.outage(ctx, err); out != nil {
		return nil, out
	}
	if err != nil {
		f := h.finding(err)
		return &f, nil
	}
	for wait := pollMin; ; wait = min(2*wait, hookPoll) {
		done, f, doing := hookState(h.ref, got)
		if done || f != nil {
			return f, nil
		}
		v.tell(doing, func() string { return a.whyWaits(ctx, h.ref, got) })
		if !pause(ctx, wait) {
			return nil, &waiting{v.state(doing), ctx.Err()}
		}
		next, err := a.get(ctx, h.kind, h.ref)
		switch {
		case err == nil && next.GetUID() == got.GetUID():
			got = next
		case err == nil || apierrors.IsNotFound(err):
			return &Finding{h.ref, HookFailed, "was deleted before anybody could see whether it succeeded"}, nil
		case ctx.Err() != nil:
			return nil, &waiting{v.state(doing), ctx.Err()}
		case a.outage(ctx, err) != nil: // it may well go on without the API server
		default:
			f := h.finding(err)
			return &f, nil
		}
	}
}

// makeWay sees to it that the hook's object is not there. One that is there and ours is deleted whatever the hook's policy
// says: it was left by a run before, or by an agent that died in the middle. Kinds that hold more than themselves stay, and
// are written over.
func (a *Applier) makeWay(ctx context.Context, p *pass, h *hook, v *vigil) (*Finding, error) {
	d := deletion{a: a, kinds: p, deployment: p.d.Name, foreground: true}
	deleted := false
	for wait := pollMin; ; wait = min(2*wait, hookPoll) {
		k, live, f, err := d.look(ctx, h.ref)
		if f != nil || err != nil {
			return f, err
		}
		if f := a.protects(p.d.Name, h.ref, live, h.want); f != nil {
			return f, nil
		}
		if live == nil {
			if deleted && h.ref.Kind == "Job" && !pause(ctx, jobGone) {
				return nil, ctx.Err()
			}
			return nil, nil
		}
		had := owner(live)
		switch {
		case had != "" && had != p.d.Name:
			return &Finding{h.ref, OwnedByOther, fmt.Sprintf("belongs to deployment %q already: rename the hook in one of the two bundles", had)}, nil
		case had == "" && !p.d.Policy.TakeOwnership && !writtenByUs(live):
			return &Finding{h.ref, NobodysObject, "is there already and belongs to no bundle, and running the hook would delete it: set helm.takeOwnership: true if it may go"}, nil
		case h.isNamespace() || h.isCRD() || h.ref.Group == "" && (h.ref.Kind == "PersistentVolumeClaim" || h.ref.Kind == "PersistentVolume"):
			return nil, nil
		}
		if live.GetDeletionTimestamp() == nil {
			if f := a.lives(h.ref, live); f != nil {
				return f, nil
			}
			if _, f, err := d.deleteNow(ctx, victim{h.ref, k, live}); f != nil || err != nil {
				return f, err
			}
			deleted = true
		}
		doing := "waits until the one before is gone: it " + terminating(live)
		v.tell(doing, nil)
		if !pause(ctx, wait) {
			return nil, &waiting{doing, ctx.Err()}
		}
	}
}

// hookState is whether a hook has done its work, has failed, or what it is doing. What neither runs nor is established has
// done its work when it is there.
func hookState(ref Ref, u *unstructured.Unstructured) (done bool, f *Finding, doing string) {
	fail := func(why string) *Finding { return &Finding{ref, HookFailed, "failed: " + short(why, patchLength)} }
	switch {
	case ref.Group == "batch" && ref.Kind == "Job":
		if c := condition(u, "Complete"); c["status"] == "True" {
			return true, nil, ""
		}
		if c := condition(u, "Failed"); c["status"] == "True" {
			return false, fail(fmt.Sprintf("%v: %v", c["reason"], c["message"])), ""
		}
		return false, nil, jobProgress(u)
	case ref.Group == "" && ref.Kind == "Pod":
		phase, _, _ := unstructured.NestedString(u.Object, "status", "phase")
		switch phase {
		case "Succeeded":
			return true, nil, ""
		case "Failed":
			msg, _, _ := unstructured.NestedString(u.Object, "status", "message")
			return false, fail("the Pod ended with an error " + msg), ""
		}
		return false, nil, "is " + cmp.Or(phase, "not started")
	case ref.Group == "apiextensions.k8s.io" && ref.Kind == "CustomResourceDefinition":
		ok, why := crdState(u)
		if why != "" {
			return false, fail("the CRD's names are not accepted: " + why), ""
		}
		return ok, nil, "is not established"
	}
	return true, nil, ""
}

func jobProgress(u *unstructured.Unstructured) string {
	n := func(field string) int64 {
		n, _, _ := unstructured.NestedInt64(u.Object, "status", field)
		return n
	}
	return fmt.Sprintf("runs: %d active, %d succeeded, %d failed", n("active"), n("succeeded"), n("failed"))
}

// condition is the condition of a type; nil: there is none.
func condition(u *unstructured.Unstructured, typ string) map[string]any {
	conds, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conds {
		if m, _ := c.(map[string]any); m["type"] == typ {
			return m
		}
	}
	return nil
}

// writtenByUs: the agent has applied it, so whoever took the label off did not make it theirs.
func writtenByUs(u *unstructured.Unstructured) bool {
	return slices.ContainsFunc(u.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool {
		return m.Manager == FieldManager && m.Operation == metav1.ManagedFieldsOperationApply
	})
}

// sweptKinds are where objects of hooks are looked for that no bundle on this site names any more.
var sweptKinds = []schema.GroupKind{
	{Group: "batch", Kind: "Job"}, {Kind: "Pod"}, {Kind: "ConfigMap"}, {Kind: "Secret"}, {Kind: "ServiceAccount"}, {Kind: "Service"}, {Kind: "PersistentVolumeClaim"},
	{Group: "rbac.authorization.k8s.io", Kind: "Role"}, {Group: "rbac.authorization.k8s.io", Kind: "RoleBinding"},
	{Group: "rbac.authorization.k8s.io", Kind: "ClusterRole"}, {Group: "rbac.authorization.k8s.io", Kind: "ClusterRoleBinding"},
}

// sweep deletes what hooks have left behind, of all releases that there were.
func (r *removal) sweep(ctx context.Context) error {
	kinds := slices.Clone(sweptKinds)
	for _, h := range r.dep.Handling.Hooks {
		if h.Object < len(r.dep.Objects) {
			o := r.dep.Objects[h.Object]
			if gk := (schema.GroupKind{Group: o.Group, Kind: o.Kind}); !slices.Contains(kinds, gk) {
				kinds = append(kinds, gk)
			}
		}
	}
	for _, gk := range kinds {
		if err := r.sweepKind(ctx, gk); err != nil {
			return err
		}
	}
	return nil
}

func (r *removal) sweepKind(ctx context.Context, gk schema.GroupKind) error {
	ref := Ref{Group: gk.Group, Kind: gk.Kind}
	k, f, err := r.d.kinds.any(ctx, ref)
	if f != nil || err != nil {
		return err
	}
	ref.Version = k.gvr.Version
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	list, err := r.a.metaClient(k, "").List(rctx, metav1.ListOptions{LabelSelector: Label + "=" + r.dep.Name + "," + HookLabel})
	if out := r.a.outage(ctx, err); out != nil {
		return fmt.Errorf("look for hooks: %w", out)
	}
	if err != nil {
		return nil // what may not be listed was not created by this agent
	}
	for i := range list.Items {
		ref.Namespace, ref.Name = list.Items[i].Namespace, list.Items[i].Name
		_, live, f, err := r.d.look(ctx, ref)
		if err != nil {
			return err
		}
		if live == nil || f != nil {
			continue
		}
		v := victim{ref, k, live}
		if !r.keep {
			var deleted bool
			if deleted, f, err = r.d.deleteFound(ctx, v); deleted {
				r.res.Deleted = append(r.res.Deleted, ref)
			}
		}
		if err == nil && (r.keep || f != nil && (f.Reason == HasContent || f.Reason == KeepPolicy || f.Reason == Protected)) {
			_, f, err = r.d.disown(ctx, v)
		}
		if err != nil {
			return err
		}
		if f != nil && f.Reason != Terminating {
			r.res.Remaining = append(r.res.Remaining, *f)
		}
	}
	return nil
}
