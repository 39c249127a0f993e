package controller_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
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

// two is a site that runs two bundles, everywhere and ready: too few for the site's own guard.
func (h *hub) two(names ...string) *site {
	h.t.Helper()
	s := h.join("store-1", nil)
	for _, n := range names {
		b := configMap(n, "1")
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	s.waitDesired("runs all", runs(names...))
	s.report(bundlefmt.Ready)
	for _, n := range names {
		h.waitBundle(n, "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	}
	return s
}

// deleteAll deletes every Bundle of the workspace, as kubectl delete --all and tools that prune do.
func (h *hub) deleteAll() {
	h.t.Helper()
	if err := h.kube.DeleteAllOf(h.t.Context(), &v1alpha1.Bundle{}, client.InNamespace(h.ns)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hub) confirm(name, value string) {
	h.t.Helper()
	h.update(name, func(b *v1alpha1.Bundle) { metav1.SetMetaDataAnnotation(&b.ObjectMeta, reconcile.ConfirmRemoval, value) })
}

func (h *hub) waitHeld(name string, n, of int) {
	h.t.Helper()
	want := fmt.Sprintf("%d of %d bundles of this workspace are deleted at once; nothing is removed from any cluster until you confirm: kubectl -n %s annotate --overwrite bundles.shoal.dev %s %s=%d",
		n, of, h.ns, name, reconcile.ConfirmRemoval, n)
	h.waitBundle(name, "is held", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.State == v1alpha1.StateHeld && strings.Contains(b.Status.Display.Message, want) && b.Status.RemovalHeld != nil
	})
}

// All bundles deleted at once are held as one at the hub, and one word ends that for all of them.
func TestDeleteAll(t *testing.T) {
	h := newHub(t)
	s := h.two("a", "b")
	h.deleteAll()
	h.waitHeld("a", 2, 2)
	h.waitHeld("b", 2, 2)
	h.waitCluster("store-1", "says so", func(c *v1alpha1.Cluster) bool {
		return c.Status.Display.State == v1alpha1.StateHeld && strings.Contains(c.Status.Display.Message, "2 of 2 bundles of this workspace are deleted at once")
	})
	s.waitDesired("still runs both", runs("a", "b"))
	s.neverRemoved()
	t.Log("a wrong number confirms nothing, and is told so")
	h.confirm("b", "7")
	h.waitBundle("b", "says that the number is wrong", func(b *v1alpha1.Bundle) bool {
		return strings.HasPrefix(b.Status.Display.Message, reconcile.ConfirmRemoval+"=7 confirms nothing: 2 of 2 bundles")
	})
	s.neverRemoved()
	t.Log("meant so")
	h.confirm("a", "2")
	d := s.waitDesired("removes both", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 2 && len(d.Deployments) == 0 })
	for _, r := range d.Remove {
		if !r.Confirmed {
			t.Errorf("the site would ask once more about %s", r.Name)
		}
	}
	for _, n := range []string{"a", "b"} {
		h.gone(&v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: n}})
	}
}

// Whoever deleted all by mistake lets them go, keeps what runs, and makes them again.
func TestDeleteAllByMistake(t *testing.T) {
	h := newHub(t)
	s := h.two("a", "b", "c")
	before := s.waitDesired("runs all", runs("a", "b", "c"))
	h.deleteAll()
	h.waitHeld("c", 3, 3)
	t.Log("also over a restart of the hub")
	s.stop()
	h.stop()
	h.start()
	s.up()
	h.waitHeld("c", 3, 3)
	h.confirm("c", reconcile.Keep)
	for _, n := range []string{"a", "b", "c"} {
		h.gone(&v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: n}})
	}
	s.neverRemoved()
	for _, n := range []string{"a", "b", "c"} {
		b := configMap(n, "1")
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	for _, n := range []string{"a", "b", "c"} {
		h.waitBundle(n, "is looked at", func(b *v1alpha1.Bundle) bool { return b.Status.Summary.Desired == 1 })
	}
	now := s.waitDesired("runs all", runs("a", "b", "c"))
	s.report(bundlefmt.Ready)
	for _, n := range []string{"a", "b", "c"} {
		h.waitBundle(n, "is ready again", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
		if x, y := entry(t, before, n), entry(t, now, n); x.Digest != y.Digest {
			t.Errorf("%s was %+v, is %+v", n, x, y)
		}
	}
	s.neverRemoved()
	t.Log("one of them alone goes without a word")
	h.delete(&v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: "b"}})
	s.waitDesired("removes b", func(d *bundlefmt.Desired) bool {
		return len(d.Remove) == 1 && d.Remove[0].Name == "b" && runs("a", "c")(d)
	})
	h.gone(&v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: "b"}})
}

// An uninstall ends, and takes nothing away: neither where the resource definition is deleted, nor where the workspace is.
func TestUninstall(t *testing.T) {
	t.Run("resource definition", func(t *testing.T) {
		h := newHub(t)
		s := h.two("a", "b")
		crd := &unstructured.Unstructured{}
		crd.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
		crd.SetName("bundles.shoal.dev")
		if err := h.kube.Delete(t.Context(), crd); err != nil {
			t.Fatal(err)
		}
		wait(t, "the resource definition is gone", func() (bool, string) {
			err := h.kube.Get(t.Context(), client.ObjectKeyFromObject(crd), crd)
			return apierrors.IsNotFound(err), fmt.Sprint(err)
		})
		if !strings.Contains(h.log.String(), "resource definition bundles.shoal.dev is being deleted") {
			t.Error("the log does not say why nothing is removed")
		}
		s.neverRemoved()
		t.Log("installed again: what runs is taken over when its Bundle is made again")
		s.stop()
		h.stop()
		h.start()
		s.up()
		s.report(bundlefmt.Ready)
		b := configMap("a", "1")
		b.Spec.Targets = everywhere()
		h.create(b)
		s.waitDesired("has the order", func(d *bundlefmt.Desired) bool { return has(d, "a") })
		s.report(bundlefmt.Ready)
		h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
		s.neverRemoved()
	})
	t.Run("workspace", func(t *testing.T) {
		h := newHub(t)
		s := h.two("a", "b")
		core, err := client.New(h.cfg, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: h.ns}}
		if err := core.Delete(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
		wait(t, "the workspace is gone", func() (bool, string) {
			err := core.Get(t.Context(), client.ObjectKeyFromObject(ns), ns)
			return apierrors.IsNotFound(err), fmt.Sprint(err)
		})
		s.neverRemoved()
	})
}
