package controller_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/google/go-cmp/cmp"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/reconcile"
	"shoal.dev/shoal/topics"
)

// chart is a bundle with a chart that prints its values.
func chart(name string, values v1alpha1.Values) *v1alpha1.Bundle {
	b := &v1alpha1.Bundle{}
	b.Name = name
	b.Spec.Helm = &v1alpha1.HelmOptions{Values: values}
	b.Spec.Targets = everywhere()
	b.Spec.Resources = []v1alpha1.BundleResource{
		{Name: "Chart.yaml", Content: "apiVersion: v2\nname: " + name + "\nversion: 1.0.0\n"},
		{Name: "templates/cm.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: " + name + "\ndata:\n  values: {{ .Values | toJson | quote }}\n"},
	}
	return b
}

func (h *hub) updateCluster(name string, change func(*v1alpha1.Cluster)) {
	h.t.Helper()
	var c v1alpha1.Cluster
	wait(h.t, "update cluster "+name, func() (bool, string) {
		if err := h.kube.Get(h.t.Context(), client.ObjectKey{Namespace: h.ns, Name: name}, &c); err != nil {
			return false, err.Error()
		}
		change(&c)
		err := h.kube.Update(h.t.Context(), &c)
		return err == nil, fmt.Sprint(err)
	})
}

// core is a client for the kinds of Kubernetes itself.
func (h *hub) core() client.Client {
	h.t.Helper()
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		h.t.Fatal(err)
	}
	c, err := client.New(h.cfg, client.Options{Scheme: scheme})
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// fetch subscribes to the parts of a bundle, as an agent does, and opens it.
func (s *site) fetch(d bundlefmt.Deployment) *bundlefmt.Bundle {
	s.h.t.Helper()
	var names []string
	for i := range d.Parts {
		names = append(names, topics.Default.Part(s.id, d.Group, d.Digest.Short(), i))
	}
	if _, err := s.client.Subscribe(s.h.t.Context(), s.receive, names...); err != nil {
		s.h.t.Fatal(err)
	}
	var parts [][]byte
	wait(s.h.t, "parts of "+d.Name, func() (bool, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		got := map[string][]byte{}
		for _, m := range s.heard {
			if len(m.Payload) > 0 {
				got[m.Topic] = m.Payload
			}
		}
		parts = nil
		for _, n := range names {
			if p, ok := got[n]; ok {
				parts = append(parts, p)
			}
		}
		return len(parts) == len(names), fmt.Sprintf("%d of %d", len(parts), len(names))
	})
	b, err := bundlefmt.Open(parts, d.Digest, s.trust, bundlefmt.DefaultLimits())
	if err != nil {
		s.h.t.Fatal(err)
	}
	return b
}

// text is all objects of a bundle that a cluster was ordered.
func (s *site) text(name string) string {
	s.h.t.Helper()
	var b strings.Builder
	for _, o := range s.fetch(entry(s.h.t, s.waitDesired("runs "+name, func(d *bundlefmt.Desired) bool { return has(d, name) }), name)).Objects() {
		b.Write(o.JSON)
		b.WriteByte('\n')
	}
	return b.String()
}

func has(d *bundlefmt.Desired, name string) bool {
	for _, x := range d.Deployments {
		if x.Name == name {
			return true
		}
	}
	return false
}

