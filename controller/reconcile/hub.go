package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/enroll"
	"shoal.dev/shoal/controller/fleet"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/render"
	"shoal.dev/shoal/controller/target"
	"shoal.dev/shoal/topics"
)

// Hub is what the reconcilers share.
type Hub struct {
	Client     client.Client // reads from the cache
	Direct     client.Reader // reads from the API itself
	View       *fleet.View
	Publisher  *publish.Publisher
	Keys       *enroll.Keys
	Render     *render.Cache
	Namespace  string // of the hub itself
	URL        string // of the broker, as agents use it
	StaleAfter time.Duration
	// DefaultRollback is how long releases may take that say nothing about going back; then sites go back. 0: they do not.
	DefaultRollback time.Duration
	// DownstreamNamespaces are those whose Secrets and ConfigMaps bundles may send to clusters; "*": all but the hub's own. That the
	// hub has the right to read them is not enough: it has it for other reasons too, and who makes Bundles may have none.
	DownstreamNamespaces []string
	Disconnect           func(identity string) // ends the connections of an identity; nil where the broker is not ours
	Log                  zerolog.Logger

	Refusals enroll.Refusals // of attempts to enrol

	clusters, bundles, tokens queue
	floors                    floors
	written                   written
	keys                      keyring
	verdicts                  verdicts
}

// Finalizer keeps deleted Bundles and Clusters until the fleet was told.
const Finalizer = "shoal.dev/fleet"

// coalesce is how long news of a cluster gathers before status is written: a fleet that comes back all at once must not write
// one status per message.
const coalesce = 300 * time.Millisecond

// queue lets messages from clusters wake a reconciler.
type queue struct {
	ready chan struct{}
	q     workqueue.TypedRateLimitingInterface[reconcile.Request]
}

func (q *queue) start(_ context.Context, w workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	q.q = w
	close(q.ready)
	return nil
}

func (q *queue) add(ns, name string, after time.Duration) {
	select {
	case <-q.ready:
		q.q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Namespace: ns, Name: name}}, after)
	default: // not started: everything is looked at once at start anyway
	}
}

// Changed is the fleet view's news: the cluster and every bundle it has to do with are looked at again.
func (h *Hub) Changed(c topics.Cluster) {
	h.clusters.add(c.Workspace, c.Name, coalesce/3)
	m := h.View.Get(c)
	names := map[string]bool{}
	for n := range m.Assigned {
		names[n] = true
	}
	if m.Reported != nil {
		for _, d := range m.Reported.Deployments {
			names[d.Name] = true
		}
	}
	if m.Ordered != nil {
		for _, d := range m.Ordered.Deployments {
			names[d.Name] = true
		}
	}
	for n := range names {
		h.bundles.add(c.Workspace, n, coalesce)
	}
}

// refusalsEvery bounds how often a token's status is written because of refused attempts: whoever can reach the port makes them.
const refusalsEvery = 5 * time.Second

// Setup registers the reconcilers with mgr.
func (h *Hub) Setup(mgr ctrl.Manager) error {
	h.clusters.ready, h.bundles.ready, h.tokens.ready = make(chan struct{}), make(chan struct{}), make(chan struct{})
	h.Client, h.Direct = mgr.GetClient(), mgr.GetAPIReader()
	h.Refusals.Noted = func(t types.NamespacedName) { h.tokens.add(t.Namespace, t.Name, refusalsEvery) }
	specOrLabels := builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}, predicate.AnnotationChangedPredicate{}))
	factsToo := builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}, predicate.AnnotationChangedPredicate{}, factsChanged()))
	namedOrLabels := builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}))
	own := builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}, predicate.AnnotationChangedPredicate{}, h.statusEdited()))
	allBundles := handler.EnqueueRequestsFromMapFunc(h.everyBundle)
	if err := ctrl.NewControllerManagedBy(mgr).Named("bundle").For(&v1alpha1.Bundle{}, own).
		Watches(&v1alpha1.Cluster{}, allBundles, factsToo).
		Watches(&v1alpha1.ClusterGroup{}, allBundles, specOrLabels).
		Watches(&v1alpha1.Bundle{}, handler.EnqueueRequestsFromMapFunc(h.dependents), namedOrLabels).
		WatchesRawSource(source.Func(h.bundles.start)).
		WithOptions(controller.Options{MaxConcurrentReconciles: 2}).
		Complete(reconcile.Func(h.reconcileBundle)); err != nil {
		return fmt.Errorf("set up bundles: %w", err)
	}
	if err := ctrl.NewControllerManagedBy(mgr).Named("cluster").For(&v1alpha1.Cluster{}, own).
		Watches(&v1alpha1.ClusterGroup{}, handler.EnqueueRequestsFromMapFunc(h.everyCluster), builder.WithPredicates(windowsChanged())).
		WatchesRawSource(source.Func(h.clusters.start)).
		WithOptions(controller.Options{MaxConcurrentReconciles: 32}). // a publish waits for the disk: many share one commit
		Complete(reconcile.Func(h.reconcileCluster)); err != nil {
		return fmt.Errorf("set up clusters: %w", err)
	}
	if err := ctrl.NewControllerManagedBy(mgr).Named("clustergroup").For(&v1alpha1.ClusterGroup{}, own).
		Watches(&v1alpha1.Cluster{}, handler.EnqueueRequestsFromMapFunc(h.everyGroup)).
		Complete(reconcile.Func(h.reconcileGroup)); err != nil {
		return fmt.Errorf("set up cluster groups: %w", err)
	}
	if err := ctrl.NewControllerManagedBy(mgr).Named("token").For(&v1alpha1.ClusterRegistrationToken{}, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, h.statusEdited()))).
		Watches(&v1alpha1.Cluster{}, handler.EnqueueRequestsFromMapFunc(tokenOf)).
		WatchesRawSource(source.Func(h.tokens.start)).
		Watches(&v1alpha1.ClusterGroup{}, handler.EnqueueRequestsFromMapFunc(h.everyToken), specOrLabels).
		Complete(reconcile.Func(h.reconcileToken)); err != nil {
		return fmt.Errorf("set up registration tokens: %w", err)
	}
	return nil
}

