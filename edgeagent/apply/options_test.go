package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"shoal.dev/shoal/internal/kubetest"
)

var (
	roles           = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"}
	rolebindings    = schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"}
	networkPolicies = schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}
)

// living makes the site's namespace the agent's own.
func (s *site) living() {
	s.a.o.Namespace = s.ns
}

// account makes a service account that may write ConfigMaps.
func (s *site) account(name string) {
	s.Helper()
	s.create(serviceAccounts, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: "+name+"}")
	s.create(roles, "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: "+name+"}\nrules: [{apiGroups: [\"\"], resources: [configmaps], verbs: [get, create, patch, delete]}]")
	s.create(rolebindings, "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: "+name+"}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: "+name+"}\nsubjects: [{kind: ServiceAccount, name: "+name+"}]")
}

const secretYAML = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {k: hunter2}"

func TestWrittenWithTheRightsOfAnAccount(t *testing.T) {
	s := newSite(t)
	s.living()
	d := s.deployment("tenanted", configMap("a", "1")+"\n---\n"+secretYAML)
	d.Policy.ServiceAccount = "tenant"
	f := s.errorOf(s.try(d, nil), "a")
	if f.Reason != NoAccount {
		t.Errorf("got %v", f)
	}
	contains(t, f.Message, `service account "tenant" does not exist in namespace "`+s.ns+`"`)

	s.account("tenant")
	var res Result
	kubetest.Wait(t, "the role to work", func(context.Context) error {
		if res = s.try(d, nil); s.get(configMaps, "a") == nil {
			return res.Err()
		}
		return nil
	})
	f = s.errorOf(res, "s")
	if len(res.Errors) != 1 || f.Reason != Forbidden {
		t.Errorf("got %v", res.Errors)
	}
	contains(t, f.Message, `User "system:serviceaccount:`+s.ns+`:tenant" cannot patch resource "secrets"`)
	// Looking is the agent's own right, comparing is writing.
	s.edit(configMaps, "a", `{"data":{"v":"2"}}`)
	only := s.deployment("tenanted", configMap("a", "1"))
	only.Policy.ServiceAccount = "tenant"
	contains(t, s.modified(only).Message, `data.v: "2" → "1"`)
	// The tenant is cleaned away, account first: what carries the label goes all the same, and no hook runs with the agent's rights.
	s.delete(serviceAccounts, "tenant")
	only = s.hooks(only, "pre-delete 0 |"+secretYAML, "post-delete 0 |"+configMap("last", "1"))
	if r, err := s.a.Remove(t.Context(), only, res.Inventory, false); err != nil || len(r.Remaining) != 0 || s.get(configMaps, "a") != nil || len(r.Deleted) != 1 || !strings.Contains(r.Note, "hooks of the removal were not run") {
		t.Errorf("got %+v, %v", r, err)
	}
}

