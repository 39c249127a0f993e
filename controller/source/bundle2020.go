package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	yamlv3 "go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// The form of 2020, before fleet.yaml:
//
//	bundle.yaml      options, flat; targets select clusters and customise at once
//	manifests/       objects, which are Helm templates
//	chart/           a chart; manifests/ are templates of it
//	kustomize/       kustomizations, applied to what chart and manifests give
//	overlays/NAME/   files laid over those of the same path (manifests/x.yaml, or x.yaml for short)
//
// It is translated into a Bundle of today: options of overlays are merged into the targets that name them, their files become
// yaml.overlays, manifests become templates.

const (
	bundleFile = "bundle.yaml"
	// A release had that long to become ready unless it said otherwise.
	timeout2020 = 600
)

// is2020 tells the options file of 2020 from other files of that name: it is a map without apiVersion and kind, and has one of the
// keys that nothing else is likely to have.
func is2020(data []byte) bool {
	doc, second, err := nodes(bundleFile, data)
	if err != nil || len(second) > 0 || doc == nil || doc.Kind != yamlv3.MappingNode || child(doc, "kind") != nil || child(doc, "apiVersion") != nil {
		return false
	}
	return slices.ContainsFunc([]string{"targets", "overlays", "manifestsDir", "kustomizeDir", "defaultNamespace", "rolloutStrategy"}, func(key string) bool { return child(doc, key) != nil })
}

var schema2020 = sync.OnceValue(func() field {
	options := []field{
		{name: "defaultNamespace", format: namespaceFormat},
		{name: "kustomizeDir"},
		{name: "timeoutSeconds", kind: integer, min: -1 << 31, max: 1<<31 - 1},
		{name: "values", kind: free},
	}
	resources := field{name: "resources", kind: objects, items: MaxFiles, required: []string{"name"}, fields: []field{
		{name: "name"}, {name: "encoding", enum: []string{"", string(v1alpha1.EncodingBase64), string(v1alpha1.EncodingBase64Gz)}}, {name: "content"},
	}}
	list := func(name string, fields ...field) field {
		f := field{name: name, kind: objects, items: maxTargets, fields: append(fields, options...)}
		f.fields = append(f.fields, field{name: "name"}, field{name: "overlays", kind: stringList, items: maxTargets})
		return f
	}
	overlays := list("overlays", resources)
	overlays.required = []string{"name"}
	match := slices.DeleteFunc(matchFields(), func(f field) bool { return f.name == "clusterName" })
	return field{kind: object, fields: append(options,
		field{name: "name", format: nameFormat}, field{name: "labels", kind: stringMap}, field{name: "annotations", kind: stringMap},
		field{name: "manifestsDir"}, field{name: "chart"}, field{name: "paused", kind: boolean},
		field{name: "rolloutStrategy", kind: object, fields: rolloutFields()},
		resources, overlays, list("targets", match...),
	)}
})

type bundle2020 struct {
	options2020
	Name            string                    `json:"name"`
	Labels          map[string]string         `json:"labels"`
	Annotations     map[string]string         `json:"annotations"`
	ManifestsDir    string                    `json:"manifestsDir"`
	Chart           string                    `json:"chart"`
	Paused          bool                      `json:"paused"`
	RolloutStrategy *v1alpha1.RolloutStrategy `json:"rolloutStrategy"`
	Resources       []v1alpha1.BundleResource `json:"resources"`
	Overlays        []overlay2020             `json:"overlays"`
	Targets         []target2020              `json:"targets"`
}

type options2020 struct {
	DefaultNamespace string          `json:"defaultNamespace"`
	KustomizeDir     string          `json:"kustomizeDir"`
	TimeoutSeconds   int64           `json:"timeoutSeconds"`
	Values           v1alpha1.Values `json:"values"`
}

type overlay2020 struct {
	options2020
	Name      string                    `json:"name"`
	Overlays  []string                  `json:"overlays"`
	Resources []v1alpha1.BundleResource `json:"resources"`
}

