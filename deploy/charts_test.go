package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/render"
	"shoal.dev/shoal/controller/source"
	"shoal.dev/shoal/internal/kubetest"
)

func TestMain(m *testing.M) { kubetest.Main(m) }

// values of charts that are complete enough to be installed.
func hubValues(more map[string]any) map[string]any {
	return over(map[string]any{
		"image": map[string]any{"repository": "example.org/shoal"},
		"mqtt":  map[string]any{"url": "mqtts://hub.example.org:8883"},
	}, more)
}

func agentValues(more map[string]any) map[string]any {
	return over(map[string]any{
		"image":       map[string]any{"repository": "example.org/shoal-agent"},
		"clusterName": "site-1",
	}, more)
}

func over(base, more map[string]any) map[string]any {
	maps.Copy(base, more)
	return base
}

// chart renders a chart as `helm install NAME -n NAMESPACE` would, with Helm's engine.
func chart(dir, name, namespace string, values map[string]any) ([]*unstructured.Unstructured, error) {
	b, err := source.Dir(context.Background(), dir, source.Options{Name: name})
	if err != nil {
		return nil, err
	}
	options := b.Spec.BundleOptions
	options.DefaultNamespace = namespace
	options.Helm = &v1alpha1.HelmOptions{Values: values}
	rendered, err := render.Render(render.Input{Name: name, Resources: b.Spec.Resources, Options: options})
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, o := range rendered.Objects() {
		var u unstructured.Unstructured
		if err := u.UnmarshalJSON(o.JSON); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Ref, err)
		}
		out = append(out, &u)
	}
	return out, nil
}

