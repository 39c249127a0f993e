package apply

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Status is how a deployment's objects stand on the cluster.
type Status struct {
	Total    int
	Ready    int      // on the cluster and ready, modified or not
	NotReady Findings // on the cluster, not ready yet or failed
	Modified Findings // differ from the bundle (with a short patch towards it), or missing
	Missing  int      // of Modified
	Failed   Findings // of NotReady: waiting will not help
	// Unverified objects could not be compared: an admission webhook refuses dry runs, or a right is missing.
	Unverified Findings
	Suspended  Findings // of Ready: they do nothing, as they are told to

	// SiteValues counts the objects of Modified that differ only in what the site fills in: the site has new values, and
	// wants them applied whether or not drift is to be corrected.
	SiteValues int

	Runs []Run // for Deployment.Runs next time
}

// Check looks and changes nothing. An object that nobody touched since it was last found as wanted costs no request of its
// own: one list for each kind (a get, where there is one object of a kind) is all that a deployment at rest costs. While
// Watch runs, what it has seen is not asked for again, and a deployment at rest costs nothing.
func (a *Applier) Check(ctx context.Context, d Deployment) (Status, error) {
	c := &checking{a: a, d: d, p: a.pass(d), scalers: autoscalers{a: a, reuse: true}, ready: readiness{a: a, d: d}}
	a.tracked.begin(d.Name)
	if err := c.run(ctx); err != nil {
		return c.st, fmt.Errorf("check %s@%s: %w", d.Name, d.Serial, err)
	}
	return c.st, nil
}

// checking is one run of Check.
type checking struct {
	a       *Applier
	d       Deployment
	p       *pass
	scalers autoscalers
	ready   readiness
	noSite  *Finding // why the site's values are not there
	st      Status
}

func (c *checking) run(ctx context.Context) error {
	objects, _, f, err := c.a.decodeAll(ctx, c.p)
	if err != nil {
		return err
	}
	c.noSite = f
	c.st.Total = len(objects)
	for _, o := range objects {
		if err := o.place(ctx, c.p, c.d.Policy); err != nil {
			return err
		}
	}
	unread, err := c.recall(objects)
	if err != nil {
		return err
	}
	if err := c.a.read(ctx, c.d.Name, unread); err != nil {
		return err
	}
	c.a.tracked.set(c.d.Name, inUse(objects))
	for _, o := range objects {
		if ctx.Err() != nil { // what the watch knows needs no request, and a health rule may compute
			return ctx.Err()
		}
		if o.known {
			c.st.Ready++
			continue
		}
		if err := c.object(ctx, o); err != nil {
			return err
		}
	}
	c.st.Runs = c.a.runs(&c.d, objects)
	return nil
}

// recall fills in what the watch has seen, and returns what is to be asked for.
func (c *checking) recall(objects []*object) (unread []*object, err error) {
	how, err := json.Marshal([]any{c.d.Policy, c.d.Handling.ComparePatches, c.d.Handling.IgnoreConditions, c.d.Handling.Health})
	if err != nil {
		return nil, fmt.Errorf("hash policy: %w", err)
	}
	for _, o := range objects {
		if o.fail == nil && c.noSite == nil {
			if o.asked, err = asked(o.want, how); err != nil {
				return nil, err
			}
			o.live, o.known = c.a.tracked.recall(o)
		}
		if o.live == nil && !o.known {
			unread = append(unread, o)
		}
	}
	return unread, nil
}