type target2020 struct {
	options2020
	v1alpha1.ClusterMatch
	Name     string   `json:"name"`
	Overlays []string `json:"overlays"`
}

// over lays options over others; base's values are changed.
func (o options2020) over(base options2020) options2020 {
	if o.DefaultNamespace == "" {
		o.DefaultNamespace = base.DefaultNamespace
	}
	if o.KustomizeDir == "" {
		o.KustomizeDir = base.KustomizeDir
	}
	if o.TimeoutSeconds == 0 {
		o.TimeoutSeconds = base.TimeoutSeconds
	}
	o.Values = target.MergeValues(base.Values, o.Values.DeepCopy())
	return o
}

// form2020 fills the Bundle from bundle.yaml.
func (b *bundle) form2020(ctx context.Context, file string, data []byte) (err error) {
	var f bundle2020
	if b.doc, err = readOptions(file, data, schema2020(), &f); err != nil {
		return err
	}
	b.out.Name, b.out.Labels, b.out.Annotations = f.Name, f.Labels, f.Annotations
	spec := &b.out.Spec
	spec.Paused, spec.RolloutStrategy = f.Paused, f.RolloutStrategy
	b.rollout(f.RolloutStrategy)
	if f.TimeoutSeconds == 0 {
		f.TimeoutSeconds = timeout2020
	}
	l := layout2020{bundle: b}
	if err := l.files(ctx, f); err != nil {
		return err
	}
	spec.BundleOptions = l.options("", f.options2020)
	if spec.Helm == nil {
		spec.Helm = &v1alpha1.HelmOptions{}
	}
	spec.Helm.Chart = l.chart
	if spec.Kustomize == nil && b.isKustomization("kustomize") {
		spec.Kustomize = &v1alpha1.KustomizeOptions{Dir: "kustomize"}
	}
	o := overlays2020{all: map[string]overlay2020{}, holds: func(name string) bool { return b.holds("overlays/" + name) }}
	for i, v := range f.Overlays {
		if _, twice := o.all[v.Name]; twice {
			b.doc.report(fmt.Sprintf("overlays[%d].name", i), fmt.Errorf("overlay %q is there twice", v.Name))
		}
		o.all[v.Name] = v
	}
	for i, v := range f.Overlays { // also those that no target names
		_, err := o.resolve(v.Overlays, []string{v.Name}, map[string]bool{})
		b.doc.report(fmt.Sprintf("overlays[%d].overlays", i), err)
	}
	for i, t := range f.Targets {
		at := fmt.Sprintf("targets[%d]", i)
		names, err := o.resolve(t.Overlays, nil, map[string]bool{})
		if err != nil {
			b.doc.report(at+".overlays", err)
			continue
		}
		var merged options2020
		out := v1alpha1.BundleTarget{Name: t.Name, ClusterMatch: t.ClusterMatch}
		var layers []string
		for _, name := range names {
			merged = o.all[name].over(merged)
			if o.holds(name) {
				layers = append(layers, name)
			}
		}
		out.BundleOptions = l.options(at, t.over(merged))
		if h := out.Helm; h != nil {
			if err := b.grow(h.Values); err != nil {
				return err
			}
		}
		if len(layers) > 0 {
			out.YAML = &v1alpha1.YAMLOptions{Overlays: layers}
			if l.chart != "" || spec.Kustomize != nil || out.Kustomize != nil {
				b.doc.report(at+".overlays", fmt.Errorf("overlay %s brings files, which works with manifests alone: with a chart or a kustomization put the difference into values or kustomizeDir", layers[0]))
			}
		}
		if b.doc.problems.Err() == nil && l.chart == "" && spec.Kustomize == nil && out.Kustomize == nil && !b.holds("templates") {
			b.doc.report(at, errors.New("nothing to deploy: there are no manifests, no chart, and no kustomization.yaml in kustomize/"))
		}
		b.match(at, out.ClusterMatch)
		spec.Targets = append(spec.Targets, out)
	}
	switch {
	case len(b.o.Targets) > 0 && len(f.Targets) > 0:
		// They select, too: a cluster that none of them matches gets nothing, whatever the GitRepo says.
		spec.Targets = append(spec.Targets, v1alpha1.BundleTarget{Name: "no-other", DoNotDeploy: true, ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{}}})
	case len(b.o.Targets) == 0 && len(f.Targets) == 0:
		b.doc.report("", errors.New(`targets are missing: a bundle.yaml without them is deployed nowhere; "targets: [{clusterGroup: default}]" means the group default`))
	}
	return nil
}

