package apply

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"shoal.dev/shoal/bundlefmt"
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

	Runs []Run // for Deployment.Runs next time
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
	r := &release{a: a, d: d, kinds: a.pass(d), scalers: autoscalers{a: a}}
	r.res.Total = len(d.Objects) - len(d.Handling.Hooks)
	a.tracked.begin(d.Name)
	err := r.run(ctx, previous)
	r.finish(previous)
	if err != nil {
		return r.res, fmt.Errorf("apply %s@%s: %w", d.Name, d.Serial, err)
	}
	if used := inUse(r.objects); len(used) > 0 || len(r.objects) == 0 { // else it was stopped before it looked
		a.tracked.set(d.Name, used)
	}
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
	hooks   []*hook
	carried int // objects that were there and ours before this pass
	was     int // objects of the release before; see Deployment.Was
	stopped bool
	extra   []Finding // beside those of objects
	res     Result
	dropped []Ref                     // of previous, not ours any more
	stated  map[id]*object            // by the release before; nil: not asked for yet
	brought map[schema.GroupKind]bool // kinds whose CRD is in this bundle
}

func (r *release) run(ctx context.Context, previous []Ref) error {
	var f *Finding
	var err error
	if r.objects, r.hooks, f, err = r.a.decodeAll(ctx, r.kinds); err != nil || f != nil {
		r.stop(f)
		return err
	}
	if r.d.Policy.ForceNamespace {
		if stop, err := r.scopes(ctx); stop || err != nil {
			return err
		}
	}
	var first, rest []*object
	for _, o := range r.objects {
		if o.isNamespace() || o.isCRD() {
			first = append(first, o)
		} else {
			rest = append(rest, o)
		}
	}
	before, after := r.d.Operation.moments()
	steps := []func() error{
		func() error { return r.namespaceExists(ctx, before, after) },
		func() error { return r.runHooks(ctx, before) },
		func() error { return r.stage(ctx, first) },
		func() error { return r.stage(ctx, rest) },
		func() error { return r.labelNamespace(ctx) },
	}
	if r.d.Operation == Install { // as Helm does: a hook may use what a CRD brings
		steps[1], steps[2] = steps[2], steps[1]
	}
	for _, step := range steps {
		if err := step(); err != nil || r.stopped {
			return err
		}
	}
	r.measure(previous)
	if len(r.failures()) > 0 {
		return nil
	}
	if err := r.prune(ctx, previous); err != nil || r.stopped {
		return err
	}
	r.a.mu.Lock()
	if r.res.Held == nil {
		r.a.was[r.d.Name] = len(r.objects)
	}
	r.a.mu.Unlock()
	if len(hooksAt(r.hooks, after)) > 0 && r.d.Policy.ReadyTimeoutSecond > 0 {
		if err := r.waitReady(ctx, after); err != nil || r.stopped {
			return err
		}
	}
	return r.runHooks(ctx, after)
}

// stop ends the release; f is why.
func (r *release) stop(f *Finding) {
	if f != nil {
		r.stopped = true
		r.extra = append(r.extra, *f)
	}
}

// moments are the hook events before and after an operation; a repair has none.
func (o Operation) moments() (before, after bundlefmt.HookEvent) {
	switch o {
	case Install:
		return bundlefmt.PreInstall, bundlefmt.PostInstall
	case Upgrade:
		return bundlefmt.PreUpgrade, bundlefmt.PostUpgrade
	case Rollback:
		return bundlefmt.PreRollback, bundlefmt.PostRollback
	}
	return "", ""
}

func (r *release) runHooks(ctx context.Context, e bundlefmt.HookEvent) error {
	f, err := r.a.runHooks(ctx, r.kinds, r.hooks, e)
	r.stop(f)
	return err
}