func (c *checking) object(ctx context.Context, o *object) error {
	if o.live == nil {
		if e := exemptions(c.d.Handling.ComparePatches, o.ref); e.missing && o.fail == nil {
			c.st.Ready++
			return nil
		}
		if run, over := c.a.runOf(&c.d, o); over {
			if run.End == RunFailed {
				c.count(&Finding{o.ref, Failed, "has failed and is gone: " + run.Why + "; forceSyncGeneration runs it again"})
			} else {
				c.count(nil)
			}
			return nil
		}
		c.st.missing(o)
		return nil
	}
	ready := c.ready.of(ctx, o)
	c.count(ready)
	if had := owner(o.live); had != "" && had != c.d.Name {
		c.st.Modified.add(*o.claim(c.d.Name))
		return nil
	}
	if o.live.GetDeletionTimestamp() != nil {
		return nil // readiness says so
	}
	if c.noSite != nil && len(o.filled) > 0 {
		c.st.Unverified.add(Finding{o.ref, NoSiteValues, c.noSite.String()})
		return nil
	}
	e := exemptions(c.d.Handling.ComparePatches, o.ref)
	want, err := c.scalers.effective(ctx, o)
	if err != nil {
		return err
	}
	changes, err := c.a.compare(ctx, c.p, o, want, e)
	if err != nil {
		return err
	}
	c.a.tracked.saw(o.kind.gvr, o.live)
	switch {
	case o.fail == nil && len(changes) > 0:
		c.st.Modified.add(Finding{o.ref, Modified, patch(o, changes)})
		if o.onlyFilled(changes) {
			c.st.SiteValues++
		}
	case o.fail == nil:
		if ready == nil && want == o.want {
			c.a.tracked.settled(o)
		}
	case o.fail.Reason == Immutable || o.fail.Reason == Invalid:
		c.st.Modified.add(*o.fail)
	default:
		c.st.Unverified.add(*o.fail)
	}
	return nil
}

// count takes over what readiness says.
func (c *checking) count(ready *Finding) {
	switch {
	case ready == nil:
		c.st.Ready++
	case ready.Reason == Suspended:
		c.st.Ready++
		c.st.Suspended.add(*ready)
	default:
		c.st.NotReady.add(*ready)
		if ready.Reason == Failed {
			c.st.Failed.add(*ready)
		}
	}
}

func (st *Status) missing(o *object) {
	f := Finding{o.ref, Missing, "missing"}
	if o.fail != nil {
		f = *o.fail
		if f.Reason == Forbidden || f.Reason == Unavailable { // it may well be there
			st.Unverified.add(f)
			return
		}
	}
	st.Missing++
	st.Modified.add(f)
}

// verdict is the hash of a wanted object and of the live one that was found to be equal to it.
type verdict [sha256.Size]byte

// noDryRun: the object cannot be compared, only written.
const noDryRun Reason = "NoDryRun"

// compare lists what has to change in o.live to get want, by the API server's own dry run: defaults, nulls, quantities and
// whatever webhooks add are in both sides. When that is refused, o.fail says why.
//
// The dry run is skipped when the same pair was found equal before. A pair leaves out status and managedFields, so a
// workload that reports progress costs nothing. Writing want to an object that equals it changes nothing, therefore the
// pair stays equal until one of the two changes.
//
// What the bundle exempts from comparing is part of the pair, and whether it minds every addition.
//
// o.added is what the bundle does not state and does mind: see [additions].
func (a *Applier) compare(ctx context.Context, p *pass, o *object, want *unstructured.Unstructured, e exempt) ([]change, error) {
	strict := p.d.Policy.CorrectDriftStrict
	v, err := judge(want, o.live, e, strict)
	if err != nil {
		return nil, err
	}
	key := idOf(o.ref)
	a.mu.Lock()
	known := a.verified[key] == v
	a.mu.Unlock()
	if known {
		return nil, nil
	}
	changes, err := a.compareAdded(ctx, p, o, want)
	if err != nil {
		return nil, err
	}
	dry, f, err := a.dryRun(ctx, p, o, want)
	if f != nil {
		o.fail = f
		return nil, nil
	}
	if out := a.outage(ctx, err); out != nil {
		return nil, out
	}
	if err != nil {
		if o.fail, err = a.refused(ctx, p, o, want, err); err != nil {
			return nil, err
		}
		if strings.Contains(o.fail.Message, "does not support dry run") {
			o.fail.Reason = noDryRun
		}
		return nil, nil
	}
	changes = append(changes, diff(e.forCompare(o.live.Object, want.Object), e.forCompare(dry.Object, want.Object))...)
	if len(changes) == 0 {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.verified[key] = v
	}
	return changes, nil
}

