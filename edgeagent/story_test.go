package edgeagent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent"
	"shoal.dev/shoal/internal/kubetest"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

var fix = bundlefmt.Policy{CorrectDrift: true}

// installed is a site whose deployment "web" (ConfigMap a, value 1) is Ready at serial 1.
func installed(t *testing.T, p bundlefmt.Policy) (*hub, *site, bundlefmt.Sealed) {
	t.Helper()
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	b := h.seal(s.configMap("a", "1"))
	h.put(s.c, "", b)
	h.order(s.c, 1, entry("web", 1, b, p))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	return h, s, b
}

func TestEnrolInstallUpdate(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	one := h.seal(s.configMap("a", "1"), s.configMap("gone", "1"), s.workload("app"))
	h.put(s.c, "eu", one)
	e := entry("web", 3, one, fix)
	e.Group = "eu"
	h.order(s.c, 3, e)
	d := h.awaitState(s.c, "web", 3, bundlefmt.Ready)
	if d.Ready != 3 || d.Total != 3 || d.Digest != one.Digest {
		t.Errorf("report: %+v", d)
	}
	s.awaitValue("a", "1")
	if p := h.awaitPresence(s.c, "online", func(p *bundlefmt.Presence) bool { return p.Online }); p.Agent != "v0-test" || len(p.Nonce) != 32 {
		t.Errorf("presence: %+v", p)
	}
	app := s.version("a")

	// Facts go by hash; the hub asks once.
	r := h.awaitReport(s.c, "facts", func(r *bundlefmt.Reported) bool { return r.Facts != "" })
	if err := h.broker.Publish(t.Context(), mqtt.Message{Topic: prefix.Request(s.c, topics.VerbFacts)}); err != nil {
		t.Fatal(err)
	}
	h.await("facts", func() error {
		f, err := bundlefmt.ParseFacts(h.facts, h.limits)
		if err == nil && (f.Hash() != r.Facts || f.KubernetesVersion == "" || f.Nodes != 1 || f.Agent != "v0-test" || len(f.APIVersions) < 20) {
			t.Errorf("facts: %+v, hash %s, reported %s", f, f.Hash(), r.Facts)
		}
		return err
	})

	// An update writes what changed, leaves the rest, prunes what is gone.
	two := h.seal(s.configMap("a", "1"), s.configMap("b", "2"), s.workload("app"))
	h.put(s.c, "eu", two)
	e = entry("web", 4, two, fix)
	e.Group = "eu"
	h.order(s.c, 4, e)
	h.awaitState(s.c, "web", 4, bundlefmt.Ready)
	s.awaitValue("b", "2")
	if got := s.names(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("on the cluster: %v", got)
	}
	if s.version("a") != app {
		t.Error("an object that did not change was written")
	}

	// The same under a newer serial: confirmed, nothing touched.
	before := s.version("b")
	e.Serial = 9
	h.order(s.c, 9, e)
	h.awaitState(s.c, "web", 9, bundlefmt.Ready)
	if s.version("b") != before {
		t.Error("an entry that did not change was applied again")
	}

	st, err := edgeagent.ReadStatus(s.o.DataDir)
	if err != nil || !st.Running || !st.Connected || st.Cluster != "store-1" || len(st.Deployments) != 1 {
		t.Errorf("status: %+v %v", st, err)
	}
	for path, want := range map[string]string{"/healthz": "ok", "/metrics": `shoal_agent_deployments{state="Ready"} 1`} {
		res, err := http.Get("http://" + s.agent.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s lacks %q: %s %v", path, want, body, err)
		}
	}
}

