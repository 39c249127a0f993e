package target

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// oldLabel begins a value that is a label of the cluster: the first form of values templating.
const oldLabel = "global.fleet.clusterLabels."

// Vars is what templates of one cluster see. With templating: all, plain manifests and kustomize files are expanded with it.
type Vars struct {
	cluster Cluster

	once sync.Once
	key  string
}

// NewVars returns what templates see of a cluster.
func NewVars(c Cluster) *Vars { return &Vars{cluster: c} }

// Key identifies everything that a template could read: equal keys, equal results. Safe for concurrent use.
func (v *Vars) Key() string {
	v.once.Do(func() {
		b, err := json.Marshal(v.data())
		if err != nil {
			b = fmt.Append(nil, v.data()) // cannot be stored in Kubernetes, so cannot come from there; fmt sorts maps too
		}
		sum := sha256.Sum256(b)
		v.key = hex.EncodeToString(sum[:])
	})
	return v.key
}

// Expand templates a text; name is for errors.
func (v *Vars) Expand(name, text string) (string, error) {
	if !marked(text) {
		return text, nil
	}
	t, err := parseText(name, text)
	if err != nil {
		return "", err
	}
	return t.run(v.data())
}

// data is the context of templates: a copy, templates can change maps.
func (v *Vars) data() map[string]any {
	return map[string]any{
		"ClusterName": v.cluster.Name, "ClusterNamespace": v.cluster.Namespace,
		"ClusterLabels": dictionary(v.cluster.Labels), "ClusterAnnotations": dictionary(v.cluster.Annotations),
		"ClusterValues": map[string]any(v1alpha1.Values(orEmpty(v.cluster.Values)).WithNulls()),
	}
}

func dictionary(m map[string]string) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

