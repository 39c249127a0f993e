package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// With server-side apply what somebody adds beside the bundle's fields stays, and no dry run shows it. What raises rights or
// adds code is looked for all the same ([raising]); strictly, so is everything that somebody other than a controller has
// written ([foreign]).
//
// What the two find are candidates. Whether taking one out changes anything is for the API server to say, by a dry run:
// what defaults, a webhook or a policy put back at once was not added by a hand.

// addition is a field, or an element of a list, that the bundle does not state.
type addition struct {
	path  []string // in the live object; steps into lists are indexes
	value any
}

// additions are the candidates of one object, in the order in which they stand in it. Those that the bundle exempts from
// being compared are left out.
func additions(live, want *unstructured.Unstructured, strict bool, e exempt) []addition {
	out := raising(live.Object, want)
	if strict {
		out = append(out, foreign(live, want)...)
	}
	slices.SortFunc(out, func(a, b addition) int { return comparePaths(a.path, b.path) })
	var kept []addition
	for _, a := range out {
		if n := len(kept); n > 0 && len(kept[n-1].path) <= len(a.path) && slices.Equal(kept[n-1].path, a.path[:len(kept[n-1].path)]) {
			continue // goes with what it is in
		}
		if e.any() && len(diff(e.forCompare(live.Object, want.Object), e.forCompare(without(live, a).Object, want.Object))) == 0 {
			continue
		}
		kept = append(kept, a)
	}
	return kept
}

func comparePaths(a, b []string) int {
	return slices.CompareFunc(a, b, func(x, y string) int {
		i, err1 := strconv.Atoi(x)
		j, err2 := strconv.Atoi(y)
		if err1 == nil && err2 == nil {
			return i - j
		}
		return strings.Compare(x, y)
	})
}

// without is live with additions taken out.
func without(live *unstructured.Unstructured, as ...addition) *unstructured.Unstructured {
	out := live.DeepCopy()
	for _, a := range as {
		drop(out.Object, a.path)
	}
	compact(out.Object)
	return out
}

// takeOut removes additions from the live object, or finds out what would come of it. It changes nothing when the object,
// or one of them, is not what it was.
func (a *Applier) takeOut(ctx context.Context, p *pass, o *object, dryRun bool) (*unstructured.Unstructured, *Finding, error) {
	client, f, err := p.writer(ctx, o.ref, o.kind, o.ref.Namespace)
	if f != nil || err != nil {
		return nil, f, err
	}
	type op struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value,omitempty"`
	}
	ops := []op{{"test", "/metadata/uid", string(o.live.GetUID())}}
	for _, x := range slices.Backward(o.added) {
		ops = append(ops, op{"test", join(x.path), x.value}, op{Op: "remove", Path: join(x.path)})
	}
	body, err := json.Marshal(ops)
	if err != nil {
		return nil, nil, fmt.Errorf("make patch: %w", err)
	}
	opts := metav1.PatchOptions{FieldManager: FieldManager}
	if dryRun {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	got, err := client.Patch(ctx, o.ref.Name, types.JSONPatchType, body, opts)
	return got, nil, err
}

// rule is a place where an addition raises rights or adds code. A step NAME[KEY] is each element, known by the field KEY,
// that the bundle states as well; a last step NAME[+KEY] is those that it does not state. counts says which values do.
type rule struct {
	path   string
	counts func(v any) bool
}

func anyValue(v any) bool {
	switch x := v.(type) {
	case nil:
		return false
	case map[string]any:
		return len(x) > 0
	case []any:
		return len(x) > 0
	}
	return v != ""
}

func isTrue(v any) bool   { return v == true }
func isFalse(v any) bool  { return v == false }
func isRoot(v any) bool   { return v == int64(0) }
func unmasked(v any) bool { return v != "Default" }

// unconfined is a profile, of seccomp or AppArmor, that is not the runtime's own.
func unconfined(v any) bool { return mapOf(v)["type"] != "RuntimeDefault" }

// runs is a probe or another handler that runs code.
func runs(v any) bool { return mapOf(v)["exec"] != nil }

