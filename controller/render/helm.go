package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/ignore"

	"shoal.dev/shoal/bundlefmt"
)

// This is the only file that knows Helm: another major version of it is a change here.

// DefaultAPIVersions are what charts see in .Capabilities.APIVersions when a cluster's are not known: Kubernetes' own.
func DefaultAPIVersions() []string { return slices.Clone(chartutil.DefaultVersionSet) }

// helm renders the chart that key stands for and adds its objects.
func (r *rendering) helm(key string, files func() map[string][]byte) error {
	l, err := r.sources.chart(key, func() (*loaded, error) { return load(files()) })
	if err != nil {
		return err
	}
	c := fresh(l.chart)
	if l.foreignSchema != nil && !r.skipSchema() {
		return fmt.Errorf("chart %s: %w", c.Name(), l.foreignSchema)
	}
	r.random = l.random
	rendered, err := r.template(c)
	if err != nil {
		return fmt.Errorf("render chart %s: %s", c.Name(), helmMessage(err))
	}
	r.noteFunctions(c, l.functions)
	if h := r.in.Options.Helm; h != nil && len(h.ValuesFrom) > 0 && !r.trying {
		texts := map[string]string{}
		templates(c, texts)
		for _, t := range texts {
			r.templateBytes += len(t)
		}
		r.compared = comparedNames(texts)
	}
	// CRDs that a subchart brings are known after its condition was evaluated, which template did.
	for _, crd := range c.CRDObjects() {
		if err := r.addYAML(crd.Filename, crd.File.Data, false); err != nil {
			return err
		}
	}
	return r.addRendered(rendered)
}

// loaded is a chart as it is in the bundle, and what is known of it before it is rendered. It is shared by renderings.
type loaded struct {
	chart         *chart.Chart
	foreignSchema error                    // a schema refers to something outside of it
	functions     map[*chart.File][]string // what templates use that does here something else than their authors expect
	random        bool                     // templates were rewritten, see steadyChart
}

func load(files map[string][]byte) (*loaded, error) {
	c, err := loadChart(files)
	if err != nil {
		return nil, err
	}
	if err := checkChart(c); err != nil {
		return nil, fmt.Errorf("chart %s: %w", c.Name(), err)
	}
	if err := checkTemplates(c); err != nil {
		return nil, err
	}
	l := &loaded{chart: c, foreignSchema: checkSchemas(c), functions: map[*chart.File][]string{}}
	l.findFunctions(c)
	if l.random {
		steadyChart(c)
	}
	return l, nil
}

// fresh copies what Helm changes when it renders: the dependencies it takes out or renames, the values it imports from them,
// and the entries of Chart.yaml about them. Texts and default values are shared; Helm copies the latter.
func fresh(c *chart.Chart) *chart.Chart {
	out, meta := *c, *c.Metadata
	out.Metadata = &meta
	if meta.Dependencies != nil {
		meta.Dependencies = make([]*chart.Dependency, len(c.Metadata.Dependencies))
		for i, d := range c.Metadata.Dependencies {
			if d == nil {
				continue
			}
			copied := *d
			copied.ImportValues = slices.Clone(d.ImportValues)
			for j, v := range copied.ImportValues {
				if m, ok := v.(map[string]any); ok {
					copied.ImportValues[j] = maps.Clone(m)
				}
			}
			meta.Dependencies[i] = &copied
		}
	}
	out.SetDependencies()
	for _, d := range c.Dependencies() {
		out.AddDependency(fresh(d))
	}
	return &out
}

// loadChart loads a chart as Helm loads a directory: .helmignore holds, byte order marks are dropped.
func loadChart(files map[string][]byte) (*chart.Chart, error) {
	rules := ignore.Empty()
	if data, ok := files[ignore.HelmIgnore]; ok {
		var err error
		if rules, err = ignore.Parse(bytes.NewReader(data)); err != nil {
			return nil, fmt.Errorf("%s: %w", ignore.HelmIgnore, err)
		}
	}
	rules.AddDefaults()
	var buf []*loader.BufferedFile
	for _, name := range sortedNames(files) {
		if ignored(rules, name) {
			continue
		}
		// Not the bundle's own bytes: some of Helm's code keeps and changes what it is given.
		data := bytes.TrimPrefix(files[name], []byte("\xef\xbb\xbf"))
		buf = append(buf, &loader.BufferedFile{Name: name, Data: slices.Clone(data)})
	}
	c, err := loader.LoadFiles(buf)
	if err != nil {
		return nil, fmt.Errorf("load chart: %s", helmMessage(err))
	}
	return c, nil
}

