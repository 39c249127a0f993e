package controller_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	corev1 "k8s.io/api/core/v1"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/enroll"
	"shoal.dev/shoal/controller/reconcile"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

func runs(names ...string) func(*bundlefmt.Desired) bool {
	return func(d *bundlefmt.Desired) bool {
		have := map[string]bool{}
		for _, x := range d.Deployments {
			have[x.Name] = true
		}
		for _, n := range names {
			if !have[n] {
				return false
			}
		}
		return len(have) == len(names)
	}
}

func entry(t *testing.T, d *bundlefmt.Desired, name string) bundlefmt.Deployment {
	t.Helper()
	for _, x := range d.Deployments {
		if x.Name == name {
			return x
		}
	}
	t.Fatalf("%s is not in %+v", name, d)
	return bundlefmt.Deployment{}
}

func TestInstallUpdateDelete(t *testing.T) {
	h := newHub(t)
	prod, test := h.join("prod-1", map[string]string{"env": "prod"}), h.join("test-1", map[string]string{"env": "test"})
	web := configMap("web", "base")
	web.Spec.Targets = []v1alpha1.BundleTarget{
		{Name: "prod", ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "prod"}}}, BundleOptions: v1alpha1.BundleOptions{DefaultNamespace: "p"}},
		{Name: "test", ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "test"}}}},
	}
	h.create(web)
	d := prod.waitDesired("runs web", runs("web"))
	if got := entry(t, d, "web").Policy.Namespace; got != "p" {
		t.Errorf("namespace for prod is %q, want p", got)
	}
	first := entry(t, test.waitDesired("runs web", runs("web")), "web")
	h.waitBundle("web", "waits for both", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.ReadyClusters == "0/2" && b.Status.Display.State == v1alpha1.StateWaitApplied
	})
	prod.report(bundlefmt.Ready)
	test.report(bundlefmt.Ready)
	h.waitBundle("web", "is ready", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.ReadyClusters == "2/2" && b.Status.Display.State == v1alpha1.StateReady && !b.Status.StateSince.IsZero()
	})
	h.waitCluster("prod-1", "is ready", func(c *v1alpha1.Cluster) bool {
		return c.Status.Display.ReadyBundles == "1/1" && c.Status.Presence == v1alpha1.PresenceOnline && c.Status.KubernetesVersion == "v1.36.3"
	})

	// A change of one target's options reaches only its clusters.
	h.update("web", func(b *v1alpha1.Bundle) { b.Spec.Targets[0].DefaultNamespace = "p2" })
	d = prod.waitDesired("has the new namespace", func(d *bundlefmt.Desired) bool {
		return len(d.Deployments) == 1 && d.Deployments[0].Policy.Namespace == "p2"
	})
	prod.report(bundlefmt.Ready)
	h.waitBundle("web", "is ready again", func(b *v1alpha1.Bundle) bool {
		return b.Status.ObservedGeneration == b.Generation && b.Status.Display.State == v1alpha1.StateReady
	})
	if now := entry(t, test.waitDesired("still runs web", runs("web")), "web"); !now.Equal(first) {
		t.Errorf("test-1 was ordered %+v, had %+v", now, first)
	}
	if entry(t, d, "web").Serial != d.Serial {
		t.Errorf("a new release must carry the document's serial: %+v", d)
	}

	// Another bundle, then the first is deleted: it is removed by name, the other stays.
	other := configMap("other", "x")
	other.Spec.Targets = everywhere()
	h.create(other)
	prod.waitDesired("runs both", runs("web", "other"))
	prod.report(bundlefmt.Ready)
	h.delete(&v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: "web"}})
	d = prod.waitDesired("removes web", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 1 && d.Remove[0].Name == "web" })
	if !runs("other")(d) {
		t.Errorf("other must stay: %+v", d)
	}
	prod.report(bundlefmt.Ready)
	prod.waitDesired("no longer mentions web", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 0 && runs("other")(d) })
	h.gone(&v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: "web"}})
}