// Each cluster gets its own values; one that lacks a label is told apart by name and the others go on; a new label is a new
// release for that cluster alone.
func TestValuesOfEachCluster(t *testing.T) {
	h := newHub(t)
	eu, us := h.join("eu-1", map[string]string{"region": "eu"}), h.join("us-1", map[string]string{"region": "us"})
	bare := h.join("bare", nil)
	h.updateCluster("eu-1", func(c *v1alpha1.Cluster) { c.Spec.TemplateValues = v1alpha1.Values{"replicas": int64(3)} })
	h.create(chart("web", v1alpha1.Values{"where": "${ .ClusterLabels.region }", "replicas": `${ get .ClusterValues "replicas" | default 1 }`, "name": "${ .ClusterName }.${ .ClusterNamespace }"}))

	wantText(t, eu.text("web"), `\"name\":\"eu-1.`+h.ns+`\",\"replicas\":3,\"where\":\"eu\"`)
	wantText(t, us.text("web"), `\"replicas\":1,\"where\":\"us\"`)
	b := h.waitBundle("web", "names the cluster without a label", func(b *v1alpha1.Bundle) bool {
		return b.Status.Summary.ErrRendered == 1 && b.Status.Summary.WaitApplied == 2
	})
	for _, part := range []string{"target all", "cluster bare", "helm.values.where: in \"${ .ClusterLabels.region }\"", `no entry for key "region"`} {
		if !strings.Contains(b.Status.Display.Message, part) {
			t.Errorf("message %q lacks %q", b.Status.Display.Message, part)
		}
	}
	before := entry(t, us.waitDesired("runs web", runs("web")), "web")
	h.updateCluster("bare", func(c *v1alpha1.Cluster) { c.Labels = map[string]string{"region": "nowhere"} })
	wantText(t, bare.text("web"), `\"where\":\"nowhere\"`)
	h.updateCluster("eu-1", func(c *v1alpha1.Cluster) { c.Labels["region"] = "north" })
	was := entry(t, eu.waitDesired("runs web", runs("web")), "web").Digest
	eu.waitDesired("has another release", func(d *bundlefmt.Desired) bool { return has(d, "web") && entry(t, d, "web").Digest != was })
	wantText(t, eu.text("web"), `\"where\":\"north\"`)
	if now := entry(t, us.waitDesired("runs web", runs("web")), "web"); !now.Equal(before) {
		t.Errorf("us-1 was ordered %+v, had %+v", now, before)
	}
}

func wantText(t *testing.T, got, want string) {
	t.Helper()
	if !strings.Contains(got, want) {
		t.Errorf("%s\ndoes not hold %s", got, want)
	}
}

// All targets that match are merged, and a customization does not select.
func TestAllMatches(t *testing.T) {
	h := newHub(t)
	both, one := h.join("both", map[string]string{"env": "prod", "region": "eu"}), h.join("one", map[string]string{"region": "eu"})
	h.join("other", map[string]string{"env": "prod"})
	b := chart("web", v1alpha1.Values{"base": true})
	sel := func(k, v string) v1alpha1.ClusterMatch {
		return v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{MatchLabels: map[string]string{k: v}}}
	}
	values := func(v v1alpha1.Values) v1alpha1.BundleOptions {
		return v1alpha1.BundleOptions{Helm: &v1alpha1.HelmOptions{Values: v}}
	}
	b.Spec.TargetCustomizationMode = "AllMatches"
	b.Spec.Targets = []v1alpha1.BundleTarget{
		{Name: "prod", ClusterMatch: sel("env", "prod"), BundleOptions: values(v1alpha1.Values{"log": "warn", "size": "big"})},
		{Name: "eu", ClusterMatch: sel("region", "eu"), BundleOptions: values(v1alpha1.Values{"log": "info"})},
		{Name: "all-eu", ClusterMatch: sel("region", "eu")},
	}
	b.Spec.TargetRestrictions = []v1alpha1.BundleTargetRestriction{{Name: "all-eu", ClusterMatch: sel("region", "eu")}}
	h.create(b)
	wantText(t, both.text("web"), `{\"base\":true,\"log\":\"info\",\"size\":\"big\"}`)
	wantText(t, one.text("web"), `{\"base\":true,\"log\":\"info\"}`)
	h.waitBundle("web", "is for two clusters", func(b *v1alpha1.Bundle) bool { return b.Status.Summary.Desired == 2 })
}

