package source

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// fleetYAML is fleet.yaml: the spec of a Bundle, and what only exists on the way to it.
type fleetYAML struct {
	v1alpha1.BundleSpec
	Name                 string                              `json:"name"`
	Labels               map[string]string                   `json:"labels"`
	Annotations          map[string]string                   `json:"annotations"`
	Helm                 *fleetHelm                          `json:"helm"`    // hides that of the spec
	Targets              []fleetTarget                       `json:"targets"` // hide those of the spec
	TargetCustomizations []fleetTarget                       `json:"targetCustomizations"`
	OverrideTargets      *[]v1alpha1.BundleTargetRestriction `json:"overrideTargets"`
}

type fleetTarget struct {
	v1alpha1.BundleTarget
	Helm *fleetHelm `json:"helm"`
}

type fleetHelm struct {
	v1alpha1.HelmOptions
	ValuesFiles []string `json:"valuesFiles"`
}

// bundle is a Bundle in the making.
type bundle struct {
	*tree
	place
	files  map[string][]byte
	used   map[string]bool // files whose content has gone elsewhere: left out
	doc    *document
	out    *v1alpha1.Bundle
	charts map[ChartRef]string // fetched or found → directory in the bundle
	whole  map[string]bool     // directories of charts whose dependencies are there
	origin []chartOrigin

	kustomized map[string]bool // directories of kustomizations in use
	fetched    []fileOrigin    // what they name by address
	size       int             // of all values as JSON
}

// bundle makes the Bundle of a place; everything that can be checked without rendering is checked here. Its warnings are also there
// if it is not made.
func (t *tree) bundle(ctx context.Context, p place) (*v1alpha1.Bundle, Problems, error) {
	files, err := readFiles(t.root, p.dir, p.driven)
	if err != nil {
		return nil, nil, err
	}
	var options []byte
	if p.options == "" {
		for name := range t.taken {
			if rel, err := filepath.Rel(p.dir, name); err == nil {
				delete(files, filepath.ToSlash(rel))
			}
		}
	}
	if p.options != "" {
		if options, err = readFile(t.root, path.Join(p.dir, p.options), MaxFile); err != nil {
			return nil, nil, err
		}
	}
	return t.make(ctx, p, files, options)
}

