package apply

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/kubetest"
)

// Each case is a bundle, what somebody does to its objects with kubectl, and what a report then says: "silent", or the parts
// of the message. What is said is set back by a repair, after which nothing is said and nothing is written any more.
//
// In edit, every document is a patch of one object, merged as kubectl patch does it; patchedBy names another writer, and
// patchType: merge the plainer way. NS is the namespace.
func TestAddedByHand(t *testing.T) {
	files, err := filepath.Glob("testdata/added/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			part := map[string]string{}
			for _, f := range txtar.Parse(data).Files {
				part[f.Name] = string(f.Data)
			}
			s := newSite(t)
			d := s.deployment("app", strings.TrimSpace(part["bundle"]))
			var says struct {
				bundlefmt.Policy
				ComparePatches []bundlefmt.ComparePatch `json:"comparePatches"`
			}
			if err := yaml.UnmarshalStrict([]byte(part["options"]), &says); err != nil {
				t.Fatal(err)
			}
			says.Namespace = s.ns
			d.Policy, d.Handling.ComparePatches = says.Policy, says.ComparePatches
			inv := s.apply(d, nil).Inventory
			s.Cleanup(func() { s.removeInBackground(d, inv) })
			s.clean(d)
			for doc := range strings.SplitSeq(strings.TrimSpace(part["edit"]), "\n---\n") {
				s.patchByHand(doc)
			}
			want := strings.TrimSpace(part["want"])
			if want == "silent" {
				s.clean(d)
			} else {
				contains(t, s.modified(d).Message, strings.Split(want, "\n")...)
				s.apply(d, inv)
				s.clean(d)
			}
			before := s.a.Requests()
			if res := s.apply(d, inv); len(res.Written) != 0 || s.a.Requests().Sub(before).Write != 0 {
				t.Errorf("a further repair writes %v", res.Written)
			}
			kubetest.Wait(t, "a look that costs no dry run", func(context.Context) error { // when controllers have come to rest
				used := s.a.Requests()
				s.clean(d)
				if n := s.a.Requests().Sub(used).DryRun; n != 0 {
					return fmt.Errorf("%d dry runs", n)
				}
				return nil
			})
		})
	}
}

