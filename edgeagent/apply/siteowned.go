package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// siteOwned leaves out of want what the site has the say on although the bundle states it. Left out means: neither
// compared nor written, and with server-side apply whoever has the field keeps it.
//
//   - spec.replicas, when a HorizontalPodAutoscaler scales the object and the live number is inside its bounds
//   - caBundle of webhooks, CRD conversions and APIServices, when somebody else (cert-manager, say) has set it
//   - rules of an aggregated ClusterRole, and status: left out by [decode] already, nobody may set these
//
// want is not changed; a changed copy is returned.
func siteOwned(want, live *unstructured.Unstructured, scaled func(live int64) bool) *unstructured.Unstructured {
	out := want
	edit := func() map[string]any {
		if out == want {
			out = want.DeepCopy()
		}
		return out.Object
	}
	if w, l, ok := replicas(want, live); ok && w != l && scaled(l) {
		spec, _ := edit()["spec"].(map[string]any)
		if owns(live, []string{"f:spec", "f:replicas"}) {
			spec["replicas"] = l // leaving out a field that is ours alone would reset it to its default
		} else {
			delete(spec, "replicas")
		}
	}
	for _, p := range caBundles(want) {
		if have, ok := p.get(live.Object); ok && have != "" && !owns(live, p.managed()) {
			p.remove(edit())
		}
	}
	return out
}

func replicas(want, live *unstructured.Unstructured) (w, l int64, ok bool) {
	w, ok1, _ := unstructured.NestedInt64(want.Object, "spec", "replicas")
	l, ok2, _ := unstructured.NestedInt64(live.Object, "spec", "replicas")
	return w, l, ok1 && ok2
}

// caPath is where one caBundle is: in a named element of webhooks, or at a fixed place.
type caPath struct {
	webhook string
	fields  []string
}

func caBundles(want *unstructured.Unstructured) []caPath {
	switch gvk := want.GroupVersionKind(); {
	case gvk.Group == "admissionregistration.k8s.io":
		var out []caPath
		hooks, _, _ := unstructured.NestedSlice(want.Object, "webhooks")
		for _, h := range hooks {
			m, _ := h.(map[string]any)
			name, _ := m["name"].(string)
			if _, ok, _ := unstructured.NestedString(m, "clientConfig", "caBundle"); ok {
				out = append(out, caPath{name, []string{"clientConfig", "caBundle"}})
			}
		}
		return out
	case gvk.Group == "apiextensions.k8s.io":
		p := caPath{fields: []string{"spec", "conversion", "webhook", "clientConfig", "caBundle"}}
		if _, ok := p.get(want.Object); ok {
			return []caPath{p}
		}
	case gvk.Group == "apiregistration.k8s.io":
		p := caPath{fields: []string{"spec", "caBundle"}}
		if _, ok := p.get(want.Object); ok {
			return []caPath{p}
		}
	}
	return nil
}

func (p caPath) root(o map[string]any) map[string]any {
	if p.webhook == "" {
		return o
	}
	hooks, _ := o["webhooks"].([]any)
	for _, h := range hooks {
		if m, ok := h.(map[string]any); ok && m["name"] == p.webhook {
			return m
		}
	}
	return nil
}

func (p caPath) get(o map[string]any) (string, bool) {
	s, ok, _ := unstructured.NestedString(p.root(o), p.fields...)
	return s, ok
}

func (p caPath) remove(o map[string]any) { unstructured.RemoveNestedField(p.root(o), p.fields...) }

// managed is the path as managedFields writes it.
func (p caPath) managed() []string {
	var out []string
	if p.webhook != "" {
		key, _ := json.Marshal(map[string]string{"name": p.webhook}) // strings always encode
		out = append(out, "f:webhooks", "k:"+string(key))
	}
	for _, f := range p.fields {
		out = append(out, "f:"+f)
	}
	return out
}

