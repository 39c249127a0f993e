package controller_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
)

// watchBundles hands every version of every Bundle of the workspace to see, until that says it has seen enough.
func (h *hub) watchBundles(w watch.Interface, what string, see func(*v1alpha1.Bundle) (enough bool)) {
	h.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		select {
		case e := <-w.ResultChan():
			b, ok := e.Object.(*v1alpha1.Bundle)
			if !ok {
				h.t.Fatalf("%s: watch said %+v", what, e)
			}
			if see(b) {
				return
			}
		case <-limit.C:
			h.t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func (h *hub) watch() watch.Interface {
	h.t.Helper()
	c, err := client.NewWithWatch(h.cfg, client.Options{Scheme: h.kube.Scheme()})
	if err != nil {
		h.t.Fatal(err)
	}
	w, err := c.Watch(h.t.Context(), &v1alpha1.BundleList{}, client.InNamespace(h.ns))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(w.Stop)
	return w
}

// claims says what `kubectl wait --for=condition=Ready` takes from a Bundle: whether it is ready, of its newest generation.
func claims(conditions []metav1.Condition, generation int64) (ready, known bool) {
	c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	if c == nil || c.ObservedGeneration < generation {
		return false, false
	}
	return c.Status == metav1.ConditionTrue, true
}

// A hundred releases of which a silent site has none: not for a moment is one of them Ready, whether it changes objects or only how
// they are to be treated; then the site reports, and all are.
func TestReadyIsReported(t *testing.T) {
	const bundles = 100
	h := newHub(t)
	s := h.join("store-1", nil)
	for i := range bundles {
		b := configMap(fmt.Sprintf("b-%d", i), "old")
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	s.waitDesired("runs all", func(d *bundlefmt.Desired) bool { return len(d.Deployments) == bundles })
	s.report(bundlefmt.Ready)
	w := h.watch()
	ready := map[string]bool{}
	h.watchBundles(w, "all are ready", func(b *v1alpha1.Bundle) bool {
		ready[b.Name], _ = claims(b.Status.Conditions, b.Generation)
		return len(ready) == bundles && !hasFalse(ready)
	})

	for i := range bundles {
		h.update(fmt.Sprintf("b-%d", i), func(b *v1alpha1.Bundle) {
			if i%2 == 0 {
				b.Spec.CorrectDrift = &v1alpha1.CorrectDrift{Enabled: true} // the same objects
				return
			}
			b.Spec.Resources[0].Content = strings.Replace(b.Spec.Resources[0].Content, "old", "new", 1)
		})
	}
	waits, lied := map[string]bool{}, map[string]bool{}
	h.watchBundles(w, "all wait for the site", func(b *v1alpha1.Bundle) bool {
		if b.Generation == 1 {
			return false
		}
		if ready, _ := claims(b.Status.Conditions, b.Generation); ready {
			lied[b.Name] = true
		}
		waits[b.Name] = b.Status.ObservedGeneration == b.Generation && b.Status.Display.State == v1alpha1.StateWaitApplied
		return len(waits) == bundles && !hasFalse(waits)
	})
	if len(lied) > 0 {
		t.Errorf("%d of %d releases were Ready that no site has", len(lied), bundles)
	}
	c := h.waitCluster("store-1", "waits", func(c *v1alpha1.Cluster) bool { return c.Status.Summary.WaitApplied == bundles })
	if ready, known := claims(c.Status.Conditions, c.Generation); ready || !known {
		t.Errorf("the cluster's conditions are %+v", c.Status.Conditions)
	}
	s.report(bundlefmt.Ready)
	h.watchBundles(w, "all are ready again", func(b *v1alpha1.Bundle) bool {
		waits[b.Name], _ = claims(b.Status.Conditions, b.Generation)
		return !hasFalse(waits)
	})
}

func hasFalse(m map[string]bool) bool {
	for _, v := range m {
		if !v {
			return true
		}
	}
	return false
}

// A bundle that leaves a cluster is Ready when the cluster has said that it is gone, and says until then what the cluster says.
func TestRemovingIsNotReady(t *testing.T) {
	h := newHub(t)
	one, two := h.join("one", map[string]string{"env": "prod"}), h.join("two", map[string]string{"env": "prod"})
	b := configMap("a", "1")
	b.Spec.Targets = []v1alpha1.BundleTarget{{Name: "prod", ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "prod"}}}}}
	h.create(b)
	for _, s := range []*site{one, two} {
		s.waitDesired("runs a", runs("a"))
		s.report(bundlefmt.Ready)
	}
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.ReadyClusters == "2/2" })
	w := h.watch()
	h.update("a", func(b *v1alpha1.Bundle) {
		b.Spec.Targets[0].ClusterMatch = v1alpha1.ClusterMatch{ClusterName: "one"}
	})
	h.watchBundles(w, "is being removed", func(b *v1alpha1.Bundle) bool {
		if b.Generation == 1 {
			return false
		}
		if ready, _ := claims(b.Status.Conditions, b.Generation); ready {
			t.Error("Ready, and the cluster has it still")
		}
		return b.Status.Display.State == v1alpha1.StateRemoving && b.Status.Summary.Removing == 1 && b.Status.Display.ReadyClusters == "1/1"
	})
	two.waitDesired("removes a", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 1 })
	two.report(bundlefmt.Ready, func(r *bundlefmt.Reported) {
		r.Deployments = []bundlefmt.DeploymentReport{{Name: "a", Serial: 1, State: bundlefmt.WaitApplied, Message: "1 objects are still to go: configmaps x/a: finalizer example.com/hold", Since: time.Now()}}
	})
	h.waitBundle("a", "quotes the cluster", func(b *v1alpha1.Bundle) bool {
		return strings.Contains(b.Status.Display.Message, "two: 1 objects are still to go: configmaps x/a: finalizer example.com/hold")
	})
	c := h.waitCluster("two", "quotes itself", func(c *v1alpha1.Cluster) bool {
		return c.Status.Display.State == v1alpha1.StateRemoving && strings.Contains(c.Status.Display.Message, "example.com/hold")
	})
	if ready, _ := claims(c.Status.Conditions, c.Generation); ready {
		t.Errorf("the cluster's conditions are %+v", c.Status.Conditions)
	}
	two.report(bundlefmt.Ready)
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool {
		ready, _ := claims(b.Status.Conditions, b.Generation)
		return ready
	})
	h.waitCluster("two", "is ready", func(c *v1alpha1.Cluster) bool { return c.Status.Display.State == v1alpha1.StateReady })
}

