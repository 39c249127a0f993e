package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"
)

// Limits of fleet.yaml and of values files, against files made to exhaust memory.
const (
	maxOptionsFile = 1 << 20
	maxNodes       = 100_000 // values after aliases are expanded
	maxNesting     = 64
	maxProblems    = 100 // of one file
)

// document is an options file that was read along a schema: where its fields are, and what is wrong with them.
type document struct {
	file      string
	templates bool           // templating: all
	lines     map[string]int // field path → line
	bad       []string       // fields that were left out because of a problem
	problems  Problems
}

// readOptions reads a file of options into a struct. Problems with single fields are collected in the document, and these
// fields are left out, so that what can be said about the others is said as well.
func readOptions(file string, data []byte, schema field, into any) (*document, error) {
	d := &document{file: file, lines: map[string]int{}}
	root, err := nodes(file, data)
	if err != nil {
		return nil, err
	}
	if root == nil {
		return d, nil
	}
	if t := child(root, "templating"); t != nil {
		d.templates = t.Value == "all"
	}
	d.check(root, schema, "")
	if root.Kind != yamlv3.MappingNode {
		return d, nil
	}
	js, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, yamlProblem(file, err)
	}
	var tree any
	dec := json.NewDecoder(bytes.NewReader(js))
	dec.UseNumber()
	if err := dec.Decode(&tree); err != nil {
		return nil, yamlProblem(file, err)
	}
	if js, err = json.Marshal(d.prune(tree, schema, "")); err != nil {
		return nil, yamlProblem(file, err)
	}
	if err := json.Unmarshal(js, into); err != nil {
		if len(d.problems) > 0 {
			return nil, d.problems
		}
		return nil, yamlProblem(file, err)
	}
	return d, nil
}

// prune takes bad fields out of the tree, and options that are null: they are as if absent. Elements of lists become null, so
// that those after them keep their place. What stands in a free map is left alone: in values a null means something.
func (d *document) prune(v any, f field, at string) any {
	switch {
	case slices.Contains(d.bad, at):
		return nil
	case f.kind == free:
		return v
	case v == nil && f.null != "":
		return f.null
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			sub, _ := f.find(k)
			if e = d.prune(e, sub, join(at, k)); e == nil {
				delete(v, k)
			} else {
				v[k] = e
			}
		}
	case []any:
		for i, e := range v {
			v[i] = d.prune(e, f, fmt.Sprintf("%s[%d]", at, i))
		}
	}
	return v
}

// line is that of a field, or of the nearest field around it.
func (d *document) line(field string) int {
	for p := field; p != ""; {
		if l, ok := d.lines[p]; ok {
			return l
		}
		i := strings.LastIndexAny(p, ".[")
		if i < 0 {
			break
		}
		p = p[:i]
	}
	return d.lines[""]
}

// report notes what is wrong with a field, unless something was wrong with it already.
func (d *document) report(field string, err error) {
	if err == nil || slices.ContainsFunc(d.bad, func(b string) bool { return below(field, b) || below(b, field) }) {
		return
	}
	// A problem of another file that the field names keeps its place.
	if ps := (Problems)(nil); errors.As(err, &ps) {
		d.problems = append(d.problems, ps...)
		return
	}
	if p := (Problem{}); errors.As(err, &p) {
		d.problems = append(d.problems, p)
		return
	}
	msg := err.Error()
	if field != "" {
		msg = field + ": " + msg
	}
	d.problems = append(d.problems, Problem{File: d.file, Line: d.line(field), Message: msg, err: err})
}

func below(field, parent string) bool {
	return field == parent || strings.HasPrefix(field, parent) && strings.ContainsAny(field[len(parent):len(parent)+1], ".[")
}

// nodes parses YAML into a tree and makes sure that it stays small when its aliases are expanded. It returns nil for an
// empty file.
func nodes(file string, data []byte) (*yamlv3.Node, error) {
	if len(data) > maxOptionsFile {
		return nil, Problem{File: file, Message: fmt.Sprintf("file has %d bytes, the limit is %d", len(data), maxOptionsFile)}
	}
	dec := yamlv3.NewDecoder(bytes.NewReader(data))
	var doc yamlv3.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, yamlProblem(file, err)
	}
	var more yamlv3.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			more.Line = 0 // the library counts from 0 here, and leaves 0 out
			_, _ = fmt.Sscanf(err.Error(), "yaml: line %d:", &more.Line)
			more.Line++
		}
		return nil, Problem{File: file, Line: more.Line, Message: "one YAML document expected, here a second one begins"}
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	n, wrong := expanded(doc.Content[0], 0)
	if n > maxNodes {
		wrong = &Problem{Message: fmt.Sprintf("holds more than %d values once its aliases are expanded", maxNodes)}
	}
	if wrong != nil {
		wrong.File = file
		return nil, *wrong
	}
	return doc.Content[0], nil
}