func (t *tree) make(ctx context.Context, p place, files map[string][]byte, options []byte) (*v1alpha1.Bundle, Problems, error) {
	b := &bundle{tree: t, place: p, files: files, charts: map[ChartRef]string{}, whole: map[string]bool{}, kustomized: map[string]bool{}, used: map[string]bool{"fleet.yaml": true, "fleet.yml": true, p.options: true}}
	b.out = &v1alpha1.Bundle{TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Bundle"}}
	read := b.fleetYAML
	if p.options == bundleFile && !p.driven {
		read = b.form2020
	}
	if err := read(ctx, path.Join(p.dir, p.options), options); err != nil {
		return nil, nil, err
	}
	b.restrict()
	if n := len(b.out.Spec.Targets); n > maxTargets {
		b.doc.report("", fmt.Errorf("%d targets with those of the GitRepo, the limit is %d", n, maxTargets))
	}
	switch {
	case t.o.Name != "":
		b.out.Name = t.o.Name
	case b.out.Name == "":
		b.out.Name = t.name(p)
	}
	if !validName(b.out.Name) {
		b.doc.report("name", fmt.Errorf("%q must be %s", b.out.Name, nameFormat.words))
	}
	if err := errors.Join(b.annotate(), b.annotateFiles()); err != nil {
		return nil, nil, err
	}
	slices.SortStableFunc(b.doc.problems, func(p, q Problem) int {
		return cmp.Or(strings.Compare(p.File, q.File), p.Line-q.Line)
	})
	ps := slices.Compact(b.doc.problems)
	if err := ps.Err(); err != nil {
		return nil, ps.Warnings(), err
	}
	b.portable()
	var err error
	b.out.Spec.Resources, err = encode(b.files, b.used, b.size)
	if err != nil {
		return nil, ps, b.inDir(err)
	}
	return b.out, ps, nil
}

// portable makes values such that every tool that applies Bundles keeps their nulls.
func (b *bundle) portable() {
	all := []*v1alpha1.HelmOptions{b.out.Spec.Helm}
	for _, t := range b.out.Spec.Targets {
		all = append(all, t.Helm)
	}
	for _, h := range all {
		if h != nil {
			h.Values = h.Values.Portable()
		}
	}
}

const maxTargets = 1000 // as the API has it

// inDir says in which directory it is, where an error does not.
func (b *bundle) inDir(err error) error {
	if p := (Problem{}); errors.As(err, &p) && b.dir != "." {
		p.File = path.Join(b.dir, p.File)
		return p
	}
	return err
}

// restrict adds the GitRepo's targets. Those of the bundle then are customizations: they do not select.
func (b *bundle) restrict() {
	if b.out.Spec.TargetRestrictions != nil {
		return // overrideTargets
	}
	for _, t := range b.o.Targets {
		b.out.Spec.Targets = append(b.out.Spec.Targets, *t.DeepCopy())
		b.out.Spec.TargetRestrictions = append(b.out.Spec.TargetRestrictions, v1alpha1.BundleTargetRestriction{Name: t.Name, ClusterMatch: *t.ClusterMatch.DeepCopy()})
	}
}

// fleetYAML fills the Bundle from fleet.yaml; without one it is empty.
func (b *bundle) fleetYAML(ctx context.Context, file string, data []byte) (err error) {
	var f fleetYAML
	if b.doc, err = readOptions(file, data, fleetSchema(), &f); err != nil {
		return err
	}
	b.out.Name, b.out.Labels, b.out.Annotations = f.Name, f.Labels, f.Annotations
	b.out.Spec = f.BundleSpec
	spec := &b.out.Spec
	b.labels("labels", f.Labels, validation.IsValidLabelValue)
	b.labels("annotations", f.Annotations, nil)
	ref := ChartRef{}
	if f.Helm != nil {
		ref = f.Helm.ref()
	}
	b.allMatches(slices.Concat(f.Targets, f.TargetCustomizations))
	b.rollout(spec.RolloutStrategy)
	for i, d := range spec.DependsOn {
		b.selector(fmt.Sprintf("dependsOn[%d].selector", i), d.Selector)
	}
	if err := b.complete(ctx, "", &spec.BundleOptions, f.Helm, ref); err != nil {
		return err
	}
	for _, list := range []struct {
		field   string
		targets []fleetTarget
	}{{"targets", f.Targets}, {"targetCustomizations", f.TargetCustomizations}} {
		for i, t := range list.targets {
			at := fmt.Sprintf("%s[%d]", list.field, i)
			if err := b.complete(ctx, at+".", &t.BundleOptions, t.Helm, ref); err != nil {
				return err
			}
			b.match(at, t.ClusterMatch)
			spec.Targets = append(spec.Targets, t.BundleTarget)
		}
	}
	if f.OverrideTargets != nil {
		spec.TargetRestrictions = *f.OverrideTargets
		for i, t := range *f.OverrideTargets {
			b.match(fmt.Sprintf("overrideTargets[%d]", i), t.ClusterMatch)
			spec.Targets = append(spec.Targets, v1alpha1.BundleTarget{Name: t.Name, ClusterMatch: t.ClusterMatch})
		}
		if spec.TargetRestrictions == nil {
			spec.TargetRestrictions = []v1alpha1.BundleTargetRestriction{}
		}
	}
	return nil
}

// allMatches refuses targets that each say a part of which chart it is: several of them can match a cluster then, and the
// chart of that combination has not been fetched.
func (b *bundle) allMatches(targets []fleetTarget) {
	if b.out.Spec.TargetCustomizationMode != "AllMatches" {
		return
	}
	var first *[3]bool
	for _, t := range targets {
		if t.Helm == nil || t.Helm.ref() == (ChartRef{}) {
			continue
		}
		r := t.Helm.ref()
		says := [3]bool{r.Chart != "", r.Repo != "", r.Version != ""}
		if first == nil {
			first = &says
		}
		if *first != says {
			b.doc.report("targetCustomizationMode", errors.New("AllMatches: entries that change the chart must all set the same of helm.chart, helm.repo and helm.version, since several of them can match a cluster"))
			return
		}
	}
}

func (b *bundle) rollout(r *v1alpha1.RolloutStrategy) {
	if r == nil {
		return
	}
	for i, p := range r.Partitions {
		at := fmt.Sprintf("rolloutStrategy.partitions[%d]", i)
		b.match(at, p.ClusterMatch)
		if p.ClusterMatch == (v1alpha1.ClusterMatch{}) {
			b.doc.report(at, errors.New("matches no cluster: set clusterName, clusterSelector, clusterGroup or clusterGroupSelector"))
		}
	}
}

func (b *bundle) match(at string, m v1alpha1.ClusterMatch) {
	b.selector(at+".clusterSelector", m.ClusterSelector)
	b.selector(at+".clusterGroupSelector", m.ClusterGroupSelector)
}

// labels checks the keys and values of labels or annotations; what a template makes of a value is not known yet.
func (b *bundle) labels(at string, m map[string]string, value func(string) []string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		wrong := validation.IsQualifiedName(strings.ToLower(k))
		if len(wrong) == 0 && value != nil && !strings.Contains(m[k], "${") {
			wrong = value(m[k])
		}
		if len(wrong) > 0 {
			b.doc.report(join(at, k), short(errors.New(wrong[0])))
		}
	}
}

