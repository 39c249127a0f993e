package apply

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Removed is what one Remove found or did.
type Removed struct {
	Deleted   []Ref     // deleted now, by this call
	Remaining []Finding // still there, with the reason: call again later
	Kept      []Finding // left on purpose, without our label; they are nobody's now
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
// Only objects that carry the deployment's label are touched. Claims with a volume, CRDs with objects and namespaces with
// foreign content are never deleted here: they lose the label and are Kept. With keep that goes for every object.
func (a *Applier) Remove(ctx context.Context, d Deployment, refs []Ref, keep bool) (Removed, error) {
	deployment := d.Name
	r := removal{a: a, d: deletion{a: a, kinds: a.pass(), deployment: deployment, foreground: true}, keep: keep}
	err := r.run(ctx, inRemovalOrder(refs))
	if err != nil {
		return r.res, fmt.Errorf("remove %s: %w", deployment, err)
	}
	if len(r.res.Remaining) == 0 {
		a.tracked.set(deployment, nil)
	}
	return r.res, nil
}

type removal struct {
	a    *Applier
	d    deletion
	keep bool
	res  Removed
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
	if r.keep {
		return r.release(ctx, ref, &Finding{ref, HasContent, "kept, as the bundle says"})
	}
	deleted, f, err := r.d.delete(ctx, ref)
	switch {
	case err != nil:
		return err
	case f != nil && f.Reason == HasContent:
		return r.release(ctx, ref, f)
	case f != nil:
		r.res.Remaining = append(r.res.Remaining, *f)
	case deleted:
		r.res.Deleted = append(r.res.Deleted, ref)
		return r.look(ctx, ref)
	}
	return nil
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
	if f != nil {
		r.res.Remaining = append(r.res.Remaining, *f)
	}
	if live == nil || err != nil {
		return err
	}
	// The tests refuse it on an object that changed hands meanwhile; a resource version would also refuse it when only the
	// status moved.
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	const path = "/metadata/labels/shoal.dev~1deployment"
	body := fmt.Appendf(nil, `[{"op":"test","path":"/metadata/uid","value":%q},{"op":"test","path":%q,"value":%q},{"op":"remove","path":%q}]`,
		live.GetUID(), path, r.d.deployment, path)
	_, err = r.a.client(k, ref.Namespace).Patch(rctx, ref.Name, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: FieldManager})
	r.a.forget(ref)
	switch gone, f, err := r.d.answer(ctx, ref, err); {
	case err != nil:
		return err
	case f != nil:
		r.res.Remaining = append(r.res.Remaining, *f)
	case !gone:
		r.res.Kept = append(r.res.Kept, *why)
	}
	return nil
}
