package controller_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/reconcile"
	"shoal.dev/shoal/internal/mqtt"
)

// waits checks that a Bundle's newest generation is not ready, and that its message says why.
func (h *hub) waits(bundle, why string) {
	h.t.Helper()
	h.waitBundle(bundle, "says "+why, func(b *v1alpha1.Bundle) bool {
		ready, known := claims(b.Status.Conditions, b.Generation)
		if ready {
			h.t.Fatalf("Ready, though it cannot be ordered: %+v", b.Status)
		}
		return known && strings.Contains(b.Status.Display.Message, why)
	})
}

// becomes waits until a Bundle's newest generation is ready.
func (h *hub) becomesReady(bundle string) {
	h.t.Helper()
	h.waitBundle(bundle, "is ready", func(b *v1alpha1.Bundle) bool {
		ready, _ := claims(b.Status.Conditions, b.Generation)
		return ready
	})
}

// A webhook that is away refuses every write of a Cluster's status, and with it the serial of the next document: the Bundle says
// so, and when the webhook is gone things go on.
func TestSerialRefused(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	s.report(bundlefmt.Ready)
	h.becomesReady("a")

	core, err := client.New(h.cfg, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	fail, none, url := admissionv1.Fail, admissionv1.SideEffectClassNone, "https://127.0.0.1:1/"
	dead := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: h.ns}, Webhooks: []admissionv1.ValidatingWebhook{{
		Name: "dead.example.com", ClientConfig: admissionv1.WebhookClientConfig{URL: &url}, FailurePolicy: &fail, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: h.ns}},
		Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{admissionv1.Update}, Rule: admissionv1.Rule{
			APIGroups: []string{v1alpha1.GroupVersion.Group}, APIVersions: []string{"*"}, Resources: []string{"clusters/status"},
		}}},
	}}}
	if err := core.Create(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = core.Delete(context.Background(), dead) })
	c := &v1alpha1.Cluster{}
	wait(t, "the API server calls the webhook", func() (bool, string) {
		if err := h.kube.Get(t.Context(), client.ObjectKey{Namespace: h.ns, Name: "store-1"}, c); err != nil {
			return false, err.Error()
		}
		patch := client.MergeFrom(c.DeepCopy())
		c.Status.Nodes++
		err := h.kube.Status().Patch(t.Context(), c, patch)
		return err != nil, "the write succeeded"
	})

	h.update("a", func(b *v1alpha1.Bundle) { b.Spec.Resources = configMap("a", "2").Spec.Resources })
	h.waits("a", "dead.example.com")
	if err := core.Delete(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	s.waitDesired("has the new release", func(d *bundlefmt.Desired) bool { return d.Serial > 2 })
	s.report(bundlefmt.Ready)
	h.becomesReady("a")
}

// fullDisk refuses to retain desired documents while it is full.
type fullDisk struct {
	mqtt.Carrier
	full *atomic.Bool
}

func (f fullDisk) Publish(ctx context.Context, m mqtt.Message) error {
	if f.full.Load() && strings.HasSuffix(m.Topic, "/desired") {
		return errors.New("no space left on device")
	}
	return f.Carrier.Publish(ctx, m)
}

// A broker that takes no message: Bundle and Cluster say so, and what depends on the bundle does not go on either. What is
// tried again goes out when it can.
func TestPublishRefused(t *testing.T) {
	h := newHub(t)
	var full atomic.Bool
	h.stop()
	h.wrap = func(c mqtt.Carrier) mqtt.Carrier { return fullDisk{c, &full} }
	h.start()
	s := h.join("store-1", nil)
	for _, n := range []string{"a", "b"} {
		b := configMap(n, "1")
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	s.waitDesired("runs both", runs("a", "b"))
	s.report(bundlefmt.Ready)
	h.becomesReady("a")
	full.Store(true)
	h.update("a", func(b *v1alpha1.Bundle) { b.Spec.Resources = configMap("a", "2").Spec.Resources })
	h.waits("a", "no space left on device")
	c := h.waitCluster("store-1", "says so", func(c *v1alpha1.Cluster) bool {
		return strings.Contains(c.Status.Display.Message, "no space left on device") && c.Status.Display.State == v1alpha1.StateOutOfSync
	})
	if r := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionReady); r.Status != metav1.ConditionFalse || r.Reason != "NotPublished" {
		t.Errorf("condition %+v", r)
	}
	h.becomesReady("b") // nothing of it waits
	full.Store(false)
	old := s.waitDesired("is as before", runs("a", "b"))
	s.waitDesired("has the new release", func(d *bundlefmt.Desired) bool { return entry(t, d, "a").Digest != entry(t, old, "a").Digest })
	s.report(bundlefmt.Ready)
	h.becomesReady("a")
	h.waitCluster("store-1", "is ready", func(c *v1alpha1.Cluster) bool { return c.Status.Display.State == v1alpha1.StateReady })
}

