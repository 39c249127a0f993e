package render_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/render"
	"shoal.dev/shoal/controller/target"
	"shoal.dev/shoal/internal/cases"
)

// TestRender runs testdata/*.txtar: "input" holds options and cluster, "extra" downstream resources, the other sections are
// files of the bundle; want is the YAML stream of objects in order, or the error. Comments in it say the rest: notes and what
// sites are told in front, and above an object that it is a hook.
func TestRender(t *testing.T) {
	cases.Run(t, "testdata/*.txtar", func(t *testing.T, files []txtar.File) string {
		in := input(t, files)
		got := text(t, in)
		// The order of files is not part of the input.
		slices.Reverse(in.Resources)
		if again := text(t, in); again != got {
			t.Errorf("files in another order give another result:\n%s", cmp.Diff(got, again))
		}
		return got
	})
}

func input(t *testing.T, files []txtar.File) (in render.Input) {
	t.Helper()
	in.Name = "demo"
	for _, f := range files {
		switch f.Name {
		case "input":
			var y struct {
				Options     v1alpha1.BundleOptions
				Ignore      *v1alpha1.Ignore
				Health      []v1alpha1.HealthRule
				Cluster     *target.Cluster // with templating: all
				KubeVersion string
				APIVersions []string
			}
			if err := yaml.UnmarshalStrict(f.Data, &y); err != nil {
				t.Fatal(err)
			}
			in.Options, in.KubeVersion, in.APIVersions = y.Options, y.KubeVersion, y.APIVersions
			in.Ignore, in.Health = y.Ignore, y.Health
			if y.Cluster != nil {
				in.Vars = target.NewVars(*y.Cluster)
			}
		case "extra":
			js, err := yaml.YAMLToJSON(f.Data)
			if err != nil {
				t.Fatal(err)
			}
			o, err := bundlefmt.NewObject(js)
			if err != nil {
				t.Fatal(err)
			}
			in.Extra = append(in.Extra, o)
		default:
			in.Resources = append(in.Resources, v1alpha1.NewResource(f.Name, f.Data))
		}
	}
	return in
}

func text(t *testing.T, in render.Input) string {
	t.Helper()
	r, err := render.WithNotes(in)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	var b strings.Builder
	for _, n := range r.Notes {
		b.WriteString("# note: " + n + "\n")
	}
	h := r.Bundle.Handling()
	hooks := map[int]string{}
	for i, k := range h.Hooks {
		hooks[k.Object] = fmt.Sprintf("# hook %d: events %v, weight %d, delete %v\n", i+1, k.Events, k.Weight, k.Delete)
	}
	if h.Hooks = nil; !h.IsZero() {
		y, err := yaml.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("# handling:\n")
		for line := range strings.Lines(string(y)) {
			b.WriteString("#   " + line)
		}
	}
	for i, o := range r.Bundle.Objects() {
		y, err := yaml.JSONToYAML(o.JSON)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("---\n" + hooks[i])
		b.Write(y)
	}
	return b.String()
}

func web(values v1alpha1.Values) render.Input {
	ar, err := txtar.ParseFile("testdata/helm_values.txtar")
	if err != nil {
		panic(err)
	}
	in := render.Input{Name: "demo", Options: v1alpha1.BundleOptions{Helm: &v1alpha1.HelmOptions{Values: values}}}
	for _, f := range ar.Files {
		if f.Name != "input" && f.Name != "want" {
			in.Resources = append(in.Resources, v1alpha1.NewResource(f.Name, f.Data))
		}
	}
	return in
}

