package edgeagent_test

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent"
	"shoal.dev/shoal/internal/kubetest"
)

// status waits for what the site itself says, link or no link.
func (s *site) awaitStatus(what string, ok func(edgeagent.Status) bool) edgeagent.Status {
	s.t.Helper()
	var st edgeagent.Status
	kubetest.Wait(s.t, what, func(context.Context) error {
		var err error
		if st, err = edgeagent.ReadStatus(s.o.DataDir); err != nil {
			return err
		}
		if !ok(st) {
			b, err := json.Marshal(st)
			return errors.Join(fmt.Errorf("it is %s", b), err)
		}
		return nil
	})
	return st
}

func (s *site) awaitSiteState(name string, serial bundlefmt.Serial, state bundlefmt.State) bundlefmt.DeploymentReport {
	s.t.Helper()
	var d bundlefmt.DeploymentReport
	s.awaitStatus(fmt.Sprintf("%s@%d %s", name, serial, state), func(st edgeagent.Status) bool {
		var ok bool
		d, ok = of(&st.Reported, name)
		return ok && d.State == state && d.Serial == serial
	})
	return d
}

// deploymentOf is a workload whose image and replicas are given. Pods of image "never" do not become ready.
func (s *site) stuckWorkload(name string) string {
	return fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":%[1]q,"namespace":%[2]q},"spec":{"replicas":1,"progressDeadlineSeconds":600,"selector":{"matchLabels":{"app":%[1]q}},
		"template":{"metadata":{"labels":{"app":%[1]q}},"spec":{"nodeSelector":{"nowhere":"true"},"containers":[{"name":"c","image":"example.test/app:2"}]}}}}`, name, s.ns)
}

var rollback = bundlefmt.Policy{CorrectDrift: true, Rollback: true, ReadyTimeoutSecond: 2}

// A release that does not become ready is taken back without a link, from the site's own disk; a restart in the middle of its trial
// and another one afterwards change nothing about that; the same release under a newer serial is tried again.
func TestRollbackAlone(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	one := h.seal(s.configMap("a", "1"), s.workload("app"))
	h.put(s.c, "", one)
	h.order(s.c, 1, entry("web", 1, one, rollback))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	two := h.seal(s.configMap("a", "2"), s.configMap("b", "2"), s.stuckWorkload("app"))
	h.put(s.c, "", two)
	slow := rollback
	slow.ReadyTimeoutSecond = 5
	h.order(s.c, 2, entry("web", 2, two, slow))
	h.awaitState(s.c, "web", 2, bundlefmt.NotReady)
	s.halt()
	h.awaitPresence(s.c, "a goodbye", func(p *bundlefmt.Presence) bool { return !p.Online && p.Reason == "stopped" })
	s.link.Cut()
	s.start()
	d := s.awaitSiteState("web", 1, bundlefmt.RolledBack)
	if !strings.Contains(d.Message, "release 2 was given up: it was not ready within 5s: ") {
		t.Errorf("message: %s", d.Message)
	}
	s.awaitValue("a", "1")
	if got := s.names(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("on the cluster: %v", got)
	}
	s.edit("a", "x")
	s.awaitValue("a", "1") // what it went back to is kept

	s.halt()
	s.start()
	s.awaitStatus("a look after the restart", func(st edgeagent.Status) bool {
		d, _ := of(&st.Reported, "web")
		return d.State == bundlefmt.RolledBack && d.Serial == 1 && d.Total == 2
	})
	s.link.Restore()
	h.awaitState(s.c, "web", 1, bundlefmt.RolledBack)
	if v, _, err := s.value(t.Context(), "a"); v != "1" || err != nil {
		t.Errorf("a is %q %v", v, err)
	}

	three := entry("web", 3, two, slow)
	h.order(s.c, 3, three)
	h.awaitEvent("a second try", func(e bundlefmt.Event) bool { return e.Serial == 3 && e.State == bundlefmt.NotReady })
	d = h.awaitState(s.c, "web", 1, bundlefmt.RolledBack)
	if !strings.Contains(d.Message, "release 3 was given up") {
		t.Errorf("message: %s", d.Message)
	}
	h.order(s.c, 4, entry("web", 4, one, rollback))
	h.awaitState(s.c, "web", 4, bundlefmt.Ready)
}

// A release that cannot be applied is taken back as well, and what it made before it failed goes.
func TestRollbackOfWhatCannotBeApplied(t *testing.T) {
	h, s, _ := installed(t, rollback)
	bad := h.seal(s.configMap("a", "2"), s.configMap("b", "2"), fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"bad","namespace":%q},"data":{"no key":""}}`, s.ns))
	h.put(s.c, "", bad)
	h.order(s.c, 2, entry("web", 2, bad, rollback))
	d := h.awaitState(s.c, "web", 1, bundlefmt.RolledBack)
	if !strings.Contains(d.Message, "release 2 was given up: it could not be applied within 2s: ") {
		t.Errorf("message: %s", d.Message)
	}
	s.awaitValue("a", "1")
	if got := s.names(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("on the cluster: %v", got)
	}
}

