package render

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"

	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// bundleFS is the bundle as kustomize reads it: files by absolute path, in memory, for reading only. kustomize's own file system in
// memory refuses names with a + and other characters, which versions of charts and files of people have.
type bundleFS struct {
	files map[string][]byte
	dirs  map[string]bool
}

func newBundleFS() *bundleFS {
	return &bundleFS{files: map[string][]byte{}, dirs: map[string]bool{"/": true}}
}

// add puts a file there, and the directories it is in.
func (f *bundleFS) add(name string, data []byte) error {
	for dir := path.Dir(name); !f.dirs[dir]; dir = path.Dir(dir) {
		if _, isFile := f.files[dir]; isFile {
			return fmt.Errorf("%s is both a file and a directory", path.Base(dir))
		}
		f.dirs[dir] = true
	}
	if f.dirs[name] {
		return fmt.Errorf("%s is both a file and a directory", path.Base(name))
	}
	f.files[name] = data
	return nil
}

func absolute(name string) string { return path.Join("/", filepath.ToSlash(name)) }

func missing(name string) error { return fmt.Errorf("'%s' doesn't exist", name) }

func (f *bundleFS) Exists(name string) bool {
	name = absolute(name)
	_, ok := f.files[name]
	return ok || f.dirs[name]
}

func (f *bundleFS) IsDir(name string) bool { return f.dirs[absolute(name)] }

func (f *bundleFS) ReadFile(name string) ([]byte, error) {
	data, ok := f.files[absolute(name)]
	switch {
	case f.IsDir(name):
		return nil, fmt.Errorf("'%s' is a directory", name)
	case !ok:
		return nil, missing(name)
	}
	return slices.Clone(data), nil
}

func (f *bundleFS) CleanedAbs(name string) (filesys.ConfirmedDir, string, error) {
	at := absolute(name)
	switch {
	case f.dirs[at]:
		return filesys.ConfirmedDir(at), "", nil
	case !f.Exists(at):
		return "", "", missing(name)
	}
	return filesys.ConfirmedDir(path.Dir(at)), path.Base(at), nil
}

func (f *bundleFS) Glob(pattern string) ([]string, error) {
	var out []string
	for name := range f.files {
		ok, err := path.Match(absolute(pattern), name)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	if !filesys.IsHiddenFilePath(pattern) {
		out = filesys.RemoveHiddenFiles(out)
	}
	return out, nil
}

// What a build does not do.

func (f *bundleFS) Open(string) (filesys.File, error)    { return nil, errors.ErrUnsupported }
func (f *bundleFS) ReadDir(string) ([]string, error)     { return nil, errors.ErrUnsupported }
func (f *bundleFS) Walk(string, filepath.WalkFunc) error { return errors.ErrUnsupported }
func (f *bundleFS) Create(string) (filesys.File, error)  { return nil, errors.ErrUnsupported }
func (f *bundleFS) Mkdir(string) error                   { return errors.ErrUnsupported }
func (f *bundleFS) MkdirAll(string) error                { return errors.ErrUnsupported }
func (f *bundleFS) RemoveAll(string) error               { return errors.ErrUnsupported }
func (f *bundleFS) WriteFile(string, []byte) error       { return errors.ErrUnsupported }