// dryRun is what writing want would lead to. The answer is about the object as it is at that moment: where that is not the one that
// was read (a controller has written in between), it is read again, so that nobody's change is taken for a difference.
func (a *Applier) dryRun(ctx context.Context, p *pass, o *object, want *unstructured.Unstructured) (dry *unstructured.Unstructured, f *Finding, err error) {
	for range 5 {
		dry, f, err = a.patch(ctx, p, o, want, metav1.ApplyOptions{FieldManager: FieldManager, Force: true, DryRun: []string{metav1.DryRunAll}})
		if f != nil || err != nil || dry.GetResourceVersion() == o.live.GetResourceVersion() {
			return dry, f, err
		}
		live, gone := a.get(ctx, o.kind, o.ref)
		if gone != nil || live.GetUID() != o.live.GetUID() { // the next pass sees that
			return dry, nil, nil
		}
		if o.live = live; dry.GetResourceVersion() == live.GetResourceVersion() {
			break
		}
	}
	return dry, f, err
}

// compareAdded lists what would change if everything were taken out that the bundle does not state, releases or not. What comes
// back by itself is no change. What cannot be taken out is there all the same.
func (a *Applier) compareAdded(ctx context.Context, p *pass, o *object, want *unstructured.Unstructured) ([]change, error) {
	e := exemptions(p.d.Handling.ComparePatches, o.ref)
	var less *unstructured.Unstructured
	for range 5 {
		if o.added = additions(o.live, want, p.d.Policy.CorrectDriftStrict, e); len(o.added) == 0 {
			return nil, nil
		}
		dry, f, err := a.takeOut(ctx, p, o, true)
		if out := a.outage(ctx, err); out != nil {
			return nil, out
		}
		if f == nil && err == nil && dry.GetResourceVersion() == o.live.GetResourceVersion() {
			less = dry
			break
		}
		less = without(o.live, o.added...)
		live, gone := a.get(ctx, o.kind, o.ref)
		if f != nil || gone != nil || live.GetUID() != o.live.GetUID() || live.GetResourceVersion() == o.live.GetResourceVersion() {
			break
		}
		o.live = live // it has moved meanwhile
	}
	changes := asAdded(diff(e.forCompare(o.live.Object, want.Object), e.forCompare(less.Object, want.Object)))
	if len(changes) == 0 {
		o.added = nil
	}
	return changes, nil
}

func asAdded(changes []change) []change {
	for i := range changes {
		changes[i].added = true
	}
	return changes
}

// verify notes that live is what writing want has led to, apart from e. What was added beside it is for the next look to judge.
func (a *Applier) verify(o *object, want, live *unstructured.Unstructured, e exempt, strict bool) error {
	if len(additions(live, want, strict, e)) > 0 {
		return nil
	}
	v, err := judge(want, live, e, strict)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.verified[idOf(o.ref)] = v
	return nil
}

func judge(want, live *unstructured.Unstructured, e exempt, strict bool) (verdict, error) {
	var v verdict
	h := sha256.New()
	enc := json.NewEncoder(h)
	top := make(map[string]any, len(live.Object))
	for k, v := range live.Object {
		if k != "status" && k != "metadata" {
			top[k] = v
		}
	}
	meta := map[string]any{}
	if m, ok := live.Object["metadata"].(map[string]any); ok {
		for k, v := range m {
			if !bookkeeping[k] {
				meta[k] = v
			}
		}
		meta["uid"] = m["uid"]
	}
	for _, part := range []any{want.Object, top, meta, e.pointers, e.ops, strict} {
		if err := enc.Encode(part); err != nil {
			return v, fmt.Errorf("hash object: %w", err)
		}
	}
	h.Sum(v[:0])
	return v, nil
}
