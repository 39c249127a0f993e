package apply

import (
	"context"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/kubetest"
)

func TestEditIsSeenAndRepaired(t *testing.T) {
	s := newSite(t)
	d := s.deployment("web", web)
	inv := s.apply(d, nil).Inventory
	s.ready(d)
	s.edit(deployments, "web", `{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"evil:1","env":[{"name":"MODE","value":"loud"},{"name":"EXTRA","value":"1"}]}]}}}}`)
	f := s.modified(d)
	if f.Reason != Modified || f.Ref.Kind != "Deployment" {
		t.Errorf("got %+v", f)
	}
	contains(t, f.Message, `spec.template.spec.containers[web].image: "evil:1" → "web:1"`, `env[MODE].value: "loud" → "quiet"`)
	used := s.a.Requests()
	res := s.apply(d, inv)
	t.Logf("repair of one edit: %+v, taken %v", s.a.Requests().Sub(used), res.Taken)
	if len(res.Written) != 1 || len(res.Taken) != 1 {
		t.Errorf("written %v, taken %v", res.Written, res.Taken)
	}
	contains(t, res.Taken[0].Message, `"kubectl-edit"`, "image")
	s.clean(d)

	// What the edit added beside the bundle's fields is not ours to judge.
	s.edit(configMaps, "web", `{"data":{"extra":"1"},"metadata":{"annotations":{"team":"a"}}}`)
	s.clean(d)
}

func TestSecretDriftShowsNoValue(t *testing.T) {
	s := newSite(t)
	d := s.deployment("web", web)
	s.apply(d, nil)
	s.edit(secrets, "web", `{"data":{"password":"ZXZpbA=="}}`)
	if f := s.modified(d); f.Message != "data.password: differs" {
		t.Errorf("got %q", f.Message)
	}
	s.apply(d, nil)
	s.clean(d)
}

func TestDeletedObjectIsMissingAndComesBack(t *testing.T) {
	s := newSite(t)
	d := s.deployment("web", web)
	inv := s.apply(d, nil).Inventory
	s.delete(configMaps, "web")
	st := s.check(d)
	if st.Missing != 1 || st.Modified.Count != 1 || st.Modified.First[0].Reason != Missing || st.Ready+st.NotReady.Count != st.Total-1 {
		t.Errorf("got %+v", st)
	}
	s.apply(d, inv)
	s.clean(d)
}

func TestOurLabelTakenOffIsDrift(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", configMap("a", "1"))
	s.apply(d, nil)
	s.edit(configMaps, "a", `{"metadata":{"labels":{"shoal.dev/deployment":null}}}`)
	contains(t, s.modified(d).Message, "metadata.labels[shoal.dev/deployment]", `"x"`)
	s.apply(d, nil)
	s.clean(d)
}

const autoscaled = web + `
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  minReplicas: 2
  maxReplicas: 5
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]`

// scale is what the autoscaler does: through the scale subresource, by its own manager.
func (s *site) scale(n int) {
	s.Helper()
	_, err := s.hand.Resource(deployments).Namespace(s.ns).Patch(s.Context(), "web", types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, n), metav1.PatchOptions{FieldManager: "kube-controller-manager"}, "scale")
	if err != nil {
		s.Fatal(err)
	}
}

func (s *site) replicas() string { return value2(s.get(deployments, "web"), "spec", "replicas") }