func (b *bundle) selector(at string, s *metav1.LabelSelector) {
	_, err := metav1.LabelSelectorAsSelector(s)
	b.doc.report(at, short(err))
}

// short leaves out the examples and regular expressions that Kubernetes adds to its messages.
func short(err error) error {
	if err == nil {
		return nil
	}
	if msg, _, ok := strings.Cut(err.Error(), " (e.g. "); ok {
		return errors.New(msg)
	}
	return err
}

// complete checks that what the options name is there, fetches charts, and merges values files into values. ref is the chart of
// the whole bundle.
func (b *bundle) complete(ctx context.Context, at string, o *v1alpha1.BundleOptions, h *fleetHelm, ref ChartRef) error {
	if h != nil {
		o.Helm = &h.HelmOptions
		for i, f := range h.ValuesFiles {
			vals, err := b.valuesFile(f)
			if err != nil {
				b.doc.report(fmt.Sprintf("%shelm.valuesFiles[%d]", at, i), err)
				continue
			}
			o.Helm.Values = target.MergeValues(o.Helm.Values, vals)
		}
		if err := b.grow(o.Helm.Values); err != nil {
			return err
		}
	}
	if err := b.helmChart(ctx, at, h, ref); err != nil {
		return err
	}
	b.labels(at+"namespaceLabels", o.NamespaceLabels, validation.IsValidLabelValue)
	b.labels(at+"namespaceAnnotations", o.NamespaceAnnotations, nil)
	b.kustomize(at, o)
	if dir, use := ".", at == ""; o.Kustomize != nil || use {
		if o.Kustomize != nil && o.Kustomize.Dir != "" {
			dir = o.Kustomize.Dir
		}
		if err := b.remote(ctx, at+"kustomize.dir", dir); err != nil {
			return err
		}
	}
	if o.YAML != nil {
		for i, name := range o.YAML.Overlays {
			b.overlay(fmt.Sprintf("%syaml.overlays[%d]", at, i), name)
		}
	}
	if o.Diff != nil {
		for i, p := range o.Diff.ComparePatches {
			b.comparePatch(fmt.Sprintf("%sdiff.comparePatches[%d]", at, i), p)
		}
	}
	return nil
}

// valuesFile reads a values file of the bundle, or from elsewhere in the tree. Those of the bundle are left out of it, unless
// they are the defaults of a chart.
func (b *bundle) valuesFile(name string) (v1alpha1.Values, error) {
	if isURL(name) || path.IsAbs(name) {
		return nil, fmt.Errorf("%q is not in the directory: values files are read from it", name)
	}
	name = path.Clean(name)
	at := path.Join(b.dir, name)
	data, ok := b.files[name]
	if !ok {
		if at == ".." || strings.HasPrefix(at, "../") {
			return nil, fmt.Errorf("%q is outside of the directory that is read: read one further up that holds both", name)
		}
		if b.root == nil {
			return nil, fmt.Errorf("file %q is not in the directory", name)
		}
		var err error
		if data, err = readFile(b.root, at, maxOptionsFile); err != nil {
			var p Problem
			if errors.As(err, &p) {
				return nil, fmt.Errorf("file %q: %s", name, p.Message)
			}
			return nil, err
		}
	}
	vals, second, err := values(at, data)
	if err != nil {
		return nil, err
	}
	b.doc.problems = append(b.doc.problems, second...)
	if !ok {
		b.taken[at] = true
	}
	if _, chart := b.files[path.Join(path.Dir(name), "Chart.yaml")]; !chart || path.Base(name) != "values.yaml" {
		b.used[name] = true
	}
	return vals, nil
}

// grow counts values. A few files named by many targets make more than any server takes, and than memory holds.
func (b *bundle) grow(v v1alpha1.Values) error {
	js, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if b.size += len(js); b.size > MaxEncoded {
		return Problem{File: b.doc.file, Message: fmt.Sprintf("values of all targets have more than %d bytes: split the bundle, or put what targets share into the bundle's own values", MaxEncoded)}
	}
	return nil
}

