package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/fleet"
)

// reconcileGroup sums up a group's clusters.
func (h *Hub) reconcileGroup(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var g v1alpha1.ClusterGroup
	if err := h.Client.Get(ctx, req.NamespacedName, &g); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	before := g.DeepCopy()
	var clusters v1alpha1.ClusterList
	sel, err := metav1.LabelSelectorAsSelector(g.Spec.Selector) // nil selects nothing
	if err == nil {
		if err := h.Client.List(ctx, &clusters, client.InNamespace(g.Namespace), client.MatchingLabelsSelector{Selector: selectorOrNone(sel)}); err != nil {
			return ctrl.Result{}, fmt.Errorf("list clusters: %w", err)
		}
	}
	groupStatus(&g, clusters.Items, err, time.Now())
	return ctrl.Result{}, h.writeStatus(ctx, before, &g)
}

func selectorOrNone(s labels.Selector) labels.Selector {
	if s == nil {
		return labels.Nothing()
	}
	return s
}

func groupStatus(g *v1alpha1.ClusterGroup, clusters []v1alpha1.Cluster, invalid error, now time.Time) {
	s := &g.Status
	var ready, bundles, want, online int32
	var t tally
	for _, c := range clusters {
		if c.Status.Presence == v1alpha1.PresenceOnline {
			online++
		}
		state := cmp.Or(c.Status.Display.State, v1alpha1.StatePending)
		if state == v1alpha1.StateReady && c.Status.ObservedGeneration < c.Generation {
			state, c.Status.Display.Message = v1alpha1.StatePending, "has changed and was not looked at yet"
		}
		if state == v1alpha1.StateReady {
			ready++
		}
		bundles += c.Status.Summary.Ready
		want += c.Status.Summary.Desired
		t.add(c.Name, fleet.Status{State: state, Message: c.Status.Display.Message, Since: c.Status.StateSince.Time}, false)
	}
	worst, message := t.worst, t.message()
	switch {
	case invalid != nil:
		worst, message = v1alpha1.StateErrRendered, "spec.selector: "+invalid.Error()
	case len(clusters) == 0:
		worst, message = v1alpha1.StatePending, "no cluster has the labels it selects"
	}
	s.ObservedGeneration = g.Generation
	s.ClusterCount, s.OnlineCount = int32(len(clusters)), online
	s.StateSince = since(s.Display.State, worst, s.StateSince, now)
	s.Display.State, s.Display.Message = worst, clip(message)
	s.Display.ReadyClusters, s.Display.ReadyBundles = fmt.Sprintf("%d/%d", ready, len(clusters)), fmt.Sprintf("%d/%d", bundles, want)
	cond := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: string(worst), Message: s.Display.Message, ObservedGeneration: g.Generation}
	if worst == v1alpha1.StateReady {
		cond.Status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&s.Conditions, cond)
}
