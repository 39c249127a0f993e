// Package render turns the files of a bundle and the options of one target into the final objects: a rendered bundle.
//
// # Kinds
//
//   - Helm: helm.chart, or a Chart.yaml at the root.
//   - Kustomize: kustomize.dir, or a kustomization.yaml at the root.
//   - Both: the chart is rendered and its objects become one more resource of the kustomization.
//   - Plain YAML otherwise: every .yaml, .yml and .json file, after the overlays, except below overlays/ and below
//     directories with a Chart.yaml or fleet.yaml of their own. Files below templates/ are Helm templates.
//
// # What comes out
//
// The same Input gives the same bytes: objects are in a fixed order (namespaces, CRDs, then Helm's order of kinds, then
// group, kind, namespace, name), lists are taken apart, an object that appears twice is refused with both its origins.
// Namespaces are not filled in here: the agent does that from its policy. Nothing is added to the objects.
//
// Charts that use random or time functions (randAlphaNum, genCA, uuidv4, now …) are no exception: their values are made of
// Input.Random, see there. Result.Notes names them.
//
// # Hooks
//
// Helm's hooks are objects as all others; Handling.Hooks says which they are, at which events of a release they are
// created, and when they go again. They stand there in the order in which those of one event run: weight, name, kind.
// Test hooks are left out. A hook that a chart writes once for each event is one hook of several events. Next to a
// kustomization hooks stay as the chart made them: Helm gives them to no post-renderer either.
//
// # Values of sites
//
// helm.valuesFrom names values that never leave a site. What a chart only inserts becomes a token in the objects, and
// Handling.SiteValues says where the value comes from; everything that a chart compares, changes, makes a name of or does not use
// is fixed, and so are numbers, lists and values without a default. See sitevalues.go for how that is found out.
//
// # What a bundle cannot do
//
// Charts and kustomizations come from tenants. Rendering reads nothing but the Input: no network, no files, no commands,
// no cluster (lookup returns nothing, said in Result.Notes). Sizes, counts, nesting and YAML aliases are limited, and Cache limits
// the time. What is not limited is the memory of a Helm template while it runs: what ends the process is not tried for ever, see
// suspects.
package render

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// DefaultKubeVersion is what charts see when a cluster's version is not known yet.
const DefaultKubeVersion = "v1.36.0"

// Limits of the input, beside those of bundlefmt for the result.
const (
	maxFile = 8 << 20
	maxRaw  = 32 << 20

	maxRendered = 64 << 20 // text that templates give; objects are smaller than it
)

// Input is everything a rendering depends on.
type Input struct {
	Name      string // of the bundle; the default of .Release.Name
	Resources []v1alpha1.BundleResource
	Options   v1alpha1.BundleOptions

	Ignore *v1alpha1.Ignore      // of the BundleSpec
	Health []v1alpha1.HealthRule // of the BundleSpec

	// Vars template the files that are no chart's; nil: they are taken as they are.
	Vars *target.Vars

	// Set instead of Vars by expanded.
	files   map[string][]byte
	variant string // identifies those files that templates changed

	// Extra objects that are part of the bundle: the downstream resources.
	Extra []bundlefmt.Object

	// KubeVersion and APIVersions are what the cluster has. APIVersions holds "group/version" and "group/version/Kind", as
	// charts ask for both. Empty: defaults.
	KubeVersion string
	APIVersions []string

	Random Random // what random values are made of

	// ResourcesKey spares Key from hashing the files again when one bundle is rendered for many clusters: set it to
	// ResourcesKey(Resources), or leave it zero.
	ResourcesKey [32]byte
}

// Result is a rendered bundle and what its owner should know about it.
type Result struct {
	Bundle *bundlefmt.Bundle
	Notes  []string // one sentence each, sorted; for the bundle's status
}

// Render returns the objects of one target.
func Render(in Input) (*bundlefmt.Bundle, error) {
	r, err := WithNotes(in)
	return r.Bundle, err
}

// WithNotes is Render, with notes.
func WithNotes(in Input) (Result, error) {
	if in.ResourcesKey == [32]byte{} {
		in.ResourcesKey = [32]byte{1} // there are no others in this memory
	}
	return render(in, newMemory(DefaultCacheSize))
}

func render(in Input, m *memory) (res Result, err error) {
	// Helm and kustomize run on foreign input here and have panicked before; one bundle must not take the hub down.
	defer func() {
		if p := recover(); p != nil {
			res, err = Result{}, fmt.Errorf("render: this bundle makes the renderer fail: %v", p)
		}
	}()
	src, err := m.sources(in)
	if err != nil {
		return Result{}, err
	}
	if in, err = in.expanded(src.files); err != nil {
		return Result{}, err
	}
	r := &rendering{in: in, memory: m, sources: src, files: in.files, notes: map[string]bool{}}
	if err := r.run(); err != nil {
		return Result{}, err
	}
	for _, o := range in.Extra {
		if err := r.add("downstreamResources", document{objects: []bundlefmt.Object{o}}, nil); err != nil {
			return Result{}, err
		}
	}
	b, err := r.bundle()
	if err != nil {
		return Result{}, err
	}
	notes := make([]string, 0, len(r.notes))
	for n := range r.notes {
		notes = append(notes, n)
	}
	slices.Sort(notes)
	return Result{Bundle: b, Notes: notes}, nil
}

