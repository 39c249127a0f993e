package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/rollout"
)

// Keep, as the value of ConfirmRemoval on a Bundle whose deletion is held, lets the held Bundles go and leaves what runs on the sites.
const Keep = "keep"

const (
	// gather is how long a deleted Bundle waits for others that are deleted with it: tools delete many one after the other.
	gather = 3 * time.Second
	// heldAgain is how often a held deletion is looked at without news.
	heldAgain = 30 * time.Second
)

// verdict is what was decided about the deletion of a Bundle.
type verdict int

const (
	undecided verdict = iota
	removed           // it is ordered away
	meant             // the same, and somebody has said that so many shall go
	kept              // it goes, and what runs stays
)

// verdicts remembers what was decided about deleted Bundles, also when they are gone: the cache may still show them, and what was said
// about one must not hold for the next. A hub that starts anew decides again: what was ordered away already stands in the documents.
type verdicts struct {
	judging sync.Mutex // held while many are decided as one
	mu      sync.Mutex
	m       map[types.UID]verdict
}

func (v *verdicts) get(b types.UID) verdict {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.m[b]
}

func (v *verdicts) set(b types.UID, what verdict) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.m == nil {
		v.m = map[types.UID]verdict{}
	}
	v.m[b] = what
}

// deleteBundle orders the bundle away everywhere and lets it go once every document in force says so: from then on the order
// stands on the broker, and waits there for clusters without a link.
//
// Only the deletion of the Bundle itself is such an order. Where it goes because its kind or its workspace does, nothing is removed from
// any site; where many go at once, somebody has to say that this is meant.
func (h *Hub) deleteBundle(ctx context.Context, b *v1alpha1.Bundle, clusters []v1alpha1.Cluster) (ctrl.Result, error) {
	if !controllerutil.ContainsFinalizer(b, Finalizer) {
		return ctrl.Result{}, nil
	}
	before := b.DeepCopy()
	p := pass{Hub: h, bundle: b, clusters: clusters, now: time.Now()}
	have := p.targetsNot(h.View.Having(b.Namespace, b.Name))
	if slices.ContainsFunc(have, func(c string) bool { return !p.leaves(c) }) && h.verdicts.get(b.UID) == undecided {
		wait, err := p.judge(ctx, have)
		if err != nil || wait > 0 {
			return ctrl.Result{RequeueAfter: wait}, p.shown(ctx, before, err)
		}
	}
	if h.verdicts.get(b.UID) == kept {
		return ctrl.Result{}, p.letGo(ctx, "bundle deleted, what runs stays")
	}
	b.Status.RemovalHeld = nil
	left, held := 0, 0
	for _, name := range have {
		why := p.keeps(name)
		if why != "" || !p.leaves(name) {
			order := p.removal(name, why)
			order.Confirmed = h.verdicts.get(b.UID) == meant
			h.View.Assign(p.id(name), b.Name, order)
		}
		if _, ordered := h.View.Get(p.id(name)).Entry(b.Name); why != "" {
			held++
		} else if ordered {
			left++
		}
	}
	for _, c := range clusters { // those that were only promised it so far
		if a, ok := h.View.Get(p.id(c.Name)).Assigned[b.Name]; ok && !a.Remove {
			h.View.Assign(p.id(c.Name), b.Name, publish.Assignment{Remove: true})
		}
	}
	if left+held > 0 {
		if err := p.shown(ctx, before, nil); err != nil || left == 0 {
			return ctrl.Result{}, err // a change of the cluster or the bundle wakes us
		}
		return ctrl.Result{RequeueAfter: time.Second}, nil
	}
	return ctrl.Result{}, p.letGo(ctx, "bundle deleted")
}

// shown writes where the deletion is.
func (p *pass) shown(ctx context.Context, before *v1alpha1.Bundle, err error) error {
	switch {
	case err != nil:
		p.headline(v1alpha1.StateHeld, clip("it is deleted, but nothing is removed yet: "+err.Error()), p.bundle.Status.Display.ReadyClusters)
	default:
		p.status()
	}
	if err2 := p.writeStatus(ctx, before, p.bundle); err == nil {
		err = err2
	}
	return err
}

func (p *pass) letGo(ctx context.Context, message string) error {
	controllerutil.RemoveFinalizer(p.bundle, Finalizer)
	if err := p.Client.Update(ctx, p.bundle); client.IgnoreNotFound(err) != nil {
		return ignoreConflict(err)
	}
	p.Log.Info().Str("bundle", p.bundle.Namespace+"/"+p.bundle.Name).Msg(message)
	return nil
}