// The site bounds what the hub can do by an account for everything that names none; only the agent itself is not bound.
func TestDefaultAccount(t *testing.T) {
	s := newSite(t)
	s.living()
	s.account(DefaultAccount)
	var res Result
	kubetest.Wait(t, "the role to work", func(context.Context) error {
		if res = s.try(s.deployment("x", configMap("a", "1")+"\n---\n"+secretYAML), nil); s.get(configMaps, "a") == nil {
			return res.Err()
		}
		return nil
	})
	contains(t, s.errorOf(res, "s").Message, DefaultAccount, "cannot patch")
	s.apply(s.deployment(AgentDeployment, secretYAML), nil)
	// Nor does a bundle get around it by asking for the agent's own account.
	s.create(serviceAccounts, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: agent, labels: {"+AgentLabel+": \"true\"}}")
	d := s.deployment("y", configMap("b", "1"))
	d.Policy.ServiceAccount = "agent"
	if f := s.errorOf(s.try(d, nil), "b"); f.Reason != NoAccount || !strings.Contains(f.Message, "is the agent's own") {
		t.Errorf("got %v", f)
	}
}

func TestInstallDoesNotTakeWhatIsThere(t *testing.T) {
	s := newSite(t)
	s.create(configMaps, configMap("a", "by hand"))
	d := s.deployment("x", configMap("a", "1")+"\n---\n"+configMap("b", "1"))
	d.Operation = Install
	res := s.try(d, nil)
	f := s.errorOf(res, "a")
	if f.Reason != NobodysObject || len(res.Inventory) != 1 || s.get(configMaps, "b") == nil {
		t.Errorf("got %v, inventory %v", res.Errors, res.Inventory)
	}
	contains(t, f.Message, "belongs to no bundle", "helm.takeOwnership: true")
	// What the agent has written before is its own, although somebody took the label off.
	s.edit(configMaps, "b", `{"metadata":{"labels":null}}`)
	d.Policy.TakeOwnership = true
	s.apply(d, nil)
	if owner(s.get(configMaps, "a")) != "x" || owner(s.get(configMaps, "b")) != "x" {
		t.Error("not taken over")
	}
	d.Policy.TakeOwnership = false
	s.edit(configMaps, "a", `{"metadata":{"labels":null}}`)
	s.apply(d, nil)
}

// A namespace that is there already is shared, not foreign.
func TestInstallTakesANamespace(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", "apiVersion: v1\nkind: Namespace\nmetadata: {name: NS}")
	d.Operation = Install
	s.apply(d, nil)
}

func TestForceRecreatesInAnUpgrade(t *testing.T) {
	s := newSite(t)
	inv := s.apply(s.deployment("x", job), nil).Inventory
	d := s.deployment("x", strings.Replace(job, "c:1", "c:2", 1))
	d.Operation = Upgrade
	if f := s.errorOf(s.try(d, inv), "j"); f.Reason != Immutable {
		t.Errorf("got %v", f)
	}
	d.Policy.Force = true
	s.apply(d, inv)
	// A repair is another matter.
	d = s.deployment("x", job)
	d.Policy.Force = true
	if f := s.errorOf(s.try(d, inv), "j"); f.Reason != Immutable {
		t.Errorf("got %v", f)
	}
}

func many(n int, from string) string {
	var docs []string
	for i := range n {
		docs = append(docs, configMap(fmt.Sprintf("%s%d", from, i), "1"))
	}
	return strings.Join(docs, "\n---\n")
}

// A values file that went missing must not empty a site.
func TestPruneOfUnusualSizeIsHeld(t *testing.T) {
	s := newSite(t)
	inv := s.apply(s.deployment("x", many(12, "a")), nil).Inventory
	next := s.deployment("x", many(13, "b"))
	next.Operation = Upgrade
	for try := range 3 { // what is new must not make the share smaller when the release is applied again
		if try == 2 { // by an agent that was told how large the release before was
			s.a = newApplier(t, s.cfg)
			next.Was = 12
		}
		res := s.apply(next, inv)
		if res.Held == nil || len(res.Pruned) != 0 || len(res.Inventory) != 25 {
			t.Fatalf("want the prune held, got %v, pruned %v, %d in the inventory", res.Held, res.Pruned, len(res.Inventory))
		}
		contains(t, res.Held.Message, "would delete 12 of 12 objects", "kubectl annotate bundles.shoal.dev")
		inv = res.Inventory
	}
	next.Policy.ConfirmPrune = true
	if res := s.apply(next, inv); res.Held != nil || len(res.Pruned) != 12 {
		t.Errorf("got %v, %v", res.Held, res.Pruned)
	}
	// Half of it, or less than ten, is how releases are.
	next = s.deployment("x", many(7, "b"))
	if res := s.apply(next, inv); res.Held != nil || len(res.Pruned) != 6 {
		t.Errorf("got %v, %v", res.Held, res.Pruned)
	}
}

func TestWhatTheAgentLivesBy(t *testing.T) {
	s := newSite(t)
	s.living()
	policy := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}"
	own := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: own, labels: {shoal.dev/agent: \"true\"}}\ndata: {v: \"1\"}"
	agent := s.deployment(AgentDeployment, own+"\n---\n"+policy+"\n---\n"+configMap("plain", "1"))
	inv := s.apply(agent, nil).Inventory

	res := s.try(s.deployment("thief", configMap("own", "2")+"\n---\n"+policy+"\n---\n"+strings.Replace(own, "name: own", "name: other", 1)), nil)
	if len(res.Errors) != 3 || len(res.Inventory) != 0 {
		t.Errorf("got %v, inventory %v", res.Errors, res.Inventory)
	}
	contains(t, s.errorOf(res, "other").Message, "shoal.dev/agent")
	// By hand the label of the deployment is gone: it is still the agent's.
	s.edit(configMaps, "own", `{"metadata":{"labels":{"shoal.dev/deployment":null}}}`)
	s.edit(networkPolicies, "p", `{"metadata":{"labels":{"shoal.dev/deployment":null}}}`)
	thief := s.deployment("thief", configMap("own", "2")+"\n---\n"+policy)
	thief.Policy.TakeOwnership = true
	res = s.try(thief, nil)
	if f := s.errorOf(res, "own"); f.Reason != Protected {
		t.Errorf("got %v", f)
	}
	contains(t, s.errorOf(res, "own").Message, `only the deployment "shoal-agent" may change it`)
	contains(t, s.errorOf(res, "p").Message, "could cut the agent off")

	// The agent's own release changes it and never deletes it.
	agent = s.deployment(AgentDeployment, strings.Replace(own, `v: "1"`, `v: "2"`, 1)+"\n---\n"+policy+"\n---\n"+configMap("plain", "1"))
	inv = s.apply(agent, inv).Inventory
	if got := value2(s.get(configMaps, "own"), "data", "v"); got != `"2"` {
		t.Errorf("got %s", got)
	}
	res = s.apply(s.deployment(AgentDeployment, configMap("new", "1")), inv)
	if s.get(configMaps, "own") == nil || len(res.Kept) != 1 || res.Kept[0].Reason != Protected {
		t.Errorf("kept %v", res.Kept)
	}
	r, err := s.a.Remove(t.Context(), s.deployment(AgentDeployment, own), res.Inventory, false)
	if err != nil || len(r.Remaining) != 0 || s.get(configMaps, "own") == nil {
		t.Errorf("got %+v, %v", r, err)
	}
}

// The agent's own chart makes the Secret that the agent fills: neither takes the other's fields away.
func TestIdentityInASecretOfTheAgentsBundle(t *testing.T) {
	s := newSite(t)
	s.living()
	d := s.deployment(AgentDeployment, "apiVersion: v1\nkind: Secret\nmetadata: {name: id, labels: {shoal.dev/agent: \"true\", v: \"1\"}}")
	inv := s.apply(d, nil).Inventory
	if err := s.a.PutIdentity(t.Context(), "id", []byte("key")); err != nil {
		t.Fatal(err)
	}
	s.clean(d)
	d = s.deployment(AgentDeployment, "apiVersion: v1\nkind: Secret\nmetadata: {name: id, labels: {shoal.dev/agent: \"true\", v: \"2\"}}")
	s.apply(d, inv)
	if b, err := s.a.Identity(t.Context(), "id"); err != nil || string(b) != "key" {
		t.Errorf("got %q, %v", b, err)
	}
}

const keep = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: NAME, annotations: {helm.sh/resource-policy: keep}}"

