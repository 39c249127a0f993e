package apply

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"shoal.dev/shoal/bundlefmt"
)

// object is one object of a deployment on its way through a pass.
type object struct {
	ref  Ref // with the namespace it really goes to
	want *unstructured.Unstructured
	kind kind
	live *unstructured.Unstructured // nil: not on the cluster
	fail *Finding                   // set: nothing more is done with it in this pass

	spec   bundlefmt.Digest  // of the spec that the bundle states, of a kind that runs once
	added  []addition        // what the bundle does not state and minds, as compare has found
	filled map[string]bool   // paths, in the form of [loose], that hold values of the site
	hidden map[string]bool   // the same, and those that held them before
	asked  [sha256.Size]byte // see [asked]
	looked bool              // whether it is on the cluster was asked
	known  bool              // ready and as wanted, as the watch knows; live is nil then
}

func (o *object) isNamespace() bool { return o.ref.Group == "" && o.ref.Kind == "Namespace" }
func (o *object) isCRD() bool {
	return o.ref.Group == "apiextensions.k8s.io" && o.ref.Kind == "CustomResourceDefinition"
}

func (o *object) failed(r Reason, format string, args ...any) {
	o.fail = &Finding{o.ref, r, fmt.Sprintf(format, args...)}
}

// decode makes the object that is sent: labelled, and without what only a cluster writes, which exported manifests carry
// and server-side apply refuses or would claim.
func decode(o bundlefmt.Object, deployment string) *object {
	out := &object{ref: o.Ref, want: &unstructured.Unstructured{}}
	if err := out.want.UnmarshalJSON(o.JSON); err != nil {
		out.failed(Invalid, "decode: %v", err)
		return out
	}
	w := out.want.Object
	delete(w, "status")
	if m, ok := w["metadata"].(map[string]any); ok {
		for k := range bookkeeping {
			delete(m, k)
		}
	}
	if builtIn(o.Group) {
		dropNulls(w)
	} else {
		dropNulls(w["metadata"])
	}
	if isSecret(o.Ref) {
		if err := mergeStringData(w); err != nil {
			out.failed(Invalid, "%v", err)
			return out
		}
	}
	if isAggregated(o.Ref, w) {
		delete(w, "rules") // filled in by a controller
	}
	if runsOnce(o.Ref) {
		out.spec = specOf(out.want)
	}
	// A bundle that names the mark of a hook would have the object left out of everything.
	labels := out.want.GetLabels()
	delete(labels, HookLabel)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[Label] = deployment
	out.want.SetLabels(labels)
	return out
}

// dropNulls takes out fields that say null, which charts write for "not set". Server-side apply takes null for a value: in
// a key of a list (protocol of a port) it makes a second element beside the defaulted one. In custom resources null can
// mean something of its own and stays.
func dropNulls(v any) {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			if e == nil {
				delete(x, k)
			} else {
				dropNulls(e)
			}
		}
	case []any:
		for _, e := range x {
			dropNulls(e)
		}
	}
}

// mergeStringData does what the API server does on create. Server-side apply would keep ownership of stringData only, so
// that a key that is later dropped from the bundle would stay in data for ever.
func mergeStringData(secret map[string]any) error {
	sd, ok := secret["stringData"].(map[string]any)
	if !ok {
		return nil
	}
	data, ok := secret["data"].(map[string]any)
	if !ok {
		data = map[string]any{}
	}
	for k, v := range sd {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("stringData.%s is not a string", k)
		}
		data[k] = base64.StdEncoding.EncodeToString([]byte(s))
	}
	secret["data"] = data
	delete(secret, "stringData")
	return nil
}

func isAggregated(r Ref, o map[string]any) bool {
	return r.Group == "rbac.authorization.k8s.io" && r.Kind == "ClusterRole" && o["aggregationRule"] != nil
}

// finding says what the API server's answer means for the object.
func (o *object) finding(err error) Finding {
	return findingOf(o.ref, err, isSecret(o.ref) || len(o.filled) > 0)
}

// decodeAll makes the objects and the hooks of a deployment, with the site's values in them. The finding says why those are
// not there; objects are returned all the same, with tokens in them: they can be looked for, not written.
func (a *Applier) decodeAll(ctx context.Context, p *pass) (objects []*object, hooks []*hook, f *Finding, err error) {
	site, f, err := a.siteValues(ctx, p)
	if err != nil {
		return nil, nil, nil, err
	}
	hook1 := map[int]bundlefmt.Hook{}
	for _, h := range p.d.Handling.Hooks {
		hook1[h.Object] = h
	}
	for i, o := range p.d.Objects {
		obj := decode(o, p.d.Name)
		site.fill(obj)
		a.hide(obj)
		spec, ok := hook1[i]
		if !ok {
			objects = append(objects, obj)
			continue
		}
		if obj.fail == nil {
			labels := obj.want.GetLabels()
			labels[HookLabel] = "true"
			obj.want.SetLabels(labels)
		}
		hooks = append(hooks, &hook{obj, spec})
	}
	return objects, hooks, f, nil
}