// judge decides about the deletion of a bundle that some clusters have, and says how long it waits if that cannot be decided yet.
func (p *pass) judge(ctx context.Context, have []string) (wait time.Duration, err error) {
	ending, err := p.ending(ctx)
	if err != nil {
		return 0, err
	}
	if ending != "" {
		p.Log.Warn().Str("bundle", p.bundle.Namespace+"/"+p.bundle.Name).Str("because", ending).Int("clusters", len(have)).
			Msg("nothing is removed from any cluster")
		p.verdicts.set(p.bundle.UID, kept)
		return 0, nil
	}
	p.verdicts.judging.Lock()
	defer p.verdicts.judging.Unlock()
	if p.verdicts.get(p.bundle.UID) != undecided { // with another one, meanwhile
		return 0, nil
	}
	together, total, err := p.deletedTogether(ctx)
	if err != nil {
		return 0, err
	}
	said := word(together)
	if said == Keep {
		return 0, p.keepAll(ctx, together)
	}
	if age := p.now.Sub(p.bundle.DeletionTimestamp.Time); age < gather && total > 1 {
		return gather - age, nil
	}
	switch {
	case !rollout.HoldDeletion(total, len(together)):
		p.verdicts.set(p.bundle.UID, removed)
	case said == strconv.Itoa(len(together)):
		for _, o := range together { // they were held as one, and they go as one
			p.verdicts.set(o.UID, meant)
			p.bundles.add(o.Namespace, o.Name, 0)
		}
	default:
		p.hold(have, len(together), total, said)
		return heldAgain, nil
	}
	return 0, nil
}

// word is what was said about bundles that are deleted at once: said on one of them, it holds for all. One that means nothing is only
// returned where there is no other.
func word(together []v1alpha1.Bundle) (said string) {
	for _, o := range together {
		switch v := o.Annotations[ConfirmRemoval]; {
		case v == Keep:
			return v
		case v == strconv.Itoa(len(together)) || said == "":
			said = v
		}
	}
	return said
}

// keepAll lets bundles go that were held as one. Each says so itself as well: the last of them must not look like a deletion on purpose
// to a hub that starts in between.
func (p *pass) keepAll(ctx context.Context, together []v1alpha1.Bundle) error {
	for _, o := range together {
		after := o.DeepCopy()
		metav1.SetMetaDataAnnotation(&after.ObjectMeta, ConfirmRemoval, Keep)
		if err := p.Client.Patch(ctx, after, client.MergeFrom(&o)); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("annotate bundle %s: %w", o.Name, err)
		}
	}
	for _, o := range together {
		p.verdicts.set(o.UID, kept)
		p.bundles.add(o.Namespace, o.Name, 0)
	}
	return nil
}

// hold shows that the deletion waits for somebody's word.
func (p *pass) hold(have []string, n, total int, said string) {
	b := p.bundle
	why := fmt.Sprintf("%d of %d bundles of this workspace are deleted at once; nothing is removed from any cluster until you confirm: "+
		"kubectl -n %s annotate --overwrite bundles.shoal.dev %s %s=%d removes them all, with =%s they go and what runs stays",
		n, total, b.Namespace, b.Name, ConfirmRemoval, n, Keep)
	if said != "" {
		why = fmt.Sprintf("%s=%s confirms nothing: %s", ConfirmRemoval, clip(said), why)
	}
	was := b.Status.RemovalHeld
	b.Status.RemovalHeld = &v1alpha1.RemovalHeld{Clusters: int32(len(have)), Message: why, Since: metav1.NewTime(p.now.Truncate(time.Second))}
	if was != nil {
		b.Status.RemovalHeld.Since = was.Since
	}
	for _, name := range have {
		if !p.leaves(name) {
			p.View.Assign(p.id(name), b.Name, p.removal(name, why))
		}
	}
	if was == nil || was.Message != why {
		p.Log.Warn().Str("bundle", b.Namespace+"/"+b.Name).Int("bundles", n).Int("clusters", len(have)).Msg("deletion waits to be confirmed")
	}
}

// deletedTogether lists the deleted bundles of the workspace about which nothing is decided yet, and says how many bundles there are
// besides those that go already.
func (p *pass) deletedTogether(ctx context.Context) (together []v1alpha1.Bundle, total int, err error) {
	var list v1alpha1.BundleList
	if err := p.Client.List(ctx, &list, client.InNamespace(p.bundle.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, 0, fmt.Errorf("list bundles: %w", err)
	}
	for _, o := range list.Items {
		if p.verdicts.get(o.UID) != undecided {
			continue
		}
		total++
		if o.DeletionTimestamp != nil && controllerutil.ContainsFinalizer(&o, Finalizer) {
			together = append(together, o)
		}
	}
	return together, total, nil
}

// ending says that the bundle goes because its kind or its workspace does: an uninstall, or a mistake, and no order to remove what runs.
// It is read from the API server itself, where that is written before the first Bundle is touched.
func (p *pass) ending(ctx context.Context) (string, error) {
	for _, what := range []struct {
		kind schema.GroupVersionKind
		name string
		text string
	}{
		{schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}, "bundles.shoal.dev", "resource definition"},
		{schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}, p.bundle.Namespace, "namespace"},
	} {
		var u unstructured.Unstructured
		u.SetGroupVersionKind(what.kind)
		switch err := p.Client.Get(ctx, types.NamespacedName{Name: what.name}, &u); {
		case apierrors.IsNotFound(err), err == nil && u.GetDeletionTimestamp() != nil:
			return fmt.Sprintf("%s %s is being deleted", what.text, what.name), nil
		case err != nil:
			return "", fmt.Errorf("see whether %s %s is being deleted: %w", what.text, what.name, err)
		}
	}
	return "", nil
}