// overlays2020 resolves names of overlays.
type overlays2020 struct {
	all   map[string]overlay2020
	holds func(name string) bool // files
}

// resolve lists overlays in the order in which they are applied: those that one names come before it, and each comes once.
func (o overlays2020) resolve(names, around []string, seen map[string]bool) ([]string, error) {
	var out []string
	for _, name := range names {
		v, ok := o.all[name]
		switch {
		case len(around) > maxNesting:
			return nil, fmt.Errorf("overlays are nested deeper than %d", maxNesting)
		case slices.Contains(around, name):
			return nil, fmt.Errorf("overlays go in a circle: %s", strings.Join(append(around, name), " → "))
		case seen[name]:
			continue
		case !ok && !o.holds(name):
			return nil, fmt.Errorf("overlay %q is neither listed below overlays nor a directory in overlays/", name)
		}
		inner, err := o.resolve(v.Overlays, append(slices.Clone(around), name), seen)
		if err != nil {
			return nil, err
		}
		seen[name] = true
		out = append(append(out, inner...), name)
	}
	return out, nil
}

// layout2020 puts the files of that form where they belong today.
type layout2020 struct {
	*bundle
	chart     string // directory of the chart; empty: there is none
	kustomize string // source of the files below kustomize/
}

// files replaces the files of the bundle. Those outside of the directories of that form are no part of it.
func (l *layout2020) files(ctx context.Context, f bundle2020) error {
	old := l.bundle.files
	manifests := l.source("manifestsDir", f.ManifestsDir, "manifests")
	l.kustomize = "kustomize"
	if d := f.KustomizeDir; d != "" && !holds(old, path.Join("kustomize", d)) {
		l.kustomize = l.source("kustomizeDir", d, "kustomize")
	}
	l.inline(old, f)
	next := map[string][]byte{}
	move := func(from, to string) {
		for name, data := range old {
			if rest, ok := strings.CutPrefix(name, from+"/"); ok {
				next[path.Join(to, rest)] = data
			}
		}
	}
	move(l.kustomize, "kustomize")
	local := "chart"
	if f.Chart != "" && !l.elsewhere(f.Chart) {
		local = path.Clean(f.Chart)
	}
	switch _, archive := old[local]; {
	case f.Chart != "" && (l.elsewhere(f.Chart) || archive):
		if archive {
			next[local] = old[local]
		}
		l.bundle.files = next
		dir, err := l.resolve(ctx, ChartRef{Chart: f.Chart})
		if err != nil {
			l.doc.report("chart", err)
			break
		}
		l.chart = dir
	case holds(old, local):
		move(local, "chart")
		l.bundle.files = next
		l.chart = chartRoot(next)
		if l.chart == "" {
			l.doc.report("chart", fmt.Errorf("%s holds no Chart.yaml", local))
			break
		}
		l.doc.report("chart", l.dependencies(ctx, l.chart))
	case f.Chart != "":
		l.doc.report("chart", fmt.Errorf("%q holds no chart", f.Chart))
	}
	l.bundle.files = next
	templates := "templates"
	if l.chart == "" && len(next) > 0 && holds(old, manifests) {
		// A kustomization takes objects from a chart, not from templates alone.
		l.chart = "chart"
		next["chart/Chart.yaml"] = []byte("apiVersion: v2\nname: manifests\nversion: 0.0.0\n")
	}
	if l.chart != "" {
		templates = path.Join(l.chart, "templates")
	}
	for name := range old {
		if rest, ok := strings.CutPrefix(name, manifests+"/"); ok && next[path.Join(templates, rest)] != nil {
			l.doc.report("manifestsDir", fmt.Errorf("%s is also a template of the chart", name))
		}
	}
	move(manifests, templates)
	for name, data := range old {
		if rest, ok := strings.CutPrefix(name, "overlays/"); ok {
			overlay, file, _ := strings.Cut(rest, "/")
			file = strings.TrimPrefix(file, "manifests/")
			next[path.Join("overlays", overlay, "templates", file)] = data
		}
	}
	return nil
}