// podRules are for the spec of a Pod template. A variable with a text, what a container needs of the machine and where it
// may run are left out: tools that restart and place Pods write those.
var podRules = slices.Concat([]rule{
	{"hostNetwork", isTrue}, {"hostPID", isTrue}, {"hostIPC", isTrue}, {"shareProcessNamespace", isTrue},
	{"serviceAccountName", anyValue}, {"automountServiceAccountToken", isTrue}, {"runtimeClassName", anyValue},
	{"securityContext.runAsUser", isRoot}, {"securityContext.runAsGroup", isRoot}, {"securityContext.runAsNonRoot", isFalse},
	{"securityContext.supplementalGroups", anyValue}, {"securityContext.sysctls", anyValue}, {"securityContext.seLinuxOptions", anyValue},
	{"securityContext.seccompProfile", unconfined}, {"securityContext.appArmorProfile", unconfined},
	{"securityContext.windowsOptions.hostProcess", isTrue},
	{"volumes[+name]", anyValue}, {"resourceClaims[+name]", anyValue},
}, containerRules("containers"), containerRules("initContainers"))

func containerRules(list string) []rule {
	out := []rule{{list + "[+name]", anyValue}}
	for _, r := range []rule{
		{"image", anyValue}, {"command", anyValue}, {"args", anyValue}, {"lifecycle", anyValue},
		{"livenessProbe", runs}, {"readinessProbe", runs}, {"startupProbe", runs},
		{"envFrom", anyValue}, {"env[+name]", func(v any) bool { return mapOf(v)["valueFrom"] != nil }},
		{"ports[+containerPort]", func(v any) bool { return mapOf(v)["hostPort"] != nil }},
		{"ports[containerPort].hostPort", anyValue},
		{"volumeMounts[+mountPath]", anyValue}, {"volumeDevices[+devicePath]", anyValue}, {"resources.claims", anyValue},
		{"securityContext.privileged", isTrue}, {"securityContext.allowPrivilegeEscalation", isTrue}, {"securityContext.capabilities.add", anyValue},
		{"securityContext.runAsUser", isRoot}, {"securityContext.runAsGroup", isRoot}, {"securityContext.runAsNonRoot", isFalse},
		{"securityContext.seLinuxOptions", anyValue}, {"securityContext.procMount", unmasked},
		{"securityContext.seccompProfile", unconfined}, {"securityContext.appArmorProfile", unconfined},
		{"securityContext.windowsOptions.hostProcess", isTrue},
	} {
		out = append(out, rule{list + "[name]." + r.path, r.counts})
	}
	return out
}

var kindRules = map[string][]rule{
	"Role.rbac.authorization.k8s.io":               {{"rules", anyValue}},
	"ClusterRole.rbac.authorization.k8s.io":        {{"rules", anyValue}, {"aggregationRule", anyValue}},
	"RoleBinding.rbac.authorization.k8s.io":        {{"subjects", anyValue}},
	"ClusterRoleBinding.rbac.authorization.k8s.io": {{"subjects", anyValue}},
	"NetworkPolicy.networking.k8s.io":              {{"spec.ingress", anyValue}, {"spec.egress", anyValue}},
	"Pod.":                                         {{"spec.ephemeralContainers[+name]", anyValue}},

	"MutatingWebhookConfiguration.admissionregistration.k8s.io":   {{"webhooks[+name]", anyValue}},
	"ValidatingWebhookConfiguration.admissionregistration.k8s.io": {{"webhooks[+name]", anyValue}},
}

// aggregateTo is how labels begin that hand the rules of a ClusterRole on to others.
const aggregateTo = "rbac.authorization.k8s.io/aggregate-to-"

