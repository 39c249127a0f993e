package apply

import (
	"context"
	"fmt"

	"shoal.dev/shoal/bundlefmt"
)

// Removed is what one Remove found or did.
type Removed struct {
	Deleted   []Ref     // deleted now, by this call
	Remaining []Finding // still there, with the reason: call again later
	Kept      []Finding // left on purpose, without our label: they are nobody's now, or another deployment's
	Note      string    // what else people should know, such as hooks that could not be run; usually empty
}

// Refs are what remains: hand them in next time.
func (r Removed) Refs() []Ref {
	var out []Ref
	for _, f := range r.Remaining {
		out = append(out, f.Ref)
	}
	return out
}

// Remove deletes the objects of a deployment, in reverse order and in stages: custom resources, then everything ordinary,
// then CRDs, then namespaces. A stage is begun when nothing of the one before remains, so Remove is called again (after a
// change that Watch told of, or with back-off) until Remaining is empty. Workloads are deleted in the foreground: a
// Deployment remains until its Pods are gone, so "removed" is true when it is said. Everything else goes at once.
//
// Hooks of d run before the first and after the last object goes; what hooks left behind goes at the end. Without the
// bundle (d.Objects empty) there are none to run: that is said in Note, and the removal goes on. A hook that fails remains,
// and is run again by the next call.
//
// Only objects that carry the deployment's label are touched. Claims with a volume, CRDs with objects and namespaces with
// foreign content lose the label and are Kept, unless d.Policy allows to delete them. With keep that goes for every object,
// and no hook runs. What d.Heir names is given to that deployment.
func (a *Applier) Remove(ctx context.Context, d Deployment, refs []Ref, keep bool) (Removed, error) {
	p := a.pass(d)
	p.removing = true
	r := removal{a: a, dep: d, keep: keep, d: deletion{a: a, kinds: p, deployment: d.Name, foreground: true,
		crds: d.Policy.DeleteCRDs, volumes: d.Policy.DeleteVolumes}}
	if d.Policy.DeleteNamespace {
		r.d.namespace = policyNamespace(d.Policy)
	}
	if err := r.all(ctx, inRemovalOrder(refs)); err != nil {
		return r.res, fmt.Errorf("remove %s: %w", d.Name, err)
	}
	if len(r.res.Remaining) == 0 {
		a.tracked.set(d.Name, nil)
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.removing, d.Name)
		delete(a.was, d.Name)
	}
	return r.res, nil
}

// leaving is how far a removal is. It is in memory only: after a restart the hooks of the removal run again.
type leaving struct{ before, after bool } // the hooks have run

type removal struct {
	a    *Applier
	d    deletion
	dep  Deployment
	keep bool
	res  Removed
}

// all is every step of a removal; each begins when nothing of the one before remains.
func (r *removal) all(ctx context.Context, refs []Ref) error {
	if r.keep {
		if err := r.run(ctx, refs); err != nil {
			return err
		}
		return r.sweep(ctx)
	}
	r.a.mu.Lock()
	at := r.a.removing[r.dep.Name]
	r.a.mu.Unlock()
	if len(r.dep.Objects) == 0 {
		r.res.Note = "the bundle is not on this site any more: hooks that it may have for its removal were not run"
		at = leaving{true, true}
	}
	steps := []func() error{
		func() error { return r.hooks(ctx, bundlefmt.PreDelete, &at.before, refs) },
		func() error { return r.run(ctx, refs) },
		func() error { return r.hooks(ctx, bundlefmt.PostDelete, &at.after, nil) },
		func() error { return r.sweep(ctx) },
		func() error { return r.namespace(ctx) },
	}
	for _, step := range steps {
		if err := step(); err != nil || len(r.res.Remaining) > 0 {
			return err
		}
	}
	return nil
}

// hooks runs those of one event, once. refs are what waits for them.
func (r *removal) hooks(ctx context.Context, e bundlefmt.HookEvent, done *bool, refs []Ref) error {
	if *done {
		return nil
	}
	if r.dep.hookTime(e) == 0 {
		*done = true
		return nil
	}
	if err := r.d.kinds.resolve(ctx); err != nil {
		return err
	}
	if r.d.kinds.orphaned {
		r.res.Note = fmt.Sprintf("service account %q does not exist any more: the hooks of the removal were not run", r.dep.Policy.ServiceAccount)
		*done = true
		return nil
	}
	_, hooks, f, err := r.a.decodeAll(ctx, r.d.kinds)
	if f == nil && err == nil && len(hooksAt(hooks, e)) > 0 {
		f, err = r.a.runHooks(ctx, r.d.kinds, hooks, e)
	} else if len(hooksAt(hooks, e)) == 0 {
		f = nil
	}
	if err != nil {
		for _, ref := range refs {
			r.res.Remaining = append(r.res.Remaining, Finding{ref, Unavailable, "not looked at yet"})
		}
		return err
	}
	if f != nil {
		for _, ref := range refs {
			r.res.Remaining = append(r.res.Remaining, Finding{ref, HookFailed, fmt.Sprintf("waits for the %s hook %s", e, f)})
		}
		if len(refs) == 0 {
			r.res.Remaining = append(r.res.Remaining, *f)
		}
		return nil
	}
	*done = true
	r.a.mu.Lock()
	defer r.a.mu.Unlock()
	at := r.a.removing[r.dep.Name]
	at.before, at.after = at.before || e == bundlefmt.PreDelete, at.after || e == bundlefmt.PostDelete
	r.a.removing[r.dep.Name] = at
	return nil
}