func TestAutoscaledReplicasAreTheSites(t *testing.T) {
	s := newSite(t)
	d := s.deployment("web", autoscaled)
	inv := s.apply(d, nil).Inventory
	s.scale(4)
	s.clean(d)
	// A release that changes something else leaves the number alone, and so does one that changes replicas.
	for _, change := range []string{"web:1 web:2", "replicas: 2 replicas: 3"} {
		from, to, _ := strings.Cut(change, " ")
		if strings.Contains(change, "replicas") {
			from, to = "  replicas: 2\n", "  replicas: 3\n"
		}
		d = s.deployment("web", strings.Replace(autoscaled, from, to, 1))
		inv = s.apply(d, inv).Inventory
		if s.replicas() != "4" {
			t.Errorf("%s: replicas are %s, the autoscaler had set 4", change, s.replicas())
		}
		s.clean(d)
	}
	// Outside of its bounds it was not the autoscaler: repaired.
	s.scale(9)
	contains(t, s.modified(d).Message, "spec.replicas: 9 → 3")
	s.apply(d, inv)
	if s.replicas() != "3" {
		t.Errorf("replicas are %s", s.replicas())
	}
	// Now they are ours; a release must not reset them to the default of 1 by leaving them out.
	d = s.deployment("web", strings.Replace(autoscaled, "  replicas: 2\n", "  replicas: 5\n", 1))
	s.apply(d, inv)
	if s.replicas() != "3" {
		t.Errorf("replicas are %s", s.replicas())
	}
	s.clean(d)
}

func TestReplicasWithoutAutoscalerAreDrift(t *testing.T) {
	s := newSite(t)
	d := s.deployment("web", web)
	s.apply(d, nil)
	s.scale(4)
	contains(t, s.modified(d).Message, "spec.replicas: 4 → 2")
}

const defaults = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, creationTimestamp: null, annotations: null}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      securityContext: {}
      nodeSelector: null
      tolerations: []
      containers:
      - name: db
        image: db:1
        command: null
        ports: [{containerPort: 5432, protocol: null}]
        resources: {limits: {cpu: 0.5, memory: 1024Mi, ephemeral-storage: 1e9}, requests: {cpu: 500m}}
        livenessProbe: {tcpSocket: {port: 5432}}
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: tmp, emptyDir: {}}]
  volumeClaimTemplates:
  - metadata: {name: data, creationTimestamp: null}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1024Mi}}}
    status: {}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432, targetPort: 5432}]}
status: {loadBalancer: {}}
---
apiVersion: v1
kind: Service
metadata: {name: lb}
spec: {type: NodePort, selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: db}
spec:
  rules: [{host: db.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: db, port: {number: 5432}}}}]}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec: {podSelector: {}, ingress: [{}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: db}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: db}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: c}
spec:
  schedule: "0 0 1 1 *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "c:1"}]}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ds}
spec:
  selector: {matchLabels: {app: ds}}
  template:
    metadata: {labels: {app: ds}}
    spec:
      hostNetwork: true
      containers: [{name: ds, image: "ds:1", ports: [{containerPort: 9100}], securityContext: {privileged: true}}]
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: q}
spec: {hard: {requests.cpu: 4000m, pods: "1000"}}
---
apiVersion: v1
kind: LimitRange
metadata: {name: l}
spec: {limits: [{type: Container, default: {cpu: 1000m}, defaultRequest: {cpu: "0.1"}}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: rb}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}
subjects: [{kind: ServiceAccount, name: web}, {kind: User, name: u}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: r}
rules: []`

// Spellings that people's manifests have and that the API server changes: no drift, and no second write.
func TestDefaultsNullsAndQuantitiesAreNoDrift(t *testing.T) {
	s := newSite(t)
	d := s.deployment("db", defaults)
	res := s.apply(d, nil)
	s.clean(d)
	// The controllers have done what they do.
	kubetest.Wait(t, "controllers", func(context.Context) error {
		if g := value2(s.get(deployments.GroupVersion().WithResource("statefulsets"), "db"), "status", "observedGeneration"); g != "1" {
			return fmt.Errorf("statefulset: observed generation %s", g)
		}
		return nil
	})
	a := newApplier(t, s.cfg)
	again, err := a.Apply(t.Context(), d, res.Inventory)
	if err != nil || len(again.Written) != 0 || a.Requests().Write != 0 {
		t.Errorf("want nothing written, got %v, %v, %+v", again.Written, err, a.Requests())
	}
	st, err := a.Check(t.Context(), d)
	if err != nil || st.Modified.Count != 0 {
		t.Errorf("got %v, %v", st.Modified, err)
	}
}

const injected = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: NS-hook}
webhooks:
- name: a.example.com
  sideEffects: None
  admissionReviewVersions: [v1]
  failurePolicy: Ignore
  objectSelector: {matchLabels: {nobody: has}}
  clientConfig: {service: {name: x, namespace: NS, path: /a}, caBundle: "Cg=="}
  rules: [{apiGroups: [""], apiVersions: [v1], resources: [pods], operations: [CREATE]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: NS-all}
aggregationRule: {clusterRoleSelectors: [{matchLabels: {into: NS}}]}
rules: []
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: NS-part, labels: {into: NS}}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]`

