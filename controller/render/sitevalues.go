package render

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"shoal.dev/shoal/bundlefmt"
)

// Values that only a site knows (helm.valuesFrom) cannot be given to templates: the hub never has them. What a chart does
// nothing with but put it into an object is found by trying: with a mark in the place of a value the objects must be the same,
// but for the mark in the place of the value. Such values become tokens that the agent fills in. All others are fixed: a
// site that sets one is told so.
//
// Marks are long and full of what templates like to change (cases, signs, a "-" at the end), so that a chart that shortens
// or rewrites a value shows it. One thing cannot be seen by trying: a comparison that is false for the mark and for the
// default alike. Values whose name stands in a comparison of some template are fixed therefore.

// leaf is a value that a site might set.
type leaf struct {
	path  []string
	value any // string, or anything that is no map
}

// name is the path as SiteValue has it.
func (l leaf) name() string {
	parts := make([]string, len(l.path))
	for i, p := range l.path {
		parts[i] = strings.ReplaceAll(p, ".", `\.`)
	}
	return strings.Join(parts, ".")
}

const tokenLength = 12 // divisible by 3, so that its base64 has no padding

// token stands in objects for the site's value. It begins with a letter and looks like no number, so YAML reads a string.
func (l leaf) token() string {
	h := sha256.Sum256([]byte("site value " + l.name()))
	s := strconv.FormatUint(binary.BigEndian.Uint64(h[:]), 36)
	return "sv" + strings.Repeat("0", max(0, tokenLength-2-len(s))) + s[max(0, len(s)-(tokenLength-2)):]
}

// mark stands for the value in trials.
func (l leaf) mark() string {
	h := sha256.Sum256([]byte(l.name()))
	return fmt.Sprintf("Sv+%x_.Z-", h)
}

// leaves lists the values of a release, sorted by path. Globals of subcharts are those of the release.
func leaves(values map[string]any) []leaf {
	byName := map[string]leaf{}
	var walk func(path []string, v any)
	walk = func(path []string, v any) {
		if m, ok := v.(map[string]any); ok {
			for _, k := range slices.Sorted(maps.Keys(m)) {
				walk(append(slices.Clone(path), k), m[k])
			}
			return
		}
		l := leaf{path: path, value: v}
		if i := slices.Index(path, "global"); i > 0 {
			l.path = path[i:]
			if _, ok := byName[l.name()]; ok {
				return
			}
		}
		byName[l.name()] = l
	}
	if g, ok := values["global"]; ok {
		walk([]string{"global"}, g)
	}
	walk(nil, values)
	out := slices.Collect(maps.Values(byName))
	slices.SortFunc(out, func(a, b leaf) int { return strings.Compare(a.name(), b.name()) })
	return out
}

// set puts a value at a path.
func set(m map[string]any, path []string, v any) {
	for _, k := range path[:len(path)-1] {
		next, ok := m[k].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[k] = next
		}
		m = next
	}
	m[path[len(path)-1]] = v
}

// maxTrials bounds how often a chart is rendered to find its site values; it depends on the input only, not on the machine.
func (r *rendering) maxTrials() int { return max(48, min(400, (40<<20)/max(1, r.templateBytes))) }

// withSiteValues runs the engines and puts tokens in the place of values that pass through.
func (r *rendering) withSiteValues() error {
	if err := r.valuesFrom(); err != nil {
		return err
	}
	if err := r.engines(); err != nil {
		return err
	}
	if r.leaves == nil {
		return errors.New("helm.valuesFrom: this bundle has no chart: the values of sites go into the templates of a chart")
	}
	s := &search{r: r, left: r.maxTrials()}
	s.plain = arranged(r.objs)
	if r.unsteady {
		again, err := r.trial(nil)
		if err != nil {
			return err
		}
		s.loose = arranged(again)
	}
	var candidates []leaf
	fixed := map[string]bool{}
	for _, l := range r.leaves {
		if _, isString := l.value.(string); isString && !r.compared[l.path[len(l.path)-1]] {
			candidates = append(candidates, l)
		} else {
			fixed[l.name()] = true
		}
	}
	// Values without a default are mostly asked whether they are set: next to each other they are sorted out sooner.
	slices.SortStableFunc(candidates, func(a, b leaf) int { return cmp.Compare(min(1, len(a.value.(string))), min(1, len(b.value.(string)))) })
	passing := s.passing(candidates)
	objs, used := s.tokens(passing)
	for len(passing) > 0 && objs == nil { // each alone passes, all together do not
		passing = passing[:len(passing)/2]
		objs, used = s.tokens(passing)
	}
	if len(used) == 0 {
		return fmt.Errorf("helm.valuesFrom: the chart puts none of its %d values into an object as it is, so sites cannot set any: a value needs a default in helm.values, and a template that only inserts it", len(r.leaves))
	}
	r.objs = objs
	if s.exhausted {
		r.note("helm.valuesFrom: the chart is too large to find out about each of its %d values whether a site can set it: some count as fixed that are not", len(r.leaves))
	}
	r.listSiteValues(used)
	return nil
}

