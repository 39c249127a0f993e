package source

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
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
	maxEntries = 500_000 // of a tree
)

// reader reads the files of one bundle.
type reader struct {
	root  *os.Root
	base  string // directory of the bundle below root
	deep  bool   // directories with a fleet.yaml of their own belong to it
	files map[string][]byte
	total int64
}

// readFiles returns the files of the bundle in a directory by path, slashes forward.
func readFiles(root *os.Root, base string, deep bool) (map[string][]byte, error) {
	r := reader{root: root, base: base, deep: deep, files: map[string][]byte{}}
	if err := r.dir(".", nil); err != nil {
		return nil, err
	}
	return r.files, nil
}

func (r *reader) dir(dir string, ignored []pattern) error {
	at := path.Join(r.base, dir)
	if strings.Count(dir, "/") >= maxDepth {
		return Problem{File: at, Message: fmt.Sprintf("directories are nested deeper than %d: is a symbolic link going in circles?", maxDepth)}
	}
	entries, err := readDir(r.root, at)
	if err != nil {
		return err
	}
	if dir != "." && !r.deep {
		if own, err := optionsFile(r.root, at, entries); err != nil || own != "" {
			return nil // a bundle of its own, and so are its errors
		}
	}
	if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == ignoreFile }) {
		file := path.Join(at, ignoreFile)
		data, err := readFile(r.root, file, MaxFile)
		if err != nil {
			return err
		}
		more, ps := parseIgnore(file, data)
		if len(ps) > 0 {
			return ps
		}
		ignored = slices.Concat(ignored, more)
	}
	for _, e := range entries {
		if name := e.Name(); !strings.HasPrefix(name, ".") || name == ".helmignore" {
			if err := r.entry(path.Join(dir, name), ignored); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reader) entry(name string, ignored []pattern) error {
	at := path.Join(r.base, name)
	info, err := r.root.Stat(at)
	if err != nil && slices.ContainsFunc(ignored, func(p pattern) bool { return p.matches(path.Base(name), false) }) {
		return nil
	}
	if err != nil {
		if l, lerr := r.root.Lstat(at); lerr == nil && l.Mode()&fs.ModeSymlink != 0 {
			to, _ := r.root.Readlink(at)
			return Problem{File: at, Message: fmt.Sprintf("symbolic link to %s leaves the directory, leads nowhere or goes in circles: replace it by the file", to)}
		}
		return Problem{File: at, Message: plain(err).Error(), err: err}
	}
	switch {
	case slices.ContainsFunc(ignored, func(p pattern) bool { return p.matches(path.Base(name), info.IsDir()) }):
		return nil
	case info.IsDir():
		return r.dir(name, ignored)
	case !info.Mode().IsRegular():
		return Problem{File: at, Message: "neither a file nor a directory"}
	case len(r.files) == MaxFiles:
		return Problem{Message: fmt.Sprintf("more than %d files: point at a smaller directory", MaxFiles)}
	}
	data, err := readFile(r.root, at, MaxFile)
	if err != nil {
		return err
	}
	if r.total += int64(len(data)); r.total > MaxRaw {
		return Problem{Message: fmt.Sprintf("files have more than %d bytes in all: point at a smaller directory", MaxRaw)}
	}
	r.files[name] = data
	return nil
}

// readDir returns the entries of a directory, sorted by name.
func readDir(root *os.Root, dir string) ([]fs.DirEntry, error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, Problem{File: dir, Message: plain(err).Error(), err: err}
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil {
		return nil, Problem{File: dir, Message: plain(err).Error(), err: err}
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// readFile reads a regular file of at most limit bytes; more than that is never held.
func readFile(root *os.Root, name string, limit int64) ([]byte, error) {
	problem := func(err error) error { return Problem{File: name, Message: plain(err).Error(), err: err} }
	info, err := root.Stat(name) // before it is opened: opening a pipe waits
	if err != nil {
		return nil, problem(err)
	}
	if !info.Mode().IsRegular() {
		return nil, Problem{File: name, Message: "is no file"}
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, problem(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1)) // it may grow while it is read
	if err != nil {
		return nil, problem(err)
	}
	if n := max(info.Size(), int64(len(data))); n > limit {
		return nil, Problem{File: name, Message: fmt.Sprintf("file has %d bytes, the limit is %d", n, limit)}
	}
	return data, nil
}

// optionsFile is the name of the file that makes a directory a bundle: fleet.yaml, fleet.yml, or the bundle.yaml of 2020.
// Empty: there is none.
func optionsFile(root *os.Root, dir string, entries []fs.DirEntry) (string, error) {
	has := func(name string) bool {
		return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name && !e.IsDir() })
	}
	name := ""
	switch {
	case has("fleet.yaml") && has("fleet.yml"):
		return "", Problem{File: path.Join(dir, "fleet.yml"), Message: "fleet.yaml is there as well: remove one"}
	case has("fleet.yaml"):
		name = "fleet.yaml"
	case has("fleet.yml"):
		name = "fleet.yml"
	}
	if !has(bundleFile) {
		return name, nil
	}
	data, err := readFile(root, path.Join(dir, bundleFile), MaxFile)
	switch {
	case err != nil:
		return "", err
	case !is2020(data):
		return name, nil
	case name != "":
		return "", Problem{File: path.Join(dir, bundleFile), Message: fmt.Sprintf("%s is there as well, and this looks like its form of 2020: remove one, or rename this one if it is something else", name)}
	}
	return bundleFile, nil
}

// plain drops operation and path from an error: the caller names the path as the user wrote it.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
