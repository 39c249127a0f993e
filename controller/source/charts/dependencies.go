package charts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"unicode"

	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/source"
	"shoal.dev/shoal/controller/source/charts/archive"
)

const (
	maxDependencies = 100
	maxDepth        = 6 // of dependencies that have dependencies
)

// dependency is one in Chart.yaml. Chart.lock has the digest of the JSON of these: names and order are Helm's.
type dependency struct {
	Name         string   `json:"name"`
	Version      string   `json:"version,omitempty"`
	Repository   string   `json:"repository"`
	Condition    string   `json:"condition,omitempty"`
	Tags         []string `json:"tags,omitempty"`
	Enabled      bool     `json:"enabled,omitempty"`
	ImportValues []any    `json:"import-values,omitempty"`
	Alias        string   `json:"alias,omitempty"`
}

type lock struct {
	Digest       string        `json:"digest"`
	Dependencies []*dependency `json:"dependencies"`
}

// requirements is what a chart says about its dependencies, and where.
type requirements struct {
	file, lockFile string
	v1             bool
	list           []*dependency
	lock           *lock
}

// Dependencies returns the files to add below charts/ of a chart, or nil if nothing is missing. What is in charts/ already
// stays. Chart.lock decides about versions where there is one; where it does not belong to Chart.yaml, that is an error.
//
// A dependency in file://../x is taken from files with the key "../x/Chart.yaml" and so on: the caller gives those of the
// bundle's tree in this way.
func (c *Client) Dependencies(ctx context.Context, files map[string][]byte) (map[string][]byte, error) {
	return c.dependencies(ctx, files, 0)
}

func (c *Client) dependencies(ctx context.Context, files map[string][]byte, depth int) (map[string][]byte, error) {
	req, err := require(files)
	if err != nil {
		return nil, err
	}
	vendored, err := vendored(files)
	if err != nil {
		return nil, err
	}
	wanted := req.list
	if req.lock != nil {
		wanted = req.lock.Dependencies
	}
	added := map[string][]byte{}
	total := 0
	for i, d := range req.list {
		if have, ok := vendored[d.Name]; ok {
			if err := suits(d, have); err != nil {
				return nil, err
			}
			continue
		}
		if depth >= maxDepth {
			return nil, fmt.Errorf("dependency %s: dependencies of dependencies are nested deeper than %d", d.Name, maxDepth)
		}
		if req.lock != nil {
			if err := req.inSync(); err != nil {
				return nil, err
			}
		}
		get := *d
		if req.lock != nil && i < len(wanted) {
			get.Version, get.Repository = wanted[i].Version, wanted[i].Repository
		}
		ch, err := c.dependency(ctx, get, files, depth)
		if err != nil {
			return nil, fmt.Errorf("%s: dependency %s: %w", req.file, d.Name, err)
		}
		if ch.Name != d.Name {
			return nil, fmt.Errorf("%s: dependency %s: the chart there is called %s", req.file, d.Name, ch.Name)
		}
		if err := suits(d, []string{ch.Version}); err != nil {
			return nil, err
		}
		for name, data := range ch.Files {
			added[path.Join("charts", ch.Name+"-"+ch.Version, name)] = data
		}
		if total += size(ch.Files); total > archive.MaxUnpacked {
			return nil, fmt.Errorf("%s: the dependencies have more than %d bytes in all", req.file, archive.MaxUnpacked)
		}
	}
	if len(added) == 0 {
		return nil, nil
	}
	return added, nil
}

func size(files map[string][]byte) int {
	n := 0
	for _, data := range files {
		n += len(data)
	}
	return n
}

// suits: Helm silently leaves out a dependency whose version is not in the range.
func suits(d *dependency, have []string) error {
	for _, v := range have {
		if d.Version == "" || d.Version == v {
			return nil
		}
		ok, err := matches(d.Version, v)
		if err != nil {
			return fmt.Errorf("dependency %s: %w", d.Name, err)
		}
		if ok {
			return nil
		}
	}
	return fmt.Errorf("dependency %s: version %s is asked for, there is %s: run `helm dependency update`", d.Name, d.Version, strings.Join(have, ", "))
}

// dependency gets one.
func (c *Client) dependency(ctx context.Context, d dependency, files map[string][]byte, depth int) (source.Chart, error) {
	switch repo := d.Repository; {
	case repo == "":
		return source.Chart{}, errors.New("it has no repository, and is not in charts/: put it there, or write where it is")
	case strings.HasPrefix(repo, "file://"):
		return c.neighbour(ctx, strings.TrimPrefix(repo, "file://"), files, depth)
	case isAlias(repo):
		return source.Chart{}, fmt.Errorf("repository %s is a name in somebody's Helm settings: write the repository's address, or commit the lock file", repo)
	case !isHTTP(repo) && !isOCI(repo):
		return source.Chart{}, fmt.Errorf("repository %s is no address: it begins with https://, oci:// or file://", redact(repo))
	default:
		return c.get(ctx, source.ChartRef{Chart: d.Name, Repo: repo, Version: d.Version}, depth+1)
	}
}