// listSiteValues writes the values into the handling. Sites take a value that is not listed for one that they must not set, so
// fixed ones may be left out where there are too many.
func (r *rendering) listSiteValues(used map[string]bool) {
	const most = 1024 // of bundlefmt
	room := most - len(used)
	for _, l := range r.leaves {
		v := bundlefmt.SiteValue{Path: l.name()}
		if used[v.Path] {
			v.Token, v.Default = l.token(), l.value.(string)
		} else if room--; room < 0 {
			continue
		} else {
			v.Fixed = true
		}
		r.handling.SiteValues = append(r.handling.SiteValues, v)
	}
}

// valuesFrom lists where a site's values come from: in one entry the ConfigMap, then the Secret.
func (r *rendering) valuesFrom() error {
	for i, v := range r.in.Options.Helm.ValuesFrom {
		if v.ConfigMapKeyRef == nil && v.SecretKeyRef == nil {
			return fmt.Errorf("helm.valuesFrom[%d]: configMapKeyRef or secretKeyRef is needed", i)
		}
		add := func(kind, name, namespace, key string) error {
			if name == "" {
				return fmt.Errorf("helm.valuesFrom[%d]: the %s has no name", i, kind)
			}
			r.handling.ValuesFrom = append(r.handling.ValuesFrom, bundlefmt.ValuesFrom{
				Kind: kind, Name: name, Namespace: cmp.Or(namespace, r.namespace()), Key: cmp.Or(key, "values.yaml"),
			})
			return nil
		}
		if k := v.ConfigMapKeyRef; k != nil {
			if err := add("ConfigMap", k.Name, k.Namespace, k.Key); err != nil {
				return err
			}
		}
		if k := v.SecretKeyRef; k != nil {
			if err := add("Secret", k.Name, k.Namespace, k.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// trial runs the engines with other values.
func (r *rendering) trial(over map[string]any) ([]object, error) {
	t := *r
	t.objs, t.over, t.trying, t.notes, t.handling = nil, over, true, map[string]bool{}, bundlefmt.Handling{}
	err := t.engines()
	return t.objs, err
}

func arranged(objs []object) []object {
	objs = slices.Clone(objs)
	rank := ranks()
	slices.SortStableFunc(objs, func(a, b object) int { return compare(rank, a.Ref, b.Ref) })
	return objs
}

// search finds the values that pass through.
type search struct {
	r         *rendering
	plain     []object
	loose     []object // plain once more, of a chart with random functions: what differs there says nothing
	left      int      // trials
	exhausted bool
}

// passing returns those of candidates that pass through, by halving.
func (s *search) passing(candidates []leaf) []leaf {
	if len(candidates) == 0 {
		return nil
	}
	if s.left == 0 {
		s.exhausted = true
		return nil
	}
	s.left--
	over, back := map[string]any{}, map[string]string{}
	for _, l := range candidates {
		set(over, l.path, l.mark())
		back[l.mark()] = l.value.(string)
	}
	if _, _, ok := s.try(over, back); ok {
		return candidates
	}
	if len(candidates) == 1 {
		return nil
	}
	half := len(candidates) / 2
	return append(s.passing(candidates[:half:half]), s.passing(candidates[half:])...)
}

// tokens renders with tokens, and says which of them stand in an object: a value that stands nowhere may have decided
// something all the same. It returns nil if the objects are not the same.
func (s *search) tokens(passing []leaf) ([]object, map[string]bool) {
	for {
		over, back, names := map[string]any{}, map[string]string{}, map[string]string{}
		for _, l := range passing {
			set(over, l.path, l.token())
			back[l.token()], names[l.token()] = l.value.(string), l.name()
		}
		objs, seen, ok := s.try(over, back)
		if !ok {
			return nil, nil
		}
		used := map[string]bool{}
		for t := range seen {
			used[names[t]] = true
		}
		if len(used) == len(passing) || len(used) == 0 {
			return objs, used
		}
		// Without the others: what decides must decide by its default.
		passing = slices.DeleteFunc(slices.Clone(passing), func(l leaf) bool { return !used[l.name()] })
	}
}

// try says whether the objects are the same with other values, and which of these stand in them.
func (s *search) try(over map[string]any, back map[string]string) (objs []object, seen map[string]bool, ok bool) {
	objs, err := s.r.trial(over)
	if err != nil || len(objs) != len(s.plain) {
		return nil, nil, false
	}
	objs = arranged(objs)
	c := comparison{back: back, seen: map[string]bool{}}
	pairs := make([]string, 0, 2*len(back))
	for token, value := range back {
		pairs = append(pairs, token, value)
	}
	c.replace = strings.NewReplacer(pairs...)
	for i, o := range objs {
		p := s.plain[i]
		if o.Ref != p.Ref || !reflect.DeepEqual(o.hook, p.hook) {
			return nil, nil, false
		}
		if bytes.Equal(o.JSON, p.JSON) {
			continue
		}
		c.secret = o.Kind == "Secret" && o.Group == ""
		loose := decoded(p)
		if s.loose != nil && i < len(s.loose) && s.loose[i].Ref == p.Ref {
			loose = decoded(s.loose[i])
		}
		if !c.same(nil, decoded(o), decoded(p), loose) {
			return nil, nil, false
		}
	}
	return objs, c.seen, true
}

func decoded(o object) any {
	d := json.NewDecoder(bytes.NewReader(o.JSON))
	d.UseNumber()
	var v any
	_ = d.Decode(&v) // canonical, so it parses
	return v
}

// comparison compares objects with marks or tokens with the plain ones.
type comparison struct {
	back    map[string]string // value by its mark
	replace *strings.Replacer
	secret  bool // the object is a Secret
	seen    map[string]bool
}

// same says whether got is plain but for marks in strings. Where loose, plain of another run, differs from plain, anything goes.
func (c *comparison) same(path []string, got, plain, loose any) bool {
	switch p := plain.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok || len(g) != len(p) {
			return false
		}
		l, _ := loose.(map[string]any)
		for k, pv := range p {
			gv, ok := g[k]
			if !ok || !c.same(append(path, k), gv, pv, l[k]) {
				return false
			}
		}
		return true
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(p) {
			return false
		}
		l, _ := loose.([]any)
		for i, pv := range p {
			var lv any
			if i < len(l) {
				lv = l[i]
			}
			if !c.same(append(path, strconv.Itoa(i)), g[i], pv, lv) {
				return false
			}
		}
		return true
	case string:
		g, ok := got.(string)
		return ok && (g == p || c.sameString(path, g, p) || loose != plain || isChecksum(path, g, p))
	}
	return got == plain || loose != plain
}

func (c *comparison) sameString(path []string, got, plain string) bool {
	if c.secret && len(path) == 2 && path[0] == "data" {
		g, err1 := base64.StdEncoding.DecodeString(got)
		p, err2 := base64.StdEncoding.DecodeString(plain)
		if err1 != nil || err2 != nil {
			return false
		}
		got, plain = string(g), string(p)
	}
	if c.replace.Replace(got) != plain {
		return false
	}
	for mark := range c.back {
		if strings.Contains(got, mark) {
			c.seen[mark] = true
		}
	}
	return true
}

// isChecksum lets pass what many charts do so that pods start again when a Secret or ConfigMap changes: an annotation
// checksum/… of the pods with the SHA-256 of a text. It stays that of the tokens.
func isChecksum(path []string, got, plain string) bool {
	n := len(path)
	return n >= 4 && strings.HasPrefix(path[n-1], "checksum/") && path[n-2] == "annotations" && path[n-3] == "metadata" && path[n-4] == "template" &&
		len(got) == len(plain) && len(got) >= 40 && strings.Trim(got+plain, "0123456789abcdef") == ""
}
