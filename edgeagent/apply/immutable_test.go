package apply

import (
	"strings"
	"testing"
)

const (
	rules   = "properties: {spec: {type: object, properties: {a: {type: string, x-kubernetes-validations: [{rule: self == oldSelf}]}, b: {type: string, x-kubernetes-validations: [{rule: self == oldSelf, message: stays as it was made}]}, c: {type: integer}}}}"
	ruleCRD = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: fixeds.NS.example.com}\nspec: {group: NS.example.com, names: {kind: Fixed, plural: fixeds, singular: fixed}, scope: Namespaced, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, " + rules + "}}}]}"
	podSpec = "restartPolicy: Never, containers: [{name: c, image: \"c:1\"}]"
)

// immutables are objects and changes that an API server refuses to make in place; field is what has to be named.
var immutables = []struct {
	name, field, manifest, old, new string
	cluster                         bool // not in a namespace
}{
	{name: "RoleBinding", field: "roleRef", manifest: "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: i}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}\nsubjects: []", old: "name: view", new: "name: edit"},
	{name: "ClusterRoleBinding", field: "roleRef", manifest: "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: NS-i}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}", old: "name: view", new: "name: edit", cluster: true},
	{name: "Service", field: "spec.clusterIP", manifest: "apiVersion: v1\nkind: Service\nmetadata: {name: i}\nspec: {ports: [{port: 80}]}", old: "spec: {", new: "spec: {clusterIP: None, "},
	{name: "Job", field: "spec.template", manifest: "apiVersion: batch/v1\nkind: Job\nmetadata: {name: i}\nspec: {suspend: true, template: {spec: {" + podSpec + "}}}", old: "c:1", new: "c:2"},
	{name: "Job completions", field: "spec.completions", manifest: "apiVersion: batch/v1\nkind: Job\nmetadata: {name: i}\nspec: {suspend: true, completions: 1, template: {spec: {" + podSpec + "}}}", old: "completions: 1", new: "completions: 2"},
	{name: "StatefulSet", field: "spec.serviceName", manifest: "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: i}\nspec: {replicas: 0, serviceName: a, selector: {matchLabels: {a: a}}, template: {metadata: {labels: {a: a}}, spec: {containers: [{name: c, image: c}]}}}", old: "replicas: 0, serviceName: a", new: "replicas: 1, serviceName: b"},
	{name: "Deployment", field: "spec.selector", manifest: worker, old: "app: w", new: "app: v"},
	{name: "DaemonSet", field: "spec.selector", manifest: "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: i}\nspec: {selector: {matchLabels: {a: a}}, template: {metadata: {labels: {a: a}}, spec: {nodeSelector: {no: where}, containers: [{name: c, image: c}]}}}", old: "{a: a}", new: "{a: b}"},
	{name: "Pod", field: "spec.containers", manifest: "apiVersion: v1\nkind: Pod\nmetadata: {name: i}\nspec: {nodeSelector: {no: where}, containers: [{name: c, image: c}]}", old: "image: c}", new: "image: c, command: [a]}"},
	{name: "PersistentVolumeClaim", field: "spec.storageClassName", manifest: "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: i}\nspec: {accessModes: [ReadWriteOnce], storageClassName: a, resources: {requests: {storage: 1Gi}}}", old: "storageClassName: a", new: "storageClassName: b"},
	{name: "PersistentVolume", field: "spec.hostPath", manifest: "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: NS-i}\nspec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, storageClassName: none, hostPath: {path: /a}}", old: "path: /a", new: "path: /b", cluster: true},
	{name: "StorageClass", field: "provisioner", manifest: "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: NS-i}\nprovisioner: example.com/a", old: "com/a", new: "com/b", cluster: true},
	{name: "StorageClass parameters", field: "parameters", manifest: "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: NS-i}\nprovisioner: example.com/a\nparameters: {a: a}", old: "a: a", new: "a: b", cluster: true},
	{name: "StorageClass reclaimPolicy", field: "reclaimPolicy", manifest: "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: NS-i}\nprovisioner: example.com/a\nreclaimPolicy: Delete", old: "Delete", new: "Retain", cluster: true},
	{name: "StorageClass volumeBindingMode", field: "volumeBindingMode", manifest: "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: NS-i}\nprovisioner: example.com/a\nvolumeBindingMode: Immediate", old: "Immediate", new: "WaitForFirstConsumer", cluster: true},
	{name: "ConfigMap", field: "data", manifest: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: i}\nimmutable: true\ndata: {a: a}", old: "a: a", new: "a: b"},
	{name: "Secret", field: "data", manifest: "apiVersion: v1\nkind: Secret\nmetadata: {name: i}\nimmutable: true\nstringData: {a: hunter1}", old: "hunter1", new: "hunter2"},
	{name: "Secret type", field: "type", manifest: "apiVersion: v1\nkind: Secret\nmetadata: {name: i}\ntype: a.example.com/a", old: "com/a", new: "com/b"},
	{name: "IngressClass", field: "spec.controller", manifest: "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: NS-i}\nspec: {controller: example.com/a}", old: "com/a", new: "com/b", cluster: true},
	{name: "PriorityClass", field: "value", manifest: "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: NS-i}\nvalue: 1", old: "value: 1", new: "value: 2", cluster: true},
	{name: "PriorityClass preemption", field: "preemptionPolicy", manifest: "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: NS-i}\nvalue: 1\npreemptionPolicy: Never", old: "Never", new: "PreemptLowerPriority", cluster: true},
	{name: "RuntimeClass", field: "handler", manifest: "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: NS-i}\nhandler: a", old: "handler: a", new: "handler: b", cluster: true},
	{name: "CSIDriver", field: "spec.attachRequired", manifest: "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: NS-i}\nspec: {attachRequired: true}", old: "true", new: "false", cluster: true},
	{name: "EndpointSlice", field: "addressType", manifest: "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: i}\naddressType: FQDN\nendpoints: [{addresses: [a.example.com]}]", old: "FQDN\nendpoints: [{addresses: [a.example.com]}]", new: "IPv4\nendpoints: [{addresses: [10.9.9.9]}]"},
	{name: "ControllerRevision", field: "data", manifest: "apiVersion: apps/v1\nkind: ControllerRevision\nmetadata: {name: i}\nrevision: 1\ndata: {a: a}", old: "a: a", new: "a: b"},
	{name: "rule without a message", field: "spec.a", manifest: "apiVersion: NS.example.com/v1\nkind: Fixed\nmetadata: {name: i}\nspec: {a: a, c: 1}", old: "a: a", new: "a: b"},
	{name: "rule in its author's words", field: "spec.b", manifest: "apiVersion: NS.example.com/v1\nkind: Fixed\nmetadata: {name: i}\nspec: {b: a, c: 1}", old: "b: a", new: "b: b"},
}

