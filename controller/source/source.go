// Package source turns directories into Bundles.
//
// A directory is what `fleet.yaml` users already have: a Helm chart, a kustomization or plain YAML, and a fleet.yaml (or
// fleet.yml) with options. docs/bundle-reference.md says what the options mean. Nothing is ignored silently, and all problems are
// found at once: each names file, line and what to do. A key that Fleet ignores has no effect, and is a warning; where it is misspelt,
// or without it more would be deployed, changed or deleted than was meant, it is an error. A bundle with an error is not made; the
// others of the tree are.
//
// # Bundles in a tree
//
// Every directory below with an options file is a bundle; so is the root if any directory without one holds a .yaml or .yml file.
// Hidden directories are not looked into. Options.Paths read parts of a tree: each is a root of its own then, and all files of the
// tree stay in reach.
//
// All files below the directory of a bundle become files of the bundle, except
//
//   - the options file itself, and the files named by helm.valuesFiles: their content goes into the bundle's values (the
//     values.yaml of a chart stays, it holds the chart's defaults);
//   - hidden files and directories (name starts with "."), except .helmignore;
//   - what a .fleetignore in the bundle names;
//   - directories with an options file of their own: they are bundles of their own;
//   - chart archives that helm.chart names: they are unpacked.
//
// Charts from elsewhere are fetched (Options.Charts) when the Bundle is made, and put below .charts/; nobody else ever fetches
// anything. Symbolic links are followed inside the tree and refused when they lead out of it.
// The same tree gives the same Bundles on every machine.
//
// The bundle.yaml of 2020, with its own layout of directories, is translated; see bundle2020.go.
package source

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// ErrEmpty is returned for a directory without a file that could be deployed.
var ErrEmpty = errors.New("no files to deploy")

// Options say what is not in the directory.
type Options struct {
	Name    string                  // of the bundle, where there is one only; it wins over the name in fleet.yaml
	Base    string                  // what names made of paths begin with: the GitRepo's; default: the directory's
	Charts  Charts                  // gets charts from elsewhere; nil: they are refused
	Targets []v1alpha1.BundleTarget // which clusters a GitRepo is for; they also become restrictions
	Paths   []string                // directories to look for bundles in, or patterns of them (multi/*/web); none: all
}

// Found is a bundle, and where it is below the directory that was read.
type Found struct {
	Bundle *v1alpha1.Bundle
	Dir    string // "." is the directory itself
	File   string // with the options; empty: there is none
}

// Dir reads a directory that holds one bundle, at its root or below. An error names the bundles if there are several. Warnings are
// dropped: Tree returns them.
func Dir(ctx context.Context, dir string, o Options) (*v1alpha1.Bundle, error) {
	found, ps, err := read(ctx, dir, o, true)
	if err != nil {
		return nil, err
	}
	if err := ps.Err(); err != nil {
		return nil, err
	}
	return found[0].Bundle, nil
}

func several(dir string, found []place) Problems {
	var dirs []string
	for _, p := range found {
		if p.dir != "." {
			dirs = append(dirs, filepath.Join(dir, filepath.FromSlash(p.dir)))
		}
	}
	more := ""
	if n := len(dirs) - 10; n > 0 {
		dirs, more = dirs[:10], fmt.Sprintf(" and %d more", n)
	}
	return Problems{{Message: fmt.Sprintf("%s holds %d bundles: name the directory of one of them: %s%s", dir, len(found), strings.Join(dirs, ", "), more)}}
}

// Tree reads a directory and returns the bundles in it, sorted by path, and the problems: a bundle with an error is left out, the
// others are there. The error is about the directory as a whole.
func Tree(ctx context.Context, dir string, o Options) ([]Found, Problems, error) {
	return read(ctx, dir, o, o.Name != "")
}

func read(ctx context.Context, dir string, o Options, one bool) ([]Found, Problems, error) {
	t, err := open(dir, o)
	if err != nil {
		return nil, nil, err
	}
	defer t.root.Close()
	return t.build(ctx, dir, one)
}