// Key identifies the result: equal keys, equal bytes. Options that only the agent acts on are not part of it.
func (in Input) Key() [32]byte {
	h := sha256.New()
	put := func(b []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	put([]byte("shoal render 3")) // count up when the same input begins to give other bytes
	put([]byte(in.Name))
	opts := struct {
		v1alpha1.BundleOptions
		Ignore *v1alpha1.Ignore
		Health []v1alpha1.HealthRule
	}{shaping(in.Options), in.Ignore, in.Health}
	js, err := json.Marshal(opts)
	if err != nil {
		js = fmt.Append(nil, opts) // cannot be stored in Kubernetes, so cannot come from there; fmt sorts maps too
	}
	put(js)
	switch {
	case in.Vars != nil:
		put([]byte("vars " + in.Vars.Key()))
	default:
		put([]byte(in.variant))
	}
	for _, o := range in.Extra {
		put(o.JSON)
	}
	put([]byte(in.KubeVersion))
	api := slices.Clone(in.APIVersions)
	slices.Sort(api)
	put([]byte(strings.Join(slices.Compact(api), "\n")))
	put(in.Random.Secret[:])
	put([]byte(in.Random.Since.UTC().Format(time.RFC3339)))
	rk := in.ResourcesKey
	if rk == [32]byte{} {
		rk = ResourcesKey(in.Resources)
	}
	put(rk[:])
	return [32]byte(h.Sum(nil))
}

// shaping returns the options that the result depends on, without those that only the agent acts on.
func shaping(o v1alpha1.BundleOptions) v1alpha1.BundleOptions {
	o.CorrectDrift, o.KeepResources, o.CreateNamespace = nil, false, nil
	o.ServiceAccount, o.ForceSyncGeneration, o.DownstreamResources = "", 0, nil // the latter are in Extra
	if o.Helm != nil {
		h := *o.Helm
		h.Repo, h.Version = "", "" // source has put the chart into the bundle
		h.TimeoutSeconds, h.MaxHistory = 0, 0
		h.TakeOwnership, h.Force, h.Atomic, h.WaitForJobs = false, false, false, false
		h.DisableDNS, h.DisablePreProcess, h.DisableDependencyUpdate = false, false, false
		o.Helm = &h
	}
	return o
}

// ResourcesKey identifies files; their order does not matter.
func ResourcesKey(rs []v1alpha1.BundleResource) [32]byte {
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b v1alpha1.BundleResource) int { return strings.Compare(a.Name, b.Name) })
	h := sha256.New()
	var n [8]byte
	for _, r := range rs {
		for _, s := range []string{r.Name, string(r.Encoding), r.Content} {
			binary.BigEndian.PutUint64(n[:], uint64(len(s)))
			h.Write(n[:])
			h.Write([]byte(s))
		}
	}
	return [32]byte(h.Sum(nil))
}

// decode returns the files by name.
func decode(rs []v1alpha1.BundleResource) (map[string][]byte, error) {
	files := make(map[string][]byte, len(rs))
	var total int64
	for _, r := range rs {
		if c := path.Clean(r.Name); c != r.Name || path.IsAbs(c) || c == "." || c == ".." || strings.HasPrefix(c, "../") || strings.ContainsAny(c, "\\\x00") {
			return nil, fmt.Errorf("resources: %q is no path inside the bundle", r.Name)
		}
		if _, ok := files[r.Name]; ok {
			return nil, fmt.Errorf("resources: %s appears twice", r.Name)
		}
		data, err := r.Decode(maxFile)
		if err != nil {
			return nil, err
		}
		if total += int64(len(data)); total > maxRaw {
			return nil, fmt.Errorf("resources: files have more than %d bytes in all", maxRaw)
		}
		files[r.Name] = data
	}
	return files, nil
}

// rendering is one call of Render on its way.
type rendering struct {
	in      Input
	memory  *memory
	sources *sources
	files   map[string][]byte // those of the input, templated
	notes   map[string]bool
	objs    []object

	handling bundlefmt.Handling

	// For site values.
	over          map[string]any  // values over all others, in a trial
	trying        bool            // this is a trial
	leaves        []leaf          // of the chart's values, once rendered
	compared      map[string]bool // names of values that stand in comparisons
	templateBytes int
	unsteady      bool // the chart has random functions
	random        bool // its templates were rewritten for them
}

// object is an object on its way into the bundle, and where it came from.
type object struct {
	bundlefmt.Object
	origin string
	hook   *bundlefmt.Hook // nil: no hook; Object is not set yet
}