func TestKey(t *testing.T) {
	base := web(v1alpha1.Values{"replicas": int64(2)})
	key := base.Key()
	for name, change := range map[string]func(*render.Input){
		"name":          func(i *render.Input) { i.Name = "other" },
		"value":         func(i *render.Input) { i.Options.Helm.Values["replicas"] = int64(3) },
		"namespace":     func(i *render.Input) { i.Options.Namespace = "x" },
		"default ns":    func(i *render.Input) { i.Options.DefaultNamespace = "x" },
		"file":          func(i *render.Input) { i.Resources[0].Content += "#" },
		"file name":     func(i *render.Input) { i.Resources[0].Name += "x" },
		"kube version":  func(i *render.Input) { i.KubeVersion = "v1.30.0" },
		"api versions":  func(i *render.Input) { i.APIVersions = []string{"v1"} },
		"overlays":      func(i *render.Input) { i.Options.YAML = &v1alpha1.YAMLOptions{Overlays: []string{"a"}} },
		"one file less": func(i *render.Input) { i.Resources = i.Resources[1:] },
		"moved text": func(i *render.Input) {
			i.Resources[0].Name += "\n"
			i.Resources[0].Content = i.Resources[0].Content[1:]
		},
		"kustomize dir":   func(i *render.Input) { i.Options.Kustomize = &v1alpha1.KustomizeOptions{Dir: "x"} },
		"release name":    func(i *render.Input) { i.Options.Helm.ReleaseName = "x" },
		"resources alone": func(i *render.Input) { i.ResourcesKey = [32]byte{1} },
		// What stands in Handling.
		"conditions": func(i *render.Input) {
			i.Ignore = &v1alpha1.Ignore{Conditions: []map[string]string{{"type": "Stalled"}}}
		},
		"health":           func(i *render.Input) { i.Health = []v1alpha1.HealthRule{{Kind: "X", Ready: "true"}} },
		"compare patches":  func(i *render.Input) { i.Options.Diff = &v1alpha1.Diff{ComparePatches: []v1alpha1.ComparePatch{{}}} },
		"namespace labels": func(i *render.Input) { i.Options.NamespaceLabels = map[string]string{"a": "b"} },
		"values from":      func(i *render.Input) { i.Options.Helm.ValuesFrom = []v1alpha1.ValuesFrom{{}} },
		"schema":           func(i *render.Input) { i.Options.Helm.SkipSchemaValidation = true },
		"vars":             func(i *render.Input) { i.Vars = target.NewVars(target.Cluster{}) },
		"extra":            func(i *render.Input) { i.Extra = []bundlefmt.Object{{JSON: []byte("{}")}} },
	} {
		in := web(v1alpha1.Values{"replicas": int64(2)})
		change(&in)
		if in.Key() == key {
			t.Errorf("%s: key did not change", name)
		}
	}
	same := web(v1alpha1.Values{"replicas": int64(2)})
	slices.Reverse(same.Resources)
	same.Options.KeepResources = true
	same.Options.CorrectDrift = &v1alpha1.CorrectDrift{Enabled: true}
	same.Options.ServiceAccount, same.Options.ForceSyncGeneration = "a", 2
	same.Options.DownstreamResources = []v1alpha1.DownstreamResource{{Kind: "Secret", Name: "a"}}
	h := same.Options.Helm
	h.Repo, h.Version, h.TimeoutSeconds, h.MaxHistory = "https://charts.example.com", "1.x", 60, 3
	h.TakeOwnership, h.Force, h.Atomic, h.WaitForJobs, h.DisableDNS, h.DisableDependencyUpdate = true, true, true, true, true, true
	same.ResourcesKey = render.ResourcesKey(same.Resources)
	if same.Key() != key {
		t.Error("key depends on the order of files, on options for the agent, or on whether ResourcesKey was given")
	}
}

func TestCache(t *testing.T) {
	c := newCache(t, render.CacheOptions{})
	done := make(chan *bundlefmt.Bundle)
	for i := range 20 {
		go func() {
			r, err := c.Render(web(v1alpha1.Values{"replicas": int64(i % 2)}))
			if err != nil {
				t.Error(err)
			}
			done <- r.Bundle
		}()
	}
	digests := map[bundlefmt.Digest]bool{}
	for range 20 {
		digests[(<-done).Digest()] = true
	}
	if len(digests) != 2 || c.Renders() != 2 {
		t.Errorf("%d results in %d renderings, want 2 in 2", len(digests), c.Renders())
	}
	bad := web(v1alpha1.Values{"fail": "on purpose"})
	for range 2 {
		if _, err := c.Render(bad); err == nil || !strings.Contains(err.Error(), "on purpose") {
			t.Errorf("got %v", err)
		}
	}
	if c.Renders() != 3 {
		t.Errorf("a failure was rendered again: %d renderings, want 3", c.Renders())
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache(t, render.CacheOptions{Size: 8 << 10})
	for range 2 {
		for i := range 20 {
			if _, err := c.Render(web(v1alpha1.Values{"replicas": int64(i)})); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c.Renders() != 40 {
		t.Errorf("%d renderings: 20 results do not fit 8 KiB, so all 40 are new", c.Renders())
	}
	before := c.Renders()
	if _, err := c.Render(web(v1alpha1.Values{"replicas": int64(19)})); err != nil || c.Renders() != before {
		t.Error("the newest result was not kept")
	}
}

func TestLimits(t *testing.T) {
	many := strings.Repeat("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n", 10_001)
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 10; i++ {
		p, n := string(rune('0'+i-1)), string(rune('0'+i))
		bomb += "a" + n + ": &a" + n + " [" + strings.TrimSuffix(strings.Repeat("*a"+p+",", 10), ",") + "]\n"
	}
	doubling := ""
	for c := 'b'; c <= 'z'; c++ {
		doubling += "- {op: copy, from: /data, path: /data/k" + string(c) + "}\n"
	}
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"objects":        {map[string]string{"a.yaml": many}, "more than 10000 objects"},
		"alias bomb":     {map[string]string{"a.yaml": bomb}, "a.yaml: holds more than 500000 values"},
		"kustomize bomb": {map[string]string{"a.yaml": bomb, "kustomization.yaml": "resources: [a.yaml]\n"}, "a.yaml: holds more than 500000 values"},
		"nesting":        {map[string]string{"a.yaml": "apiVersion: v1\nkind: X\nmetadata: {name: a}\nspec: " + strings.Repeat("[", 500) + strings.Repeat("]", 500)}, "nesting depth"},
		"object size":    {map[string]string{"a.yaml": "apiVersion: v1\nkind: X\nmetadata: {name: a}\ndata: " + strings.Repeat("x", 1<<20)}, "object size"},
		"json patch": {map[string]string{"a.yaml": "apiVersion: v1\nkind: X\nmetadata: {name: a}\ndata: {a: " + strings.Repeat("x", 1000) + "}\n",
			"overlays/o/a_patch.yaml": doubling}, "overlays/o/a_patch.yaml: patch a.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			in := render.Input{Name: "demo"}
			for n, s := range tc.files {
				in.Resources = append(in.Resources, v1alpha1.NewResource(n, []byte(s)))
				if strings.HasPrefix(n, "overlays/") {
					in.Options.YAML = &v1alpha1.YAMLOptions{Overlays: []string{"o"}}
				}
			}
			if _, err := render.Render(in); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %.200v, want %q", err, tc.want)
			}
		})
	}
	for _, name := range []string{"../x.yaml", "/x.yaml", "a/../../x.yaml", "a//b.yaml", "."} {
		in := render.Input{Name: "demo", Resources: []v1alpha1.BundleResource{{Name: name}}}
		if _, err := render.Render(in); err == nil || !strings.Contains(err.Error(), "no path inside the bundle") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	gz := v1alpha1.NewCompressedResource("zeros.bin", bytes.Repeat([]byte{0}, 64<<20))
	if _, err := render.Render(render.Input{Name: "demo", Resources: []v1alpha1.BundleResource{gz}}); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("gzip bomb: got %v", err)
	}
}

