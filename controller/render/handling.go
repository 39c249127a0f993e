package render

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
)

// handle turns the options that a site needs, besides the objects, into what stands in the index.
func (r *rendering) handle() error {
	if d := r.in.Options.Diff; d != nil {
		for i, p := range d.ComparePatches {
			c, err := comparePatch(p)
			if err != nil {
				return fmt.Errorf("diff.comparePatches[%d]: %w", i, err)
			}
			r.handling.ComparePatches = append(r.handling.ComparePatches, c)
		}
	}
	if r.in.Ignore != nil {
		for i, c := range r.in.Ignore.Conditions {
			if len(c) == 0 {
				return fmt.Errorf("ignore.conditions[%d] is empty, it would match every condition: name its type", i)
			}
		}
		r.handling.IgnoreConditions = r.in.Ignore.Conditions
	}
	for i, h := range r.in.Health {
		if h.Kind == "" || h.Ready == "" && h.Failed == "" {
			return fmt.Errorf("health[%d]: kind, and ready or failed, are needed", i)
		}
		r.handling.Health = append(r.handling.Health, bundlefmt.HealthRule(h))
	}
	r.handling.NamespaceLabels = r.namespaceMeta("namespaceLabels", r.in.Options.NamespaceLabels)
	r.handling.NamespaceAnnotations = r.namespaceMeta("namespaceAnnotations", r.in.Options.NamespaceAnnotations)
	return nil
}

// comparePatchOps are those of JSON Patch, and Fleet's "ignore".
func comparePatchOps() []string {
	return []string{"add", "remove", "replace", "test", "ignore"}
}

func comparePatch(p v1alpha1.ComparePatch) (bundlefmt.ComparePatch, error) {
	c := bundlefmt.ComparePatch{APIVersion: p.APIVersion, Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, JSONPointers: p.JSONPointers}
	for i, s := range p.JSONPointers {
		if !strings.HasPrefix(s, "/") {
			return c, fmt.Errorf("jsonPointers[%d]: %q is no JSON pointer: it begins with /, as in /spec/replicas", i, s)
		}
	}
	for i, o := range p.Operations {
		switch {
		case !slices.Contains(comparePatchOps(), o.Op):
			return c, fmt.Errorf("operations[%d]: op %q: known are %s", i, o.Op, strings.Join(comparePatchOps(), ", "))
		case o.Op == "ignore":
			if _, err := regexp.Compile(p.Name); err != nil {
				return c, fmt.Errorf("name %q is no regular expression, which the operation ignore needs: %w", p.Name, err)
			}
		case !strings.HasPrefix(o.Path, "/"):
			return c, fmt.Errorf("operations[%d]: path %q is no JSON pointer: it begins with /, as in /spec/replicas", i, o.Path)
		}
		value := o.Value
		if value == "" && (o.Op == "add" || o.Op == "replace" || o.Op == "test") || value != "" && !json.Valid([]byte(value)) {
			b, err := json.Marshal(value) // plain text, as Fleet's users write it
			if err != nil {
				return c, err
			}
			value = string(b)
		}
		c.Operations = append(c.Operations, bundlefmt.PatchOp{Op: o.Op, Path: o.Path, Value: value})
	}
	return c, nil
}

// namespaceMeta drops what is never set this way, and says so.
func (r *rendering) namespaceMeta(field string, in map[string]string) map[string]string {
	out := make(map[string]string, len(in))
	for k, v := range in {
		if k == "kubernetes.io/metadata.name" || strings.HasPrefix(k, "pod-security.kubernetes.io/") {
			r.note("%s: %s is not set: a bundle never changes it on a namespace", field, k)
			continue
		}
		out[k] = v
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