// Driven reads the one bundle in the directory base below dir, with options from a file of any name in it or below. Nothing is
// looked for: directories with a fleet.yaml of their own are files of the bundle. An empty name of the file means fleet.yaml.
func Driven(ctx context.Context, dir, base, options string, o Options) (*v1alpha1.Bundle, error) {
	t, err := open(dir, o)
	if err != nil {
		return nil, err
	}
	defer t.root.Close()
	if base, err = inside(base); err == nil && options != "" {
		options, err = inside(options)
	}
	if err != nil {
		return nil, problems("", err)
	}
	p := place{dir: base, options: options, driven: true}
	if options == "" {
		entries, err := readDir(t.root, base)
		if err != nil {
			return nil, problems(base, err)
		}
		if p.options, err = optionsFile(t.root, base, entries); err != nil {
			return nil, problems(base, err)
		}
	}
	b, _, err := t.bundle(ctx, p)
	if err != nil {
		return nil, problems(base, err)
	}
	return b, nil
}

// tree is a directory that is read.
type tree struct {
	root  *os.Root
	base  string // begins the names of bundles
	o     Options
	taken map[string]bool // values files that bundles take from elsewhere in the tree
}

// place is where a bundle is.
type place struct {
	dir     string // below the root; "."
	options string // name of the options file; empty: none
	driven  bool
}

func open(dir string, o Options) (*tree, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, plain(err))
	}
	t := &tree{root: root, base: o.Base, o: o, taken: map[string]bool{}}
	if t.base == "" {
		t.base = cleanName(filepath.Base(abs))
	}
	return t, nil
}

// build makes the bundles of the tree, sorted by path. A root without options whose files turn out to belong to others is none.
//
// With one set it makes none if there are several.
func (t *tree) build(ctx context.Context, dir string, one bool) ([]Found, Problems, error) {
	roots, ps, err := t.roots()
	if err != nil {
		return nil, nil, err
	}
	w := walker{root: t.root}
	var plain []place // roots without options: they come last, since what others take from them is no file of theirs
	for _, r := range roots {
		known := len(w.found) + len(w.problems)
		holds, err := w.dir(r, strings.Count(r, "/"))
		if err != nil {
			return nil, problems(r, err), nil
		}
		if holds || len(w.found)+len(w.problems) == known {
			plain = append(plain, place{dir: r})
		}
	}
	byPath := func(a, b place) int { return strings.Compare(a.dir, b.dir) }
	slices.SortFunc(w.found, byPath)
	w.found = slices.Compact(w.found)
	ps = append(ps, w.problems...)
	places := append(slices.Clone(w.found), plain...)
	if one && len(w.found) > 1 {
		return nil, several(dir, places), nil
	}
	var out []Found
	first := map[string]string{} // name → where
	for _, p := range places {
		b, warnings, err := t.bundle(ctx, p)
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		ps = append(ps, warnings...)
		if errors.Is(err, ErrEmpty) && len(places)+len(w.problems) > 1 {
			if p.options != "" {
				ps = append(ps, Problem{File: path.Join(p.dir, p.options), Warning: true, err: ErrEmpty,
					Message: "there is nothing to deploy in this directory: no bundle is made of it"})
			}
			continue
		}
		if err != nil {
			ps = append(ps, problems(p.dir, err)...)
			continue
		}
		where := path.Join(p.dir, p.options)
		if other, ok := first[b.Name]; ok {
			ps = append(ps, Problem{File: where, Message: fmt.Sprintf("bundle name %q is that of %s as well: give one of them another name", b.Name, other)})
			continue
		}
		first[b.Name] = where
		f := Found{Bundle: b, Dir: p.dir}
		if p.options != "" {
			f.File = where
		}
		out = append(out, f)
	}
	slices.SortStableFunc(out, func(a, b Found) int { return strings.Compare(a.Dir, b.Dir) })
	switch {
	case len(out) == 0 && len(ps.Errors()) == 0:
		ps = append(ps, empty())
	case one && len(out) != 1 && len(ps.Errors()) == 0:
		return nil, several(dir, places), nil
	}
	return out, ps, nil
}