func TestResourcePolicyKeep(t *testing.T) {
	s := newSite(t)
	two := strings.Replace(keep, "NAME", "a", 1) + "\n---\n" + strings.Replace(keep, "NAME", "b", 1)
	inv := s.apply(s.deployment("x", two+"\n---\n"+configMap("c", "1")), nil).Inventory
	res := s.apply(s.deployment("x", strings.Replace(keep, "NAME", "a", 1)), inv)
	if len(res.Pruned) != 1 || len(res.Kept) != 1 || len(res.Inventory) != 1 {
		t.Errorf("pruned %v, kept %v, inventory %v", res.Pruned, res.Kept, res.Inventory)
	}
	r := s.removeAll("x", res.Inventory)
	if len(r.Kept) != 1 || owner(s.get(configMaps, "a")) != "" || owner(s.get(configMaps, "b")) != "" {
		t.Errorf("got %+v", r)
	}
}

// What a removal leaves unless it is said explicitly.
func TestRemovalOfWhatHasContent(t *testing.T) {
	s := newSite(t)
	crd := "widgets." + s.ns + ".example.com"
	s.deleteCRD(crd)
	const claim = "\n---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data, namespace: NS-sub}\nspec: {accessModes: [ReadWriteOnce], storageClassName: none, volumeName: pv, resources: {requests: {storage: 1Gi}}}"
	d := s.deployment("x", operator+claim)
	d.Policy.Namespace = s.ns + "-sub"
	inv := s.apply(d, nil).Inventory
	sub := *s
	sub.ns = s.ns + "-sub"
	s.create(s.widgets(), strings.ReplaceAll("apiVersion: NS.example.com/v1\nkind: Widget\nmetadata: {name: own}", "NS", s.ns))
	sub.create(configMaps, configMap("by-hand", "1"))
	other := s.deployment("other", configMap("others", "1"))
	other.Policy.Namespace = sub.ns
	oinv := s.apply(other, nil).Inventory

	d.Policy.DeleteCRDs, d.Policy.DeleteNamespace, d.Policy.DeleteVolumes = true, true, true
	remove := func(refs []Ref) (all []Finding) {
		kubetest.Wait(t, "removal", func(ctx context.Context) error {
			r, err := s.a.Remove(ctx, d, refs, false)
			refs, all = r.Refs(), append(all, r.Kept...)
			if err == nil && len(refs) > 0 {
				err = fmt.Errorf("remaining %v", r.Remaining)
			}
			return err
		})
		return all
	}
	kept := remove(inv)
	if !slices.ContainsFunc(kept, func(f Finding) bool {
		return f.Ref.Kind == "Namespace" && strings.Contains(f.Message, `configmaps "others" is in it`)
	}) {
		t.Errorf("another deployment is in the namespace; kept %v", kept)
	}
	if sub.get(claims, "data") != nil && sub.get(claims, "data").GetDeletionTimestamp() == nil {
		t.Error("the claim was to go")
	}
	if _, err := s.hand.Resource(crds).Get(t.Context(), crd, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the CRD was to go with its objects: %v", err)
	}
	s.removeAll("other", oinv)
	if kept := remove(nil); len(kept) != 0 {
		t.Errorf("kept %v", kept)
	}
	if _, err := s.hand.Resource(namespaces).Get(t.Context(), sub.ns, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace was to go with what is in it: %v", err)
	}
}

