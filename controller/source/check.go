package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/internal/nearest"
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
	templates bool                         // templating: all
	lines     map[string]int               // field path → line
	spelt     map[string]map[string]string // field path → keys in it that are written in other letter case → how they are read
	bad       []string                     // fields that were left out because of a problem
	unquoted  map[string]bool              // fields of text whose value is written as a number or a boolean
	problems  Problems
}

// readOptions reads a file of options into a struct. Problems with single fields are collected in the document, and these
// fields are left out, so that what can be said about the others is said as well.
func readOptions(file string, data []byte, schema field, into any) (*document, error) {
	d := &document{file: file, lines: map[string]int{}, spelt: map[string]map[string]string{}, unquoted: map[string]bool{}}
	root, second, err := nodes(file, data)
	if err != nil {
		return nil, err
	}
	d.problems = append(d.problems, second...)
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
		if err := d.problems.Err(); err != nil {
			return nil, err
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
	case json.Number, bool:
		if d.unquoted[at] {
			return fmt.Sprint(v)
		}
	case map[string]any:
		for written, key := range d.spelt[at] {
			if e, ok := v[written]; ok {
				delete(v, written)
				v[key] = e
			}
		}
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
func (d *document) report(field string, err error) { d.note(field, err, false) }

// warn is report for what the bundle is made with all the same.
func (d *document) warn(field string, err error) { d.note(field, err, true) }

func (d *document) note(field string, err error, warning bool) {
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
	d.problems = append(d.problems, Problem{File: d.file, Line: d.line(field), Message: msg, Warning: warning, err: err})
}

func below(field, parent string) bool {
	return field == parent || strings.HasPrefix(field, parent) && strings.ContainsAny(field[len(parent):len(parent)+1], ".[")
}

// nodes parses YAML into a tree and makes sure that it stays small when its aliases are expanded. It returns nil for an
// empty file. Of several documents the first one counts; that others are there is a warning.
func nodes(file string, data []byte) (root *yamlv3.Node, second Problems, err error) {
	if len(data) > maxOptionsFile {
		return nil, nil, Problem{File: file, Message: fmt.Sprintf("file has %d bytes, the limit is %d", len(data), maxOptionsFile)}
	}
	dec := yamlv3.NewDecoder(bytes.NewReader(data))
	var doc yamlv3.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil, nil
		}
		return nil, nil, yamlProblem(file, err)
	}
	var more yamlv3.Node
	switch err := dec.Decode(&more); {
	case errors.Is(err, io.EOF):
	case err != nil:
		line := 0 // the library counts from 0 here, and leaves 0 out
		_, _ = fmt.Sscanf(err.Error(), "yaml: line %d:", &line)
		return nil, nil, Problem{File: file, Line: line + 1, Message: "one YAML document expected, here a second one begins"}
	case len(more.Content) > 0 && more.Content[0].ShortTag() != "!!null":
		second = Problems{{File: file, Line: more.Line, Warning: true,
			Message: "a second YAML document begins here: only the first one of this file counts, as in Fleet"}}
	}
	if len(doc.Content) == 0 {
		return nil, second, nil
	}
	n, wrong := expanded(doc.Content[0], 0)
	if n > maxNodes {
		wrong = &Problem{Message: fmt.Sprintf("holds more than %d values once its aliases are expanded", maxNodes)}
	}
	if wrong != nil {
		wrong.File = file
		return nil, nil, *wrong
	}
	return doc.Content[0], second, nil
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
	if at == "" && d.foreign(n, f) {
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
	written := map[string]string{} // key → how it is spelt
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.ShortTag() == "!!merge" {
			d.keys(v, f, at, set)
			continue
		}
		sub, ok := f.fold(k.Value)
		if !ok {
			d.unknown(k, f, at)
			continue
		}
		full := join(at, sub.name)
		switch other, twice := written[sub.name]; {
		case twice && other != k.Value:
			d.refuse(k, full, "%s stands there twice, also as %s: remove one", k.Value, other)
			continue
		case sub.refused == wholeBundle && !guards(sub.name):
			d.ignore(k, full, "%s has no effect here: %s", full, sub.refused)
			continue
		case sub.refused != "":
			d.refuse(k, full, "%s: %s", full, sub.refused)
			continue
		case k.Value != sub.name:
			if d.spelt[at] == nil {
				d.spelt[at] = map[string]string{}
			}
			d.spelt[at][k.Value] = sub.name
			d.problems = append(d.problems, Problem{File: d.file, Line: k.Line, Warning: true,
				Message: fmt.Sprintf("%q is read as %s: write it so", join(at, k.Value), full)})
		}
		written[sub.name] = k.Value
		if v.ShortTag() != "!!null" && (v.Kind != yamlv3.ScalarNode || v.Value != "") {
			set[sub.name] = true
		}
		d.lines[full] = k.Line
		d.check(v, sub, full)
	}
}

// ignore notes a field that has no effect and leaves it out.
func (d *document) ignore(n *yamlv3.Node, at, format string, args ...any) {
	d.bad = append(d.bad, at)
	d.remark(n, format, args...)
}

// remark notes what the bundle is made with all the same.
func (d *document) remark(n *yamlv3.Node, format string, args ...any) {
	if len(d.problems) < maxProblems {
		d.problems = append(d.problems, Problem{File: d.file, Line: n.Line, Warning: true, Message: fmt.Sprintf(format, args...)})
	}
}

