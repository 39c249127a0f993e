package edgeagent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/kubetest"
	"shoal.dev/shoal/topics"
)

// objectsThatMove are of the kinds that hurt when they are made again.
func (s *site) objectsThatMove() []string {
	return []string{
		s.workload("app"), s.configMap("a", "1"),
		fmt.Sprintf(`{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":"data","namespace":%q},"spec":{"accessModes":["ReadWriteOnce"],"storageClassName":"none","volumeName":"pv","resources":{"requests":{"storage":"1Gi"}}}}`, s.ns),
		fmt.Sprintf(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"%s-sub"}}`, s.ns),
		fmt.Sprintf(`{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"movers.%[1]s.example.com"},"spec":{"group":"%[1]s.example.com","names":{"kind":"Mover","plural":"movers","singular":"mover"},"scope":"Namespaced","versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}`, s.ns),
		fmt.Sprintf(`{"apiVersion":"%s.example.com/v1","kind":"Mover","metadata":{"name":"m","namespace":%q}}`, s.ns, s.ns),
	}
}

// moving is what runs of these: name, UID and the deployment that has it. Pods are among them.
func (s *site) moving() map[string]string {
	s.t.Helper()
	out := map[string]string{}
	get := func(r schema.GroupVersionResource, ns, name string) {
		u, err := s.kube.Resource(r).Namespace(ns).Get(s.t.Context(), name, metav1.GetOptions{})
		if err != nil {
			s.t.Fatal(err)
		}
		out[r.Resource+"/"+name] = string(u.GetUID()) + " " + u.GetLabels()["shoal.dev/deployment"]
		if u.GetDeletionTimestamp() != nil {
			s.t.Errorf("%s %s is being deleted", r.Resource, name)
		}
	}
	get(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, s.ns, "app")
	get(configMaps, s.ns, "a")
	get(schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}, s.ns, "data")
	get(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, "", s.ns+"-sub")
	get(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}, "", "movers."+s.ns+".example.com")
	get(schema.GroupVersionResource{Group: s.ns + ".example.com", Version: "v1", Resource: "movers"}, s.ns, "m")
	pods, err := s.kube.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).Namespace(s.ns).List(s.t.Context(), metav1.ListOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range pods.Items {
		out["pods/"+p.GetName()] = string(p.GetUID()) + " "
	}
	return out
}

// moved waits until deployment heir has everything, and checks that nothing was made again.
func (s *site) moved(before map[string]string, heir string) {
	s.t.Helper()
	kubetest.Wait(s.t, "everything to belong to "+heir, func(context.Context) error {
		for what, is := range s.moving() {
			uid, had, _ := strings.Cut(before[what], " ")
			now, has, _ := strings.Cut(is, " ")
			if now != uid {
				s.t.Fatalf("%s was made again: %s, before %s", what, is, before[what])
			}
			if had != "" && has != heir {
				return fmt.Errorf("%s belongs to %q", what, has)
			}
		}
		return nil
	})
	if now := s.moving(); len(now) != len(before) {
		s.t.Errorf("before %v, now %v", before, now)
	}
}

// Objects change bundles: one bundle drops them, another one states them, in one document or the heir first. Nothing is deleted.
func TestObjectsMoveBetweenBundles(t *testing.T) {
	for name, c := range map[string]struct {
		renamed    bool // the old bundle goes altogether
		heirFirst  bool // it is ordered in a document before
		keepsOther bool // the old bundle waits for the heir to be ready
	}{
		"one document":                  {},
		"renamed":                       {renamed: true},
		"the heir is there before":      {heirFirst: true},
		"renamed, the new one first":    {renamed: true, heirFirst: true},
		"the old one waits for the new": {keepsOther: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHub(t)
			s := newSite(t, h, "store-1")
			s.start()
			t.Cleanup(func() {
				ctx := context.Background()
				_ = s.kube.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}).Delete(ctx, "movers."+s.ns+".example.com", metav1.DeleteOptions{})
				_ = s.kube.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}).Delete(ctx, s.ns+"-sub", metav1.DeleteOptions{})
			})
			all, rest := h.seal(append(s.objectsThatMove(), s.configMap("rest", "1"))...), h.seal(s.configMap("rest", "1"))
			heir := h.seal(append(s.objectsThatMove(), s.configMap("new", "1"))...)
			for _, b := range []bundlefmt.Sealed{all, rest, heir} {
				h.put(s.c, "", b)
			}
			h.order(s.c, 1, entry("old", 1, all, fix))
			h.awaitState(s.c, "old", 1, bundlefmt.NotReady) // no volume, so its claim is pending
			kubetest.Wait(t, "a Pod", func(context.Context) error {
				for what := range s.moving() {
					if strings.HasPrefix(what, "pods/") {
						return nil
					}
				}
				return fmt.Errorf("none")
			})
			if _, err := s.kube.Resource(configMaps).Namespace(s.ns+"-sub").Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "content"}}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			before := s.moving()
			serial := bundlefmt.Serial(2)
			if c.heirFirst {
				h.order(s.c, 2, entry("old", 1, all, fix), entry("new", 2, heir, fix))
				h.awaitMessage(s.c, "new", bundlefmt.ErrApplied, `belongs to deployment "old"`)
				serial = 3
			}
			p := fix
			if c.keepsOther {
				p.DependsOn = []bundlefmt.Dependency{{Name: "new", States: []bundlefmt.State{bundlefmt.NotReady, bundlefmt.Ready}}}
			}
			if c.renamed {
				h.publish(prefix.Desired(s.c), h.document(s.c, serial, func(d *bundlefmt.Desired) {
					d.Remove = []bundlefmt.Removal{{Name: "old", Serial: serial}}
				}, entry("new", 2, heir, fix)))
			} else {
				h.order(s.c, serial, entry("old", serial, rest, p), entry("new", 2, heir, fix))
				h.awaitState(s.c, "old", serial, bundlefmt.Ready)
			}
			s.moved(before, "new")
			h.awaitState(s.c, "new", 2, bundlefmt.NotReady)
			if c.renamed {
				h.awaitReport(s.c, "old to be gone", func(r *bundlefmt.Reported) bool { _, ok := of(r, "old"); return !ok })
				if got := fmt.Sprint(s.names()); got != "[a new]" {
					t.Errorf("there are %s", got)
				}
			}
			s.moved(before, "new")
		})
	}
}

