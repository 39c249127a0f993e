package apply

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"shoal.dev/shoal/internal/kubetest"
)

// What the real controllers do to bundles in the style of well-known charts is never called drift, and is never written
// over: after everything is ready, whatever the watch tells leads to a check that finds nothing, and at the end a repair
// writes nothing.
//
// SHOAL_BUNDLES=68 adds as many bundles of eight objects with a Deployment each, and the status of one of them moves every
// second: with SHOAL_SOAK that measures what a site at rest costs the API server.
//
// It ends when every deployment was looked at three times; SHOAL_SOAK=5m goes on for that long, checking everything every
// ten seconds besides. CHARTS=DIR adds bundles: every .yaml file in DIR, many documents each, as rendered by
// `shoal render` or `helm template` (NS stands for a namespace of the test). Those need not become ready.
func TestNoFalseDrift(t *testing.T) {
	s := newSite(t)
	files, err := filepath.Glob("testdata/charts/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no bundles", err)
	}
	own := len(files)
	if dir := os.Getenv("CHARTS"); dir != "" {
		more, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
		if err != nil || len(more) == 0 {
			t.Fatalf("CHARTS=%s: no .yaml files: %v", dir, err)
		}
		files = append(files, more...)
	}
	s.volumes(4)
	var all []Deployment
	inv := map[string][]Ref{}
	for i, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		site := *s
		if i >= own { // public charts assume that they are alone
			site.ns = kubetest.Namespace(t, s.cfg)
		}
		d := site.deployment(fmt.Sprintf("chart%d-%s", i, strings.TrimSuffix(filepath.Base(f), ".yaml"))[:min(40, len(filepath.Base(f))+2)], strings.TrimPrefix(string(text), "---\n"))
		d.Name = strings.Trim(d.Name, "-.")
		d.Policy.DeleteCRDs, d.Policy.DeleteVolumes = true, true
		inv[d.Name] = s.apply(d, nil).Inventory
		all = append(all, d)
		t.Cleanup(func() { s.removeInBackground(d, inv[d.Name]) })
		if i < own {
			s.ready(d)
		}
	}
	all = append(all, s.bulk()...)
	// What the site does to them.
	_, err = s.hand.Resource(deployments).Namespace(s.ns).Patch(t.Context(), "frontend", types.MergePatchType, []byte(`{"spec":{"replicas":4}}`), metav1.PatchOptions{FieldManager: "kube-controller-manager"}, "scale")
	if err != nil {
		t.Fatal(err)
	}
	for resource, name := range map[string]string{"mutatingwebhookconfigurations": s.ns + "-mutate", "validatingwebhookconfigurations": s.ns + "-validate"} {
		gvr := schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: resource}
		if _, err := s.hand.Resource(gvr).Patch(t.Context(), name, types.JSONPatchType, []byte(`[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"SW5qZWN0ZWQ="}]`), metav1.PatchOptions{FieldManager: "cainjector"}); err != nil {
			t.Fatal(err)
		}
	}
	s.ready(all[slices.IndexFunc(all, func(d Deployment) bool { return strings.Contains(d.Name, "frontend") })])
	s.soak(all)
	for _, d := range all {
		before := s.a.Requests()
		res := s.apply(d, inv[d.Name])
		if n := s.a.Requests().Sub(before).Write; n != 0 || len(res.Written) != 0 {
			t.Errorf("a repair of %s writes %v (%d requests)", d.Name, res.Written, n)
		}
	}
}