// dependsOn with a selector is resolved for each cluster, follows the other bundles, and says what is missing or circular.
func TestDependsOn(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	web := configMap("web", "1")
	web.Spec.Targets = everywhere()
	web.Spec.DependsOn = []v1alpha1.BundleDependency{{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "base"}}, AcceptedStates: []v1alpha1.State{"Ready", "Modified"}}}
	h.create(web)
	h.waitBundle("web", "says what is missing", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.State == v1alpha1.StateErrRendered && strings.Contains(b.Status.Display.Message, "no bundle with labels tier=base is for cluster store-1")
	})
	for _, n := range []string{"db", "queue"} {
		b := configMap(n, "1")
		b.Labels = map[string]string{"tier": "base"}
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	d := s.waitDesired("orders web after both", func(d *bundlefmt.Desired) bool {
		return has(d, "web") && len(entry(t, d, "web").Policy.DependsOn) == 2
	})
	states := []bundlefmt.State{"Ready", "Modified"}
	if diff := cmp.Diff([]bundlefmt.Dependency{{Name: "db", States: states}, {Name: "queue", States: states}}, entry(t, d, "web").Policy.DependsOn); diff != "" {
		t.Error(diff)
	}
	h.update("queue", func(b *v1alpha1.Bundle) { b.Labels = nil })
	d = s.waitDesired("orders web after one", func(d *bundlefmt.Desired) bool { return len(entry(t, d, "web").Policy.DependsOn) == 1 })
	before := entry(t, d, "web")
	h.update("db", func(b *v1alpha1.Bundle) { b.Spec.DependsOn = []v1alpha1.BundleDependency{{Name: "web"}} })
	for _, n := range []string{"db", "web"} {
		h.waitBundle(n, "says that it is in a circle", func(b *v1alpha1.Bundle) bool { return strings.Contains(b.Status.Display.Message, "in a circle") })
	}
	if now := entry(t, s.waitDesired("still runs web", func(d *bundlefmt.Desired) bool { return has(d, "web") }), "web"); !now.Equal(before) {
		t.Errorf("web was ordered as %+v, was %+v", now, before)
	}
}

// Windows of a cluster and its groups are in the order. A wrong one is said, and those from before hold.
func TestWindows(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", map[string]string{"region": "eu"})
	web := configMap("web", "1")
	web.Spec.Targets = everywhere()
	h.create(web)
	s.waitDesired("runs web", runs("web"))
	night := v1alpha1.Window{Schedule: "0 2 * * *", Duration: metav1.Duration{Duration: 3 * time.Hour}, TimeZone: "Europe/Berlin"}
	h.updateCluster("store-1", func(c *v1alpha1.Cluster) { c.Spec.Windows = []v1alpha1.Window{night} })
	group := &v1alpha1.ClusterGroup{Spec: v1alpha1.ClusterGroupSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"region": "eu"}},
		Windows:  []v1alpha1.Window{{Schedule: "30 12 * * 6", Duration: metav1.Duration{Duration: time.Hour}, For: []string{"Apply"}}},
	}}
	group.Name = "eu"
	h.create(group)
	want := []bundlefmt.Window{{Schedule: "0 2 * * *", Seconds: 10800, TimeZone: "Europe/Berlin", Download: true, Apply: true}, {Schedule: "30 12 * * 6", Seconds: 3600, Apply: true}}
	s.waitDesired("has both windows", func(d *bundlefmt.Desired) bool { return cmp.Equal(want, d.Windows) })

	h.updateCluster("store-1", func(c *v1alpha1.Cluster) { c.Spec.Windows[0].TimeZone = "Berlin" })
	h.waitCluster("store-1", "says what is wrong", func(c *v1alpha1.Cluster) bool {
		return strings.Contains(c.Status.Display.Message, `spec.windows[0]: timeZone: "Berlin" is not known`)
	})
	h.update("web", func(b *v1alpha1.Bundle) { b.Spec.DefaultNamespace = "other" })
	d := s.waitDesired("has the change", func(d *bundlefmt.Desired) bool { return entry(t, d, "web").Policy.Namespace == "other" })
	if diff := cmp.Diff(want, d.Windows); diff != "" {
		t.Errorf("the windows from before do not hold: %s", diff)
	}
	h.updateCluster("store-1", func(c *v1alpha1.Cluster) { c.Spec.Windows = nil })
	s.waitDesired("has the group's window only", func(d *bundlefmt.Desired) bool { return cmp.Equal(want[1:], d.Windows) })
}

