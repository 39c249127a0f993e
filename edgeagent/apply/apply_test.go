package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"shoal.dev/shoal/internal/kubetest"
)

// A deployment is installed and becomes ready; applying it again, also by an agent that knows nothing, writes nothing.
func TestInstall(t *testing.T) {
	s := newSite(t)
	d := s.deployment("web", web)
	before := s.a.Requests()
	res := s.apply(d, nil)
	t.Logf("install of %d objects: %+v", len(d.Objects), s.a.Requests().Sub(before))
	if len(res.Written) != len(d.Objects) || len(res.Inventory) != len(d.Objects) {
		t.Fatalf("want all %d written and in the inventory, got %v and %v", len(d.Objects), res.Written, res.Inventory)
	}
	if ns := res.Inventory[0].Namespace; ns != s.ns {
		t.Errorf("inventory names namespace %q, want %q", ns, s.ns)
	}
	st := s.ready(d)
	if st.Total != len(d.Objects) || st.NotReady.Count != 0 {
		t.Errorf("got %+v", st)
	}
	s.clean(d)
	if got := owner(s.get(deployments, "web")); got != "web" {
		t.Errorf("label says %q", got)
	}
	versions := map[string]string{"cm": s.get(configMaps, "web").GetResourceVersion(), "secret": s.get(secrets, "web").GetResourceVersion(), "deployment": s.get(deployments, "web").GetResourceVersion()}

	for who, a := range map[string]*Applier{"same agent": s.a, "restarted agent": newApplier(t, s.cfg)} {
		before := a.Requests()
		res, err := a.Apply(t.Context(), d, res.Inventory)
		used := a.Requests().Sub(before)
		if err != nil || res.Err() != nil || len(res.Written) != 0 || used.Write != 0 {
			t.Errorf("%s: want nothing written, got %v, %v, %v, %+v", who, res.Written, err, res.Err(), used)
		}
		t.Logf("no-op apply, %s: %+v", who, used)
	}
	if s.get(configMaps, "web").GetResourceVersion() != versions["cm"] || s.get(secrets, "web").GetResourceVersion() != versions["secret"] || s.get(deployments, "web").GetResourceVersion() != versions["deployment"] {
		t.Error("a resource version moved")
	}
	used := s.a.Requests()
	s.clean(d)
	if got := s.a.Requests().Sub(used); got.DryRun != 0 || got.Write != 0 {
		t.Errorf("a check at rest costs %+v, want reads only", got)
	} else {
		t.Logf("check at rest: %+v", got)
	}
}

func TestUpdateChangesOnlyWhatDiffers(t *testing.T) {
	s := newSite(t)
	first := s.apply(s.deployment("web", web), nil)
	res := s.apply(s.deployment("web", strings.Replace(web, `mode: "quiet", other: "x"`, `mode: "loud"`, 1)), first.Inventory)
	if len(res.Written) != 1 || res.Written[0].Kind != "ConfigMap" {
		t.Fatalf("written: %v", res.Written)
	}
	if got := value2(s.get(configMaps, "web"), "data"); got != `{"mode":"loud"}` {
		t.Errorf("data is %s: a key that left the bundle must leave the object", got)
	}
}

func TestSecretKeyThatLeavesTheBundleLeavesTheSecret(t *testing.T) {
	s := newSite(t)
	secret := "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: "
	s.apply(s.deployment("x", secret+"{a: one, b: two}"), nil)
	s.apply(s.deployment("x", secret+"{a: one}"), nil)
	if got := value2(s.get(secrets, "s"), "data"); got != `{"a":"b25l"}` {
		t.Errorf("data is %s", got)
	}
}

func TestNamespaceIsCreatedAndNotOwned(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", configMap("a", "1"))
	d.Policy.Namespace = s.ns + "-new"
	d.Policy.NoCreateNamespace = true
	res := s.try(d, nil)
	f := s.errorOf(res, "a")
	if f.Reason != NoNamespace {
		t.Errorf("got %v", f)
	}
	contains(t, f.Message, s.ns+"-new", "does not exist")

	d.Policy.NoCreateNamespace = false
	s.apply(d, nil)
	ns, err := s.hand.Resource(namespaces).Get(t.Context(), s.ns+"-new", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if owner(ns) != "" {
		t.Error("the namespace carries our label: prune could take it")
	}
	_ = s.hand.Resource(namespaces).Delete(t.Context(), ns.GetName(), metav1.DeleteOptions{})
}

func TestForceNamespace(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: elsewhere}")
	d.Policy.ForceNamespace = true
	s.apply(d, nil)
	if s.get(configMaps, "a") == nil {
		t.Error("the object is not in the forced namespace")
	}
	d = s.deployment("y", configMap("b", "1")+`
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: NS-role}`)
	d.Policy.ForceNamespace = true
	res := s.try(d, nil)
	f := s.errorOf(res, s.ns+"-role")
	if f.Reason != ClusterScoped {
		t.Errorf("got %v", f)
	}
	contains(t, f.Message, "cluster-scoped", s.ns, "defaultNamespace")
	if s.get(configMaps, "b") != nil || len(res.Written) != 0 {
		t.Error("something was written although the bundle is refused")
	}
}