func ignored(rules *ignore.Rules, name string) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if rules.Ignore(dir, entry{name: path.Base(dir), dir: true}) {
			return true
		}
	}
	return rules.Ignore(name, entry{name: path.Base(name)})
}

// entry is what ignore rules ask of a file.
type entry struct {
	name string
	dir  bool
}

func (e entry) Name() string       { return e.name }
func (e entry) IsDir() bool        { return e.dir }
func (e entry) Size() int64        { return 0 }
func (e entry) ModTime() time.Time { return time.Time{} }
func (e entry) Sys() any           { return nil }
func (e entry) Mode() fs.FileMode {
	if e.dir {
		return fs.ModeDir
	}
	return 0
}

// maxActions is how many {{ a template may have. Reading blocks that stand in each other takes stack, and more of it than there
// is ends the hub.
const maxActions = 100_000

func checkTemplates(c *chart.Chart) error {
	for _, t := range c.Templates {
		if n := bytes.Count(t.Data, []byte("{{")); n > maxActions {
			return fmt.Errorf("%s: a template with %d actions, the limit is %d", path.Join(c.ChartFullPath(), t.Name), n, maxActions)
		}
	}
	for _, d := range c.Dependencies() {
		if err := checkTemplates(d); err != nil {
			return err
		}
	}
	return nil
}

// checkChart refuses charts that cannot be installed.
func checkChart(c *chart.Chart) error {
	if c.Metadata.Type == "library" {
		return fmt.Errorf("is a library chart: it can be a dependency of another chart, not a bundle")
	}
	have := map[string]bool{}
	for _, d := range c.Dependencies() {
		have[d.Name()] = true
	}
	for _, d := range c.Metadata.Dependencies {
		if !have[d.Name] {
			return fmt.Errorf("dependency %s is not in charts/: run `helm dependency build` and keep charts/ in the bundle", d.Name)
		}
	}
	return nil
}

func (r *rendering) skipSchema() bool {
	h := r.in.Options.Helm
	return h != nil && h.SkipSchemaValidation
}

// checkSchemas refuses schemas that would make Helm read files or the network.
func checkSchemas(c *chart.Chart) error {
	if len(c.Schema) > 0 {
		var schema any
		if err := json.Unmarshal(c.Schema, &schema); err != nil {
			return fmt.Errorf("values.schema.json: %w", err)
		}
		if ref := foreignRef(schema); ref != "" {
			return fmt.Errorf("values.schema.json: $ref %q points outside of the schema: nothing is fetched while rendering, copy the definition into the schema", ref)
		}
	}
	for _, d := range c.Dependencies() {
		if err := checkSchemas(d); err != nil {
			return fmt.Errorf("dependency %s: %w", d.Name(), err)
		}
	}
	return nil
}

// foreignRef returns a reference of a JSON schema that does not stay in it. An $id would give "#" another meaning, and
// $schema is fetched if it is none of the well-known ones.
func foreignRef(v any) string {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			s, ok := e.(string)
			switch {
			case !ok:
			case (k == "$ref" || k == "$dynamicRef" || k == "$recursiveRef") && !strings.HasPrefix(s, "#"),
				k == "$schema" && !wellKnownSchema.MatchString(s):
				return s
			}
			if ref := foreignRef(e); ref != "" {
				return ref
			}
		}
	case []any:
		for _, e := range v {
			if ref := foreignRef(e); ref != "" {
				return ref
			}
		}
	}
	return ""
}

// wellKnownSchema are those that the library has in it; any other it would fetch.
var wellKnownSchema = regexp.MustCompile(`^https?://json-schema\.org/((draft-0[467]|draft/2019-09|draft/2020-12)/)?schema#?$`)

