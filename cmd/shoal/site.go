package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/render"
	"shoal.dev/shoal/controller/target"
)

// site is all that a rendering depends on beside the bundle: one cluster, its groups and its Kubernetes.
type site struct {
	cluster     v1alpha1.Cluster // the version of Kubernetes is in its status
	groups      []target.Group
	apiVersions []string // none: Kubernetes' own

	// byDefault: the cluster is in the group "default" as far as bundles without targets are concerned. Nobody who asks
	// what a directory without targets gives wants to hear that a made-up cluster is in no group.
	byDefault bool
}

// siteFlags describe a cluster on the command line.
type siteFlags struct {
	cluster     string
	labels      []string
	annotations []string
	values      []string
	valuesFile  string
	groups      []string
	groupLabels []string
	kubeVersion string
	apiVersions []string
}

// describing are the names of the flags that describe a cluster.
var describing = []string{"label", "annotation", "value", "values-file", "group", "group-label", "kube-version", "api-version"}

func (o *siteFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&o.labels, "label", nil, "label of the cluster, KEY=VALUE (may be repeated)")
	f.StringArrayVar(&o.annotations, "annotation", nil, "annotation of the cluster, KEY=VALUE (may be repeated)")
	f.StringArrayVar(&o.values, "value", nil, "template value of the cluster, KEY=VALUE with VALUE in YAML; a.b=1 sets b in a (may be repeated)")
	f.StringVar(&o.valuesFile, "values-file", "", "YAML file with template values of the cluster (spec.templateValues); --value wins")
	f.StringArrayVar(&o.groups, "group", nil, `cluster group the cluster is in (may be repeated; default: "default" for a bundle without targets, else none)`)
	f.StringArrayVar(&o.groupLabels, "group-label", nil, "label of these groups, KEY=VALUE (may be repeated)")
	f.StringVar(&o.kubeVersion, "kube-version", "", "Kubernetes version that charts see (default "+render.DefaultKubeVersion+")")
	f.StringArrayVar(&o.apiVersions, "api-version", nil, "API that charts see beside Kubernetes' own, GROUP/VERSION or GROUP/VERSION/KIND (may be repeated)")
	_ = cmd.MarkFlagFilename("values-file", "yaml", "yml", "json")
}

// site is the cluster that the flags describe.
func (o *siteFlags) site(workspace string) (site, error) {
	s := site{byDefault: len(o.groups) == 0 && len(o.groupLabels) == 0}
	c := &s.cluster
	c.Name, c.Namespace, c.Status.KubernetesVersion = o.cluster, workspace, o.kubeVersion
	var err error
	if c.Labels, err = parsePairs("--label", o.labels); err != nil {
		return site{}, err
	}
	if c.Annotations, err = parsePairs("--annotation", o.annotations); err != nil {
		return site{}, err
	}
	if c.Spec.TemplateValues, err = o.templateValues(); err != nil {
		return site{}, err
	}
	groupLabels, err := parsePairs("--group-label", o.groupLabels)
	if err != nil {
		return site{}, err
	}
	names := o.groups
	if len(names) == 0 && len(groupLabels) > 0 {
		names = []string{"local"} // a group of that kind, whatever its name
	}
	for _, n := range names {
		s.groups = append(s.groups, target.Group{Name: n, Labels: groupLabels, Selector: &metav1.LabelSelector{}})
	}
	if len(o.apiVersions) > 0 {
		s.apiVersions = append(render.DefaultAPIVersions(), o.apiVersions...)
	}
	return s, nil
}