func (h *Hub) everyBundle(ctx context.Context, o client.Object) []reconcile.Request {
	var list v1alpha1.BundleList
	if err := h.Client.List(ctx, &list, client.InNamespace(o.GetNamespace())); err != nil {
		h.Log.Error().Err(err).Msg("list bundles")
		return nil
	}
	return requests(list.Items, func(b *v1alpha1.Bundle) client.Object { return b })
}

// dependents are the bundles for which another one may matter.
func (h *Hub) dependents(ctx context.Context, o client.Object) []reconcile.Request {
	var list v1alpha1.BundleList
	if err := h.Client.List(ctx, &list, client.InNamespace(o.GetNamespace())); err != nil {
		h.Log.Error().Err(err).Msg("list bundles")
		return nil
	}
	list.Items = slices.DeleteFunc(list.Items, func(b v1alpha1.Bundle) bool { return len(b.Spec.DependsOn) == 0 || b.Name == o.GetName() })
	return requests(list.Items, func(b *v1alpha1.Bundle) client.Object { return b })
}

func (h *Hub) everyCluster(ctx context.Context, o client.Object) []reconcile.Request {
	var list v1alpha1.ClusterList
	if err := h.Client.List(ctx, &list, client.InNamespace(o.GetNamespace())); err != nil {
		h.Log.Error().Err(err).Msg("list clusters")
		return nil
	}
	return requests(list.Items, func(c *v1alpha1.Cluster) client.Object { return c })
}

func (h *Hub) everyGroup(ctx context.Context, o client.Object) []reconcile.Request {
	var list v1alpha1.ClusterGroupList
	if err := h.Client.List(ctx, &list, client.InNamespace(o.GetNamespace())); err != nil {
		h.Log.Error().Err(err).Msg("list cluster groups")
		return nil
	}
	return requests(list.Items, func(g *v1alpha1.ClusterGroup) client.Object { return g })
}

func (h *Hub) everyToken(ctx context.Context, o client.Object) []reconcile.Request {
	var list v1alpha1.ClusterRegistrationTokenList
	if err := h.Client.List(ctx, &list, client.InNamespace(o.GetNamespace())); err != nil {
		h.Log.Error().Err(err).Msg("list registration tokens")
		return nil
	}
	return requests(list.Items, func(t *v1alpha1.ClusterRegistrationToken) client.Object { return t })
}

func tokenOf(_ context.Context, o client.Object) []reconcile.Request {
	name := o.GetAnnotations()[enroll.TokenAnnotation]
	if name == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: name}}}
}

func requests[T any](items []T, object func(*T) client.Object) []reconcile.Request {
	out := make([]reconcile.Request, 0, len(items))
	for i := range items {
		out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(object(&items[i]))})
	}
	return out
}

// groups lists a workspace's cluster groups as the matcher wants them.
func (h *Hub) groups(ctx context.Context, ns string) ([]target.Group, error) {
	var list v1alpha1.ClusterGroupList
	if err := h.Client.List(ctx, &list, client.InNamespace(ns)); err != nil {
		return nil, fmt.Errorf("list cluster groups: %w", err)
	}
	groups := make([]target.Group, 0, len(list.Items))
	for _, g := range list.Items {
		groups = append(groups, target.Group{Name: g.Name, Labels: g.Labels, Selector: g.Spec.Selector})
	}
	return groups, nil
}

// InGroup says whether a cluster is in a group now.
func (h *Hub) InGroup(c topics.Cluster, group string) bool {
	ctx := context.Background() // answered by the cache
	var g v1alpha1.ClusterGroup
	var cl v1alpha1.Cluster
	if h.Client.Get(ctx, types.NamespacedName{Namespace: c.Workspace, Name: group}, &g) != nil || h.Client.Get(ctx, types.NamespacedName{Namespace: c.Workspace, Name: c.Name}, &cl) != nil {
		return false
	}
	return len(target.Groups(target.Cluster{Name: cl.Name, Labels: cl.Labels}, []target.Group{{Name: g.Name, Labels: g.Labels, Selector: g.Spec.Selector}})) > 0
}
