package controller_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/reconcile"
)

func (h *hub) group(name string, sel *metav1.LabelSelector) {
	h.t.Helper()
	g := &v1alpha1.ClusterGroup{Spec: v1alpha1.ClusterGroupSpec{Selector: sel}}
	g.Name = name
	h.create(g)
}

func (h *hub) selectGroup(name string, sel *metav1.LabelSelector) {
	h.t.Helper()
	g := &v1alpha1.ClusterGroup{}
	if err := h.kube.Get(h.t.Context(), client.ObjectKey{Namespace: h.ns, Name: name}, g); err != nil {
		h.t.Fatal(err)
	}
	patch := client.MergeFrom(g.DeepCopy())
	g.Spec.Selector = sel
	if err := h.kube.Patch(h.t.Context(), g, patch); err != nil {
		h.t.Fatal(err)
	}
}

func labelled(k, v string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{k: v}}
}

// neverRemoved fails if any document so far said that something is to be removed.
func (s *site) neverRemoved() {
	s.h.t.Helper()
	for _, d := range s.documents() {
		if len(d.Remove) > 0 {
			s.h.t.Errorf("%s was told to remove %v", s.id.Name, d.Remove)
		}
	}
}

// A cluster group that is deleted, renamed, or whose selector is wrong takes nothing from the clusters that have bundles through it.
func TestGroupGone(t *testing.T) {
	h := newHub(t)
	stores := labelled("kind", "store")
	h.group("stores", stores)
	one, two := h.join("store-1", stores.MatchLabels), h.join("store-2", stores.MatchLabels)
	byName, byLabel, ungrouped, parted := configMap("by-name", "1"), configMap("by-label", "1"), configMap("ungrouped", "1"), configMap("parted", "1")
	byName.Spec.Targets = []v1alpha1.BundleTarget{{Name: "t", ClusterMatch: v1alpha1.ClusterMatch{ClusterGroup: "stores"}}}
	byLabel.Spec.Targets = []v1alpha1.BundleTarget{{ClusterMatch: v1alpha1.ClusterMatch{ClusterGroupSelector: labelled("of", "shops")}}}
	ungrouped.Spec.Targets, parted.Spec.Targets = everywhere(), everywhere()
	parted.Spec.RolloutStrategy = &v1alpha1.RolloutStrategy{Partitions: []v1alpha1.Partition{{ClusterMatch: v1alpha1.ClusterMatch{ClusterGroup: "stores"}}}}
	shops := &v1alpha1.ClusterGroup{Spec: v1alpha1.ClusterGroupSpec{Selector: stores}}
	shops.Name, shops.Labels = "shops", map[string]string{"of": "shops"}
	h.create(shops)
	all := []string{"by-name", "by-label", "ungrouped", "parted"}
	for _, b := range []*v1alpha1.Bundle{byName, byLabel, ungrouped, parted} {
		h.create(b)
	}
	for _, s := range []*site{one, two} {
		s.waitDesired("runs all", runs(all...))
		s.report(bundlefmt.Ready)
	}
	for _, n := range all {
		h.waitBundle(n, "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.ReadyClusters == "2/2" })
	}
	says := func(bundle string, state v1alpha1.State, message string) {
		t.Helper()
		h.waitBundle(bundle, "says why it waits", func(b *v1alpha1.Bundle) bool {
			return b.Status.Display.State == state && strings.Contains(b.Status.Display.Message, message)
		})
		for _, s := range []*site{one, two} {
			s.waitDesired("still runs all", runs(all...))
			s.neverRemoved()
		}
	}
	t.Log("deleted")
	h.delete(&v1alpha1.ClusterGroup{ObjectMeta: metav1.ObjectMeta{Name: "stores"}})
	says("by-name", v1alpha1.StateErrRendered, `targets[0] (t): cluster group "stores" does not exist; clusters keep what they have`)
	says("parted", v1alpha1.StateErrRendered, `rolloutStrategy.partitions[0]: cluster group "stores" does not exist`)
	t.Log("made again, with a typing error in the selector")
	h.group("stores", labelled("kind", "stroe"))
	says("by-name", v1alpha1.StateHeld, "cluster group stores holds no cluster now; its targets no longer match 2 of the 2 clusters that have it; nothing is removed until you confirm")
	t.Log("a selector that cannot be read")
	h.selectGroup("stores", &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "kind", Operator: "Like"}}})
	says("by-name", v1alpha1.StateErrRendered, "cluster group stores: selector")
	t.Log("which is no matter of others")
	h.update("ungrouped", func(b *v1alpha1.Bundle) { b.Spec.DefaultNamespace = "changed" })
	one.waitDesired("has the update", func(d *bundlefmt.Desired) bool { return entry(t, d, "ungrouped").Policy.Namespace == "changed" })
	t.Log("corrected")
	h.selectGroup("stores", stores)
	for _, s := range []*site{one, two} {
		s.report(bundlefmt.Ready)
	}
	h.waitBundle("by-name", "is ready again", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	t.Log("groups that are selected by their labels")
	h.delete(&v1alpha1.ClusterGroup{ObjectMeta: metav1.ObjectMeta{Name: "shops"}})
	says("by-label", v1alpha1.StateHeld, "every cluster group with the labels of=shops holds no cluster now")
	t.Log("meant so")
	h.update("by-label", func(b *v1alpha1.Bundle) { metav1.SetMetaDataAnnotation(&b.ObjectMeta, reconcile.ConfirmRemoval, "2") })
	one.waitDesired("removes it", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 1 && d.Remove[0].Name == "by-label" })
}