func TestNamespaceLabelsAndAnnotations(t *testing.T) {
	s := newSite(t)
	s.living()
	ns := s.ns + "-new"
	t.Cleanup(func() { _ = s.hand.Resource(namespaces).Delete(context.Background(), ns, metav1.DeleteOptions{}) })
	d := s.deployment("x", configMap("a", "1"))
	d.Policy.Namespace = ns
	d.Handling.NamespaceLabels = map[string]string{"team": "a"}
	d.Handling.NamespaceAnnotations = map[string]string{"note": "b"}
	s.apply(d, nil)
	_, err := s.hand.Resource(namespaces).Patch(t.Context(), ns, types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"extra":"1","team":"z","pod-security.kubernetes.io/enforce":"baseline"},"annotations":{"extra":"1"}}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.Handling.NamespaceLabels["more"] = "c"
	used := s.a.Requests()
	s.apply(d, nil)
	s.apply(d, nil)
	if n := s.a.Requests().Sub(used).Write; n != 1 {
		t.Errorf("%d writes, want one", n)
	}
	u, err := s.hand.Resource(namespaces).Get(t.Context(), ns, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"kubernetes.io/metadata.name": ns, "pod-security.kubernetes.io/enforce": "baseline", "team": "a", "more": "c"}
	if diff := cmp.Diff(want, u.GetLabels()); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"note": "b"}, u.GetAnnotations()); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
}

