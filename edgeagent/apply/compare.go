package apply

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// change is one field that differs. nil means that the field is not there.
type change struct {
	path     string
	loose    string // the same, in the form of [loose]
	from, to any
	added    bool // it is an [addition]
}

// bookkeeping are the metadata fields that the API server keeps; they never make a difference.
var bookkeeping = map[string]bool{
	"managedFields": true, "resourceVersion": true, "generation": true, "uid": true, "creationTimestamp": true, "selfLink": true,
	"deletionTimestamp": true, "deletionGracePeriodSeconds": true,
}

// diff lists what has to change in live to get want, both complete objects as the API server returns them: status and
// bookkeeping aside. Since want is the server's own dry run, defaults, nulls and quantities are already equal.
func diff(live, want map[string]any) []change {
	var out []change
	for _, k := range keys(live, want) {
		switch k {
		case "status":
		case "metadata":
			l, _ := live[k].(map[string]any)
			w, _ := want[k].(map[string]any)
			for _, m := range keys(l, w) {
				if !bookkeeping[m] {
					diffValue("metadata."+m, loose("/metadata", m), l[m], w[m], &out)
				}
			}
		default:
			diffValue(k, loose("", k), live[k], want[k], &out)
		}
	}
	return out
}

func diffValue(path, lp string, live, want any, out *[]change) {
	if path == "metadata.labels" || path == "metadata.annotations" { // the first one of all is one change, not the map
		live, want = orEmpty(live), orEmpty(want)
	}
	if l, ok := live.([]any); ok && want == nil && len(l) > 0 && listKey(l) == "name" { // each by its name
		want = []any{}
	}
	switch l := live.(type) {
	case map[string]any:
		if w, ok := want.(map[string]any); ok {
			for _, k := range keys(l, w) {
				diffValue(path+step(k), loose(lp, k), l[k], w[k], out)
			}
			return
		}
	case []any:
		if w, ok := want.([]any); ok {
			diffList(path, loose(lp, "*"), l, w, out)
			return
		}
	}
	if !equal(live, want) {
		*out = append(*out, change{path: path, loose: lp, from: live, to: want})
	}
}

func orEmpty(v any) any {
	if v == nil {
		return map[string]any{}
	}
	return v
}

// diffList pairs elements by the field that names them, where they have one, so that an inserted element is one change.
func diffList(path, lp string, live, want []any, out *[]change) {
	key := listKey(live, want)
	if key == "" {
		for i := range max(len(live), len(want)) {
			diffValue(fmt.Sprintf("%s[%d]", path, i), lp, at(live, i), at(want, i), out)
		}
		return
	}
	before := len(*out)
	l, w := byKey(live, key), byKey(want, key)
	for _, k := range keys(l, w) {
		diffValue(fmt.Sprintf("%s[%s]", path, k), lp, l[k], w[k], out)
	}
	if len(*out) > before {
		return
	}
	for i := range live { // same elements in another order: that matters for env and for args of init containers
		if k := fmt.Sprint(live[i].(map[string]any)[key]); k != fmt.Sprint(want[i].(map[string]any)[key]) {
			*out = append(*out, change{path: path, loose: lp, from: "order " + k + " …", to: "order " + fmt.Sprint(want[i].(map[string]any)[key]) + " …"})
			return
		}
	}
}

func at(s []any, i int) any {
	if i < len(s) {
		return s[i]
	}
	return nil
}

// listKey is a field that every element of both lists has, with a scalar value that is unique in each.
func listKey(lists ...[]any) string {
	for _, key := range []string{"name", "containerPort", "port", "mountPath", "ip", "key", "type", "topologyKey"} {
		ok := true
		for _, list := range lists {
			seen := map[string]bool{}
			for _, e := range list {
				m, isMap := e.(map[string]any)
				v, has := m[key]
				_, nested := v.(map[string]any)
				s := fmt.Sprint(v)
				if !isMap || !has || nested || seen[s] {
					ok = false
					break
				}
				seen[s] = true
			}
		}
		if ok {
			return key
		}
	}
	return ""
}

func byKey(list []any, key string) map[string]any {
	m := make(map[string]any, len(list))
	for _, e := range list {
		m[fmt.Sprint(e.(map[string]any)[key])] = e
	}
	return m
}

func keys(a, b map[string]any) []string {
	out := make([]string, 0, len(a)+len(b))
	for k := range a {
		out = append(out, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return out
}

// step quotes keys that would make a path ambiguous: labels have dots and slashes.
func step(k string) string {
	if strings.ContainsAny(k, "./[") {
		return "[" + k + "]"
	}
	return "." + k
}

// equal compares scalars, and whole values of different shape. Absent and null are the same; absent and empty are not:
// an emptyDir is an empty map.
func equal(a, b any) bool {
	switch x := a.(type) {
	case int64:
		if y, ok := b.(float64); ok {
			return float64(x) == y
		}
	case float64:
		if y, ok := b.(int64); ok {
			return x == float64(y)
		}
	case map[string]any, []any:
		return false // the same shape was descended into; another shape differs
	}
	switch b.(type) {
	case map[string]any, []any:
		return false
	}
	return a == b
}

const (
	patchChanges = 4   // changes that a patch names
	patchValue   = 48  // characters of one value
	patchLength  = 400 // characters of the whole
)

// patch is a short text that says what has to change: `spec.replicas: 5 → 3; data.mode: "x" → (none)`.
func patch(o *object, changes []change) string {
	var b strings.Builder
	for i, c := range changes {
		if i == patchChanges || b.Len() > patchLength {
			fmt.Fprintf(&b, "; and %d more", len(changes)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		if isSecret(o.ref) && strings.HasPrefix(c.path, "data") || delicate(c.path) || o.touches(c) {
			fmt.Fprintf(&b, "%s: differs", c.path)
		} else {
			fmt.Fprintf(&b, "%s: %s → %s", c.path, value(c.from), value(c.to))
		}
		if c.added {
			b.WriteString(" (added on the site)")
		}
	}
	return b.String()
}

// delicate paths end in values that nobody should read in a report: people do put passwords into env and ConfigMaps.
func delicate(path string) bool {
	p := strings.ToLower(path)
	return slices.ContainsFunc([]string{"password", "passwd", "secret", "token", "credential", "apikey", "api_key", "private"}, func(s string) bool { return strings.Contains(p, s) })
}

func value(v any) string {
	if v == nil {
		return "(none)"
	}
	if holdsDelicate(v) {
		return "{…}"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return short(string(b), patchValue)
}

func holdsDelicate(v any) bool {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			if s, ok := e.(string); delicate(k) || ok && k == "name" && delicate(s) || holdsDelicate(e) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(x, holdsDelicate)
	}
	return false
}