func TestDrift(t *testing.T) {
	h, s, b := installed(t, fix)
	s.edit("a", "changed by hand")
	s.awaitValue("a", "1")
	h.awaitEvent("the repair is told", func(e bundlefmt.Event) bool { return strings.Contains(e.Message, "repaired 1 objects") })
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	if err := s.kube.Resource(configMaps).Namespace(s.ns).Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.awaitValue("a", "1")

	// The policy alone changes: no apply, and from now on it is only reported.
	h.order(s.c, 2, entry("web", 2, b, bundlefmt.Policy{}))
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	s.edit("a", "changed by hand")
	d := h.awaitState(s.c, "web", 2, bundlefmt.Modified)
	if d.ModifiedCount != 1 || d.Modified[0].Name != "a" || d.Modified[0].Reason == "" {
		t.Errorf("report: %+v", d)
	}
	if v, _, err := s.value(t.Context(), "a"); v != "changed by hand" || err != nil {
		t.Errorf("it was repaired although nobody ordered it: %q %v", v, err)
	}
	// And repaired when it is ordered again.
	h.order(s.c, 3, entry("web", 3, b, fix))
	s.awaitValue("a", "1")
	h.awaitState(s.c, "web", 3, bundlefmt.Ready)
}

func TestRestartWithoutLinkStillRepairs(t *testing.T) {
	h, s, _ := installed(t, fix)
	s.halt()
	h.awaitPresence(s.c, "a goodbye", func(p *bundlefmt.Presence) bool { return !p.Online && p.Reason == "stopped" })
	h.stop()
	s.link.Cut()
	if err := os.Remove(s.o.TokenFile); err != nil { // not needed any more
		t.Fatal(err)
	}
	s.edit("a", "edited while the agent was down")
	s.start()
	s.awaitValue("a", "1")
	s.edit("a", "edited while the link is down")
	s.awaitValue("a", "1")
	kubetest.Wait(t, "status without a link", func(context.Context) error {
		st, err := edgeagent.ReadStatus(s.o.DataDir)
		if err != nil {
			return err
		}
		if st.Connected || st.LinkError == "" || len(st.Deployments) != 1 || st.Deployments[0].State != bundlefmt.Ready {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

func TestRefused(t *testing.T) {
	h, s, b := installed(t, fix)
	other := topics.Cluster{Workspace: workspace, Name: "store-2"}
	evil := &hub{t: t, root: newSigner(), sign: newSigner(), limits: h.limits}
	removeAll := func(d *bundlefmt.Desired) { d.Remove = []bundlefmt.Removal{{Name: "web", Serial: d.Serial}} }
	h.order(s.c, 5, entry("web", 5, b, fix))
	h.awaitState(s.c, "web", 5, bundlefmt.Ready)
	good := h.document(s.c, 6, removeAll)
	for n, c := range []struct {
		what    string
		payload []byte
		why     string
	}{
		{"forged", evil.document(s.c, 6, removeAll), "not signed by a trusted key"},
		{"for another cluster", h.document(other, 6, removeAll), "somebody else"},
		{"older", h.document(s.c, 4, removeAll), "older"},
		{"same serial, other content", h.document(s.c, 5, removeAll), "another document with this serial"},
		{"damaged", append(slices.Clone(good[:len(good)-1]), good[len(good)-1]^1), "trusted key"},
		{"cut short", good[:len(good)/2], "malformed"},
		{"empty", nil, "empty"},
	} {
		h.publish(prefix.Desired(s.c), c.payload)
		h.awaitReport(s.c, c.what+" to be refused", func(r *bundlefmt.Reported) bool {
			return r.Refused != nil && r.Refused.Count == n+1 && strings.Contains(r.Refused.Reason, c.why) && r.Refused.Topic == prefix.Desired(s.c) && r.Serial == 5
		})
	}
	// A trust document that the root did not sign changes nothing either.
	h.publish(prefix.Trust(workspace), evil.trust(9, evil.sign.Public()))
	h.awaitReport(s.c, "foreign trust to be refused", func(r *bundlefmt.Reported) bool {
		return r.Refused != nil && r.Refused.Topic == prefix.Trust(workspace) && r.Trust == 1
	})
	if got := s.names(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("on the cluster: %v", got)
	}
	// After a restart the floor still holds: the older one is refused, nothing was lost.
	s.halt()
	h.publish(prefix.Trust(workspace), h.trust(1, h.sign.Public()))
	h.publish(prefix.Desired(s.c), h.document(s.c, 4, removeAll))
	s.start()
	h.awaitReport(s.c, "the older one to be refused after a restart", func(r *bundlefmt.Reported) bool {
		return r.Refused != nil && r.Refused.Count == 1 && strings.Contains(r.Refused.Reason, "older") && r.Serial == 5
	})
	h.order(s.c, 6, entry("web", 6, b, fix))
	h.awaitState(s.c, "web", 6, bundlefmt.Ready)
}

func TestWipedBrokerDeletesNothing(t *testing.T) {
	h, s, b := installed(t, fix)
	before := s.version("a")
	h.stop()
	h.awaitWillGone(s)
	if err := os.RemoveAll(h.store); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	clear(h.reports)
	clear(h.presence)
	h.mu.Unlock()
	h.start()
	// The agent says again where it stands; nobody has ordered anything.
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	h.awaitPresence(s.c, "online", func(p *bundlefmt.Presence) bool { return p.Online })
	s.edit("a", "x")
	s.awaitValue("a", "1") // it is still kept
	h.order(s.c, 2, entry("web", 2, b, fix))
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)

	// An order that does not name it leaves it alone.
	mid := s.version("a")
	h.order(s.c, 3)
	d := h.awaitState(s.c, "web", 2, bundlefmt.Orphaned)
	if d.Message == "" || s.version("a") != mid || before == mid {
		t.Errorf("report %+v; versions %s %s %s", d, before, mid, s.version("a"))
	}
}

// awaitWillGone waits until the agent knows that the link is down.
func (h *hub) awaitWillGone(s *site) {
	h.t.Helper()
	kubetest.Wait(h.t, "the agent to miss its link", func(context.Context) error {
		st, err := edgeagent.ReadStatus(s.o.DataDir)
		if err == nil && st.Connected {
			err = fmt.Errorf("it has one")
		}
		return err
	})
}

func TestRemoveRemovesOnlyThat(t *testing.T) {
	h, s, b := installed(t, fix)
	two := h.seal(s.configMap("b", "1"), s.configMap("c", "1"))
	h.put(s.c, "", two)
	h.order(s.c, 2, entry("web", 1, b, fix), entry("db", 2, two, fix))
	h.awaitState(s.c, "db", 2, bundlefmt.Ready)
	before := s.version("a")
	h.publish(prefix.Desired(s.c), h.document(s.c, 3, func(d *bundlefmt.Desired) {
		d.Remove = []bundlefmt.Removal{{Name: "db", Serial: 3}, {Name: "never-heard-of", Serial: 3}}
	}, entry("web", 1, b, fix)))
	h.awaitReport(s.c, "db to be gone", func(r *bundlefmt.Reported) bool {
		_, ok := of(r, "db")
		return !ok && r.Serial == 3 && len(r.Deployments) == 1
	})
	if got := s.names(); !slices.Equal(got, []string{"a"}) || s.version("a") != before {
		t.Errorf("on the cluster: %v", got)
	}
	// With keep the objects stay and are nobody's.
	h.publish(prefix.Desired(s.c), h.document(s.c, 4, func(d *bundlefmt.Desired) {
		d.Remove = []bundlefmt.Removal{{Name: "web", Serial: 4, Keep: true}}
	}))
	h.awaitReport(s.c, "web to be let go", func(r *bundlefmt.Reported) bool { return r.Serial == 4 && len(r.Deployments) == 0 })
	if v, _, err := s.value(t.Context(), "a"); v != "1" || err != nil || len(s.names()) != 0 {
		t.Errorf("a is %q (%v), labelled %v", v, err, s.names())
	}
}

// big is a bundle of several parts that does not compress.
func (s *site) big(h *hub, n int, seed uint64) bundlefmt.Sealed {
	r := rand.New(rand.NewPCG(seed, 1))
	var objects []string
	for i := range n {
		var v strings.Builder
		for range 4000 {
			fmt.Fprintf(&v, "%08x", r.Uint32())
		}
		objects = append(objects, s.configMap(fmt.Sprintf("big-%d", i), v.String()))
	}
	return h.seal(objects...)
}

func TestPlantedPartIsRefusedAndRecovered(t *testing.T) {
	h, s, _ := installed(t, fix)
	b := s.big(h, 10, 1)
	if len(b.Parts) < 3 {
		t.Fatalf("want several parts, got %d", len(b.Parts))
	}
	h.put(s.c, "", b)
	for n := range 2 { // part 0 holds the signature, part 1 only bytes
		planted := slices.Clone(b.Parts[n])
		planted[len(planted)-5] ^= 1
		h.publish(prefix.Part(s.c, "", b.Digest.Short(), n), planted)
	}
	h.order(s.c, 2, entry("big", 2, b, fix))
	h.awaitState(s.c, "big", 2, bundlefmt.Ready)
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.reports[s.c.Name].Refused; r == nil || r.Count < 2 || !strings.Contains(r.Topic, "/bundle/") {
		t.Errorf("refused: %+v", r)
	}
	if len(h.asked) != 2 || h.asked[0].Digest != b.Digest || h.asked[0].Deployment != "big" {
		t.Errorf("asked: %+v", h.asked)
	}
}

// A broker that keeps no retained messages: everything is asked for.
func TestPartsThatNeverCameAreAskedFor(t *testing.T) {
	h, s, _ := installed(t, fix)
	b := s.big(h, 10, 2)
	h.order(s.c, 2, entry("big", 2, b, fix))
	h.awaitState(s.c, "big", 2, bundlefmt.Ready)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.asked) != len(b.Parts) {
		t.Errorf("%d requests for %d parts: %+v", len(h.asked), len(b.Parts), h.asked)
	}
}

func TestCutInTheMiddleOfADownload(t *testing.T) {
	h, s, _ := installed(t, fix)
	b := s.big(h, 40, 3)
	if len(b.Parts) < 10 {
		t.Fatalf("want many parts, got %d", len(b.Parts))
	}
	h.put(s.c, "", b)
	start := s.link.Bytes()
	s.link.DropAfter(150_000)
	h.order(s.c, 2, entry("big", 2, b, fix))
	kubetest.Wait(t, "the cut", func(context.Context) error {
		if n := s.link.Bytes() - start; n < 150_000 {
			return fmt.Errorf("%d bytes so far", n)
		}
		return nil
	})
	s.link.DropAfter(200_000)
	kubetest.Wait(t, "the second cut", func(context.Context) error {
		if n := s.link.Bytes() - start; n < 350_000 {
			return fmt.Errorf("%d bytes so far", n)
		}
		return nil
	})
	s.link.DropAfter(-1)
	h.awaitState(s.c, "big", 2, bundlefmt.Ready)
	// A cut loses at most the parts that were on their way, at most four of them, and a handshake.
	moved := s.link.Bytes() - start
	if limit := b.Size + 2*5*h.limits.PartSize; moved > limit {
		t.Errorf("%d bytes moved for a bundle of %d: parts were fetched twice", moved, b.Size)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.asked) != 0 {
		t.Errorf("asked for what the broker would have replayed: %+v", h.asked)
	}
}

// The signing key is rotated, and the new document overtakes the trust document that names its key.
func TestKeyRotation(t *testing.T) {
	h, s, b := installed(t, fix)
	old := h.sign
	h.sign = newSigner()
	h.order(s.c, 2, entry("web", 2, b, fix))
	h.awaitReport(s.c, "it to be refused", func(r *bundlefmt.Reported) bool { return r.Refused != nil && r.Serial == 1 })
	h.publish(prefix.Trust(workspace), h.trust(2, h.sign.Public(), old.Public()))
	h.awaitReport(s.c, "it to be accepted", func(r *bundlefmt.Reported) bool { return r.Serial == 2 && r.Trust == 2 })
	// The old key is taken out, and never comes back by replay.
	h.publish(prefix.Trust(workspace), h.trust(3, h.sign.Public()))
	h.awaitReport(s.c, "trust 3", func(r *bundlefmt.Reported) bool { return r.Trust == 3 })
	h.publish(prefix.Trust(workspace), h.trust(2, h.sign.Public(), old.Public()))
	h.awaitReport(s.c, "trust 2 to be refused", func(r *bundlefmt.Reported) bool {
		return r.Refused != nil && r.Refused.Topic == prefix.Trust(workspace) && r.Trust == 3
	})
	// What runs is still kept, also after a restart, although the key that signed it is gone.
	s.edit("a", "x")
	s.awaitValue("a", "1")
	s.halt()
	s.edit("a", "y")
	s.start()
	s.awaitValue("a", "1")
}

// The power goes in the middle of an apply; the next order drops most of it. Nothing is left behind.
func TestHalfDoneApplyIsNotForgotten(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	api := s.apiLink()
	s.start()
	small := h.seal(s.configMap("c-00", "1"))
	h.put(s.c, "", small)
	h.order(s.c, 1, entry("web", 1, small, fix))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)

	var objects []string
	for i := range 60 {
		objects = append(objects, s.configMap(fmt.Sprintf("c-%02d", i), "1"))
	}
	large := h.seal(objects...)
	h.put(s.c, "", large)
	api.SetDelay(20 * time.Millisecond)
	h.order(s.c, 2, entry("web", 2, large, fix))
	kubetest.Wait(t, "some of it on the cluster", func(context.Context) error {
		if n := len(s.names()); n < 5 {
			return fmt.Errorf("%d objects", n)
		}
		return nil
	})
	s.halt()
	half := len(s.names())
	if half >= 60 {
		t.Fatalf("it was all done already")
	}
	api.SetDelay(0)
	api.Cut() // or it would finish what it began before it hears of the next order
	h.order(s.c, 3, entry("web", 3, small, fix))
	s.start()
	h.awaitReport(s.c, "the order", func(r *bundlefmt.Reported) bool { return r.Serial == 3 })
	s.halt()
	api.Restore()
	s.start()
	h.awaitState(s.c, "web", 3, bundlefmt.Ready)
	if got := s.names(); !slices.Equal(got, []string{"c-00"}) {
		t.Errorf("half of it was %d objects; left behind: %v", half, got)
	}
}

func TestAPIServerDown(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	api := s.apiLink()
	s.start()
	b := h.seal(s.configMap("a", "1"))
	h.put(s.c, "", b)
	h.order(s.c, 1, entry("web", 1, b, fix))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	api.Cut()
	two := h.seal(s.configMap("a", "2"))
	h.put(s.c, "", two)
	h.order(s.c, 2, entry("web", 2, two, fix))
	d := h.awaitState(s.c, "web", 1, bundlefmt.ErrApplied)
	if !strings.Contains(d.Message, "API server is not available") {
		t.Errorf("report: %+v", d)
	}
	api.Restore()
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	s.awaitValue("a", "2")
	s.edit("a", "x")
	s.awaitValue("a", "2") // the watch is back
}

func TestBadObjectsAreReportedAndOthersGoOn(t *testing.T) {
	h, s, b := installed(t, fix)
	bad := h.seal(s.configMap("fine", "1"), fmt.Sprintf(`{"apiVersion":"example.test/v1","kind":"Nothing","metadata":{"name":"x","namespace":%q}}`, s.ns))
	h.put(s.c, "", bad)
	h.order(s.c, 2, entry("web", 2, b, fix), entry("bad", 2, bad, fix))
	h.await("ErrApplied", func() error {
		d, ok := of(h.reports[s.c.Name], "bad")
		if !ok || d.State != bundlefmt.ErrApplied || !strings.Contains(d.Message, "Nothing") || d.NotReadyCount != 1 {
			return fmt.Errorf("report: %+v", d)
		}
		return nil
	})
	s.awaitValue("fine", "1")
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	good := h.seal(s.configMap("fine", "2"))
	h.put(s.c, "", good)
	h.order(s.c, 3, entry("web", 2, b, fix), entry("bad", 3, good, fix))
	h.awaitState(s.c, "bad", 3, bundlefmt.Ready)
}

func TestHeldAndStale(t *testing.T) {
	h, s, _ := installed(t, fix)
	two := h.seal(s.configMap("a", "2"))
	h.put(s.c, "", two)
	paused := fix
	paused.Paused = true
	h.publish(prefix.Desired(s.c), h.document(s.c, 2, func(d *bundlefmt.Desired) { d.StaleAfter = time.Now().Add(-time.Hour) }, entry("web", 2, two, paused)))
	h.awaitState(s.c, "web", 1, bundlefmt.Held)
	h.awaitReport(s.c, "stale", func(r *bundlefmt.Reported) bool { return r.Stale })
	h.order(s.c, 3, entry("web", 3, two, fix))
	h.awaitState(s.c, "web", 3, bundlefmt.Ready)
	h.awaitReport(s.c, "not stale", func(r *bundlefmt.Reported) bool { return !r.Stale })
	s.awaitValue("a", "2")
}

func TestPresenceOfALostLink(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.o.KeepAlive = 2 * time.Second
	s.start()
	up := h.awaitPresence(s.c, "online", func(p *bundlefmt.Presence) bool { return p.Online })
	s.link.Cut()
	gone := h.awaitPresence(s.c, "offline", func(p *bundlefmt.Presence) bool { return !p.Online })
	if gone.Nonce != up.Nonce || gone.Reason != "connection lost" {
		t.Errorf("birth %+v, will %+v", up, gone)
	}
	s.link.Restore()
	again := h.awaitPresence(s.c, "online again", func(p *bundlefmt.Presence) bool { return p.Online })
	if again.Nonce == up.Nonce {
		t.Error("two connections with one nonce")
	}
	s.halt()
	bye := h.awaitPresence(s.c, "a goodbye", func(p *bundlefmt.Presence) bool { return !p.Online })
	if bye.Nonce != again.Nonce || bye.Reason == "" {
		t.Errorf("goodbye: %+v", bye)
	}
}

// Each thing that can stand in the way of enrolment has a sentence of its own, which says what to do.
func TestEnrolmentErrors(t *testing.T) {
	for what, c := range map[string]struct {
		change func(h *hub, s *site, k *bundlefmt.Ticket)
		say    string
	}{
		"unreachable": {func(_ *hub, s *site, k *bundlefmt.Ticket) { k.URL = "mqtts://127.0.0.1:1" }, "check that the hub is running"},
		"wrong CA": {func(h *hub, _ *site, k *bundlefmt.Ticket) {
			other := &hub{root: h.root}
			other.ca, _ = newCA(h.t)
			k.CA = other.ticket("").CA
		}, "not signed by a CA we trust"},
		"wrong secret": {func(_ *hub, _ *site, k *bundlefmt.Ticket) { k.Secret = "guess" }, "shoal token create"},
		"name taken":   {func(h *hub, _ *site, _ *bundlefmt.Ticket) { h.names["store-1"] = "somebody" }, "choose another --cluster-name"},
		"another root": {func(_ *hub, _ *site, k *bundlefmt.Ticket) { k.Root = newSigner().Public() }, "not signed by a trusted key"},
		"host by other": {func(h *hub, _ *site, k *bundlefmt.Ticket) {
			k.URL = strings.Replace(k.URL, "127.0.0.1", "localhost", 1)
		}, "for another host name"},
	} {
		t.Run(what, func(t *testing.T) {
			h := newHub(t)
			s := newSite(t, h, "store-1")
			k := h.ticket(s.link.Addr())
			s.o.MetricsListen = freeAddr(t)
			c.change(h, s, &k)
			if err := os.WriteFile(s.o.TokenFile, []byte(k.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			s.start()
			kubetest.Wait(t, "the log to say it", func(context.Context) error {
				for line := range strings.Lines(s.log.String()) {
					var e struct{ Message, Err, Error string }
					if json.Unmarshal([]byte(line), &e) == nil && e.Message == "this site has not enrolled" && strings.Contains(e.Error, c.say) {
						return nil
					}
				}
				return fmt.Errorf("no %q in the log", c.say)
			})
			if strings.Contains(s.log.String(), k.Secret) && k.Secret != "guess" {
				t.Error("the log holds the secret")
			}
			page := func(path string) error { return get(t.Context(), "http://"+s.o.MetricsListen+path) }
			if err := page("/healthz"); err != nil {
				t.Errorf("a site that has not enrolled is alive: %v", err)
			}
			if err := page("/readyz"); err == nil || !strings.Contains(err.Error(), "this site has not enrolled") {
				t.Errorf("a site that has not enrolled is not ready, got %v", err)
			}
			// A right token in the same file, and it goes on by itself.
			h.mu.Lock()
			delete(h.names, "store-1")
			h.mu.Unlock()
			if err := os.WriteFile(s.o.TokenFile, []byte(h.ticket(s.link.Addr()).String()), 0o600); err != nil {
				t.Fatal(err)
			}
			h.awaitPresence(s.c, "online", func(p *bundlefmt.Presence) bool { return p.Online })
			if err := page("/readyz"); err != nil {
				t.Errorf("enrolled: %v", err)
			}
		})
	}
}

// By the site's clock the hub's certificate has been invalid for years. That is said and stops nothing.
func TestWrongClock(t *testing.T) {
	h := newHub(t)
	h.stop()
	h.tls.Certificates[0] = h.serverCert(time.Now().AddDate(-5, 0, 0), time.Now().AddDate(-4, 0, 0))
	h.start()
	s := newSite(t, h, "store-1")
	s.start()
	h.awaitPresence(s.c, "online", func(p *bundlefmt.Presence) bool { return p.Online })
	if !strings.Contains(s.log.String(), "check the clock") {
		t.Error("nothing said about the clock")
	}
}

func TestSecondAgentOnOneDirectory(t *testing.T) {
	_, s, _ := installed(t, fix)
	_, err := edgeagent.New(s.o)
	if err == nil || !strings.Contains(err.Error(), "another agent runs with this data directory") {
		t.Errorf("got %v", err)
	}
}

// Every file of a stopped agent is damaged, one after the other: the agent comes up, says so, and deletes nothing.
func TestDamagedDisk(t *testing.T) {
	h, s, b := installed(t, fix)
	for n, file := range []string{"desired", "floor", "trust", "records/web", "bundles/" + b.Digest.String() + "/0"} {
		s.halt()
		for _, f := range []string{file, file + ".copy"} {
			path := filepath.Join(s.o.DataDir, f)
			if _, err := os.Stat(path); err == nil {
				if err := os.WriteFile(path, []byte("garbage"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		s.start()
		serial := bundlefmt.Serial(n + 2)
		h.order(s.c, serial, entry("web", serial, b, fix))
		h.awaitState(s.c, "web", serial, bundlefmt.Ready)
		s.edit("a", "x")
		s.awaitValue("a", "1")
	}
	if !strings.Contains(s.log.String(), "moved aside") {
		t.Error("nothing said about the damage")
	}
}
