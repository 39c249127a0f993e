package apply

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// A prune of at least this many objects, and more than half of the release before, waits for a confirmation: a values file
// that went missing looks just like that.
const pruneHold = 10

// victim is an object that is there, is ours, and is not in the release.
type victim struct {
	ref  Ref
	kind kind
	live *unstructured.Unstructured
}

// prune deletes what the previous release had and this one has not, in reverse order. Propagation is background: the
// release does not wait for the Pods of a Deployment that it dropped. What another deployment is ordered to have is given to it,
// and what is kept is nobody's afterwards.
func (r *release) prune(ctx context.Context, previous []Ref) error {
	current, uids := map[id]bool{}, map[types.UID]bool{}
	for _, o := range r.objects {
		current[idOf(o.ref)] = true
		if o.live != nil {
			uids[o.live.GetUID()] = true
		}
	}
	d := deletion{a: r.a, kinds: r.kinds, deployment: r.d.Name, spare: uids}
	var victims []victim
	for _, ref := range inRemovalOrder(previous) {
		if current[idOf(ref)] {
			continue
		}
		k, live, f, err := d.find(ctx, ref)
		switch {
		case err != nil:
			return fmt.Errorf("prune %s: %w", ref, err)
		case f != nil:
			r.res.Kept = append(r.res.Kept, *f)
		case live == nil:
			r.dropped = append(r.dropped, ref)
		default:
			victims = append(victims, victim{ref, k, live})
		}
	}
	victims, err := r.bequeath(ctx, &d, victims)
	if err != nil || r.stopped {
		return err
	}
	if n := len(victims); n >= pruneHold && 2*n > r.was && !r.d.Policy.ConfirmPrune {
		r.res.Held = &Finding{victims[0].ref, PruneHeld, fmt.Sprintf("the release would delete %d of %d objects, which is unusually much: "+
			"the rest is applied and nothing is deleted; if that is meant, confirm on the hub: kubectl annotate bundles.shoal.dev BUNDLE %s", n, max(n, r.was), confirmPrune)}
		return nil
	}
	for _, v := range victims {
		if err := r.pruneOne(ctx, &d, v); err != nil {
			return fmt.Errorf("prune %s: %w", v.ref, err)
		}
	}
	return nil
}

// bequeath gives away what others are ordered to have, and returns the rest. Nothing is given or deleted before it is known of
// every object who that is.
func (r *release) bequeath(ctx context.Context, d *deletion, victims []victim) (rest []victim, err error) {
	if r.d.Heir == nil {
		return victims, nil
	}
	heirs := make([]string, len(victims))
	for i, v := range victims {
		var wait string
		if heirs[i], wait, err = r.d.Heir(ctx, v.ref); err != nil {
			return nil, err
		}
		if wait != "" {
			r.stop(&Finding{v.ref, Awaited, "to be deleted: " + wait})
			return nil, nil
		}
	}
	for i, v := range victims {
		if heirs[i] == "" {
			rest = append(rest, v)
			continue
		}
		f, err := d.give(ctx, v, heirs[i])
		if err != nil {
			return nil, fmt.Errorf("prune %s: %w", v.ref, err)
		}
		if r.res.Kept = append(r.res.Kept, *f); f.Reason == Inherited {
			r.dropped = append(r.dropped, v.ref)
		}
	}
	return rest, nil
}

// confirmPrune is what the hub's bundle is annotated with.
const confirmPrune = "shoal.dev/confirm-prune=yes"

func (r *release) pruneOne(ctx context.Context, d *deletion, v victim) error {
	deleted, f, err := d.deleteFound(ctx, v)
	if f != nil && stays(f) {
		if _, f2, err := d.disown(ctx, v); err != nil || f2 != nil {
			if f2 != nil {
				r.res.Kept = append(r.res.Kept, *f2)
			}
			return err
		}
		r.res.Kept = append(r.res.Kept, *f)
		r.dropped = append(r.dropped, v.ref)
		return nil
	}
	switch {
	case err != nil:
		return err
	case f != nil:
		r.res.Kept = append(r.res.Kept, *f)
		return nil
	case deleted:
		r.res.Pruned = append(r.res.Pruned, v.ref)
	}
	r.dropped = append(r.dropped, v.ref)
	return nil
}

// deletion deletes objects of one deployment one at a time.
type deletion struct {
	a          *Applier
	kinds      *pass
	deployment string
	foreground bool               // keep an object until what it controls is gone
	spare      map[types.UID]bool // the same object under another API group

	// What may go with everything in it.
	crds, volumes bool
	namespace     string
}