func orEmpty(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// choice is the options of one combination of targets, before and after they are templated for clusters.
type choice struct {
	options v1alpha1.BundleOptions
	title   string
	all     bool // templating: all

	old    bool             // some value is of the old form
	values *text            // all of helm.values that is a template; nil: nothing
	top    map[string]*text // helm.templateValues
	fields []field          // options that templates fill in: helm.randomSeed, and others with templating: all
	notes  []string
	err    error // a template cannot be read: no cluster gets it

	results map[string]*result // by what the templates gave
}

// field is an option that templating: all covers.
type field struct {
	name string
	text *text
	set  func(*v1alpha1.BundleOptions, string)
}

// result is shared by all clusters for which the templates give the same.
type result struct {
	options v1alpha1.BundleOptions
	number  int
	notes   []string
	err     error
}

func newChoice(o v1alpha1.BundleOptions, title string, all bool) *choice {
	c := &choice{options: o, title: title, all: all, results: map[string]*result{}}
	c.err = errors.Join(c.compileValues(), c.compileFields())
	return c
}

func (c *choice) compileValues() (err error) {
	h := c.options.Helm
	if h == nil {
		return nil
	}
	if c.old, err = usesOldLabels(h.Values); err != nil {
		return err
	}
	if h.DisablePreProcess {
		if len(h.TemplateValues) > 0 {
			c.notes = append(c.notes, "helm.templateValues are not used: helm.disablePreProcess is set")
		}
		return nil
	}
	var parts []part
	collect := func(at, s string) filled {
		parts = append(parts, part{at, s})
		return filled{Text: s}
	}
	if _, err := fillValues(h.Values, "helm.values", 0, collect); err != nil {
		return err
	}
	if len(parts) > 0 {
		if c.values, err = parseParts("helm.values", parts); err != nil {
			return err
		}
	}
	for _, k := range slices.Sorted(maps.Keys(h.TemplateValues)) {
		t, err := parseText("helm.templateValues."+k, h.TemplateValues[k])
		if err != nil {
			return err
		}
		if c.top == nil {
			c.top = map[string]*text{}
		}
		c.top[k] = t
	}
	return nil
}

// compileFields reads the options besides values. Without templating: all a template in them is a mistake, and not a name.
func (c *choice) compileFields() error {
	var errs []error
	add := func(name, value string, set func(*v1alpha1.BundleOptions, string)) {
		if !marked(value) {
			return
		}
		if !c.all {
			errs = append(errs, fmt.Errorf("%s: %q: only helm.values are templated: set templating: all to template this as well", name, value))
			return
		}
		t, err := parseText(name, value)
		errs = append(errs, err)
		c.fields = append(c.fields, field{name, t, set})
	}
	o := c.options
	add("defaultNamespace", o.DefaultNamespace, func(o *v1alpha1.BundleOptions, s string) { o.DefaultNamespace = s })
	add("namespace", o.Namespace, func(o *v1alpha1.BundleOptions, s string) { o.Namespace = s })
	add("serviceAccount", o.ServiceAccount, func(o *v1alpha1.BundleOptions, s string) { o.ServiceAccount = s })
	if o.Helm != nil {
		if s := o.Helm.RandomSeed; marked(s) {
			t, err := parseText("helm.randomSeed", s)
			errs = append(errs, err)
			c.fields = append(c.fields, field{"helm.randomSeed", t, func(o *v1alpha1.BundleOptions, s string) { o.Helm.RandomSeed = s }})
		}
		add("helm.releaseName", o.Helm.ReleaseName, func(o *v1alpha1.BundleOptions, s string) { o.Helm.ReleaseName = s })
	}
	if o.Kustomize != nil {
		add("kustomize.dir", o.Kustomize.Dir, func(o *v1alpha1.BundleOptions, s string) { o.Kustomize.Dir = s })
	}
	if o.YAML != nil {
		for i, n := range o.YAML.Overlays {
			add(fmt.Sprintf("yaml.overlays[%d]", i), n, func(o *v1alpha1.BundleOptions, s string) { o.YAML.Overlays[i] = s })
		}
	}
	if c.all { // elsewhere ${ } is a possible value of an annotation
		for _, k := range slices.Sorted(maps.Keys(o.NamespaceLabels)) {
			add("namespaceLabels."+k, o.NamespaceLabels[k], func(o *v1alpha1.BundleOptions, s string) { o.NamespaceLabels[k] = s })
		}
		for _, k := range slices.Sorted(maps.Keys(o.NamespaceAnnotations)) {
			add("namespaceAnnotations."+k, o.NamespaceAnnotations[k], func(o *v1alpha1.BundleOptions, s string) { o.NamespaceAnnotations[k] = s })
		}
	}
	return errors.Join(errs...)
}

// steady reports whether all clusters get the same.
func (c *choice) steady() bool {
	return !c.old && c.values == nil && c.top == nil && len(c.fields) == 0
}

// rendered is what the templates gave for one cluster.
type rendered struct {
	Labels map[string]string // of the old form, with their values
	Values []filled          // in the order of fillValues
	Top    map[string]filled // helm.templateValues
	Fields []string
}

// of returns what a cluster gets. number counts distinct results of the whole selection.
func (c *choice) of(cl Cluster, number *int) *result {
	var r rendered
	var key []byte
	err := c.err
	if err == nil && !c.steady() {
		r, err = c.run(cl)
		key, _ = json.Marshal(r) // strings, and what is JSON already
	}
	if err != nil {
		key = []byte("error " + err.Error())
	}
	if known, ok := c.results[string(key)]; ok {
		return known
	}
	res := &result{number: *number, err: err, notes: c.notes}
	*number++
	if err == nil {
		res.options, res.notes, res.err = c.fill(r)
	}
	c.results[string(key)] = res
	return res
}

func (c *choice) run(cl Cluster) (r rendered, err error) {
	v := Vars{cluster: cl}
	if c.old {
		r.Labels = map[string]string{}
		_ = walkStrings(c.options.Helm.Values, func(s string) string {
			if name, ok := strings.CutPrefix(s, oldLabel); ok {
				if l, there := cl.Labels[name]; there {
					r.Labels[name] = l
				}
			}
			return s
		})
	}
	if c.values != nil {
		if r.Values, err = c.values.fill(v.data()); err != nil {
			return r, err
		}
	}
	for _, k := range slices.Sorted(maps.Keys(c.top)) {
		if r.Top == nil {
			r.Top = map[string]filled{}
		}
		one, err := c.top[k].fill(v.data())
		if err != nil {
			return r, err
		}
		r.Top[k] = one[0]
	}
	for _, f := range c.fields {
		s, err := f.text.run(v.data())
		if err != nil {
			return r, err
		}
		r.Fields = append(r.Fields, s)
	}
	return r, nil
}

// fill puts what templates gave into a copy of the options.
func (c *choice) fill(r rendered) (o v1alpha1.BundleOptions, notes []string, err error) {
	notes = c.notes
	if c.steady() {
		return c.options, notes, checkNames(c.options)
	}
	o = *c.options.DeepCopy()
	if c.values != nil {
		next := -1
		v, err := fillValues(o.Helm.Values, "helm.values", 0, func(string, string) filled {
			next++
			return r.Values[next]
		})
		if err != nil {
			return o, nil, err
		}
		o.Helm.Values = v
	}
	if c.old {
		missing := map[string]bool{}
		err := walkStrings(o.Helm.Values, func(s string) string {
			name, ok := strings.CutPrefix(s, oldLabel)
			if !ok {
				return s
			}
			if _, there := r.Labels[name]; !there {
				missing[name] = true
			}
			return r.Labels[name]
		})
		if err != nil {
			return o, nil, err
		}
		for _, n := range slices.Sorted(maps.Keys(missing)) {
			notes = append(slices.Clip(notes), fmt.Sprintf("%s%s is empty for clusters without that label", oldLabel, n))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(r.Top)) {
		v, err := parseTop(k, r.Top[k])
		if err != nil {
			return o, nil, err
		}
		if o.Helm.Values == nil {
			o.Helm.Values = v1alpha1.Values{}
		}
		o.Helm.Values[k] = v
	}
	if c.top != nil {
		o.Helm.TemplateValues = nil // they are in values now
	}
	for i, f := range c.fields {
		f.set(&o, r.Fields[i])
	}
	return o, notes, checkNames(o)
}

// fillValues returns values in which f has filled in every key and every text that holds a template, always in the same order. at
// names the value.
func fillValues(v v1alpha1.Values, at string, depth int, f func(at, text string) filled) (v1alpha1.Values, error) {
	if v == nil {
		return nil, nil
	}
	out := make(v1alpha1.Values, len(v))
	for _, k := range slices.Sorted(maps.Keys(v)) {
		key := k
		if marked(k) {
			key = f(at, k).Text
		}
		if _, twice := out[key]; twice {
			return nil, fmt.Errorf("%s: after templating: key %q already set in map", at, key)
		}
		e, err := fillValue(v[k], at+"."+key, depth+1, f)
		if err != nil {
			return nil, err
		}
		out[key] = e
	}
	return out, nil
}

func fillValue(v any, at string, depth int, f func(at, text string) filled) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("helm.values: maps and lists are nested more than %d deep", maxDepth)
	}
	switch v := v.(type) {
	case string:
		if !marked(v) {
			return v, nil
		}
		r := f(at, v)
		if r.JSON == nil {
			return r.Text, nil
		}
		return r.value(at)
	case map[string]any:
		m, err := fillValues(v, at, depth, f)
		return map[string]any(m), err
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			var err error
			if out[i], err = fillValue(e, fmt.Sprintf("%s[%d]", at, i), depth+1, f); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return v, nil
}

// value is what JSON says. Whole numbers stay whole numbers.
func (f filled) value(name string) (any, error) {
	var holder v1alpha1.Values
	if err := holder.UnmarshalJSON(slices.Concat([]byte(`{"x":`), f.JSON, []byte("}"))); err != nil {
		return nil, fmt.Errorf("%s: after templating: %w", name, err)
	}
	return holder["x"], tooDeep(name, holder["x"], 0)
}

// parseTop reads what a templateValues entry gave: a text if it is the result of one expression, else any YAML.
func parseTop(k string, f filled) (any, error) {
	name := "helm.templateValues." + k
	if f.JSON == nil && f.Lone {
		return f.Text, nil
	}
	if f.JSON == nil {
		var err error
		if f.JSON, err = toJSON(name, f.Text); err != nil {
			return nil, err
		}
	}
	return f.value(name)
}

func toJSON(name, text string) ([]byte, error) {
	j, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("%s: after templating: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if len(j) > maxOutput {
		return nil, fmt.Errorf("%s: after templating: %w", name, errTooMuch)
	}
	return j, nil
}

func tooDeep(name string, x any, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: maps and lists are nested more than %d deep", name, maxDepth)
	}
	switch x := x.(type) {
	case map[string]any:
		for _, v := range x {
			if err := tooDeep(name, v, depth+1); err != nil {
				return err
			}
		}
	case []any:
		for _, v := range x {
			if err := tooDeep(name, v, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func usesOldLabels(v v1alpha1.Values) (found bool, err error) {
	err = walkStrings(v, func(s string) string {
		found = found || strings.HasPrefix(s, oldLabel)
		return s
	})
	return found, err
}

// walkStrings replaces the strings in maps and lists, at every depth.
func walkStrings(m v1alpha1.Values, f func(string) string) error {
	_, err := walk(map[string]any(m), 0, f)
	return err
}

func walk(v any, depth int, f func(string) string) (_ any, err error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("helm.values: maps and lists are nested more than %d deep", maxDepth)
	}
	// Only what changes is written: what is shared is read only.
	switch v := v.(type) {
	case string:
		return f(v), nil
	case map[string]any:
		for k, e := range v {
			w, err := walk(e, depth+1, f)
			if err != nil {
				return nil, err
			}
			if e, ok := e.(string); ok && e != w {
				v[k] = w
			}
		}
	case []any:
		for i, e := range v {
			w, err := walk(e, depth+1, f)
			if err != nil {
				return nil, err
			}
			if e, ok := e.(string); ok && e != w {
				v[i] = w
			}
		}
	}
	return v, nil
}

var (
	label   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	release = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

// maxTimeout is what an order can carry, in seconds.
const maxTimeout = 30 * 24 * 3600

// checkNames refuses what a cluster would refuse.
func checkNames(o v1alpha1.BundleOptions) error {
	for _, n := range []struct{ field, value string }{{"defaultNamespace", o.DefaultNamespace}, {"namespace", o.Namespace}} {
		if n.value != "" && (len(n.value) > 63 || !label.MatchString(n.value)) {
			return fmt.Errorf("%s: %.80q is no namespace: use lower case letters, digits and '-', at most 63 of them", n.field, n.value)
		}
	}
	if o.ServiceAccount != "" && (len(o.ServiceAccount) > 253 || !release.MatchString(o.ServiceAccount)) {
		return fmt.Errorf("serviceAccount: %.80q is no name of a service account", o.ServiceAccount)
	}
	if h := o.Helm; h != nil && h.TimeoutSeconds > maxTimeout {
		return fmt.Errorf("helm.timeoutSeconds: %d is more than 30 days", h.TimeoutSeconds)
	}
	if h := o.Helm; h != nil && h.ReleaseName != "" && (len(h.ReleaseName) > 53 || !release.MatchString(h.ReleaseName)) {
		return fmt.Errorf("helm.releaseName: %.80q is no release name: use lower case letters, digits, '-' and '.', at most 53 of them", h.ReleaseName)
	}
	return nil
}