// What a bundle still states is not given to another one, however often that one tries.
func TestObjectsThatAreStatedStay(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	two, one := h.seal(s.configMap("a", "1"), s.configMap("b", "1")), h.seal(s.configMap("a", "1"))
	thief := h.seal(s.configMap("a", "2"), s.configMap("own", "2"))
	for _, b := range []bundlefmt.Sealed{two, one, thief} {
		h.put(s.c, "", b)
	}
	h.order(s.c, 1, entry("old", 1, two, fix))
	h.awaitState(s.c, "old", 1, bundlefmt.Ready)
	h.order(s.c, 2, entry("old", 2, one, fix), entry("new", 2, thief, fix))
	h.awaitState(s.c, "old", 2, bundlefmt.Ready)
	h.awaitMessage(s.c, "new", bundlefmt.ErrApplied, `belongs to deployment "old"`)
	s.awaitValue("own", "2")
	s.awaitValue("a", "1")
	// A paused bundle keeps what it has, although its next release drops it.
	paused := fix
	paused.Paused = true
	rest := h.seal(s.configMap("rest", "1"))
	h.put(s.c, "", rest)
	h.order(s.c, 3, entry("old", 3, rest, paused), entry("new", 3, thief, fix))
	h.awaitMessage(s.c, "old", bundlefmt.Held, "paused")
	h.awaitMessage(s.c, "new", bundlefmt.ErrApplied, `belongs to deployment "old"`)
	s.awaitValue("a", "1")
	h.order(s.c, 4, entry("old", 4, rest, fix), entry("new", 3, thief, fix))
	h.awaitState(s.c, "old", 4, bundlefmt.Ready)
	h.awaitState(s.c, "new", 3, bundlefmt.Ready)
	s.awaitValue("a", "2")
}

// As long as the bundle of another deployment is not here, nobody can tell whether that takes over what is dropped.
func TestDeletionWaitsForTheBundlesOrderedWithIt(t *testing.T) {
	h, s, _ := installed(t, fix)
	heir, empty := h.seal(s.configMap("a", "1"), s.configMap("new", "1")), h.seal(s.configMap("b", "1"))
	h.mu.Lock()
	delete(h.parts, heir.Digest.Short())
	h.mu.Unlock()
	h.put(s.c, "", empty)
	uid := s.uid("a")
	h.order(s.c, 2, entry("web", 2, empty, fix), entry("new", 2, heir, fix))
	h.awaitMessage(s.c, "web", bundlefmt.WaitApplied, `waits for the bundle of "new"`)
	s.awaitValue("b", "1")
	h.mu.Lock()
	h.parts[heir.Digest.Short()] = heir.Parts
	h.mu.Unlock()
	h.put(s.c, "", heir)
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	h.awaitState(s.c, "new", 2, bundlefmt.Ready)
	if got := s.uid("a"); got != uid {
		t.Errorf("it was made again")
	}
}

// awaitMessage waits for a state and what is said of it, whatever release is applied.
func (h *hub) awaitMessage(c topics.Cluster, name string, st bundlefmt.State, part string) {
	h.t.Helper()
	h.awaitReport(c, fmt.Sprintf("%s %s with %q", name, st, part), func(r *bundlefmt.Reported) bool {
		d, ok := of(r, name)
		return ok && d.State == st && strings.Contains(d.Message, part)
	})
}

func (s *site) uid(name string) string {
	s.t.Helper()
	u, err := s.kube.Resource(configMaps).Namespace(s.ns).Get(s.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return string(u.GetUID())
}