// namespace deletes the deployment's namespace where that was said, although it carries no label.
func (r *removal) namespace(ctx context.Context) error {
	ns := r.d.namespace
	if ns == "" {
		return nil
	}
	ref := Ref{Version: "v1", Kind: "Namespace", Name: ns}
	k, live, f, err := r.d.look(ctx, ref)
	if err != nil {
		return err
	}
	if f == nil && live == nil {
		return nil
	}
	if f == nil {
		if had := owner(live); had != "" && had != r.dep.Name {
			f = &Finding{ref, OwnedByOther, fmt.Sprintf("kept: it belongs to deployment %q", had)}
		} else {
			var deleted bool
			deleted, f, err = r.d.deleteFound(ctx, victim{ref, k, live})
			if deleted {
				r.res.Deleted = append(r.res.Deleted, ref)
				f = &Finding{ref, Terminating, "is being deleted with everything in it"}
			}
		}
	}
	switch {
	case err != nil || f == nil:
		return err
	case f.Reason == HasContent || f.Reason == OwnedByOther || f.Reason == Protected || f.Reason == KeepPolicy:
		r.res.Kept = append(r.res.Kept, *f)
	default:
		r.res.Remaining = append(r.res.Remaining, *f)
	}
	return nil
}

func (r *removal) run(ctx context.Context, refs []Ref) error {
	stage, waiting := -1, 0
	for i, ref := range refs {
		if s := removalStage(ref); s != stage {
			stage = s
			if waiting = len(r.res.Remaining); waiting > 0 && !r.keep {
				for _, later := range refs[i:] {
					r.res.Remaining = append(r.res.Remaining, Finding{later, InProgress, fmt.Sprintf("waits until %s is gone", r.res.Remaining[0].Ref)})
				}
				return nil
			}
		}
		if err := r.one(ctx, ref); err != nil {
			for _, later := range refs[i:] {
				r.res.Remaining = append(r.res.Remaining, Finding{later, Unavailable, "not looked at yet"})
			}
			return fmt.Errorf("%s: %w", ref, err)
		}
	}
	return nil
}

func (r *removal) one(ctx context.Context, ref Ref) error {
	if done, err := r.bequeath(ctx, ref); done || err != nil {
		return err
	}
	if r.keep {
		return r.release(ctx, ref, &Finding{ref, HasContent, "kept, as the bundle says"})
	}
	deleted, f, err := r.d.delete(ctx, ref)
	switch {
	case err != nil:
		return err
	case f != nil && stays(f):
		return r.release(ctx, ref, f)
	case f != nil:
		r.res.Remaining = append(r.res.Remaining, *f)
	case deleted:
		r.res.Deleted = append(r.res.Deleted, ref)
		return r.look(ctx, ref)
	}
	return nil
}

// bequeath gives an object to the deployment that is ordered to have it. done: it must not be deleted, at least not yet.
func (r *removal) bequeath(ctx context.Context, ref Ref) (done bool, err error) {
	if r.dep.Heir == nil {
		return false, nil
	}
	k, live, f, err := r.d.find(ctx, ref)
	if live == nil || f != nil || err != nil || live.GetDeletionTimestamp() != nil {
		return false, err
	}
	heir, wait, err := r.dep.Heir(ctx, ref)
	switch {
	case err != nil || heir == "" && wait == "":
		return false, err
	case wait != "":
		f = &Finding{ref, Awaited, wait}
	default:
		if f, err = r.d.give(ctx, victim{ref, k, live}, heir); err != nil {
			return false, err
		}
	}
	if f.Reason == Inherited {
		r.res.Kept = append(r.res.Kept, *f)
	} else {
		r.res.Remaining = append(r.res.Remaining, *f)
	}
	return true, nil
}

// look tells what is gone from what waits for its dependents or finalizers.
func (r *removal) look(ctx context.Context, ref Ref) error {
	_, live, f, err := r.d.find(ctx, ref)
	if err != nil {
		return err
	}
	if live != nil {
		f = &Finding{ref, Terminating, terminating(live)}
	}
	if f != nil {
		r.res.Remaining = append(r.res.Remaining, *f)
	}
	return nil
}

// release takes our label off an object that stays.
func (r *removal) release(ctx context.Context, ref Ref, why *Finding) error {
	k, live, f, err := r.d.find(ctx, ref)
	gone := live == nil
	if err == nil && f == nil && !gone {
		gone, f, err = r.d.disown(ctx, victim{ref, k, live})
	}
	switch {
	case err != nil:
		return err
	case f != nil:
		r.res.Remaining = append(r.res.Remaining, *f)
	case !gone:
		r.res.Kept = append(r.res.Kept, *why)
	}
	return nil
}
