// Package source turns a directory into a Bundle.
//
// The directory is what `fleet.yaml` users already have: a Helm chart, a kustomization or plain YAML, and a fleet.yaml (or
// fleet.yml) with options. fleet.yaml is read strictly: an unknown key is an error that names file, line and the nearest
// known key; a key that exists but is not supported yet is refused by name. Nothing is ignored silently.
//
// All files below the directory become files of the bundle, except
//
//   - fleet.yaml itself, and the files named by helm.valuesFiles: their content goes into the bundle's values (the
//     values.yaml of a chart stays, it holds the chart's defaults);
//   - hidden files and directories (name starts with "."), except .helmignore;
//   - subdirectories with a fleet.yaml of their own: they are bundles of their own.
//
// Symbolic links are followed inside the directory and refused when they lead out of it.
// The same directory gives the same Bundle on every machine.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// Limits of a bundle. Kubernetes refuses objects above 1.5 MB, and the object carries its managed fields besides the
// files.
const (
	MaxFiles   = 4000
	MaxFile    = 8 << 20 // bytes of one file
	MaxRaw     = 24 << 20
	MaxEncoded = 1 << 20 // bytes of all files as they are in the Bundle
	maxDepth   = 24      // directories; a symbolic link that points at its parent ends here
	maxText    = 256 << 10
	largeFile  = 2 << 10
	maxName    = 53 // of a bundle: it becomes the Helm release name
)

// ErrEmpty is returned for a directory without a file that could be deployed.
var ErrEmpty = errors.New("no files to deploy")

// Options say what is not in the directory.
type Options struct {
	Name    string                  // of the bundle, where there is one only; else that of fleet.yaml or of the directory
	Charts  Charts                  // gets charts from elsewhere; nil: they are refused
	Targets []v1alpha1.BundleTarget // what a GitRepo says; they also become restrictions
}

// Charts gets charts that are not in the directory.
type Charts interface {
	// Get returns a chart with its dependencies below charts/.
	Get(ctx context.Context, c ChartRef) (Chart, error)
	// Dependencies returns the files to add below charts/ of a chart, or nil if nothing is missing.
	Dependencies(ctx context.Context, files map[string][]byte) (map[string][]byte, error)
}

// ChartRef is helm.chart, helm.repo and helm.version.
type ChartRef struct{ Chart, Repo, Version string }

// Chart is a chart from elsewhere; Files are by path inside the chart's directory.
type Chart struct {
	Name, Version, Digest string
	Files                 map[string][]byte
}

// Tree reads a directory and returns every bundle in it, sorted by path.
func Tree(ctx context.Context, dir string, o Options) ([]*v1alpha1.Bundle, error) {
	b, err := Dir(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	return []*v1alpha1.Bundle{b}, nil
}

// Dir reads the one bundle of a directory.
func Dir(_ context.Context, dir string, o Options) (*v1alpha1.Bundle, error) {
	name := o.Name
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, plain(err))
	}
	defer root.Close()
	files, err := read(root)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	b, err := bundle(files)
	if err != nil {
		return nil, err
	}
	switch {
	case name != "":
		b.Name = name
	case b.Name == "":
		b.Name = safeName(filepath.Base(abs))
	}
	if !validName(b.Name) {
		return nil, fmt.Errorf("bundle name %q: use lower case letters, digits and '-', at most %d characters", b.Name, maxName)
	}
	return b, nil
}

// read returns all files by path, slashes forward.
func read(root *os.Root) (map[string][]byte, error) {
	r := reader{root: root, files: map[string][]byte{}}
	if err := r.dir("."); err != nil {
		return nil, err
	}
	return r.files, nil
}

type reader struct {
	root  *os.Root
	files map[string][]byte
	total int64
}

