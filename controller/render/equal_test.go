package render_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/releaseutil"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/render"
	"shoal.dev/shoal/controller/source/charts/archive"
)

// TestEqualsHelm renders each chart of testdata/charts, and of the folder that the environment variable CHARTS names, with
// Helm's own loader and engine and with ours: for three Kubernetes versions, with the chart's own values and with each
// ci/*-values.yaml. The objects must be equal, and the hooks by event, weight and delete policy. Where Helm refuses, ours
// must refuse.
//
// Left out on both sides are test hooks; and what Helm renders differently each time, because of random functions.
func TestEqualsHelm(t *testing.T) {
	dirs := []string{"testdata/charts"}
	if dir := os.Getenv("CHARTS"); dir != "" {
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, p := range found {
			if _, err := os.Stat(filepath.Join(p, "Chart.yaml")); err != nil && filepath.Ext(p) != ".tgz" {
				continue
			}
			n++
			t.Run(filepath.Base(p), func(t *testing.T) { equalsHelm(t, p) })
		}
		if n == 0 {
			t.Errorf("%s holds no chart", dir)
		}
	}
}

// cluster is what a chart sees of it. The middle one has the API of a monitoring operator.
type cluster struct {
	version string
	apis    []string
}

func clusters() []cluster {
	return []cluster{
		{"v1.29.15", nil},
		{"v1.33.6", []string{"monitoring.coreos.com/v1", "monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PrometheusRule", "cert-manager.io/v1"}},
		{"v1.36.1", nil},
	}
}

func equalsHelm(t *testing.T, chartPath string) {
	load := func() *chart.Chart { // anew each time: Helm changes what it renders
		c, err := loader.Load(chartPath)
		if err != nil {
			t.Skipf("Helm cannot load it: %v", err)
		}
		return c
	}
	if missing := missingDependencies(load()); len(missing) > 0 {
		t.Skipf("dependencies %s are not in charts/", strings.Join(missing, ", "))
	}
	files := chartFiles(t, chartPath)
	objects, compared, refused := 0, 0, 0
	for values, text := range valueSets(t, chartPath) {
		for _, cl := range clusters() {
			name := values + " on " + cl.version
			vals, err := chartutil.ReadValues(text)
			if err != nil {
				t.Fatalf("%s: %v", values, err)
			}
			want, helmErr := helmTemplate(load(), vals, cl)
			got, err := ours(files, text, cl)
			switch {
			case helmErr != nil && err != nil:
				refused++
				continue
			case helmErr != nil || err != nil:
				t.Errorf("%s: Helm says %v, we say %v", name, brief(helmErr), brief(err))
				continue
			}
			compared++
			objects += len(want)
			again, err := helmTemplate(load(), vals, cl)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, name, want, again, got)
		}
	}
	t.Logf("%d renderings, %d objects, %d refused by both", compared, objects, refused)
	if compared == 0 && !t.Failed() {
		t.Skip("Helm renders it with none of its values")
	}
}

// compare reports each object that is not the same.
func compare(t *testing.T, name string, want, again, got map[string]any) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(want)) {
		w, g := want[key], got[key]
		if a, ok := again[key]; !ok {
			continue // its name is random
		} else if !reflect.DeepEqual(a, w) {
			w, g = mask(w, a, w), mask(w, a, g)
		}
		if _, ok := got[key]; !ok {
			t.Errorf("%s: %s is missing", name, key)
		} else if d := cmp.Diff(w, g); d != "" {
			t.Errorf("%s: %s (-helm +ours)\n%.2000s", name, key, d)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[key]; !ok && len(want) == len(again) && reflect.DeepEqual(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(again))) {
			t.Errorf("%s: %s is not Helm's", name, key)
		}
	}
}

// mask returns v without what differs between a and b.
func mask(a, b, v any) any {
	am, aok := a.(map[string]any)
	bm, bok := b.(map[string]any)
	vm, vok := v.(map[string]any)
	if aok && bok && vok {
		out := map[string]any{}
		for k := range vm {
			if _, ok := am[k]; ok {
				out[k] = mask(am[k], bm[k], vm[k])
			} else {
				out[k] = vm[k]
			}
		}
		return out
	}
	al, aok := a.([]any)
	bl, bok := b.([]any)
	vl, vok := v.([]any)
	if aok && bok && vok && len(al) == len(bl) && len(al) == len(vl) {
		out := make([]any, len(vl))
		for i := range vl {
			out[i] = mask(al[i], bl[i], vl[i])
		}
		return out
	}
	if !reflect.DeepEqual(a, b) {
		return "random"
	}
	return v
}