func (o *siteFlags) templateValues() (v1alpha1.Values, error) {
	values := v1alpha1.Values{}
	if o.valuesFile != "" {
		data, err := os.ReadFile(o.valuesFile)
		if err != nil {
			return nil, fmt.Errorf("--values-file: %w", err)
		}
		if err := yaml.UnmarshalStrict(data, &values); err != nil {
			return nil, fmt.Errorf("--values-file: %w", yamlProblem(o.valuesFile, err))
		}
	}
	for _, kv := range o.values {
		k, v, ok := strings.Cut(kv, "=")
		path := strings.Split(k, ".")
		if !ok || slices.Contains(path, "") {
			return nil, fmt.Errorf("--value %q: write KEY=VALUE", kv)
		}
		var wrapped v1alpha1.Values
		data, err := yaml.YAMLToJSONStrict([]byte(v))
		if err == nil {
			err = json.Unmarshal(fmt.Appendf(nil, `{"v":%s}`, data), &wrapped)
		}
		if err != nil {
			return nil, fmt.Errorf("--value %q: %w", kv, err)
		}
		value := wrapped["v"]
		for _, key := range slices.Backward(path) {
			value = map[string]any{key: value}
		}
		values = target.MergeValues(values, value.(map[string]any))
	}
	if len(values) == 0 {
		return nil, nil
	}
	return values, nil
}

func parsePairs(flag string, list []string) (map[string]string, error) {
	pairs := map[string]string{}
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%s %q: write KEY=VALUE", flag, l)
		}
		pairs[k] = v
	}
	return pairs, nil
}

// matched is a cluster as package target sees it.
func matched(c v1alpha1.Cluster) target.Cluster {
	return target.Cluster{Name: c.Name, Namespace: c.Namespace, Labels: c.Labels, Annotations: c.Annotations, Values: c.Spec.TemplateValues}
}

func matchedGroups(list []v1alpha1.ClusterGroup) []target.Group {
	var groups []target.Group
	for _, g := range list {
		groups = append(groups, target.Group{Name: g.Name, Labels: g.Labels, Selector: g.Spec.Selector})
	}
	return groups
}

// rendition is what one cluster gets of one bundle.
type rendition struct {
	match     target.Match
	documents []document
	notes     []string // what the owner of the bundle should know
	shown     []string // how what is printed differs from what the cluster will have
}

// document is one object as people read it.
type document struct {
	ref  bundlefmt.Ref
	hook string // "pre-install, weight 5"; empty: no hook
	text string // YAML
}

// match is what the site gets of a bundle; nil: nothing.
func (s site) match(b *v1alpha1.Bundle) (*target.Match, error) {
	matches, err := target.Select(b.Spec, []target.Cluster{matched(s.cluster)}, s.groupsFor(b))
	switch {
	case err != nil:
		return nil, err
	case len(matches) == 0:
		return nil, nil
	case matches[0].Err != nil:
		return nil, matches[0].Err // which names target and cluster
	}
	return &matches[0], nil
}

func (s site) groupsFor(b *v1alpha1.Bundle) []target.Group {
	if s.byDefault && len(b.Spec.Targets) == 0 {
		return []target.Group{{Name: target.DefaultGroup, Selector: &metav1.LabelSelector{}}}
	}
	return s.groups
}

// render renders a bundle for the site. Where the site gets nothing of it, the rendition is nil and why says the reason.
func (s site) render(b *v1alpha1.Bundle) (r *rendition, why string, err error) {
	m, err := s.match(b)
	if err != nil {
		return nil, "", err
	}
	if m == nil {
		return nil, whyNot(b.Spec, matched(s.cluster), s.groupsFor(b)), nil
	}
	in := render.Input{
		Name: b.Name, Resources: b.Spec.Resources, Options: m.Options, KubeVersion: s.cluster.Status.KubernetesVersion, APIVersions: s.apiVersions,
		Ignore: b.Spec.Ignore, Health: b.Spec.Health,
	}
	if m.Vars != nil {
		in.Vars = m.Vars
	}
	res, err := render.WithNotes(in)
	if err != nil {
		return nil, "", fmt.Errorf("target %s: %w", m.Target, err)
	}
	r = &rendition{match: *m}
	h := res.Bundle.Handling()
	r.notes = append(slices.Clone(m.Notes), res.Notes...)
	if slices.ContainsFunc(res.Notes, render.IsRandomNote) {
		r.shown = append(r.shown, "random values are examples: those of clusters are made of the hub's keys")
	}
	for _, d := range m.Options.DownstreamResources {
		r.shown = append(r.shown, fmt.Sprintf("the hub adds the %s %s of the workspace to it", d.Kind, d.Name))
	}
	objects, unknown, err := render.Placed(res.Bundle, m.Options)
	if err != nil {
		return nil, "", err
	}
	r.shown = append(r.shown, unknown...)
	for i, o := range objects {
		d, err := newDocument(o, h, i)
		if err != nil {
			return nil, "", err
		}
		r.documents = append(r.documents, d)
	}
	r.shown = append(r.shown, siteNotes(h)...)
	return r, "", nil
}

