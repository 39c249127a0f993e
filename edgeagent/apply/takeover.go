package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// With server-side apply a field goes when its last manager drops it. Who made an object before a bundle took it over, and who has
// since written one of the bundle's fields, is a manager too, so what the bundle drops would stay. What a bundle states is its alone:
// before a release is written, the fields that it drops are taken from all others. What the bundle never stated stays with whoever
// set it, and so does what comes by a subresource (status, an autoscaler's scale) or is [siteOwned].

// fields is a set of fields as managedFields writes it: "f:name" of a map, "k:{…}" of a list whose elements have keys, "v:…" of a
// set, and "." for the thing itself.
type fields = map[string]any

// takeOver makes the deployment the only manager of what it drops from o. o.live is read again where it was written.
func (r *release) takeOver(ctx context.Context, o *object) error {
	for range 5 {
		body, err := r.takings(ctx, o)
		if err != nil || body == nil {
			return err
		}
		client, f, err := r.kinds.writer(ctx, o.ref, o.kind, o.ref.Namespace)
		if f != nil || err != nil {
			o.fail = f
			return err
		}
		rctx, cancel := context.WithTimeout(ctx, requestTimeout)
		got, err := client.Patch(rctx, o.ref.Name, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: FieldManager})
		cancel()
		if out := r.a.outage(ctx, err); out != nil {
			return out
		}
		if err == nil {
			o.live = got
			r.a.tracked.saw(o.kind.gvr, got)
			return nil
		}
		f1 := o.finding(err)
		if o.fail = &f1; !apierrors.IsConflict(err) {
			return nil
		}
		live, err := r.a.get(ctx, o.kind, o.ref) // somebody has written meanwhile, a status for one
		if out := r.a.outage(ctx, err); out != nil {
			return out
		}
		if err != nil {
			f := o.finding(err)
			o.fail = &f
			return nil
		}
		o.live = live
		if o.fail, err = r.claim(ctx, o); err != nil || o.fail != nil {
			return err
		}
	}
	o.failed(Conflict, "changed by somebody else again and again")
	return nil
}

// takings is the patch that takes from other managers what the release drops; nil: nothing.
func (r *release) takings(ctx context.Context, o *object) ([]byte, error) {
	var ops []any
	if a := o.live.GetAnnotations(); owner(o.live) != r.d.Name && a[lastAppliedAnnotation] != "" && o.want.GetAnnotations()[lastAppliedAnnotation] == "" {
		// Of an object that is taken over: what kubectl has applied is no measure any more, and may quote a secret.
		ops = append(ops, map[string]any{"op": "remove", "path": join([]string{"metadata", "annotations", lastAppliedAnnotation})})
	}
	managers, err := r.without(ctx, o)
	if err != nil {
		return nil, err
	}
	if managers != nil {
		ops = append(ops, map[string]any{"op": "replace", "path": "/metadata/managedFields", "value": managers})
	}
	if len(ops) == 0 {
		return nil, nil
	}
	ops = append(ops, map[string]any{"op": "replace", "path": "/metadata/resourceVersion", "value": o.live.GetResourceVersion()})
	return json.Marshal(ops)
}

const lastAppliedAnnotation = "kubectl.kubernetes.io/last-applied-configuration"

// without is o's managers when all others have lost what the release drops; nil: they have nothing of it.
func (r *release) without(ctx context.Context, o *object) ([]metav1.ManagedFieldsEntry, error) {
	var out []metav1.ManagedFieldsEntry
	own := metav1.ManagedFieldsEntry{Manager: FieldManager, Operation: metav1.ManagedFieldsOperationApply, APIVersion: o.want.GetAPIVersion(), FieldsType: "FieldsV1"}
	ours := fields{}
	var foreign []metav1.ManagedFieldsEntry
	for _, m := range o.live.GetManagedFields() {
		switch {
		case m.Manager == own.Manager && m.Operation == own.Operation && m.Subresource == "":
			if own = m; m.FieldsV1 != nil && m.APIVersion == o.want.GetAPIVersion() {
				if err := utiljson.Unmarshal(m.FieldsV1.GetRawBytes(), &ours); err != nil {
					return nil, fmt.Errorf("%s: read managedFields: %w", o.ref, err)
				}
			}
		case m.Manager == ownManager || m.Subresource != "" || m.APIVersion != o.want.GetAPIVersion() || m.FieldsV1 == nil:
			out = append(out, m) // paths of another version would be another field's
		default:
			foreign = append(foreign, m)
		}
	}
	if len(foreign) == 0 || own.APIVersion != o.want.GetAPIVersion() {
		return nil, nil
	}
	before, err := r.before(ctx, o)
	if err != nil {
		return nil, err
	}
	changed := false
	for _, m := range foreign {
		var theirs fields
		if err := utiljson.Unmarshal(m.FieldsV1.GetRawBytes(), &theirs); err != nil {
			return nil, fmt.Errorf("%s: read managedFields: %w", o.ref, err)
		}
		taken := take(theirs, ours, before, o.want.Object)
		if len(taken) == 0 {
			out = append(out, m)
			continue
		}
		changed = true
		addTo(ours, taken)
		if len(theirs) > 0 {
			if err := encode(&m, theirs); err != nil {
				return nil, err
			}
			out = append(out, m)
		}
	}
	if !changed {
		return nil, nil
	}
	if own.Time == nil {
		own.Time = foreign[0].Time
	}
	if err := encode(&own, ours); err != nil {
		return nil, err
	}
	return append(out, own), nil
}