// source is the directory that holds what normally is in another.
func (l *layout2020) source(key, dir, normally string) string {
	if dir == "" {
		return normally
	}
	clean, err := inside(dir)
	switch {
	case err != nil && isURL(dir):
		err = fmt.Errorf("%q is a URL: only charts are fetched, copy these files into the directory", redact(dir))
	case err == nil && !holds(l.bundle.files, clean):
		err = fmt.Errorf("there are no files below %q", dir)
	case clean == ".":
		err = errors.New("name a directory below this one")
	}
	l.doc.report(key, err)
	return clean
}

// inline adds the files that stand in bundle.yaml itself.
func (l *layout2020) inline(files map[string][]byte, f bundle2020) {
	add := func(at, dir string, rs []v1alpha1.BundleResource) {
		for i, r := range rs {
			name := path.Join(dir, rooted(r.Name))
			data, err := r.Decode(MaxFile)
			if files[name] != nil {
				err = fmt.Errorf("%s is a file in the directory as well, or stands here twice", name)
			}
			l.doc.report(fmt.Sprintf("%s[%d]", at, i), err)
			files[name] = data
		}
	}
	add("resources", "", f.Resources)
	for i, o := range f.Overlays {
		add(fmt.Sprintf("overlays[%d].resources", i), path.Join("overlays", rooted(o.Name)), o.Resources)
	}
}

// rooted cleans a path; it cannot lead out of where it stands.
func rooted(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

// options are those of today. at is the target's path, empty for those of the bundle.
func (l *layout2020) options(at string, o options2020) v1alpha1.BundleOptions {
	out := v1alpha1.BundleOptions{DefaultNamespace: o.DefaultNamespace}
	if o.TimeoutSeconds != 0 || o.Values != nil {
		out.Helm = &v1alpha1.HelmOptions{TimeoutSeconds: o.TimeoutSeconds, Values: o.Values}
	}
	if at == "" && out.Helm != nil {
		out.Helm.TimeoutSeconds = max(0, o.TimeoutSeconds)
	}
	if d := o.KustomizeDir; d != "" && (at != "" || l.kustomize == "kustomize" && holds(l.bundle.files, path.Join("kustomize", d))) {
		dir, err := inside(path.Join("kustomize", rooted(d)))
		if err == nil && !l.isKustomization(dir) {
			err = fmt.Errorf("%q: there is no kustomization.yaml in %s", d, dir)
		}
		if at != "" {
			at += "."
		}
		l.doc.report(at+"kustomizeDir", err)
		out.Kustomize = &v1alpha1.KustomizeOptions{Dir: dir}
	}
	return out
}

// chartRoot is the directory of the chart below chart/: the one nearest to the top.
func chartRoot(files map[string][]byte) string {
	best := ""
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if within(name, "chart") && path.Base(name) == "Chart.yaml" && (best == "" || strings.Count(name, "/") < strings.Count(best, "/")) {
			best = name
		}
	}
	if best == "" {
		return ""
	}
	return path.Dir(best)
}