// expanded counts the values of a tree as if aliases were written out; it stops counting above the limit.
func expanded(n *yamlv3.Node, depth int) (int, *Problem) {
	if depth > maxNesting {
		return 0, &Problem{Line: n.Line, Message: fmt.Sprintf("nested deeper than %d", maxNesting)}
	}
	if n.Kind == yamlv3.AliasNode {
		return expanded(n.Alias, depth+1)
	}
	sum := 1
	for i, c := range n.Content {
		if n.Kind == yamlv3.MappingNode && i%2 == 0 && c.ShortTag() == "!!null" {
			return 0, &Problem{Line: c.Line, Message: fmt.Sprintf("the key %q is read as null, which cannot be a key: put it in quotes", c.Value)}
		}
		if n.Kind == yamlv3.MappingNode && i%2 == 0 && (c.Kind == yamlv3.MappingNode || c.Kind == yamlv3.SequenceNode) {
			return 0, &Problem{Line: c.Line, Message: "a map or a list cannot be a key: put text that begins with { or [ in quotes"}
		}
		k, wrong := expanded(c, depth+1)
		if wrong != nil {
			return 0, wrong
		}
		if sum += k; sum > maxNodes {
			return sum, nil
		}
	}
	return sum, nil
}

func child(n *yamlv3.Node, key string) *yamlv3.Node {
	if n.Kind != yamlv3.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// refuse notes a problem with the value at n and leaves the field out.
func (d *document) refuse(n *yamlv3.Node, at, format string, args ...any) {
	d.bad = append(d.bad, at)
	if len(d.problems) < maxProblems {
		d.problems = append(d.problems, Problem{File: d.file, Line: n.Line, Message: fmt.Sprintf(format, args...)})
	}
}

func (d *document) check(n *yamlv3.Node, f field, at string) {
	if n.Kind == yamlv3.AliasNode {
		n = n.Alias
	}
	if _, ok := d.lines[at]; !ok {
		d.lines[at] = n.Line
	}
	if n.ShortTag() == "!!null" {
		return // as if it were absent
	}
	element := f
	switch f.kind {
	case object:
		d.object(n, f, at)
	case objects:
		element.kind = object
		d.list(n, f, element, at)
	case stringList:
		element.kind = str
		d.list(n, f, element, at)
	case stringMaps:
		d.list(n, f, field{kind: stringMap, required: []string{""}}, at)
	case stringMap:
		d.stringMap(n, f, at)
	case free:
		if n.Kind != yamlv3.MappingNode {
			d.refuse(n, at, "%s must be a map", at)
		}
	default:
		d.scalar(n, f, at)
	}
}

func (d *document) object(n *yamlv3.Node, f field, at string) {
	if n.Kind != yamlv3.MappingNode {
		if at == "" {
			d.refuse(n, at, "a map of options expected")
			return
		}
		d.refuse(n, at, "%s must be a map", at)
		return
	}
	set := map[string]bool{}
	d.keys(n, f, at, set)
	for _, k := range f.required {
		if !set[k] {
			d.refuse(n, at, "%s: %s is needed", at, k)
			return
		}
	}
	if len(f.anyOf) > 0 && !slices.ContainsFunc(f.anyOf, func(k string) bool { return set[k] }) {
		d.refuse(n, at, "%s: %s is needed", at, strings.Join(f.anyOf, " or "))
	}
}

// keys checks the keys of a map, and those that merge keys (<<) pull in; set are those with a value.
func (d *document) keys(n *yamlv3.Node, f field, at string, set map[string]bool) {
	if n.Kind == yamlv3.AliasNode {
		n = n.Alias
	}
	if n.Kind == yamlv3.SequenceNode {
		for _, e := range n.Content {
			d.keys(e, f, at, set)
		}
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.ShortTag() == "!!merge" {
			d.keys(v, f, at, set)
			continue
		}
		full := join(at, k.Value)
		sub, ok := f.find(k.Value)
		switch {
		case !ok:
			d.refuse(k, full, "unknown field %q%s", full, advice(k.Value, at, f))
			continue
		case sub.refused != "":
			d.refuse(k, full, "%s: %s", full, sub.refused)
			continue
		}
		if v.ShortTag() != "!!null" && (v.Kind != yamlv3.ScalarNode || v.Value != "") {
			set[k.Value] = true
		}
		d.lines[full] = k.Line
		d.check(v, sub, full)
	}
}

// advice says what an unknown key may have meant.
func advice(key, at string, f field) string {
	if near := nearest(key, f.fields); near != "" {
		return fmt.Sprintf(" (did you mean %q?)", near)
	}
	if targets, ok := f.find("targets"); ok && at == "" {
		if _, ok := targets.find(key); ok {
			return " (it belongs into an entry of targets)"
		}
	}
	if strings.HasPrefix(at, "overrideTargets[") {
		options := field{fields: optionFields()}
		if _, ok := options.find(key); ok {
			return " (options for some clusters stand in targetCustomizations)"
		}
	}
	return ""
}

func (d *document) list(n *yamlv3.Node, f, element field, at string) {
	switch {
	case n.Kind != yamlv3.SequenceNode:
		d.refuse(n, at, "%s must be a list", at)
		return
	case f.items > 0 && len(n.Content) > f.items:
		d.refuse(n, at, "%s has %d entries, the limit is %d", at, len(n.Content), f.items)
		return
	}
	for i, e := range n.Content {
		at := fmt.Sprintf("%s[%d]", at, i)
		if e.ShortTag() == "!!null" {
			d.refuse(e, at, "%s is empty", at)
			continue
		}
		d.check(e, element, at)
	}
}

func (d *document) stringMap(n *yamlv3.Node, f field, at string) {
	switch {
	case n.Kind != yamlv3.MappingNode:
		d.refuse(n, at, "%s must be a map", at)
		return
	case len(n.Content) == 0 && len(f.required) > 0:
		d.refuse(n, at, "%s is empty: it would match everything", at)
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].ShortTag() == "!!merge" {
			continue
		}
		d.check(n.Content[i+1], field{kind: str}, join(at, n.Content[i].Value))
	}
}