// guards says whether without an option more, or earlier, is deployed, changed or deleted than was meant.
func guards(key string) bool {
	known := func(f field) bool { return strings.EqualFold(f.name, key) }
	return slices.ContainsFunc(matchFields(), known) ||
		slices.ContainsFunc([]field{{name: "doNotDeploy"}, {name: "paused"}, {name: "keepResources"}, {name: "dependsOn"}, {name: "rolloutStrategy"}}, known)
}

// unknown is about a key that is not in the schema. In Fleet it has no effect. Here it has none either and is a warning, unless it is
// misspelt, or without it more could be deployed, changed or deleted than was meant.
func (d *document) unknown(k *yamlv3.Node, f field, at string) {
	full := join(at, k.Value)
	switch like, place := near(k.Value, f.fields), d.belongs(k.Value, at); {
	case like != "" && otherNames[k.Value] == "":
		d.refuse(k, full, "unknown field %q (did you mean %q?)", full, like)
	case strings.HasPrefix(at, "overrideTargets[") && slices.ContainsFunc(optionFields(), func(o field) bool { return o.name == k.Value }):
		d.refuse(k, full, "unknown field %q (options for some clusters stand in targetCustomizations)", full)
	case place != "" && guards(k.Value):
		d.refuse(k, full, "unknown field %q (%s)", full, place)
	case place != "":
		d.ignore(k, full, "%s has no effect here: %s", full, place)
	case otherNames[k.Value] != "":
		d.ignore(k, full, "unknown field %q has no effect (%s)", full, otherNames[k.Value])
	case f.chooses():
		d.refuse(k, full, "unknown field %q: here it could be meant to choose clusters", full)
	default:
		d.ignore(k, full, "unknown field %q has no effect", full)
	}
}

// otherNames are keys of other tools, and of the flat form of August 2020, with what they are here.
var otherNames = map[string]string{
	"targetNamespace": "write namespace for all objects, or defaultNamespace for those that name none",
	"kustomizeDir":    "in the flat form of August 2020; today it is kustomize.dir",
	"manifestsDir":    "in the flat form of August 2020; today files are read from the directory itself",
	"valuesFile":      "write helm.valuesFiles, which is a list",
	"chartName":       "write helm.chart",
	"chartVersion":    "write helm.version",
}

// belongs says where a known option stands, if that is not the place of at: it completes a message.
func (d *document) belongs(key, at string) string {
	if i := strings.Index(at, "]"); strings.HasPrefix(at, "target") && i > 0 {
		at = strings.TrimPrefix(at[i+1:], ".")
	} else if at == "" && slices.ContainsFunc(matchFields(), func(m field) bool { return strings.EqualFold(m.name, key) }) || strings.EqualFold(key, "doNotDeploy") {
		return "it belongs into an entry of targets"
	}
	groups := []string{"helm", "kustomize", "yaml", "correctDrift", "diff", "rolloutStrategy"}
	if path.Base(d.file) == bundleFile || at != "" && !slices.Contains(groups, at) {
		return ""
	}
	top := fleetSchema()
	if s, ok := top.fold(key); ok && at != "" && s.refused == "" {
		return "it belongs to the top level"
	}
	for _, g := range groups {
		f, _ := top.find(g)
		if s, ok := f.fold(key); ok && g != at {
			return "write " + join(g, s.name)
		}
	}
	return ""
}

// foreign finds files that are no options at all, and says it once.
func (d *document) foreign(n *yamlv3.Node, f field) bool {
	if kind := child(n, "kind"); kind != nil && child(n, "apiVersion") != nil {
		d.refuse(kind, "", "this is a Kubernetes object of kind %s, and a %s holds the options of a bundle: give the file another name", kind.Value, path.Base(d.file))
		return true
	}
	var keys []string
	for i := 0; i+1 < len(n.Content); i += 2 {
		if _, ok := f.fold(n.Content[i].Value); ok || n.Content[i].ShortTag() == "!!merge" ||
			near(n.Content[i].Value, f.fields) != "" || d.belongs(n.Content[i].Value, "") != "" {
			return false
		}
		keys = append(keys, n.Content[i].Value)
	}
	if len(keys) < 2 {
		return false
	}
	d.refuse(n, "", "this file holds no option of a bundle, only %s: give it another name if it is something else", strings.Join(keys[:min(3, len(keys))], ", "))
	return true
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
		case f.kind == str && plainText(n):
			if d.text(n, f, at); !slices.Contains(d.bad, at) {
				d.unquoted[at] = true
				d.remark(n, "%s must be a string, and is read as one: put it in quotes", at)
			}
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

// plainText says whether a number or a boolean has only one way to be written, so that its text is beyond doubt. 1.10, 0x10 and yes are
// 1.1, 16 and true for YAML.
func plainText(n *yamlv3.Node) bool {
	i, err := strconv.ParseInt(n.Value, 10, 64)
	return n.Kind == yamlv3.ScalarNode && (n.ShortTag() == "!!bool" && (n.Value == "true" || n.Value == "false") ||
		n.ShortTag() == "!!int" && err == nil && strconv.FormatInt(i, 10) == n.Value)
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

// near is the known key most like an unknown one, or "" if none is alike.
func near(key string, known []field) string {
	names := make([]string, 0, len(known))
	for _, f := range known {
		names = append(names, f.name)
	}
	return nearest.Word(key, names)
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