// Secrets and ConfigMaps of the workspace travel with the bundle, bare of everything but their content, and again when they change.
func TestDownstreamResources(t *testing.T) {
	h := newHub(t)
	kube := h.core()
	s := h.join("store-1", nil)
	web := configMap("web", "1")
	web.Spec.Targets = everywhere()
	web.Spec.DownstreamResources = []v1alpha1.DownstreamResource{{Kind: "Secret", Name: "pull"}, {Kind: "ConfigMap", Name: "settings"}}
	h.create(web)
	h.waitBundle("web", "says what is missing", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.State == v1alpha1.StateErrRendered && strings.Contains(b.Status.Display.Message, "downstreamResources: Secret pull: there is none of that name in namespace "+h.ns)
	})
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "pull", Labels: map[string]string{"of": "hub"}}, Type: "example.com/x", Data: map[string][]byte{"token": []byte("hush")}}
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"a": "b"}, BinaryData: map[string][]byte{"c": {0}}}
	for _, o := range []client.Object{secret, settings} {
		o.SetNamespace(h.ns)
		if err := kube.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	text := s.text("web")
	wantText(t, text, `{"apiVersion":"v1","data":{"token":"aHVzaA=="},"kind":"Secret","metadata":{"name":"pull"},"type":"example.com/x"}`)
	wantText(t, text, `{"apiVersion":"v1","binaryData":{"c":"AA=="},"data":{"a":"b"},"kind":"ConfigMap","metadata":{"name":"settings"}}`)
	was := entry(t, s.waitDesired("runs web", runs("web")), "web").Digest
	secret.Data["token"] = []byte("new")
	if err := kube.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	s.waitDesired("has the new Secret", func(d *bundlefmt.Desired) bool { return entry(t, d, "web").Digest != was })
	wantText(t, s.text("web"), `"token":"bmV3"`)
	if log := h.log.String(); strings.Contains(log, "hush") || strings.Contains(log, "aHVzaA") {
		t.Error("the hub has logged a Secret")
	}
}