func (r *rendering) note(format string, args ...any) { r.notes[fmt.Sprintf(format, args...)] = true }

// namespace is where unnamespaced objects go: .Release.Namespace.
func (r *rendering) namespace() string {
	switch o := r.in.Options; {
	case o.Namespace != "":
		return o.Namespace
	case o.DefaultNamespace != "":
		return o.DefaultNamespace
	}
	return "default"
}

func (r *rendering) releaseName() string {
	if h := r.in.Options.Helm; h != nil && h.ReleaseName != "" {
		return h.ReleaseName
	}
	return r.in.Name
}

// expanded templates the files that are no chart's: manifests, overlays and patches, kustomizations. Clusters for which the
// templates give the same then have the same Key.
func (in Input) expanded(files map[string][]byte) (Input, error) {
	if in.files != nil {
		return in, nil
	}
	in.files = files
	if in.Vars == nil {
		return in, nil
	}
	r := &rendering{in: in, files: files}
	chart, isChart, err := r.chartDir()
	if err != nil {
		return in, err
	}
	_, isKustomize, err := r.kustomizeDir()
	if err != nil {
		return in, err
	}
	in.files = maps.Clone(files)
	h := sha256.New()
	for _, name := range sortedNames(files) {
		switch {
		case !isYAML(name) && path.Ext(name) != ".json", apart(files, name), strings.HasPrefix(name, "templates/"):
			continue
		case isChart && chart == "." && (!isKustomize || ofChart(name)):
			continue
		}
		text, err := in.Vars.Expand(name, string(files[name]))
		if err != nil {
			return in, err
		}
		if text != string(files[name]) {
			in.files[name] = []byte(text)
			fmt.Fprintf(h, "%d %s %d %s\n", len(name), name, len(text), text)
		}
	}
	in.Vars, in.variant = nil, fmt.Sprintf("templated %x", h.Sum(nil))
	return in, nil
}

// ofChart says whether a file at the root, where both a chart and a kustomization are, is the chart's.
func ofChart(name string) bool {
	dir, _, _ := strings.Cut(name, "/")
	return slices.Contains([]string{"Chart.yaml", "values.yaml", "values.schema.json", "crds", "charts", "files"}, dir)
}

func (r *rendering) run() error {
	if h := r.in.Options.Helm; h != nil && len(h.ValuesFrom) > 0 {
		return r.withSiteValues()
	}
	return r.engines()
}

// engines adds the objects of the bundle's files.
func (r *rendering) engines() error {
	chart, isChart, err := r.chartDir()
	if err != nil {
		return err
	}
	kdir, isKustomize, err := r.kustomizeDir()
	if err != nil {
		return err
	}
	if y := r.in.Options.YAML; (isChart || isKustomize) && y != nil && len(y.Overlays) > 0 {
		return errors.New("yaml.overlays: overlays are for plain YAML, this bundle has a chart or a kustomization: use helm.values or kustomize.dir")
	}
	switch {
	case isChart && isKustomize:
		if err := r.helm(chart, func() map[string][]byte { return below(r.sources.files, chart) }); err != nil {
			return err
		}
		var hooks, extra []object
		for _, o := range r.objs {
			if o.hook != nil {
				hooks = append(hooks, o)
			} else {
				extra = append(extra, o)
			}
		}
		r.objs = hooks
		return r.kustomize(kdir, extra)
	case isChart:
		return r.helm(chart, func() map[string][]byte { return below(r.sources.files, chart) })
	case isKustomize:
		return r.kustomize(kdir, nil)
	}
	return r.yaml()
}

func (r *rendering) chartDir() (dir string, ok bool, err error) {
	if h := r.in.Options.Helm; h != nil && h.Chart != "" {
		dir = path.Clean(h.Chart)
		if _, ok := r.files[path.Join(dir, "Chart.yaml")]; !ok {
			return "", false, fmt.Errorf("helm.chart: %q holds no Chart.yaml in the bundle", h.Chart)
		}
		return dir, true, nil
	}
	_, ok = r.files["Chart.yaml"]
	return ".", ok, nil
}

func (r *rendering) kustomizeDir() (dir string, ok bool, err error) {
	if k := r.in.Options.Kustomize; k != nil && k.Dir != "" && path.Clean(k.Dir) != "." {
		dir = path.Clean(k.Dir)
		if kustomizationFile(r.files, dir) == "" {
			return "", false, fmt.Errorf("kustomize.dir: %q holds no kustomization.yaml in the bundle", k.Dir)
		}
		return dir, true, nil
	}
	return ".", kustomizationFile(r.files, ".") != "", nil
}

// below returns the files below a directory, by their path in it.
func below(files map[string][]byte, dir string) map[string][]byte {
	if dir == "." {
		return files
	}
	out := map[string][]byte{}
	for name, data := range files {
		if rest, ok := strings.CutPrefix(name, dir+"/"); ok {
			out[rest] = data
		}
	}
	return out
}

func sortedNames(files map[string][]byte) []string {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