// A status that moves costs nothing while the watch stands; an edit of what is watched by metadata alone costs one read.
func TestRestCostsNothing(t *testing.T) {
	s := newSite(t)
	c := s.watch()
	mark, d := s.deployment("mark", configMap("mark", "1")), s.deployment("web", web)
	s.apply(mark, nil)
	s.apply(d, nil)
	s.ready(d)
	s.told(c, "web", 0)
	s.settled(c, mark)
	kubetest.Wait(t, "everything to be known", func(context.Context) error {
		used := s.a.Requests()
		s.clean(d)
		if n := s.a.Requests().Sub(used).Total(); n != 0 {
			return fmt.Errorf("%d requests", n)
		}
		return nil
	})
	status := func(value string) {
		n := c.count("web")
		_, err := s.hand.Resource(deployments).Namespace(s.ns).Patch(t.Context(), "web", types.MergePatchType,
			[]byte(`{"status":{"conditions":[{"type":"Odd","status":"`+value+`"}]}}`), metav1.PatchOptions{}, "status")
		if err != nil {
			t.Fatal(err)
		}
		s.told(c, "web", n)
	}
	used := s.a.Requests()
	for i := range 5 {
		status([]string{"True", "False"}[i%2])
		s.check(d)
	}
	if got := s.a.Requests().Sub(used); got.Total() != 0 {
		t.Errorf("five changes of a status cost %+v, want nothing", got)
	}
	s.ready(d)
	used = s.a.Requests()
	n := c.count("web")
	s.edit(configMaps, "web", `{"data":{"mode":"loud"}}`)
	s.told(c, "web", n)
	contains(t, s.modified(d).Message, `"loud" → "quiet"`)
	if got := s.a.Requests().Sub(used); got.Read != 1 || got.DryRun != 1 {
		t.Errorf("an edit costs %+v, want one read and one dry run", got)
	}
	n = c.count("web")
	s.delete(deployments, "web")
	s.told(c, "web", n)
	if st := s.check(d); st.Missing != 1 {
		t.Errorf("a deleted object is remembered: %+v", st)
	}
	s.apply(d, nil)
	s.ready(d)
	s.clean(d)
}

// What the watch has to say of an object that was deleted comes after what a reader found, or before.
func TestMemoryForgetsWhatIsGone(t *testing.T) {
	var tr tracked
	tr.init()
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "a", "resourceVersion": "9", "uid": "1", "labels": map[string]any{Label: "x"}}}}
	o := &object{ref: Ref{Name: "a"}, kind: kind{gvr: deployments}, want: u, live: u, asked: [32]byte{1}}
	there := func() bool { live, known := tr.recall(o); return live != nil || known }
	tr.saw(deployments, u)
	if there() {
		t.Error("remembered without a watch")
	}
	tr.stands(deployments)
	tr.saw(deployments, u)
	if there() {
		t.Error("remembered although the watch has not told of it: it may be gone")
	}
	tr.news(deployments, "ADDED", u)
	if !there() {
		t.Error("not remembered")
	}
	tr.settled(o)
	if _, known := tr.recall(o); !known {
		t.Error("not known to be fine")
	}
	old := u.DeepCopy()
	old.SetResourceVersion("8")
	tr.news(deployments, "MODIFIED", old)
	if _, known := tr.recall(o); !known {
		t.Error("an event from before counts")
	}
	u10 := u.DeepCopy()
	u10.SetResourceVersion("10")
	tr.news(deployments, "MODIFIED", u10)
	if live, known := tr.recall(o); known || live.GetResourceVersion() != "10" {
		t.Error("an event does not count")
	}
	tr.over(deployments)
	if there() {
		t.Error("remembered after the watch")
	}
}