func encode(m *metav1.ManagedFieldsEntry, f fields) error {
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("write managedFields: %w", err)
	}
	m.FieldsV1 = &metav1.FieldsV1{}
	m.FieldsV1.SetRawBytes(b)
	return nil
}

// before is the object as the release before stated it, without what is the site's; nil: it did not, or nobody knows.
func (r *release) before(ctx context.Context, o *object) (any, error) {
	if r.d.Before == nil {
		return nil, nil
	}
	if r.stated == nil {
		r.stated = map[id]*object{}
		for _, b := range r.d.Before() {
			old := decode(b, r.d.Name)
			if err := old.place(ctx, r.kinds, r.d.Policy); err != nil {
				return nil, err
			}
			if old.fail == nil {
				r.stated[idOf(old.ref)] = old
			}
		}
	}
	old := r.stated[idOf(o.ref)]
	if old == nil || old.want.GetAPIVersion() != o.want.GetAPIVersion() {
		return nil, nil
	}
	want, err := r.scalers.effective(ctx, &object{ref: o.ref, want: old.want, live: o.live})
	if err != nil {
		return nil, err
	}
	return want.Object, nil
}

// take removes from theirs what was stated before, by ours (what the agent has) or by the object before, and is not in want, and
// returns it. An element of a list, or a part of an object, goes with all that is in it, defaults for instance: without the
// rest they would be none. Of maps with free keys only the keys that were stated go.
func take(theirs, ours fields, before, want any) fields {
	taken := fields{}
	for k, v := range theirs {
		sub, _ := v.(map[string]any)
		old, stated := child(before, k)
		own, applied := ours[k].(map[string]any)
		if k == "." || !stated && !applied {
			continue
		}
		wanted, wants := child(want, k)
		if !wants && (len(sub) == 0 || !slices.Contains(freeKeys, k)) {
			taken[k] = sub
			delete(theirs, k)
			continue
		}
		if t := take(sub, own, old, wanted); len(t) > 0 {
			if taken[k] = t; len(sub) == 0 {
				delete(theirs, k)
			}
		}
	}
	return taken
}

// freeKeys are maps in which every key is somebody's own.
var freeKeys = []string{"f:labels", "f:annotations", "f:data", "f:binaryData", "f:matchLabels", "f:nodeSelector", "f:selector",
	"f:parameters", "f:limits", "f:requests", "f:hard", "f:metadata"}

// child is what a step of [fields] leads to in an object.
func child(v any, step string) (any, bool) {
	kind, arg, _ := strings.Cut(step, ":")
	switch x := v.(type) {
	case map[string]any:
		e, ok := x[arg]
		return e, ok && kind == "f"
	case []any:
		var want any
		if utiljson.Unmarshal([]byte(arg), &want) != nil {
			return nil, false
		}
		i := slices.IndexFunc(x, func(e any) bool {
			switch kind {
			case "k":
				return keyed(e, want)
			case "v":
				return fmt.Sprint(e) == fmt.Sprint(want)
			}
			return false
		})
		if i >= 0 {
			return x[i], true
		}
	}
	return nil, false
}

// keyed reports whether an element of a list has this key. A field of the key that it does not have is at its default.
func keyed(e, key any) bool {
	m, ok1 := e.(map[string]any)
	k, ok2 := key.(map[string]any)
	n := 0
	for f, v := range k {
		if have, ok := m[f]; ok {
			if n++; fmt.Sprint(have) != fmt.Sprint(v) {
				return false
			}
		}
	}
	return ok1 && ok2 && n > 0
}

// addTo adds from to into.
func addTo(into, from fields) {
	for k, v := range from {
		sub, _ := v.(map[string]any)
		if have, ok := into[k].(map[string]any); ok {
			addTo(have, sub)
		} else {
			into[k] = maps.Clone(sub)
		}
	}
}