// helmTemplate does what `helm template --include-crds` does: objects by identity, those of hooks with what Helm knows of them.
func helmTemplate(c *chart.Chart, vals map[string]any, cl cluster) (map[string]any, error) {
	if c.Metadata.Type == "library" {
		return nil, fmt.Errorf("library charts are not installable")
	}
	kv, err := chartutil.ParseKubeVersion(cl.version)
	if err != nil {
		return nil, err
	}
	caps := chartutil.DefaultCapabilities.Copy()
	caps.KubeVersion = *kv
	caps.APIVersions = append(caps.APIVersions, cl.apis...)
	if err := chartutil.ProcessDependenciesWithMerge(c, vals); err != nil {
		return nil, err
	}
	top, err := chartutil.ToRenderValues(c, vals, chartutil.ReleaseOptions{Name: "shop", Namespace: "prod", Revision: 1, IsInstall: true}, caps)
	if err != nil {
		return nil, err
	}
	if c.Metadata.KubeVersion != "" && !chartutil.IsCompatibleRange(c.Metadata.KubeVersion, caps.KubeVersion.String()) {
		return nil, fmt.Errorf("chart requires kubeVersion %s", c.Metadata.KubeVersion)
	}
	rendered, err := engine.Render(c, top)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(rendered, func(name, _ string) bool { return strings.HasSuffix(name, "NOTES.txt") })
	hooks, manifests, err := releaseutil.SortManifests(rendered, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for _, crd := range c.CRDObjects() {
		if err := addStream(out, crd.File.Data, nil); err != nil {
			return nil, err
		}
	}
	for _, m := range manifests {
		if err := addStream(out, []byte(m.Content), nil); err != nil {
			return nil, err
		}
	}
	for _, h := range hooks {
		events := slices.DeleteFunc(h.Events, func(e release.HookEvent) bool { return e == release.HookTest })
		if len(events) == 0 {
			continue
		}
		hook := map[string]any{"weight": h.Weight, "events": words(events), "delete": words(h.DeletePolicies)}
		if err := addStream(out, []byte(h.Manifest), hook); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// words are sorted, each once.
func words[S ~string](list []S) string {
	var out []string
	for _, s := range list {
		out = append(out, string(s))
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ",")
}

// addStream adds the objects of a YAML stream as Kubernetes' own decoder reads it; lists are taken apart.
func addStream(out map[string]any, data []byte, hook map[string]any) error {
	d := utilyaml.NewYAMLToJSONDecoder(bytes.NewReader(data))
	for {
		var raw runtime.RawExtension // as Helm reads it: integers stay whole
		if err := d.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(raw.Raw) == 0 || string(raw.Raw) == "null" {
			continue
		}
		var v map[string]any
		if err := json.Unmarshal(raw.Raw, &v); err != nil {
			return err
		}
		items := []any{v}
		if list, ok := v["items"].([]any); ok && strings.HasSuffix(fmt.Sprint(v["kind"]), "List") {
			items = list
		}
		for _, o := range items {
			js, err := json.Marshal(o)
			if err != nil {
				return err
			}
			if err := addObject(out, js, hook); err != nil {
				return err
			}
		}
	}
}

func addObject(out map[string]any, js []byte, hook map[string]any) error {
	var o map[string]any
	if err := json.Unmarshal(js, &o); err != nil {
		return err
	}
	meta, _ := o["metadata"].(map[string]any)
	group, _, _ := strings.Cut(fmt.Sprint(o["apiVersion"]), "/")
	key := fmt.Sprintf("%s %s %v/%v", group, o["kind"], meta["namespace"], meta["name"])
	if _, ok := out[key]; ok {
		return fmt.Errorf("%s appears twice", key)
	}
	v := map[string]any{"object": o}
	if hook != nil {
		v["hook"] = hook
	}
	out[key] = v
	return nil
}

func ours(files map[string][]byte, values []byte, cl cluster) (map[string]any, error) {
	var vals v1alpha1.Values
	if err := utilyaml.Unmarshal(values, &vals); err != nil {
		return nil, err
	}
	in := render.Input{
		Name:        "shop",
		Options:     v1alpha1.BundleOptions{DefaultNamespace: "prod", Helm: &v1alpha1.HelmOptions{Values: vals}},
		KubeVersion: cl.version,
		APIVersions: append(render.DefaultAPIVersions(), cl.apis...),
	}
	for name, data := range files {
		in.Resources = append(in.Resources, v1alpha1.NewResource(name, data))
	}
	b, err := render.Render(in)
	if err != nil {
		return nil, err
	}
	hooks := map[int]map[string]any{}
	for _, h := range b.Handling().Hooks {
		hooks[h.Object] = map[string]any{"weight": int(h.Weight), "events": words(h.Events), "delete": words(h.Delete)}
	}
	out := map[string]any{}
	for i, o := range b.Objects() {
		if err := addObject(out, o.JSON, hooks[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// chartFiles are the files of a chart as package source puts them into a bundle.
func chartFiles(t *testing.T, chartPath string) map[string][]byte {
	t.Helper()
	if filepath.Ext(chartPath) == ".tgz" {
		data, err := os.ReadFile(chartPath)
		if err != nil {
			t.Fatal(err)
		}
		c, err := archive.Unpack(data)
		if err != nil {
			t.Fatal(err)
		}
		return c.Files
	}
	files := map[string][]byte{}
	err := filepath.WalkDir(chartPath, func(p string, d fs.DirEntry, err error) error {
		hidden := strings.HasPrefix(d.Name(), ".") && p != chartPath && d.Name() != ".helmignore"
		switch {
		case err != nil:
			return err
		case d.IsDir() && hidden:
			return fs.SkipDir
		case d.IsDir() || hidden:
			return nil
		}
		rel, err := filepath.Rel(chartPath, p)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(rel)], err = os.ReadFile(p) // through links, as source does
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// valueSets are the chart's own values, and what it brings for tests in the way of chart-testing.
func valueSets(t *testing.T, chartPath string) map[string][]byte {
	t.Helper()
	sets := map[string][]byte{"default values": nil}
	found, err := filepath.Glob(filepath.Join(chartPath, "ci", "*-values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		sets[path.Base(filepath.ToSlash(f))] = data
	}
	return sets
}

func missingDependencies(c *chart.Chart) []string {
	var missing []string
	for _, d := range c.Metadata.Dependencies {
		if !slices.ContainsFunc(c.Dependencies(), func(have *chart.Chart) bool { return have.Name() == d.Name }) {
			missing = append(missing, d.Name)
		}
	}
	return missing
}

func brief(err error) string {
	if err == nil {
		return "nothing"
	}
	return fmt.Sprintf("%.300q", err.Error())
}
