package apply

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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

	// SiteValues counts the objects of Modified that differ only in what the site fills in: the site has new values, and
	// wants them applied whether or not drift is to be corrected.
	SiteValues int
}

// Check looks and changes nothing. An object that nobody touched since it was last found as wanted costs no request of its
// own: one list for each kind (a get, where there is one object of a kind) is all that a deployment at rest costs.
func (a *Applier) Check(ctx context.Context, d Deployment) (Status, error) {
	st := Status{Total: len(d.Objects)}
	a.tracked.begin(d.Name)
	p, scalers := a.pass(), autoscalers{a: a}
	objects := make([]*object, 0, len(d.Objects))
	for _, o := range d.Objects {
		obj := decode(o, d.Name)
		objects = append(objects, obj)
		if err := obj.place(ctx, p, d.Policy); err != nil {
			return st, fmt.Errorf("check %s@%s: %w", d.Name, d.Serial, err)
		}
	}
	if err := a.read(ctx, d.Name, objects); err != nil {
		return st, fmt.Errorf("check %s@%s: %w", d.Name, d.Serial, err)
	}
	a.tracked.set(d.Name, inUse(objects))
	for _, o := range objects {
		if err := a.checkObject(ctx, d, o, &scalers, &st); err != nil {
			return st, fmt.Errorf("check %s@%s: %w", d.Name, d.Serial, err)
		}
	}
	return st, nil
}

func (a *Applier) checkObject(ctx context.Context, d Deployment, o *object, scalers *autoscalers, st *Status) error {
	if o.live == nil {
		st.missing(o)
		return nil
	}
	if f := readiness(o.ref, o.live); f != nil {
		st.NotReady.add(*f)
	} else {
		st.Ready++
	}
	if had := owner(o.live); had != "" && had != d.Name {
		st.Modified.add(*o.claim(d.Name))
		return nil
	}
	if o.live.GetDeletionTimestamp() != nil {
		return nil // readiness says so
	}
	want, err := scalers.effective(ctx, o)
	if err != nil {
		return err
	}
	changes, err := a.compare(ctx, o, want)
	if err != nil {
		return err
	}
	a.tracked.saw(o.kind.gvr, o.live)
	switch {
	case o.fail == nil && len(changes) > 0:
		st.Modified.add(Finding{o.ref, Modified, patch(o.ref, changes)})
	case o.fail == nil:
	case o.fail.Reason == Immutable || o.fail.Reason == Invalid:
		st.Modified.add(*o.fail)
	default:
		st.Unverified.add(*o.fail)
	}
	return nil
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
func (a *Applier) compare(ctx context.Context, o *object, want *unstructured.Unstructured) ([]change, error) {
	v, err := judge(want, o.live)
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
	dry, err := a.patch(ctx, o, want, metav1.ApplyOptions{FieldManager: FieldManager, Force: true, DryRun: []string{metav1.DryRunAll}})
	if out := a.outage(ctx, err); out != nil {
		return nil, out
	}
	if err != nil {
		f := finding(o.ref, err)
		if apierrors.IsBadRequest(err) && strings.Contains(f.Message, "does not support dry run") {
			f.Reason = noDryRun
		}
		o.fail = &f
		return nil, nil
	}
	changes := diff(o.live.Object, dry.Object)
	if len(changes) == 0 {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.verified[key] = v
	}
	return changes, nil
}

// verify notes that live is what writing want has led to.
func (a *Applier) verify(ref Ref, want, live *unstructured.Unstructured) error {
	v, err := judge(want, live)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.verified[idOf(ref)] = v
	return nil
}

func judge(want, live *unstructured.Unstructured) (verdict, error) {
	var v verdict
	h := sha256.New()
	enc := json.NewEncoder(h)
	top := make(map[string]any, len(live.Object))
	for k, e := range live.Object {
		if k != "status" && k != "metadata" {
			top[k] = e
		}
	}
	meta := map[string]any{}
	if m, ok := live.Object["metadata"].(map[string]any); ok {
		for k, e := range m {
			if !bookkeeping[k] {
				meta[k] = e
			}
		}
		meta["uid"] = m["uid"]
	}
	for _, part := range []any{want.Object, top, meta} {
		if err := enc.Encode(part); err != nil {
			return v, fmt.Errorf("hash object: %w", err)
		}
	}
	h.Sum(v[:0])
	return v, nil
}

// readiness is nil for an object that does its work.
func readiness(ref Ref, live *unstructured.Unstructured) *Finding {
	if live.GetDeletionTimestamp() != nil {
		return &Finding{ref, Terminating, terminating(live)}
	}
	res, err := status.Compute(live)
	if err != nil {
		return &Finding{ref, InProgress, "readiness cannot be told: " + err.Error()}
	}
	switch res.Status {
	case status.CurrentStatus:
		return nil
	case status.FailedStatus:
		return &Finding{ref, Failed, short(res.Message, patchLength)}
	}
	return &Finding{ref, InProgress, short(res.Message, patchLength)}
}
