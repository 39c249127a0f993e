package reconcile

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/fleet"
	"shoal.dev/shoal/controller/rollout"
)

// atomicTimeout is how long an atomic release may take when it does not say.
const atomicTimeout = 600 // seconds

// policy is how the agents are to treat a release. rollback, if above 0, is how long releases may take that say nothing about
// going back.
func policy(spec v1alpha1.BundleSpec, o v1alpha1.BundleOptions, rollback time.Duration) bundlefmt.Policy {
	p := bundlefmt.Policy{
		Namespace: o.DefaultNamespace, KeepResources: o.KeepResources, ServiceAccount: o.ServiceAccount, ForceSync: uint64(max(0, o.ForceSyncGeneration)),
		DeleteNamespace: spec.DeleteNamespace, DeleteCRDs: spec.DeleteCRDResources, DeleteVolumes: spec.DeleteVolumes,
	}
	if o.Namespace != "" {
		p.Namespace, p.ForceNamespace = o.Namespace, true
	}
	if o.CreateNamespace != nil {
		p.NoCreateNamespace = !*o.CreateNamespace
	}
	if o.CorrectDrift != nil {
		p.CorrectDrift, p.CorrectDriftForce, p.CorrectDriftStrict = o.CorrectDrift.Enabled, o.CorrectDrift.Force, o.CorrectDrift.Strict
	}
	if h := o.Helm; h != nil {
		p.TakeOwnership, p.Force, p.WaitForJobs, p.Rollback = h.TakeOwnership, h.Force, h.WaitForJobs, h.Atomic
		p.ReadyTimeoutSecond = uint64(max(0, h.TimeoutSeconds))
	}
	switch {
	case p.Rollback && p.ReadyTimeoutSecond == 0:
		p.ReadyTimeoutSecond = atomicTimeout
	case !p.Rollback && rollback > 0:
		p.Rollback = true
		if p.ReadyTimeoutSecond == 0 {
			p.ReadyTimeoutSecond = uint64(max(1, rollback/time.Second))
		}
	}
	return p
}

// ConfirmPrune, on a Bundle, lets its current release delete unusually much on a cluster. People say "yes"; the hub makes that
// the bundle's generation, so that it holds for what they saw and for nothing that comes later.
const ConfirmPrune = "shoal.dev/confirm-prune"

// confirmsPrune says whether the bundle as it is now may delete unusually much.
func confirmsPrune(b *v1alpha1.Bundle) bool {
	v := b.Annotations[ConfirmPrune]
	return v == "yes" || v == strconv.FormatInt(b.Generation, 10)
}

// settlePrune pins a confirmation to the generation, and takes it away once that is over.
func (h *Hub) settlePrune(ctx context.Context, b *v1alpha1.Bundle) error {
	v, now := b.Annotations[ConfirmPrune], strconv.FormatInt(b.Generation, 10)
	if v == "" || v == now {
		return nil
	}
	patch := client.MergeFrom(b.DeepCopy())
	if v == "yes" {
		b.Annotations[ConfirmPrune] = now
	} else {
		delete(b.Annotations, ConfirmPrune)
	}
	if err := h.Client.Patch(ctx, b, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write annotation %s: %w", ConfirmPrune, err)
	}
	return nil
}

// confirmed sets ConfirmPrune where it makes a difference, and leaves it as it was ordered elsewhere: a confirmation that
// one cluster waits for is no new release for all the others.
func confirmed(want rollout.Release, m fleet.Member, name string, confirms bool) rollout.Release {
	now := m.Release(name)
	want.Policy.ConfirmPrune = now.Policy.ConfirmPrune
	if want.Equal(now) && (!confirms || m.Available(name)) {
		return want
	}
	want.Policy.ConfirmPrune = confirms
	return want
}
