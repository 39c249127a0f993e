package render

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"

	"shoal.dev/shoal/bundlefmt"
)

// yaml renders a bundle of plain YAML.
func (r *rendering) yaml() error {
	files := map[string][]byte{}
	for name, data := range r.files {
		if !strings.HasPrefix(name, "overlays/") {
			files[name] = data
		}
	}
	if y := r.in.Options.YAML; y != nil {
		for i, name := range y.Overlays {
			if len(below(r.files, "overlays/"+name)) == 0 {
				r.note("yaml.overlays[%d]: there are no files below overlays/%s/, so that this overlay changes nothing", i, name)
				continue
			}
			if err := overlay(files, below(r.files, "overlays/"+name), "overlays/"+name+"/"); err != nil {
				return fmt.Errorf("yaml.overlays[%d]: %w", i, err)
			}
		}
	}
	templates := map[string][]byte{}
	var errs []error // of all files at once
	for _, name := range sortedNames(files) {
		switch {
		case strings.HasPrefix(name, "templates/"):
			templates[name] = files[name]
		case !isManifest(name) || apart(files, name) || strings.HasPrefix(name, ".remote/"): // of kustomizations
		default:
			errs = append(errs, r.addYAML(name, files[name], true))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if len(templates) == 0 {
		return nil
	}
	chart, err := json.Marshal(map[string]string{"apiVersion": "v2", "name": r.in.Name, "version": "0.0.0"})
	if err != nil {
		return err
	}
	templates["Chart.yaml"] = chart // JSON is YAML
	key := []string{"templates", r.in.Name, r.in.variant}
	if r.in.Options.YAML != nil {
		key = append(key, r.in.Options.YAML.Overlays...)
	}
	return r.helm(strings.Join(key, "\x00"), func() map[string][]byte { return templates })
}

func isManifest(name string) bool {
	ext := path.Ext(name)
	base := path.Base(name)
	return (ext == ".yaml" || ext == ".yml" || ext == ".json") && base != "fleet.yaml" && base != "fleet.yml"
}

// apart says whether a file is below a directory that is a chart or a bundle of its own.
func apart(files map[string][]byte, name string) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		for _, own := range []string{"Chart.yaml", "fleet.yaml", "fleet.yml"} {
			if _, ok := files[dir+"/"+own]; ok {
				return true
			}
		}
	}
	return false
}

// overlay lays the files of one overlay over the bundle's: a file replaces the one of its name or is new, an empty file
// deletes it, x_patch.yaml patches x.yaml. Patches come after files, so that an overlay may patch what it brings.
func overlay(files, over map[string][]byte, dir string) error {
	for _, name := range sortedNames(over) {
		if _, isPatch := patched(name); isPatch {
			continue
		}
		if len(bytes.TrimSpace(over[name])) > 0 {
			files[name] = over[name]
			continue
		}
		if _, ok := files[name]; !ok && isManifest(name) {
			return fmt.Errorf("%s%s is empty, which deletes %s, but the bundle has no such file", dir, name, name)
		}
		delete(files, name)
	}
	for _, name := range sortedNames(over) {
		base, isPatch := patched(name)
		if !isPatch {
			continue
		}
		data, ok := files[base]
		if !ok {
			return fmt.Errorf("%s%s patches %s, but the bundle has no such file", dir, name, base)
		}
		out, err := patch(data, over[name])
		if err != nil {
			return fmt.Errorf("%s%s: patch %s: %w", dir, name, base, err)
		}
		files[base] = out
	}
	return nil
}

// patched returns the file that a patch file is for.
func patched(name string) (string, bool) {
	dir, base := path.Split(name)
	i := strings.LastIndex(base, "_patch.")
	if i <= 0 || !isManifest(name) {
		return "", false
	}
	return dir + base[:i] + base[i+len("_patch"):], true
}

// patch applies a JSON patch (a list of operations), a strategic merge patch (for Kubernetes' own kinds), or a JSON merge
// patch (for all others) to a file of one object; for a file of several, the patch names the object by kind and name.
func patch(data, p []byte) ([]byte, error) {
	pj, err := toJSON(p, true)
	if err != nil {
		return nil, err
	}
	if pj == nil {
		return nil, fmt.Errorf("the patch is empty")
	}
	var docs [][]byte
	for i, d := range documents(data) {
		js, err := toJSON(d, true)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", i+1, err)
		}
		if js != nil {
			docs = append(docs, js)
		}
	}
	i, err := patchTarget(docs, pj)
	if err != nil {
		return nil, err
	}
	if docs[i], err = patchObject(docs[i], pj); err != nil {
		return nil, err
	}
	return bytes.Join(docs, []byte("\n---\n")), nil
}

type identity struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
}

func patchTarget(docs [][]byte, pj []byte) (int, error) {
	switch {
	case len(docs) == 0:
		return 0, fmt.Errorf("the file holds no object")
	case len(docs) == 1:
		return 0, nil
	case pj[0] == '[':
		return 0, fmt.Errorf("a JSON patch needs a file with one object, this one has %d", len(docs))
	}
	var want identity
	if err := json.Unmarshal(pj, &want); err != nil || want.Kind == "" || want.Metadata.Name == "" {
		return 0, fmt.Errorf("the file holds %d objects: give the patch kind and metadata.name", len(docs))
	}
	for i, d := range docs {
		var have identity
		if json.Unmarshal(d, &have) == nil && have.Kind == want.Kind && have.Metadata.Name == want.Metadata.Name &&
			(want.Metadata.Namespace == "" || want.Metadata.Namespace == have.Metadata.Namespace) {
			return i, nil
		}
	}
	return 0, fmt.Errorf("the file holds no %s %s", want.Kind, want.Metadata.Name)
}

func patchObject(doc, pj []byte) ([]byte, error) {
	if pj[0] == '[' {
		ops, err := jsonpatch.DecodePatch(pj)
		if err != nil {
			return nil, err
		}
		o := jsonpatch.NewApplyOptions()
		o.AccumulatedCopySizeLimit = bundlefmt.DefaultLimits().Object // a few "copy" operations can double a document each
		return ops.ApplyWithOptions(doc, o)
	}
	if pj[0] != '{' {
		return nil, fmt.Errorf("a patch is a list of operations or a part of the object")
	}
	var id identity
	if err := json.Unmarshal(doc, &id); err != nil {
		return nil, err
	}
	if typed, err := scheme.Scheme.New(schema.FromAPIVersionAndKind(id.APIVersion, id.Kind)); err == nil {
		return strategicpatch.StrategicMergePatch(doc, pj, typed)
	}
	return jsonpatch.MergePatch(doc, pj)
}