func newDocument(o bundlefmt.Object, h bundlefmt.Handling, at int) (document, error) {
	d := document{ref: o.Ref}
	text, err := yaml.JSONToYAML(showSiteValues(o.JSON, h.SiteValues))
	if err != nil {
		return document{}, fmt.Errorf("print %s: %w", o.Ref, err)
	}
	d.text = string(text)
	if i := slices.IndexFunc(h.Hooks, func(k bundlefmt.Hook) bool { return k.Object == at }); i >= 0 {
		d.hook = hookWords(h.Hooks[i])
	}
	return d, nil
}

// hookWords is "pre-install, pre-upgrade, weight 5, delete hook-succeeded".
func hookWords(k bundlefmt.Hook) string {
	var words []string
	for _, e := range k.Events {
		words = append(words, string(e))
	}
	words = append(words, fmt.Sprintf("weight %d", k.Weight))
	for _, d := range k.Delete {
		words = append(words, "delete "+string(d))
	}
	return strings.Join(words, ", ")
}

// placeholder stands for a value that only the site knows, with what holds where the site says nothing.
func placeholder(v bundlefmt.SiteValue) string {
	s := "<site value " + v.Path
	if d := []rune(oneLine(v.Default)); len(d) > 60 {
		s += ", else " + string(d[:60]) + "…"
	} else if len(d) > 0 {
		s += ", else " + string(d)
	}
	return s + ">"
}

// showSiteValues puts what people can read where the site will put its values; in the data of a Secret they stand inside base64.
func showSiteValues(object []byte, values []bundlefmt.SiteValue) []byte {
	show := func(text string, quote func(string) string) string {
		for _, v := range values {
			if v.Token != "" {
				text = strings.ReplaceAll(text, v.Token, quote(placeholder(v)))
			}
		}
		return text
	}
	text := show(string(object), func(s string) string {
		quoted, _ := json.Marshal(s) // a string always can be
		return string(quoted[1 : len(quoted)-1])
	})
	var secret struct {
		Kind string            `json:"kind"`
		Data map[string]string `json:"data"`
	}
	if len(values) == 0 || json.Unmarshal(object, &secret) != nil || secret.Kind != "Secret" {
		return []byte(text)
	}
	for _, encoded := range secret.Data {
		plain, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			continue
		}
		if shown := show(string(plain), func(s string) string { return s }); shown != string(plain) {
			text = strings.ReplaceAll(text, encoded, base64.StdEncoding.EncodeToString([]byte(shown)))
		}
	}
	return []byte(text)
}

// siteNotes say which values are not final, and where the site takes them from.
func siteNotes(h bundlefmt.Handling) []string {
	var from, filled, fixed, notes []string
	for _, f := range h.ValuesFrom {
		name := f.Name
		if f.Namespace != "" {
			name = f.Namespace + "/" + name
		}
		from = append(from, fmt.Sprintf("%s %s (%s)", f.Kind, name, f.Key))
	}
	for _, v := range h.SiteValues {
		if v.Fixed {
			fixed = append(fixed, v.Path)
		} else {
			filled = append(filled, v.Path)
		}
	}
	if len(filled) > 0 {
		notes = append(notes, fmt.Sprintf("values that the site may have in %s are shown as <site value PATH, else what holds without>: %s", strings.Join(from, ", "), strings.Join(filled, ", ")))
	}
	if len(fixed) > 0 {
		notes = append(notes, fmt.Sprintf("values that the chart computes with, so that the site must not have them in %s: %s", strings.Join(from, ", "), strings.Join(fixed, ", ")))
	}
	return notes
}