// The bundle to go back to was damaged on disk while nobody looked: it is fetched again.
func TestRollbackToADamagedBundle(t *testing.T) {
	h, s, one := installed(t, rollback)
	two := h.seal(s.configMap("a", "2"), s.stuckWorkload("app"))
	h.put(s.c, "", two)
	h.order(s.c, 2, entry("web", 2, two, bundlefmt.Policy{Rollback: true, ReadyTimeoutSecond: 4}))
	h.awaitState(s.c, "web", 2, bundlefmt.NotReady)
	s.halt()
	if err := os.WriteFile(filepath.Join(s.o.DataDir, "bundles", one.Digest.String(), "0"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	h.awaitState(s.c, "web", 1, bundlefmt.RolledBack)
	s.awaitValue("a", "1")
}

// With nothing to go back to, a first installation stays as it is, and that is said.
func TestRollbackOfAFirstInstall(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	b := h.seal(s.configMap("a", "1"), s.stuckWorkload("app"))
	h.put(s.c, "", b)
	h.order(s.c, 1, entry("web", 1, b, rollback))
	h.awaitReport(s.c, "it to be said", func(r *bundlefmt.Reported) bool {
		d, _ := of(r, "web")
		return d.State == bundlefmt.NotReady && d.Serial == 1 && strings.Contains(d.Message, "there is no release to go back to")
	})
	s.awaitValue("a", "1")
}

// The release cuts the site off from its hub: it is taken back, once.
func TestRollbackWhenTheLinkDoesNotComeBack(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.o.LinkTimeout = 2 * time.Second
	s.o.KeepAlive = time.Second
	s.start()
	one := h.seal(s.configMap("a", "1"))
	h.put(s.c, "", one)
	h.order(s.c, 1, entry("web", 1, one, rollback))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	two := h.seal(s.configMap("a", "2"))
	h.put(s.c, "", two)
	h.order(s.c, 2, entry("web", 2, two, rollback))
	s.awaitValue("a", "2")
	s.link.Cut()
	d := s.awaitSiteState("web", 1, bundlefmt.RolledBack)
	if !strings.Contains(d.Message, "the link to the hub was lost after it was applied") {
		t.Errorf("message: %s", d.Message)
	}
	s.awaitValue("a", "1")
	s.link.Restore()
	h.awaitState(s.c, "web", 1, bundlefmt.RolledBack)
}

func TestDependsOn(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	db, web := h.seal(s.configMap("db", "1"), s.stuckWorkload("db")), h.seal(s.configMap("web", "1"))
	h.put(s.c, "", db)
	h.put(s.c, "", web)
	after := func(names ...string) bundlefmt.Policy {
		p := fix
		for _, n := range names {
			p.DependsOn = append(p.DependsOn, bundlefmt.Dependency{Name: n})
		}
		return p
	}
	said := func(what, name, msg string, st bundlefmt.State) {
		t.Helper()
		h.awaitReport(s.c, what, func(r *bundlefmt.Reported) bool {
			d, _ := of(r, name)
			return d.State == st && strings.Contains(d.Message, msg)
		})
	}
	h.order(s.c, 1, entry("db", 1, db, fix), entry("web", 1, web, after("db", "cache")))
	said("the wait to be said", "web", "waits for db (NotReady), cache, which is not ordered for this cluster", bundlefmt.WaitApplied)
	if _, _, err := s.value(t.Context(), "web"); !apierrors.IsNotFound(err) {
		t.Errorf("it was applied before what it depends on: %v", err)
	}
	h.order(s.c, 2, entry("db", 2, db, after("web")), entry("web", 2, web, after("db")))
	said("the cycle to be said", "web", "web waits for db waits for web", bundlefmt.ErrApplied)
	fine := h.seal(s.configMap("db", "1"))
	h.put(s.c, "", fine)
	h.order(s.c, 3, entry("db", 3, fine, fix), entry("web", 3, web, after("db")))
	h.awaitState(s.c, "web", 3, bundlefmt.Ready)
}

// A window that is closed holds a release, also after a restart without a link; repairs go on. An order without windows lets it go.
func TestWindow(t *testing.T) {
	h, s, one := installed(t, fix)
	two := h.seal(s.configMap("a", "2"))
	h.put(s.c, "", two)
	opens := time.Now().Add(26 * time.Hour).UTC()
	windows := func(d *bundlefmt.Desired) {
		d.Windows = []bundlefmt.Window{{Schedule: fmt.Sprintf("0 %d %d %d *", opens.Hour(), opens.Day(), opens.Month()), Seconds: 60, TimeZone: "Pacific/Auckland", Apply: true}}
	}
	h.publish(prefix.Desired(s.c), h.document(s.c, 2, windows, entry("web", 2, two, fix), entry("old", 1, one, fix)))
	d := h.awaitState(s.c, "web", 1, bundlefmt.Held)
	if !strings.Contains(d.Message, "the window opens at 20") {
		t.Errorf("message: %s", d.Message)
	}
	s.halt()
	s.link.Cut()
	s.start()
	s.edit("a", "x")
	s.awaitValue("a", "1")
	s.awaitSiteState("web", 1, bundlefmt.Held)
	s.link.Restore()
	h.order(s.c, 3, entry("web", 3, two, fix))
	h.awaitState(s.c, "web", 3, bundlefmt.Ready)
}

// The site holds changes up with a file or a Lease, the hub sees who and until when, and they begin when it is taken off.
func TestLocks(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.o.Namespace = s.ns
	s.o.Timing.Locks = 50 * time.Millisecond
	s.start()
	one := h.seal(s.configMap("a", "1"))
	h.put(s.c, "", one)
	h.order(s.c, 1, entry("web", 1, one, fix))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)

	file := filepath.Join(s.o.DataDir, "locks", "stock-count")
	if err := os.WriteFile(file, []byte("holder: anna\nreason: counting\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.awaitStatus("the lock to be seen", func(st edgeagent.Status) bool { return len(st.Locks) == 1 })
	two := h.seal(s.configMap("a", "2"))
	h.put(s.c, "", two)
	h.order(s.c, 2, entry("web", 2, two, fix))
	d := h.awaitState(s.c, "web", 1, bundlefmt.Held)
	if !strings.Contains(d.Message, "held by lock stock-count until 20") || !strings.Contains(d.Message, ": counting (anna)") {
		t.Errorf("message: %s", d.Message)
	}
	s.edit("a", "x")
	s.awaitValue("a", "1")

	leases := s.kube.Resource(schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}).Namespace(s.ns)
	lease := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
		"metadata": map[string]any{"name": "till", "labels": map[string]any{"shoal.dev/lock": ""}, "annotations": map[string]any{"shoal.dev/reason": "a customer pays"}},
		"spec":     map[string]any{"holderIdentity": "till-7", "leaseDurationSeconds": int64(3600), "renewTime": metav1.NowMicro().UTC().Format("2006-01-02T15:04:05.000000Z07:00")},
	}}
	if _, err := leases.Create(t.Context(), lease, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.awaitStatus("both locks to be seen", func(st edgeagent.Status) bool { return len(st.Locks) == 2 })
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	h.awaitReport(s.c, "the lease to hold", func(r *bundlefmt.Reported) bool {
		d, _ := of(r, "web")
		return d.State == bundlefmt.Held && strings.Contains(d.Message, "lock till until") && strings.Contains(d.Message, "a customer pays (till-7)")
	})
	if err := leases.Delete(t.Context(), "till", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
}

// A document that takes most of the site away waits for a confirmation, and what is to go is kept as it is.
func TestHeldRemoval(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	var entries []bundlefmt.Deployment
	for _, n := range []string{"a", "b", "c", "d"} {
		b := h.seal(s.configMap(n, "1"))
		h.put(s.c, "", b)
		entries = append(entries, entry(n, 1, b, fix))
	}
	h.order(s.c, 1, entries...)
	h.awaitState(s.c, "d", 1, bundlefmt.Ready)
	h.awaitState(s.c, "a", 1, bundlefmt.Ready)
	h.awaitState(s.c, "b", 1, bundlefmt.Ready)
	h.awaitState(s.c, "c", 1, bundlefmt.Ready)
	remove := func(confirmed bool) func(*bundlefmt.Desired) {
		return func(d *bundlefmt.Desired) {
			for _, n := range []string{"a", "b", "c"} {
				d.Remove = append(d.Remove, bundlefmt.Removal{Name: n, Serial: d.Serial, Confirmed: confirmed})
			}
		}
	}
	h.publish(prefix.Desired(s.c), h.document(s.c, 2, remove(false), entries[3]))
	d := h.awaitState(s.c, "a", 1, bundlefmt.Held)
	if want := "held: would remove 3 of 4 deployments; confirm on the hub: kubectl -n shops annotate --overwrite clusters.shoal.dev store-1 shoal.dev/confirm-removal=3"; d.Message != want {
		t.Errorf("message: %s", d.Message)
	}
	s.edit("a", "x")
	s.awaitValue("a", "1")
	if got := s.names(); len(got) != 4 {
		t.Errorf("on the cluster: %v", got)
	}
	h.publish(prefix.Desired(s.c), h.document(s.c, 3, remove(true), entries[3]))
	h.awaitReport(s.c, "three to be gone", func(r *bundlefmt.Reported) bool { return r.Serial == 3 && len(r.Deployments) == 1 })
	if got := s.names(); !slices.Equal(got, []string{"d"}) {
		t.Errorf("on the cluster: %v", got)
	}
}

// A bundle whose object another one has is applied at once when that lets go, and not when its back-off is over.
func TestFreedOfAConflict(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	one, two := h.seal(s.configMap("shared", "one")), h.seal(s.configMap("shared", "two"))
	h.put(s.c, "", one)
	h.put(s.c, "", two)
	h.order(s.c, 1, entry("one", 1, one, fix))
	h.awaitState(s.c, "one", 1, bundlefmt.Ready)
	s.halt()
	s.o.Timing.RetryMin, s.o.Timing.RetryMax = time.Hour, time.Hour // now that it has enrolled
	s.o.KeepAlive = 2 * time.Second                                 // which bounds the back-off of the link
	s.start()
	blocked := func(name string) {
		h.awaitReport(s.c, name+" to be blocked", func(r *bundlefmt.Reported) bool {
			d, _ := of(r, name)
			return d.State == bundlefmt.ErrApplied && strings.Contains(d.Message, `belongs to deployment "one"`)
		})
	}
	h.order(s.c, 2, entry("one", 1, one, fix), entry("two", 2, two, fix))
	blocked("two")
	// The other drops the object ...
	other := h.seal(s.configMap("other", "x"))
	h.put(s.c, "", other)
	h.order(s.c, 3, entry("one", 3, other, fix), entry("two", 2, two, fix))
	h.awaitState(s.c, "two", 2, bundlefmt.Ready)
	s.awaitValue("shared", "two")
	// ... or is removed.
	h.order(s.c, 4, entry("one", 3, other, fix), entry("two", 2, two, fix), entry("three", 4, other, fix))
	blocked("three")
	h.publish(prefix.Desired(s.c), h.document(s.c, 5, func(d *bundlefmt.Desired) {
		d.Remove = []bundlefmt.Removal{{Name: "one", Serial: 5}}
	}, entry("two", 2, two, fix), entry("three", 4, other, fix)))
	h.awaitState(s.c, "three", 4, bundlefmt.Ready)
}

// The disk is lost. The agent comes back as the same site without anybody's help, takes over what the cluster has on record, writes to no
// object, and afterwards prunes and goes back as if nothing had been.
func TestLostDisk(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.o.Namespace, s.o.IdentitySecret = s.ns, "identity"
	s.start()
	one := h.seal(s.configMap("a", "1"), s.configMap("gone", "1"))
	h.put(s.c, "", one)
	h.order(s.c, 1, entry("web", 1, one, rollback))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	two := h.seal(s.configMap("a", "2"), s.configMap("gone", "2"))
	h.put(s.c, "", two)
	h.order(s.c, 2, entry("web", 2, two, rollback))
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	s.awaitRecord("web", two.Digest)
	before, secret := s.version("a"), s.kube.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(s.ns)
	kubetest.Wait(t, "the identity to be kept", func(ctx context.Context) error {
		u, err := secret.Get(ctx, "identity", metav1.GetOptions{})
		if err == nil && u.Object["data"] == nil {
			err = errors.New("it is empty")
		}
		return err
	})

	s.halt()
	if err := errors.Join(os.RemoveAll(s.o.DataDir), os.Remove(s.o.TokenFile)); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	clear(h.reports)
	h.mu.Unlock()
	// Whoever has the broker plays an old order to the new disk.
	h.publish(prefix.Desired(s.c), h.document(s.c, 1, nil, entry("web", 1, one, fix)))
	s.start()
	h.awaitReport(s.c, "the old order to be refused", func(r *bundlefmt.Reported) bool {
		return r.Refused != nil && r.Serial == 2 // as older, or because the keys are still on their way
	})
	h.order(s.c, 2, entry("web", 2, two, rollback))
	h.awaitReport(s.c, "the refusal to be over", func(r *bundlefmt.Reported) bool { return r.Refused == nil && r.Serial == 2 })
	d := h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	if d.Total != 2 || d.Digest != two.Digest {
		t.Errorf("report: %+v", d)
	}
	if s.version("a") != before {
		t.Error("an object that was as ordered was written")
	}
	// The way back is known as well; its bundle comes from the hub.
	bad := h.seal(s.configMap("a", "3"), s.stuckWorkload("app"))
	h.put(s.c, "", bad)
	h.order(s.c, 3, entry("web", 3, bad, rollback))
	h.awaitState(s.c, "web", 2, bundlefmt.RolledBack)
	s.awaitValue("a", "2")
	four := h.seal(s.configMap("a", "4"))
	h.put(s.c, "", four)
	h.order(s.c, 4, entry("web", 4, four, fix))
	h.awaitState(s.c, "web", 4, bundlefmt.Ready)
	if got := s.names(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("on the cluster: %v", got)
	}
	// Removed: nothing of it comes back with the next loss.
	h.publish(prefix.Desired(s.c), h.document(s.c, 5, func(d *bundlefmt.Desired) { d.Remove = []bundlefmt.Removal{{Name: "web", Serial: 5}} }))
	h.awaitReport(s.c, "web to be gone", func(r *bundlefmt.Reported) bool { return r.Serial == 5 && len(r.Deployments) == 0 })
	s.halt()
	if err := os.RemoveAll(s.o.DataDir); err != nil {
		t.Fatal(err)
	}
	h.order(s.c, 6)
	s.start()
	h.awaitReport(s.c, "nothing to run", func(r *bundlefmt.Reported) bool { return r.Serial == 6 && len(r.Deployments) == 0 })
}

// With only its identity left on the disk, and the API server away, a site hears an old order: it is not acted on, and refused as soon
// as the cluster's records say how far this site has come. A removal of what is not known yet is not reported as done.
func TestOldOrderOnAnEmptyDisk(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.o.Namespace = s.ns
	api := s.apiLink()
	s.start()
	one, two := h.seal(s.configMap("a", "1")), h.seal(s.configMap("a", "2"))
	h.put(s.c, "", one)
	h.put(s.c, "", two)
	h.order(s.c, 1, entry("web", 1, one, fix))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	h.order(s.c, 2, entry("web", 2, two, fix))
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	s.awaitRecord("web", two.Digest)
	s.halt()
	h.awaitPresence(s.c, "a goodbye", func(p *bundlefmt.Presence) bool { return !p.Online && p.Reason == "stopped" })
	identity := filepath.Join(s.o.DataDir, "identity")
	kept, err := os.ReadFile(identity)
	if err := errors.Join(err, os.RemoveAll(s.o.DataDir), os.Mkdir(s.o.DataDir, 0o700), os.WriteFile(identity, kept, 0o600)); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	clear(h.reports)
	h.mu.Unlock()
	h.publish(prefix.Desired(s.c), h.document(s.c, 1, func(d *bundlefmt.Desired) { d.Remove = []bundlefmt.Removal{{Name: "web", Serial: 1}} }))
	api.Cut()
	s.start()
	h.awaitPresence(s.c, "online", func(p *bundlefmt.Presence) bool { return p.Online })
	h.awaitReport(s.c, "a report without orders", func(r *bundlefmt.Reported) bool { return r.Serial == 0 })
	api.Restore()
	h.awaitReport(s.c, "the old order to be refused", func(r *bundlefmt.Reported) bool {
		d, ok := of(r, "web")
		return r.Refused != nil && strings.Contains(r.Refused.Reason, "older") && r.Serial == 2 && ok && d.Serial == 2
	})
	s.awaitValue("a", "2")
	h.order(s.c, 3, entry("web", 3, one, fix))
	h.awaitState(s.c, "web", 3, bundlefmt.Ready)
}

// The disk is put back to an older copy, without a link: the old release does not come back. With the hub's word the site goes on.
func TestOlderDisk(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.o.Namespace = s.ns
	s.start()
	one, two := h.seal(s.configMap("a", "1")), h.seal(s.configMap("a", "2"))
	h.put(s.c, "", one)
	h.put(s.c, "", two)
	h.order(s.c, 1, entry("web", 1, one, fix))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	s.awaitRecord("web", one.Digest)
	s.halt()
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(s.o.DataDir)); err != nil {
		t.Fatal(err)
	}
	s.start()
	h.order(s.c, 2, entry("web", 2, two, fix))
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	s.awaitRecord("web", two.Digest)
	before := s.version("a")
	s.halt()
	if err := errors.Join(os.RemoveAll(s.o.DataDir), os.CopyFS(s.o.DataDir, os.DirFS(old))); err != nil {
		t.Fatal(err)
	}
	s.link.Cut()
	s.start()
	s.awaitStatus("to be held", func(st edgeagent.Status) bool {
		d, ok := of(&st.Reported, "web")
		return ok && d.State == bundlefmt.Held && strings.Contains(d.Message, "older than what this cluster has on record")
	})
	if s.version("a") != before {
		t.Error("the older disk brought its release back")
	}
	s.link.Restore()
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	if s.version("a") != before {
		t.Error("an object that was as ordered was written")
	}
}

// Somebody who may write in the agent's namespace leaves a record there that no agent has made. It neither makes a site deaf that
// knows how far it has come, nor allows to delete more than objects with the label of its deployment.
func TestForgedRecord(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.o.Namespace = s.ns
	s.start()
	one := h.seal(s.configMap("a", "1"))
	h.put(s.c, "", one)
	h.order(s.c, 1, entry("web", 1, one, fix))
	s.awaitRecord("web", one.Digest)
	s.halt()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	forged := base64.StdEncoding.EncodeToString(e.EncodeAll(fmt.Appendf(nil, `{"workspace":%q,"cluster":%q,"trust":1099511627776,"name":"evil","removing":true,
		"applied":{"serial":1099511627776,"digest":%q,"parts":1,"policy":{"namespace":"victim","deleteNamespace":true,"deleteCRDs":true,"deleteVolumes":true,"confirmPrune":true}}}`,
		s.c.Workspace, s.c.Name, one.Digest), nil))
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata":   map[string]any{"name": "shoal-record-evil", "labels": map[string]any{"shoal.dev/record": "evil"}},
		"binaryData": map[string]any{"record.zst": forged}}}
	if _, err := s.kube.Resource(configMaps).Namespace(s.ns).Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.awaitStatus("the record to be read", func(st edgeagent.Status) bool {
		_, ok := of(&st.Reported, "evil")
		return ok
	})
	b, err := os.ReadFile(filepath.Join(s.o.DataDir, "records", "evil"))
	if err != nil || strings.Contains(string(b), "delete") || strings.Contains(string(b), "removing") || strings.Contains(string(b), "confirmPrune") {
		t.Errorf("taken over: %v %s", err, b)
	}
	h.order(s.c, 2, entry("web", 2, one, fix))
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	h.publish(prefix.Trust(workspace), h.trust(2, h.sign.Public()))
	h.awaitReport(s.c, "new trust", func(r *bundlefmt.Reported) bool { return r.Trust == 2 && r.Refused == nil })
}