// The file order is the reverse of what works: the applier sorts it out.
const operator = `
apiVersion: NS.example.com/v1
kind: Widget
metadata: {name: w}
spec: {size: 1}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: inside, namespace: NS-sub}
---
apiVersion: v1
kind: Namespace
metadata: {name: NS-sub}
---
` + widgetCRD

const widgetCRD = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.NS.example.com}
spec:
  group: NS.example.com
  names: {kind: Widget, plural: widgets, singular: widget}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              size: {type: integer}
              colour: {type: string, default: blue}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
`

func (s *site) widgets() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: s.ns + ".example.com", Version: "v1", Resource: "widgets"}
}

func TestCRDAndItsObjectsInOneBundle(t *testing.T) {
	s := newSite(t)
	s.deleteCRD("widgets." + s.ns + ".example.com")
	if _, err := s.a.Facts(t.Context()); err != nil { // what the API server serves is cached by now
		t.Fatal(err)
	}
	d := s.deployment("op", operator)
	res := s.apply(d, nil)
	s.clean(d)
	if len(res.Written) != 4 || s.get(s.widgets(), "w") == nil {
		t.Fatalf("written %v", res.Written)
	}
	// The default that the CRD adds is no drift, a change of what the bundle states is.
	s.edit(s.widgets(), "w", `{"spec":{"size":7}}`)
	if f := s.modified(d); f.Message != "spec.size: 7 → 1" {
		t.Errorf("got %q", f.Message)
	}
	s.apply(d, res.Inventory)
	s.clean(d)
}

func TestUnknownKindUntilItsCRDComes(t *testing.T) {
	s := newSite(t)
	name := "widgets." + s.ns + ".example.com"
	s.deleteCRD(name)
	d := s.deployment("app", "apiVersion: NS.example.com/v1\nkind: Widget\nmetadata: {name: w}\nspec: {size: 1}\n---\n"+configMap("a", "1"))
	res := s.try(d, nil)
	f := s.errorOf(res, "w")
	if f.Reason != UnknownKind || s.get(configMaps, "a") == nil || len(res.Errors) != 1 {
		t.Fatalf("want one error and the rest applied, got %v", res.Errors)
	}
	contains(t, f.Message, `no matches for kind "Widget" in version "`+s.ns+`.example.com/v1"`, "is its CRD installed?")
	contains(t, res.Err().Error(), "Widget", "no matches for kind")
	if st := s.check(d); st.Missing != 1 || st.Ready != 1 {
		t.Errorf("check: %+v", st)
	}

	// Somebody else installs the CRD.
	if res, err := newApplier(t, s.cfg).Apply(t.Context(), s.deployment("crd", widgetCRD), nil); err != nil || res.Err() != nil {
		t.Fatal(err, res.Err())
	}
	kubetest.Wait(t, "the kind to be served", func(ctx context.Context) error {
		res, err := s.a.Apply(ctx, d, nil)
		return errors.Join(err, res.Err())
	})
	s.clean(d)

	// The right kind in a version that is not served names those that are.
	d = s.deployment("app", "apiVersion: NS.example.com/v2\nkind: Widget\nmetadata: {name: w}")
	f = s.errorOf(s.try(d, nil), "w")
	contains(t, f.Message, "this cluster serves v1")
}

func TestRefusedCRDIsAnErrorNotAWait(t *testing.T) {
	s := newSite(t)
	s.deleteCRD("widgets." + s.ns + ".example.com")
	s.deleteCRD("gadgets." + s.ns + ".example.com")
	s.apply(s.deployment("one", widgetCRD), nil)
	second := strings.NewReplacer("plural: widgets", "plural: gadgets", "singular: widget", "singular: gadget", "name: widgets.", "name: gadgets.").Replace(widgetCRD)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	res, err := s.a.Apply(ctx, s.deployment("two", second), nil)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, s.errorOf(res, "gadgets."+s.ns+".example.com").Message, "names are not accepted", "Widget")
}

const job = `apiVersion: batch/v1
kind: Job
metadata: {name: j}
spec:
  suspend: true
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: "c:1"}]`

func TestImmutableFieldSaysSo(t *testing.T) {
	s := newSite(t)
	first := s.apply(s.deployment("x", job+"\n---\n"+configMap("old", "1")), nil)
	res := s.try(s.deployment("x", strings.Replace(job, "c:1", "c:2", 1)+"\n---\n"+configMap("new", "1")), first.Inventory)
	f := s.errorOf(res, "j")
	if f.Reason != Immutable {
		t.Errorf("got %v", f)
	}
	contains(t, f.Message, "spec.template", "is immutable")
	// The rest went on, but with an error nothing is pruned.
	if s.get(configMaps, "new") == nil {
		t.Error("the rest did not go on")
	}
	if s.get(configMaps, "old") == nil || !slices.ContainsFunc(res.Inventory, func(r Ref) bool { return r.Name == "old" }) {
		t.Error("pruned although not everything was applied")
	}
	// What is left of the old release goes with the next apply that succeeds.
	d := s.deployment("x", job+"\n---\n"+configMap("new", "1"))
	res = s.apply(d, res.Inventory)
	if len(res.Pruned) != 1 || s.get(configMaps, "old") != nil {
		t.Errorf("pruned %v", res.Pruned)
	}
}

func TestImmutableObjectIsRecreatedWhereAllowed(t *testing.T) {
	s := newSite(t)
	first := s.apply(s.deployment("x", job), nil)
	uid := s.get(jobs, "j").GetUID()
	d := s.deployment("x", strings.Replace(job, "c:1", "c:2", 1))
	d.Policy.CorrectDriftForce = true
	if res := s.apply(d, first.Inventory); len(res.Written) != 1 {
		t.Errorf("written %v", res.Written)
	}
	if u := s.get(jobs, "j"); u.GetUID() == uid || !strings.Contains(value2(u, "spec"), "c:2") {
		t.Error("the job is the old one")
	}
	s.clean(d)
}

// What a bundle of a hundred objects costs the API server.
func TestCost(t *testing.T) {
	s := newSite(t)
	var docs []string
	for i := range 20 {
		docs = append(docs, strings.NewReplacer("{name: web}", fmt.Sprintf("{name: web%d}", i), "{name: web,", fmt.Sprintf("{name: web%d,", i), "replicas: 2", "replicas: 0").Replace(strings.TrimSpace(web)))
	}
	d := s.deployment("big", strings.Join(docs, "\n---\n"))
	measure := func(what string, f func()) Requests {
		before, began := s.a.Requests(), time.Now()
		f()
		used := s.a.Requests().Sub(before)
		t.Logf("%d objects of 5 kinds, %s: %d requests %+v in %v", len(d.Objects), what, used.Total(), used, time.Since(began).Round(time.Millisecond))
		return used
	}
	var res Result
	measure("install", func() { res = s.apply(d, nil) })
	measure("check while controllers work", func() { s.clean(d) })
	s.ready(d)
	s.clean(d)
	if used := measure("check at rest", func() { s.clean(d) }); used.Total() != 5 {
		t.Errorf("a check at rest costs %d requests, want one for each kind", used.Total())
	}
	if used := measure("apply at rest", func() { s.apply(d, res.Inventory) }); used.Total() != 5 {
		t.Errorf("an apply at rest costs %d requests, want one for each kind", used.Total())
	}
	s.edit(configMaps, "web7", `{"data":{"mode":"loud"}}`)
	measure("check of one edit", func() { s.modified(d) })
	measure("repair of one edit", func() { s.apply(d, res.Inventory) })
	s.a = newApplier(t, s.cfg)
	measure("first check of a restarted agent", func() { s.clean(d) })
	measure("remove", func() {
		if _, err := s.a.Remove(t.Context(), Deployment{Name: "big"}, res.Inventory, false); err != nil {
			t.Fatal(err)
		}
	})
}

func TestForbiddenNamesTheRight(t *testing.T) {
	s := newSite(t)
	s.create(schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"}, `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: some}
