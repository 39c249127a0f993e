package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/kubetest"
)

// watched runs the watch for as long as the test.
func (s *site) watched() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.a.Watch(ctx, func(string) {}) }()
	s.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
	})
}

// watching waits until the watch of a kind stands.
func (s *site) watching(o Deployment) {
	s.Helper()
	s.check(o)
	kubetest.Wait(s, "the watches to stand", func(context.Context) error {
		s.a.tracked.mu.Lock()
		defer s.a.tracked.mu.Unlock()
		for _, g := range s.a.tracked.byName[o.Name] {
			if !s.a.tracked.memory.live[g] {
				return fmt.Errorf("not of %s", g.Resource)
			}
		}
		return nil
	})
}

func ttlJob(ttl string) string { return strings.Replace(jobYAML("once", ttl), "ANNOTATIONS", "", 1) }

// A Job or a Pod that has ended and is not there any more has done what it is for: it is ready, not missing, and does not run
// again, whatever repairs, other changes and restarts there are, until the bundle states another one.
func TestEndedAndCollectedIsDone(t *testing.T) {
	for _, c := range []struct {
		name, manifest string
		tidy           func(*site) // collects it
		away           bool        // nobody looks while it ends
	}{
		{name: "ttl", manifest: ttlJob("  ttlSecondsAfterFinished: 0\n")},
		{name: "ttl-away", manifest: ttlJob("  ttlSecondsAfterFinished: 0\n"), away: true},
		{name: "tidied-up", manifest: ttlJob(""), tidy: func(s *site) { s.delete(jobs, "once") }},
		{name: "pod", manifest: "apiVersion: v1\nkind: Pod\nmetadata: {name: once, ownerReferences: null, labels: {job-name: x}}\nspec: {restartPolicy: Never, containers: [{name: c, image: \"c:1\"}]}", tidy: func(s *site) { s.delete(pods, "once") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			gvr := jobs
			if c.name == "pod" {
				gvr = pods
			}
			d := s.deployment("x", c.manifest+"\n---\n"+configMap("a", "1"))
			if !c.away {
				s.watched()
				s.watching(d)
			}
			res := s.apply(d, nil)
			d.Runs = res.Runs
			if len(d.Runs) != 1 {
				t.Fatalf("runs: %+v", d.Runs)
			}
			if gvr == pods {
				s.succeed()
			}
			if c.tidy != nil {
				kubetest.Wait(t, "the end", func(context.Context) error {
					st := s.check(d)
					if d.Runs = st.Runs; len(d.Runs) != 1 || d.Runs[0].End != RunComplete {
						return fmt.Errorf("runs: %+v", st)
					}
					return nil
				})
				c.tidy(s)
			}
			s.awaitGone(gvr)
			again := func(what string) {
				t.Helper()
				kubetest.Wait(t, "the news", func(context.Context) error { // a watch may still be telling
					if st := s.check(d); st.Ready != 2 || st.Modified.Count != 0 || len(st.Runs) != 1 || st.Runs[0].End != RunComplete {
						return fmt.Errorf("%s: %+v", what, st)
					}
					return nil
				})
				res := s.apply(d, res.Inventory)
				if len(res.Written) != 0 || s.get(gvr, "once") != nil {
					t.Fatalf("%s: it runs again, written %v", what, res.Written)
				}
				d.Runs = res.Runs
			}
			again("repair")
			s.a = newApplier(t, s.cfg)
			again("restarted agent")
			d.Operation = Upgrade
			d.Objects[1] = s.deployment("x", configMap("a", "2")).Objects[0]
			if res := s.apply(d, res.Inventory); len(res.Written) != 1 || s.get(gvr, "once") != nil {
				t.Fatalf("it runs again with another release, written %v", res.Written)
			}
			d.Operation = ""
			d.Objects[0] = s.deployment("x", strings.Replace(c.manifest, "name: once", "name: once, annotations: {a: b}", 1)).Objects[0]
			again("another annotation")

			for _, next := range []func(){
				func() { d.Policy.ForceSync++ },
				func() { d.Objects[0] = s.deployment("x", strings.Replace(c.manifest, `"c:1"`, `"c:2"`, 1)).Objects[0] },
			} {
				next()
				res := s.apply(d, res.Inventory)
				if len(res.Written) != 1 || res.Written[0].Name != "once" {
					t.Fatalf("another one is to run, written %v", res.Written)
				}
				if d.Runs = res.Runs; gvr == pods {
					s.succeed()
				}
				if c.tidy != nil {
					kubetest.Wait(t, "the end", func(context.Context) error {
						if d.Runs = s.check(d).Runs; len(d.Runs) != 1 || d.Runs[0].End != RunComplete {
							return fmt.Errorf("runs: %+v", d.Runs)
						}
						return nil
					})
					c.tidy(s)
				}
				s.awaitGone(gvr)
			}
		})
	}
}