// delete deletes one object if it carries the deployment's label. A finding says why it was not deleted; neither deleted
// nor a finding means that it is not there, or not ours any more.
func (d *deletion) delete(ctx context.Context, ref Ref) (deleted bool, f *Finding, err error) {
	k, live, f, err := d.find(ctx, ref)
	if live == nil || f != nil || err != nil {
		return false, f, err
	}
	return d.deleteFound(ctx, victim{ref, k, live})
}

func (d *deletion) deleteFound(ctx context.Context, v victim) (deleted bool, f *Finding, err error) {
	if f, err := d.spared(ctx, v); f != nil || err != nil {
		return false, f, err
	}
	return d.deleteNow(ctx, v)
}

// spared says why an object is not deleted; nil: it may be.
func (d *deletion) spared(ctx context.Context, v victim) (*Finding, error) {
	if f := d.a.lives(v.ref, v.live); f != nil {
		return f, nil
	}
	if v.live.GetDeletionTimestamp() != nil {
		return &Finding{v.ref, Terminating, terminating(v.live) + d.a.whyStays(ctx, v.live)}, nil
	}
	if v.live.GetAnnotations()[resourcePolicy] == "keep" {
		return &Finding{v.ref, KeepPolicy, "kept: its annotation " + resourcePolicy + " says so"}, nil
	}
	why, err := d.content(ctx, v.kind, v.live)
	if err != nil || why == "" {
		return nil, err
	}
	return &Finding{v.ref, HasContent, why}, nil
}

// resourcePolicy is Helm's word for an object that outlives its release.
const resourcePolicy = "helm.sh/resource-policy"

// deleteNow asks nothing more.
func (d *deletion) deleteNow(ctx context.Context, v victim) (deleted bool, f *Finding, err error) {
	client, f, err := d.kinds.writer(ctx, v.ref, v.kind, v.ref.Namespace)
	if f != nil || err != nil {
		return false, f, err
	}
	uid, propagation := v.live.GetUID(), metav1.DeletePropagationBackground
	if d.foreground && hasDependents(v.ref) {
		propagation = metav1.DeletePropagationForeground
	}
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err = client.Delete(rctx, v.ref.Name, metav1.DeleteOptions{
		PropagationPolicy: &propagation, Preconditions: &metav1.Preconditions{UID: &uid},
	})
	d.a.forget(v.ref)
	d.a.tracked.lose(objectKey{v.kind.gvr, v.ref.Namespace, v.ref.Name})
	gone, f, err := d.answer(ctx, v.ref, err)
	return !gone && f == nil && err == nil, f, err
}

// find gets an object that is the deployment's; nil: there is none. Hooks are no part of an inventory.
func (d *deletion) find(ctx context.Context, ref Ref) (kind, *unstructured.Unstructured, *Finding, error) {
	k, live, f, err := d.look(ctx, ref)
	if live != nil && (owner(live) != d.deployment || isHook(live) || d.spare[live.GetUID()]) {
		live = nil
	}
	return k, live, f, err
}

// look gets an object, whoever has it.
func (d *deletion) look(ctx context.Context, ref Ref) (kind, *unstructured.Unstructured, *Finding, error) {
	k, f, err := d.kinds.any(ctx, ref)
	if err != nil {
		return k, nil, nil, err
	}
	if f != nil {
		if f.Reason == UnknownKind {
			f = nil // objects go with their kind
		}
		return k, nil, f, nil
	}
	if k.namespaced && ref.Namespace == "" {
		return k, nil, &Finding{ref, Invalid, "the inventory does not say in which namespace it is"}, nil
	}
	live, err := d.a.get(ctx, k, ref)
	if gone, f, err := d.answer(ctx, ref, err); gone || f != nil || err != nil {
		return k, nil, f, err
	}
	return k, live, nil, nil
}

// stays: what f is about is left on purpose, and not only for now.
func stays(f *Finding) bool {
	return f.Reason == HasContent || f.Reason == KeepPolicy || f.Reason == Protected
}

// give hands an object over to another deployment, as it is. The finding is Inherited, or says why it was not.
func (d *deletion) give(ctx context.Context, v victim, heir string) (*Finding, error) {
	f, err := d.relabel(ctx, v, heir)
	if err != nil {
		return nil, err
	}
	if f != nil {
		if _, live, _, err := d.find(ctx, v.ref); err != nil || live != nil {
			return f, err
		}
	} // else the heir was faster
	return &Finding{v.ref, Inherited, fmt.Sprintf("belongs to deployment %q now, which is ordered to have it", heir)}, nil
}

