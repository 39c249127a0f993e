package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"shoal.dev/shoal/internal/kubetest"
)

func TestPruneTakesOnlyWhatIsOurs(t *testing.T) {
	s := newSite(t)
	inv := s.apply(s.deployment("x", configMap("stay", "1")+"\n---\n"+configMap("go", "1")+"\n---\n"+configMap("given-away", "1")+"\n---\n"+configMap("gone", "1")), nil).Inventory
	s.apply(s.deployment("other", configMap("others", "1")), nil)
	s.create(configMaps, configMap("nobodys", "1"))
	s.edit(configMaps, "given-away", `{"metadata":{"labels":{"shoal.dev/deployment":null}}}`)
	s.delete(configMaps, "gone")
	// The inventory is wrong on purpose: labels decide.
	for _, name := range []string{"others", "nobodys"} {
		inv = append(inv, Ref{Version: "v1", Kind: "ConfigMap", Namespace: s.ns, Name: name})
	}
	res := s.apply(s.deployment("x", configMap("stay", "1")), inv)
	if len(res.Pruned) != 1 || res.Pruned[0].Name != "go" || len(res.Inventory) != 1 {
		t.Errorf("pruned %v, inventory %v", res.Pruned, res.Inventory)
	}
	for name, want := range map[string]bool{"stay": true, "go": false, "given-away": true, "others": true, "nobodys": true} {
		if got := s.get(configMaps, name) != nil; got != want {
			t.Errorf("%s is there: %v, want %v", name, got, want)
		}
	}
}

// An object that another deployment is ordered to have is given to it; until it is known who that is, nothing is deleted; and what is
// given away is no deletion that had to be confirmed.
func TestPruneGivesAway(t *testing.T) {
	s := newSite(t)
	inv := s.apply(s.deployment("giver", many(12, "a")+"\n---\n"+configMap("go", "1")), nil).Inventory
	next := s.deployment("giver", configMap("stay", "1"))
	next.Operation = Upgrade
	wait := "waits for somebody"
	next.Heir = func(_ context.Context, r Ref) (string, string, error) {
		if r.Name == "go" {
			return "", wait, nil
		}
		return "heir", "", nil
	}
	res := s.try(next, inv)
	if len(res.Errors) != 1 || res.Errors[0].Reason != Awaited || owner(s.get(configMaps, "a0")) != "giver" || s.get(configMaps, "go") == nil || len(res.Inventory) != 14 {
		t.Errorf("got %v, inventory %v", res.Errors, res.Inventory)
	}
	wait = ""
	res = s.apply(next, res.Inventory)
	if res.Held != nil || len(res.Pruned) != 1 || len(res.Kept) != 12 || len(res.Inventory) != 1 || owner(s.get(configMaps, "a0")) != "heir" {
		t.Errorf("held %v, pruned %v, kept %v, inventory %v", res.Held, res.Pruned, res.Kept, res.Inventory)
	}
	r, err := s.a.Remove(t.Context(), Deployment{Name: "giver", Heir: next.Heir}, res.Inventory, false)
	if err != nil || len(r.Deleted) != 0 || len(r.Kept) != 1 || owner(s.get(configMaps, "stay")) != "heir" {
		t.Errorf("got %+v, %v", r, err)
	}
}

// An empty previous prunes nothing, whatever carries our label: absence deletes nothing.
func TestLostInventoryPrunesNothing(t *testing.T) {
	s := newSite(t)
	s.apply(s.deployment("x", configMap("a", "1")+"\n---\n"+configMap("b", "1")), nil)
	if res := s.apply(s.deployment("x", configMap("a", "1")), nil); len(res.Pruned) != 0 || s.get(configMaps, "b") == nil {
		t.Error("b was deleted although nobody named it")
	}
}

func TestAnotherVersionOfTheSameObjectIsNotPruned(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: h}\nspec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: w}}\n---\n"+
		"apiVersion: events.k8s.io/v1\nkind: Event\nmetadata: {name: e}\neventTime: 2026-11-22T00:00:00.000000Z\nreportingController: a\nreportingInstance: a\naction: a\nreason: a\ntype: Normal\nregarding: {kind: Pod, name: p, namespace: NS}")
	inv := s.apply(d, nil).Inventory
	inv[0].Version = "v1"
	inv[1].Group = "" // the core group serves the very same object
	res := s.apply(d, inv)
	if len(res.Pruned) != 0 || len(res.Written) != 0 {
		t.Errorf("pruned %v, written %v", res.Pruned, res.Written)
	}
	if s.get(autoscalerResource, "h") == nil {
		t.Error("the object was deleted under its other version")
	}
}

