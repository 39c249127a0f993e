package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Result is what one Apply did.
type Result struct {
	Total     int   // objects of the deployment
	Written   []Ref // created or changed; the others already were as wanted
	Errors    []Finding
	Taken     []Finding // fields that another manager had set differently
	Pruned    []Ref
	Kept      []Finding // of previous, still there, with the reason
	Inventory []Ref     // what to store and hand in as previous next time, also after an error

	// Held: the rest is applied, but nothing was pruned, because it would have been unusually much. Its message says how much
	// and what to do. The objects stay in Inventory, and the same is said again until Policy.ConfirmPrune or another release
	// settles it. Ref is one of them.
	Held *Finding
}

// Err is nil when every object is applied.
func (r Result) Err() error {
	if len(r.Errors) == 0 {
		return nil
	}
	return &ObjectErrors{Total: r.Total, Findings: r.Errors}
}

// Apply makes the objects of d what the cluster has: namespaces and CRDs first, then, once the CRDs are established (ctx
// bounds the wait), the rest in the bundle's order. An object that already is as wanted is not written. One that cannot be
// applied is a Finding and the rest goes on.
//
// previous is the inventory of the release before. What is in it and not in d is deleted, but only when every object of d
// was applied: a new name for an old thing must not end with neither.
//
// With Policy.ForceNamespace and a cluster-scoped object in d nothing is written.
func (a *Applier) Apply(ctx context.Context, d Deployment, previous []Ref) (Result, error) {
	r := &release{a: a, d: d, kinds: a.pass(), scalers: autoscalers{a: a}}
	r.res.Total = len(d.Objects)
	a.tracked.begin(d.Name)
	err := r.run(ctx, previous)
	r.finish(previous)
	if err != nil {
		return r.res, fmt.Errorf("apply %s@%s: %w", d.Name, d.Serial, err)
	}
	a.tracked.set(d.Name, inUse(r.objects))
	a.log.Debug().Str("deployment", d.Name).Stringer("serial", d.Serial).Int("written", len(r.res.Written)).
		Int("errors", len(r.res.Errors)).Int("pruned", len(r.res.Pruned)).Msg("applied")
	return r.res, nil
}

// release is one run of Apply.
type release struct {
	a       *Applier
	d       Deployment
	kinds   *pass
	scalers autoscalers
	objects []*object
	res     Result
	dropped []Ref                     // of previous, not ours any more
	brought map[schema.GroupKind]bool // kinds whose CRD is in this bundle
}

func (r *release) run(ctx context.Context, previous []Ref) error {
	var first, rest []*object
	for _, o := range r.d.Objects {
		obj := decode(o, r.d.Name)
		r.objects = append(r.objects, obj)
		if obj.isNamespace() || obj.isCRD() {
			first = append(first, obj)
		} else {
			rest = append(rest, obj)
		}
	}
	if r.d.Policy.ForceNamespace {
		if stop, err := r.scopes(ctx); stop || err != nil {
			return err
		}
	}
	for _, stage := range [][]*object{first, rest} {
		if err := r.stage(ctx, stage); err != nil {
			return err
		}
	}
	if len(r.failures()) > 0 {
		return nil
	}
	return r.prune(ctx, previous)
}

// scopes refuses the whole deployment before anything is written.
func (r *release) scopes(ctx context.Context) (stop bool, err error) {
	for _, o := range r.objects {
		if err := o.place(ctx, r.kinds, r.d.Policy); err != nil {
			return false, err
		}
		stop = stop || o.fail != nil && o.fail.Reason == ClusterScoped
	}
	return stop, nil
}

func (r *release) stage(ctx context.Context, objects []*object) error {
	if err := r.placeAll(ctx, objects); err != nil {
		return err
	}
	if err := r.a.read(ctx, r.d.Name, objects); err != nil {
		return err
	}
	if err := r.createNamespace(ctx, objects); err != nil {
		return err
	}
	for _, o := range objects {
		if o.fail != nil {
			continue
		}
		if err := r.apply(ctx, o); err != nil {
			return fmt.Errorf("%s: %w", o.ref, err)
		}
	}
	for _, o := range objects {
		if o.isCRD() && o.fail == nil {
			if err := r.established(ctx, o); err != nil {
				return fmt.Errorf("%s: wait until it is established: %w", o.ref, err)
			}
		}
	}
	return nil
}

func (r *release) placeAll(ctx context.Context, objects []*object) error {
	seen := map[id]bool{}
	for _, o := range objects {
		if err := o.place(ctx, r.kinds, r.d.Policy); err != nil {
			return err
		}
		if o.fail == nil && seen[idOf(o.ref)] {
			o.failed(Invalid, "appears twice once namespaces are set: give one of them another name")
		}
		seen[idOf(o.ref)] = true
	}
	return nil
}

var namespaces = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}

