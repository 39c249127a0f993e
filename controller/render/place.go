package render

import (
	"encoding/json"
	"fmt"
	"slices"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
)

// scopes says which kinds belong to a namespace: Kubernetes' own, and those that a bundle defines itself. Of others only the cluster
// knows.
type scopes map[[2]string]bool

func scopesOf(objects []bundlefmt.Object) scopes {
	s := scopes{}
	for _, k := range clusterScoped() {
		s[k] = false
	}
	for _, o := range objects {
		if o.Group != "apiextensions.k8s.io" || o.Kind != "CustomResourceDefinition" {
			continue
		}
		var crd struct {
			Spec struct {
				Group string                `json:"group"`
				Names struct{ Kind string } `json:"names"`
				Scope string                `json:"scope"`
			} `json:"spec"`
		}
		if json.Unmarshal(o.JSON, &crd) == nil && crd.Spec.Scope != "" {
			s[[2]string{crd.Spec.Group, crd.Spec.Names.Kind}] = crd.Spec.Scope == "Namespaced"
		}
	}
	return s
}

func (s scopes) namespaced(o bundlefmt.Ref) (namespaced, known bool) {
	if n, ok := s[[2]string{o.Group, o.Kind}]; ok {
		return n, true
	}
	return true, slices.Contains(ownGroups(), o.Group)
}

// ownGroups are the API groups that Kubernetes itself serves; their kinds belong to a namespace unless clusterScoped says otherwise.
func ownGroups() []string {
	return []string{
		"", "admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "apps", "authentication.k8s.io",
		"authorization.k8s.io", "autoscaling", "batch", "certificates.k8s.io", "coordination.k8s.io", "discovery.k8s.io", "events.k8s.io",
		"extensions", "flowcontrol.apiserver.k8s.io", "networking.k8s.io", "node.k8s.io", "policy", "rbac.authorization.k8s.io",
		"resource.k8s.io", "scheduling.k8s.io", "storage.k8s.io", "storagemigration.k8s.io",
	}
}

// Placed returns the objects of a rendered bundle with the namespaces that agents give them, in the same order, and a sentence for
// every kind of which only the cluster knows whether it belongs to a namespace: such objects are taken as if they did.
func Placed(b *bundlefmt.Bundle, o v1alpha1.BundleOptions) (objects []bundlefmt.Object, notes []string, err error) {
	r := &rendering{in: Input{Options: o}}
	s := scopesOf(b.Objects())
	for _, obj := range b.Objects() {
		namespaced, known := s.namespaced(obj.Ref)
		ns := obj.Namespace
		switch {
		case !namespaced:
			ns = ""
		case o.Namespace != "" || ns == "":
			ns = r.namespace()
		}
		if note := fmt.Sprintf("%s of %s is a kind that this bundle does not define: shown as if it belonged to a namespace, which the cluster decides", obj.Kind, obj.Group); !known && obj.Namespace == "" && !slices.Contains(notes, note) {
			notes = append(notes, note)
		}
		if ns != obj.Namespace {
			if obj, err = inNamespace(obj, ns); err != nil {
				return nil, nil, err
			}
		}
		objects = append(objects, obj)
	}
	return objects, notes, nil
}

func inNamespace(o bundlefmt.Object, ns string) (bundlefmt.Object, error) {
	var v map[string]json.RawMessage
	var meta map[string]json.RawMessage
	err := json.Unmarshal(o.JSON, &v)
	if err == nil {
		err = json.Unmarshal(v["metadata"], &meta)
	}
	if err != nil {
		return o, fmt.Errorf("read %s: %w", o.Ref, err)
	}
	delete(meta, "namespace")
	if ns != "" {
		meta["namespace"], _ = json.Marshal(ns) // a string always can be
	}
	if v["metadata"], err = json.Marshal(meta); err != nil {
		return o, err
	}
	js, err := json.Marshal(v)
	if err != nil {
		return o, err
	}
	return bundlefmt.NewObject(js)
}