func (h *hub) update(name string, change func(*v1alpha1.Bundle)) {
	h.t.Helper()
	var b v1alpha1.Bundle
	wait(h.t, "update "+name, func() (bool, string) {
		if err := h.kube.Get(h.t.Context(), client.ObjectKey{Namespace: h.ns, Name: name}, &b); err != nil {
			return false, err.Error()
		}
		change(&b)
		err := h.kube.Update(h.t.Context(), &b)
		return err == nil, fmt.Sprint(err)
	})
}

func (h *hub) delete(o client.Object) {
	h.t.Helper()
	o.SetNamespace(h.ns)
	if err := h.kube.Delete(h.t.Context(), o); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hub) gone(o client.Object) {
	h.t.Helper()
	o.SetNamespace(h.ns)
	wait(h.t, o.GetName()+" is gone", func() (bool, string) {
		err := h.kube.Get(h.t.Context(), client.ObjectKeyFromObject(o), o)
		return apierrors.IsNotFound(err), fmt.Sprint(err)
	})
}

// The broker's store is lost and the hub restarted: serials go on from where they were, nothing is removed, and no release gets
// a new digest.
func TestWipedBroker(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	for _, n := range []string{"a", "b"} {
		b := configMap(n, "1")
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	before := s.waitDesired("runs both", runs("a", "b"))
	s.report(bundlefmt.Ready)
	h.waitCluster("store-1", "is ready", func(c *v1alpha1.Cluster) bool { return c.Status.Display.ReadyBundles == "2/2" })
	s.stop()
	h.stop()
	if err := os.Remove(filepath.Join(h.dir, "retained.db")); err != nil {
		t.Fatal(err)
	}
	h.start()
	s.up()
	s.report(bundlefmt.Ready) // before that nobody knows where it is
	after := s.waitDesired("runs both again, above the serial that it has", func(d *bundlefmt.Desired) bool {
		return d.Serial > before.Serial && runs("a", "b")(d)
	})
	if len(after.Remove) != 0 {
		t.Errorf("removes %v", after.Remove)
	}
	for _, n := range []string{"a", "b"} {
		if x, y := entry(t, before, n), entry(t, after, n); x.Digest != y.Digest || !x.Policy.Equal(y.Policy) {
			t.Errorf("%s changed from %+v to %+v", n, x, y)
		}
	}
	s.waitPart(entry(t, after, "a"))
}

// A restart of the hub alone publishes nothing new.
func TestRestartIsSilent(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	before := s.waitDesired("runs a", runs("a"))
	s.report(bundlefmt.Ready)
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	s.stop()
	h.stop()
	h.start()
	s.up()
	s.report(bundlefmt.Ready)
	h.waitCluster("store-1", "is ready and online", func(c *v1alpha1.Cluster) bool {
		return c.Status.Display.ReadyBundles == "1/1" && c.Status.Presence == v1alpha1.PresenceOnline && c.Status.PresenceSince.After(time.Now().Add(-patience))
	})
	if d := s.waitDesired("is what it was", runs("a")); d.Serial != before.Serial {
		t.Errorf("restart made document %d of %d", d.Serial, before.Serial)
	}
}

// waitPart subscribes to part 0 of a deployment and opens the bundle.
func (s *site) waitPart(d bundlefmt.Deployment) *bundlefmt.Bundle {
	s.h.t.Helper()
	got := make(chan []byte, 16)
	topic := topics.Default.Part(s.id, d.Group, d.Digest.Short(), 0)
	stop, err := s.client.Subscribe(s.h.t.Context(), func(m mqtt.Message) { got <- m.Payload }, topic)
	if err != nil {
		s.h.t.Fatal(err)
	}
	defer stop()
	select {
	case p := <-got:
		b, err := bundlefmt.Open([][]byte{p}, d.Digest, s.trust, bundlefmt.DefaultLimits())
		if err != nil {
			s.h.t.Fatal(err)
		}
		return b
	case <-time.After(patience):
		s.h.t.Fatalf("no part on %s", topic)
		return nil
	}
}

// Two clusters of a group share one copy of the bundle; one that is not in the group cannot read it.
func TestAudience(t *testing.T) {
	h := newHub(t)
	g := &v1alpha1.ClusterGroup{Spec: v1alpha1.ClusterGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"region": "north"}}}}
	g.Name = "north"
	h.create(g)
	in := map[string]string{"region": "north"}
	a, b, out := h.join("n-1", in), h.join("n-2", in), h.join("s-1", map[string]string{"region": "south"})
	for _, s := range []*site{a, b} {
		h.waitCluster(s.id.Name, "told its facts", func(c *v1alpha1.Cluster) bool { return c.Status.KubernetesVersion != "" })
	}
	bundle := configMap("shared", "x")
	bundle.Spec.Targets = []v1alpha1.BundleTarget{{ClusterMatch: v1alpha1.ClusterMatch{ClusterGroup: "north"}}}
	h.create(bundle)
	da, db := entry(t, a.waitDesired("runs it", runs("shared")), "shared"), entry(t, b.waitDesired("runs it", runs("shared")), "shared")
	if da.Group != "north" || db.Group != "north" {
		t.Fatalf("audience is %q and %q, want the group", da.Group, db.Group)
	}
	if got := a.waitPart(da).Objects(); len(got) != 1 || got[0].Name != "shared" {
		t.Errorf("got %v", got)
	}
	topic := topics.Default.Part(out.id, "north", da.Digest.Short(), 0)
	if _, err := out.client.Subscribe(t.Context(), func(m mqtt.Message) { t.Errorf("a cluster outside the group read %s", m.Topic) }, topic); err == nil {
		t.Error("a cluster outside the group may subscribe to its bundles")
	}
	h.waitGroup("north", func(g *v1alpha1.ClusterGroup) bool { return g.Status.ClusterCount == 2 && g.Status.OnlineCount == 2 })
}

