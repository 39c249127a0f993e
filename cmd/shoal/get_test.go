package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/fleet"
)

// TestDeploymentTable: the states that hold or take back a release say why, on one line, whatever an agent sends.
func TestDeploymentTable(t *testing.T) {
	now := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	report := func(name string, s bundlefmt.State, message string) deployment {
		return deployment{"shop", "paris", bundlefmt.DeploymentReport{Name: name, Serial: 7, Digest: bundlefmt.Sum([]byte("x")), State: s, Message: message, Ready: 1, Total: 2, Since: now.Add(-time.Hour)}}
	}
	list := []deployment{
		report("api", bundlefmt.Held, "outside of its windows, the next one opens at 2026-11-23T02:00:00Z"),
		report("db", bundlefmt.RolledBack, "release 8 failed:\n  job db/migrate: exit code 1;\tback to release 7"),
		report("evil", bundlefmt.Ready, "\x1b[2J\u202e"),
		report("web", bundlefmt.Modified, ""),
	}
	ref := bundlefmt.Ref{Version: "v1", Kind: "ConfigMap", Namespace: "web", Name: "a"}
	list[3].Modified, list[3].ModifiedCount = []bundlefmt.Finding{{Ref: ref, Reason: "data.x changed"}}, 12
	var out strings.Builder
	if err := deploymentTable(list, now).write(&out, false); err != nil {
		t.Fatal(err)
	}
	release := "7@" + bundlefmt.Sum([]byte("x")).Short()[:12]
	want := strings.ReplaceAll(`CLUSTER   BUNDLE   STATE        OBJECTS   RELEASE          SINCE   MESSAGE
paris     api      Held         1/2       rrrrrrrrrrrrrr   60m     outside of its windows, the next one opens at 2026-11-23T02:00:00Z
paris     db       RolledBack   1/2       rrrrrrrrrrrrrr   60m     release 8 failed: job db/migrate: exit code 1; back to release 7
paris     evil     Ready        1/2       rrrrrrrrrrrrrr   60m     �[2J�
paris     web      Modified     1/2       rrrrrrrrrrrrrr   60m     `+ref.String()+`: data.x changed (and 11 more)
`, "rrrrrrrrrrrrrr", release)
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestStandings: what a report says is shown beside what is ordered.
func TestStandings(t *testing.T) {
	digest := bundlefmt.Sum([]byte("x"))
	order := func(name string, serial bundlefmt.Serial) bundlefmt.Deployment {
		return bundlefmt.Deployment{Name: name, Serial: serial, Digest: digest}
	}
	report := func(name string, serial bundlefmt.Serial, s bundlefmt.State, message string) bundlefmt.DeploymentReport {
		return bundlefmt.DeploymentReport{Name: name, Serial: serial, Digest: digest, State: s, Message: message}
	}
	m := fleet.Member{
		Ordered: &bundlefmt.Desired{
			Serial: 9, Deployments: []bundlefmt.Deployment{order("api", 4), order("new", 9), order("web", 9)},
			Remove: []bundlefmt.Removal{{Name: "gone", Serial: 8}, {Name: "old", Serial: 9}},
		},
		Reported: &bundlefmt.Reported{Serial: 9, Deployments: []bundlefmt.DeploymentReport{
			report("api", 4, bundlefmt.Ready, ""), report("left", 2, bundlefmt.Orphaned, "in neither list"),
			report("old", 3, bundlefmt.WaitApplied, "1 objects are still to go: finalizer x"), report("web", 4, bundlefmt.Ready, ""),
		}},
	}
	got := map[string]string{}
	for _, d := range standings(m) {
		got[d.Name] = string(d.State) + " " + d.Message
	}
	want := map[string]string{
		"api": "Ready ", "left": "Orphaned in neither list", "new": "WaitApplied ordered, the cluster has not confirmed it yet", "old": "Removing 1 objects are still to go: finalizer x", "web": "WaitApplied ordered, the cluster has not confirmed it yet",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	m.Ordered = nil // the broker has lost it: what the cluster said is all there is
	if d := standings(m)[3]; d.State != bundlefmt.Ready {
		t.Errorf("without an order: %+v", d)
	}
}
