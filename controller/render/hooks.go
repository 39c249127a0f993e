package render

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"shoal.dev/shoal/bundlefmt"
)

// Helm's annotations. Only objects of a chart's templates are hooks: Helm knows none in crds/, and Fleet none in plain YAML
// and kustomizations.
const (
	hookAnnotation   = "helm.sh/hook"
	weightAnnotation = "helm.sh/hook-weight"
	deleteAnnotation = "helm.sh/hook-delete-policy"
)

func hookEvents() []bundlefmt.HookEvent {
	return []bundlefmt.HookEvent{
		bundlefmt.PreInstall, bundlefmt.PostInstall, bundlefmt.PreUpgrade, bundlefmt.PostUpgrade,
		bundlefmt.PreDelete, bundlefmt.PostDelete, bundlefmt.PreRollback, bundlefmt.PostRollback,
	}
}

// hook reads the annotations of a hook. It returns nil for one that is never created: of a chart's tests, or of Helm 2.
// what names the object in messages.
func (r *rendering) hook(what string, annotations map[string]string) (*bundlefmt.Hook, error) {
	var h bundlefmt.Hook
	for _, s := range words(annotations[hookAnnotation]) {
		switch e := bundlefmt.HookEvent(s); {
		case slices.Contains(hookEvents(), e):
			h.Events = append(h.Events, e)
		case s == "test" || s == "test-success" || s == "test-failure":
		case s == "crd-install":
			r.note("%s: left out, as Helm does with the hook crd-install since its version 3: move it to crds/", what)
			return nil, nil
		default:
			return nil, fmt.Errorf("%s: %s %q is no event of a release: known are %s and test", what, hookAnnotation, s, joined(hookEvents()))
		}
	}
	if len(h.Events) == 0 {
		return nil, nil
	}
	h.Events = inOrder(h.Events, hookEvents())
	if s := annotations[weightAnnotation]; s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			r.note("%s: %s %q is no whole number: it counts as 0, as with Helm", what, weightAnnotation, s)
		} else {
			h.Weight = int64(n)
		}
	}
	known := []bundlefmt.HookDelete{bundlefmt.BeforeCreation, bundlefmt.HookSucceeded, bundlefmt.HookFailed}
	for _, s := range words(annotations[deleteAnnotation]) {
		d := bundlefmt.HookDelete(s)
		if !slices.Contains(known, d) {
			return nil, fmt.Errorf("%s: %s %q: known are %s", what, deleteAnnotation, s, joined(known))
		}
		h.Delete = append(h.Delete, d)
	}
	h.Delete = inOrder(h.Delete, known)
	return &h, nil
}

// inOrder returns each of those in list once, in the order of all.
func inOrder[S comparable](list, all []S) []S {
	var out []S
	for _, e := range all {
		if slices.Contains(list, e) {
			out = append(out, e)
		}
	}
	return out
}

// words cuts a list as Helm does: at commas, white space and case do not matter.
func words(list string) []string {
	var out []string
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.ToLower(strings.TrimSpace(s)); s != "" {
			out = append(out, s)
		}
	}
	return out
}

func joined[S ~string](list []S) string {
	s := make([]string, len(list))
	for i, e := range list {
		s[i] = string(e)
	}
	return strings.Join(s, ", ")
}

// sameHook says whether two hooks are one object, but for when it is created: a chart may write it once for each event.
func sameHook(a, b object) bool {
	if a.hook == nil || b.hook == nil || a.hook.Weight != b.hook.Weight || !slices.Equal(a.hook.Delete, b.hook.Delete) {
		return false
	}
	bare := func(o object) (v map[string]any) {
		_ = json.Unmarshal(o.JSON, &v) // canonical, so it parses
		meta, _ := v["metadata"].(map[string]any)
		if an, ok := meta["annotations"].(map[string]any); ok {
			maps.DeleteFunc(an, func(k string, _ any) bool { return k == hookAnnotation })
		}
		return v
	}
	return reflect.DeepEqual(bare(a), bare(b))
}

// collide says what to do about two objects that would be one on the cluster.
func collide(a, b object) error {
	msg := fmt.Sprintf("%s appears twice: in %s and in %s", b.Ref, a.origin, b.origin)
	switch {
	case a.hook != nil && b.hook != nil:
		return fmt.Errorf("%s, as two different hooks: give them names of their own", msg)
	case a.hook != nil || b.hook != nil:
		return fmt.Errorf("%s, once as a hook: running the hook would delete and replace the other: give the hook a name of its own", msg)
	}
	return fmt.Errorf("%s", msg)
}