// of returns the one object of a kind, as its type.
func of[T any](t *testing.T, objects []*unstructured.Unstructured, kind string) *T {
	t.Helper()
	var found []*unstructured.Unstructured
	for _, o := range objects {
		if o.GetKind() == kind {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("chart has %d objects of kind %s, want 1", len(found), kind)
	}
	out := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(found[0].Object, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func newClient(t *testing.T, cfg *rest.Config) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// apply is a server-side apply; the API server refuses fields that it does not know.
func apply(ctx context.Context, c client.Client, o *unstructured.Unstructured, options ...client.ApplyOption) error {
	options = append(options, client.FieldOwner("charts-test"), client.ForceOwnership)
	if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(o), options...); err != nil {
		return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

// TestChartsAreAccepted: a real API server takes every object of the charts, with every switch once on and once off, and Pods
// as the charts describe them are allowed where Pod Security is "restricted".
func TestChartsAreAccepted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, chart string
		values      map[string]any
		restricted  bool
	}{
		{"hub", "charts/shoal", hubValues(nil), true},
		{"hub with everything", "charts/shoal", hubValues(map[string]any{
			"imagePullSecrets": []any{map[string]any{"name": "pull"}},
			"mqtt": map[string]any{"url": "mqtts://hub.example.org:8883", "service": map[string]any{
				"type": "LoadBalancer", "nodePort": 31883, "loadBalancerClass": "example.org/lb", "loadBalancerSourceRanges": []any{"192.0.2.0/24"},
				"externalTrafficPolicy": "Local", "annotations": map[string]any{"a": "b"},
			}},
			"persistence":       map[string]any{"enabled": false},
			"rbac":              map[string]any{"tokenSecretNamespaces": []any{"NAMESPACE"}},
			"serviceAccount":    map[string]any{"annotations": map[string]any{"a": "b"}},
			"metrics":           map[string]any{"service": map[string]any{"enabled": true}},
			"extraArgs":         []any{"--stale-after=24h"},
			"podAnnotations":    map[string]any{"a": "b"},
			"podLabels":         map[string]any{"c": "d"},
			"nodeSelector":      map[string]any{"kubernetes.io/os": "linux"},
			"tolerations":       []any{map[string]any{"operator": "Exists"}},
			"affinity":          map[string]any{"nodeAffinity": map[string]any{}},
			"priorityClassName": "system-cluster-critical",
		}), true},
		{"hub with a claim of its own", "charts/shoal", hubValues(map[string]any{"persistence": map[string]any{"existingClaim": "mine"}}), true},
		{"agent", "charts/shoal-agent", agentValues(map[string]any{"token": map[string]any{"value": "shoal1.x"}}), true},
		{"agent with everything", "charts/shoal-agent", agentValues(map[string]any{
			"imagePullSecrets": []any{map[string]any{"name": "pull"}},
			"token":            map[string]any{"existingSecret": "mine", "key": "enrolment"},
			"persistence":      map[string]any{"type": "hostPath"},
			"rbac":             map[string]any{"clusterAdmin": false, "rules": []any{map[string]any{"apiGroups": []any{""}, "resources": []any{"configmaps"}, "verbs": []any{"get"}}}},
			"serviceAccount":   map[string]any{"annotations": map[string]any{"a": "b"}},
			"extraArgs":        []any{"--keep-alive=30s"},
			"podAnnotations":   map[string]any{"a": "b"},
			"podLabels":        map[string]any{"c": "d"},
			"nodeSelector":     map[string]any{"kubernetes.io/os": "linux"},
			"affinity":         map[string]any{"nodeAffinity": map[string]any{}},
		}), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := kubetest.Shared(t)
			namespace := kubetest.Namespace(t, cfg)
			objects, err := chart(c.chart, "shoal", namespace, named(t, c.values, namespace))
			if err != nil {
				t.Fatal(err)
			}
			kube := newClient(t, cfg)
			for _, o := range objects {
				if err := apply(t.Context(), kube, o.DeepCopy(), client.DryRunAll); err != nil {
					t.Error(err)
				}
			}
			if err := podAllowed(t, kube, namespace, objects); c.restricted && err != nil {
				t.Error(err)
			}
		})
	}
}

// named puts the test's namespace into values.
func named(t *testing.T, values map[string]any, namespace string) map[string]any {
	t.Helper()
	data, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal([]byte(strings.ReplaceAll(string(data), "NAMESPACE", namespace)), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// podAllowed asks for a Pod of the Deployment under the strictest Pod Security standard.
func podAllowed(t *testing.T, kube client.Client, namespace string, objects []*unstructured.Unstructured) error {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`))
	if err := kube.Patch(t.Context(), ns, patch); err != nil {
		return err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "shoal", Namespace: namespace}}
	if err := kube.Create(t.Context(), account); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	var spec corev1.PodSpec
	template := of[struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}](t, objects, "Deployment").Spec.Template
	spec = template.Spec
	return kube.Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "restricted", Namespace: namespace}, Spec: spec}, client.DryRunAll)
}

// TestChartsSayWhatIsMissing: values that have no sensible default are asked for by name.
func TestChartsSayWhatIsMissing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		chart  string
		values map[string]any
		want   string
	}{
		{"charts/shoal", hubValues(map[string]any{"image": map[string]any{"tag": "1"}}), "image.repository is not set"},
		{"charts/shoal", hubValues(map[string]any{"mqtt": map[string]any{}}), "mqtt.url is not set"},
		{"charts/shoal", hubValues(map[string]any{"mqtt": map[string]any{"url": "tcp://x:1883"}}), "must begin with mqtts://"},
		{"charts/shoal-agent", agentValues(map[string]any{"image": map[string]any{"tag": "1"}}), "image.repository is not set"},
		{"charts/shoal-agent", agentValues(map[string]any{"clusterName": ""}), "clusterName is not set"},
		{"charts/shoal-agent", agentValues(map[string]any{"token": map[string]any{"value": "x", "existingSecret": "y"}}), "both set: choose one"},
		{"charts/shoal-agent", agentValues(map[string]any{"persistence": map[string]any{"type": "tape"}}), "must be pvc or hostPath"},
	} {
		if _, err := chart(c.chart, "shoal", "ns", c.values); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.chart, err, c.want)
		}
	}
}

// TestChartsCopyNoDefinitions: the hub installs its resource definitions itself; a second copy in a chart would grow old.
func TestChartsCopyNoDefinitions(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"charts/shoal", "charts/shoal-agent"} {
		if _, err := os.Stat(dir + "/crds"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s/crds: want none, got %v", dir, err)
		}
	}
}