// A site that holds removals says how many and how to confirm; the confirmation reaches it once, and is used up.
func TestConfirmRemovalOnCluster(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	names := []string{"a", "b", "c", "d"}
	for _, n := range names {
		b := configMap(n, "1")
		b.Spec.Targets = everywhere()
		h.create(b)
	}
	s.waitDesired("runs all", runs(names...))
	s.report(bundlefmt.Ready)
	for _, n := range names[:3] {
		h.update(n, func(b *v1alpha1.Bundle) {
			b.Spec.Targets[0] = v1alpha1.BundleTarget{ClusterMatch: v1alpha1.ClusterMatch{ClusterName: "another"}}
		})
	}
	d := s.waitDesired("removes three", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 3 })
	for _, r := range d.Remove {
		if r.Confirmed {
			t.Errorf("%s is confirmed by nobody", r.Name)
		}
	}
	const say = "held: would remove 3 of 4 deployments; confirm on the hub: kubectl annotate --overwrite clusters.shoal.dev store-1 shoal.dev/confirm-removal=3"
	holds := func(r *bundlefmt.Reported) {
		for _, n := range names[:3] {
			r.Deployments = append(r.Deployments, bundlefmt.DeploymentReport{Name: n, Serial: 1, Digest: bundlefmt.Sum([]byte(n)), State: bundlefmt.Held, Message: say, Since: time.Now()})
		}
	}
	s.report(bundlefmt.Ready, holds, func(r *bundlefmt.Reported) { // another waits for a window: it is none of those to confirm
		r.Deployments = append(r.Deployments, bundlefmt.DeploymentReport{Name: "other", State: bundlefmt.Held, Message: "its removal waits: the window opens at noon", Since: time.Now()})
	})
	h.waitCluster("store-1", "says how to confirm", func(c *v1alpha1.Cluster) bool {
		return c.Status.Display.Message == say && c.Status.Display.State == v1alpha1.StateHeld
	})
	h.updateCluster("store-1", func(c *v1alpha1.Cluster) {
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, reconcile.ConfirmRemoval, "2") // not what was seen
	})
	h.waitCluster("store-1", "says that it is another number", func(c *v1alpha1.Cluster) bool {
		return strings.HasPrefix(c.Status.Display.Message, "shoal.dev/confirm-removal=2 confirms nothing, 3 removals wait: a, b, c: held: would remove 3 of 4")
	})
	h.updateCluster("store-1", func(c *v1alpha1.Cluster) { c.Annotations[reconcile.ConfirmRemoval] = "3" })
	d = s.waitDesired("confirms", func(d *bundlefmt.Desired) bool {
		n := 0
		for _, r := range d.Remove {
			if r.Confirmed {
				n++
			}
		}
		return n == 3
	})
	if !has(d, "d") {
		t.Errorf("d must stay: %+v", d)
	}
	h.waitCluster("store-1", "has used the confirmation up", func(c *v1alpha1.Cluster) bool { return c.Annotations[reconcile.ConfirmRemoval] == "" })
	s.report(bundlefmt.Ready)
	s.waitDesired("no longer mentions them", func(d *bundlefmt.Desired) bool { return len(d.Remove) == 0 && has(d, "d") })
}

// A prune that a site holds is confirmed on the bundle, for the release that people saw and for no later one.
func TestConfirmPrune(t *testing.T) {
	h := newHub(t)
	s, other := h.join("store-1", nil), h.join("store-2", nil)
	web := configMap("web", "1")
	web.Spec.Targets = everywhere()
	h.create(web)
	s.waitDesired("runs web", runs("web"))
	other.waitDesired("runs web", runs("web"))
	s.report(bundlefmt.Held)
	other.report(bundlefmt.Ready)
	h.waitBundle("web", "is held on one", func(b *v1alpha1.Bundle) bool { return b.Status.Summary.Held == 1 && b.Status.Summary.Ready == 1 })
	before := entry(t, other.waitDesired("runs web", runs("web")), "web")
	h.update("web", func(b *v1alpha1.Bundle) { metav1.SetMetaDataAnnotation(&b.ObjectMeta, reconcile.ConfirmPrune, "yes") })
	s.waitDesired("confirms", func(d *bundlefmt.Desired) bool { return entry(t, d, "web").Policy.ConfirmPrune })
	b := h.waitBundle("web", "has pinned it", func(b *v1alpha1.Bundle) bool {
		return b.Annotations[reconcile.ConfirmPrune] == fmt.Sprint(b.Generation)
	})
	s.report(bundlefmt.Ready)
	h.update("web", func(b *v1alpha1.Bundle) { b.Spec.DefaultNamespace = "later" })
	d := s.waitDesired("has the later release", func(d *bundlefmt.Desired) bool { return entry(t, d, "web").Policy.Namespace == "later" })
	if entry(t, d, "web").Policy.ConfirmPrune {
		t.Errorf("the confirmation of generation %d holds for a later one", b.Generation)
	}
	h.waitBundle("web", "has let the confirmation go", func(b *v1alpha1.Bundle) bool { return b.Annotations[reconcile.ConfirmPrune] == "" })
	if before.Policy.ConfirmPrune {
		t.Error("a cluster that waited for nothing was ordered again")
	}
}