// A hub that starts has not looked at every bundle yet: what was changed while it was away is not Ready before it is reported.
func TestReadyOverRestart(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	s.report(bundlefmt.Ready)
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	h.stop()
	h.update("a", func(b *v1alpha1.Bundle) { b.Spec.Resources = configMap("a", "2").Spec.Resources })
	s.stop() // it does not report: what the broker retains is what it said before
	w := h.watch()
	h.start()
	h.watchBundles(w, "waits for the site", func(b *v1alpha1.Bundle) bool {
		if ready, _ := claims(b.Status.Conditions, b.Generation); ready {
			t.Error("Ready, and no site has it")
		}
		return b.Status.ObservedGeneration == b.Generation && b.Status.Display.State == v1alpha1.StateWaitApplied
	})
	h.waitCluster("store-1", "waits", func(c *v1alpha1.Cluster) bool { return c.Status.Display.State == v1alpha1.StateWaitApplied })
}

// A Cluster's newest generation is Ready when every bundle was made for it, ordered and reported.
func TestReadyOfANewCluster(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "of-${ .ClusterValues.shop }")
	b.Spec.Templating = "all"
	b.Spec.Targets = everywhere()
	h.setValues("store-1", `{"shop":"one"}`)
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	s.report(bundlefmt.Ready)
	h.waitCluster("store-1", "is ready", func(c *v1alpha1.Cluster) bool {
		ready, _ := claims(c.Status.Conditions, c.Generation)
		return ready && c.Status.Display.ReadyBundles == "1/1"
	})
	for i := range 10 {
		h.setValues("store-1", fmt.Sprintf(`{"shop":"n-%d"}`, i))
		h.waitCluster("store-1", "waits for the site", func(c *v1alpha1.Cluster) bool {
			ready, known := claims(c.Status.Conditions, c.Generation)
			if ready {
				t.Errorf("Ready, and the site has not reported: %+v", c.Status)
			}
			return known && c.Status.Display.State == v1alpha1.StateWaitApplied
		})
		s.report(bundlefmt.Ready)
		h.waitCluster("store-1", "is ready", func(c *v1alpha1.Cluster) bool {
			ready, _ := claims(c.Status.Conditions, c.Generation)
			return ready
		})
	}
}