// TestCacheOfTemplatedFiles: clusters whose templates give the same cost one rendering, as with templated values.
func TestCacheOfTemplatedFiles(t *testing.T) {
	c := newCache(t, render.CacheOptions{})
	for i := range 10 {
		in := render.Input{Name: "demo", Resources: []v1alpha1.BundleResource{
			{Name: "a.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {region: '${ .ClusterLabels.region }'}\n"},
		}}
		in.Vars = target.NewVars(target.Cluster{Name: fmt.Sprint(i), Labels: map[string]string{"region": fmt.Sprint(i % 2)}})
		r, err := c.Render(in)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf(`"region":"%d"`, i%2); !strings.Contains(string(r.Bundle.Objects()[0].JSON), want) {
			t.Errorf("got %s, want %s", r.Bundle.Objects()[0].JSON, want)
		}
	}
	if c.Renders() != 2 {
		t.Errorf("%d renderings of 2 results", c.Renders())
	}
}

// TestRendersDoNotInfluenceEachOther: Helm changes charts while it renders (conditions, aliases, imported values), and templates
// can change values; charts are parsed once all the same.
func TestRendersDoNotInfluenceEachOther(t *testing.T) {
	ar, err := txtar.ParseFile("testdata/influence/chart.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var rs []v1alpha1.BundleResource
	for _, f := range ar.Files {
		rs = append(rs, v1alpha1.NewResource(f.Name, f.Data))
	}
	input := func(i int) render.Input {
		v := []v1alpha1.Values{
			{},
			{"db": map[string]any{"enabled": false}},
			{"tags": map[string]any{"extra": false}, "imported": map[string]any{"size": "7"}},
			{"db": map[string]any{"data": map[string]any{"size": "9"}}, "list": []any{"x"}},
			{"second": map[string]any{"data": nil}},
		}[i%5]
		return render.Input{Name: "demo", Resources: rs, Options: v1alpha1.BundleOptions{Helm: &v1alpha1.HelmOptions{Values: v}}, KubeVersion: fmt.Sprintf("v1.%d.0", 30+i/5)}
	}
	alone := make([]bundlefmt.Digest, 30)
	for i := range alone {
		b, err := render.Render(input(i))
		if err != nil {
			t.Fatal(err)
		}
		alone[i] = b.Digest()
	}
	shared := newCache(t, render.CacheOptions{})
	var wg sync.WaitGroup
	for i, want := range alone {
		wg.Go(func() {
			r, err := shared.Render(input(i))
			if err != nil {
				t.Error(err)
			} else if r.Bundle.Digest() != want {
				t.Errorf("input %d gives another result next to others", i)
			}
		})
	}
	wg.Wait()
	if shared.Renders() != 30 {
		t.Errorf("%d renderings", shared.Renders())
	}
}