// Whatever cannot be changed in place is said to be that, with the field and what to do about it; and with helm.force the object
// is deleted and made again.
func TestWhatCannotBeChangedInPlace(t *testing.T) {
	s := newSite(t)
	s.deleteCRD("fixeds." + s.ns + ".example.com")
	s.apply(s.deployment("rules", ruleCRD), nil)
	for _, c := range immutables {
		t.Run(c.name, func(t *testing.T) {
			here := *s
			s := &here
			s.TB = t
			first := s.deployment("x", c.manifest)
			inv := s.apply(first, nil).Inventory
			t.Cleanup(func() { s.removeInBackground(first, inv) })
			next := s.deployment("x", strings.ReplaceAll(c.manifest, c.old, c.new))
			next.Operation = Upgrade
			res := s.try(next, inv)
			if len(res.Errors) != 1 || res.Errors[0].Reason != Immutable {
				t.Fatalf("got %v", res.Errors)
			}
			f := res.Errors[0]
			contains(t, f.Message, c.field, "is immutable", "helm.force: true")
			if strings.Contains(f.Message, "hunter") {
				t.Errorf("it quotes the secret: %q", f.Message)
			}
			t.Log(f.Message)
			uid := s.uid(inv[0])
			next.Policy.Force = true
			s.apply(next, inv)
			if s.uid(inv[0]) == uid {
				t.Error("it is the old object")
			}
			// A repair has a switch of its own.
			back := s.deployment("x", c.manifest)
			if res := s.try(back, inv); len(res.Errors) == 1 {
				contains(t, res.Errors[0].Message, "is immutable", "correctDrift.force: true")
			} else if c.name != "Service" { // its manifest does not say what it was
				t.Errorf("got %v", res.Errors)
			}
		})
	}
}

