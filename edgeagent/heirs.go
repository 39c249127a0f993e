package edgeagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/apply"
	"shoal.dev/shoal/edgeagent/plan"
	"shoal.dev/shoal/edgeagent/store"
)

// An object that one deployment drops and another one states changes hands. Whichever of the two comes first sees to it: the one
// that drops it gives it away instead of deleting it, the other one takes it. Both go by the document in force, so what is not
// ordered yet when an object is dropped comes too late.

// inherit lets an action find out who else is ordered to have objects of d, and who is not any more.
func (s *site) inherit(d *apply.Deployment) {
	name := d.Name
	var heirs map[bundlefmt.Ref]string
	var wait string
	d.Heir = func(ctx context.Context, ref bundlefmt.Ref) (string, string, error) {
		if heirs == nil {
			var err error
			if heirs, wait, err = s.heirs(ctx, name); err != nil {
				return "", "", err
			}
		}
		if heir := heirs[anyVersion(ref)]; heir != "" {
			return heir, "", nil
		}
		return "", wait, nil
	}
	d.Yields = s.yields
}

func anyVersion(r bundlefmt.Ref) bundlefmt.Ref {
	r.Version = ""
	return r
}

// other is a deployment that is ordered beside one that drops something.
type other struct {
	name    string
	refs    []bundlefmt.Ref // what it has, if it is to stay as it is
	release *plan.Release   // what it is to be
}

// heirs are the objects that deployments beside name are ordered to have. wait says why that is not all.
func (s *site) heirs(ctx context.Context, name string) (map[bundlefmt.Ref]string, string, error) {
	var others []other
	var wait string
	var keys store.Keys
	if err := s.ask(func() error { others, wait = s.others(name); keys = s.keys(); return nil }); err != nil {
		return nil, "", err
	}
	out := map[bundlefmt.Ref]string{}
	for _, o := range others {
		refs := o.refs
		if o.release != nil {
			var err error
			if refs, err = s.states(ctx, o.name, *o.release, keys); errors.Is(err, errNotHere) {
				wait = waitsFor(o.name)
			} else if err != nil {
				return nil, "", err
			}
		}
		for _, r := range refs {
			if r = anyVersion(r); out[r] == "" {
				out[r] = o.name
			}
		}
	}
	return out, wait, nil
}

func waitsFor(name string) string {
	return fmt.Sprintf("waits for the bundle of %q, which is ordered as well and may take it over", name)
}

// others needs the loop.
func (s *site) others(name string) (out []other, wait string) {
	if s.desired == nil {
		return nil, ""
	}
	known, now := s.state(), time.Now()
	for _, e := range s.desired.Deployments {
		if e.Name == name {
			continue
		}
		want, r := plan.Of(e), s.records[e.Name]
		o := other{name: e.Name, refs: r.Refs}
		_, bad := s.bad[want.Digest]
		switch order, _ := plan.Ordered(known, e.Name, now); {
		case order == nil, bad, r.Applied != nil && r.Applying == nil && r.Applied.Digest == want.Digest:
		case !s.onDisk[want.Digest]:
			wait = waitsFor(e.Name)
		default:
			o.release = &want
		}
		out = append(out, o)
	}
	return out, wait
}

// errNotHere: the bundle is not on disk.
var errNotHere = errors.New("the bundle is not here")

// states are the objects of a release.
func (s *site) states(ctx context.Context, name string, r plan.Release, keys store.Keys) ([]bundlefmt.Ref, error) {
	b, err := s.store.Bundle(r.Digest, keys)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotHere, err)
	}
	return s.a.applier.Inventory(ctx, deployment(plan.Action{Deployment: name, Release: r}, b))
}

// yields reports whether holder is ordered to drop an object, and nothing holds that back but what waits for others.
func (s *site) yields(ctx context.Context, holder string, ref bundlefmt.Ref) (bool, error) {
	var want *plan.Release
	var ordered bool
	var keys store.Keys
	if err := s.ask(func() error {
		want, ordered = plan.Ordered(s.state(), holder, time.Now())
		keys = s.keys()
		return nil
	}); err != nil {
		return false, err
	}
	if !ordered || want == nil {
		return ordered, nil
	}
	refs, err := s.states(ctx, holder, *want, keys)
	if errors.Is(err, errNotHere) {
		return false, nil
	}
	return err == nil && !slices.ContainsFunc(refs, func(r bundlefmt.Ref) bool { return anyVersion(r) == anyVersion(ref) }), err
}

// waits: nothing is wrong, but what another deployment is to be is not known yet.
func waits(fs []apply.Finding) bool {
	return len(fs) > 0 && !slices.ContainsFunc(fs, func(f apply.Finding) bool { return f.Reason != apply.Awaited })
}