// place finds an object's kind and namespace under the deployment's policy.
func (o *object) place(ctx context.Context, p *pass, policy bundlefmt.Policy) error {
	if o.fail != nil {
		return nil
	}
	k, f, err := p.find(ctx, o.ref)
	if err != nil {
		return err
	}
	if f != nil {
		o.fail = f
		return nil
	}
	o.kind = k
	if !k.namespaced {
		if policy.ForceNamespace {
			o.failed(ClusterScoped, "%s is cluster-scoped, but the bundle's namespace option forces everything into namespace %q: remove the object or use defaultNamespace", o.ref, policyNamespace(policy))
		}
		o.ref.Namespace = ""
		o.want.SetNamespace("")
		return nil
	}
	if policy.ForceNamespace || o.ref.Namespace == "" {
		o.ref.Namespace = policyNamespace(policy)
	}
	o.want.SetNamespace(o.ref.Namespace)
	return nil
}

func policyNamespace(p bundlefmt.Policy) string {
	if p.Namespace == "" {
		return metav1.NamespaceDefault
	}
	return p.Namespace
}

// listFrom is the number of objects of one kind from which one list by label is cheaper than a get for each.
const listFrom = 2

// read fills in what is on the cluster: one list for each kind, and a get for each object that the list did not have
// because it is missing or carries no label of ours.
func (a *Applier) read(ctx context.Context, deployment string, objects []*object) error {
	groups := map[kind][]*object{}
	var order []kind
	for _, o := range objects {
		if o.fail != nil {
			continue
		}
		if groups[o.kind] == nil {
			order = append(order, o.kind)
		}
		groups[o.kind] = append(groups[o.kind], o)
	}
	for _, k := range order {
		if err := a.readKind(ctx, deployment, k, groups[k]); err != nil {
			return err
		}
	}
	return nil
}

func (a *Applier) readKind(ctx context.Context, deployment string, k kind, objects []*object) error {
	listed := map[id]*unstructured.Unstructured{}
	if len(objects) >= listFrom && k.listable {
		var err error
		if listed, err = a.list(ctx, deployment, k, objects); err != nil {
			return err
		}
	}
	for _, o := range objects {
		o.looked = true
		if o.live = listed[idOf(o.ref)]; o.live != nil {
			continue
		}
		live, err := a.get(ctx, k, o.ref)
		if out := a.outage(ctx, err); out != nil {
			return fmt.Errorf("read %s: %w", o.ref, out)
		}
		switch {
		case err == nil:
			o.live = live
		case !apierrors.IsNotFound(err):
			f := finding(o.ref, err)
			o.fail = &f
		}
	}
	return nil
}

func (a *Applier) get(ctx context.Context, k kind, ref Ref) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return a.client(k, ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
}

// list is what carries the deployment's label: in the one namespace that all objects are in, else everywhere. That it may
// not be listed is no error, each object is got then.
func (a *Applier) list(ctx context.Context, deployment string, k kind, objects []*object) (map[id]*unstructured.Unstructured, error) {
	ns := objects[0].ref.Namespace
	for _, o := range objects {
		if o.ref.Namespace != ns {
			ns = ""
		}
	}
	client := a.client(k, ns)
	out := map[id]*unstructured.Unstructured{}
	opts := metav1.ListOptions{LabelSelector: Label + "=" + deployment, Limit: 250}
	for {
		page, err := a.listPage(ctx, client.List, opts)
		if o := a.outage(ctx, err); o != nil {
			return nil, fmt.Errorf("list %s: %w", k.gvr.Resource, o)
		}
		if err != nil {
			return nil, nil
		}
		for i := range page.Items {
			u := &page.Items[i]
			out[id{k.gvr.Group, k.kind, u.GetNamespace(), u.GetName()}] = u
		}
		if opts.Continue = page.GetContinue(); opts.Continue == "" {
			return out, nil
		}
	}
}

func (a *Applier) listPage(ctx context.Context, list func(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error), o metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return list(ctx, o)
}

// claim says why a live object must not be touched for the deployment, if so. Whether one that is nobody's may be taken is
// for the release to say, and what others yield.
func (o *object) claim(deployment string, yields ...string) *Finding {
	if o.live == nil {
		return nil
	}
	switch had := owner(o.live); {
	case had != "" && had != deployment && !slices.Contains(yields, had):
		return &Finding{o.ref, OwnedByOther, fmt.Sprintf("belongs to deployment %q already: remove it from one of the two bundles", had)}
	case had == "":
		if c := metav1.GetControllerOf(o.live); c != nil {
			return &Finding{o.ref, OwnedByOther, fmt.Sprintf("is controlled by %s %q: rename the object in the bundle", c.Kind, c.Name)}
		}
	}
	if t := o.live.GetDeletionTimestamp(); t != nil {
		return &Finding{o.ref, Terminating, terminating(o.live)}
	}
	return nil
}
