package apply

import (
	"context"
	"errors"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// forced: what cannot be changed in place may be deleted and made again.
func (d Deployment) forced() bool {
	return d.Policy.Force && d.Operation != "" || d.Policy.CorrectDriftForce
}

// refused is [object.finding] for the change of an object. Of one that cannot be made in place it says which fields are to blame
// and what to do. What the API server would take as a new object is refused as a change, whatever the words.
func (a *Applier) refused(ctx context.Context, p *pass, o *object, want *unstructured.Unstructured, err error) (*Finding, error) {
	f := o.finding(err)
	if o.live == nil || f.Reason != Immutable && f.Reason != Invalid || !apierrors.IsInvalid(err) {
		return &f, nil
	}
	if f.Reason == Invalid && (strings.Contains(err.Error(), "ValidatingAdmissionPolicy") || !a.acceptsNew(ctx, p, o, want)) {
		return &f, ctx.Err()
	}
	words := strings.TrimPrefix(f.Message, "invalid: ")
	f.Message = strings.Join(unchangeable(err, o.live.Object, want.Object), ", ") + " is immutable"
	if f.Reason == Invalid {
		f.Reason = Immutable
		f.Message += " (" + words + ")"
	}
	d := deletion{a: a, kinds: p, deployment: p.d.Name}
	spared, err := d.spared(ctx, victim{o.ref, o.kind, o.live})
	if err != nil {
		return nil, err
	}
	by := "helm.force"
	if p.d.Operation == "" {
		by = "correctDrift.force"
	}
	switch {
	case owner(o.live) != p.d.Name:
		f.Message += ", and the object is not the bundle's yet: delete it by hand, or give the bundle's another name"
	case spared != nil:
		f.Message += ", and the object is not deleted for that: " + strings.TrimPrefix(spared.Message, "kept: ")
	case !p.d.forced():
		f.Message += ": with " + by + ": true the object is deleted and made again" + meanwhile(o.ref)
	}
	return &f, nil
}

// acceptsNew: what is wanted would do as an object of another name.
func (a *Applier) acceptsNew(ctx context.Context, p *pass, o *object, want *unstructured.Unstructured) bool {
	client, f, err := p.writer(ctx, o.ref, o.kind, o.ref.Namespace)
	if f != nil || err != nil {
		return false
	}
	u := want.DeepCopy()
	u.SetName("")
	u.SetGenerateName("new-")
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err = client.Create(ctx, u, metav1.CreateOptions{FieldManager: FieldManager, DryRun: []string{metav1.DryRunAll}})
	return err == nil
}

// meanwhile is what making an object of this kind again does beside it.
func meanwhile(r Ref) string {
	switch {
	case r.Group == "batch" && r.Kind == "Job":
		return "; it runs again then"
	case r.Group == "apps" && r.Kind != "ControllerRevision", r.Group == "" && r.Kind == "Pod":
		return "; its Pods stop meanwhile"
	case r.Group == "" && r.Kind == "Service":
		return "; its address may be another one then"
	case r.Group == "rbac.authorization.k8s.io":
		return "; nobody has its rights meanwhile"
	}
	return ""
}

// unchangeable are the fields that the API server names in err. Where it names only "spec", or a field that nobody writes, they are
// those below that differ, but for those that it says may be changed.
func unchangeable(err error, live, want map[string]any) []string {
	var out []string
	var s apierrors.APIStatus
	if !errors.As(err, &s) || s.Status().Details == nil {
		return []string{"the object"}
	}
	for _, c := range s.Status().Details.Causes {
		field := strings.Trim(c.Field, "<>")
		path, _, _ := strings.Cut(field, "[")
		steps := strings.Split(path, ".")
		if _, ok := at2(want, steps); ok && field != "spec" {
			out = append(out, field)
			continue
		}
		for len(steps) > 0 {
			if _, ok := at2(want, steps); ok {
				break
			}
			steps = steps[:len(steps)-1]
		}
		l, _ := at2(live, steps)
		w, _ := at2(want, steps)
		rule, _, _ := strings.Cut(c.Message, "\n")
		names := differing(l, w, rule)
		if len(names) == 0 || len(steps) == 0 {
			out = append(out, field)
			continue
		}
		for _, n := range names {
			out = append(out, strings.Join(append(slices.Clip(steps), n), "."))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// differing are the keys of want that live has not, or otherwise.
func differing(live, want any, but string) (out []string) {
	l, _ := live.(map[string]any)
	w, _ := want.(map[string]any)
	for k, v := range w {
		if !within(v, l[k]) && !strings.Contains(but, "'"+k+"'") && !strings.Contains(but, " "+k+".") {
			out = append(out, k)
		}
	}
	return out
}

// within: live has everything that want states.
func within(want, live any) bool {
	switch w := want.(type) {
	case map[string]any:
		l, _ := live.(map[string]any)
		for k, v := range w {
			if !within(v, l[k]) {
				return false
			}
		}
		return true
	case []any:
		l, _ := live.([]any)
		for i, v := range w {
			if n := mateOf(w, i, l); n < 0 || !within(v, l[n]) {
				return false
			}
		}
		return true
	}
	return equal(want, live)
}
