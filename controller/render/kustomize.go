package render

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// kustomizing serialises builds: kustomize keeps its OpenAPI schemas in package variables, sets them anew at each build and
// reads them without a lock (seen in kyaml v0.21.2).
var kustomizing sync.Mutex

// kustomize builds the kustomization in dir; objects of a chart become one more of its resources.
func (r *rendering) kustomize(dir string, extra []object) error {
	files := r.files
	if extra != nil {
		var err error
		if files, err = withResource(files, dir, extra); err != nil {
			return err
		}
	}
	used := map[string]int{}
	if readings(files, dir, used) > maxReadings {
		return fmt.Errorf("kustomize %s: its files would be read more than %d times, since directories name others again and again: name each of them once", dir, maxReadings)
	}
	files = r.listedPatches(files, used)
	objects := objectFiles(files)
	mem := newBundleFS()
	var errs []error
	for _, name := range sortedNames(files) {
		if slices.Contains(kustomizationNames(), path.Base(name)) {
			if _, ok := used[path.Dir(name)]; !ok {
				continue // nothing uses it: it is not looked at, and not there either
			}
		}
		if isYAML(name) {
			if err := checkKustomizeFile(name, files[name]); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
				continue
			}
		}
		data := files[name]
		if objects[name] {
			var err error
			if data, err = separated(data); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if err := mem.add("/bundle/"+name, data); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// Files may come from anywhere in the bundle: there is nothing else in this file system. No plugins.
	o := krusty.MakeDefaultOptions()
	o.LoadRestrictions = types.LoadRestrictionsNone
	out, err := build(o, mem, path.Join("/bundle", dir))
	if err != nil {
		return fmt.Errorf("kustomize %s: %s", dir, strings.ReplaceAll(helmMessage(err), "/bundle/", ""))
	}
	return r.addYAML(path.Join(dir, "kustomization.yaml"), out, false)
}

// listedPatches rewrites kustomizations in use whose patches are a list of files. Earlier versions of kustomize took that, and this one
// refuses it.
func (r *rendering) listedPatches(files map[string][]byte, used map[string]int) map[string][]byte {
	changed := map[string][]byte{}
	for dir := range used {
		name := kustomizationFile(files, dir)
		var doc yamlv3.Node
		if len(documents(files[name])) != 1 || yamlv3.Unmarshal(files[name], &doc) != nil || len(doc.Content) == 0 {
			continue // kustomize says what is wrong with it
		}
		root, listed := doc.Content[0], false
		for i := 0; root.Kind == yamlv3.MappingNode && i+1 < len(root.Content); i += 2 {
			list := root.Content[i+1]
			if !oneOf(root.Content[i].Value, "patches") || list.Kind != yamlv3.SequenceNode {
				continue
			}
			for j, e := range list.Content {
				if e.ShortTag() != "!!str" {
					continue
				}
				field := &yamlv3.Node{Kind: yamlv3.ScalarNode, Value: "path"}
				if strings.Contains(e.Value, "\n") {
					field.Value = "patch" // written in place
				}
				list.Content[j], listed = &yamlv3.Node{Kind: yamlv3.MappingNode, Content: []*yamlv3.Node{field, e}}, true
			}
		}
		if !listed {
			continue
		}
		if data, err := yamlv3.Marshal(&doc); err == nil {
			changed[name] = data
			r.note("%s: patches is a list of files, which kustomize takes no longer: each counts as path of a patch, write - path: FILE", name)
		}
	}
	if len(changed) == 0 {
		return files
	}
	out := maps.Clone(files)
	maps.Copy(out, changed)
	return out
}

func build(o *krusty.Options, mem filesys.FileSystem, dir string) ([]byte, error) {
	kustomizing.Lock()
	defer kustomizing.Unlock()
	m, err := krusty.MakeKustomizer(o).Run(mem, dir)
	if err != nil {
		return nil, err
	}
	return m.AsYaml()
}

// maxReadings is how many files a build may read, those that it reads twice counted twice. It is more than a bundle has files.
const maxReadings = 10_000

// readings counts the files that a build reads for a directory. known holds what is counted already; a directory in which the
// count is just now is a circle, of which kustomize says more.
func readings(files map[string][]byte, dir string, known map[string]int) int {
	if n, ok := known[dir]; ok {
		return n
	}
	known[dir] = 0
	n := 1
	var m map[string]any
	_ = yaml.Unmarshal(files[kustomizationFile(files, dir)], &m) // what is wrong with it, kustomize says
	for field, v := range m {
		if !oneOf(field, "resources", "bases", "components", "generators", "transformers", "validators") {
			continue
		}
		list, _ := v.([]any)
		for _, e := range list {
			name, _ := e.(string)
			if at := path.Join(dir, name); kustomizationFile(files, at) != "" {
				n = min(n+readings(files, at, known), maxReadings+1)
			} else {
				n = min(n+1, maxReadings+1)
			}
		}
	}
	known[dir] = n
	return n
}

// objectFiles are those files that kustomizations read as objects, and not as the content of a ConfigMap or Secret.
func objectFiles(files map[string][]byte) map[string]bool {
	out := map[string]bool{}
	for name, data := range files {
		if !slices.Contains(kustomizationNames(), path.Base(name)) {
			continue
		}
		var m map[string]any
		_ = yaml.Unmarshal(data, &m) // what is wrong with it, kustomize says
		for field, v := range m {
			list, _ := v.([]any)
			for _, e := range list {
				if p, ok := e.(map[string]any); ok && oneOf(field, "patches", "patchesJson6902") {
					e = p["path"]
				} else if !oneOf(field, "resources", "patchesStrategicMerge", "generators", "transformers", "validators") {
					continue
				}
				if file, ok := e.(string); ok {
					out[path.Join(path.Dir(name), file)] = true
				}
			}
		}
	}
	return out
}

// separated puts a marker between JSON values that follow one another: kustomize would read the first only. What follows an object in
// any other way is an error.
func separated(data []byte) ([]byte, error) {
	docs := documents(data)
	for _, d := range docs {
		if err := checkEnd(d); err != nil {
			return nil, err
		}
	}
	if len(docs) == len(marked(data)) {
		return data, nil
	}
	return bytes.Join(docs, []byte("\n---\n")), nil
}

// kustomizationFile is the name of the kustomization in a directory, or "".
func kustomizationFile(files map[string][]byte, dir string) string {
	for _, n := range kustomizationNames() {
		if _, ok := files[path.Join(dir, n)]; ok {
			return path.Join(dir, n)
		}
	}
	return ""
}

func kustomizationNames() []string {
	return []string{"kustomization.yaml", "kustomization.yml", "Kustomization"}
}

func isYAML(name string) bool {
	ext := path.Ext(name)
	return ext == ".yaml" || ext == ".yml" || path.Base(name) == "Kustomization"
}

// withResource adds rendered objects to a kustomization.
func withResource(files map[string][]byte, dir string, extra []object) (map[string][]byte, error) {
	const name = "shoal-helm-output.yaml"
	kfile := kustomizationFile(files, dir)
	var k map[string]any
	if err := yaml.Unmarshal(files[kfile], &k); err != nil {
		return nil, fmt.Errorf("%s: %s", kfile, yamlMessage(err))
	}
	if k == nil {
		k = map[string]any{}
	}
	field := "resources"
	for f := range k {
		if strings.EqualFold(f, field) {
			field = f
		}
	}
	list, ok := k[field].([]any)
	if !ok && k[field] != nil {
		return nil, fmt.Errorf("%s: resources must be a list", kfile)
	}
	k[field] = append(list, name)
	changed, err := yaml.Marshal(k)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kfile, err)
	}
	out := make(map[string][]byte, len(files)+1)
	for n, data := range files {
		out[n] = data
	}
	out[kfile] = changed
	var b bytes.Buffer
	for _, o := range extra {
		b.WriteString("---\n")
		b.Write(o.JSON)
		b.WriteByte('\n')
	}
	out[path.Join(dir, name)] = b.Bytes()
	return out, nil
}

