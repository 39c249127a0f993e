package apply

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Inventory is every object that applying d may create, in the form of [Result.Inventory]. It is what to write down before
// Apply: after a power cut in the middle nothing of it is forgotten. Nothing is sent beyond discovery. An object whose kind
// is unknown, and not brought by a CRD in d, is left out: it cannot be created.
func (a *Applier) Inventory(ctx context.Context, d Deployment) ([]Ref, error) {
	brought := map[schema.GroupKind]bool{} // namespaced?
	for _, o := range d.Objects {
		if o.Group != "apiextensions.k8s.io" || o.Kind != "CustomResourceDefinition" {
			continue
		}
		var u unstructured.Unstructured
		if u.UnmarshalJSON(o.JSON) != nil {
			continue
		}
		group, _, _ := unstructured.NestedString(u.Object, "spec", "group")
		kind, _, _ := unstructured.NestedString(u.Object, "spec", "names", "kind")
		scope, _, _ := unstructured.NestedString(u.Object, "spec", "scope")
		brought[schema.GroupKind{Group: group, Kind: kind}] = scope == "Namespaced"
	}
	p := a.pass(d)
	out := make([]Ref, 0, len(d.Objects))
	hooks := hooked(d.Handling)
	for i, o := range d.Objects {
		if hooks[i] {
			continue
		}
		ref := o.Ref
		namespaced, ok := brought[schema.GroupKind{Group: o.Group, Kind: o.Kind}]
		if !ok {
			k, f, err := p.find(ctx, ref)
			if err != nil {
				return nil, fmt.Errorf("inventory of %s@%s: %w", d.Name, d.Serial, err)
			}
			if f != nil {
				continue
			}
			namespaced = k.namespaced
		}
		switch {
		case !namespaced:
			ref.Namespace = ""
		case d.Policy.ForceNamespace || ref.Namespace == "":
			ref.Namespace = policyNamespace(d.Policy)
		}
		out = append(out, ref)
	}
	return out, nil
}