// raising finds what raises rights or adds code. Pod templates are found in any kind that has one where the built-in
// kinds have it. A Job's and a Pod's cannot be changed, except for debug containers.
func raising(live map[string]any, want *unstructured.Unstructured) []addition {
	var out []addition
	gvk := want.GroupVersionKind()
	kind := gvk.Kind + "." + gvk.Group
	for _, r := range kindRules[kind] {
		if r.path != "rules" || want.Object["aggregationRule"] == nil {
			out = addedAt(out, nil, strings.Split(r.path, "."), live, want.Object, r.counts)
		}
	}
	if kind == "ClusterRole.rbac.authorization.k8s.io" {
		labels, _ := at2(live, []string{"metadata", "labels"})
		m, _ := labels.(map[string]any)
		for k, v := range m {
			if _, stated := want.GetLabels()[k]; !stated && strings.HasPrefix(k, aggregateTo) && v == "true" {
				out = append(out, addition{[]string{"metadata", "labels", k}, v})
			}
		}
	}
	if kind == "Job.batch" {
		return out
	}
	for _, at := range [][]string{{"spec", "template", "spec"}, {"spec", "jobTemplate", "spec", "template", "spec"}} {
		w, _ := at2(want.Object, at)
		l, _ := at2(live, at)
		pod, ok := w.(map[string]any)
		if !ok || pod["containers"] == nil {
			continue
		}
		for _, r := range podRules {
			if r.path == "serviceAccountName" && pod["serviceAccount"] != nil { // its old name
				continue
			}
			out = addedAt(out, at, strings.Split(r.path, "."), l, w, r.counts)
		}
		if account := slices.Concat(at, []string{"serviceAccountName"}); slices.ContainsFunc(out, func(a addition) bool { return slices.Equal(a.path, account) }) {
			if v, ok := at2(l, []string{"serviceAccount"}); ok { // filled in from the other one, and kept where that goes
				out = append(out, addition{slices.Concat(at, []string{"serviceAccount"}), v})
			}
		}
	}
	return out
}

// addedAt follows the steps of a rule into both sides.
func addedAt(out []addition, at, steps []string, live, want any, counts func(any) bool) []addition {
	if len(steps) == 0 {
		if want == nil && live != nil && counts(live) {
			out = append(out, addition{at, live})
		}
		return out
	}
	name, key, list := strings.Cut(strings.TrimSuffix(steps[0], "]"), "[")
	l, _ := live.(map[string]any)
	w, _ := want.(map[string]any)
	at = slices.Concat(at, []string{name})
	if !list {
		return addedAt(out, at, steps[1:], l[name], w[name], counts)
	}
	key, more := strings.CutPrefix(key, "+")
	ls, _ := l[name].([]any)
	ws, _ := w[name].([]any)
	for i, e := range ls {
		m, _ := e.(map[string]any)
		stated := slices.IndexFunc(ws, func(s any) bool { x, _ := s.(map[string]any); return x != nil && equal(x[key], m[key]) })
		here := slices.Concat(at, []string{strconv.Itoa(i)})
		switch {
		case stated < 0 && more && counts(e):
			out = append(out, addition{here, e})
		case stated >= 0 && !more:
			out = addedAt(out, here, steps[1:], e, ws[stated], counts)
		}
	}
	return out
}

// kubernetes are managers that are Kubernetes itself, beside whoever has written the status of the object.
var kubernetes = []string{
	"kube-controller-manager", "kube-scheduler", "kubelet", "kube-apiserver", "cloud-controller-manager", "k3s", "rke2", "k0s", "kubelite",
	"clusterrole-aggregation-controller",
}

// foreign finds what somebody has written, going by managedFields, who is neither the agent nor a controller of the object.
func foreign(live, want *unstructured.Unstructured) []addition {
	own := slices.Concat([]string{FieldManager, ownManager}, kubernetes)
	for _, m := range live.GetManagedFields() {
		if m.Subresource == "status" {
			own = append(own, m.Manager)
		}
	}
	x := stranger{want: want}
	for _, m := range live.GetManagedFields() {
		if m.Subresource != "" || m.FieldsV1 == nil || slices.Contains(own, m.Manager) {
			continue
		}
		var fields map[string]any
		if json.Unmarshal(m.FieldsV1.GetRawBytes(), &fields) != nil {
			continue
		}
		meta := mapOf(fields["f:metadata"])
		for _, k := range []string{"labels", "annotations"} {
			x.fields([]string{"metadata", k}, meta["f:"+k], mapOf(live.Object["metadata"])[k], mapOf(want.Object["metadata"])[k])
		}
		switch live.GetKind() {
		case "Job", "Pod", "PersistentVolumeClaim", "PersistentVolume": // what cannot be changed was not added later
			continue
		}
		delete(fields, "f:metadata")
		delete(fields, "f:status")
		x.fields(nil, fields, live.Object, want.Object)
	}
	return x.found
}

