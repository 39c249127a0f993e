package apply

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/kubetest"
)

// writes notes what changes something on the cluster, in order: "PATCH jobs/a".
type writes struct {
	mu   sync.Mutex
	list []string
}

// record has a new applier of the site note its writes.
func (s *site) record() *writes {
	w := &writes{}
	cfg := rest.CopyConfig(s.cfg)
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet && r.URL.Query().Get("dryRun") == "" {
				w.mu.Lock()
				w.list = append(w.list, r.Method+" "+path.Base(path.Dir(r.URL.Path))+"/"+path.Base(r.URL.Path))
				w.mu.Unlock()
			}
			return next.RoundTrip(r)
		})
	})
	s.a = newApplier(s.TB, cfg)
	return w
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// take returns what was noted since the last time.
func (w *writes) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.list
	w.list = nil
	return out
}

func jobYAML(name, more string) string {
	return "apiVersion: batch/v1\nkind: Job\nmetadata: {name: " + name + "}\nspec:\n  backoffLimit: 0\n" + more +
		"  template:\n    metadata: {ANNOTATIONS}\n    spec: {restartPolicy: Never, containers: [{name: c, image: \"c:1\"}]}"
}

// The simulated node completes the Pods of Jobs, but not those with this annotation.
func quick(name string) string { return strings.Replace(jobYAML(name, ""), "ANNOTATIONS", "", 1) }
func stuck(name string) string {
	return strings.Replace(jobYAML(name, ""), "ANNOTATIONS", `annotations: {sim.shoal.dev/waiting: Stuck}`, 1)
}
func failing(name string) string {
	return strings.Replace(jobYAML(name, "  activeDeadlineSeconds: 1\n"), "ANNOTATIONS", `annotations: {sim.shoal.dev/waiting: Stuck}`, 1)
}

// hooks adds objects to d as hooks: each is "events weight delete-policies|manifest", lists joined by commas.
func (s *site) hooks(d Deployment, hooks ...string) Deployment {
	s.Helper()
	weights := map[string]int64{"-5": -5, "0": 0, "5": 5}
	for _, h := range hooks {
		head, manifest, _ := strings.Cut(h, "|")
		f := strings.Split(head, " ")
		hook := bundlefmt.Hook{Object: len(d.Objects), Weight: weights[f[1]]}
		for e := range strings.SplitSeq(f[0], ",") {
			hook.Events = append(hook.Events, bundlefmt.HookEvent(e))
		}
		for p := range strings.SplitSeq(f[2], ",") {
			if p != "" {
				hook.Delete = append(hook.Delete, bundlefmt.HookDelete(p))
			}
		}
		d.Objects = append(d.Objects, s.deployment(d.Name, manifest).Objects...)
		d.Handling.Hooks = append(d.Handling.Hooks, hook)
	}
	return d
}

func TestHooksRunInOrderAndAreNoPartOfTheRelease(t *testing.T) {
	s := newSite(t)
	w := s.record()
	d := s.hooks(s.deployment("x", configMap("app", "1")),
		"pre-install 0 |"+quick("b"),
		"pre-install 0 hook-succeeded|apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: z}",
		"pre-install -5 |"+quick("first"),
		"post-install,post-upgrade 0 hook-succeeded|"+quick("after"),
		"pre-upgrade 5 |"+quick("up"),
		"pre-rollback 0 |"+quick("back"))
	d.Operation = Install
	res := s.apply(d, nil)
	want := []string{
		"PATCH jobs/first", "PATCH serviceaccounts/z", "PATCH jobs/b", "DELETE serviceaccounts/z",
		"PATCH configmaps/app", "PATCH jobs/after", "DELETE jobs/after",
	}
	if diff := cmp.Diff(want, w.take()); diff != "" {
		t.Errorf("install (-want +got):\n%s", diff)
	}
	if res.Total != 1 || len(res.Inventory) != 1 || res.Inventory[0].Name != "app" {
		t.Errorf("hooks count as objects: %+v", res)
	}
	if will, err := s.a.Inventory(t.Context(), d); err != nil || len(will) != 1 {
		t.Errorf("hooks are in the inventory: %v, %v", will, err)
	}
	if st := s.check(d); st.Total != 1 || st.Ready != 1 || st.Modified.Count != 0 {
		t.Errorf("hooks are checked: %+v", st)
	}

	d.Operation = ""
	s.apply(d, res.Inventory)
	if got := w.take(); len(got) != 0 {
		t.Errorf("a repair runs no hooks, got %v", got)
	}

	d.Operation = Rollback
	s.apply(d, res.Inventory)
	if diff := cmp.Diff([]string{"PATCH jobs/back"}, w.take()); diff != "" {
		t.Errorf("rollback (-want +got):\n%s", diff)
	}

	// What was left from before goes first.
	d.Operation = Upgrade
	s.apply(d, res.Inventory)
	w.take()
	s.apply(d, res.Inventory)
	if diff := cmp.Diff([]string{"DELETE jobs/up", "PATCH jobs/up", "PATCH jobs/after", "DELETE jobs/after"}, w.take()); diff != "" {
		t.Errorf("second upgrade (-want +got):\n%s", diff)
	}
}

