package controller_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/reconcile"
)

// These tests put the API, the broker's store and the site to different ages, as restored backups do.

// follow makes the site report that it runs all it was ordered, and which document that is.
func (s *site) follow() *bundlefmt.Desired {
	s.h.t.Helper()
	s.mu.Lock()
	d, raw := s.desired, s.raw
	s.mu.Unlock()
	s.report(bundlefmt.Ready, func(r *bundlefmt.Reported) { r.Document, r.Reads = bundlefmt.Sum(raw), bundlefmt.NewestDesired })
	return d
}

// store copies the broker's store of the stopped hub, and puts such a copy in its place.
func (h *hub) store() []byte {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.dir, "retained.db"))
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

func (h *hub) putStore(b []byte) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, "retained.db"), b, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// writeSerial sets what the API has on record.
func (h *hub) writeSerial(name string, serial int64) {
	h.t.Helper()
	c := &v1alpha1.Cluster{}
	if err := h.kube.Get(h.t.Context(), client.ObjectKey{Namespace: h.ns, Name: name}, c); err != nil {
		h.t.Fatal(err)
	}
	patch := client.MergeFrom(c.DeepCopy())
	c.Status.DesiredSerial = serial
	if err := h.kube.Status().Patch(h.t.Context(), c, patch); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hub) setText(bundle, value string) {
	h.t.Helper()
	h.update(bundle, func(b *v1alpha1.Bundle) { b.Spec.Resources = configMap(bundle, value).Spec.Resources })
}

// says waits until the Cluster's Ready condition has a reason, and returns its message.
func (h *hub) says(cluster, reason string) string {
	h.t.Helper()
	c := h.waitCluster(cluster, "says "+reason, func(c *v1alpha1.Cluster) bool {
		ready := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionReady)
		return ready != nil && ready.Reason == reason && ready.Message == c.Status.Display.Message
	})
	return c.Status.Display.Message
}

// resume runs the command that a message ends with, as far as it concerns the annotation.
func (h *hub) resume(cluster, message string) {
	h.t.Helper()
	_, number, ok := strings.Cut(message, reconcile.Resume+"=")
	if !ok {
		h.t.Fatalf("no command in %q", message)
	}
	h.updateCluster(cluster, func(c *v1alpha1.Cluster) { metav1.SetMetaDataAnnotation(&c.ObjectMeta, reconcile.Resume, number) })
}

// bundleSays waits until a Bundle is not Ready and says something.
func (h *hub) bundleSays(name, text string) {
	h.t.Helper()
	h.waitBundle(name, "says "+text, func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.State != v1alpha1.StateReady && strings.Contains(b.Status.Display.Message, text)
	})
}

// quiet checks that nothing was published above a document, after the hub has looked at a change that would have to be.
func (s *site) quiet(above bundlefmt.Serial) {
	s.h.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.desired.Serial > above {
		s.h.t.Errorf("document %d was published above %d: %+v", s.desired.Serial, above, s.desired)
	}
}

// published waits until this hub has published a number of documents with a serial.
func (h *hub) published(serial bundlefmt.Serial, times int) {
	h.t.Helper()
	wait(h.t, fmt.Sprintf("document %d is published %d times", serial, times), func() (bool, string) {
		n := 0
		for line := range strings.Lines(h.log.String()) {
			if strings.Contains(line, "desired document published") && strings.Contains(line, h.ns) && strings.Contains(line, fmt.Sprintf(`"serial":%d,`, serial)) {
				n++
			}
		}
		return n >= times, fmt.Sprint(n)
	})
}

