package apply

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"shoal.dev/shoal/bundlefmt"
)

// exempt is what a bundle's compare patches mean for one object between two releases. Fields that jsonPointers and operations
// that remove name are not compared; other operations are done to both sides before they are compared. "ignore" means that the
// object may be missing. A repair leaves what any of them names as it is on the cluster. A release knows no exemptions: it writes
// what it states.
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

// leave gives want, at every place that a patch names, what live has there: writing it changes nothing then. Of live only what
// want states is taken over: the rest stays with whoever set it. want is not changed.
func (e exempt) leave(want, live *unstructured.Unstructured) *unstructured.Unstructured {
	paths := slices.Clone(e.pointers)
	for _, op := range e.ops {
		paths = append(paths, pointer(op.Path))
		if op.Op == "move" {
			paths = append(paths, pointer(from(op)))
		}
	}
	out := want
	for _, p := range paths {
		if _, stated := at2(want.Object, p); len(p) == 0 || !stated {
			continue
		}
		if out == want {
			out = want.DeepCopy()
		}
		leaveAt(out.Object, live.Object, p)
	}
	return out
}

// leaveAt is want with live's values at p and below; nil: live has nothing there. It changes want.
func leaveAt(want, live any, p []string) any {
	switch w := want.(type) {
	case map[string]any:
		l, ok := live.(map[string]any)
		if !ok && len(p) == 0 {
			return live
		}
		for k, e := range w {
			if len(p) > 0 && k != p[0] {
				continue
			}
			if w[k] = leaveAt(e, l[k], p[min(1, len(p)):]); w[k] == nil {
				delete(w, k)
			}
		}
		return w
	case []any:
		l, ok := live.([]any)
		key := listKey(w, l)
		if len(p) == 0 && (!ok || key == "") {
			return live
		}
		for i, e := range w {
			if len(p) > 0 && p[0] != strconv.Itoa(i) {
				continue
			}
			var mate any
			if n := mateOf(w, i, l); n >= 0 {
				mate = l[n]
			}
			if v := leaveAt(e, mate, p[min(1, len(p)):]); v != nil || key != "" { // else the others would move up
				w[i] = v
			}
		}
		return slices.DeleteFunc(w, func(e any) bool { return e == nil })
	}
	return live
}

// mateOf is the place in b of the element that stands at i in a: by the field that names them, else at the same place; -1: none.
func mateOf(a []any, i int, b []any) int {
	key := listKey(a, b)
	if key == "" {
		if i < len(b) {
			return i
		}
		return -1
	}
	name := fmt.Sprint(a[i].(map[string]any)[key])
	return slices.IndexFunc(b, func(e any) bool { return fmt.Sprint(e.(map[string]any)[key]) == name })
}

// forCompare is a side as it is compared. Places in lists count in want, the bundle's own object: the cluster's may hold more
// elements, or in another order.
func (e exempt) forCompare(o, want map[string]any) map[string]any {
	if !e.any() {
		return o
	}
	var drops [][]string
	for _, p := range e.pointers {
		drops = append(drops, placed(p, want, o))
	}
	var ops []bundlefmt.PatchOp
	for _, op := range e.ops {
		if op.Op == "move" || op.Op == "copy" {
			op.Value = join(placed(pointer(from(op)), want, o))
		}
		op.Path = join(placed(pointer(op.Path), want, o))
		ops = append(ops, op)
	}
	u := unstructured.Unstructured{Object: o}
	o = u.DeepCopy().Object
	for _, p := range drops {
		if len(p) > 0 {
			drop(o, p)
		}
	}
	for _, op := range ops {
		o = operate(o, op)
	}
	compact(o)
	return o
}

// placed is where p, which counts in want, leads in o.
func placed(p []string, want, o any) []string {
	out := slices.Clone(p)
	for i, s := range p {
		w, ok1 := want.([]any)
		l, ok2 := o.([]any)
		if n, ok := index(s, len(w)); ok && ok1 && ok2 {
			out[i] = "-" // nowhere
			if n = mateOf(w, n, l); n >= 0 {
				out[i] = strconv.Itoa(n)
			}
		}
		want, _ = at2(want, p[i:i+1])
		o, _ = at2(o, out[i:i+1])
	}
	return out
}

// compact takes out what drop has left in lists.
func compact(v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			x[k] = compact(e)
		}
	case []any:
		for i, e := range x {
			x[i] = compact(e)
		}
		return slices.DeleteFunc(x, func(e any) bool { return e == nil })
	}
	return v
}

// from is where an operation that moves or copies takes its value.
func from(op bundlefmt.PatchOp) string { return strings.Trim(op.Value, `"`) }

// operate does one operation; one that does not fit the object does nothing, since the two sides differ after all.
func operate(o map[string]any, op bundlefmt.PatchOp) map[string]any {
	step := map[string]any{"op": op.Op, "path": op.Path}
	switch op.Op {
	case "move", "copy":
		step["from"] = from(op)
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

// join is the pointer of which these are the steps.
func join(steps []string) string {
	var b strings.Builder
	for _, s := range steps {
		b.WriteString("/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(s))
	}
	return b.String()
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

// drop takes a field out. An element of a list becomes null, for compact: until then the others keep their places.
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