// owns reports whether the agent has applied the field at path.
func owns(live *unstructured.Unstructured, path []string) bool {
	for _, m := range live.GetManagedFields() {
		if m.Manager != FieldManager || m.Operation != metav1.ManagedFieldsOperationApply || m.FieldsV1 == nil {
			continue
		}
		var fields map[string]any
		if json.Unmarshal(m.FieldsV1.GetRawBytes(), &fields) != nil {
			continue
		}
		if _, ok, _ := unstructured.NestedFieldNoCopy(fields, path...); ok {
			return true
		}
	}
	return false
}

// autoscalers finds out which objects are scaled on the site. It asks only about a namespace in which a number of replicas
// differs, once per pass.
//
// With reuse, an earlier pass's answer is good enough to say that a number is the autoscaler's; that it is not is said only
// after asking.
type autoscalers struct {
	a     *Applier
	cache map[string][]scaler
	reuse bool
}

// scalersLife is how long the autoscalers of a namespace are remembered.
const scalersLife = 5 * time.Minute

type rememberedScalers struct {
	at   time.Time
	list []scaler
}

type scaler struct {
	group, kind, name string
	min, max          int64
}

var autoscalerResource = schema.GroupVersionResource{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}

// scaled is whether n replicas are what an autoscaler may have chosen for ref.
func (s *autoscalers) scaled(ctx context.Context, ref Ref, n int64) (bool, error) {
	list, ok := s.cache[ref.Namespace]
	if !ok && s.reuse {
		s.a.mu.Lock()
		old := s.a.scalers[ref.Namespace]
		s.a.mu.Unlock()
		if time.Since(old.at) < scalersLife && allows(old.list, ref, n) {
			return true, nil
		}
	}
	if !ok {
		found, err := s.a.listPage(ctx, s.a.dyn.Resource(autoscalerResource).Namespace(ref.Namespace).List, metav1.ListOptions{})
		if out := s.a.outage(ctx, err); out != nil {
			return false, fmt.Errorf("list autoscalers: %w", out)
		}
		if err == nil { // a cluster without autoscaling/v2, or an agent that may not see it, has no autoscalers
			for _, u := range found.Items {
				list = append(list, scalerOf(u.Object))
			}
		}
		if s.cache == nil {
			s.cache = map[string][]scaler{}
		}
		s.cache[ref.Namespace] = list
		s.a.mu.Lock()
		s.a.scalers[ref.Namespace] = rememberedScalers{time.Now(), list}
		s.a.mu.Unlock()
	}
	return allows(list, ref, n), nil
}

func allows(list []scaler, ref Ref, n int64) bool {
	return slices.ContainsFunc(list, func(h scaler) bool {
		return h.group == ref.Group && h.kind == ref.Kind && h.name == ref.Name && n >= h.min && n <= h.max
	})
}

func scalerOf(o map[string]any) scaler {
	s := scaler{min: 1}
	s.kind, _, _ = unstructured.NestedString(o, "spec", "scaleTargetRef", "kind")
	s.name, _, _ = unstructured.NestedString(o, "spec", "scaleTargetRef", "name")
	version, _, _ := unstructured.NestedString(o, "spec", "scaleTargetRef", "apiVersion")
	if gv, err := schema.ParseGroupVersion(version); err == nil {
		s.group = gv.Group
	}
	if n, ok, _ := unstructured.NestedInt64(o, "spec", "minReplicas"); ok {
		s.min = n
	}
	s.max, _, _ = unstructured.NestedInt64(o, "spec", "maxReplicas")
	return s
}

// effective is want for this cluster at this moment.
func (s *autoscalers) effective(ctx context.Context, o *object) (*unstructured.Unstructured, error) {
	if o.live == nil {
		return o.want, nil
	}
	var failed error
	want := siteOwned(o.want, o.live, func(n int64) bool {
		ok, err := s.scaled(ctx, o.ref, n)
		failed = err
		return ok
	})
	return want, failed
}
