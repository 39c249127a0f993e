package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/jsonmergepatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
	"shoal.dev/shoal/internal/kubetest"
)

// TestApply runs shoal apply against a real API server. No hub runs: the test writes the status that one would write.
func TestApply(t *testing.T) {
	cluster, err := kubetest.Start(t.Context(), kubetest.Options{Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := cluster.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	cfg, err := cluster.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	s := applyStory{t: t, cfg: cfg, kubeconfig: cluster.Kubeconfig(), dir: t.TempDir(), ns: kubetest.Namespace(t, cfg)}
	s.file("fleet.yaml", "labels: {team: web}\nhelm: {values: {replicas: 2}}\ntargets:\n- {name: all, clusterSelector: {}}\n")
	s.file("Chart.yaml", "apiVersion: v2\nname: web\nversion: 1.0.0\n")
	s.file("old.yaml", "a: b\n")

	// Before a hub ever ran there: the message says what to do.
	for _, args := range [][]string{
		{"apply", "web", s.dir}, {"get", "bundles"}, {"get", "cluster", "paris"}, {"token", "create", "stores"},
		{"diff", s.dir, "--cluster", "paris"},
	} {
		code := exitFailed
		if args[0] == "diff" {
			code = exitTrouble
		}
		s.run(code, "the Kubernetes at "+cfg.Host+" does not know bundles, so no hub has run there", args...)
	}
	if _, err := envtest.InstallCRDs(cfg, envtest.CRDInstallOptions{Paths: []string{"../../deploy/crds"}, ErrorIfPathMissing: true}); err != nil {
		t.Fatal(err)
	}

	s.run(exitOK, "created (dry run)", "apply", "web", s.dir, "--dry-run")
	s.run(exitOK, "bundle "+s.ns+"/web created\n", "apply", "web", s.dir)
	s.run(exitOK, "web unchanged\n", "apply", "web", s.dir)
	s.file("fleet.yaml", "helm: {values: {replicas: 3}}\ntargets:\n- {name: all, clusterSelector: {}}\n")
	if err := os.Remove(filepath.Join(s.dir, "old.yaml")); err != nil {
		t.Fatal(err)
	}
	s.run(exitOK, "web configured (dry run)\n", "apply", "web", s.dir, "--dry-run")
	s.run(exitOK, "web configured\n", "apply", "web", s.dir)
	b := s.get("web")
	if got := b.Spec.Helm.Values["replicas"]; got != int64(3) || len(b.Spec.Resources) != 1 || len(b.Labels) != 0 {
		t.Errorf("replicas %v (%T), files %v, labels %v: want 3, the one file and label that are left", got, got, b.Spec.Resources, b.Labels)
	}

	// A field that somebody else set is not overwritten by accident.
	s.patch("web", `{"spec":{"paused":true}}`)
	s.file("fleet.yaml", "paused: false\ntargets:\n- {name: all, clusterSelector: {}}\n")
	s.run(exitOK, "web configured\n", "apply", "web", s.dir) // false is not written at all: no conflict
	s.patch("web", `{"spec":{"defaultNamespace":"mine"}}`)
	s.file("fleet.yaml", "defaultNamespace: ours\ntargets:\n- {name: all, clusterSelector: {}}\n")
	s.run(exitFailed, "take them over with --force-conflicts", "apply", "web", s.dir)
	s.run(exitOK, "web configured\n", "apply", "web", s.dir, "--force-conflicts")

	s.run(exitFailed, "kubectl create namespace nowhere", "apply", "web", s.dir, "-n", "nowhere")
	s.run(exitNotReady, "waiting for the hub to see the change", "apply", "web", s.dir, "--wait=1s")

	s.status("WaitApplied", metav1.ConditionFalse)
	s.run(exitNotReady, "paris: ErrApplied: it is full", "apply", "web", s.dir, "--wait=1s")
	s.status("Ready", metav1.ConditionTrue)
	s.run(exitOK, "Ready  2/2 clusters ready", "apply", "web", s.dir, "--wait")

	// A tree: all are checked before one is written.
	tree := applyStory{t: t, cfg: cfg, kubeconfig: s.kubeconfig, ns: s.ns, dir: t.TempDir()}
	for _, name := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(tree.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		tree.file(name+"/fleet.yaml", "name: "+name+"\nlabels: {of: tree}\n")
		tree.file(name+"/a.yaml", "a: b\n")
	}
	tree.run(exitOK, "two created\n", "apply", filepath.Join(tree.dir, "two"))
	tree.patch("two", `{"spec":{"defaultNamespace":"mine"}}`)
	tree.file("two/fleet.yaml", "name: two\ndefaultNamespace: ours\n")
	tree.run(exitFailed, "two: Apply failed with 1 conflict", "apply", tree.dir)
	if _, err := get(t.Context(), tree.bundles(), "one"); !apierrors.IsNotFound(err) {
		t.Errorf("bundle one: %v, want none: bundle two cannot be applied", err)
	}
	tree.file("two/fleet.yaml", "name: two\ntargets: [{name: all, clusterSelector: {}}]\n")
	tree.run(exitOK, "two configured (dry run)\n  files    1, 5 bytes as they are sent\n           a.yaml\n  target   all\n", "apply", tree.dir, "--dry-run")
	tree.run(exitOK, fmt.Sprintf("bundle %[1]s/one created\nbundle %[1]s/two configured\n", s.ns), "apply", tree.dir)
	tree.run(exitNotReady, "two: waiting for the hub to see the change", "apply", tree.dir, "--wait=1s")
	tree.run(exitFailed, "holds 2 bundles: ", "apply", "one", tree.dir)
	tree.file("targets.yaml", "- {name: mine, clusterGroup: mine}\n")
	tree.run(exitOK, "two configured\n", "apply", tree.dir, "--targets-file", filepath.Join(tree.dir, "targets.yaml"))
	if two := tree.get("two"); len(two.Spec.Targets) != 2 || len(two.Spec.TargetRestrictions) != 1 {
		t.Errorf("targets %v, restrictions %v: want one customization and one target", two.Spec.Targets, two.Spec.TargetRestrictions)
	}

	t.Run("get", func(t *testing.T) { getFromServer(t, cfg, cluster.Kubeconfig()) })
	t.Run("diff", func(t *testing.T) { diffOnServer(t, cfg, cluster.Kubeconfig()) })
	t.Run("nulls", func(t *testing.T) { nullsOnServer(t, cfg, cluster.Kubeconfig()) })
}

// nullsOnServer: a null in values reaches the hub by every way in which a Bundle is written, new and over what was there.
func nullsOnServer(t *testing.T, cfg *rest.Config, kubeconfig string) {
	before := "helm: {values: {probe: {httpGet: {path: /}, list: [{a: 1}]}, gone: {b: 1}}}\n"
	after := "helm: {values: {probe: {httpGet: null, list: [{a: null}, null]}, gone: , c: ~}}\n" +
		"targets: [{clusterGroup: all, helm: {values: {probe: }}}]\n"
	want := v1alpha1.Values{"probe": map[string]any{"httpGet": nil, "list": []any{map[string]any{"a": nil}, nil}}, "gone": nil, "c": nil}
	for _, way := range []struct {
		name  string
		apply func(t *testing.T, s applyStory)
	}{
		{"shoal apply", func(_ *testing.T, s applyStory) { s.run(exitOK, "bundle", "apply", "web", s.dir) }},
		{"kubectl apply --server-side", func(t *testing.T, s applyStory) {
			_, err := s.bundles().Patch(t.Context(), "web", types.ApplyPatchType, s.printed("web"), metav1.PatchOptions{FieldManager: "kubectl"})
			if err != nil {
				t.Fatal(err)
			}
		}},
		{"kubectl apply", func(t *testing.T, s applyStory) { s.applyFromClient("web") }},
	} {
		t.Run(way.name, func(t *testing.T) {
			for _, steps := range [][]string{{after}, {before, after}, {after, before, after}} {
				s := applyStory{t: t, cfg: cfg, kubeconfig: kubeconfig, dir: t.TempDir(), ns: kubetest.Namespace(t, cfg)}
				s.file("a.yaml", "a: b\n")
				for _, fleet := range steps {
					s.file("fleet.yaml", fleet)
					way.apply(t, s)
				}
				spec := s.get("web").Spec
				if d := cmp.Diff(want, target.Merge(spec.BundleOptions, v1alpha1.BundleOptions{}).Helm.Values); d != "" {
					t.Errorf("values after %d steps (-want +got)\n%s", len(steps), d)
				}
				if d := cmp.Diff(v1alpha1.Values{"probe": nil}, target.Merge(v1alpha1.BundleOptions{}, spec.Targets[0].BundleOptions).Helm.Values); d != "" {
					t.Errorf("values of the target after %d steps (-want +got)\n%s", len(steps), d)
				}
			}
		})
	}
}

// printed is a Bundle as shoal apply -o yaml prints it.
func (s applyStory) printed(name string) []byte {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	if got := run(s.t.Context(), []string{"-n", s.ns, "apply", name, s.dir, "-o", "yaml"}, func(string) string { return "" }, &stdout, &stderr); got != exitOK {
		s.t.Fatalf("exit %d: %s", got, &stderr)
	}
	return stdout.Bytes()
}

// applyFromClient does what kubectl apply does without --server-side: what was applied before stands in an annotation, and a merge
// patch is made of it, of what there is and of what is wanted.
func (s applyStory) applyFromClient(name string) {
	s.t.Helper()
	js, err := yaml.YAMLToJSON(s.printed(name))
	if err != nil {
		s.t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(js); err != nil {
		s.t.Fatal(err)
	}
	u.SetAnnotations(map[string]string{corev1.LastAppliedConfigAnnotation: string(js)})
	modified, err := u.MarshalJSON()
	if err != nil {
		s.t.Fatal(err)
	}
	have, err := s.bundles().Get(s.t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err := s.bundles().Create(s.t.Context(), u, metav1.CreateOptions{})
		if err != nil {
			s.t.Fatal(err)
		}
		return
	}
	if err != nil {
		s.t.Fatal(err)
	}
	current, err := have.MarshalJSON()
	if err != nil {
		s.t.Fatal(err)
	}
	patch, err := jsonmergepatch.CreateThreeWayJSONMergePatch([]byte(have.GetAnnotations()[corev1.LastAppliedConfigAnnotation]), modified, current)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.bundles().Patch(s.t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// getFromServer: names as kubectl takes them, and where to look when nothing is found.
func getFromServer(t *testing.T, cfg *rest.Config, kubeconfig string) {
	s := applyStory{t: t, cfg: cfg, kubeconfig: kubeconfig, ns: kubetest.Namespace(t, cfg)}
	for _, name := range []string{"paris", "rome", "oslo"} {
		s.create("Cluster", name, map[string]any{})
	}
	s.run(exitOK, "\nrome\n", "get", "cluster", "rome")
	s.run(exitOK, "\nrome\noslo\n", "get", "clusters", "rome", "oslo")
	s.run(exitOK, `"name": "oslo"`, "get", "clusters", "oslo", "-o", "json")
	s.run(exitFailed, "there is no cluster bern in workspace "+s.ns+": see shoal get clusters -A", "get", "cluster", "rome", "bern")
	s.run(exitUsage, "names go neither with -A nor with -l", "get", "cluster", "rome", "-A")
	s.run(exitOK, "there are clusters in ", "get", "clusters", "-n", "default")
}

// diffOnServer: the Bundle that is stored is compared, for a Cluster as the hub knows it. No hub runs: the test writes its part.
func diffOnServer(t *testing.T, cfg *rest.Config, kubeconfig string) {
	s := applyStory{t: t, cfg: cfg, kubeconfig: kubeconfig, dir: t.TempDir(), ns: kubetest.Namespace(t, cfg)}
	s.file("Chart.yaml", "apiVersion: v2\nname: web\nversion: 1.0.0\n")
	if err := os.Mkdir(filepath.Join(s.dir, "templates"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.file("templates/a.yaml", `apiVersion: v1
kind: ConfigMap
metadata: {name: a}
data:
  city: {{ .Values.city }}
  kubernetes: {{ .Capabilities.KubeVersion.Version }}
  widgets: {{ .Capabilities.APIVersions.Has "example.com/v1" | quote }}
`)
	fleet := "helm: {values: {city: \"${ .ClusterValues.city }\"}}\ntargets: [{clusterGroup: europe}]\n"
	s.file("fleet.yaml", fleet)
	s.run(exitTrouble, "there is no cluster "+s.ns+"/paris: see shoal get clusters -A", "diff", "web", s.dir, "--cluster", "paris")

	s.create("Cluster", "paris", map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"region": "eu"}},
		"spec":     map[string]any{"templateValues": map[string]any{"city": "paris"}},
		"status":   map[string]any{"kubernetesVersion": "v1.35.2", "apiVersions": "apis", "desiredSerial": int64(7), "reportedSerial": int64(6), "presence": "Offline", "presenceSince": "2026-11-22T03:00:00Z"},
	})
	s.create("ClusterGroup", "europe", map[string]any{"spec": map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"region": "eu"}}}})
	apis := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "apis"}, "data": map[string]any{"apiVersions": "v1\nexample.com/v1"}}}
	if _, err := s.resource("", "v1", "configmaps").Create(t.Context(), apis, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	diff := []string{"diff", "web", s.dir, "--cluster", "paris", "--system-namespace", s.ns}
	s.run(exitDifferent, "there is no bundle "+s.ns+"/web yet", diff...)
	s.run(exitDifferent, "+  city: paris\n+  kubernetes: v1.35.2\n+  widgets: \"true\"\n", diff...)
	s.run(exitOK, "web created\n", "apply", "web", s.dir)
	s.run(exitOK, "cluster paris has not reported what it was told last (7, reported 6)", diff...)
	s.run(exitOK, "cluster paris is offline since 2026-11-22 03:00:00 UTC", diff...)
	s.file("fleet.yaml", strings.Replace(fleet, ".ClusterValues.city }", ".ClusterValues.city }-1", 1))
	s.run(exitDifferent, "-  city: paris\n+  city: paris-1\n", diff...)
	s.run(exitDifferent, "-  city: paris\n", diff...) // looking changes nothing

	s.patchStatus("clusters", "paris", `{"status":{"notReady":[{"name":"web","state":"RolledBack","message":"release 7 failed"}]}}`)
	s.run(exitDifferent, "cluster paris: bundle web is RolledBack: release 7 failed; it may still run an older release", diff...)
	s.run(exitDifferent, "the API versions of cluster paris cannot be read", "diff", "web", s.dir, "--cluster", "paris", "--system-namespace", "default")

	// Names are completed from the hub.
	s.run(exitOK, "paris\n", "__complete", "diff", ".", "--cluster", "pa")
	s.run(exitOK, "web\n", "__complete", "diff", "w")
	s.run(exitOK, "europe\n", "__complete", "token", "create", "x", "--group", "")
}