func TestHookThatFailsStopsTheRelease(t *testing.T) {
	s := newSite(t)
	inv := s.apply(s.deployment("x", configMap("app", "1")+"\n---\n"+configMap("old", "1")), nil).Inventory
	d := s.hooks(s.deployment("x", configMap("app", "2")), "pre-upgrade -5 hook-succeeded|"+configMap("helper", "1"), "pre-upgrade 0 hook-failed|"+failing("migrate"))
	d.Operation = Upgrade
	res := s.try(d, inv)
	f := s.errorOf(res, "migrate")
	if f.Reason != HookFailed || len(res.Errors) != 1 {
		t.Errorf("got %v", res.Errors)
	}
	contains(t, f.Message, "the pre-upgrade hook failed: DeadlineExceeded")
	if value2(s.get(configMaps, "app"), "data", "v") != `"1"` || s.get(configMaps, "old") == nil {
		t.Error("the release went on")
	}
	if len(res.Inventory) != 2 {
		t.Errorf("inventory %v, want what is there", res.Inventory)
	}
	kubetest.Wait(t, "hooks to go", func(context.Context) error {
		if s.get(jobs, "migrate") != nil || s.get(configMaps, "helper") != nil {
			return errors.New("still there")
		}
		return nil
	})
}

func TestHookThatTakesTooLong(t *testing.T) {
	s := newSite(t)
	d := s.hooks(s.deployment("x", configMap("app", "1")), "pre-install 0 |"+stuck("slow"))
	d.Operation, d.Policy.ReadyTimeoutSecond = Install, 1
	f := s.errorOf(s.try(d, nil), "slow")
	contains(t, f.Message, "the pre-install hook did not succeed within 1s", "runs:")
	if s.get(configMaps, "app") != nil {
		t.Error("the release went on")
	}
}

// Every hook has its own limit, so the bound of all of them follows from how many there are.
func TestHookTime(t *testing.T) {
	hook := func(events ...bundlefmt.HookEvent) bundlefmt.Hook { return bundlefmt.Hook{Events: events} }
	d := Deployment{Handling: bundlefmt.Handling{Hooks: []bundlefmt.Hook{
		hook(bundlefmt.PreInstall, bundlefmt.PreUpgrade), hook(bundlefmt.PreUpgrade), hook(bundlefmt.PostUpgrade), hook(bundlefmt.PreDelete),
	}}}
	check := func(o Operation, seconds uint64, apply, removal time.Duration) {
		t.Helper()
		d.Operation, d.Policy.ReadyTimeoutSecond = o, seconds
		if got, got2 := d.HookTime(), d.RemovalTime(); got != apply || got2 != removal {
			t.Errorf("%s with %d s: %s, removal %s", o, seconds, got, got2)
		}
	}
	check("", 60, 0, time.Minute)
	check(Install, 60, time.Minute, time.Minute)
	check(Upgrade, 60, 4*time.Minute, time.Minute) // with the wait before the last one
	check(Upgrade, 0, 15*time.Minute, 5*time.Minute)
	check(Upgrade, 30*24*3600, 60*24*time.Hour, 30*24*time.Hour) // no overflow with many
}