func (s *site) uid(ref Ref) string {
	s.Helper()
	k, f, err := s.a.pass(Deployment{}).find(s.Context(), ref)
	if err != nil || f != nil {
		s.Fatal(f, err)
	}
	u, err := s.a.get(s.Context(), k, ref)
	if err != nil {
		s.Fatal(err)
	}
	return string(u.GetUID())
}

// What holds more than itself is not deleted, force or not, and the message does not say that it would be.
func TestForceNeverTakesContent(t *testing.T) {
	s := newSite(t)
	const claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: i}\nspec: {accessModes: [ReadWriteOnce], storageClassName: a, volumeName: pv, resources: {requests: {storage: 1Gi}}}"
	crd := "widgets." + s.ns + ".example.com"
	s.deleteCRD(crd)
	widget := "\n---\napiVersion: NS.example.com/v1\nkind: Widget\nmetadata: {name: w}\nspec: {size: 1}"
	inv := s.apply(s.deployment("x", claim+"\n---\n"+widgetCRD+widget), nil).Inventory
	next := s.deployment("x", strings.Replace(claim, "Class"+"Name: a", "ClassName: b", 1)+"\n---\n"+strings.Replace(widgetCRD, "scope: Namespaced", "scope: Cluster", 1))
	next.Operation = Upgrade
	for _, force := range []bool{false, true} {
		next.Policy.Force = force
		res := s.try(next, inv)
		for name, want := range map[string][]string{"i": {"spec.storageClassName is immutable", `volume "pv"`}, crd: {"spec.scope is immutable", "widgets"}} {
			f := s.errorOf(res, name)
			contains(t, f.Message, want...)
			if f.Reason != Immutable || strings.Contains(f.Message, "helm.force: true") {
				t.Errorf("got %v", f)
			}
		}
	}
	if s.get(claims, "i") == nil || s.get(s.widgets(), "w") == nil {
		t.Error("it is gone")
	}
	// Nor is what belongs to nobody yet: taking over is one thing, deleting another.
	s.create(jobs, strings.ReplaceAll(job, "{name: j}", "{name: k}"))
	take := s.deployment("y", strings.NewReplacer("c:1", "c:2", "{name: j}", "{name: k}").Replace(job))
	take.Operation, take.Policy.TakeOwnership, take.Policy.Force = Install, true, true
	contains(t, s.errorOf(s.try(take, nil), "k").Message, "is immutable", "not the bundle's yet")
}

// An object that would be refused as a new one as well is invalid, not immutable.
func TestInvalidIsNotImmutable(t *testing.T) {
	s := newSite(t)
	inv := s.apply(s.deployment("x", worker), nil).Inventory
	next := s.deployment("x", strings.Replace(worker, "replicas: 0", "replicas: -1", 1))
	next.Operation, next.Policy.Force = Upgrade, true
	f := s.errorOf(s.try(next, inv), "w")
	if f.Reason != Invalid {
		t.Errorf("got %v", f)
	}
	contains(t, f.Message, "spec.replicas")
}
