package apply

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
)

// by makes or changes an object under the name that another tool has in managedFields; apply: with server-side apply.
func (s *site) by(manager string, apply bool, gvr schema.GroupVersionResource, manifest string) {
	s.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &u.Object); err != nil {
		s.Fatal(err)
	}
	r := s.hand.Resource(gvr).Namespace(s.ns)
	var err error
	if apply {
		_, err = r.Apply(s.Context(), u.GetName(), u, metav1.ApplyOptions{FieldManager: manager, Force: true})
	} else if _, err = r.Create(s.Context(), u, metav1.CreateOptions{FieldManager: manager}); err != nil && s.get(gvr, u.GetName()) != nil {
		var b []byte
		if b, err = u.MarshalJSON(); err == nil {
			_, err = r.Patch(s.Context(), u.GetName(), types.MergePatchType, b, metav1.PatchOptions{FieldManager: manager})
		}
	}
	if err != nil {
		s.Fatal(err)
	}
}

// others are the managers beside the agent, and what they have.
func others(u *unstructured.Unstructured) string {
	var out []string
	for _, m := range u.GetManagedFields() {
		if m.Manager != FieldManager && m.Subresource == "" {
			out = append(out, m.Manager+" "+string(m.FieldsV1.GetRawBytes()))
		}
	}
	return strings.Join(out, "; ")
}

const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// What a bundle has taken over is its alone: what a later release drops goes, whoever made the object; what the bundle never
// stated stays.
func TestTakenOverIsTheBundlesAlone(t *testing.T) {
	for _, by := range []struct {
		manager string
		apply   bool
	}{{"kubectl-client-side-apply", false}, {"kubectl-create", false}, {"kubectl", true}, {"helm", false}, {"helm", true}, {"fleetagent", false}, {"argocd-controller", true}, {"OpenAPI-Generator", false}} {
		name := by.manager + map[bool]string{false: " updates", true: " applies"}[by.apply]
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.by(by.manager, by.apply, configMaps, "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\n  labels: {keep: a, old: a, own: a}\n  annotations: {keep: a, old: a, "+lastApplied+": \"{}\"}\ndata: {keep: a, old: a, own: a}")
			s.by(by.manager, by.apply, deployments, strings.Replace(worker, `image: "w:1"}`, `image: "w:1", env: [{name: KEEP, value: a}, {name: OLD, value: a}, {name: OWN, value: a}]}`, 1))
			s.by(by.manager, by.apply, configMaps.GroupVersion().WithResource("services"), "apiVersion: v1\nkind: Service\nmetadata: {name: c}\nspec: {selector: {app: a, old: a}, ports: [{name: keep, port: 80}, {name: old, port: 81}]}")
			release := func(old bool) Deployment {
				text := "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\n  labels: {keep: a, old: a}\n  annotations: {keep: a, old: a}\ndata: {keep: a, old: a}\n---\n" +
					strings.Replace(worker, `image: "w:1"}`, `image: "w:1", env: [{name: KEEP, value: a}, {name: OLD, value: a}]}`, 1) +
					"\n---\napiVersion: v1\nkind: Service\nmetadata: {name: c}\nspec: {selector: {app: a, old: a}, ports: [{name: keep, port: 80}, {name: old, port: 81}]}"
				if !old {
					text = strings.NewReplacer("keep: a, old: a", "keep: a", "app: a, old: a", "app: a", ", {name: OLD, value: a}", "", ", {name: old, port: 81}", "").Replace(text)
				}
				d := s.deployment("x", text)
				d.Operation = Upgrade
				return d
			}
			first := release(true)
			first.Operation, first.Policy.TakeOwnership = Install, true
			inv := s.apply(first, nil).Inventory
			if s.get(configMaps, "c").GetAnnotations()[lastApplied] != "" {
				t.Error("kubectl's record of what it applied is still there")
			}
			s.apply(release(false), inv)
			c, w, svc := s.get(configMaps, "c"), s.get(deployments, "w"), s.get(configMaps.GroupVersion().WithResource("services"), "c")
			if got := value2(c, "data") + value2(c, "metadata", "labels"); got != `{"keep":"a","own":"a"}{"keep":"a","own":"a","shoal.dev/deployment":"x"}` {
				t.Errorf("the ConfigMap has %s; %s", got, others(c))
			}
			if _, ok := c.GetAnnotations()["old"]; ok {
				t.Error("the annotation stays")
			}
			if got := value2(w, "spec", "template", "spec", "containers"); strings.Contains(got, `"OLD"`) || !strings.Contains(got, `"OWN"`) || !strings.Contains(got, `"KEEP"`) {
				t.Errorf("the Deployment has %s; %s", got, others(w))
			}
			if got := value2(svc, "spec", "ports") + value2(svc, "spec", "selector"); strings.Contains(got, "old") || !strings.Contains(got, "keep") {
				t.Errorf("the Service has %s; %s", got, others(svc))
			}
			used := s.a.Requests()
			s.apply(release(false), inv)
			if n := s.a.Requests().Sub(used).Write; n != 0 {
				t.Errorf("the same once more writes %d times", n)
			}
		})
	}
}