// Partition after partition; a cluster that went back to the release before stops the rollout where the budget ends.
func TestPartitions(t *testing.T) {
	h := newHub(t)
	sites := map[string]*site{}
	names := []string{"canary", "eu-1", "eu-2", "rest"}
	for _, n := range names {
		sites[n] = h.join(n, map[string]string{"wave": strings.Split(n, "-")[0]})
	}
	web := configMap("web", "1")
	web.Spec.Targets = everywhere()
	part := func(wave string, budget int) v1alpha1.Partition {
		return v1alpha1.Partition{Name: wave, MaxUnavailable: intOrString(budget), ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"wave": wave}}}}
	}
	web.Spec.RolloutStrategy = &v1alpha1.RolloutStrategy{MaxUnavailable: intOrString(1), Partitions: []v1alpha1.Partition{part("canary", 1), part("eu", 1)}}
	for _, s := range sites {
		h.waitCluster(s.id.Name, "told its facts", func(c *v1alpha1.Cluster) bool { return c.Status.KubernetesVersion != "" })
	}
	h.create(web)
	for i, n := range names { // a first install follows the strategy, too
		h.waitBundle("web", "is at "+n, func(b *v1alpha1.Bundle) bool {
			return b.Status.Summary.WaitApplied == 1 && b.Status.Summary.Pending == int32(3-i)
		})
		sites[n].waitDesired("runs web", runs("web"))
		sites[n].report(bundlefmt.Ready)
	}
	h.waitBundle("web", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.ReadyClusters == "4/4" })
	digest := func(s *site) bundlefmt.Digest {
		return entry(t, s.waitDesired("runs web", runs("web")), "web").Digest
	}
	old := digest(sites["rest"])
	update := func(value string) {
		h.update("web", func(b *v1alpha1.Bundle) { b.Spec.Resources = configMap("web", value).Spec.Resources })
	}
	moved := func(names ...string) {
		t.Helper()
		for _, n := range names {
			sites[n].waitDesired("has the next release", func(d *bundlefmt.Desired) bool { return entry(t, d, "web").Digest != old })
		}
	}
	update("2")
	moved("canary")
	second := digest(sites["canary"])
	// The canary gives the release up: it runs the old one, and says so.
	sites["canary"].report(bundlefmt.RolledBack, func(r *bundlefmt.Reported) {
		r.Deployments[0].Digest, r.Deployments[0].Serial, r.Deployments[0].Message = old, 1, "release 3 was given up: not ready"
	})
	b := h.waitBundle("web", "stops at the canary", func(b *v1alpha1.Bundle) bool {
		return b.Status.Summary.RolledBack == 1 && b.Status.Summary.OutOfSync == 3 && b.Status.Display.State == v1alpha1.StateRolledBack
	})
	if !strings.Contains(b.Status.Display.Message, "given up: not ready") {
		t.Errorf("message %q", b.Status.Display.Message)
	}
	for _, n := range []string{"eu-1", "eu-2", "rest"} {
		if digest(sites[n]) != old {
			t.Errorf("the failed release went on to %s", n)
		}
	}
	// The next release goes all the way, one cluster after the other.
	update("3")
	sites["canary"].waitDesired("has the third release", func(d *bundlefmt.Desired) bool { return entry(t, d, "web").Digest != second })
	for _, n := range []string{"canary", "eu-1", "eu-2", "rest"} {
		moved(n)
		sites[n].report(bundlefmt.Ready)
	}
	h.waitBundle("web", "is ready everywhere", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.ReadyClusters == "4/4" && b.Status.Display.State == v1alpha1.StateReady
	})
}