// template evaluates dependencies, values, schema and templates, in Helm's order.
func (r *rendering) template(c *chart.Chart) (map[string]string, error) {
	vals, err := r.values()
	if err != nil {
		return nil, err
	}
	caps, err := r.capabilities()
	if err != nil {
		return nil, err
	}
	if kv := c.Metadata.KubeVersion; kv != "" && !chartutil.IsCompatibleRange(kv, caps.KubeVersion.Version) {
		return nil, fmt.Errorf("the chart needs Kubernetes %s, this is %s", kv, caps.KubeVersion.Version)
	}
	if err := chartutil.ProcessDependenciesWithMerge(c, vals); err != nil {
		return nil, err
	}
	if err := chartutil.ValidateReleaseName(r.releaseName()); err != nil {
		return nil, fmt.Errorf("helm.releaseName %q: %w", r.releaseName(), err)
	}
	rel := chartutil.ReleaseOptions{Name: r.releaseName(), Namespace: r.namespace(), Revision: 1, IsInstall: true}
	top, err := chartutil.ToRenderValuesWithSchemaValidation(c, vals, rel, caps, r.skipSchema() || r.trying)
	if err != nil {
		return nil, err
	}
	if h := r.in.Options.Helm; h != nil && len(h.ValuesFrom) > 0 && !r.trying {
		if v, ok := top["Values"].(chartutil.Values); ok {
			r.leaves = leaves(v) // now: templates can change them
		}
		r.leaves = append([]leaf{}, r.leaves...)
	}
	if !r.random {
		return engine.Render(c, top)
	}
	source := &randomSource{in: r.in, seen: map[[32]byte]int{}}
	return engine.RenderWithClientProvider(c, top, source)
}

// templates collects those of a chart and its subcharts.
func templates(c *chart.Chart, to map[string]string) {
	for _, t := range c.Templates {
		to[path.Join(c.ChartFullPath(), t.Name)] = string(t.Data)
	}
	for _, d := range c.Dependencies() {
		templates(d, to)
	}
}

// values are the options' values as Helm reads a values file: numbers become float64, and templates rely on it.
func (r *rendering) values() (map[string]any, error) {
	vals := map[string]any{}
	if h := r.in.Options.Helm; h != nil && h.Values != nil {
		b, err := json.Marshal(h.Values)
		if err != nil {
			return nil, fmt.Errorf("helm.values: %w", err)
		}
		if err := json.Unmarshal(b, &vals); err != nil {
			return nil, fmt.Errorf("helm.values: %w", err)
		}
	}
	merge(vals, r.over)
	return vals, nil
}

// merge puts over's values into vals, map by map.
func merge(vals, over map[string]any) {
	for k, v := range over {
		o, isMap := v.(map[string]any)
		if have, ok := vals[k].(map[string]any); ok && isMap {
			merge(have, o)
		} else if isMap {
			have = map[string]any{}
			merge(have, o)
			vals[k] = have
		} else {
			vals[k] = v
		}
	}
}

func (r *rendering) capabilities() (*chartutil.Capabilities, error) {
	version := r.in.KubeVersion
	if version == "" {
		version = DefaultKubeVersion
	}
	kv, err := chartutil.ParseKubeVersion(version)
	if err != nil {
		return nil, fmt.Errorf("kubernetes version %q: %w", version, err)
	}
	api := r.in.APIVersions
	if len(api) == 0 {
		api = chartutil.DefaultVersionSet
	}
	return &chartutil.Capabilities{KubeVersion: *kv, APIVersions: slices.Clone(api), HelmVersion: chartutil.DefaultCapabilities.HelmVersion}, nil
}