func (d *deletion) relabel(ctx context.Context, v victim, heir string) (f *Finding, err error) {
	_, f, err = d.hand(ctx, v, fmt.Sprintf(`{"op":"replace","path":%q,"value":%q}`, labelPath, heir))
	return f, err
}

const labelPath = "/metadata/labels/shoal.dev~1deployment"

// disown takes the deployment's label off an object that stays. gone: it is not there any more.
func (d *deletion) disown(ctx context.Context, v victim) (gone bool, f *Finding, err error) {
	return d.hand(ctx, v, fmt.Sprintf(`{"op":"remove","path":%q}`, labelPath))
}

// hand does one operation to an object that still carries the deployment's label.
func (d *deletion) hand(ctx context.Context, v victim, op string) (gone bool, f *Finding, err error) {
	client, f, err := d.kinds.writer(ctx, v.ref, v.kind, v.ref.Namespace)
	if f != nil || err != nil {
		return false, f, err
	}
	// The tests refuse it on an object that changed hands meanwhile; a resource version would also refuse it when only the
	// status moved.
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	body := fmt.Appendf(nil, `[{"op":"test","path":"/metadata/uid","value":%q},{"op":"test","path":%q,"value":%q},%s]`, v.live.GetUID(), labelPath, d.deployment, op)
	_, err = client.Patch(rctx, v.ref.Name, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: FieldManager})
	d.a.forget(v.ref)
	return d.answer(ctx, v.ref, err)
}

// hasDependents: workloads wait for their Pods. Everything else would only wait for the garbage collector, which takes half
// a minute to learn of a new custom kind; a custom resource that matters has a finalizer anyway.
func hasDependents(r Ref) bool { return r.Group == "apps" || r.Group == "batch" }

// answer reads the API server's answer to a get or a delete. All zero: go on.
func (d *deletion) answer(ctx context.Context, ref Ref, err error) (gone bool, f *Finding, out error) {
	if o := d.a.outage(ctx, err); o != nil {
		return false, nil, o
	}
	switch {
	case err == nil:
		return false, nil, nil
	case apierrors.IsNotFound(err):
		return true, nil, nil
	}
	found := finding(ref, err)
	return false, &found, nil
}

// content says what would be lost, beyond the object itself, if it were deleted; empty: nothing. A namespace takes all its
// objects along, a CRD its custom resources, a claim its data.
func (d *deletion) content(ctx context.Context, k kind, live *unstructured.Unstructured) (string, error) {
	switch (schema.GroupKind{Group: k.gvr.Group, Kind: k.kind}) {
	case schema.GroupKind{Kind: "PersistentVolumeClaim"}:
		if v, _, _ := unstructured.NestedString(live.Object, "spec", "volumeName"); v != "" && !d.volumes {
			return fmt.Sprintf("kept: it holds the data of volume %q; delete it by hand if that may go", v), nil
		}
	case schema.GroupKind{Kind: "PersistentVolume"}:
		if c, _, _ := unstructured.NestedString(live.Object, "spec", "claimRef", "name"); c != "" && !d.volumes {
			return fmt.Sprintf("kept: it holds the data of claim %q; delete it by hand if that may go", c), nil
		}
	case schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}:
		if !d.crds {
			return d.a.customResources(ctx, live)
		}
	case schema.GroupKind{Kind: "Namespace"}:
		if live.GetName() == d.namespace {
			return d.others(ctx, d.namespace)
		}
		return d.a.inNamespace(ctx, live.GetName(), "", ownContent)
	}
	return "", nil
}

// others says what another deployment has in a namespace that may go with everything in it: that was said by one bundle,
// not by the other one.
func (d *deletion) others(ctx context.Context, ns string) (string, error) {
	return d.a.inNamespace(ctx, ns, Label+","+Label+"!="+d.deployment, nil)
}

func (a *Applier) customResources(ctx context.Context, crd *unstructured.Unstructured) (string, error) {
	group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
	plural, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "plural")
	stored, _, _ := unstructured.NestedStringSlice(crd.Object, "status", "storedVersions")
	vs, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
	version := ""
	for _, v := range vs {
		if m, _ := v.(map[string]any); m["served"] == true {
			version, _ = m["name"].(string)
		}
	}
	if version == "" {
		return fmt.Sprintf("kept: it serves no version, so nobody can tell whether objects are stored as %v", stored), nil
	}
	n, example, err := a.some(ctx, kind{gvr: schema.GroupVersionResource{Group: group, Version: version, Resource: plural}}, "", "", nil)
	if err != nil || n == 0 {
		return "", err
	}
	return fmt.Sprintf("kept: %s %q exists (%d in all); deleting the CRD would delete them", plural, example, n), nil
}