func (h *hub) waitGroup(name string, ok func(*v1alpha1.ClusterGroup) bool) {
	h.t.Helper()
	g := &v1alpha1.ClusterGroup{}
	wait(h.t, "group "+name, func() (bool, string) {
		if err := h.kube.Get(h.t.Context(), client.ObjectKey{Namespace: h.ns, Name: name}, g); err != nil {
			return false, err.Error()
		}
		return ok(g), fmt.Sprintf("%+v", g.Status)
	})
}

func TestEnrolmentRefused(t *testing.T) {
	h := newHub(t)
	g := &v1alpha1.ClusterGroup{Spec: v1alpha1.ClusterGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"kind": "store"}}}}
	g.Name = "stores"
	h.create(g)
	good := h.token("good", v1alpha1.ClusterRegistrationTokenSpec{ClusterGroup: "stores", Labels: map[string]string{"env": "prod"}})
	first := h.site("store-1")
	if r := first.enroll(good); r.Error != "" {
		t.Fatal(r.Error)
	}
	c := h.waitCluster("store-1", "exists", func(c *v1alpha1.Cluster) bool { return len(c.Spec.AgentKeys) == 1 })
	if c.Labels["kind"] != "store" || c.Labels["env"] != "prod" {
		t.Errorf("labels are %v", c.Labels)
	}
	t.Run("again with the same key", func(t *testing.T) {
		if r := first.enroll(good); r.Error != "" || r.Cluster != "store-1" {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("name taken", func(t *testing.T) {
		r := h.site("store-1").enroll(good)
		if !r.Final || !strings.Contains(r.Error, "taken by another key") {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("expired", func(t *testing.T) {
		k := h.token("short", v1alpha1.ClusterRegistrationTokenSpec{TTL: &metav1.Duration{Duration: time.Nanosecond}})
		r := h.site("store-2").enroll(k)
		if !r.Final || !strings.Contains(r.Error, "expired") {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("group does not exist", func(t *testing.T) {
		k := h.token("nowhere", v1alpha1.ClusterRegistrationTokenSpec{ClusterGroup: "nowhere"})
		r := h.site("store-3").enroll(k)
		if r.Final || !strings.Contains(r.Error, `cluster group "nowhere"`) {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("wrong secret", func(t *testing.T) {
		s := h.site("store-4")
		k := good
		k.Secret = "guessed"
		s.root = first.root
		down := make(chan error, 16)
		_, stop := s.connect(mqtt.Options{URL: h.url, ClientID: "enroll.x", Username: h.ns + "/good", Password: []byte(k.Secret), TLS: s.tls(false), BackoffMax: 50 * time.Millisecond,
			OnDown: func(err error) {
				select {
				case down <- err:
				default:
				}
			}})
		defer stop()
		if err := <-down; !strings.Contains(err.Error(), "not authorized") {
			t.Errorf("got %v", err)
		}
	})
}

// A token made by kubectl alone gets its secret from the hub.
func TestTokenFromKubectl(t *testing.T) {
	h := newHub(t)
	k := &v1alpha1.ClusterRegistrationToken{}
	k.Name = "plain"
	h.create(k)
	core, err := client.New(h.cfg, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var s corev1.Secret
	wait(t, "secret of the token", func() (bool, string) {
		err := core.Get(t.Context(), client.ObjectKey{Namespace: h.ns, Name: "plain"}, &s)
		return err == nil, fmt.Sprint(err)
	})
	ticket, err := bundlefmt.ParseTicket(string(s.Data[reconcile.TokenKey]))
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "token is complete", func() (bool, string) {
		err := h.kube.Get(t.Context(), client.ObjectKeyFromObject(k), k)
		return err == nil && k.Spec.SecretHash == reconcile.SecretHash(ticket.Secret), fmt.Sprintf("%+v", k.Spec)
	})
	if r := h.site("store-1").enroll(ticket); r.Error != "" {
		t.Error(r.Error)
	}
	wait(t, "token counts its clusters", func() (bool, string) {
		err := h.kube.Get(t.Context(), client.ObjectKeyFromObject(k), k)
		return err == nil && k.Status.Enrolled == 1, fmt.Sprintf("%+v", k.Status)
	})
}

// A credential that is taken out of the Cluster ends at once; deleting the Cluster clears its topics and orders no removal.
func TestRevokeAndDelete(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	s.report(bundlefmt.Ready)
	h.waitCluster("store-1", "is ready", func(c *v1alpha1.Cluster) bool { return c.Status.Display.ReadyBundles == "1/1" })
	c := h.waitCluster("store-1", "exists", func(*v1alpha1.Cluster) bool { return true })
	patch := client.MergeFrom(c.DeepCopy())
	c.Spec.AgentKeys = nil
	if err := h.kube.Patch(t.Context(), c, patch); err != nil {
		t.Fatal(err)
	}
	wait(t, "the agent is refused", func() (bool, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.down != nil && strings.Contains(s.down.Error(), "not authorized"), fmt.Sprint(s.down)
	})
	h.waitCluster("store-1", "is offline", func(c *v1alpha1.Cluster) bool { return c.Status.Presence == v1alpha1.PresenceOffline })
	h.delete(&v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "store-1"}})
	h.gone(&v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "store-1"}})
	for _, m := range s.messages(topics.Default.Desired(s.id)) {
		if len(m.Payload) == 0 {
			t.Error("the agent saw its document being cleared")
		}
	}
}

func (s *site) messages(topic string) []mqtt.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []mqtt.Message
	for _, m := range s.heard {
		if m.Topic == topic {
			out = append(out, m)
		}
	}
	return out
}

func TestBadBundles(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", map[string]string{"env": "prod"})
	good := configMap("good", "1")
	good.Spec.Targets = everywhere()
	h.create(good)
	s.waitDesired("runs good", runs("good"))

	broken := configMap("broken", "1")
	broken.Spec.Resources[0].Content = "apiVersion: v1\nkind: ConfigMap\nmetadata: [}\n"
	broken.Spec.Targets = everywhere()
	h.create(broken)
	h.waitBundle("broken", "says which file", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.State == v1alpha1.StateErrRendered && strings.Contains(b.Status.Display.Message, "cm.yaml")
	})

	nobody := configMap("nobody", "1")
	nobody.Spec.Targets = []v1alpha1.BundleTarget{{ClusterMatch: v1alpha1.ClusterMatch{ClusterName: "nowhere"}}}
	h.create(nobody)
	h.waitBundle("nobody", "says that nothing matches", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.State == v1alpha1.StatePending && strings.Contains(b.Status.Display.Message, "no cluster matches its targets (of 1")
	})

	untargeted := configMap("untargeted", "1")
	h.create(untargeted)
	h.waitBundle("untargeted", "names the default group", func(b *v1alpha1.Bundle) bool {
		return strings.Contains(b.Status.Display.Message, `cluster group "default"`)
	})

	badSelector := configMap("selector", "1")
	badSelector.Spec.Targets = []v1alpha1.BundleTarget{{Name: "odd", ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Around"}}}}}}
	h.create(badSelector)
	h.waitBundle("selector", "names the target", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.State == v1alpha1.StateErrRendered && strings.Contains(b.Status.Display.Message, "odd")
	})

	// A good bundle that is broken by an update keeps running as it was.
	h.update("good", func(b *v1alpha1.Bundle) { b.Spec.Resources[0].Content = "{" })
	h.waitBundle("good", "says so", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateErrRendered })
	if d := s.waitDesired("still runs good", runs("good")); len(d.Remove) != 0 {
		t.Errorf("removes %v", d.Remove)
	}
}

// A Will of an older connection that arrives late does not make a live cluster look offline; a real one does.
func TestLateWill(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	h.waitCluster("store-1", "is online", func(c *v1alpha1.Cluster) bool { return c.Status.Presence == v1alpha1.PresenceOnline })
	s.say(s.presence(false, "of-an-older-connection"))
	s.report(bundlefmt.Ready, func(r *bundlefmt.Reported) { r.Trust = 7 })
	b := configMap("marker", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs marker", runs("marker"))
	s.report(bundlefmt.Ready)
	c := h.waitCluster("store-1", "is ready", func(c *v1alpha1.Cluster) bool { return c.Status.Display.ReadyBundles == "1/1" })
	if c.Status.Presence != v1alpha1.PresenceOnline {
		t.Errorf("a late Will made it %s", c.Status.Presence)
	}
	s.say(s.presence(false, s.nonce))
	h.waitCluster("store-1", "is offline", func(c *v1alpha1.Cluster) bool {
		return c.Status.Presence == v1alpha1.PresenceOffline && c.Status.Display.State == v1alpha1.StateReady
	})
}

// A hub restored from an old backup meets a cluster that is ahead of it: it publishes nothing until somebody resumes it.
func TestSerialConflict(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	before := s.waitDesired("runs a", runs("a"))
	s.report(bundlefmt.Ready, func(r *bundlefmt.Reported) { r.Serial = 900 })
	h.waitCluster("store-1", "says conflict", func(c *v1alpha1.Cluster) bool {
		return strings.Contains(c.Status.Display.Message, "the cluster is at document 900")
	})
	h.update("a", func(b *v1alpha1.Bundle) { b.Spec.DefaultNamespace = "changed" })
	h.waitBundle("a", "looked at the change", func(b *v1alpha1.Bundle) bool { return b.Status.ObservedGeneration == b.Generation })
	if d := s.waitDesired("is as before", runs("a")); d.Serial != before.Serial {
		t.Errorf("document %d was published during a conflict", d.Serial)
	}
	c := h.waitCluster("store-1", "exists", func(*v1alpha1.Cluster) bool { return true })
	patch := client.MergeFrom(c.DeepCopy())
	metav1.SetMetaDataAnnotation(&c.ObjectMeta, reconcile.Resume, "900")
	if err := h.kube.Patch(t.Context(), c, patch); err != nil {
		t.Fatal(err)
	}
	s.waitDesired("goes on above the cluster's serial", func(d *bundlefmt.Desired) bool {
		return d.Serial == 901 && d.Deployments[0].Policy.Namespace == "changed"
	})
}

// maxUnavailable 1: of two healthy clusters one is updated, the other waits until the first is ready.
func TestRolloutBudget(t *testing.T) {
	h := newHub(t)
	one, two := h.join("c-1", nil), h.join("c-2", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	b.Spec.RolloutStrategy = &v1alpha1.RolloutStrategy{MaxUnavailable: intOrString(1)}
	h.create(b)
	for _, s := range []*site{one, two} {
		s.waitDesired("runs a", runs("a"))
		s.report(bundlefmt.Ready)
	}
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.ReadyClusters == "2/2" })
	old := entry(t, two.waitDesired("runs a", runs("a")), "a")
	h.update("a", func(b *v1alpha1.Bundle) { b.Spec.Resources = configMap("a", "2").Spec.Resources })
	isNew := func(d *bundlefmt.Desired) bool {
		return len(d.Deployments) == 1 && d.Deployments[0].Digest != old.Digest
	}
	one.waitDesired("is updated", isNew)
	h.waitBundle("a", "holds the second back", func(b *v1alpha1.Bundle) bool {
		return b.Status.Summary.WaitApplied == 1 && b.Status.Summary.OutOfSync == 1
	})
	if d := two.waitDesired("waits", runs("a")); isNew(d) {
		t.Error("the second cluster was updated before the first was ready")
	}
	one.report(bundlefmt.Ready)
	two.waitDesired("is updated", isNew)
}

// An agent that has lost parts, or a broker that has, is helped by publishing them again.
func TestPartsAgain(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	d := entry(t, s.waitDesired("runs a", runs("a")), "a")
	s.waitPart(d)
	got := make(chan mqtt.Message, 16)
	stop, err := s.client.Subscribe(t.Context(), func(m mqtt.Message) { got <- m }, topics.Default.Part(s.id, d.Group, d.Digest.Short(), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if m := <-got; !m.Retain {
		t.Error("the first copy must come from the retained store")
	}
	s.ask(d, 0)
	select {
	case m := <-got:
		if m.Retain {
			t.Error("the second copy is a replay, not an answer")
		}
	case <-time.After(patience):
		t.Fatal("no answer")
	}
}

// Keys that are gone while clusters are enrolled must not be replaced quietly.
func TestKeysGone(t *testing.T) {
	h := newHub(t)
	h.join("store-1", nil)
	h.stop()
	core, err := client.New(h.cfg, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := core.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: h.system, Name: enroll.KeysSecret}}); err != nil {
		t.Fatal(err)
	}
	_, err = controller.New(t.Context(), controller.Options{Kubernetes: h.cfg, Namespace: h.system})
	if err == nil || !strings.Contains(err.Error(), "restore secret shoal-keys") {
		t.Errorf("got %v", err)
	}
}

// A document on the broker that this hub did not sign is not taken for what was ordered.
func TestForgedOrder(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := bundlefmt.Desired{Workspace: h.ns, Cluster: "store-1", Serial: 5000, IssuedAt: time.Now(), Remove: []bundlefmt.Removal{{Name: "a", Serial: 5000}}}
	msg, err := forged.Sign(bundlefmt.NewSigner(key), bundlefmt.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	h.stop()
	h.plant(topics.Default.Desired(s.id), msg)
	h.start()
	s.up()
	s.report(bundlefmt.Ready)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	if d := s.waitDesired("runs a", runs("a")); d.Serial >= 5000 {
		t.Errorf("the hub went on from a forged serial: %d", d.Serial)
	}
}

// A change of targets that would take a bundle from more than ten clusters, and from more than half of those that have it, waits
// for somebody to confirm it.
func TestRemovalHeld(t *testing.T) {
	h := newHub(t)
	k := h.token("many", v1alpha1.ClusterRegistrationTokenSpec{Labels: map[string]string{"env": "prod"}})
	var sites []*site
	for i := range 11 {
		s := h.site(fmt.Sprintf("c-%d", i))
		if r := s.enroll(k); r.Error != "" {
			t.Fatal(r.Error)
		}
		s.up()
		s.report(bundlefmt.Ready)
		sites = append(sites, s)
	}
	b := configMap("a", "1")
	b.Spec.Targets = []v1alpha1.BundleTarget{{Name: "prod", ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "prod"}}}}}
	h.create(b)
	for _, s := range sites {
		s.waitDesired("runs a", runs("a"))
		s.report(bundlefmt.Ready)
	}
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.ReadyClusters == "11/11" })
	h.update("a", func(b *v1alpha1.Bundle) { b.Spec.Targets[0].ClusterSelector.MatchLabels["env"] = "porduction" })
	h.waitBundle("a", "holds the removal", func(b *v1alpha1.Bundle) bool {
		return b.Status.RemovalHeld != nil && b.Status.RemovalHeld.Clusters == 11 && strings.Contains(b.Status.Display.Message, reconcile.ConfirmRemoval+"=11")
	})
	for _, s := range sites {
		if d := s.waitDesired("still runs a", runs("a")); len(d.Remove) != 0 {
			t.Fatalf("%s was told to remove %v", s.id.Name, d.Remove)
		}
	}
	h.update("a", func(b *v1alpha1.Bundle) { metav1.SetMetaDataAnnotation(&b.ObjectMeta, reconcile.ConfirmRemoval, "10") })
	h.waitBundle("a", "says that it is another number", func(b *v1alpha1.Bundle) bool {
		return strings.Contains(b.Status.Display.Message, "confirm-removal=10 confirms nothing") && strings.Contains(b.Status.Display.Message, reconcile.ConfirmRemoval+"=11")
	})
	h.update("a", func(b *v1alpha1.Bundle) {
		metav1.SetMetaDataAnnotation(&b.ObjectMeta, reconcile.ConfirmRemoval, "11")
	})
	for _, s := range sites {
		s.waitDesired("removes a", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 1 && len(d.Deployments) == 0 })
		s.report(bundlefmt.Ready)
	}
	h.waitBundle("a", "has used up the confirmation", func(b *v1alpha1.Bundle) bool {
		return b.Status.RemovalHeld == nil && b.Annotations[reconcile.ConfirmRemoval] == ""
	})
}