// A cluster that is ahead of the hub: its Bundles name the command that ends the conflict.
func TestConflictOnTheBundle(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	s.report(bundlefmt.Ready)
	h.becomesReady("a")
	s.report(bundlefmt.Ready, func(r *bundlefmt.Reported) { r.Serial, r.Deployments[0].Serial = 900, 900 })
	h.waitBundle("a", "names the command", func(b *v1alpha1.Bundle) bool { // the site has it from an order that the hub does not know
		ready, known := claims(b.Status.Conditions, b.Generation)
		return known && !ready && strings.Contains(b.Status.Display.Message, reconcile.Resume+"=900")
	})
	h.update("a", func(b *v1alpha1.Bundle) { b.Spec.DefaultNamespace = "changed" })
	h.waits("a", reconcile.Resume+"=900")
}

// Windows that cannot be read keep a new cluster from its first order: the Bundle names them.
func TestWindowOnTheBundle(t *testing.T) {
	h := newHub(t)
	k := h.token("k", v1alpha1.ClusterRegistrationTokenSpec{})
	g := &v1alpha1.ClusterGroup{Spec: v1alpha1.ClusterGroupSpec{Selector: &metav1.LabelSelector{}, Windows: []v1alpha1.Window{{Schedule: "0 99 * * *", Duration: metav1.Duration{Duration: 3600e9}}}}}
	g.Name = "stores"
	h.create(g)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s := h.site("store-1")
	if r := s.enroll(k); r.Error != "" {
		t.Fatal(r.Error)
	}
	s.up()
	s.report(bundlefmt.Ready)
	h.waits("a", "cluster group stores: spec.windows[0]")
}

// A dependency whose newest release the hub cannot order holds what depends on it, whatever the cluster says of the older one.
func TestDependencyNotOrdered(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	for _, n := range []string{"base", "app"} {
		b := configMap(n, "1")
		b.Spec.Targets = everywhere()
		if n == "app" {
			b.Spec.DependsOn = []v1alpha1.BundleDependency{{Name: "base"}}
		}
		h.create(b)
	}
	before := s.waitDesired("runs both", runs("base", "app"))
	s.report(bundlefmt.Ready)
	h.becomesReady("app")
	for what, change := range map[string]func(*v1alpha1.Bundle){
		"paused":       func(b *v1alpha1.Bundle) { b.Spec.Paused = true; b.Spec.DefaultNamespace = "later" },
		"not rendered": func(b *v1alpha1.Bundle) { b.Spec.Paused = false; b.Spec.Resources[0].Content = "{" },
	} {
		h.update("base", change)
		h.waitBundle("base", what, func(b *v1alpha1.Bundle) bool { return b.Status.ObservedGeneration == b.Generation })
		h.update("app", func(b *v1alpha1.Bundle) {
			b.Spec.Resources = configMap("app", strings.ReplaceAll(what, " ", "-")).Spec.Resources
		})
		h.waits("app", "waits for bundle base")
		if d := s.waitDesired("is as before", runs("base", "app")); entry(t, d, "app").Digest != entry(t, before, "app").Digest {
			t.Errorf("base is %s, and the next release of app was ordered", what)
		}
	}
	h.update("base", func(b *v1alpha1.Bundle) { b.Spec = configMap("base", "2").Spec; b.Spec.Targets = everywhere() })
	s.waitDesired("has the next app", func(d *bundlefmt.Desired) bool { return entry(t, d, "app").Digest != entry(t, before, "app").Digest })
	s.report(bundlefmt.Ready)
	h.becomesReady("app")
}

// The hub's own ConfigMap of a cluster's API versions is deleted: the cluster tells them once more.
func TestAPIVersionsGone(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	old := entry(t, s.waitDesired("runs a", runs("a")), "a")
	s.report(bundlefmt.Ready)
	h.becomesReady("a")
	core, err := client.New(h.cfg, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := h.waitCluster("store-1", "is known", func(c *v1alpha1.Cluster) bool { return c.Status.APIVersions != "" })
	if err := core.Delete(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: h.system, Name: c.Status.APIVersions}}); err != nil {
		t.Fatal(err)
	}
	h.update("a", func(b *v1alpha1.Bundle) { b.Spec.Resources = configMap("a", "2").Spec.Resources })
	s.waitDesired("has the new release", func(d *bundlefmt.Desired) bool { return entry(t, d, "a").Digest != old.Digest })
}