// Somebody deletes the records on the cluster: they are made again.
func TestRecordsAreRepaired(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.o.Namespace = s.ns
	s.o.Timing.Recheck = 300 * time.Millisecond
	s.start()
	one := h.seal(s.configMap("a", "1"))
	h.put(s.c, "", one)
	h.order(s.c, 1, entry("web", 1, one, fix))
	s.awaitRecord("web", one.Digest)
	if err := s.kube.Resource(configMaps).Namespace(s.ns).Delete(t.Context(), "shoal-record-web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.awaitRecord("web", one.Digest)
}

// awaitRecord waits until the cluster has a record of the deployment, marked as the agent's own.
func (s *site) awaitRecord(name string, d bundlefmt.Digest) {
	s.t.Helper()
	kubetest.Wait(s.t, "a record of "+name, func(ctx context.Context) error {
		u, err := s.kube.Resource(configMaps).Namespace(s.ns).Get(ctx, "shoal-record-"+name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		text, _, _ := unstructured.NestedString(u.Object, "binaryData", "record.zst")
		if rec := unpack(s.t, text); !strings.Contains(rec, d.String()) || !strings.Contains(rec, `"good":true`) || u.GetLabels()["shoal.dev/agent"] != "true" {
			return fmt.Errorf("labels %v, %s", u.GetLabels(), rec)
		}
		return nil
	})
}

// A newer order ends an apply that hangs, and is applied.
func TestSuperseded(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	api := s.apiLink()
	s.start()
	big := make([]string, 0, 120)
	for i := range 120 {
		big = append(big, s.configMap(fmt.Sprintf("c-%d", i), "1"))
	}
	slow := h.seal(big...)
	h.put(s.c, "", slow)
	api.SetDelay(100 * time.Millisecond)
	h.order(s.c, 1, entry("web", 1, slow, fix))
	kubetest.Wait(t, "the apply to have begun", func(ctx context.Context) error {
		if len(s.names()) == 0 {
			return errors.New("nothing there yet")
		}
		return nil
	})
	small := h.seal(s.configMap("c-0", "2"))
	h.put(s.c, "", small)
	h.order(s.c, 2, entry("web", 2, small, fix))
	kubetest.Wait(t, "the apply to end early", func(context.Context) error {
		if !strings.Contains(s.log.String(), "apply ended early: a newer order came") {
			return errors.New("not said")
		}
		return nil
	})
	api.SetDelay(0)
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	if got := s.names(); !slices.Equal(got, []string{"c-0"}) {
		t.Errorf("on the cluster: %v", got)
	}
}

// A second agent stands by, ready, until the first one ends, and then carries on: so an update of the agent never leaves the site
// without one.
func TestStandby(t *testing.T) {
	h, s, b := installed(t, fix)
	next := s.o
	next.MetricsListen = freeAddr(t)
	next.Timing.RetryMin = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- edgeagent.Standby(ctx, next) }()
	kubetest.Wait(t, "the second one to be ready", func(ctx context.Context) error { return get(ctx, "http://"+next.MetricsListen+"/healthz") })
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	s.halt()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.start()
	h.order(s.c, 2, entry("web", 2, b, fix))
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)

	// One that cannot reach the API server never becomes ready, and never takes over.
	broken := next
	broken.Kubernetes = rest.CopyConfig(next.Kubernetes)
	broken.Kubernetes.Host = "https://127.0.0.1:1"
	go func() { done <- edgeagent.Standby(ctx, broken) }()
	kubetest.Wait(t, "it to say why", func(ctx context.Context) error {
		err := get(ctx, "http://"+broken.MetricsListen+"/healthz")
		if err == nil || !strings.Contains(err.Error(), "the Kubernetes API server is not available") {
			return fmt.Errorf("it says %w", cmp.Or(err, errors.New("that it is ready")))
		}
		return nil
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return err
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func unpack(t *testing.T, text string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := d.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// A release that would delete most of what the one before has is applied, and deletes nothing until the hub confirms it.
func TestHeldPrune(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	var many []string
	for i := range 12 {
		many = append(many, s.configMap(fmt.Sprintf("c-%02d", i), "1"))
	}
	one := h.seal(many...)
	h.put(s.c, "", one)
	h.order(s.c, 1, entry("web", 1, one, fix))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	two := h.seal(s.configMap("c-00", "2"))
	h.put(s.c, "", two)
	h.order(s.c, 2, entry("web", 2, two, fix))
	d := h.awaitState(s.c, "web", 2, bundlefmt.Held)
	if !strings.Contains(d.Message, "would delete 11 of 12 objects") {
		t.Errorf("message: %s", d.Message)
	}
	s.awaitValue("c-00", "2")
	s.halt()
	s.start()
	s.edit("c-00", "x") // a repair prunes no more than the release may
	s.awaitValue("c-00", "2")
	h.awaitState(s.c, "web", 2, bundlefmt.Held)
	if got := s.names(); len(got) != 12 {
		t.Errorf("on the cluster: %v", got)
	}
	confirmed := fix
	confirmed.ConfirmPrune = true
	h.order(s.c, 3, entry("web", 3, two, confirmed))
	h.awaitState(s.c, "web", 3, bundlefmt.Ready)
	if got := s.names(); !slices.Equal(got, []string{"c-00"}) {
		t.Errorf("on the cluster: %v", got)
	}
}

// Hooks run at the moments they are for, once each; a repair and a restart are no such moment.
func TestHooksOfALife(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	bundle := func(v string, more ...string) bundlefmt.Sealed {
		objects := append([]string{s.configMap("a", v)}, more...)
		var hooks []bundlefmt.Hook
		for _, e := range []bundlefmt.HookEvent{bundlefmt.PreInstall, bundlefmt.PostUpgrade, bundlefmt.PreRollback} {
			hooks = append(hooks, bundlefmt.Hook{Object: len(objects), Events: []bundlefmt.HookEvent{e}})
			objects = append(objects, s.configMap("hook-"+string(e), v))
		}
		b := h.sealWith(bundlefmt.Handling{Hooks: hooks}, objects...)
		h.put(s.c, "", b)
		return b
	}
	hooks := func(what string, want ...string) {
		t.Helper()
		list, err := s.kube.Resource(configMaps).Namespace(s.ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, u := range list.Items {
			if n, ok := strings.CutPrefix(u.GetName(), "hook-"); ok {
				v, _, _ := unstructured.NestedString(u.Object, "data", "v")
				got = append(got, n+"="+v)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: hooks that ran: %v, want %v", what, got, want)
		}
	}
	one := bundle("1")
	h.order(s.c, 1, entry("web", 1, one, rollback))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)
	hooks("install", "pre-install=1")
	s.edit("a", "x")
	s.awaitValue("a", "1")
	s.halt()
	s.start()
	s.edit("a", "x")
	s.awaitValue("a", "1")
	hooks("repair", "pre-install=1")
	h.order(s.c, 2, entry("web", 2, bundle("2"), rollback))
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	hooks("upgrade", "post-upgrade=2", "pre-install=1")
	h.order(s.c, 3, entry("web", 3, bundle("3", s.stuckWorkload("app")), rollback))
	h.awaitState(s.c, "web", 2, bundlefmt.RolledBack)
	hooks("rollback", "post-upgrade=2", "pre-install=1", "pre-rollback=2") // what comes after an upgrade waits until it is ready
	// Only the policy changes: no moment either; with another ForceSync it is one.
	s.awaitValue("a", "2")
	h.order(s.c, 4, entry("web", 4, one, fix))
	h.awaitState(s.c, "web", 4, bundlefmt.Ready)
	hooks("another upgrade", "post-upgrade=1", "pre-install=1", "pre-rollback=2")
	forced := fix
	forced.ForceSync = 1
	if err := s.kube.Resource(configMaps).Namespace(s.ns).Delete(t.Context(), "hook-post-upgrade", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	h.order(s.c, 5, entry("web", 5, one, rollback))
	h.awaitState(s.c, "web", 5, bundlefmt.Ready)
	hooks("another policy", "pre-install=1", "pre-rollback=2")
	h.order(s.c, 6, entry("web", 6, one, forced))
	h.awaitState(s.c, "web", 6, bundlefmt.Ready)
	hooks("forced", "post-upgrade=1", "pre-install=1", "pre-rollback=2")
}