// The documented example: one canary that does not become ready keeps the release from everybody outside its partition, whatever
// maxUnavailable allows, for an update as for a first install; and the headline names the canary and what it lacks.
func TestCanaryOfOne(t *testing.T) {
	h := newHub(t)
	sites := map[string]*site{}
	for _, n := range []string{"canary", "s-1", "s-2", "s-3"} {
		sites[n] = h.join(n, map[string]string{"ring": strings.Split(n, "-")[0]})
		h.waitCluster(n, "told its facts", func(c *v1alpha1.Cluster) bool { return c.Status.KubernetesVersion != "" })
	}
	ten := intstr.FromString("10%")
	web := configMap("web", "1")
	web.Spec.Targets = everywhere()
	web.Spec.RolloutStrategy = &v1alpha1.RolloutStrategy{MaxUnavailable: &ten, Partitions: []v1alpha1.Partition{{
		Name: "canary", MaxUnavailable: intOrString(1), ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"ring": "canary"}}},
	}}}
	notReady := func(r *bundlefmt.Reported) { r.Deployments[0].Message = "deployments default/web: 0 of 1 available" }
	stops := func(state v1alpha1.State, waits int32) {
		t.Helper()
		b := h.waitBundle("web", "stops at the canary", func(b *v1alpha1.Bundle) bool {
			return b.Status.Summary.NotReady == 1 && b.Status.Summary.OutOfSync+b.Status.Summary.Pending == waits && strings.HasPrefix(b.Status.Display.Message, "canary")
		})
		if b.Status.Display.State != state || b.Status.Display.Message != "canary NotReady: deployments default/web: 0 of 1 available (and 3 more)" {
			t.Errorf("says %s, %q", b.Status.Display.State, b.Status.Display.Message)
		}
		if i := b.Status.NotReady[len(b.Status.NotReady)-1]; !strings.Contains(i.Message, "waits for partition canary: 1 of 1 clusters are updating or not ready (canary), maxNotReady allows 0") {
			t.Errorf("%s is told %q", i.Name, i.Message)
		}
	}
	// A first install of something bad.
	h.create(web)
	sites["canary"].waitDesired("runs web", runs("web"))
	sites["canary"].report(bundlefmt.NotReady, notReady)
	stops(v1alpha1.StatePending, 3)
	for _, n := range []string{"s-1", "s-2", "s-3"} {
		if d := sites[n].waitDesired("is as before", func(*bundlefmt.Desired) bool { return true }); len(d.Deployments) != 0 {
			t.Errorf("a first install went on to %s: %+v", n, d)
		}
	}
	sites["canary"].report(bundlefmt.Ready)
	for _, n := range []string{"s-1", "s-2", "s-3"} {
		sites[n].waitDesired("runs web", runs("web"))
		sites[n].report(bundlefmt.Ready)
	}
	h.waitBundle("web", "is ready", func(b *v1alpha1.Bundle) bool { return b.Status.Display.ReadyClusters == "4/4" })
	// An update to something bad.
	old := entry(t, sites["s-1"].waitDesired("runs web", runs("web")), "web").Digest
	h.update("web", func(b *v1alpha1.Bundle) { b.Spec.Resources = configMap("web", "2").Spec.Resources })
	sites["canary"].waitDesired("has the next release", func(d *bundlefmt.Desired) bool { return entry(t, d, "web").Digest != old })
	sites["canary"].report(bundlefmt.NotReady, notReady)
	stops(v1alpha1.StateOutOfSync, 3)
	for _, n := range []string{"s-1", "s-2", "s-3"} {
		if entry(t, sites[n].waitDesired("runs web", runs("web")), "web").Digest != old {
			t.Errorf("the bad release went on to %s", n)
		}
	}
	// A partition that holds nobody is mentioned.
	h.update("web", func(b *v1alpha1.Bundle) {
		b.Spec.RolloutStrategy.Partitions = append(b.Spec.RolloutStrategy.Partitions, v1alpha1.Partition{Name: "typo", ClusterMatch: v1alpha1.ClusterMatch{ClusterName: "s-11"}})
	})
	h.waitBundle("web", "mentions the partition without clusters", func(b *v1alpha1.Bundle) bool {
		c := meta.FindStatusCondition(b.Status.Conditions, v1alpha1.ConditionRendered)
		return c != nil && c.Message == "rolloutStrategy.partitions[1] (typo): holds no cluster of this bundle, so no other waits for it"
	})
	// A canary that cannot be rendered for gates as well.
	h.update("web", func(b *v1alpha1.Bundle) {
		b.Spec.Resources = configMap("web", "3").Spec.Resources
		b.Spec.Targets = append([]v1alpha1.BundleTarget{{Name: "canary", ClusterMatch: v1alpha1.ClusterMatch{ClusterName: "canary"}, BundleOptions: v1alpha1.BundleOptions{Kustomize: &v1alpha1.KustomizeOptions{Dir: "nowhere"}}}}, everywhere()...)
	})
	b := h.waitBundle("web", "cannot be rendered for the canary", func(b *v1alpha1.Bundle) bool {
		return b.Status.Summary.ErrRendered == 1 && b.Status.Summary.OutOfSync == 3
	})
	if b.Status.Display.State != v1alpha1.StateErrRendered || !strings.HasPrefix(b.Status.Display.Message, "canary: ") {
		t.Errorf("says %s, %q", b.Status.Display.State, b.Status.Display.Message)
	}
}

