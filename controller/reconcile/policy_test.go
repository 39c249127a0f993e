package reconcile

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/fleet"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/rollout"
)

func TestPolicy(t *testing.T) {
	no := false
	helm := func(h v1alpha1.HelmOptions) v1alpha1.BundleOptions { return v1alpha1.BundleOptions{Helm: &h} }
	for _, c := range []struct {
		name     string
		spec     v1alpha1.BundleSpec
		options  v1alpha1.BundleOptions
		rollback time.Duration
		want     bundlefmt.Policy
	}{
		{name: "nothing said"},
		{name: "default namespace", options: v1alpha1.BundleOptions{DefaultNamespace: "a", CreateNamespace: &no}, want: bundlefmt.Policy{Namespace: "a", NoCreateNamespace: true}},
		{name: "forced namespace", options: v1alpha1.BundleOptions{DefaultNamespace: "a", Namespace: "b"}, want: bundlefmt.Policy{Namespace: "b", ForceNamespace: true}},
		{name: "drift", options: v1alpha1.BundleOptions{CorrectDrift: &v1alpha1.CorrectDrift{Enabled: true, Force: true, Strict: true, KeepFailHistory: true}}, want: bundlefmt.Policy{CorrectDrift: true, CorrectDriftForce: true, CorrectDriftStrict: true}},
		{name: "keep", options: v1alpha1.BundleOptions{KeepResources: true}, want: bundlefmt.Policy{KeepResources: true}},
		{name: "account and force sync", options: v1alpha1.BundleOptions{ServiceAccount: "sa", ForceSyncGeneration: 4}, want: bundlefmt.Policy{ServiceAccount: "sa", ForceSync: 4}},
		{name: "deletion", spec: v1alpha1.BundleSpec{DeleteNamespace: true, DeleteCRDResources: true, DeleteVolumes: true}, want: bundlefmt.Policy{DeleteNamespace: true, DeleteCRDs: true, DeleteVolumes: true}},
		{name: "helm", options: helm(v1alpha1.HelmOptions{TakeOwnership: true, Force: true, WaitForJobs: true, TimeoutSeconds: 90}), want: bundlefmt.Policy{TakeOwnership: true, Force: true, WaitForJobs: true, ReadyTimeoutSecond: 90}},
		{name: "atomic", options: helm(v1alpha1.HelmOptions{Atomic: true}), want: bundlefmt.Policy{Rollback: true, ReadyTimeoutSecond: 600}},
		{name: "atomic with a timeout", options: helm(v1alpha1.HelmOptions{Atomic: true, TimeoutSeconds: 60}), want: bundlefmt.Policy{Rollback: true, ReadyTimeoutSecond: 60}},
		{name: "a negative timeout is none", options: helm(v1alpha1.HelmOptions{TimeoutSeconds: -1})},
		{name: "the fleet goes back by default", rollback: 5 * time.Minute, want: bundlefmt.Policy{Rollback: true, ReadyTimeoutSecond: 300}},
		{name: "the bundle's timeout with the fleet's default", options: helm(v1alpha1.HelmOptions{TimeoutSeconds: 60}), rollback: 5 * time.Minute, want: bundlefmt.Policy{Rollback: true, ReadyTimeoutSecond: 60}},
		{name: "an atomic bundle keeps its own default", options: helm(v1alpha1.HelmOptions{Atomic: true}), rollback: 5 * time.Minute, want: bundlefmt.Policy{Rollback: true, ReadyTimeoutSecond: 600}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, policy(c.spec, c.options, c.rollback)); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

var (
	oldDigest = bundlefmt.Sum([]byte("old"))
	newDigest = bundlefmt.Sum([]byte("new"))
)

// member is a cluster that was ordered a release and reported something.
func member(ordered bundlefmt.Digest, reports bundlefmt.DeploymentReport) fleet.Member {
	reports.Name = "a"
	return fleet.Member{
		Link: fleet.Online, Assigned: map[string]publish.Assignment{},
		Ordered:  &bundlefmt.Desired{Serial: 7, Deployments: []bundlefmt.Deployment{{Name: "a", Serial: 5, Digest: ordered}}},
		Reported: &bundlefmt.Reported{Serial: 7, Deployments: []bundlefmt.DeploymentReport{reports}},
	}
}

// A confirmed prune reaches the clusters that wait for it, and is no new release for the others.
func TestConfirmed(t *testing.T) {
	held := bundlefmt.DeploymentReport{Digest: newDigest, Serial: 5, State: bundlefmt.Held}
	ready := bundlefmt.DeploymentReport{Digest: newDigest, Serial: 5, State: bundlefmt.Ready}
	old := bundlefmt.DeploymentReport{Digest: oldDigest, Serial: 3, State: bundlefmt.Ready}
	want := rollout.Release{Digest: newDigest}
	was := rollout.Release{Digest: newDigest, Policy: bundlefmt.Policy{ConfirmPrune: true}}
	for _, c := range []struct {
		name     string
		report   bundlefmt.DeploymentReport
		ordered  bundlefmt.Digest
		assigned rollout.Release
		confirms bool
		want     bool
	}{
		{"held, confirmed", held, newDigest, rollout.Release{}, true, true},
		{"held, not confirmed", held, newDigest, rollout.Release{}, false, false},
		{"ready already", ready, newDigest, rollout.Release{}, true, false},
		{"a new release, confirmed", old, oldDigest, rollout.Release{}, true, true},
		{"a new release, not confirmed", old, oldDigest, rollout.Release{}, false, false},
		{"confirmed before, over now: it stays as it was ordered", held, newDigest, was, false, true},
		{"confirmed for the release before: not for this one", old, oldDigest, rollout.Release{Digest: oldDigest, Policy: was.Policy}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := member(c.ordered, c.report)
			if !c.assigned.IsZero() {
				m.Assigned["a"] = publish.Assignment{Release: c.assigned}
			}
			if got := confirmed(want, m, "a", c.confirms).Policy.ConfirmPrune; got != c.want {
				t.Errorf("ConfirmPrune is %v, want %v", got, c.want)
			}
		})
	}
}