// A second hub on the same API, with a directory of its own, waits: it connects nobody, writes nothing, and its readiness says why.
func TestTwoHubs(t *testing.T) {
	h := newHub(t)
	h.join("store-1", nil)
	log := &lockedBuffer{}
	addr := freeAddr(t)
	type result struct {
		hub *controller.Hub
		err error
	}
	second := make(chan result, 1)
	go func() {
		hub, err := controller.New(t.Context(), controller.Options{Kubernetes: h.cfg, Namespace: h.system, MetricsListen: addr, Log: zerolog.New(log)})
		second <- result{hub, err}
	}()
	wait(t, "the second hub to say that it waits", func() (bool, string) {
		return strings.Contains(log.String(), "another hub works on this API"), log.String()
	})
	wait(t, "its probes to say so", func() (bool, string) {
		ready, text := probe(t, addr, "/readyz")
		alive, _ := probe(t, addr, "/healthz")
		return !ready && alive && strings.Contains(text, "waiting for the hub"), text
	})
	h.create(configMap("a", "1")) // the first one works on
	h.waitBundle("a", "is seen", func(b *v1alpha1.Bundle) bool { return b.Status.ObservedGeneration == b.Generation })
	h.stop()
	r := <-second
	if r.err != nil {
		t.Fatal(r.err)
	}
	r.hub.Close()
}