// createNamespace creates the deployment's namespace when something is about to be created in it and it is not there. It
// gets no label: it may hold what others put there, so it is not ours to delete.
func (r *release) createNamespace(ctx context.Context, objects []*object) error {
	ns := policyNamespace(r.d.Policy)
	if r.d.Policy.NoCreateNamespace || !slices.ContainsFunc(objects, func(o *object) bool { return o.fail == nil && o.live == nil && o.ref.Namespace == ns }) {
		return nil
	}
	if slices.ContainsFunc(objects, func(o *object) bool { return o.live != nil && o.ref.Namespace == ns }) {
		return nil
	}
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	client := r.a.dyn.Resource(namespaces)
	_, err := client.Get(rctx, ns, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if missing {
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": ns}}}
		_, err = client.Create(rctx, u, metav1.CreateOptions{FieldManager: FieldManager})
	}
	if o := r.a.outage(ctx, err); o != nil {
		return fmt.Errorf("create namespace %q: %w", ns, o)
	}
	if err == nil || apierrors.IsAlreadyExists(err) || !missing {
		return nil // an agent that may not look: if the namespace is missing, each object says so
	}
	for _, o := range objects { // each would only say that the namespace is missing, not why
		if o.fail == nil && o.ref.Namespace == ns {
			f := finding(Ref{Version: "v1", Kind: "Namespace", Name: ns}, err)
			o.failed(NoNamespace, "create namespace %q: %s", ns, f.Message)
		}
	}
	return nil
}

// apply writes one object if it has to. It costs one request when nothing has to be written, none when that is known.
func (r *release) apply(ctx context.Context, o *object) error {
	if f := o.claim(r.d.Name); f != nil {
		o.fail = f
		return nil
	}
	want, err := r.scalers.effective(ctx, o)
	if err != nil {
		return err
	}
	if o.live != nil {
		changes, err := r.a.compare(ctx, o, want)
		if err != nil {
			return err
		}
		switch {
		case o.fail == nil && len(changes) == 0:
			return nil
		case o.fail == nil, o.fail.Reason == noDryRun:
		case o.fail.Reason == Immutable && r.d.Policy.CorrectDriftForce:
			if done, err := r.makeRoom(ctx, o); !done || err != nil {
				return err
			}
		default:
			return nil
		}
		o.fail = nil
		r.a.log.Debug().Str("deployment", r.d.Name).Stringer("object", o.ref).Str("patch", patch(o.ref, changes)).Msg("object differs")
	}
	return r.write(ctx, o, want)
}

// makeRoom deletes an object that cannot be changed in place, so that it can be created again: only where the policy allows
// it, and never where more than the object would go. It waits until the object is gone; ctx bounds that.
func (r *release) makeRoom(ctx context.Context, o *object) (done bool, err error) {
	d := deletion{a: r.a, kinds: r.kinds, deployment: r.d.Name, foreground: true}
	if owner(o.live) != r.d.Name {
		return false, nil // not ours yet: adopting is one thing, deleting another
	}
	if _, f, err := d.delete(ctx, o.ref); f != nil && f.Reason != Terminating || err != nil {
		if f != nil {
			o.fail.Message += "; not recreated: " + f.Message
		}
		return false, err
	}
	for wait := pollMin; ; wait = min(2*wait, pollMax) {
		_, live, f, err := d.find(ctx, o.ref)
		switch {
		case err != nil:
			return false, err
		case f != nil:
			o.fail = f
			return false, nil
		case live == nil:
			o.live = nil
			return true, nil
		}
		if !pause(ctx, wait) {
			return false, ctx.Err()
		}
	}
}

func (r *release) write(ctx context.Context, o *object, want *unstructured.Unstructured) error {
	got, err := r.a.patch(ctx, o, want, metav1.ApplyOptions{FieldManager: FieldManager})
	if o := r.a.outage(ctx, err); o != nil {
		return o
	}
	if taken := conflicts(o.ref, err); taken != nil {
		got, err = r.a.patch(ctx, o, want, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
		if o := r.a.outage(ctx, err); o != nil {
			return o
		}
		if err == nil {
			r.res.Taken = append(r.res.Taken, *taken)
		}
	}
	if err != nil && r.isNewKind(o, err) {
		got, err = r.patchNewKind(ctx, o, want)
		if err := r.a.outage(ctx, err); err != nil {
			return err
		}
	}
	if err != nil {
		f := finding(o.ref, err)
		if f.Reason == UnknownKind {
			r.a.kinds.reset()
		}
		o.fail = &f
		return nil
	}
	if o.live == nil || o.live.GetResourceVersion() != got.GetResourceVersion() {
		r.res.Written = append(r.res.Written, o.ref)
	}
	o.live = got
	r.a.tracked.saw(o.kind.gvr, got)
	return r.a.verify(o.ref, want, got)
}

// isNewKind: an API server may answer for a moment that a kind is unknown although its CRD is established.
func (r *release) isNewKind(o *object, err error) bool {
	return r.brought[schema.GroupKind{Group: o.ref.Group, Kind: o.ref.Kind}] && apierrors.IsNotFound(err) && finding(o.ref, err).Reason == UnknownKind
}

func (r *release) patchNewKind(ctx context.Context, o *object, want *unstructured.Unstructured) (got *unstructured.Unstructured, err error) {
	ctx, cancel := context.WithTimeout(ctx, newKindWait)
	defer cancel()
	for wait := pollMin; ; wait = min(2*wait, pollMax) {
		got, err = r.a.patch(ctx, o, want, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
		if err == nil || !r.isNewKind(o, err) || !pause(ctx, wait) {
			return got, err
		}
	}
}

const (
	pollMin     = 50 * time.Millisecond
	pollMax     = 2 * time.Second
	newKindWait = 15 * time.Second
)

// pause reports whether it lasted; false means that ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// established waits until the API server serves the kind that a CRD defines, and makes the kind known.
func (r *release) established(ctx context.Context, crd *object) error {
	for wait := pollMin; ; wait = min(2*wait, pollMax) {
		switch ok, why := crdState(crd.live); {
		case ok:
			r.serve(crd.live)
			return nil
		case why != "":
			crd.failed(Invalid, "the CRD's names are not accepted: %s", why)
			return nil
		}
		if !pause(ctx, wait) {
			return ctx.Err()
		}
		live, err := r.a.get(ctx, crd.kind, crd.ref)
		if out := r.a.outage(ctx, err); out != nil {
			return out
		}
		if err != nil {
			f := finding(crd.ref, err)
			crd.fail = &f
			return nil
		}
		crd.live = live
	}
}

func crdState(u *unstructured.Unstructured) (established bool, refused string) {
	conds, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conds {
		m, _ := c.(map[string]any)
		switch {
		case m["type"] == "Established" && m["status"] == "True":
			established = true
		case m["type"] == "NamesAccepted" && m["status"] == "False":
			refused, _ = m["message"].(string)
		}
	}
	return established, refused
}

func (r *release) serve(crd *unstructured.Unstructured) {
	group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
	name, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "kind")
	plural, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "plural")
	scope, _, _ := unstructured.NestedString(crd.Object, "spec", "scope")
	vs, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
	var served []string
	for _, v := range vs {
		if m, _ := v.(map[string]any); m["served"] == true {
			n, _ := m["name"].(string)
			served = append(served, n)
		}
	}
	r.a.kinds.add(kind{gvr: schema.GroupVersionResource{Group: group, Resource: plural}, kind: name, namespaced: scope == "Namespaced", listable: true}, served)
	if r.brought == nil {
		r.brought = map[schema.GroupKind]bool{}
	}
	r.brought[schema.GroupKind{Group: group, Kind: name}] = true
}

func (a *Applier) patch(ctx context.Context, o *object, want *unstructured.Unstructured, opts metav1.ApplyOptions) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return a.client(o.kind, o.ref.Namespace).Apply(ctx, o.ref.Name, want, opts)
}