// addRendered adds the objects of rendered templates; partials and NOTES.txt are dropped, hooks sorted out.
func (r *rendering) addRendered(rendered map[string]string) error {
	size := 0
	for _, text := range rendered {
		size += len(text)
	}
	if size > maxRendered {
		return fmt.Errorf("the templates give %d bytes, the limit is %d: split the bundle", size, maxRendered)
	}
	for name, text := range rendered {
		base := path.Base(name)
		if strings.HasPrefix(base, "_") || strings.HasSuffix(base, "NOTES.txt") || strings.TrimSpace(text) == "" {
			delete(rendered, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if err := r.addTemplate(name, rendered[name]); err != nil {
			return err
		}
	}
	return nil
}

// addTemplate adds the objects of one rendered template.
func (r *rendering) addTemplate(name, text string) error {
	docs, err := r.memory.read(helmStream, text, func() ([]document, error) {
		var texts []string
		for _, doc := range splitManifests(text) {
			for _, one := range jsonValues([]byte(doc)) {
				texts = append(texts, string(one))
			}
		}
		out := make([]document, len(texts))
		for i, text := range texts {
			one, err := r.memory.read(helmDocument, text, func() ([]document, error) {
				// With the end of line that cutting took: a text in its last line has one, as Helm's manifests do.
				d, err := parseDocument(text+"\n", false)
				return []document{d}, err
			})
			if err != nil {
				return nil, fmt.Errorf("%s%w", where(name, i, len(texts)), err)
			}
			out[i] = one[0]
		}
		return out, nil
	})
	if err != nil {
		return err
	}
	for i, d := range docs {
		where := where(name, i, len(docs))
		var h *bundlefmt.Hook
		if d.isHook() {
			if h, err = r.hook(fmt.Sprintf("%s: %s %s", where, d.kind, d.name), d.annotations); err != nil {
				return err
			}
			if h == nil {
				continue
			}
		}
		if err := r.add(where, d, h); err != nil {
			return err
		}
	}
	return nil
}

// splitManifests cuts documents exactly as Helm does (a test compares): more leniently than YAML, and charts rely on it.
func splitManifests(text string) (docs []string) {
	text = strings.TrimSpace(text)
	text = strings.TrimPrefix(text, "---")
	for rest, more := text, true; more; {
		var doc string
		doc, rest, more = strings.Cut(strings.TrimLeft(rest, " \t\n\f\r"), "\n---")
		if doc = strings.TrimSpace(doc); doc != "" {
			docs = append(docs, doc)
		}
	}
	return docs
}

var (
	action    = regexp.MustCompile(`(?s)\{\{.*?\}\}`)
	unsteady  = regexp.MustCompile(`\b(rand(?:AlphaNum|Alpha|Ascii|Numeric|Bytes|Int)|shuffle|uuidv4|now|ago|htpasswd|bcrypt|encryptAES|genPrivateKey|genCA(?:WithKey)?|genSelfSignedCert(?:WithKey)?|genSignedCert(?:WithKey)?)\b`)
	tplUse    = regexp.MustCompile(`\btpl\b`)
	lookupUse = regexp.MustCompile(`\blookup\s+["$(.]`)
	quoted    = regexp.MustCompile("(?s)\"(?:[^\"\\\\]|\\\\.)*\"|`[^`]*`|/\\*.*?\\*/")
)

// findFunctions finds where a chart uses functions that do here something else than its author expects. It reads the
// text of templates: it may name a template whose branch was not taken.
func (l *loaded) findFunctions(c *chart.Chart) {
	for _, t := range c.Templates {
		if !mentions(t.Data) {
			continue
		}
		for _, a := range action.FindAll(t.Data, -1) {
			if lookupUse.Match(a) {
				l.functions[t] = append(l.functions[t], "lookup")
			}
			found := unsteady.FindAllString(quoted.ReplaceAllString(string(a), `""`), -1)
			l.functions[t] = append(l.functions[t], found...)
			l.random = l.random || len(found) > 0 || tplUse.Match(a)
		}
	}
	for _, d := range c.Dependencies() {
		l.findFunctions(d)
	}
}

func (r *rendering) noteFunctions(c *chart.Chart, functions map[*chart.File][]string) {
	for _, t := range c.Templates {
		for _, f := range functions[t] {
			file := path.Join(c.ChartFullPath(), t.Name)
			if f == "lookup" {
				r.note("%s uses lookup, which finds nothing: charts are rendered on the hub", file)
				continue
			}
			r.unsteady = true
			r.note("%s uses %s"+randomNote, file, f)
		}
	}
	for _, d := range c.Dependencies() {
		r.noteFunctions(d, functions)
	}
}

const randomNote = ": the value is made of the hub's keys and stays until helm.randomSeed changes"

// IsRandomNote says whether a note of a Result is about random values.
func IsRandomNote(note string) bool { return strings.HasSuffix(note, randomNote) }

// mentions is a quick look, since the expressions cost as much as rendering does: most templates have none of these words.
func mentions(template []byte) bool {
	for _, word := range []string{"lookup", "tpl", "rand", "shuffle", "uuidv4", "now", "ago", "htpasswd", "bcrypt", "encryptAES", "gen"} {
		if bytes.Contains(template, []byte(word)) {
			return true
		}
	}
	return false
}

// helmMessage is an error of Helm on one line.
func helmMessage(err error) string {
	return rewritten.ReplaceAllString(strings.Join(strings.Fields(err.Error()), " "), "$1")
}