rules:
- {apiGroups: [""], resources: [configmaps], verbs: [get, list, create, patch]}
- {apiGroups: [""], resources: [secrets], verbs: [get]}`)
	s.create(schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"}, `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: some}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: some}
subjects: [{kind: User, name: limited, apiGroup: rbac.authorization.k8s.io}]`)
	cfg := rest.CopyConfig(s.cfg)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: "limited", Groups: []string{"system:authenticated"}}
	s.a = newApplier(t, cfg)
	var res Result
	kubetest.Wait(t, "the role to work", func(ctx context.Context) (err error) {
		res, err = s.a.Apply(ctx, s.deployment("x", web), nil)
		if err == nil && s.get(configMaps, "web") == nil {
			err = res.Err()
		}
		return err
	})
	f := s.errorOf(res, "web")
	if len(res.Errors) != 4 || f.Reason != Forbidden {
		t.Fatalf("want everything but the ConfigMap forbidden, got %v", res.Errors)
	}
	contains(t, res.Errors[0].Message, `User "limited" cannot get resource "serviceaccounts" in API group "" in the namespace "`+s.ns)
	contains(t, res.Errors[1].Message, `cannot patch resource "secrets"`)
}

func TestInvalidObjectNamesTheFieldAndNoSecret(t *testing.T) {
	s := newSite(t)
	bad := strings.Replace(web, "containerPort: 8080", "containerPort: 99999", 1)
	bad = strings.Replace(bad, "stringData: {password: hunter2}", "data: {password: '!hunter2!'}", 1)
	bad = strings.Replace(bad, "ports: [{name: http, port: 80}]", "ports: [{name: http, prot: 80}]", 1)
	res := s.try(s.deployment("x", bad), nil)
	if len(res.Errors) != 3 {
		t.Fatalf("got %v", res.Errors)
	}
	for _, f := range res.Errors {
		if f.Reason != Invalid {
			t.Errorf("got %s %v", f.Reason, f)
		}
		if strings.Contains(f.Message, "hunter2") {
			t.Errorf("a secret in %q", f.Message)
		}
	}
	contains(t, res.Errors[1].Message, "prot")
	contains(t, res.Errors[2].Message, "spec.template.spec.containers[0].ports[0].containerPort")
}