func TestPruneKeepsWhatHasContent(t *testing.T) {
	s := newSite(t)
	crd := "widgets." + s.ns + ".example.com"
	s.deleteCRD(crd)
	const claim = "\n---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: NAME}\nspec: {accessModes: [ReadWriteOnce], storageClassName: none, volumeName: VOLUME, resources: {requests: {storage: 1Gi}}}"
	all := operator + strings.NewReplacer("NAME", "bound", "VOLUME", "pv").Replace(claim) + strings.NewReplacer("NAME", "unbound", "VOLUME", `""`).Replace(claim)
	inv := s.apply(s.deployment("x", all), nil).Inventory
	// The site has put things of its own into what the bundle brought.
	s.create(s.widgets(), strings.ReplaceAll("apiVersion: NS.example.com/v1\nkind: Widget\nmetadata: {name: own}", "NS", s.ns))
	sub := *s
	sub.ns = s.ns + "-sub"
	sub.create(configMaps, configMap("own", "1"))

	last := s.deployment("x", configMap("stay", "1"))
	res := s.apply(last, inv)
	var kept []string
	for _, f := range res.Kept {
		if f.Reason != HasContent {
			t.Errorf("got %+v", f)
		}
		kept = append(kept, f.String())
	}
	slices.Sort(kept)
	if len(kept) != 3 || len(res.Inventory) != 1 {
		t.Fatalf("kept %q, inventory %v", kept, res.Inventory)
	}
	contains(t, kept[0], "CustomResourceDefinition", `widgets "own" exists`)
	contains(t, kept[1], "Namespace", `configmaps "own" is in it`)
	contains(t, kept[2], "bound", `volume "pv"`)
	if s.get(claims, "unbound") != nil || s.get(s.widgets(), "w") != nil || sub.get(configMaps, "inside") != nil {
		t.Error("what was ours and empty is still there")
	}
	// They are nobody's now: the next release does not look at them, and another bundle may have them.
	s.delete(s.widgets(), "own")
	sub.delete(configMaps, "own")
	if res = s.apply(last, res.Inventory); len(res.Pruned) != 0 || len(res.Kept) != 0 {
		t.Errorf("pruned %v, kept %v", res.Pruned, res.Kept)
	}
	heir := s.deployment("heir", all)
	heir.Operation = Install
	hinv := s.apply(heir, nil).Inventory
	t.Cleanup(func() { s.removeInBackground(heir, hinv) })
	s.clean(heir)
}

func (s *site) removeAll(name string, refs []Ref) Removed {
	s.Helper()
	var all Removed
	kubetest.Wait(s, name+" to be removed", func(ctx context.Context) error {
		r, err := s.a.Remove(ctx, Deployment{Name: name}, refs, false)
		if err != nil {
			return err
		}
		all.Deleted = append(all.Deleted, r.Deleted...)
		all.Kept = append(all.Kept, r.Kept...)
		if refs = r.Refs(); len(refs) > 0 {
			return fmt.Errorf("remaining: %v", r.Remaining)
		}
		return nil
	})
	return all
}