// neighbour returns a chart in another directory of the bundle's tree.
func (c *Client) neighbour(ctx context.Context, dir string, files map[string][]byte, depth int) (source.Chart, error) {
	if path.IsAbs(dir) {
		return source.Chart{}, fmt.Errorf("file://%s: an absolute path is another one on every machine: write it relative to the chart, such as file://../x", dir)
	}
	dir = path.Clean(dir)
	own := map[string][]byte{}  // inside its directory
	tree := map[string][]byte{} // as it sees the tree
	for name, data := range files {
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			continue // of this chart, whose own name in the tree is not known
		}
		tree[rel] = data
		if rel != ".." && !strings.HasPrefix(rel, "../") {
			own[rel] = data
		}
	}
	if len(own) == 0 {
		return source.Chart{}, fmt.Errorf("file://%s is not in the directory of the bundle: nothing outside of it is read", dir)
	}
	name, version, err := archive.Meta(own["Chart.yaml"])
	if err != nil {
		return source.Chart{}, fmt.Errorf("file://%s: %w", dir, err)
	}
	more, err := c.dependencies(ctx, tree, depth+1)
	if err != nil {
		return source.Chart{}, fmt.Errorf("file://%s: %w", dir, err)
	}
	for name, data := range more {
		own[name] = data
	}
	return source.Chart{Name: name, Version: version, Files: own}, nil
}

// vendored returns the versions of the charts in charts/, by name.
func vendored(files map[string][]byte) (map[string][]string, error) {
	have := map[string][]string{}
	for name, data := range files {
		rest, ok := strings.CutPrefix(name, "charts/")
		if !ok || strings.IndexAny(rest, "_.") == 0 { // these Helm does not load
			continue
		}
		_, in, isDir := strings.Cut(rest, "/")
		switch {
		case isDir && in == "Chart.yaml":
			n, v, err := archive.Meta(data)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			have[n] = append(have[n], v)
		case !isDir && path.Ext(rest) == ".tgz":
			ch, err := archive.Unpack(data)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			have[ch.Name] = append(have[ch.Name], ch.Version)
		}
	}
	return have, nil
}

// require reads Chart.yaml and, as charts of Helm 2 have them, requirements.yaml and its lock.
func require(files map[string][]byte) (requirements, error) {
	var meta struct {
		APIVersion   string        `json:"apiVersion"`
		Dependencies []*dependency `json:"dependencies"`
	}
	r := requirements{file: "Chart.yaml", lockFile: "Chart.lock"}
	if err := parse(files, "Chart.yaml", &meta); err != nil {
		return r, err
	}
	if _, ok := files["requirements.yaml"]; ok {
		r.file, r.lockFile = "requirements.yaml", "requirements.lock"
		if err := parse(files, "requirements.yaml", &meta); err != nil {
			return r, err
		}
	}
	r.v1, r.list = meta.APIVersion != "v2", meta.Dependencies
	if len(r.list) > maxDependencies {
		return r, fmt.Errorf("%s: more than %d dependencies", r.file, maxDependencies)
	}
	for _, d := range r.list {
		if d == nil || !archive.ValidName(sanitize(d.Name)) {
			return r, fmt.Errorf("%s: a dependency has no valid name", r.file)
		}
		d.Name, d.Version, d.Repository, d.Condition = sanitize(d.Name), sanitize(d.Version), sanitize(d.Repository), sanitize(d.Condition)
		for i, t := range d.Tags {
			d.Tags[i] = sanitize(t)
		}
	}
	if len(bytes.TrimSpace(files[r.lockFile])) > 0 {
		r.lock = new(lock)
		if err := parse(files, r.lockFile, r.lock); err != nil {
			return r, err
		}
	}
	return r, nil
}

func parse(files map[string][]byte, name string, into any) error {
	if err := yaml.Unmarshal(files[name], into); err != nil {
		return fmt.Errorf("%s: %s", name, redact(err.Error()))
	}
	return nil
}

// sanitize does what Helm does with these texts when it loads a chart.
func sanitize(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return -1
	}, s)
}

// inSync compares the lock with what it locks, as Helm does: by the digest of both.
func (r requirements) inSync() error {
	ok := len(r.lock.Dependencies) == len(r.list)
	var list []*dependency
	for i := 0; ok && i < len(r.list); i++ {
		d, locked := *r.list[i], r.lock.Dependencies[i]
		if ok = locked != nil && locked.Name == d.Name; ok && isAlias(d.Repository) {
			d.Repository = locked.Repository // Helm writes the address that the name stood for, and takes the digest with it
		}
		list = append(list, &d)
	}
	if ok {
		ok = r.lock.Digest == digestOf([2][]*dependency{list, r.lock.Dependencies}) ||
			r.v1 && r.lock.Digest == digestOf(map[string][]*dependency{"dependencies": r.list}) // Helm 2
	}
	if !ok {
		return fmt.Errorf("the lock file (%s) is out of sync with the dependencies file (%s): run `helm dependency update` and commit both", r.lockFile, r.file)
	}
	return nil
}

func digestOf(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return "" // values of YAML that JSON does not have: equal to no digest
	}
	h := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(h[:])
}