func TestObjectOfAnotherDeploymentIsNotStolen(t *testing.T) {
	s := newSite(t)
	one := s.deployment("one", configMap("shared", "1"))
	s.apply(one, nil)
	two := s.deployment("two", configMap("shared", "2")+"\n---\n"+configMap("own", "2"))
	res := s.try(two, nil)
	f := s.errorOf(res, "shared")
	if f.Reason != OwnedByOther || s.get(configMaps, "own") == nil {
		t.Errorf("got %v", f)
	}
	contains(t, f.Message, `belongs to deployment "one"`)
	s.clean(one)
	// It is not in two's inventory: removing two must not look at it.
	if len(res.Inventory) != 1 {
		t.Errorf("inventory %v", res.Inventory)
	}
	if rm, err := s.a.Remove(t.Context(), Deployment{Name: "two"}, append(res.Inventory, f.Ref), false); err != nil || len(rm.Remaining) != 0 {
		t.Error(rm, err)
	}
	if s.get(configMaps, "shared") == nil || s.get(configMaps, "own") != nil {
		t.Error("remove took the wrong objects")
	}
}

func TestAdoptsWhatIsNobodysAndSaysFromWhom(t *testing.T) {
	s := newSite(t)
	s.create(configMaps, configMap("a", "by hand"))
	res := s.apply(s.deployment("x", configMap("a", "1")), nil)
	if len(res.Taken) != 1 {
		t.Fatalf("taken: %v", res.Taken)
	}
	contains(t, res.Taken[0].Message, "data.v")
	if u := s.get(configMaps, "a"); owner(u) != "x" || value2(u, "data", "v") != `"1"` {
		t.Errorf("got %v", u)
	}
}

func TestDoesNotTakeWhatAControllerMade(t *testing.T) {
	s := newSite(t)
	d := s.deployment("web", web)
	s.apply(d, nil)
	s.ready(d)
	sets := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}
	list, err := s.hand.Resource(sets).Namespace(s.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Fatal(err, len(list.Items))
	}
	rs := &list.Items[0]
	unstructured.RemoveNestedField(rs.Object, "metadata", "ownerReferences")
	b, err := rs.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	res := s.try(s.deployment("thief", string(b)), nil)
	contains(t, s.errorOf(res, rs.GetName()).Message, `is controlled by Deployment "web"`)
}

// A server that is away is one typed error, and later everything works with the same Applier.
func TestUnavailable(t *testing.T) {
	s := newSite(t)
	cfg := rest.CopyConfig(s.cfg)
	cfg.Host = "https://127.0.0.1:1"
	a := newApplier(t, cfg)
	d := s.deployment("x", configMap("a", "1"))
	_, err1 := a.Apply(t.Context(), d, nil)
	_, err2 := a.Check(t.Context(), d)
	_, err3 := a.Remove(t.Context(), Deployment{Name: "x"}, []Ref{d.Objects[0].Ref}, false)
	_, err4 := a.Facts(t.Context())
	for _, err := range []error{err1, err2, err3, err4} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.a.Apply(ctx, d, nil); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestFacts(t *testing.T) {
	s := newSite(t)
	f, err := s.a.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(f.KubernetesVersion, "v1.") || f.Nodes != 1 {
		t.Errorf("got %s, %d nodes", f.KubernetesVersion, f.Nodes)
	}
	for _, want := range []string{"v1", "apps/v1", "apps/v1/Deployment", "v1/ConfigMap", "networking.k8s.io/v1/Ingress"} {
		if !slices.Contains(f.APIVersions, want) {
			t.Errorf("no %s in %v", want, f.APIVersions)
		}
	}
}
