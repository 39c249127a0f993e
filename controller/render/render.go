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
// The exceptions to "same bytes" are charts that use random or time functions (randAlphaNum, genCA, uuidv4, now …).
// Result.Notes names them. Render such an Input once and keep the result (Cache does), or every pass makes a new release.
//
// # Hooks
//
// Test hooks are left out, as with Helm. Install and upgrade hooks that only describe state (ConfigMap, ServiceAccount,
// RBAC …) are ordinary objects, said in Result.Notes. Those that run something (Job, Pod …) are refused by name: as
// ordinary objects they would run at the wrong time and could never be changed. Delete and rollback hooks are left out,
// said in Result.Notes.
//
// # What a bundle cannot do
//
// Charts and kustomizations come from tenants. Rendering reads nothing but the Input: no network, no files, no commands,
// no cluster (lookup returns nothing, said in Result.Notes). Sizes, counts, nesting and YAML aliases are limited. What is
// not limited is the time and memory of a Helm template itself.
package render

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
)

// DefaultKubeVersion is what charts see when a cluster's version is not known yet.
const DefaultKubeVersion = "v1.36.0"

// Limits of the input, beside those of bundlefmt for the result.
const (
	maxFile = 8 << 20
	maxRaw  = 32 << 20
)

// Input is everything a rendering depends on.
type Input struct {
	Name      string // of the bundle; the default of .Release.Name
	Resources []v1alpha1.BundleResource
	Options   v1alpha1.BundleOptions

	// KubeVersion and APIVersions are what the cluster has. APIVersions holds "group/version" and "group/version/Kind", as
	// charts ask for both. Empty: defaults.
	KubeVersion string
	APIVersions []string

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
func WithNotes(in Input) (res Result, err error) {
	// Helm and kustomize run on foreign input here and have panicked before; one bundle must not take the hub down.
	defer func() {
		if p := recover(); p != nil {
			res, err = Result{}, fmt.Errorf("render: this bundle makes the renderer fail: %v", p)
		}
	}()
	files, err := decode(in.Resources)
	if err != nil {
		return Result{}, err
	}
	r := &rendering{in: in, files: files, notes: map[string]bool{}}
	if err := r.run(); err != nil {
		return Result{}, err
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
	put([]byte("shoal render 1")) // count up when the same input begins to give other bytes
	put([]byte(in.Name))
	o := in.Options
	o.CorrectDrift, o.KeepResources, o.CreateNamespace = nil, false, nil
	opts, err := json.Marshal(o)
	if err != nil {
		opts = fmt.Append(nil, o) // cannot be stored in Kubernetes, so cannot come from there; fmt sorts maps too
	}
	put(opts)
	put([]byte(in.KubeVersion))
	api := slices.Clone(in.APIVersions)
	slices.Sort(api)
	put([]byte(strings.Join(slices.Compact(api), "\n")))
	rk := in.ResourcesKey
	if rk == [32]byte{} {
		rk = ResourcesKey(in.Resources)
	}
	put(rk[:])
	return [32]byte(h.Sum(nil))
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
	in    Input
	files map[string][]byte
	notes map[string]bool
	objs  []object

	handling bundlefmt.Handling
}

// object is an object on its way into the bundle, and where it came from.
type object struct {
	bundlefmt.Object
	origin string
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

func (r *rendering) run() error {
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
		if err := r.helm(below(r.files, chart)); err != nil {
			return err
		}
		extra := r.objs
		r.objs = nil
		return r.kustomize(kdir, extra)
	case isChart:
		return r.helm(below(r.files, chart))
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
	if k := r.in.Options.Kustomize; k != nil && k.Dir != "" {
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