func (s *site) bulk() []Deployment {
	s.Helper()
	n, _ := strconv.Atoi(os.Getenv("SHOAL_BUNDLES"))
	if n == 0 {
		return nil
	}
	site := *s // the charts have a quota
	s = &site
	s.ns = kubetest.Namespace(s.TB, s.cfg)
	var out []Deployment
	for i := range n {
		name := fmt.Sprintf("bulk%d", i)
		more := "\n---\n" + configMap(name+"-a", "1") + "\n---\n" + configMap(name+"-b", "1") + "\n---\napiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: web}\nspec: {minAvailable: 1, selector: {matchLabels: {app: web}}}"
		d := s.deployment(name, strings.NewReplacer("name: web}", "name: "+name+"}", "name: web,", "name: "+name+",", "replicas: 2", "replicas: 1", "app: web", "app: "+name, "serviceAccountName: web", "serviceAccountName: "+name).Replace(strings.TrimSpace(web)+more))
		s.apply(d, nil)
		out = append(out, d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	s.Cleanup(func() { cancel(); wg.Wait() })
	wg.Go(func() {
		for i := 0; pause(ctx, time.Second); i++ {
			_, _ = s.hand.Resource(deployments).Namespace(s.ns).Patch(ctx, out[i%n].Name, types.MergePatchType,
				fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Available","status":"True"},{"type":"Odd%d","status":"True"}]}}`, i), metav1.PatchOptions{}, "status")
		}
	})
	return out
}

// soak checks whatever the watch tells of, as the agent does.
func (s *site) soak(all []Deployment) {
	s.Helper()
	var length time.Duration
	if v := os.Getenv("SHOAL_SOAK"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			s.Fatalf("SHOAL_SOAK: %v", err)
		}
	}
	byName, checked := map[string]Deployment{}, map[string]int{}
	for _, d := range all {
		byName[d.Name] = d
	}
	var mu sync.Mutex
	pending := map[string]bool{}
	wake := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error)
	go func() {
		done <- s.a.Watch(ctx, func(name string) {
			mu.Lock()
			defer mu.Unlock()
			pending[name] = true
			select {
			case wake <- struct{}{}:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
	}()
	look := func(name string) {
		d, ok := byName[name]
		if !ok {
			return
		}
		checked[name]++
		if st := s.check(d); st.Modified.Count != 0 || st.Unverified.Count != 0 {
			s.Errorf("%s: modified %v, unverified %v", name, st.Modified.First, st.Unverified.First)
		}
	}
	enough := func() bool {
		for _, d := range all {
			if checked[d.Name] < 3 {
				return false
			}
		}
		return true
	}
	began, start := time.Now(), s.a.Requests()
	var settled Requests // after a minute everything is known
	tick := time.NewTicker(10 * time.Second)
	if length == 0 {
		tick.Reset(500 * time.Millisecond)
	}
	defer tick.Stop()
	for time.Since(began) < length || !enough() {
		select {
		case <-wake:
			mu.Lock()
			names := pending
			pending = map[string]bool{}
			mu.Unlock()
			for name := range names {
				look(name)
			}
		case <-tick.C:
			for _, d := range all {
				look(d.Name)
			}
		}
		if settled == (Requests{}) && time.Since(began) > time.Minute {
			settled = s.a.Requests()
		}
	}
	used := s.a.Requests().Sub(start)
	if used.Write != 0 {
		s.Errorf("%d writes", used.Write)
	}
	objects, checks := 0, 0
	for _, d := range all {
		objects, checks = objects+len(d.Objects), checks+checked[d.Name]
	}
	s.Logf("%d bundles of %d objects, %v: %d checks, requests %+v", len(all), objects, time.Since(began).Round(time.Second), checks, used)
	if settled != (Requests{}) {
		rest := s.a.Requests().Sub(settled)
		s.Logf("after the first minute: %.1f requests a minute, %+v", float64(rest.Total())/(time.Since(began)-time.Minute).Minutes(), rest)
	}
}

// volumes makes volumes for claims of the class NS-manual.
func (s *site) volumes(n int) {
	s.Helper()
	gvr := schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumes"}
	for i := range n {
		name := fmt.Sprintf("%s-%d", s.ns, i)
		site := *s
		site.ns = ""
		site.create(gvr, fmt.Sprintf("apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: %s}\nspec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], storageClassName: %s-manual, hostPath: {path: /x}}", name, s.ns))
		s.Cleanup(func() { _ = s.hand.Resource(gvr).Delete(context.Background(), name, metav1.DeleteOptions{}) })
	}
}

// removeInBackground is a removal that a test does not wait for beyond reason.
func (s *site) removeInBackground(d Deployment, refs []Ref) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		r, err := s.a.Remove(ctx, d, refs, false)
		if refs = r.Refs(); err != nil || len(refs) == 0 {
			return
		}
		pause(ctx, 200*time.Millisecond)
	}
}