// checkKustomizeFile refuses what would make kustomize fetch something, or grow without bounds. kustomize tries the
// network whenever a path looks like an address, so nothing that looks like one may reach it.
func checkKustomizeFile(name string, data []byte) error {
	own := slices.Contains(kustomizationNames(), path.Base(name))
	for _, doc := range documents(data) {
		if err := checkAliases(doc); err != nil {
			return err
		}
		var m map[string]any
		if err := yaml.Unmarshal(doc, &m); err != nil {
			continue // kustomize says better what is wrong, if it reads the file at all
		}
		if api, _ := m["apiVersion"].(string); !own && api != "builtin" {
			continue
		}
		if err := checkPaths(m, ""); err != nil {
			return err
		}
		if !own {
			continue
		}
		fields := map[string]bool{}
		for field := range m {
			if oneOf(field, "openapi", "helmCharts", "helmChartInflationGenerator") {
				return fmt.Errorf("%s is not supported: render the chart with the bundle's helm options", field)
			}
			folded := strings.ToLower(strings.ToUpper(field))
			if fields[folded] {
				return fmt.Errorf("%s stands there twice: kustomize does not look at upper and lower case", field)
			}
			fields[folded] = true
		}
	}
	return nil
}

// checkPaths walks a kustomization; at is the name of the field around v.
func checkPaths(v any, at string) error {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if err := checkPaths(e, k); err != nil {
				return err
			}
		}
	case []any:
		for _, e := range v {
			if err := checkPaths(e, at); err != nil {
				return err
			}
		}
	case string:
		return checkPath(v, at)
	}
	return nil
}

func checkPath(s, at string) error {
	const msg = "%s: %q is remote: nothing is fetched while rendering, copy it into the bundle"
	switch {
	case oneOf(at, "resources", "bases", "components", "generators", "transformers", "validators"):
		if strings.Contains(s, "\n") { // written in place: a document of its own
			return checkInline(s)
		}
		if looksRemote(s) {
			return fmt.Errorf(msg, at, s)
		}
	case oneOf(at, "crds", "configurations", "path", "paths", "files", "env", "envs", "patchesStrategicMerge"):
		if strings.Contains(s, "\n") {
			return nil
		}
		if _, file, ok := strings.Cut(s, "="); ok { // key=path
			s = file
		}
		if isURL(s) {
			return fmt.Errorf(msg, at, s)
		}
	}
	return nil
}

// oneOf compares names of fields as kustomize reads them: whatever their case.
func oneOf(field string, names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(field, n) })
}

func checkInline(s string) error {
	for _, doc := range documents([]byte(s)) {
		var m map[string]any
		if yaml.Unmarshal(doc, &m) == nil {
			if err := checkPaths(m, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// looksRemote is true for everything that kustomize takes for a repository, and some more.
func looksRemote(s string) bool {
	l := strings.ToLower(s)
	return isURL(s) || strings.Contains(l, "://") || strings.Contains(l, "@") || strings.Contains(l, "github.com") ||
		strings.Contains(l, "::") || strings.HasPrefix(l, "gh:") || strings.Contains(l, "?ref=")
}

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https" || u.Scheme == "ssh" || u.Scheme == "file" || u.Scheme == "git")
}