// namespaceExists sees to the namespace of hooks, which may come before anything else.
func (r *release) namespaceExists(ctx context.Context, events ...bundlefmt.HookEvent) error {
	var objects []*object
	for _, e := range events {
		for _, h := range hooksAt(r.hooks, e) {
			if h.fail == nil && (h.ref.Namespace == "" || h.ref.Namespace == policyNamespace(r.d.Policy)) {
				objects = append(objects, &object{ref: Ref{Kind: h.ref.Kind, Name: h.ref.Name, Namespace: policyNamespace(r.d.Policy)}})
			}
		}
	}
	if len(objects) == 0 {
		return nil
	}
	if err := r.createNamespace(ctx, objects); err != nil {
		return err
	}
	r.stop(objects[0].fail)
	return nil
}

// waitReady waits until everything is ready, as Helm does before its last hooks where the bundle sets a timeout.
func (r *release) waitReady(ctx context.Context, e bundlefmt.HookEvent) error {
	timeout := time.Duration(r.d.Policy.ReadyTimeoutSecond) * time.Second
	v := r.a.vigil(&r.d, timeout, "the %s hooks wait until everything is ready,", e)
	wctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for wait := pollMin; ; wait = min(2*wait, pollMax) {
		st, err := r.a.Check(wctx, r.d)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && wctx.Err() == nil:
			return err
		case err == nil && st.Ready == st.Total:
			return nil
		case err == nil && st.Failed.Count > 0:
			f := st.Failed.First[0]
			f.Message += fmt.Sprintf("; the %s hooks were not run", e)
			r.stop(&f)
			return nil
		case err == nil:
			v.tell(notReady(st), nil)
			if pause(wctx, wait) {
				continue
			}
		}
		f := Finding{r.objects[0].ref, InProgress, "not ready"}
		if st.NotReady.Count > 0 {
			f = st.NotReady.First[0]
		} else if st.Modified.Count > 0 {
			f = st.Modified.First[0]
		}
		f.Message += fmt.Sprintf(", after %s; the %s hooks were not run", timeout, e)
		r.stop(&f)
		return nil
	}
}

func notReady(st Status) string {
	f := st.NotReady
	if f.Count == 0 {
		f = st.Modified
	}
	if f.Count == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d objects are not: %s", f.Count, st.Total, f.First[0])
}

// measure finds out how large the release before was. It is remembered: when this release is tried again, what it has
// written already would count as well.
func (r *release) measure(previous []Ref) {
	r.a.mu.Lock()
	defer r.a.mu.Unlock()
	if r.was = r.d.Was; r.was == 0 {
		r.was = r.a.was[r.d.Name]
	}
	if r.was == 0 {
		current := map[id]bool{}
		for _, o := range r.objects {
			current[idOf(o.ref)] = true
		}
		r.was = r.carried
		for _, p := range previous {
			if !current[idOf(p)] {
				r.was++
			}
		}
	}
	r.a.was[r.d.Name] = r.was
}