func (s applyStory) resource(group, version, plural string) dynamic.ResourceInterface {
	s.t.Helper()
	c, err := dynamic.NewForConfig(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return c.Resource(schema.GroupVersionResource{Group: group, Version: version, Resource: plural}).Namespace(s.ns)
}

// create makes an object of ours, with its status.
func (s applyStory) create(kind, name string, object map[string]any) {
	s.t.Helper()
	u := &unstructured.Unstructured{Object: object}
	u.SetAPIVersion(v1alpha1.GroupVersion.String())
	u.SetKind(kind)
	u.SetName(name)
	r := s.resource(v1alpha1.GroupVersion.Group, v1alpha1.GroupVersion.Version, strings.ToLower(kind)+"s")
	status := object["status"]
	made, err := r.Create(s.t.Context(), u, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	if status == nil {
		return
	}
	made.Object["status"] = status
	if _, err := r.UpdateStatus(s.t.Context(), made, metav1.UpdateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s applyStory) patchStatus(plural, name, data string) {
	s.t.Helper()
	_, err := s.resource(v1alpha1.GroupVersion.Group, v1alpha1.GroupVersion.Version, plural).Patch(s.t.Context(), name, types.MergePatchType, []byte(data), metav1.PatchOptions{}, "status")
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestNotAccepted: what the API server does not accept is a line each.
func TestNotAccepted(t *testing.T) {
	t.Parallel()
	err := apierrors.NewInvalid(schema.GroupKind{Group: "shoal.dev", Kind: "Bundle"}, "web", field.ErrorList{
		field.Invalid(field.NewPath("spec", "helm", "releaseName"), "No", "should match"),
		field.TooMany(field.NewPath("spec", "targets"), 1001, 1000),
	})
	want := `apply bundle web: the hub does not accept it:
  spec.helm.releaseName: Invalid value: "No": should match
  spec.targets: Too many: 1001: must have at most 1000 items`
	if got := notAccepted(fmt.Errorf("apply bundle shop/web: %w", err)).Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

type applyStory struct {
	t                   *testing.T
	cfg                 *rest.Config
	kubeconfig, dir, ns string
}

func (s applyStory) file(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s applyStory) run(code int, say string, args ...string) {
	s.t.Helper()
	args = append([]string{"--kubeconfig", s.kubeconfig, "-n", s.ns}, args...)
	var stdout, stderr bytes.Buffer
	got := run(s.t.Context(), args, func(string) string { return "" }, &stdout, &stderr)
	if out := stdout.String() + stderr.String(); got != code || !strings.Contains(out, say) {
		s.t.Errorf("%v\nexit %d, want %d and %q:\n%s", args, got, code, say, out)
	}
}

func (s applyStory) bundles() dynamic.ResourceInterface {
	s.t.Helper()
	c, err := dynamic.NewForConfig(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return c.Resource(v1alpha1.GroupVersion.WithResource("bundles")).Namespace(s.ns)
}

func (s applyStory) get(name string) *v1alpha1.Bundle {
	s.t.Helper()
	b, err := get(s.t.Context(), s.bundles(), name)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s applyStory) patch(name, data string) {
	s.t.Helper()
	_, err := s.bundles().Patch(s.t.Context(), name, types.MergePatchType, []byte(data), metav1.PatchOptions{FieldManager: "somebody"})
	if err != nil {
		s.t.Fatal(err)
	}
}

// status writes what a hub would.
func (s applyStory) status(state v1alpha1.State, ready metav1.ConditionStatus) {
	s.t.Helper()
	b := s.get("web")
	u, err := s.bundles().Get(s.t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	count := "1/2"
	notReady := []any{map[string]any{"name": "paris", "state": "ErrApplied", "message": "it is full"}}
	if ready == metav1.ConditionTrue {
		count, notReady = "2/2", nil
	}
	u.Object["status"] = map[string]any{
		"observedGeneration": b.Generation,
		"display":            map[string]any{"state": string(state), "readyClusters": count},
		"notReady":           notReady,
		"conditions": []any{map[string]any{"type": "Ready", "status": string(ready), "reason": string(state), "message": "",
			"lastTransitionTime": metav1.Now().UTC().Format(time.RFC3339), "observedGeneration": b.Generation}},
	}
	if _, err := s.bundles().UpdateStatus(s.t.Context(), u, metav1.UpdateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}