// values reads a values file.
func values(name string, data []byte) (v v1alpha1.Values, second Problems, err error) {
	doc, second, err := nodes(name, data)
	if err != nil || doc == nil {
		return nil, second, err
	}
	if doc.Kind != yamlv3.MappingNode {
		return nil, nil, Problem{File: name, Line: doc.Line, Message: "a map of values expected"}
	}
	if err := yaml.UnmarshalStrict(data, &v); err != nil {
		return nil, nil, yamlProblem(name, err)
	}
	return v, second, nil
}

// kustomize checks the directory of a kustomization. at is empty for the bundle itself. One that a target names and that holds none
// is said when it is rendered: the target's clusters keep what they have, and the others go on.
//
// Where the bundle has no kustomization at all, and nothing in the directory, its own option changes nothing and is left out.
func (b *bundle) kustomize(at string, o *v1alpha1.BundleOptions) {
	k := o.Kustomize
	if k == nil || k.Dir == "" || b.late(k.Dir) {
		return
	}
	dir, err := inside(k.Dir)
	switch missing := err == nil && !b.isKustomization(dir); {
	case missing && at == "" && dir != "." && !b.holds(dir) && !b.anyKustomization():
		b.doc.warn("kustomize.dir", fmt.Errorf("there is no %s, and no kustomization in the bundle, so this changes nothing", dir))
		o.Kustomize = nil
		return
	case missing && dir == ".": // which is the default
		b.doc.warn(at+"kustomize.dir", errors.New("the directory holds no kustomization.yaml, so this changes nothing"))
	case missing && at == "":
		err = fmt.Errorf("%q holds no kustomization.yaml", dir)
	}
	b.doc.report(at+"kustomize.dir", err)
	k.Dir = dir
}

func (b *bundle) isKustomization(dir string) bool {
	return slices.ContainsFunc([]string{"kustomization.yaml", "kustomization.yml", "Kustomization"}, func(n string) bool {
		_, ok := b.files[path.Join(dir, n)]
		return ok
	})
}

func (b *bundle) anyKustomization() bool {
	for name := range b.files {
		if b.isKustomization(path.Dir(name)) {
			return true
		}
	}
	return false
}

// late says whether a name is known only when a cluster is.
func (b *bundle) late(s string) bool { return b.doc.templates && strings.Contains(s, "${") }

func (b *bundle) overlay(at, name string) {
	switch {
	case b.late(name):
	case name == "" || strings.Trim(name, ".") == "" || strings.Contains(name, ".."):
		b.doc.report(at, fmt.Errorf("%q is no name of a directory below overlays/", name))
	case !b.holds("overlays/" + name):
		b.doc.warn(at, fmt.Errorf("there are no files below overlays/%s/, so that this overlay changes nothing", name))
	}
}

// holds says whether there are files below a directory.
func (b *bundle) holds(dir string) bool { return holds(b.files, dir) }

func holds(files map[string][]byte, dir string) bool {
	for name := range files {
		if within(name, dir) {
			return true
		}
	}
	return false
}

// within says whether a file is below a directory.
func within(file, dir string) bool { return dir == "." || strings.HasPrefix(file, dir+"/") }

func (b *bundle) comparePatch(at string, p v1alpha1.ComparePatch) {
	ignore := false
	for i, o := range p.Operations {
		ignore = ignore || o.Op == "ignore"
		if o.Op != "ignore" && o.Op != "" && o.Path == "" {
			b.doc.report(fmt.Sprintf("%s.operations[%d]", at, i), fmt.Errorf("path is needed: the JSON pointer of the field to %s", o.Op))
		}
	}
	if ignore {
		if _, err := regexp.Compile(p.Name); err != nil {
			b.doc.report(at+".name", fmt.Errorf("%q is no regular expression, which the operation ignore needs: %s", p.Name, strings.TrimPrefix(err.Error(), "error parsing regexp: ")))
		}
	}
	if len(p.Operations) == 0 && len(p.JSONPointers) == 0 {
		b.doc.report(at, errors.New("jsonPointers or operations is needed: this one does nothing"))
	}
}

// isURL tells what is elsewhere from a path.
func isURL(s string) bool {
	return strings.Contains(s, "://") || strings.Contains(s, "::") || strings.HasPrefix(s, "git@")
}

// inside cleans a path and refuses one that leaves the directory.
func inside(p string) (string, error) {
	if isURL(p) {
		return "", fmt.Errorf("%q is a URL", p)
	}
	c := path.Clean(p)
	if path.IsAbs(c) || c == ".." || strings.HasPrefix(c, "../") {
		return "", fmt.Errorf("%q is outside of the directory", p)
	}
	return c, nil
}