// The agent dies while a hook runs; the next one starts over.
func TestHookThatWasRunningWhenTheAgentDied(t *testing.T) {
	s := newSite(t)
	d := s.hooks(s.deployment("x", configMap("app", "1")), "pre-install 0 hook-succeeded|"+stuck("migrate"))
	d.Operation = Install
	ctx, die := context.WithCancel(t.Context())
	go func() {
		kubetest.Wait(t, "the hook to run", func(context.Context) error {
			if s.get(jobs, "migrate") == nil {
				return errors.New("not there")
			}
			return nil
		})
		die()
	}()
	if _, err := s.a.Apply(ctx, d, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	uid := s.get(jobs, "migrate").GetUID()
	d = s.hooks(s.deployment("x", configMap("app", "1")), "pre-install 0 |"+quick("migrate"))
	d.Operation = Install
	s.a = newApplier(t, s.cfg)
	s.apply(d, nil)
	if got := s.get(jobs, "migrate"); got == nil || got.GetUID() == uid {
		t.Error("the hook of the dead agent is still there")
	}
}

func TestHookDoesNotDeleteWhatIsNobodys(t *testing.T) {
	s := newSite(t)
	s.create(configMaps, configMap("precious", "by hand"))
	d := s.hooks(s.deployment("x", configMap("app", "1")), "pre-install 0 |"+configMap("precious", "1"))
	d.Operation = Install
	f := s.errorOf(s.try(d, nil), "precious")
	if f.Reason != NobodysObject || value2(s.get(configMaps, "precious"), "data", "v") != `"by hand"` {
		t.Errorf("got %v", f)
	}
	contains(t, f.Message, "helm.takeOwnership")
	d.Policy.TakeOwnership = true
	s.apply(d, nil)
}

// With a timeout in the bundle, the last hooks wait until the rest is ready, as Helm's do.
func TestLastHooksWaitForReadiness(t *testing.T) {
	s := newSite(t)
	d := s.hooks(s.deployment("x", stuck("never")), "post-install 0 |"+configMap("after", "1"))
	d.Operation, d.Policy.WaitForJobs, d.Policy.ReadyTimeoutSecond = Install, true, 1
	f := s.errorOf(s.try(d, nil), "never")
	contains(t, f.Message, "after 1s; the post-install hooks were not run")
	if s.get(configMaps, "after") != nil {
		t.Error("the hook has run")
	}
}

func TestHooksOfARemoval(t *testing.T) {
	s := newSite(t)
	w := s.record()
	old := s.hooks(s.deployment("x", configMap("app", "1")), "pre-install 0 |"+configMap("left-by-release-1", "1"))
	old.Operation = Install
	inv := s.apply(old, nil).Inventory
	broken := s.hooks(s.deployment("x", configMap("app", "1")), "pre-delete 0 |"+failing("goodbye"))
	r, err := s.a.Remove(t.Context(), broken, inv, false)
	if err != nil || len(r.Remaining) != 1 || r.Remaining[0].Reason != HookFailed || s.get(configMaps, "app") == nil {
		t.Fatalf("a hook that fails stops the removal, got %+v, %v", r, err)
	}
	contains(t, r.Remaining[0].Message, "waits for the pre-delete hook", "DeadlineExceeded")
	w.take()

	d := s.hooks(s.deployment("x", configMap("app", "1")), "pre-delete 0 |"+quick("goodbye"), "post-delete 0 |"+quick("last"))
	refs := r.Refs()
	kubetest.Wait(t, "removal", func(ctx context.Context) error {
		r, err := s.a.Remove(ctx, d, refs, false)
		if refs = r.Refs(); err == nil && len(refs) > 0 {
			err = errors.New("remaining")
		}
		return err
	})
	got := w.take()
	order := []string{"PATCH jobs/goodbye", "DELETE configmaps/app", "PATCH jobs/last"}
	got2 := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return !slices.Contains(order, s) })
	if diff := cmp.Diff(order, got2); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	kubetest.Wait(t, "what hooks left to go", func(context.Context) error {
		if s.get(jobs, "goodbye") != nil || s.get(jobs, "last") != nil || s.get(configMaps, "left-by-release-1") != nil {
			return errors.New("still there")
		}
		return nil
	})
}

// Without the bundle the hooks cannot run; the rest goes, and what hooks left goes as well.
func TestRemovalWithoutTheBundle(t *testing.T) {
	s := newSite(t)
	d := s.hooks(s.deployment("x", configMap("app", "1")), "pre-install 0 |"+configMap("left", "1"), "pre-delete 0 |"+stuck("goodbye"))
	d.Operation = Install
	inv := s.apply(d, nil).Inventory
	r, err := s.a.Remove(t.Context(), Deployment{Name: "x"}, inv, false)
	if err != nil || len(r.Remaining) != 0 {
		t.Fatal(r, err)
	}
	contains(t, r.Note, "hooks", "were not run")
	if s.get(configMaps, "left") != nil || s.get(configMaps, "app") != nil || s.get(jobs, "goodbye") != nil {
		t.Error("something is left")
	}
}