// succeed ends the Pod, once the simulated node runs it.
func (s *site) succeed() {
	s.Helper()
	kubetest.Wait(s, "the Pod to run", func(context.Context) error {
		if u := s.get(pods, "once"); u == nil || valueAt(u, "status", "phase") != "Running" {
			return errors.New("it does not")
		}
		return nil
	})
	s.patchByHand("apiVersion: v1\nkind: Pod\nmetadata: {name: once}\nsubresource: status\nstatus: {phase: Succeeded}")
}

var pods = configMaps.GroupVersion().WithResource("pods")

func (s *site) awaitGone(gvr schema.GroupVersionResource) {
	s.Helper()
	kubetest.Wait(s, "the collection", func(context.Context) error {
		if s.get(gvr, "once") != nil {
			return errors.New("still there")
		}
		return nil
	})
}

// What was deleted before it had ended is missing, and made again.
func TestUnfinishedJobThatIsDeletedIsMissing(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", strings.Replace(jobYAML("once", "  ttlSecondsAfterFinished: 0\n"), "ANNOTATIONS", `annotations: {sim.shoal.dev/waiting: Stuck}`, 1))
	s.watched()
	s.watching(d)
	res := s.apply(d, nil)
	d.Runs = res.Runs
	s.delete(jobs, "once")
	kubetest.Wait(t, "it to be missing", func(context.Context) error {
		if st := s.check(d); st.Missing != 1 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	if res := s.apply(d, res.Inventory); len(res.Written) != 1 {
		t.Errorf("written %v", res.Written)
	}
}

// A Job that has failed is not tried for ever either, and is not called done.
func TestFailedAndCollectedHasFailed(t *testing.T) {
	s := newSite(t)
	d := s.deployment("x", strings.Replace(jobYAML("once", "  activeDeadlineSeconds: 1\n  ttlSecondsAfterFinished: 0\n"), "ANNOTATIONS", `annotations: {sim.shoal.dev/waiting: Stuck}`, 1))
	s.watched()
	s.watching(d)
	res := s.apply(d, nil)
	d.Runs = res.Runs
	s.awaitGone(jobs)
	kubetest.Wait(t, "the failure to be told", func(context.Context) error {
		if st := s.check(d); st.Failed.Count != 1 || !strings.Contains(st.Failed.First[0].Message, "has failed and is gone: DeadlineExceeded") {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	if res := s.apply(d, res.Inventory); len(res.Written) != 0 {
		t.Errorf("written %v", res.Written)
	}
}

// Each case is a bundle and what comes of it on a cluster, when the controllers have done what they do: "ready", "suspended"
// with a part of the message, or the reason and a part of the message.
func TestReadinessOnACluster(t *testing.T) {
	files, err := filepath.Glob("testdata/becomes/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			part := map[string]string{}
			for _, f := range txtar.Parse(data).Files {
				part[f.Name] = string(f.Data)
			}
			s := newSite(t)
			d := s.deployment("x", strings.TrimSpace(part["bundle"]))
			d.Policy = bundlefmt.Policy{}
			if err := yaml.UnmarshalStrict([]byte(part["options"]), &d.Policy); err != nil {
				t.Fatal(err)
			}
			d.Policy.Namespace = s.ns
			inv := s.apply(d, nil).Inventory
			s.Cleanup(func() { s.removeInBackground(d, inv) })
			reason, msg, _ := strings.Cut(strings.TrimSpace(part["want"]), ": ")
			kubetest.Wait(t, "it to be as expected", func(context.Context) error {
				st := s.check(d)
				f := Findings{}
				switch {
				case st.Modified.Count > 0:
					f = st.Modified
				case reason == "suspended":
					f = st.Suspended
				case reason != "ready":
					f = st.NotReady
				case st.Ready == st.Total && st.Suspended.Count == 0:
					return nil
				}
				if f.Count > 0 && strings.EqualFold(string(f.First[0].Reason), reason) && strings.Contains(f.First[0].Message, strings.ReplaceAll(msg, "NS", s.ns)) {
					return nil
				}
				return fmt.Errorf("%+v", st)
			})
		})
	}
}
