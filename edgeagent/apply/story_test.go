package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/kubetest"
)

func TestMain(m *testing.M) { kubetest.Main(m) }

var (
	configMaps  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	secrets     = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	claims      = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
	deployments = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	jobs        = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}
	crds        = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
)

// site is a namespace of the shared cluster, with an applier and somebody with kubectl.
type site struct {
	testing.TB
	cfg  *rest.Config
	ns   string
	a    *Applier
	hand dynamic.Interface
}

func newSite(t testing.TB) *site {
	t.Helper()
	cfg := kubetest.Shared(t)
	s := &site{TB: t, cfg: cfg, ns: kubetest.Namespace(t, cfg)}
	s.a = newApplier(t, cfg)
	var err error
	if s.hand, err = dynamic.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	return s
}

func newApplier(t testing.TB, cfg *rest.Config) *Applier {
	t.Helper()
	log := zerolog.Nop()
	if testing.Verbose() {
		log = zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, NoColor: true})
	}
	a, err := New(cfg, Options{}, log)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// deployment is YAML documents, NS standing for the site's namespace, which is the default namespace too.
func (s *site) deployment(name, manifests string) Deployment {
	s.Helper()
	d := Deployment{Name: name, Serial: 1, Policy: bundlefmt.Policy{Namespace: s.ns}}
	for doc := range strings.SplitSeq(manifests, "\n---\n") {
		b, err := yaml.YAMLToJSON([]byte(strings.ReplaceAll(doc, "NS", s.ns)))
		if err != nil {
			s.Fatal(err)
		}
		o, err := bundlefmt.NewObject(b)
		if err != nil {
			s.Fatal(err)
		}
		d.Objects = append(d.Objects, o)
	}
	return d
}

func (s *site) try(d Deployment, previous []Ref) Result {
	s.Helper()
	res, err := s.a.Apply(s.Context(), d, previous)
	if err != nil {
		s.Fatal(err)
	}
	return res
}

func (s *site) apply(d Deployment, previous []Ref) Result {
	s.Helper()
	res := s.try(d, previous)
	if err := res.Err(); err != nil {
		s.Fatal(err)
	}
	return res
}

func (s *site) check(d Deployment) Status {
	s.Helper()
	st, err := s.a.Check(s.Context(), d)
	if err != nil {
		s.Fatal(err)
	}
	return st
}

// ready waits until every object is ready.
func (s *site) ready(d Deployment) Status {
	s.Helper()
	var st Status
	kubetest.Wait(s, d.Name+" to be ready", func(ctx context.Context) (err error) {
		if st, err = s.a.Check(ctx, d); err == nil && st.Ready != st.Total {
			err = fmt.Errorf("%d of %d, not ready: %v, modified: %v", st.Ready, st.Total, st.NotReady, st.Modified)
		}
		return err
	})
	return st
}

func (s *site) clean(d Deployment) {
	s.Helper()
	st := s.check(d)
	if st.Modified.Count != 0 || st.Unverified.Count != 0 {
		s.Fatalf("want no drift, got modified %v, unverified %v", st.Modified.First, st.Unverified.First)
	}
}

// modified is the only finding that Check has.
func (s *site) modified(d Deployment) Finding {
	s.Helper()
	st := s.check(d)
	if st.Modified.Count != 1 {
		s.Fatalf("want one modified object, got %v", st.Modified)
	}
	return st.Modified.First[0]
}

func (s *site) get(gvr schema.GroupVersionResource, name string) *unstructured.Unstructured {
	s.Helper()
	u, err := s.hand.Resource(gvr).Namespace(s.ns).Get(s.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		s.Fatal(err)
	}
	return u
}

// edit is what kubectl edit does.
func (s *site) edit(gvr schema.GroupVersionResource, name, mergePatch string) {
	s.Helper()
	_, err := s.hand.Resource(gvr).Namespace(s.ns).Patch(s.Context(), name, types.MergePatchType, []byte(mergePatch), metav1.PatchOptions{FieldManager: "kubectl-edit"})
	if err != nil {
		s.Fatal(err)
	}
}

func (s *site) create(gvr schema.GroupVersionResource, manifest string) {
	s.Helper()
	var o map[string]any
	if err := yaml.Unmarshal([]byte(manifest), &o); err != nil {
		s.Fatal(err)
	}
	_, err := s.hand.Resource(gvr).Namespace(s.ns).Create(s.Context(), &unstructured.Unstructured{Object: o}, metav1.CreateOptions{})
	if err != nil {
		s.Fatal(err)
	}
}

func (s *site) delete(gvr schema.GroupVersionResource, name string) {
	s.Helper()
	if err := s.hand.Resource(gvr).Namespace(s.ns).Delete(s.Context(), name, metav1.DeleteOptions{}); err != nil {
		s.Fatal(err)
	}
}

// deleteCRD clears away what is not in a namespace.
func (s *site) deleteCRD(name string) {
	s.Cleanup(func() {
		err := s.hand.Resource(crds).Delete(context.Background(), name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			s.Error(err)
		}
	})
}

func (s *site) errorOf(res Result, name string) Finding {
	s.Helper()
	i := slices.IndexFunc(res.Errors, func(f Finding) bool { return f.Ref.Name == name })
	if i < 0 {
		s.Fatalf("no error about %q in %v", name, res.Errors)
	}
	return res.Errors[i]
}

func value2(u *unstructured.Unstructured, path ...string) string {
	v, _, _ := unstructured.NestedFieldNoCopy(u.Object, path...)
	b, _ := json.Marshal(v)
	return string(b)
}

func contains(t testing.TB, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("want %q in %q", w, got)
		}
	}
}

func configMap(name, value string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {v: %q}", name, value)
}

const web = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {mode: "quiet", other: "x"}
---
apiVersion: v1
kind: Secret
metadata: {name: web}
stringData: {password: hunter2}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, creationTimestamp: null}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, creationTimestamp: null}
    spec:
      serviceAccountName: web
      containers:
      - name: web
        image: web:1
        env: [{name: MODE, value: "quiet"}, {name: EMPTY, value: null}]
        ports: [{containerPort: 8080}]
        resources: {requests: {cpu: 1000m, memory: 1024Mi}, limits: {cpu: "1.0"}}
status: {}
`