// Somebody writes fields of the bundle beside it, changed or not: they are the bundle's all the same, and go when it drops them.
func TestFieldsThatSomebodyElseWrote(t *testing.T) {
	s := newSite(t)
	const cm = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: "
	first := s.deployment("x", cm+"{keep: a, same: a, changed: a, both: a}")
	inv := s.apply(first, nil).Inventory
	s.by("kubectl", true, configMaps, cm+"{same: a}")
	s.edit(configMaps, "c", `{"data":{"changed":"b","own":"b","keep":"b"}}`)
	s.by("operator", true, configMaps, cm+"{both: a, operator: a}")
	next := s.deployment("x", cm+"{keep: a}")
	next.Operation, next.Before = Upgrade, func() []bundlefmt.Object { return first.Objects }
	s.apply(next, inv)
	if got := value2(s.get(configMaps, "c"), "data"); got != `{"keep":"a","operator":"a","own":"b"}` {
		t.Errorf("got %s; %s", got, others(s.get(configMaps, "c")))
	}
	// An ordinary repair is one write, as before.
	s.edit(configMaps, "c", `{"data":{"keep":"b"}}`)
	used := s.a.Requests()
	s.apply(s.deployment("x", cm+"{keep: a}"), inv)
	if n := s.a.Requests().Sub(used).Write; n != 2 { // the first is refused, and says from whom the field is taken
		t.Errorf("%d writes", n)
	}
}

// What is the site's stays the site's when a release drops it: an autoscaler's replicas, an injected certificate.
func TestSiteOwnedFieldsAreNotTaken(t *testing.T) {
	s := newSite(t)
	const hook = "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {name: NS-take}\nwebhooks:\n- name: a.example.com\n  clientConfig: {url: \"https://a.example.com\"CA}\n  sideEffects: None\n  admissionReviewVersions: [v1]\n  failurePolicy: Ignore\n  rules: []"
	scaled := "\n---\napiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: w}\nspec: {minReplicas: 2, maxReplicas: 6, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: w}}"
	first := s.deployment("x", strings.Replace(worker, "replicas: 0", "replicas: 2", 1)+scaled+"\n---\n"+strings.Replace(hook, "CA", ", caBundle: Cg==", 1))
	inv := s.apply(first, nil).Inventory
	t.Cleanup(func() { s.removeInBackground(first, inv) })
	_, err := s.hand.Resource(deployments).Namespace(s.ns).Patch(t.Context(), "w", types.MergePatchType, []byte(`{"spec":{"replicas":4}}`), metav1.PatchOptions{FieldManager: "kube-controller-manager"}, "scale")
	if err != nil {
		t.Fatal(err)
	}
	hooks := schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
	if _, err := s.hand.Resource(hooks).Patch(t.Context(), s.ns+"-take", types.JSONPatchType, []byte(`[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"SW5qZWN0ZWQ="}]`), metav1.PatchOptions{FieldManager: "cainjector"}); err != nil {
		t.Fatal(err)
	}
	next := s.deployment("x", strings.Replace(worker, "replicas: 0", "paused: false", 1)+scaled+"\n---\n"+strings.Replace(hook, "CA", "", 1))
	next.Operation, next.Before = Upgrade, func() []bundlefmt.Object { return first.Objects }
	s.apply(next, inv)
	u, err := s.hand.Resource(hooks).Get(t.Context(), s.ns+"-take", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := value2(s.get(deployments, "w"), "spec", "replicas"); got != "4" {
		t.Errorf("%s replicas: the autoscaler's number is gone; %s", got, others(s.get(deployments, "w")))
	}
	contains(t, value2(u, "webhooks"), "SW5qZWN0ZWQ=")
}
