package source

import (
	"fmt"
	"path"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// Limits of fleet.yaml and of values files, against files made to exhaust memory.
const (
	maxOptionsFile = 1 << 20
	maxNodes       = 100_000 // values after aliases are expanded
	maxNesting     = 64
)

// fleetYAML is fleet.yaml as far as it is supported.
type fleetYAML struct {
	fleetOptions         `json:",inline"`
	Name                 string                    `json:"name"`
	Labels               map[string]string         `json:"labels"`
	Paused               bool                      `json:"paused"`
	RolloutStrategy      *v1alpha1.RolloutStrategy `json:"rolloutStrategy"`
	Targets              []fleetTarget             `json:"targets"`
	TargetCustomizations []fleetTarget             `json:"targetCustomizations"`

	file  string
	lines map[string]int // field path → line
}

// at is "file:line" of a field, or of the nearest field around it.
func (f *fleetYAML) at(field string) string {
	for p := field; p != ""; {
		if l, ok := f.lines[p]; ok {
			return fmt.Sprintf("%s:%d", f.file, l)
		}
		i := strings.LastIndexAny(p, ".[")
		if i < 0 {
			break
		}
		p = p[:i]
	}
	return f.file
}

type fleetTarget struct {
	v1alpha1.BundleTarget `json:",inline"`
	Helm                  *fleetHelm `json:"helm"`
}

type fleetOptions struct {
	v1alpha1.BundleOptions `json:",inline"`
	Helm                   *fleetHelm `json:"helm"` // hides BundleOptions.Helm
}

type fleetHelm struct {
	v1alpha1.HelmOptions `json:",inline"`
	ValuesFiles          []string `json:"valuesFiles"`
}

func (o fleetOptions) bundleOptions(prefix string, files map[string][]byte, used map[string]bool, at func(string, error) error) (v1alpha1.BundleOptions, error) {
	return complete(o.BundleOptions, o.Helm, prefix, files, used, at)
}

func (t fleetTarget) bundleOptions(prefix string, files map[string][]byte, used map[string]bool, at func(string, error) error) (v1alpha1.BundleOptions, error) {
	return complete(t.BundleOptions, t.Helm, prefix, files, used, at)
}

// complete checks that what the options name is there, and merges values files into values. Files it used up are noted:
// they are left out of the bundle.
func complete(o v1alpha1.BundleOptions, h *fleetHelm, prefix string, files map[string][]byte, used map[string]bool, at func(string, error) error) (v1alpha1.BundleOptions, error) {
	if h != nil {
		o.Helm = &h.HelmOptions
		if c := h.Chart; c != "" {
			dir, err := inside(c)
			if err != nil {
				return o, at(prefix+"helm.chart", fmt.Errorf("%w (only a chart in the directory is supported yet)", err))
			}
			o.Helm.Chart = dir
			if _, ok := files[path.Join(dir, "Chart.yaml")]; !ok {
				return o, at(prefix+"helm.chart", fmt.Errorf("%q holds no Chart.yaml (only a chart in the directory is supported yet)", c))
			}
		}
		for i, f := range h.ValuesFiles {
			field := fmt.Sprintf("%shelm.valuesFiles[%d]", prefix, i)
			name, err := inside(f)
			if err != nil {
				return o, at(field, err)
			}
			data, ok := files[name]
			if !ok {
				return o, at(field, fmt.Errorf("file %q is not in the directory", f))
			}
			vals, err := values(name, data)
			if err != nil {
				return o, at(field, err)
			}
			o.Helm.Values = target.MergeValues(o.Helm.Values, vals)
			if _, chart := files[path.Join(path.Dir(name), "Chart.yaml")]; !chart || path.Base(name) != "values.yaml" {
				used[name] = true
			}
		}
	}
	if o.Kustomize != nil && o.Kustomize.Dir != "" {
		dir, err := inside(o.Kustomize.Dir)
		if err != nil {
			return o, at(prefix+"kustomize.dir", err)
		}
		o.Kustomize = &v1alpha1.KustomizeOptions{Dir: dir}
		if !slices.ContainsFunc([]string{"kustomization.yaml", "kustomization.yml", "Kustomization"}, func(n string) bool {
			_, ok := files[path.Join(dir, n)]
			return ok
		}) {
			return o, at(prefix+"kustomize.dir", fmt.Errorf("%q holds no kustomization.yaml", dir))
		}
	}
	if o.YAML != nil {
		for i, name := range o.YAML.Overlays {
			field := fmt.Sprintf("%syaml.overlays[%d]", prefix, i)
			if name == "" || strings.Trim(name, ".") == "" || strings.Contains(name, "..") {
				return o, at(field, fmt.Errorf("%q is no name of a directory below overlays/", name))
			}
			dir := "overlays/" + name + "/"
			found := false
			for f := range files {
				found = found || strings.HasPrefix(f, dir)
			}
			if !found {
				return o, at(field, fmt.Errorf("there are no files below %s", dir))
			}
		}
	}
	return o, nil
}

// inside cleans a path and refuses one that leaves the directory.
func inside(p string) (string, error) {
	if strings.Contains(p, "://") || strings.HasPrefix(p, "git@") {
		return "", fmt.Errorf("%q is a URL", p)
	}
	c := path.Clean(p)
	if path.IsAbs(c) || c == ".." || strings.HasPrefix(c, "../") {
		return "", fmt.Errorf("%q is outside of the directory", p)
	}
	return c, nil
}

// values reads a values file.
func values(name string, data []byte) (v1alpha1.Values, error) {
	doc, err := nodes(name, data)
	if err != nil || doc == nil {
		return nil, err
	}
	if doc.Kind != yamlv3.MappingNode {
		return nil, fmt.Errorf("%s:%d: a map of values expected", name, doc.Line)
	}
	var v v1alpha1.Values
	if err := yaml.UnmarshalStrict(data, &v); err != nil {
		return nil, yamlError(name, err)
	}
	return v, nil
}

// parse reads fleet.yaml. It looks at the file twice: as a tree, for positions and strictness, then into values.
func parse(file string, data []byte) (*fleetYAML, error) {
	f := &fleetYAML{file: file}
	doc, err := nodes(file, data)
	if err != nil {
		return nil, err
	}
	c := checker{file: file, lines: map[string]int{}}
	if doc != nil {
		if err := c.check(doc, field{kind: object, fields: schema()}, ""); err != nil {
			return nil, err
		}
	}
	if err := yaml.UnmarshalStrict(data, f); err != nil {
		return nil, yamlError(file, err)
	}
	f.lines = c.lines
	return f, nil
}

// nodes parses YAML into a tree and makes sure that it stays small when its aliases are expanded. It returns nil for an
// empty file.
func nodes(file string, data []byte) (*yamlv3.Node, error) {
	if len(data) > maxOptionsFile {
		return nil, fmt.Errorf("%s: file has %d bytes, the limit is %d", file, len(data), maxOptionsFile)
	}
	dec := yamlv3.NewDecoder(strings.NewReader(string(data)))
	var doc yamlv3.Node
	if err := dec.Decode(&doc); err != nil {
		if err.Error() == "EOF" {
			return nil, nil
		}
		return nil, yamlError(file, err)
	}
	var more yamlv3.Node
	if err := dec.Decode(&more); err == nil {
		return nil, fmt.Errorf("%s:%d: one YAML document expected, here a second one begins", file, more.Line)
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	n, err := expanded(doc.Content[0], 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if n > maxNodes {
		return nil, fmt.Errorf("%s: holds more than %d values once its aliases are expanded", file, maxNodes)
	}
	return doc.Content[0], nil
}

// expanded counts the values of a tree as if aliases were written out; it stops counting above the limit.
func expanded(n *yamlv3.Node, depth int) (int, error) {
	if depth > maxNesting {
		return 0, fmt.Errorf("line %d: nested deeper than %d", n.Line, maxNesting)
	}
	if n.Kind == yamlv3.AliasNode {
		return expanded(n.Alias, depth+1)
	}
	sum := 1
	for _, c := range n.Content {
		k, err := expanded(c, depth+1)
		if err != nil {
			return 0, err
		}
		if sum += k; sum > maxNodes {
			return sum, nil
		}
	}
	return sum, nil
}

// checker walks fleet.yaml along its schema and notes where every field is.
type checker struct {
	file  string
	lines map[string]int
}

func (c *checker) errorf(n *yamlv3.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s", c.file, n.Line, fmt.Sprintf(format, args...))
}

func (c *checker) check(n *yamlv3.Node, f field, at string) error {
	if n.Kind == yamlv3.AliasNode {
		n = n.Alias
	}
	c.lines[at] = n.Line
	if n.ShortTag() == "!!null" {
		return nil // as if it were absent
	}
	switch f.kind {
	case object:
		return c.object(n, f, at)
	case objects:
		return c.list(n, field{kind: object, fields: f.fields}, at)
	case stringList:
		return c.list(n, field{kind: str}, at)
	case stringMap:
		return c.stringMap(n, at)
	case free:
		if n.Kind != yamlv3.MappingNode {
			return c.errorf(n, "%s must be a map", at)
		}
		return nil
	default:
		return c.scalar(n, f.kind, at)
	}
}

func (c *checker) object(n *yamlv3.Node, f field, at string) error {
	if n.Kind != yamlv3.MappingNode {
		if at == "" {
			return c.errorf(n, "a map of options expected")
		}
		return c.errorf(n, "%s must be a map", at)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.ShortTag() == "!!merge" {
			if err := c.merge(v, f, at); err != nil {
				return err
			}
			continue
		}
		key := k.Value
		full := join(at, key)
		sub, ok := f.fields[key]
		switch {
		case !ok:
			msg := fmt.Sprintf("unknown field %q", full)
			if near := nearest(key, f.fields); near != "" {
				msg += fmt.Sprintf(" (did you mean %q?)", near)
			}
			return c.errorf(k, "%s", msg)
		case sub.later:
			return c.errorf(k, "%s is not supported yet", full)
		case key == "createNamespace" && at != "":
			return c.errorf(k, "%s: createNamespace holds for the whole bundle: set it at the top level", full)
		}
		if err := c.check(v, sub, full); err != nil {
			return err
		}
		c.lines[full] = k.Line
	}
	return nil
}

// merge checks the maps that a merge key (<<) pulls in.
func (c *checker) merge(v *yamlv3.Node, f field, at string) error {
	if v.Kind == yamlv3.AliasNode {
		v = v.Alias
	}
	if v.Kind == yamlv3.SequenceNode {
		for _, e := range v.Content {
			if err := c.merge(e, f, at); err != nil {
				return err
			}
		}
		return nil
	}
	return c.object(v, f, at)
}

func (c *checker) list(n *yamlv3.Node, f field, at string) error {
	if n.Kind != yamlv3.SequenceNode {
		return c.errorf(n, "%s must be a list", at)
	}
	for i, e := range n.Content {
		if err := c.check(e, f, fmt.Sprintf("%s[%d]", at, i)); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) stringMap(n *yamlv3.Node, at string) error {
	if n.Kind != yamlv3.MappingNode {
		return c.errorf(n, "%s must be a map", at)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].ShortTag() == "!!merge" {
			continue
		}
		if err := c.check(n.Content[i+1], field{kind: str}, join(at, n.Content[i].Value)); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) scalar(n *yamlv3.Node, k kind, at string) error {
	quoted := n.Style&(yamlv3.SingleQuotedStyle|yamlv3.DoubleQuotedStyle|yamlv3.LiteralStyle|yamlv3.FoldedStyle) != 0
	oldBool := !quoted && slices.Contains([]string{"y", "n", "yes", "no", "on", "off"}, strings.ToLower(n.Value)) // YAML 1.1
	tag := n.ShortTag()
	switch {
	case n.Kind != yamlv3.ScalarNode:
	case k == str && tag == "!!str" && !oldBool:
		return nil
	case k == str && n.Kind == yamlv3.ScalarNode:
		return c.errorf(n, "%s must be a string: write %q", at, n.Value)
	case k == boolean && (tag == "!!bool" || oldBool):
		return nil
	case k == numberOrPercent && (tag == "!!int" || tag == "!!str"):
		return nil
	}
	return c.errorf(n, "%s must be %s", at, map[kind]string{
		str: "a string", boolean: "true or false", numberOrPercent: `a whole number or a percentage such as "10%"`,
	}[k])
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

// nearest is the known key most like an unknown one, or "" if none is alike.
func nearest(key string, known map[string]field) string {
	best, dist := "", 1+max(1, len(key)/3)
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		if strings.EqualFold(k, key) {
			return k
		}
		if d := distance(key, k); d < dist {
			best, dist = k, d
		}
	}
	return best
}

// distance counts the single-letter changes between two keys.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, diag+1)
		}
	}
	return row[len(b)]
}

// yamlError says what a YAML library says, without its name, on one line and with the line number where people look.
func yamlError(file string, err error) error {
	s := err.Error()
	for _, p := range []string{"error converting YAML to JSON: ", "error unmarshaling JSON: ", "while decoding JSON: ", "yaml: ", "unmarshal errors:\n", "json: "} {
		s = strings.ReplaceAll(s, p, "")
	}
	s = strings.Join(strings.Fields(s), " ")
	if line, rest, ok := strings.Cut(strings.TrimPrefix(s, "line "), ": "); ok && strings.HasPrefix(s, "line ") {
		return fmt.Errorf("%s:%s: %s", file, line, rest)
	}
	return fmt.Errorf("%s: %s", file, s)
}