// whyNot says why a cluster gets nothing of a bundle, when that is so.
func whyNot(spec v1alpha1.BundleSpec, c target.Cluster, groups []target.Group) string {
	if len(spec.Targets) == 0 {
		return fmt.Sprintf("the bundle has no targets, so it is for the cluster group %q", target.DefaultGroup)
	}
	matches := func(m v1alpha1.ClusterMatch) bool {
		alone := v1alpha1.BundleSpec{Targets: []v1alpha1.BundleTarget{{ClusterMatch: m}}}
		got, err := target.Select(alone, []target.Cluster{c}, groups)
		return err == nil && len(got) > 0
	}
	// With restrictions the last targets select, those before them only customize.
	selecting := spec.Targets[max(0, len(spec.Targets)-len(spec.TargetRestrictions)):]
	if len(spec.TargetRestrictions) == 0 {
		selecting = spec.Targets
	}
	first := len(spec.Targets) - len(selecting)
	var tried []string
	found := false
	for i, t := range selecting {
		if matches(t.ClusterMatch) {
			found = true
			continue
		}
		tried = append(tried, fmt.Sprintf("%s (%s)", targetTitle(spec.Targets, first+i), missed(t.ClusterMatch, matches)))
	}
	if !found {
		return "none of its targets matches: " + strings.Join(tried, ", ")
	}
	for i, t := range spec.Targets {
		if t.DoNotDeploy && matches(t.ClusterMatch) {
			return fmt.Sprintf("target %s matches it and says doNotDeploy", targetTitle(spec.Targets, i))
		}
	}
	return "its targets match, its targetRestrictions do not"
}

func targetTitle(targets []v1alpha1.BundleTarget, i int) string {
	if n := targets[i].Name; n != "" {
		return n
	}
	return fmt.Sprintf("targets[%d]", i)
}

// missed names the criteria that a cluster does not meet.
func missed(m v1alpha1.ClusterMatch, matches func(v1alpha1.ClusterMatch) bool) string {
	var out []string
	try := func(set bool, one v1alpha1.ClusterMatch, what string) {
		if set && !matches(one) {
			out = append(out, what)
		}
	}
	try(m.ClusterName != "", v1alpha1.ClusterMatch{ClusterName: m.ClusterName}, "cluster "+m.ClusterName)
	try(m.ClusterSelector != nil, v1alpha1.ClusterMatch{ClusterSelector: m.ClusterSelector}, "labels "+metav1.FormatLabelSelector(m.ClusterSelector))
	// Both must hold for the same group, so they are tried together.
	group := v1alpha1.ClusterMatch{ClusterGroup: m.ClusterGroup, ClusterGroupSelector: m.ClusterGroupSelector}
	var words []string
	if m.ClusterGroup != "" {
		words = append(words, "group "+m.ClusterGroup)
	}
	if m.ClusterGroupSelector != nil {
		words = append(words, "group labels "+metav1.FormatLabelSelector(m.ClusterGroupSelector))
	}
	try(len(words) > 0, group, strings.Join(words, " with "))
	if len(out) == 0 {
		return "no criteria: it matches nothing"
	}
	return strings.Join(out, ", ")
}

// optionsKey tells clusters that get the same from those that do not.
func optionsKey(m target.Match) string {
	data, err := json.Marshal(m.Options)
	if err != nil {
		data = fmt.Append(nil, m.Options)
	}
	if m.Vars != nil {
		data = append(data, m.Vars.Key()...)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))[:8]
}