// inNamespace looks through every kind that can be listed: rare, and the price of never deleting what nobody named.
func (a *Applier) inNamespace(ctx context.Context, ns, selector string, counts func(kind, *metav1.PartialObjectMetadata) bool) (string, error) {
	if slices.Contains([]string{"default", "kube-system", "kube-public", "kube-node-lease"}, ns) {
		return "kept: it belongs to Kubernetes", nil
	}
	all, err := a.kinds.preferred(ctx)
	if o := a.outage(ctx, err); o != nil {
		return "", o
	}
	if err != nil {
		return "", err
	}
	for _, k := range all {
		if !k.namespaced || slices.Contains([]string{"events", "endpoints", "endpointslices"}, k.gvr.Resource) {
			continue
		}
		n, example, err := a.some(ctx, k, ns, selector, counts)
		if err != nil {
			return "", err
		}
		if n > 0 {
			return fmt.Sprintf("kept: %s %q is in it; deleting the namespace would delete that too", k.gvr.Resource, example), nil
		}
	}
	return "", nil
}

// ownContent leaves out what Kubernetes puts into every namespace and what goes with its owner anyway.
func ownContent(k kind, m *metav1.PartialObjectMetadata) bool {
	switch {
	case k.gvr.Resource == "configmaps" && m.Name == "kube-root-ca.crt",
		k.gvr.Resource == "serviceaccounts" && m.Name == "default",
		m.DeletionTimestamp != nil, len(m.OwnerReferences) > 0:
		return false
	}
	return true
}

// some counts the objects of a kind that keep accepts, on the first page only, and names one.
func (a *Applier) some(ctx context.Context, k kind, ns, selector string, keep func(kind, *metav1.PartialObjectMetadata) bool) (n int, example string, err error) {
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	k.namespaced = ns != ""
	list, err := a.metaClient(k, ns).List(rctx, metav1.ListOptions{Limit: 50, LabelSelector: selector})
	if o := a.outage(ctx, err); o != nil {
		return 0, "", o
	}
	if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
		return 0, "", nil
	}
	if err != nil {
		return 1, "(cannot be listed: " + finding(Ref{Kind: k.kind}, err).Message + ")", nil // unclear is not empty
	}
	for i := range list.Items {
		if m := &list.Items[i]; keep == nil || keep(k, m) {
			n++
			example = m.Name
		}
	}
	if list.RemainingItemCount != nil {
		n += int(*list.RemainingItemCount)
	}
	return n, example, nil
}

// Stages of a removal, first to go first.
const (
	removeCustom    = iota // custom resources: their operator must still run to see to their finalizers
	removeOrdinary         //
	removeCRD              //
	removeNamespace        //
)

func removalStage(r Ref) int {
	switch {
	case r.Group == "" && r.Kind == "Namespace":
		return removeNamespace
	case r.Group == "apiextensions.k8s.io" && r.Kind == "CustomResourceDefinition":
		return removeCRD
	case !builtIn(r.Group):
		return removeCustom
	}
	return removeOrdinary
}

// inRemovalOrder is the reverse of the order in which things were applied, within stages.
func inRemovalOrder(refs []Ref) []Ref {
	out := slices.Clone(refs)
	slices.Reverse(out)
	slices.SortStableFunc(out, func(a, b Ref) int { return removalStage(a) - removalStage(b) })
	return out
}

// builtIn groups have no dot or end in k8s.io, except the sub-projects' CRDs under x-k8s.io.
func builtIn(group string) bool {
	const suffix = ".k8s.io"
	switch group {
	case "", "apps", "batch", "autoscaling", "policy", "extensions":
		return true
	}
	return len(group) > len(suffix) && group[len(group)-len(suffix):] == suffix && !slices.Contains([]string{
		"gateway.networking.k8s.io", "snapshot.storage.k8s.io", "policy.networking.k8s.io", "groupsnapshot.storage.k8s.io", "metrics.k8s.io",
	}, group)
}

// forget drops what was known about an object.
func (a *Applier) forget(r Ref) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.verified, idOf(r))
}