// A chart makes a hook of what was an object, and an object of what was a hook: neither is pruned or left with the mark.
func TestObjectThatBecomesAHook(t *testing.T) {
	s := newSite(t)
	inv := s.apply(s.deployment("x", configMap("app", "1")+"\n---\n"+configMap("swap", "1")), nil).Inventory
	d := s.hooks(s.deployment("x", configMap("app", "1")), "post-upgrade 0 |"+configMap("swap", "2"))
	d.Operation = Upgrade
	inv = s.apply(d, inv).Inventory
	if u := s.get(configMaps, "swap"); u == nil || !isHook(u) || len(inv) != 1 {
		t.Fatalf("got %v, inventory %v", u, inv)
	}
	if res := s.apply(s.deployment("x", configMap("app", "1")), append(inv, Ref{Version: "v1", Kind: "ConfigMap", Namespace: s.ns, Name: "swap"})); len(res.Pruned) != 0 || s.get(configMaps, "swap") == nil {
		t.Errorf("the hook was pruned: %v", res.Pruned)
	}
	d = s.deployment("x", configMap("app", "1")+"\n---\n"+configMap("swap", "3"))
	d.Operation = Upgrade
	inv = s.apply(d, inv).Inventory
	if u := s.get(configMaps, "swap"); isHook(u) || len(inv) != 2 {
		t.Errorf("the mark stays: %v, inventory %v", u.GetLabels(), inv)
	}
	s.clean(d)
}

// While a hook has not ended it is said which one it is, since when, for how long at most, and why its Pod is not there or not
// done; and in the end, when its time is over, as well.
func TestHookThatWaitsSaysWhy(t *testing.T) {
	job := func(more string) string {
		return "apiVersion: batch/v1\nkind: Job\nmetadata: {name: slow}\nspec:\n  template:\n    " + more + "\n    spec: {restartPolicy: Never, containers: [{name: c, image: \"c:1\"}]}"
	}
	for name, c := range map[string]struct {
		before, hook string
		want         []string
	}{
		"image": {hook: job("metadata: {annotations: {sim.shoal.dev/waiting: ImagePullBackOff}}"),
			want: []string{"runs: 1 active", "Pod slow-", "container c waits: ImagePullBackOff"}},
		"quota":     {before: "apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: q}\nspec: {hard: {pods: \"0\"}}", hook: job(""), want: []string{"it has no Pod: FailedCreate", "exceeded quota"}},
		"suspended": {hook: strings.Replace(job(""), "spec:\n  template", "spec:\n  suspend: true\n  template", 1), want: []string{"the Job is suspended"}},
		"pod": {hook: "apiVersion: v1\nkind: Pod\nmetadata: {name: slow}\nspec: {restartPolicy: Never, nodeSelector: {no: where}, containers: [{name: c, image: \"c:1\"}]}",
			want: []string{"is Pending", "it is not scheduled: Unschedulable"}},
		"finalizer": {before: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: slow, labels: {shoal.dev/deployment: x}, finalizers: [example.com/x]}", hook: configMap("slow", "1"),
			want: []string{"waits until the one before is gone", "waiting for finalizers [example.com/x]"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			if c.before != "" {
				k, _, err := s.a.pass(Deployment{}).find(t.Context(), s.deployment("x", c.before).Objects[0].Ref)
				if err != nil {
					t.Fatal(err)
				}
				s.create(k.gvr, c.before)
			}
			d := s.hooks(s.deployment("x", configMap("app", "1")), "pre-install 0 |"+c.hook)
			d.Operation, d.Policy.ReadyTimeoutSecond = Install, 600
			ctx, enough := context.WithCancel(t.Context())
			defer enough()
			said := make(chan string, 1)
			d.Progress = func(msg string) {
				select {
				case <-said:
				default:
				}
				said <- msg
			}
			done := make(chan error)
			go func() { _, err := s.a.Apply(ctx, d, nil); done <- err }()
			want := append([]string{"the pre-install hook", "/slow has not ended, since 20", ", for at most 10m0s: "}, c.want...)
			kubetest.Wait(t, "it to be said", func(context.Context) error {
				select {
				case msg := <-said:
					for _, w := range want {
						if !strings.Contains(msg, w) {
							return fmt.Errorf("want %q in %q", w, msg)
						}
					}
					return nil
				default:
					return errors.New("nothing is said")
				}
			})
			enough()
			if err := <-done; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), c.want[len(c.want)-1]) {
				t.Errorf("got %v", err)
			}
			if name == "finalizer" {
				s.edit(configMaps, "slow", `{"metadata":{"finalizers":null}}`)
			}
		})
	}
}