// roots are the directories that bundles are looked for in.
func (t *tree) roots() ([]string, Problems, error) {
	if len(t.o.Paths) == 0 {
		return []string{"."}, nil, nil
	}
	var roots []string
	var ps Problems
	for _, pattern := range t.o.Paths {
		clean, err := inside(filepath.ToSlash(strings.TrimLeft(pattern, "/")))
		if err != nil {
			return nil, nil, fmt.Errorf("path %w", err)
		}
		matches, err := fs.Glob(t.root.FS(), clean)
		if err != nil {
			return nil, nil, fmt.Errorf("path %q is no pattern of directories: %w", pattern, err)
		}
		matches = slices.DeleteFunc(matches, func(m string) bool {
			info, err := t.root.Stat(m)
			return err != nil || !info.IsDir()
		})
		if len(matches) == 0 {
			ps = append(ps, Problem{Message: fmt.Sprintf("path %q: there is no such directory", pattern)})
		}
		roots = append(roots, matches...)
	}
	slices.Sort(roots)
	return slices.Compact(roots), ps, nil
}

func empty() Problem {
	return Problem{Message: ErrEmpty.Error() + ": the directory holds no chart, no kustomization and no YAML file", err: ErrEmpty}
}

type walker struct {
	root     *os.Root
	found    []place
	problems Problems
	seen     int
}

// dir returns whether the directory, or one below that is no bundle of its own, holds YAML files. Directories behind symbolic
// links are not looked for: what they hold is part of the bundle they are in.
func (w *walker) dir(dir string, depth int) (holds bool, err error) {
	if depth > maxDepth {
		return false, Problem{File: dir, Message: fmt.Sprintf("directories are nested deeper than %d", maxDepth)}
	}
	entries, err := readDir(w.root, dir)
	if err != nil {
		return false, err
	}
	if w.seen += len(entries); w.seen > maxEntries {
		return false, Problem{Message: fmt.Sprintf("more than %d files and directories: point at a smaller directory", maxEntries)}
	}
	options, wrong := optionsFile(w.root, dir, entries)
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasPrefix(name, "."):
		case e.IsDir():
			sub, err := w.dir(path.Join(dir, name), depth+1)
			if err != nil {
				return false, err
			}
			holds = holds || sub
		default:
			holds = holds || path.Ext(name) == ".yaml" || path.Ext(name) == ".yml"
		}
	}
	switch {
	case wrong != nil:
		w.problems = append(w.problems, problems(dir, wrong)...)
		return false, nil
	case options != "":
		w.found = append(w.found, place{dir: dir, options: options})
		return false, nil
	}
	return holds, nil
}

const maxName = 53 // of a bundle: it becomes the Helm release name

var (
	nameForm  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	notInName = regexp.MustCompile(`[^a-zA-Z0-9-]+`)
	dashes    = regexp.MustCompile(`-+`)
)

func validName(s string) bool { return len(s) <= maxName && nameForm.MatchString(s) }

// name makes the name of the bundle in a directory: `<base>-<path>`. It is the name that Fleet gives, since dependsOn of other
// bundles holds it: a path that changes while it is made safe gets 8 digits of its MD5 sum, a name that is too long 5.
func (t *tree) name(p place) string {
	s := path.Join(t.base, p.dir)
	if p.driven && p.options != "" {
		s = path.Join(s, strings.TrimSuffix(p.options, path.Ext(p.options)))
	}
	s = strings.ReplaceAll(s, "/", "-")
	if notInName.MatchString(s) || strings.ToLower(s) != s {
		s += "-" + sum(s, 8)
	}
	return shorten(cleanName(s))
}

// cleanName replaces what cannot be in a name.
func cleanName(s string) string {
	s = dashes.ReplaceAllString(notInName.ReplaceAllString(strings.ToLower(s), "-"), "-")
	return strings.Trim(s, "-")
}

func shorten(s string) string {
	if len(s) <= maxName {
		return s
	}
	return strings.TrimSuffix(s[:maxName-6], "-") + "-" + sum(s, 5)
}

// sum tells names apart; nothing is secured by it.
func sum(s string, digits int) string {
	h := md5.Sum([]byte(s))
	return hex.EncodeToString(h[:])[:digits]
}