func TestInjectedAndAggregatedFieldsAreNoDrift(t *testing.T) {
	s := newSite(t)
	d := s.deployment("hook", injected)
	inv := s.apply(d, nil).Inventory
	t.Cleanup(func() {
		if _, err := s.a.Remove(context.Background(), Deployment{Name: "hook"}, inv, false); err != nil {
			t.Error(err)
		}
	})
	hooks := schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
	roles := schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}
	_, err := s.hand.Resource(hooks).Patch(t.Context(), s.ns+"-hook", types.JSONPatchType, []byte(`[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":"SW5qZWN0ZWQ="}]`), metav1.PatchOptions{FieldManager: "cainjector"})
	if err != nil {
		t.Fatal(err)
	}
	var all *unstructured.Unstructured
	kubetest.Wait(t, "the role to be aggregated", func(ctx context.Context) (err error) {
		if all, err = s.hand.Resource(roles).Get(ctx, s.ns+"-all", metav1.GetOptions{}); err == nil && value2(all, "rules") == "[]" || value2(all, "rules") == "null" {
			err = fmt.Errorf("no rules yet")
		}
		return err
	})
	s.clean(d)
	if res := s.apply(d, inv); len(res.Written) != 0 {
		t.Errorf("written %v", res.Written)
	}
	// Other fields beside them are still ours, and repairing them leaves the injected one alone.
	_, err = s.hand.Resource(hooks).Patch(t.Context(), s.ns+"-hook", types.JSONPatchType, []byte(`[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Fail"}]`), metav1.PatchOptions{FieldManager: "kubectl-edit"})
	if err != nil {
		t.Fatal(err)
	}
	contains(t, s.modified(d).Message, `webhooks[a.example.com].failurePolicy: "Fail" → "Ignore"`)
	s.apply(d, inv)
	u, err := s.hand.Resource(hooks).Get(t.Context(), s.ns+"-hook", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	contains(t, value2(u, "webhooks"), "SW5qZWN0ZWQ=", "Ignore")
}