// conflicts says which managers had the fields that we are about to take; nil when err is no such conflict.
func conflicts(ref Ref, err error) *Finding {
	if !apierrors.IsConflict(err) {
		return nil
	}
	var said []string
	if s, ok := err.(apierrors.APIStatus); ok && s.Status().Details != nil {
		for _, c := range s.Status().Details.Causes {
			if c.Type == metav1.CauseTypeFieldManagerConflict {
				_, manager, _ := strings.Cut(c.Message, "conflict with ")
				said = append(said, fmt.Sprintf("%s had %s", manager, strings.TrimPrefix(c.Field, ".")))
			}
		}
	}
	if said == nil {
		return nil
	}
	return &Finding{ref, TakenFromManager, short(strings.Join(said, "; "), patchLength)}
}

func (r *release) failures() []Finding {
	var out []Finding
	for _, o := range r.objects {
		if o.fail != nil {
			out = append(out, *o.fail)
		}
	}
	return out
}

// finish fills in what the result says about every object, also when the pass was cut short. An object that failed stays
// in the inventory: it may be on the cluster from an earlier release.
func (r *release) finish(previous []Ref) {
	r.res.Errors = r.failures()
	have := map[id]bool{}
	for _, o := range r.objects {
		if o.fail != nil && o.fail.Reason == OwnedByOther {
			continue
		}
		have[idOf(o.ref)] = true
		r.res.Inventory = append(r.res.Inventory, o.ref)
	}
	for _, p := range r.dropped {
		have[idOf(p)] = true
	}
	for _, p := range previous {
		if !have[idOf(p)] {
			r.res.Inventory = append(r.res.Inventory, p)
		}
	}
}

func inUse(objects []*object) []schema.GroupVersionResource {
	var out []schema.GroupVersionResource
	for _, o := range objects {
		if o.kind.gvr.Resource != "" && !slices.Contains(out, o.kind.gvr) {
			out = append(out, o.kind.gvr)
		}
	}
	return out
}
