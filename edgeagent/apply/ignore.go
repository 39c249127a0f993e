package apply

import (
	"encoding/json"
	"path"
	"regexp"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"shoal.dev/shoal/bundlefmt"
)

// exempt is what a bundle's compare patches mean for one object. jsonPointers and operations that remove name fields that
// are the site's own: they are neither compared nor changed. Other operations are done to both sides before they are
// compared. "ignore" means that the object may be missing.
type exempt struct {
	pointers [][]string
	ops      []bundlefmt.PatchOp
	missing  bool
}

func (e exempt) any() bool { return len(e.pointers) > 0 || len(e.ops) > 0 }

func exemptions(patches []bundlefmt.ComparePatch, ref Ref) exempt {
	var e exempt
	for _, p := range patches {
		if !glob(p.Kind, ref.Kind) || !matchesVersion(p.APIVersion, ref) || p.Namespace != "" && p.Namespace != ref.Namespace {
			continue
		}
		named := p.Name == "" || p.Name == ref.Name
		for _, op := range p.Operations {
			switch {
			case op.Op == "ignore":
				e.missing = e.missing || named || matches(p.Name, ref.Name)
			case !named:
			case op.Op == "remove":
				e.pointers = append(e.pointers, pointer(op.Path))
			default:
				e.ops = append(e.ops, op)
			}
		}
		if named {
			for _, ptr := range p.JSONPointers {
				e.pointers = append(e.pointers, pointer(ptr))
			}
		}
	}
	return e
}

// glob compares as Fleet does: * and ? stand for anything, and so does nothing at all.
func glob(pattern, s string) bool {
	if pattern == "" || pattern == "*" {
		return true
	}
	ok, err := path.Match(pattern, s)
	return err == nil && ok
}

// matchesVersion takes "apps/v1", "v1", "apps/*", "*/*" and, as Argo's group globs do, only a group before the slash; of the
// version only that it may be a glob counts: an object is the same in all of them.
func matchesVersion(pattern string, ref Ref) bool {
	if pattern == "" || pattern == "*" {
		return true
	}
	group, version, ok := strings.Cut(pattern, "/")
	if !ok {
		return ref.Group == "" && glob(pattern, ref.Version)
	}
	return (group == "*" || group != "" && glob(group, ref.Group)) && glob(version, ref.Version)
}

func matches(expr, name string) bool {
	re, err := regexp.Compile(expr)
	return err == nil && re.MatchString(name)
}

func pointer(p string) []string {
	if p == "" {
		return nil
	}
	steps := strings.Split(strings.TrimPrefix(p, "/"), "/")
	for i, s := range steps {
		steps[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(s)
	}
	return steps
}

// leave gives want, at every exempt place, what live has there: writing it changes nothing then. want is not changed.
func (e exempt) leave(want, live *unstructured.Unstructured) *unstructured.Unstructured {
	out := want
	for _, p := range e.pointers {
		if len(p) == 0 {
			continue
		}
		if _, ok := at2(want.Object, p); !ok {
			continue
		}
		if out == want {
			out = want.DeepCopy()
		}
		if v, ok := at2(live.Object, p); ok {
			put(out.Object, p, v)
		} else if parent, _ := at2(out.Object, p[:len(p)-1]); !isList(parent) {
			drop(out.Object, p)
		}
	}
	return out
}

func isList(v any) bool { _, ok := v.([]any); return ok }

// forCompare are both sides as they are compared.
func (e exempt) forCompare(o map[string]any) map[string]any {
	if !e.any() {
		return o
	}
	u := unstructured.Unstructured{Object: o}
	o = u.DeepCopy().Object
	for _, p := range e.pointers {
		if len(p) > 0 {
			drop(o, p)
		}
	}
	for _, op := range e.ops {
		o = operate(o, op)
	}
	return o
}

// operate does one operation; one that does not fit the object does nothing, since the two sides differ after all.
func operate(o map[string]any, op bundlefmt.PatchOp) map[string]any {
	step := map[string]any{"op": op.Op, "path": op.Path}
	switch op.Op {
	case "move", "copy":
		step["from"] = strings.Trim(op.Value, `"`)
	default:
		if op.Value != "" {
			if json.Valid([]byte(op.Value)) {
				step["value"] = json.RawMessage(op.Value)
			} else {
				step["value"] = op.Value
			}
		}
	}
	b, err := json.Marshal([]any{step})
	if err != nil {
		return o
	}
	patch, err := jsonpatch.DecodePatch(b)
	if err != nil {
		return o
	}
	doc, err := json.Marshal(o)
	if err != nil {
		return o
	}
	if doc, err = patch.Apply(doc); err != nil {
		return o
	}
	var out map[string]any
	if utiljson.Unmarshal(doc, &out) != nil {
		return o
	}
	return out
}

func at2(v any, p []string) (any, bool) {
	for _, s := range p {
		switch x := v.(type) {
		case map[string]any:
			e, ok := x[s]
			if !ok {
				return nil, false
			}
			v = e
		case []any:
			i, ok := index(s, len(x))
			if !ok {
				return nil, false
			}
			v = x[i]
		default:
			return nil, false
		}
	}
	return v, true
}

func index(s string, n int) (int, bool) {
	i := 0
	for _, c := range s {
		if c < '0' || c > '9' || i > n {
			return 0, false
		}
		i = 10*i + int(c-'0')
	}
	return i, s != "" && i < n
}

func put(o map[string]any, p []string, v any) {
	parent, ok := at2(o, p[:len(p)-1])
	if !ok {
		return
	}
	last := p[len(p)-1]
	switch x := parent.(type) {
	case map[string]any:
		x[last] = v
	case []any:
		if i, ok := index(last, len(x)); ok {
			x[i] = v
		}
	}
}

// drop takes a field out. An element of a list becomes null: the others must keep their places.
func drop(o map[string]any, p []string) {
	parent, ok := at2(o, p[:len(p)-1])
	if !ok {
		return
	}
	last := p[len(p)-1]
	switch x := parent.(type) {
	case map[string]any:
		delete(x, last)
	case []any:
		if i, ok := index(last, len(x)); ok {
			x[i] = nil
		}
	}
}