// The hub's API is put back and its broker keeps its store: the hub's own document is newer than what the API has on record.
func TestAPIOlder(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	a, gone := configMap("a", "1"), configMap("gone", "1")
	for _, b := range []*v1alpha1.Bundle{a, gone} {
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	s.waitDesired("runs both", runs("a", "gone"))
	first := s.follow()
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	h.setText("a", "2")
	s.waitDesired("is updated", func(d *bundlefmt.Desired) bool { return entry(t, d, "a").Digest != entry(t, first, "a").Digest })
	newest := s.follow()
	h.waitBundle("a", "is ready again", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	h.stop()
	h.setText("a", "1")
	h.writeSerial("store-1", int64(first.Serial))
	h.start()
	s.stop()
	s.up()
	s.follow()
	message := h.says("store-1", publish.APIOlder)
	h.bundleSays("a", reconcile.Resume)
	h.setText("a", "3")
	h.waitBundle("a", "looked at the change", func(b *v1alpha1.Bundle) bool {
		return b.Status.ObservedGeneration == b.Generation && strings.Contains(b.Status.Display.Message, reconcile.Resume)
	})
	s.quiet(newest.Serial)

	h.stop() // it holds over a restart, whatever was written meanwhile
	h.start()
	s.stop()
	s.up()
	s.follow()
	h.says("store-1", publish.APIOlder)
	s.quiet(newest.Serial)

	h.resume("store-1", message)
	s.waitDesired("follows the API by consent", func(d *bundlefmt.Desired) bool {
		return d.Serial == newest.Serial+1 && len(d.Remove) == 0 && entry(t, d, "a").Digest != entry(t, newest, "a").Digest
	})
	s.follow()
	h.waitCluster("store-1", "is ready", func(c *v1alpha1.Cluster) bool { return c.Status.Display.State == v1alpha1.StateReady })
}

// The broker's store is put back: what it has is not what the site follows. What is on the site stays, a deleted bundle does not come
// back, a paused one does not go back.
func TestStoreOlder(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	for _, n := range []string{"a", "paused", "gone"} {
		b := configMap(n, "1")
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	s.waitDesired("runs all", runs("a", "gone", "paused"))
	first := s.follow()
	h.waitCluster("store-1", "is ready", func(c *v1alpha1.Cluster) bool { return c.Status.Display.ReadyBundles == "3/3" })
	h.stop()
	old := h.store()
	h.start()
	s.stop()
	s.up()
	s.follow()
	h.setText("paused", "2")
	s.waitDesired("is updated", func(d *bundlefmt.Desired) bool {
		return entry(t, d, "paused").Digest != entry(t, first, "paused").Digest
	})
	s.follow()
	h.update("paused", func(b *v1alpha1.Bundle) { b.Spec.Paused = true })
	h.waitBundle("paused", "is paused", func(b *v1alpha1.Bundle) bool { return b.Status.ObservedGeneration == b.Generation })
	h.delete(configMap("gone", "1"))
	s.waitDesired("removes it", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 1 })
	s.follow()
	newest := s.waitDesired("has removed it", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 0 })
	s.follow()
	h.gone(configMap("gone", "1"))
	s.stop()
	h.stop()
	h.putStore(old)
	h.start()
	message := h.says("store-1", publish.StoreOlder)
	if !strings.Contains(message, reconcile.Resume) {
		t.Errorf("no command in %q", message)
	}
	s.mu.Lock()
	raw, desired := s.raw, s.desired
	s.mu.Unlock()
	s.up()
	wait(t, "the broker delivers what it has", func() (bool, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.desired.Serial != newest.Serial, fmt.Sprint(s.desired.Serial)
	})
	s.mu.Lock() // an agent refuses that
	s.raw, s.desired = raw, desired
	s.mu.Unlock()
	s.follow()
	d := s.waitDesired("goes on above", func(d *bundlefmt.Desired) bool { return d.Serial > newest.Serial })
	if has(d, "gone") || len(d.Remove) > 0 || entry(t, d, "a").Digest != entry(t, newest, "a").Digest {
		t.Errorf("got %+v", d)
	}
	if has(d, "paused") && entry(t, d, "paused").Digest != entry(t, newest, "paused").Digest {
		t.Error("a paused bundle went back")
	}
}

// API and store are put back by one document while the site is away. What the hub orders then bears a number that the site knows, also
// the second time; the site refuses it, and both say that they mean different documents.
func TestSameNumber(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	first := s.follow()
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	h.stop()
	old := h.store()
	h.start()
	s.stop()
	s.up()
	s.follow()
	h.setText("a", "2")
	s.waitDesired("is updated", func(d *bundlefmt.Desired) bool { return d.Serial == first.Serial+1 })
	newest := s.follow()
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	s.stop()
	h.stop()
	h.putStore(old)
	h.setText("a", "1")
	h.writeSerial("store-1", int64(first.Serial))
	h.start()
	for i := range 3 {
		h.setText("a", fmt.Sprint("other-", i))
		h.published(newest.Serial, i+2) // the site's own was the first
	}
	s.mu.Lock()
	raw := s.raw
	s.desired = nil
	s.mu.Unlock()
	s.up()
	other := s.waitDesired("is on the broker", runs("a"))
	if other.Serial != newest.Serial {
		t.Fatalf("the hub went on to document %d, above %d, which it does not know", other.Serial, newest.Serial)
	}
	s.mu.Lock() // an agent refuses that
	s.raw, s.desired = raw, newest
	s.mu.Unlock()
	s.follow()
	message := h.says("store-1", publish.OtherDocument)
	h.bundleSays("a", reconcile.Resume)
	h.setText("a", "3")
	h.waitBundle("a", "looked at the change", func(b *v1alpha1.Bundle) bool {
		return b.Status.ObservedGeneration == b.Generation && strings.Contains(b.Status.Display.Message, reconcile.Resume)
	})
	s.quiet(newest.Serial)
	h.resume("store-1", message)
	s.waitDesired("follows the hub by consent", func(d *bundlefmt.Desired) bool { return d.Serial == newest.Serial+1 })
	s.follow()
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
}

// A silent site gets the first of two orders under one number: the hub goes on from the one that the site has, without asking anybody.
func TestDraft(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	first := s.follow()
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	s.stop()
	h.stop()
	h.start()
	h.setText("a", "2")
	h.published(first.Serial+1, 1)
	s.up() // it does not report: the hub does not know what it has
	draft := s.waitDesired("gets the first", func(d *bundlefmt.Desired) bool { return d.Serial == first.Serial+1 })
	s.mu.Lock()
	raw := s.raw
	s.mu.Unlock()
	s.say(s.presence(false, s.nonce))
	s.stop()
	h.waitCluster("store-1", "is offline", func(c *v1alpha1.Cluster) bool { return c.Status.Presence == v1alpha1.PresenceOffline })
	h.setText("a", "3")
	h.published(first.Serial+1, 2)
	s.up()
	s.waitDesired("is on the broker", func(d *bundlefmt.Desired) bool { return entry(t, d, "a").Digest != entry(t, draft, "a").Digest })
	s.mu.Lock() // an agent refuses that
	s.raw, s.desired = raw, draft
	s.mu.Unlock()
	s.follow()
	s.waitDesired("goes on", func(d *bundlefmt.Desired) bool {
		return d.Serial == first.Serial+2 && entry(t, d, "a").Digest != entry(t, draft, "a").Digest
	})
	s.follow()
	h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
}

// A bundle that is gone without a farewell is neither ordered on nor removed.
func TestUnknownBundle(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	for _, n := range []string{"a", "lost"} {
		b := configMap(n, "1")
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	s.waitDesired("runs both", runs("a", "lost"))
	s.follow()
	h.waitCluster("store-1", "is ready", func(c *v1alpha1.Cluster) bool { return c.Status.Display.ReadyBundles == "2/2" })
	h.update("lost", func(b *v1alpha1.Bundle) { b.Finalizers = nil; b.Spec.Paused = true })
	h.stop()
	h.update("lost", func(b *v1alpha1.Bundle) { b.Finalizers = nil })
	h.delete(configMap("lost", "1"))
	h.gone(configMap("lost", "1"))
	h.start()
	s.stop()
	s.up()
	s.follow()
	d := s.waitDesired("leaves it alone", func(d *bundlefmt.Desired) bool { return !has(d, "lost") })
	if len(d.Remove) > 0 || !has(d, "a") {
		t.Errorf("got %+v", d)
	}
	s.report(bundlefmt.Ready, func(r *bundlefmt.Reported) {
		r.Deployments = append(r.Deployments, bundlefmt.DeploymentReport{Name: "lost", Serial: 2, State: bundlefmt.Orphaned})
	})
	h.waitCluster("store-1", "says so", func(c *v1alpha1.Cluster) bool {
		return c.Status.Summary.Orphaned == 1 && strings.Contains(c.Status.Display.Message, "lost: on the cluster, but no bundle orders or removes it")
	})
}

// A number that cannot be one is said; to correct it under the running hub helps.
func TestSerialOutOfRange(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	b := configMap("a", "1")
	b.Spec.Targets = everywhere()
	h.create(b)
	s.waitDesired("runs a", runs("a"))
	first := s.follow()
	for _, wrong := range []int64{math.MaxInt64, -1, int64(bundlefmt.MaxSerial)} {
		h.writeSerial("store-1", wrong)
		message := h.says("store-1", reconcile.SerialInvalid)
		if want := fmt.Sprintf(`{"status":{"desiredSerial":%d}}`, first.Serial); !strings.Contains(message, want) {
			t.Errorf("%q does not name %s", message, want)
		}
		h.setText("a", fmt.Sprint(wrong))
		h.bundleSays("a", "desiredSerial")
		s.quiet(first.Serial)
		h.writeSerial("store-1", int64(first.Serial))
		s.waitDesired("is ordered", func(d *bundlefmt.Desired) bool { return d.Serial == first.Serial+1 })
		first = s.follow()
		h.waitBundle("a", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	}
}

// An agent that reads no more than 128 deployments gets no more: what is new is kept out and says so, what is there is updated, and a
// removal makes room.
func TestOverTheLimit(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	name := func(i int) string { return fmt.Sprintf("b-%03d", i) }
	for i := range bundlefmt.FewEntries {
		b := configMap(name(i), "1")
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	full := func(d *bundlefmt.Desired) bool {
		return len(d.Deployments) == bundlefmt.FewEntries && len(d.Remove) == 0
	}
	before := s.waitDesired("runs all", full)
	s.report(bundlefmt.Ready)
	extra := configMap("extra", "1")
	extra.Spec.Targets = everywhere()
	h.create(extra)
	h.bundleSays("extra", "no room")
	h.setText(name(3), "2")
	s.waitDesired("is updated", func(d *bundlefmt.Desired) bool {
		return full(d) && entry(t, d, name(3)).Digest != entry(t, before, name(3)).Digest
	})
	s.report(bundlefmt.Ready)
	h.waitBundle(name(3), "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
	h.waitCluster("store-1", "says what is kept out", func(c *v1alpha1.Cluster) bool {
		return c.Status.Display.ReadyBundles == "128/129" && strings.Contains(c.Status.Display.Message, "extra: kept out")
	})
	h.delete(configMap(name(5), "1"))
	s.waitDesired("removes it", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 1 })
	h.gone(configMap(name(5), "1"))
	s.report(bundlefmt.Ready)
	s.waitDesired("has room", func(d *bundlefmt.Desired) bool { return full(d) && has(d, "extra") })
	s.report(bundlefmt.Ready)
	h.waitBundle("extra", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.State == v1alpha1.StateReady })
}

// 300 bundles on two clusters are ordered, reported, updated and removed like a few. Where the messages are full, what is new is kept
// out with a reason, what is there is updated and removed, and what is removed makes room.
func TestManyBundles(t *testing.T) {
	h := newHub(t)
	sites := []*site{h.join("store-1", nil), h.join("store-2", nil)}
	name := func(i int) string { return fmt.Sprintf("bundle-%03d", i) }
	add := func(from, to int) {
		for i := from; i <= to; i++ {
			b := configMap(name(i), "1")
			b.Spec.Targets = everywhere()
			h.create(b)
		}
	}
	everybody := func(what string, ok func(*bundlefmt.Desired) bool) (d *bundlefmt.Desired) {
		t.Helper()
		for _, s := range sites {
			d = s.waitDesired(what, ok)
			s.follow()
		}
		return d
	}
	ready := func(n int) {
		t.Helper()
		for _, s := range sites {
			h.waitCluster(s.id.Name, fmt.Sprintf("has %d ready", n), func(c *v1alpha1.Cluster) bool {
				return c.Status.Display.ReadyBundles == fmt.Sprintf("%d/%d", n, n) && c.Status.Display.State == v1alpha1.StateReady
			})
		}
	}
	number := func(n int) func(*bundlefmt.Desired) bool {
		return func(d *bundlefmt.Desired) bool { return len(d.Deployments) == n && len(d.Remove) == 0 }
	}
	everybody("reads many", func(*bundlefmt.Desired) bool { return true })
	add(1, 300)
	before := everybody("runs 300", number(300))
	ready(300)

	h.setText(name(7), "2")
	everybody("is updated", func(d *bundlefmt.Desired) bool {
		return len(d.Deployments) == 300 && entry(t, d, name(7)).Digest != entry(t, before, name(7)).Digest
	})
	ready(300)
	h.delete(configMap(name(8), "1"))
	everybody("removes one", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 1 && len(d.Deployments) == 299 })
	h.gone(configMap(name(8), "1"))
	everybody("has removed it", number(299))
	ready(299)
	add(301, 302)
	everybody("runs more", number(301))
	ready(301)

	add(303, 380)
	var full int
	for _, s := range sites {
		c := h.waitCluster(s.id.Name, "says what is kept out", func(c *v1alpha1.Cluster) bool {
			s.follow() // one document after the other
			sum := c.Status.Summary
			return sum.Desired == 379 && sum.Pending > 0 && sum.Pending+sum.Ready == 379 &&
				strings.Contains(c.Status.Display.Message, "kept out, the order for this cluster has no room")
		})
		full = int(c.Status.Summary.Desired - c.Status.Summary.Pending)
		d := s.waitDesired("is full", number(full))
		t.Logf("%d bundles with names of 10 bytes fit", len(d.Deployments))
	}
	h.bundleSays(name(380), "no room")
	h.setText(name(9), "2")
	everybody("is updated", func(d *bundlefmt.Desired) bool {
		return number(full)(d) && entry(t, d, name(9)).Digest != entry(t, before, name(9)).Digest
	})
	h.waitBundle(name(9), "is ready", func(b *v1alpha1.Bundle) bool {
		return b.Status.ObservedGeneration == b.Generation && b.Status.Display.State == v1alpha1.StateReady
	})
	for i := full; i <= 380; i++ { // down to below the limit: some are there, some were kept out
		h.delete(configMap(name(i), "1"))
	}
	for i := full; i <= 380; i++ {
		h.gone(configMap(name(i), "1"))
	}
	everybody("removes them", func(d *bundlefmt.Desired) bool { return !has(d, name(full)) })
	everybody("is below the limit", number(full-2)) // without 8
	ready(full - 2)
}