// A strategy that lets nobody move is refused by the API; a Bundle that has it already says so, and keeps what is there.
func TestStrategyRefused(t *testing.T) {
	h := newHub(t)
	s := h.join("store-1", nil)
	zero := configMap("zero", "1")
	zero.Spec.Targets = everywhere()
	zero.Namespace = h.ns
	for _, v := range []string{"0", "-1", "0%", "many"} {
		for _, v := range []intstr.IntOrString{intstr.Parse(v), intstr.FromString(v)} {
			for _, strategy := range []*v1alpha1.RolloutStrategy{{MaxUnavailable: &v}, {Partitions: []v1alpha1.Partition{{MaxUnavailable: &v}}}} {
				zero.Spec.RolloutStrategy = strategy
				err := h.kube.Create(t.Context(), zero)
				if err == nil || !strings.Contains(err.Error(), "maxUnavailable") || v.Type == intstr.Int && !strings.Contains(err.Error(), "0 lets no cluster move, ever") {
					t.Errorf("maxUnavailable %v: %v", v, err)
				}
			}
		}
	}
	none := int32(0)
	zero.Spec.RolloutStrategy = &v1alpha1.RolloutStrategy{MaxNew: &none}
	if err := h.kube.Create(t.Context(), zero); err == nil || !strings.Contains(err.Error(), "maxNew") {
		t.Errorf("maxNew 0: %v", err)
	}
	a := configMap("a", "1")
	a.Spec.Targets = everywhere()
	h.create(a)
	before := entry(t, s.waitDesired("runs a", runs("a")), "a")
	s.report(bundlefmt.Ready)
	// A Bundle as the definition before accepted it.
	h.stop()
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	u.SetName("bundles.shoal.dev")
	const at = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/rolloutStrategy/properties/maxUnavailable/x-kubernetes-validations"
	if err := h.kube.Patch(t.Context(), u, client.RawPatch(types.JSONPatchType, []byte(`[{"op":"remove","path":"`+at+`"}]`))); err != nil {
		t.Fatal(err)
	}
	h.update("a", func(b *v1alpha1.Bundle) {
		b.Spec.RolloutStrategy = &v1alpha1.RolloutStrategy{MaxUnavailable: intOrString(0)}
		b.Spec.Resources = configMap("a", "2").Spec.Resources
	})
	s.stop()
	h.start()
	s.up()
	h.waitBundle("a", "says so", func(b *v1alpha1.Bundle) bool {
		return b.Status.Display.State == v1alpha1.StateErrRendered && strings.Contains(b.Status.Display.Message, "rolloutStrategy.maxUnavailable: 0 lets no cluster move, ever")
	})
	if now := entry(t, s.waitDesired("runs a", runs("a")), "a"); now.Digest != before.Digest {
		t.Error("it was updated")
	}
	h.update("a", func(b *v1alpha1.Bundle) { b.Spec.RolloutStrategy.MaxUnavailable = intOrString(1) })
	s.waitDesired("is updated once it is corrected", func(d *bundlefmt.Desired) bool { return entry(t, d, "a").Digest != before.Digest })
}