func (d *document) scalar(n *yamlv3.Node, f field, at string) {
	quoted := n.Style&(yamlv3.SingleQuotedStyle|yamlv3.DoubleQuotedStyle|yamlv3.LiteralStyle|yamlv3.FoldedStyle) != 0
	oldBool := !quoted && slices.Contains([]string{"y", "n", "yes", "no", "on", "off"}, strings.ToLower(n.Value)) // YAML 1.1
	tag := n.ShortTag()
	if n.Kind == yamlv3.ScalarNode {
		switch {
		case f.kind == str && tag == "!!str" && !oldBool:
			d.text(n, f, at)
			return
		case f.kind == str:
			d.refuse(n, at, "%s must be a string: put it in quotes", at) // not shown: it may be a secret
			return
		case f.kind == boolean && (tag == "!!bool" || oldBool):
			return
		case f.kind == integer && tag == "!!int":
			d.number(n, f, at)
			return
		case f.kind == numberOrPercent && tag == "!!int":
			d.number(n, field{min: f.min, max: 1e6}, at)
			return
		case f.kind == numberOrPercent && tag == "!!str" && countFormat.match(n.Value):
			if f.min > 0 && strings.Trim(n.Value, "0%") == "" {
				d.refuse(n, at, "%s: %s is too small: use %d or more", at, n.Value, f.min)
			}
			return
		}
	}
	d.refuse(n, at, "%s must be %s", at, map[kind]string{
		str: "a string", boolean: "true or false", integer: "a whole number", numberOrPercent: countFormat.words,
	}[f.kind])
}

func (d *document) text(n *yamlv3.Node, f field, at string) {
	switch {
	case len(f.enum) > 0 && !slices.Contains(f.enum, n.Value):
		d.refuse(n, at, "%s: %q is not known: use %s", at, n.Value, strings.TrimPrefix(strings.Join(f.enum, ", "), ", "))
	case f.format == nil || n.Value == "":
	case f.format.templated && strings.Contains(n.Value, "${"):
		if !d.templates {
			d.refuse(n, at, `%s: ${ } is filled in here only with "templating: all"`, at)
		}
	case !f.format.match(n.Value):
		d.refuse(n, at, "%s: %q must be %s", at, n.Value, f.format.words)
	}
}

func (d *document) number(n *yamlv3.Node, f field, at string) {
	var i int64
	switch err := n.Decode(&i); {
	case err == nil && f.min >= 0 && i < f.min:
		d.refuse(n, at, "%s: %d is too small: use %d or more", at, i, f.min)
	case err != nil || i < f.min || i > f.max:
		d.refuse(n, at, "%s: %s is out of range: use %d to %d", at, n.Value, f.min, f.max)
	}
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

// nearest is the known key most like an unknown one, or "" if none is alike.
func nearest(key string, known []field) string {
	best, dist := "", 1+max(1, len(key)/3)
	names := make([]string, 0, len(known))
	for _, f := range known {
		names = append(names, f.name)
	}
	slices.Sort(names)
	for _, k := range names {
		if strings.EqualFold(k, key) {
			return k
		}
		if d := distance(key, k); d < dist {
			best, dist = k, d
		}
	}
	return best
}

// distance counts the single-letter changes between two keys.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, diag+1)
		}
	}
	return row[len(b)]
}

// yamlProblem says what a YAML library says, without its name, on one line and with the line number where people look.
func yamlProblem(file string, err error) Problem {
	s := err.Error()
	for _, p := range []string{"error converting YAML to JSON: ", "error unmarshaling JSON: ", "while decoding JSON: ", "yaml: ", "unmarshal errors:\n", "json: "} {
		s = strings.ReplaceAll(s, p, "")
	}
	s = strings.Join(strings.Fields(s), " ")
	var line int
	if n, _ := fmt.Sscanf(s, "line %d: ", &line); n == 1 {
		_, s, _ = strings.Cut(s, ": ")
	}
	return Problem{File: file, Line: line, Message: s}
}