func mapOf(v any) map[string]any { m, _ := v.(map[string]any); return m }

// stranger follows the fields of other managers into both sides, down to what the bundle does not state.
type stranger struct {
	want  *unstructured.Unstructured
	found []addition
}

// spares says what is not set back even strictly: it is the mark of a tool, and taking it off would restart or unlock
// something; or others have the say on it.
func (x *stranger) spares(path []string) bool {
	last, in := path[len(path)-1], ""
	if len(path) > 1 {
		in = path[len(path)-2]
	}
	switch {
	case in == "annotations":
		return last == "kubectl.kubernetes.io/restartedAt" || last == "kubectl.kubernetes.io/last-applied-configuration" || strings.HasPrefix(last, "deployment.kubernetes.io/")
	case in == "labels":
		return last == "kubernetes.io/metadata.name" || strings.HasPrefix(last, "pod-security.kubernetes.io/") || strings.HasPrefix(last, "shoal.dev/")
	case last == "caBundle", slices.Equal(path, []string{"spec", "replicas"}):
		return true
	case path[0] == "rules":
		return x.want.Object["aggregationRule"] != nil
	}
	return x.want.GetKind() == "Namespace" && path[0] == "spec"
}

func (x *stranger) add(path []string, v any) {
	if !x.spares(path) {
		x.found = append(x.found, addition{path, v})
	}
}

func (x *stranger) fields(at []string, fields, live, want any) {
	for k, sub := range mapOf(fields) {
		kind, name, _ := strings.Cut(k, ":")
		switch kind {
		case "f":
			v, has := mapOf(live)[name]
			w, stated := mapOf(want)[name]
			here := slices.Concat(at, []string{name})
			switch {
			case !has:
			case len(mapOf(sub)) > 0:
				x.field(here, sub, v, w, stated)
			case !stated:
				x.add(here, v)
			}
		case "k", "v":
			ls, _ := live.([]any)
			ws, _ := want.([]any)
			var key any
			if json.Unmarshal([]byte(name), &key) != nil {
				continue
			}
			i, j := slices.IndexFunc(ls, isElement(key, true)), slices.IndexFunc(ws, isElement(key, false))
			switch here := slices.Concat(at, []string{strconv.Itoa(i)}); {
			case i < 0:
			case j < 0:
				x.add(here, ls[i])
			default:
				x.fields(here, sub, ls[i], ws[j])
			}
		}
	}
}

// field is for one that has fields of its own. Where the bundle does not state it and nothing of it would remain, it goes
// as a whole: many a field may not be empty.
func (x *stranger) field(at []string, fields, live, want any, stated bool) {
	inside := stranger{want: x.want}
	inside.fields(at, fields, live, want)
	n := -1
	switch l := live.(type) {
	case map[string]any:
		n = len(l)
	case []any:
		n = len(l)
	}
	deeper := slices.ContainsFunc(inside.found, func(a addition) bool { return len(a.path) > len(at)+1 })
	if !stated && !deeper && len(inside.found) == n {
		x.add(at, live)
		return
	}
	x.found = append(x.found, inside.found...)
}

// isElement finds the element of a list that managedFields means. The bundle may leave out parts of the key that have a
// default.
func isElement(key any, all bool) func(any) bool {
	return func(e any) bool {
		k, ok := key.(map[string]any)
		if !ok {
			return fmt.Sprint(e) == fmt.Sprint(key)
		}
		m := mapOf(e)
		for f, v := range k {
			if have, ok := m[f]; m == nil || ok && fmt.Sprint(have) != fmt.Sprint(v) || !ok && all {
				return false
			}
		}
		return true
	}
}
