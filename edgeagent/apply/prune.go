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

// prune deletes what the previous release had and this one has not, in reverse order. Propagation is background: the
// release does not wait for the Pods of a Deployment that it dropped.
func (r *release) prune(ctx context.Context, previous []Ref) error {
	current, uids := map[id]bool{}, map[types.UID]bool{}
	for _, o := range r.objects {
		current[idOf(o.ref)] = true
		if o.live != nil {
			uids[o.live.GetUID()] = true
		}
	}
	d := deletion{a: r.a, kinds: r.kinds, deployment: r.d.Name, spare: uids}
	for _, ref := range inRemovalOrder(previous) {
		if current[idOf(ref)] {
			continue
		}
		deleted, f, err := d.delete(ctx, ref)
		switch {
		case err != nil:
			return fmt.Errorf("prune %s: %w", ref, err)
		case f != nil:
			r.res.Kept = append(r.res.Kept, *f)
			continue
		case deleted:
			r.res.Pruned = append(r.res.Pruned, ref)
		}
		r.dropped = append(r.dropped, ref)
	}
	return nil
}

// deletion deletes objects of one deployment one at a time.
type deletion struct {
	a          *Applier
	kinds      *pass
	deployment string
	foreground bool               // keep an object until what it controls is gone
	spare      map[types.UID]bool // the same object under another API group
}

// delete deletes one object if it carries the deployment's label. A finding says why it was not deleted; neither deleted
// nor a finding means that it is not there, or not ours any more.
func (d *deletion) delete(ctx context.Context, ref Ref) (deleted bool, f *Finding, err error) {
	k, live, f, err := d.find(ctx, ref)
	if live == nil || f != nil || err != nil {
		return false, f, err
	}
	if live.GetDeletionTimestamp() != nil {
		return false, &Finding{ref, Terminating, terminating(live)}, nil
	}
	why, err := d.a.content(ctx, k, live)
	if err != nil {
		return false, nil, err
	}
	if why != "" {
		return false, &Finding{ref, HasContent, why}, nil
	}
	uid, propagation := live.GetUID(), metav1.DeletePropagationBackground
	if d.foreground && hasDependents(ref) {
		propagation = metav1.DeletePropagationForeground
	}
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err = d.a.client(k, ref.Namespace).Delete(rctx, ref.Name, metav1.DeleteOptions{
		PropagationPolicy: &propagation, Preconditions: &metav1.Preconditions{UID: &uid},
	})
	d.a.forget(ref)
	gone, f, err := d.answer(ctx, ref, err)
	return !gone && f == nil && err == nil, f, err
}

// find gets an object that is the deployment's; nil: there is none.
func (d *deletion) find(ctx context.Context, ref Ref) (kind, *unstructured.Unstructured, *Finding, error) {
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
	if owner(live) != d.deployment || d.spare[live.GetUID()] {
		return k, nil, nil, nil
	}
	return k, live, nil, nil
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
func (a *Applier) content(ctx context.Context, k kind, live *unstructured.Unstructured) (string, error) {
	switch (schema.GroupKind{Group: k.gvr.Group, Kind: k.kind}) {
	case schema.GroupKind{Kind: "PersistentVolumeClaim"}:
		if v, _, _ := unstructured.NestedString(live.Object, "spec", "volumeName"); v != "" {
			return fmt.Sprintf("kept: it holds the data of volume %q; delete it by hand if that may go", v), nil
		}
	case schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}:
		return a.customResources(ctx, live)
	case schema.GroupKind{Kind: "Namespace"}:
		return a.inNamespace(ctx, live.GetName())
	}
	return "", nil
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
	n, example, err := a.some(ctx, kind{gvr: schema.GroupVersionResource{Group: group, Version: version, Resource: plural}}, "", nil)
	if err != nil || n == 0 {
		return "", err
	}
	return fmt.Sprintf("kept: %s %q exists (%d in all); deleting the CRD would delete them", plural, example, n), nil
}

// inNamespace looks through every kind that can be listed: rare, and the price of never deleting what nobody named.
func (a *Applier) inNamespace(ctx context.Context, ns string) (string, error) {
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
		n, example, err := a.some(ctx, k, ns, ownContent)
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
func (a *Applier) some(ctx context.Context, k kind, ns string, keep func(kind, *metav1.PartialObjectMetadata) bool) (n int, example string, err error) {
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	k.namespaced = ns != ""
	list, err := a.metaClient(k, ns).List(rctx, metav1.ListOptions{Limit: 50})
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