func TestRemoveLeavesOthersAndWaitsForPods(t *testing.T) {
	s := newSite(t)
	d := s.deployment("web", web)
	inv := s.apply(d, nil).Inventory
	s.ready(d)
	other := s.deployment("other", strings.ReplaceAll(web, "web", "other"))
	s.apply(other, nil)
	used := s.a.Requests()
	first, err := s.a.Remove(t.Context(), Deployment{Name: "web"}, inv, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("remove of %d objects: %+v", len(inv), s.a.Requests().Sub(used))
	if len(first.Deleted) != len(inv) || first.Deleted[0].Kind != "Deployment" {
		t.Errorf("deleted %v, want the reverse order", first.Deleted)
	}
	s.removeAll("web", first.Refs())
	pods, err := s.hand.Resource(configMaps.GroupVersion().WithResource("pods")).Namespace(s.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil || len(pods.Items) != 0 {
		t.Errorf("removed, but %d Pods are there: %v", len(pods.Items), err)
	}
	s.clean(other)
	s.removeAll("web", inv) // again: nothing to do
}

func TestRemoveGivesOperatorsTheirTime(t *testing.T) {
	s := newSite(t)
	crd := "widgets." + s.ns + ".example.com"
	s.deleteCRD(crd)
	d := s.deployment("op", operator)
	inv := s.apply(d, nil).Inventory
	s.edit(s.widgets(), "w", `{"metadata":{"finalizers":["example.com/operator"]}}`)
	first, err := s.a.Remove(t.Context(), Deployment{Name: "op"}, inv, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Remaining) != 4 || first.Remaining[0].Ref.Kind != "Widget" || len(first.Deleted) != 1 {
		t.Fatalf("got %+v", first)
	}
	contains(t, first.Remaining[0].Message, "is being deleted", "example.com/operator")
	contains(t, first.Remaining[1].Message, "waits until Widget")
	s.edit(s.widgets(), "w", `{"metadata":{"finalizers":null}}`)
	if got := s.removeAll("op", first.Refs()); len(got.Kept) != 0 {
		t.Errorf("kept %v", got.Kept)
	}
}

func TestRemoveKeepsResources(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", web)
	inv := s.apply(d, nil).Inventory
	res, err := s.a.Remove(t.Context(), Deployment{Name: "x"}, inv, true)
	if err != nil || len(res.Remaining) != 0 || len(res.Deleted) != 0 || len(res.Kept) != len(inv) {
		t.Fatalf("got %+v, %v", res, err)
	}
	u := s.get(deployments, "web")
	if _, has := u.GetLabels()[Label]; has || value2(u, "spec", "replicas") != "2" {
		t.Errorf("want everything but our label, got %v", u.Object)
	}
	// Another deployment may have it now.
	s.apply(s.deployment("heir", web), nil)
}

func TestRemoveNeverGuessesANamespace(t *testing.T) {
	s := newSite(t)
	res, err := s.a.Remove(t.Context(), Deployment{Name: "x"}, []Ref{{Version: "v1", Kind: "ConfigMap", Name: "a"}}, false)
	if err != nil || len(res.Remaining) != 1 {
		t.Errorf("got %+v, %v", res, err)
	}
}

// What holds a removal up is quoted: the finalizers of each object, the Pods of a workload, and what a namespace says of its
// content.
func TestStuckRemovalSaysWhatHoldsIt(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", configMap("a", "1")+"\n---\n"+configMap("b", "1")+"\n---\n"+strings.ReplaceAll(plainDeployment, "NAME", "web")+
		"\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: NS-sub}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: deep, namespace: NS-sub}")
	inv := s.apply(d, nil).Inventory
	s.ready(d)
	sub := *s
	sub.ns = s.ns + "-sub"
	hold := func(s *site, gvr schema.GroupVersionResource, name, by string) {
		s.edit(gvr, name, `{"metadata":{"finalizers":["`+by+`"]}}`)
		s.Cleanup(func() {
			_, _ = s.hand.Resource(gvr).Namespace(s.ns).Patch(context.Background(), name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		})
	}
	hold(s, configMaps, "a", "example.com/a")
	hold(s, configMaps, "b", "example.com/b")
	list, err := s.a.podsOf(t.Context(), s.ns, "app=web")
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	pod := list[0].GetName()
	hold(s, pods, pod, "example.com/pod")
	refs := inv
	look := func(what string, want map[string][]string) {
		t.Helper()
		kubetest.Wait(t, what, func(ctx context.Context) error {
			r, err := s.a.Remove(ctx, d, refs, false)
			if err != nil {
				return err
			}
			refs = r.Refs()
			said := map[string]string{}
			for _, f := range r.Remaining {
				said[f.Ref.Name] = f.Message
			}
			for name, parts := range want {
				for _, p := range parts {
					if !strings.Contains(said[name], p) {
						return fmt.Errorf("want %q of %s in %q", p, name, said)
					}
				}
			}
			return nil
		})
	}
	look("each object to say what it waits for", map[string][]string{
		"a": {"is being deleted since 20", "waiting for finalizers [example.com/a]"}, "b": {"waiting for finalizers [example.com/b]"},
		"web": {"waiting for finalizers [foregroundDeletion]", "1 Pods are still there: Pod " + pod, "waiting for finalizers [example.com/pod]"},
	})
	for _, name := range []string{"a", "b"} {
		s.edit(configMaps, name, `{"metadata":{"finalizers":null}}`)
	}
	s.edit(pods, pod, `{"metadata":{"finalizers":null}}`)
	// What others have in the namespace, and will not let go, comes when it is being deleted already.
	sub.create(configMaps, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: held, finalizers: [example.com/held], ownerReferences: [{apiVersion: v1, kind: Namespace, name: "+sub.ns+", uid: \"0\"}]}")
	hold(&sub, configMaps, "held", "example.com/held")
	look("the namespace to say what it waits for", map[string][]string{
		sub.ns: {"is being deleted since 20", "NamespaceFinalizersRemaining", "example.com/held in 1 resource instances"},
	})
	sub.edit(configMaps, "held", `{"metadata":{"finalizers":null}}`)
	s.removeAll("x", refs)
}
