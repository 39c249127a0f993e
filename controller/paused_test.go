package controller_test

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
)

// setPaused pauses a cluster, or ends that.
func (h *hub) setPaused(cluster string, paused bool) {
	h.t.Helper()
	c := &v1alpha1.Cluster{}
	c.Name, c.Namespace = cluster, h.ns
	if err := h.kube.Patch(h.t.Context(), c, client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"paused":%v}}`, paused))); err != nil {
		h.t.Fatal(err)
	}
}

// Nothing leaves a cluster while it or the bundle is paused, by whatever way the removal comes. It waits, the Bundle says so and names
// the command, and then it goes.
func TestPausedHoldsRemovals(t *testing.T) {
	type ways map[string]func(h *hub)
	remove := ways{
		"deleted": func(h *hub) { h.delete(&v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: "a"}}) },
		"targets": func(h *hub) {
			h.update("a", func(b *v1alpha1.Bundle) {
				b.Spec.Targets[0].ClusterSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"env": "none"}}
			})
		},
		"label": func(h *hub) {
			c := &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "store-1", Namespace: h.ns}}
			if err := h.kube.Patch(h.t.Context(), c, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"env":"test"}}}`))); err != nil {
				h.t.Fatal(err)
			}
		},
	}
	type pause struct {
		on, off func(h *hub)
		says    string
	}
	pauses := map[string]pause{
		"cluster": {func(h *hub) { h.setPaused("store-1", true) }, func(h *hub) { h.setPaused("store-1", false) }, "the cluster is paused"},
		"bundle": {
			func(h *hub) { h.update("a", func(b *v1alpha1.Bundle) { b.Spec.Paused = true }) },
			func(h *hub) { h.update("a", func(b *v1alpha1.Bundle) { b.Spec.Paused = false }) }, "it is paused",
		},
	}

	h := newHub(t)
	s := h.join("store-1", map[string]string{"env": "prod"})
	for what, p := range pauses {
		for how, away := range remove {
			t.Run(what+"/"+how, func(t *testing.T) {
				c := &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "store-1", Namespace: h.ns}}
				if err := h.kube.Patch(t.Context(), c, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"env":"prod"}}}`))); err != nil {
					t.Fatal(err)
				}
				b := configMap("a", "1")
				b.Spec.Targets = []v1alpha1.BundleTarget{{Name: "prod", ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "prod"}}}}}
				h.create(b)
				s.waitDesired("runs a", runs("a"))
				s.report(bundlefmt.Ready)
				h.becomesReady("a")
				p.on(h)
				h.waitBundle("a", "is looked at", func(b *v1alpha1.Bundle) bool { return b.Status.ObservedGeneration == b.Generation })
				away(h)
				h.waitBundle("a", "says that it waits", func(b *v1alpha1.Bundle) bool {
					return b.Status.Display.State == v1alpha1.StateHeld && strings.Contains(b.Status.Display.Message, p.says) && strings.Contains(b.Status.Display.Message, "kubectl -n "+h.ns+" patch ")
				})
				h.waitCluster("store-1", "says that it waits", func(c *v1alpha1.Cluster) bool {
					return c.Status.Display.State == v1alpha1.StateHeld && strings.Contains(c.Status.Display.Message, p.says)
				})
				if d := s.waitDesired("still runs a", runs("a")); len(d.Remove) != 0 {
					t.Fatalf("removes %v", d.Remove)
				}
				p.off(h)
				s.waitDesired("removes a", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 1 && len(d.Deployments) == 0 })
				s.report(bundlefmt.Ready)
				s.waitDesired("is done", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 0 })
				if how != "deleted" {
					h.delete(&v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
				}
				h.gone(&v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
			})
		}
	}
}

// A pause takes a removal back that the cluster has not begun: it left the bundle while the cluster had no link, or its window was closed.
func TestPauseTakesRemovalBack(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	s.report(bundlefmt.Ready)
	h.becomesReady("a")
	h.update("a", func(b *v1alpha1.Bundle) {
		b.Spec.Targets[0].ClusterMatch = v1alpha1.ClusterMatch{ClusterName: "nowhere"}
	})
	s.waitDesired("removes a", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 1 })
	h.setPaused("store-1", true)
	s.waitDesired("no longer removes a", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 0 && len(d.Deployments) == 0 })
	h.waitBundle("a", "says that it waits", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.State == v1alpha1.StateHeld && strings.Contains(b.Status.Display.Message, "the cluster is paused")
	})
	h.setPaused("store-1", false)
	s.waitDesired("removes a after all", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 1 })
}