func (h *hub) setValues(cluster, values string) {
	h.t.Helper()
	c := &v1alpha1.Cluster{}
	c.Name, c.Namespace = cluster, h.ns
	if err := h.kube.Patch(h.t.Context(), c, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"templateValues":`+values+`}}`))); err != nil {
		h.t.Fatal(err)
	}
}

// What somebody writes into a status of an object that nothing happens to does not stay.
func TestEditedStatus(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	g := &v1alpha1.ClusterGroup{Spec: v1alpha1.ClusterGroupSpec{Selector: &metav1.LabelSelector{}}}
	g.Name = "stores"
	h.create(g)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	s.report(bundlefmt.Ready)
	h.becomesReady("a")
	h.waitCluster("store-1", "is ready", func(c *v1alpha1.Cluster) bool { return c.Status.Display.State == v1alpha1.StateReady })
	h.waitGroup("stores", func(g *v1alpha1.ClusterGroup) bool { return g.Status.Display.State == v1alpha1.StateReady })
	edit := []byte(`{"status":{"display":{"state":"ErrApplied","message":"edited"},"kubernetesVersion":"v1.0.0"}}`)
	for _, o := range []client.Object{
		&v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "store-1"}},
		&v1alpha1.ClusterGroup{ObjectMeta: metav1.ObjectMeta{Name: "stores"}},
	} {
		o.SetNamespace(h.ns)
		if err := h.kube.Status().Patch(t.Context(), o, client.RawPatch("application/merge-patch+json", edit)); err != nil {
			t.Fatal(err)
		}
	}
	h.waitBundle("a", "shows what is", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.State == v1alpha1.StateReady && b.Status.Display.Message == ""
	})
	h.waitCluster("store-1", "shows what is", func(c *v1alpha1.Cluster) bool {
		return c.Status.Display.State == v1alpha1.StateReady && c.Status.Display.Message == "" && c.Status.KubernetesVersion == "v1.36.3"
	})
	h.waitGroup("stores", func(g *v1alpha1.ClusterGroup) bool {
		return g.Status.Display.State == v1alpha1.StateReady && g.Status.Display.Message == ""
	})
}

// A group is ready when its clusters are, for `kubectl wait` as well.
func TestGroupReady(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	g := &v1alpha1.ClusterGroup{Spec: v1alpha1.ClusterGroupSpec{Selector: &metav1.LabelSelector{}}}
	g.Name = "stores"
	h.create(g)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	h.waitGroup("stores", func(g *v1alpha1.ClusterGroup) bool {
		ready, known := claims(g.Status.Conditions, g.Generation)
		return known && !ready && g.Status.Display.State == v1alpha1.StateWaitApplied
	})
	s.report(bundlefmt.Ready)
	h.waitGroup("stores", func(g *v1alpha1.ClusterGroup) bool {
		ready, _ := claims(g.Status.Conditions, g.Generation)
		return ready && g.Status.Display.ReadyBundles == "1/1"
	})
}