// Keys that are deleted under a running hub are written again from its memory; other keys are never overwritten, and reported.
func TestKeysKept(t *testing.T) {
	h := newHub(t)
	core := h.core()
	key := client.ObjectKey{Namespace: h.system, Name: enroll.KeysSecret}
	var before, after corev1.Secret
	if err := core.Get(t.Context(), key, &before); err != nil {
		t.Fatal(err)
	}
	if err := core.Delete(t.Context(), before.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	wait(t, "the keys to be written again", func() (bool, string) {
		err := core.Get(t.Context(), key, &after)
		return err == nil, fmt.Sprint(err)
	})
	if !cmp.Equal(before.Data, after.Data) {
		t.Error("other keys were written")
	}
	wait(t, "the log to say so", func() (bool, string) {
		return strings.Contains(h.log.String(), "the hub has written its keys again"), ""
	})
	foreign := after.DeepCopy()
	foreign.Data["signing.key"] = []byte("of another hub")
	if err := core.Update(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	wait(t, "readiness to name the foreign keys", func() (bool, string) {
		ready, text := probe(t, h.metrics, "/readyz")
		return !ready && strings.Contains(text, "it holds other keys than this hub works with"), text
	})
	wait(t, "the metric", func() (bool, string) {
		_, text := probe(t, h.metrics, "/metrics")
		return strings.Contains(text, "shoal_hub_keys_stored 0"), text
	})
	if err := core.Get(t.Context(), key, &after); err != nil || string(after.Data["signing.key"]) != "of another hub" {
		t.Errorf("foreign keys were overwritten: %v", err)
	}
	after.Data = before.Data
	if err := core.Update(t.Context(), &after); err != nil {
		t.Fatal(err)
	}
	wait(t, "it to be ready", func() (bool, string) { return probe(t, h.metrics, "/readyz") })
}

// probe reads a page and says whether it is fine.
func probe(t *testing.T, addr, path string) (bool, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return err == nil && res.StatusCode == http.StatusOK, string(b)
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// A token that is restored from a backup, and so created anew, ends when it was to end. Whoever changes the end gives it more time.
func TestTokenKeepsItsEnd(t *testing.T) {
	h := newHub(t)
	h.create(&v1alpha1.ClusterRegistrationToken{ObjectMeta: metav1.ObjectMeta{Name: "stores"}, Spec: v1alpha1.ClusterRegistrationTokenSpec{TTL: &metav1.Duration{Duration: time.Hour}, SecretHash: strings.Repeat("a", 64)}})
	ends := func(what string, ok func(time.Time) bool) (k v1alpha1.ClusterRegistrationToken) {
		t.Helper()
		wait(t, what, func() (bool, string) {
			err := h.kube.Get(t.Context(), client.ObjectKey{Namespace: h.ns, Name: "stores"}, &k)
			return err == nil && k.Spec.Expires != nil && k.Status.Expires.Equal(k.Spec.Expires) && ok(k.Spec.Expires.Time), fmt.Sprintf("%v %+v", err, k)
		})
		return k
	}
	k := ends("an hour", func(time.Time) bool { return true })
	if want := k.CreationTimestamp.Add(time.Hour); !k.Spec.Expires.Time.Equal(want) {
		t.Errorf("ends at %s, want %s", k.Spec.Expires, want)
	}
	past := metav1.NewTime(time.Now().Add(-time.Minute).Truncate(time.Second))
	k.Spec.Expires = &past
	if err := h.kube.Update(t.Context(), &k); err != nil {
		t.Fatal(err)
	}
	k = ends("to have ended", past.Time.Equal)
	again := &v1alpha1.ClusterRegistrationToken{ObjectMeta: metav1.ObjectMeta{Name: k.Name}, Spec: k.Spec}
	if err := h.kube.Delete(t.Context(), &k); err != nil {
		t.Fatal(err)
	}
	h.create(again)
	wait(t, "the restored one to have ended", func() (bool, string) {
		var r v1alpha1.ClusterRegistrationToken
		err := h.kube.Get(t.Context(), client.ObjectKeyFromObject(again), &r)
		return err == nil && r.Status.Expires.Time.Equal(past.Time) && meta.IsStatusConditionFalse(r.Status.Conditions, v1alpha1.ConditionReady), fmt.Sprintf("%v %+v", err, r)
	})
}