// patchByHand does one document of edit.
func (s *site) patchByHand(doc string) {
	s.Helper()
	var o map[string]any
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(doc, "NS", s.ns)), &o); err != nil {
		s.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: o}
	by, how := "kubectl-edit", types.StrategicMergePatchType
	if v, ok := o["patchedBy"].(string); ok {
		by = v
	}
	if o["patchType"] == "merge" {
		how = types.MergePatchType
	}
	gvk, name := u.GroupVersionKind(), u.GetName()
	for _, k := range []string{"patchedBy", "patchType", "apiVersion", "kind"} {
		delete(o, k)
	}
	var sub []string
	if v, ok := o["subresource"].(string); ok {
		sub = []string{v}
		delete(o, "subresource")
	}
	ref := Ref{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind}
	k, f, err := s.a.pass(Deployment{}).find(s.Context(), ref)
	if err != nil || f != nil {
		s.Fatal(f, err)
	}
	body, err := json.Marshal(o)
	if err != nil {
		s.Fatal(err)
	}
	client := s.hand.Resource(k.gvr)
	opts := metav1.PatchOptions{FieldManager: by}
	if k.namespaced {
		_, err = client.Namespace(s.ns).Patch(s.Context(), name, how, body, opts, sub...)
	} else {
		_, err = client.Patch(s.Context(), name, how, body, opts, sub...)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// A webhook or a policy engine that puts something into every Pod template is no hand: what it adds comes back by itself.
// A mutating policy of the API server stands in for it where the server has that.
func TestAddedByAdmission(t *testing.T) {
	s := newSite(t)
	var policies = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingadmissionpolicies"}
	var bindings = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingadmissionpolicybindings"}
	for _, v := range []string{"v1", "v1beta1", "v1alpha1"} {
		if k, f, err := s.a.pass(Deployment{}).find(t.Context(), Ref{Group: policies.Group, Version: v, Kind: "MutatingAdmissionPolicy"}); err == nil && f == nil {
			policies.Version, bindings.Version = k.gvr.Version, k.gvr.Version
			break
		}
	}
	site := *s
	site.ns = ""
	site.create(policies, strings.NewReplacer("NS", s.ns, "VERSION", policies.Version).Replace(`
apiVersion: admissionregistration.k8s.io/VERSION
kind: MutatingAdmissionPolicy
metadata: {name: NS}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: NS}}
    resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments]}]
  matchConditions: [{name: not-there, expression: "!object.spec.template.spec.containers.exists(c, c.name == 'sidecar')"}]
  mutations:
  - patchType: JSONPatch
    jsonPatch:
      expression: >-
        [JSONPatch{op: "add", path: "/spec/template/spec/containers/-",
        value: Object.spec.template.spec.containers{name: "sidecar", image: "mesh:1"}}]
`))
	site.create(bindings, fmt.Sprintf("apiVersion: admissionregistration.k8s.io/%s\nkind: MutatingAdmissionPolicyBinding\nmetadata: {name: %s}\nspec: {policyName: %s}", bindings.Version, s.ns, s.ns))
	s.Cleanup(func() {
		_ = s.hand.Resource(bindings).Delete(context.Background(), s.ns, metav1.DeleteOptions{})
		_ = s.hand.Resource(policies).Delete(context.Background(), s.ns, metav1.DeleteOptions{})
	})
	kubetest.Wait(t, "the policy to be in force", func(context.Context) error {
		s.create(deployments, strings.ReplaceAll(plainDeployment, "NAME", "probe"))
		n := value2(s.get(deployments, "probe"), "spec", "template", "spec", "containers")
		s.delete(deployments, "probe")
		if !strings.Contains(n, "sidecar") {
			return errors.New("not yet")
		}
		return nil
	})
	d := s.deployment("app", strings.ReplaceAll(plainDeployment, "NAME", "web"))
	d.Policy.CorrectDriftStrict = true
	inv := s.apply(d, nil).Inventory
	if !strings.Contains(value2(s.get(deployments, "web"), "spec", "template", "spec", "containers"), "sidecar") {
		t.Fatal("the sidecar is not there")
	}
	s.clean(d)
	s.edit(deployments, "web", `{"spec":{"template":{"spec":{"hostNetwork":true}}}}`)
	if m := s.modified(d).Message; strings.Contains(m, "sidecar") {
		t.Errorf("got %s", m)
	}
	s.apply(d, inv)
	s.clean(d)
	before := s.a.Requests()
	if res := s.apply(d, inv); s.a.Requests().Sub(before).Write != 0 {
		t.Errorf("writes %v for ever", res.Written)
	}
}

const plainDeployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec: {containers: [{name: c, image: "c:1"}]}
`

// A debug container cannot be taken out of a Pod: with force the Pod is made anew.
func TestDebugContainerInAPodOfTheBundle(t *testing.T) {
	s := newSite(t)
	d := s.deployment("app", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: \"c:1\"}]}")
	inv := s.apply(d, nil).Inventory
	s.ready(d)
	s.patchByHand("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nsubresource: ephemeralcontainers\nspec: {ephemeralContainers: [{name: debugger, image: \"sh:1\"}]}")
	contains(t, s.modified(d).Message, "ephemeralContainers", "debugger")
	f := s.errorOf(s.try(d, inv), "p")
	contains(t, f.Message, "ephemeralContainers")
	d.Policy.CorrectDriftForce = true
	s.apply(d, inv)
	s.clean(d)
}

// What somebody has exported from a live cluster makes a bundle like any other: for every kind of workload, and what stands
// around it, adopting the very objects changes nothing and nothing is called drift, not even strictly.
func TestExportedManifestIsNoDrift(t *testing.T) {
	s := newSite(t)
	text, err := os.ReadFile("testdata/exported.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var refs []Ref
	p := s.a.pass(Deployment{})
	for doc := range strings.SplitSeq(strings.ReplaceAll(string(text), "NS", s.ns), "\n---\n") {
		u := parse(t, doc)
		gvk := u.GroupVersionKind()
		ref := Ref{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Name: u.GetName()}
		k, f, err := p.find(t.Context(), ref)
		if err != nil || f != nil {
			t.Fatal(f, err)
		}
		site := *s
		if !k.namespaced {
			site.ns = ""
			s.Cleanup(func() { _ = s.hand.Resource(k.gvr).Delete(context.Background(), ref.Name, metav1.DeleteOptions{}) })
		}
		ref.Namespace = site.ns
		_, err = s.hand.Resource(k.gvr).Namespace(site.ns).Create(t.Context(), u, metav1.CreateOptions{FieldManager: "kubectl-create"})
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	export := func() (out []string) {
		for _, ref := range refs {
			k, _, err := p.find(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			u, err := s.a.get(t.Context(), k, ref)
			if err != nil {
				t.Fatal(err)
			}
			unstructured.RemoveNestedField(u.Object, "metadata", "managedFields") // as kubectl get -o yaml does
			b, err := yaml.Marshal(u.Object)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(b))
		}
		return out
	}
	// When the controllers have done their work on it.
	d := s.deployment("exported", strings.Join(export(), "\n---\n"))
	d.Policy.TakeOwnership, d.Operation = true, Install
	s.ready(d)
	d.Objects = s.deployment("exported", strings.Join(export(), "\n---\n")).Objects
	for _, strict := range []bool{false, true} {
		d.Policy.CorrectDriftStrict = strict
		inv := s.apply(d, nil).Inventory
		d.Operation = ""
		s.clean(d)
		if res := s.apply(d, inv); len(res.Written) != 0 {
			t.Errorf("strict %v: written again: %v", strict, res.Written)
		}
	}
	slices.Reverse(refs)
	s.removeInBackground(d, refs)
}