func TestReadinessSaysWhy(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", job+`
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: never}
spec: {accessModes: [ReadWriteOnce], storageClassName: nothing, resources: {requests: {storage: 1Gi}}}
---
`+configMap("fine", "1"))
	s.apply(d, nil)
	st := s.check(d)
	if st.Ready < 1 || st.NotReady.Count == 0 || st.Total != 3 {
		t.Fatalf("got %+v", st)
	}
	for _, f := range st.NotReady.First {
		if f.Message == "" || f.Report().Reason == "" {
			t.Errorf("no reason: %+v", f)
		}
		t.Log(f)
	}
}

// The report holds ten findings and counts all.
func TestManyFindingsAreCounted(t *testing.T) {
	s := newSite(t)
	var docs []string
	for i := range 12 {
		docs = append(docs, configMap(fmt.Sprintf("c%d", i), "1"))
	}
	st := s.check(s.deployment("x", strings.Join(docs, "\n---\n")))
	if st.Modified.Count != 12 || len(st.Modified.First) != 10 || st.Missing != 12 || len(st.Modified.Report()) != 10 {
		t.Errorf("got %d, %d, %d", st.Modified.Count, len(st.Modified.First), st.Missing)
	}
}

// comparePatches: between two releases the field is the site's own. It is neither compared nor changed, also not by a repair
// of something beside it.
func TestExemptFieldsAreTheSites(t *testing.T) {
	s := newSite(t)
	d := s.deployment("web", web)
	d.Handling.ComparePatches = []bundlefmt.ComparePatch{
		{APIVersion: "v1", Kind: "ConfigMap", Name: "web", JSONPointers: []string{"/data/mode"}},
		{APIVersion: "apps/v1", Kind: "Deployment", Operations: []bundlefmt.PatchOp{{Op: "remove", Path: "/spec/replicas"}}},
		{APIVersion: "v1", Kind: "Service", Operations: []bundlefmt.PatchOp{{Op: "replace", Path: "/spec/sessionAffinity", Value: `"None"`}}},
		{APIVersion: "v1", Kind: "Secret", Name: "we.", Operations: []bundlefmt.PatchOp{{Op: "ignore"}}},
	}
	d.Operation = Install
	inv := s.apply(d, nil).Inventory
	d.Operation = ""
	s.edit(configMaps, "web", `{"data":{"mode":"site"}}`)
	s.edit(configMaps.GroupVersion().WithResource("services"), "web", `{"spec":{"sessionAffinity":"ClientIP"}}`)
	s.scale(5)
	s.delete(secrets, "web")
	s.clean(d)
	if st := s.check(d); st.Missing != 0 {
		t.Errorf("what may be missing is reported: %+v", st)
	}
	if res := s.apply(d, inv); len(res.Written) != 0 {
		t.Errorf("a repair writes %v", res.Written)
	}
	s.edit(configMaps, "web", `{"data":{"other":"z"}}`)
	contains(t, s.modified(d).Message, `data.other: "z" → "x"`)
	s.apply(d, inv)
	if got := value2(s.get(configMaps, "web"), "data"); got != `{"mode":"site","other":"x"}` {
		t.Errorf("got %s", got)
	}
	if s.replicas() != "5" || s.get(secrets, "web") != nil {
		t.Errorf("replicas %s, secret %v", s.replicas(), s.get(secrets, "web"))
	}
	d.Operation = Upgrade
	s.apply(d, inv)
	if got := value2(s.get(configMaps, "web"), "data"); got != `{"mode":"quiet","other":"x"}` || s.replicas() != "2" || s.get(secrets, "web") == nil {
		t.Errorf("a release brings back what is missing and writes what it states: %s, %s replicas", got, s.replicas())
	}
}

// K3s' own storage class makes a volume only for a Pod that uses it: a claim that waits for that is not what is wrong.
func TestClaimThatWaitsForItsPod(t *testing.T) {
	s := newSite(t)
	classes := schema.GroupVersionResource{Group: "storage.k8s.io", Version: "v1", Resource: "storageclasses"}
	late := s.ns + "-late"
	global := *s
	global.ns = ""
	global.create(classes, "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: "+late+"}\nprovisioner: example.com/none\nvolumeBindingMode: WaitForFirstConsumer")
	t.Cleanup(func() { _ = s.hand.Resource(classes).Delete(context.Background(), late, metav1.DeleteOptions{}) })
	const claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: NAME}\nspec: {accessModes: [ReadWriteOnce], storageClassName: CLASS, resources: {requests: {storage: 1Gi}}}"
	d := s.deployment("x", strings.NewReplacer("NAME", "a", "CLASS", late).Replace(claim)+"\n---\n"+strings.NewReplacer("NAME", "b", "CLASS", "nothing").Replace(claim))
	s.apply(d, nil)
	kubetest.Wait(t, "the claim that waits to be ready, the other one not", func(context.Context) error {
		st := s.check(d)
		if st.Ready != 1 || st.NotReady.Count != 1 || st.NotReady.First[0].Ref.Name != "b" {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}