func (r *reader) dir(dir string) error {
	if strings.Count(dir, "/") >= maxDepth {
		return fmt.Errorf("%s: directories are nested deeper than %d: is a symbolic link going in circles?", dir, maxDepth)
	}
	f, err := r.root.Open(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, plain(err))
	}
	entries, err := f.ReadDir(-1)
	f.Close()
	if err != nil {
		return fmt.Errorf("%s: %w", dir, plain(err))
	}
	if dir != "." && slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return isFleetYAML(e.Name()) }) {
		return nil // a bundle of its own
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if err := r.entry(path.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) entry(name string) error {
	switch base := path.Base(name); {
	case base == ".fleetignore":
		return fmt.Errorf("%s is not supported yet: remove it, and move files that are not part of the bundle out of the directory", name)
	case strings.HasPrefix(base, ".") && base != ".helmignore":
		return nil
	}
	info, err := r.root.Stat(name)
	if err != nil {
		if l, lerr := r.root.Lstat(name); lerr == nil && l.Mode()&fs.ModeSymlink != 0 {
			to, _ := r.root.Readlink(name)
			return fmt.Errorf("%s: symbolic link to %s leaves the directory, leads nowhere or goes in circles: replace it by the file", name, to)
		}
		return fmt.Errorf("%s: %w", name, plain(err))
	}
	switch {
	case info.IsDir():
		return r.dir(name)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s: neither a file nor a directory", name)
	case info.Size() > MaxFile:
		return fmt.Errorf("%s: file has %d bytes, the limit is %d", name, info.Size(), MaxFile)
	case len(r.files) == MaxFiles:
		return fmt.Errorf("more than %d files: point at a smaller directory", MaxFiles)
	}
	f, err := r.root.Open(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, plain(err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1)) // it may grow while it is read
	if err != nil {
		return fmt.Errorf("%s: %w", name, plain(err))
	}
	if r.total += int64(len(data)); r.total > MaxRaw || len(data) > MaxFile {
		return fmt.Errorf("files have more than %d bytes in all: point at a smaller directory", MaxRaw)
	}
	r.files[name] = data
	return nil
}

// bundle makes a Bundle of files; everything that can be checked without rendering is checked here.
func bundle(files map[string][]byte) (*v1alpha1.Bundle, error) {
	cfg, err := options(files)
	if err != nil {
		return nil, err
	}
	b := &v1alpha1.Bundle{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Bundle"},
		ObjectMeta: metav1.ObjectMeta{Name: cfg.Name, Labels: cfg.Labels},
	}
	used := map[string]bool{}
	at := func(field string, err error) error { return fmt.Errorf("%s: %s: %w", cfg.at(field), field, err) }
	b.Spec.Paused, b.Spec.RolloutStrategy = cfg.Paused, cfg.RolloutStrategy
	if b.Spec.BundleOptions, err = cfg.bundleOptions("", files, used, at); err != nil {
		return nil, err
	}
	for _, list := range []struct {
		field   string
		targets []fleetTarget
	}{{"targets", cfg.Targets}, {"targetCustomizations", cfg.TargetCustomizations}} {
		for i, t := range list.targets {
			bt := t.BundleTarget
			if bt.BundleOptions, err = t.bundleOptions(fmt.Sprintf("%s[%d].", list.field, i), files, used, at); err != nil {
				return nil, err
			}
			if err := target.Check(bt); err != nil {
				return nil, at(fmt.Sprintf("%s[%d]", list.field, i), err)
			}
			b.Spec.Targets = append(b.Spec.Targets, bt)
		}
	}
	if b.Spec.Resources, err = encode(files, used); err != nil {
		return nil, err
	}
	return b, nil
}

// encode turns files into resources, sorted by name: text stays text while the bundle is small.
func encode(files map[string][]byte, used map[string]bool) ([]v1alpha1.BundleResource, error) {
	var names []string
	var text int
	for n, data := range files {
		if isFleetYAML(n) || used[n] {
			continue
		}
		names = append(names, n)
		text += len(data)
	}
	if !slices.ContainsFunc(names, deployable) {
		return nil, fmt.Errorf("%w: the directory holds no chart, no kustomization and no YAML file", ErrEmpty)
	}
	slices.Sort(names)
	var out []v1alpha1.BundleResource
	var size int
	for _, n := range names {
		res := v1alpha1.NewResource(n, files[n])
		if res.Encoding == v1alpha1.EncodingText && text > maxText && len(files[n]) > largeFile {
			if z := v1alpha1.NewCompressedResource(n, files[n]); len(z.Content) < len(res.Content) {
				res = z
			}
		}
		out = append(out, res)
		size += len(res.Name) + len(res.Content) + 40
	}
	if size > MaxEncoded {
		big := slices.MaxFunc(out, func(a, b v1alpha1.BundleResource) int { return len(a.Content) - len(b.Content) })
		return nil, fmt.Errorf("bundle has %d bytes after compression, the limit is %d (Kubernetes stores objects up to 1.5 MB; largest file: %s, %d bytes): split the directory into several bundles, or take large files out of it",
			size, MaxEncoded, big.Name, len(big.Content))
	}
	return out, nil
}

// deployable is what a bundle has at least one of; anything else only accompanies it.
func deployable(name string) bool {
	ext := path.Ext(name)
	return ext == ".yaml" || ext == ".yml" || ext == ".json" || path.Base(name) == "Kustomization"
}

// options parses fleet.yaml, or returns the defaults if there is none.
func options(files map[string][]byte) (*fleetYAML, error) {
	y, both := files["fleet.yaml"]
	m, yml := files["fleet.yml"]
	switch {
	case both && yml:
		return nil, errors.New("fleet.yaml and fleet.yml are both there: remove one")
	case both:
		return parse("fleet.yaml", y)
	case yml:
		return parse("fleet.yml", m)
	}
	if b, ok := files["bundle.yaml"]; ok && !isObject(b) {
		return nil, errors.New("bundle.yaml (the form of 2020) is not supported yet: write its options as fleet.yaml")
	}
	return &fleetYAML{file: "fleet.yaml"}, nil
}

// isObject tells an API object that happens to be called bundle.yaml from the options file of 2020.
func isObject(data []byte) bool {
	var head metav1.TypeMeta
	err := yaml.Unmarshal(data, &head)
	return err != nil || head.Kind != ""
}

func isFleetYAML(name string) bool { return name == "fleet.yaml" || name == "fleet.yml" }

var (
	nameForm  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	notInName = regexp.MustCompile(`[^a-z0-9]+`)
)

func validName(s string) bool { return len(s) <= maxName && nameForm.MatchString(s) }

// safeName makes a bundle name of a directory's.
func safeName(s string) string {
	s = strings.Trim(notInName.ReplaceAllString(strings.ToLower(s), "-"), "-")
	if len(s) > maxName {
		s = strings.Trim(s[:maxName], "-")
	}
	return s
}

// plain drops operation and path from an error: the caller names the path as the user wrote it.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