// scopes refuses the whole deployment before anything is written.
func (r *release) scopes(ctx context.Context) (stop bool, err error) {
	all := slices.Clone(r.objects)
	for _, h := range r.hooks {
		all = append(all, h.object)
	}
	for _, o := range all {
		if err := o.place(ctx, r.kinds, r.d.Policy); err != nil {
			return false, err
		}
		stop = stop || o.fail != nil && o.fail.Reason == ClusterScoped
	}
	if stop {
		for _, h := range r.hooks {
			if h.fail != nil {
				r.extra = append(r.extra, *h.fail)
			}
		}
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
	for _, o := range objects {
		if o.live != nil && owner(o.live) == r.d.Name {
			r.carried++
		}
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
	_, err := r.a.dyn.Resource(namespaces).Get(rctx, ns, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if missing {
		client, f, werr := r.kinds.writer(ctx, Ref{Version: "v1", Kind: "Namespace", Name: ns}, kind{gvr: namespaces}, "")
		if f != nil || werr != nil {
			return werr // no account: each object says so
		}
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

// labelNamespace gives the deployment's namespace the labels and annotations that the bundle sets for it, and takes others
// off. A Namespace object in the bundle keeps what it states.
func (r *release) labelNamespace(ctx context.Context) error {
	h := r.d.Handling
	if len(h.NamespaceLabels) == 0 && len(h.NamespaceAnnotations) == 0 {
		return nil
	}
	ns := policyNamespace(r.d.Policy)
	ref := Ref{Version: "v1", Kind: "Namespace", Name: ns}
	live, err := r.a.get(ctx, kind{gvr: namespaces}, ref)
	if out := r.a.outage(ctx, err); out != nil {
		return fmt.Errorf("label namespace %q: %w", ns, out)
	}
	if err != nil {
		r.extra = append(r.extra, finding(ref, err))
		return nil
	}
	stated := &unstructured.Unstructured{}
	for _, o := range r.objects {
		if o.isNamespace() && o.ref.Name == ns {
			stated = o.want
		}
	}
	patch := map[string]any{}
	if m := setExactly(live.GetLabels(), h.NamespaceLabels, stated.GetLabels(), len(h.NamespaceLabels) > 0); len(m) > 0 {
		patch["labels"] = m
	}
	if m := setExactly(live.GetAnnotations(), h.NamespaceAnnotations, stated.GetAnnotations(), len(h.NamespaceAnnotations) > 0); len(m) > 0 {
		patch["annotations"] = m
	}
	if len(patch) == 0 {
		return nil
	}
	if f := r.a.protects(r.d.Name, ref, live, nil); f != nil {
		r.extra = append(r.extra, *f)
		return nil
	}
	body, err := json.Marshal(map[string]any{"metadata": patch})
	if err != nil {
		return fmt.Errorf("label namespace %q: %w", ns, err)
	}
	client, f, err := r.kinds.writer(ctx, ref, kind{gvr: namespaces}, "")
	if f != nil || err != nil {
		r.stop(f)
		return err
	}
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err = client.Patch(rctx, ns, types.MergePatchType, body, metav1.PatchOptions{FieldManager: FieldManager})
	if out := r.a.outage(ctx, err); out != nil {
		return fmt.Errorf("label namespace %q: %w", ns, out)
	}
	if err != nil {
		r.extra = append(r.extra, finding(ref, err))
	}
	return nil
}

// setExactly is the merge patch that leaves want, and of the rest only what is not ours to judge.
func setExactly(have, want, stated map[string]string, set bool) map[string]any {
	out := map[string]any{}
	if !set {
		return out
	}
	spared := func(k string) bool {
		return k == "kubernetes.io/metadata.name" || strings.HasPrefix(k, "pod-security.kubernetes.io/") ||
			strings.HasPrefix(k, "shoal.dev/") || stated[k] != ""
	}
	for k := range have {
		if _, ok := want[k]; !ok && !spared(k) {
			out[k] = nil
		}
	}
	for k, v := range want {
		if old, ok := have[k]; !spared(k) && (!ok || old != v) {
			out[k] = v
		}
	}
	return out
}

// apply writes one object if it has to. It costs one request when nothing has to be written, none when that is known.
func (r *release) apply(ctx context.Context, o *object) error {
	e := exemptions(r.d.Handling.ComparePatches, o.ref)
	claim, err := r.claim(ctx, o)
	if err != nil {
		return err
	}
	if f := cmp.Or(claim, r.a.protects(r.d.Name, o.ref, o.live, o.want), r.nobodys(o)); f != nil {
		o.fail = f
		return nil
	}
	if r.d.Operation != "" { // a release writes what it states; the bundle's exemptions are about what comes after it
		e = exempt{}
	}
	if o.live == nil && e.missing { // a repair does not bring back what may be missing
		return nil
	}
	if _, over := r.a.runOf(&r.d, o); over {
		return nil
	}
	want, err := r.scalers.effective(ctx, o)
	if err != nil {
		return err
	}
	if o.live != nil {
		if err := r.takeOver(ctx, o); err != nil || o.fail != nil {
			return err
		}
		changes, err := r.a.compare(ctx, r.kinds, o, want, e)
		if err != nil {
			return err
		}
		switch {
		case o.fail == nil && len(changes) == 0:
			return nil
		case o.fail == nil, o.fail.Reason == noDryRun:
		case o.fail.Reason == Immutable && r.d.forced():
			if done, err := r.makeRoom(ctx, o); !done || err != nil {
				return err
			}
		default:
			return nil
		}
		o.fail = nil
		r.a.log.Debug().Str("deployment", r.d.Name).Stringer("object", o.ref).Str("patch", patch(o, changes)).Msg("object differs")
	}
	if err := r.write(ctx, o, want, e); err != nil || o.fail != nil || len(o.added) == 0 {
		return err
	}
	return r.takeOut(ctx, o, want)
}

// takeOut sets back what somebody has added. An object from which it cannot be taken is made anew where that is allowed.
func (r *release) takeOut(ctx context.Context, o *object, want *unstructured.Unstructured) error {
	o.added = additions(o.live, want, r.d.Policy.CorrectDriftStrict, exemptions(r.d.Handling.ComparePatches, o.ref))
	if len(o.added) == 0 {
		return nil
	}
	got, f, err := r.a.takeOut(ctx, r.kinds, o, false)
	if out := r.a.outage(ctx, err); out != nil {
		return out
	}
	if err != nil {
		refused := o.finding(err)
		f = &refused
		f.Message = patch(o, asAdded(diff(o.live.Object, without(o.live, o.added...).Object))) + ": " + f.Message
	}
	if f == nil {
		return r.wrote(o, want, got)
	}
	if f.Reason != Immutable || !r.d.forced() {
		if r.d.Operation == "" { // a release has written what it states; that something is beside it is for the next look to say
			o.fail = f
		}
		return nil
	}
	o.fail = f
	if done, err := r.makeRoom(ctx, o); !done || err != nil {
		return err
	}
	o.fail = nil
	return r.write(ctx, o, want, exempt{})
}

// claim is [object.claim] with what other deployments yield.
func (r *release) claim(ctx context.Context, o *object) (*Finding, error) {
	f := o.claim(r.d.Name)
	if f == nil || f.Reason != OwnedByOther || r.d.Yields == nil || owner(o.live) == "" {
		return f, nil
	}
	had := owner(o.live)
	ok, err := r.d.Yields(ctx, had, o.ref)
	if err != nil || !ok {
		return f, err
	}
	return o.claim(r.d.Name, had), nil
}

// nobodys says that an object was there before the bundle, which only the install minds: an upgrade takes what its new
// release names, as it does in Fleet. A namespace is shared more often than not, and is taken.
func (r *release) nobodys(o *object) *Finding {
	if r.d.Operation != Install || r.d.Policy.TakeOwnership || o.live == nil || owner(o.live) != "" || o.isNamespace() || writtenByUs(o.live) {
		return nil
	}
	return &Finding{o.ref, NobodysObject, "is there already and belongs to no bundle: set helm.takeOwnership: true to take it over, or take it out of the bundle"}
}

// makeRoom deletes an object that cannot be changed in place, so that it can be created again: only where the policy allows
// it, and never where more than the object would go. It waits until the object is gone; ctx bounds that.
func (r *release) makeRoom(ctx context.Context, o *object) (done bool, err error) {
	v := r.a.vigil(&r.d, 0, "%s is made anew,", o.ref)
	d := deletion{a: r.a, kinds: r.kinds, deployment: r.d.Name, foreground: true}
	if owner(o.live) != r.d.Name {
		return false, nil // not ours yet: adopting is one thing, deleting another
	}
	if _, f, err := d.delete(ctx, o.ref); f != nil && f.Reason != Terminating || err != nil {
		if f != nil && !stays(f) { // refused has said why it stays
			o.fail.Message += "; it could not be deleted: " + f.Message
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
		v.tell("it "+terminating(live), func() string { return r.a.whyStays(ctx, live) })
		if !pause(ctx, wait) {
			return false, ctx.Err()
		}
	}
}

// write makes o.live want, but for what is exempt.
func (r *release) write(ctx context.Context, o *object, want *unstructured.Unstructured, e exempt) error {
	wanted := want
	if o.live != nil {
		want = e.leave(want, o.live)
	}
	got, f, err := r.a.patch(ctx, r.kinds, o, want, metav1.ApplyOptions{FieldManager: FieldManager})
	if f != nil {
		o.fail = f
		return nil
	}
	if o := r.a.outage(ctx, err); o != nil {
		return o
	}
	if taken := conflicts(o.ref, err); taken != nil {
		got, _, err = r.a.patch(ctx, r.kinds, o, want, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
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
		if o.fail, err = r.a.refused(ctx, r.kinds, o, want, err); err == nil && o.fail.Reason == UnknownKind {
			r.a.kinds.reset()
		}
		return err
	}
	return r.wrote(o, wanted, got)
}

// wrote takes over what a write has led to.
func (r *release) wrote(o *object, wanted, got *unstructured.Unstructured) error {
	if (o.live == nil || o.live.GetResourceVersion() != got.GetResourceVersion()) && !slices.Contains(r.res.Written, o.ref) {
		r.res.Written = append(r.res.Written, o.ref)
	}
	o.live = got
	r.a.tracked.saw(o.kind.gvr, got)
	return r.a.verify(o, wanted, got, exemptions(r.d.Handling.ComparePatches, o.ref), r.d.Policy.CorrectDriftStrict)
}

// isNewKind: an API server may answer for a moment that a kind is unknown although its CRD is established.
func (r *release) isNewKind(o *object, err error) bool {
	return r.brought[schema.GroupKind{Group: o.ref.Group, Kind: o.ref.Kind}] && apierrors.IsNotFound(err) && finding(o.ref, err).Reason == UnknownKind
}

func (r *release) patchNewKind(ctx context.Context, o *object, want *unstructured.Unstructured) (got *unstructured.Unstructured, err error) {
	ctx, cancel := context.WithTimeout(ctx, newKindWait)
	defer cancel()
	for wait := pollMin; ; wait = min(2*wait, pollMax) {
		got, _, err = r.a.patch(ctx, r.kinds, o, want, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
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
	v := r.a.vigil(&r.d, 0, "%s is not served yet,", crd.ref)
	for wait := pollMin; ; wait = min(2*wait, pollMax) {
		switch ok, why := crdState(crd.live); {
		case ok:
			r.serve(crd.live)
			return nil
		case why != "":
			crd.failed(Invalid, "the CRD's names are not accepted: %s", why)
			return nil
		}
		v.tell(text(condition(crd.live, "Established")), nil)
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

// patch writes with the deployment's rights; the finding says that there are none.
func (a *Applier) patch(ctx context.Context, p *pass, o *object, want *unstructured.Unstructured, opts metav1.ApplyOptions) (*unstructured.Unstructured, *Finding, error) {
	client, f, err := p.writer(ctx, o.ref, o.kind, o.ref.Namespace)
	if f != nil || err != nil {
		return nil, f, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	got, err := client.Apply(ctx, o.ref.Name, want, opts)
	return got, nil, err
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
	out := slices.Clone(r.extra)
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
	r.res.Runs = r.a.runs(&r.d, r.objects)
	have := map[id]bool{}
	for _, o := range r.objects {
		if o.kind.gvr.Resource == "" || o.fail != nil && (o.fail.Reason == OwnedByOther || o.fail.Reason == NobodysObject || o.fail.Reason == Protected) {
			continue // not created; or not looked at, and then it is in previous if it is anywhere
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
