package target

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"

	"sigs.k8s.io/yaml"
)

// Bounds of one template: bundles come from tenants, and a template must not keep the hub busy or eat its memory.
const (
	maxText   = 4 << 20  // bytes of a template
	maxOutput = 4 << 20  // bytes of what it gives
	maxWeight = 1 << 20  // bytes of what one function call is given, or gives
	maxEffort = 32 << 20 // bytes that all function calls and loops of one run may handle
	maxDepth  = 50       // maps and lists inside of each other
	callCost  = 256      // of a call or a pass of a loop, in bytes
)

// errTooMuch ends a template that would do or hold too much.
var errTooMuch = errors.New("the template does too much: it loops too often, or makes too much text or too long lists")

// text is a template that was parsed and bounded. Not for use by two goroutines at once.
type text struct {
	name   string
	source string
	parts  []part // of parseParts
	tmpl   *template.Template
	meter  *meter
}

// part is one of several texts that are one template, so that they share variables and bounds.
type part struct{ name, text string }

// marked reports whether a text holds a template at all.
func marked(s string) bool { return strings.Contains(s, "${") }

// parseText parses a template with the delimiters ${ and }.
func parseText(name, source string) (*text, error) { return parseNamed(name, source, nil) }

func parseNamed(name, source string, parts []part) (*text, error) {
	if len(source) > maxText {
		return nil, fmt.Errorf("%s: %d bytes are too much for a template, the limit is %d", name, len(source), maxText)
	}
	t := &text{name: name, source: source, parts: parts, meter: &meter{}}
	tmpl, err := template.New(name).Delims("${", "}").Option("missingkey=error").Funcs(t.meter.functions(source)).Parse(source)
	if err != nil {
		return nil, t.explain(err)
	}
	t.tmpl = tmpl
	for _, d := range tmpl.Templates() {
		if d.Tree != nil && d.Root != nil {
			bound(d.Root)
			d.Root.Nodes = append([]parse.Node{step(d.Root.Pos)}, d.Root.Nodes...) // templates may call themselves
		}
	}
	return t, nil
}

// parseParts parses several texts as one template; fill gives their results one by one.
func parseParts(name string, parts []part) (*text, error) {
	var source strings.Builder
	for i, p := range parts {
		if i > 0 {
			source.WriteString(partEnd)
		}
		source.WriteString(p.text)
	}
	t, err := parseNamed(name, source.String(), parts)
	return t, err
}

// partEnd stands between parts: the call that tells the meter, and a comment that ends the line.
const partEnd = "${" + nextPart + "}${/*\n*/}"

// filled is what a template gave.
type filled struct {
	Text string
	JSON json.RawMessage `json:",omitempty"` // set where Text was made of one value that is no text, or stands for such a value
	Lone bool            `json:",omitempty"` // Text is the result of one expression and nothing else
}

// fill executes the template and returns what it gives for each part.
//
// What is all of a text keeps its type: a number stays a number, a map a map, and a text a text, whatever YAML would take it for. What
// quote, squote and toJson write is YAML, though, as are true, 3 and the like that stand in the template itself between conditions.
func (t *text) fill(data any) ([]filled, error) {
	if _, err := t.run(data); err != nil {
		return nil, err
	}
	segments := t.meter.segments
	if len(segments) != max(1, len(t.parts)) {
		return nil, fmt.Errorf("%s: a template has to begin and end in the same value", t.name)
	}
	all, out := t.meter.out.String(), make([]filled, len(segments))
	for i, s := range segments {
		end := len(all)
		if i+1 < len(segments) {
			end = segments[i+1].start
		}
		f := filled{Text: all[s.start:end]}
		switch {
		case s.values == 1 && s.literal == 0 && s.yaml:
			f.JSON, _ = yaml.YAMLToJSONStrict([]byte(f.Text)) // else it is a text
		case s.values == 1 && s.literal == 0:
			f.Lone = true
			if _, isText := s.value.(string); !isText {
				f.JSON, _ = json.Marshal(s.value)
			}
		case s.values == 0 && !strings.Contains(f.Text, "\n"):
			if js, err := yaml.YAMLToJSONStrict([]byte(f.Text)); err == nil && !strings.ContainsAny(string(js[:1]), "{[\"") {
				f.JSON = js
			}
		}
		out[i] = f
	}
	return out, nil
}

// run executes the template. data must not be shared: templates can change maps.
func (t *text) run(data any) (out string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: the template fails: %v", t.name, p)
		}
	}()
	*t.meter = meter{left: maxEffort, segments: []segment{{}}}
	if err := t.tmpl.Execute(t.meter, data); err != nil {
		return "", t.explain(err)
	}
	return t.meter.out.String(), nil
}

// where is how text/template begins its errors. There is no other way to the line.
var where = regexp.MustCompile(`^template: .*?:(\d+)(?::\d+)?: (?:executing "[^"]*" at <.*?>: )?`)

// explain names the line, by its text: what was parsed is not what the user's file holds line by line.
func (t *text) explain(err error) error {
	m := where.FindStringSubmatch(err.Error())
	if m == nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	var line string
	name := t.name
	n, _ := strconv.Atoi(m[1])
	if len(t.parts) == 0 {
		line = lineOf(t.source, n)
	}
	for _, p := range t.parts {
		if lines := 1 + strings.Count(p.text, "\n"); n > lines {
			n -= lines
			continue
		}
		name, line = p.name, lineOf(p.text, n)
		break
	}
	if len(line) > 120 {
		line = line[:120] + "…"
	}
	if errors.Is(err, errTooMuch) {
		return fmt.Errorf("%s: in %q: %w", name, line, errTooMuch)
	}
	what := strings.TrimPrefix(err.Error(), m[0])
	if i := strings.Index(what, "error calling "); i >= 0 {
		what = what[i+len("error calling "):]
	}
	return fmt.Errorf("%s: in %q: %s%s", name, line, what, advice(what))
}

func lineOf(text string, n int) string {
	if lines := strings.SplitN(text, "\n", n+1); n > 0 && len(lines) >= n {
		return strings.TrimSpace(lines[n-1])
	}
	return ""
}

// advice says what to do about the mistakes that people make most.
func advice(what string) string {
	switch {
	case strings.HasPrefix(what, "map has no entry for key"):
		return "; give the cluster one, or say what holds without it: ${ get .ClusterLabels \"key\" | default \"value\" }"
	case strings.HasSuffix(what, "not defined"), strings.Contains(what, "unexpected"), strings.Contains(what, "bad character"), strings.Contains(what, "unterminated"), strings.Contains(what, "unclosed"):
		return "; a ${ } that is no template is written ${` ${ } `}, or set helm.disablePreProcess"
	}
	return ""
}

// bound makes every pass of a loop and everything that is printed count.
func bound(n parse.Node) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return
		}
		for _, c := range n.Nodes {
			bound(c)
		}
	case *parse.ActionNode:
		if len(n.Pipe.Decl) == 0 {
			by := printed
			if writesYAML(n.Pipe.Cmds[len(n.Pipe.Cmds)-1]) {
				by = printedYAML
			}
			id := parse.NewIdentifier(by).SetPos(n.Pos)
			n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{NodeType: parse.NodeCommand, Pos: n.Pos, Args: []parse.Node{id}})
		}
	case *parse.IfNode:
		bound(n.List)
		bound(n.ElseList)
	case *parse.WithNode:
		bound(n.List)
		bound(n.ElseList)
	case *parse.RangeNode:
		bound(n.List)
		bound(n.ElseList)
		n.List.Nodes = append([]parse.Node{step(n.Pos)}, n.List.Nodes...)
	}
}

// step is an empty text: executing it writes nothing, and so reaches the meter.
func step(pos parse.Pos) parse.Node { return &parse.TextNode{NodeType: parse.NodeText, Pos: pos} }

// writesYAML says whether a command gives text that is meant to be read as YAML.
func writesYAML(c *parse.CommandNode) bool {
	id, ok := c.Args[0].(*parse.IdentifierNode)
	return ok && slices.Contains([]string{"quote", "squote", "toJson", "mustToJson", "toRawJson", "mustToRawJson", "toPrettyJson", "mustToPrettyJson"}, id.Ident)
}

// meter takes a template's output and stops it when it has done too much. It notes what the output is made of.
type meter struct {
	out      bytes.Buffer
	left     int
	segments []segment // one a part
	printing bool      // the next piece of output is that of an expression
}

// segment is the output of one part.
type segment struct {
	start   int // in the output
	literal int // bytes that stand in the template
	values  int // expressions that were printed
	value   any // the last of them
	yaml    bool
}

// Write counts every piece of output, the empty ones of step too.
func (m *meter) Write(p []byte) (int, error) {
	if m.out.Len()+len(p) > maxOutput || !m.spend(callCost+len(p)) {
		return 0, errTooMuch
	}
	if !m.printing {
		m.segments[len(m.segments)-1].literal += len(p)
	}
	m.printing = false
	return m.out.Write(p)
}

// partEnds is what nextPart gives.
type partEnds struct{}

// print notes a value that is about to be printed.
func (m *meter) print(v any, yaml bool) any {
	m.printing = true
	if _, ok := v.(partEnds); ok {
		m.segments = append(m.segments, segment{start: m.out.Len()})
		return ""
	}
	s := &m.segments[len(m.segments)-1]
	s.values++
	s.value, s.yaml = v, yaml
	return v
}

func (m *meter) spend(n int) bool {
	m.left -= n
	return m.left >= 0
}

// wrap makes a function of templates count what it is given and what it gives. Both are weighed before they are used
// further: a map that holds itself, or lists of lists of lists, must not reach anything that walks them.
func (m *meter) wrap(name string, fn any) any {
	f := reflect.ValueOf(fn)
	typ := f.Type()
	return reflect.MakeFunc(typ, func(args []reflect.Value) []reflect.Value {
		n := weigh(args...)
		if more, ok := amplifies[name]; ok && n <= maxWeight {
			if typ.IsVariadic() {
				args = spread(args)
			}
			n = max(n, more(args))
			if typ.IsVariadic() {
				args = gather(typ, args)
			}
		}
		if name == slow {
			m.spend(maxEffort / 4)
		}
		if n > maxWeight || !m.spend(callCost+n) {
			panic(errTooMuch)
		}
		var out []reflect.Value
		if typ.IsVariadic() {
			out = f.CallSlice(args)
		} else {
			out = f.Call(args)
		}
		if n := weigh(out...); n > maxWeight || !m.spend(n) {
			panic(errTooMuch)
		}
		return out
	}).Interface()
}

// spread takes the last argument of a variadic call apart, gather puts it together again.
func spread(args []reflect.Value) []reflect.Value {
	last := args[len(args)-1]
	out := append([]reflect.Value(nil), args[:len(args)-1]...)
	for i := range last.Len() {
		out = append(out, last.Index(i))
	}
	return out
}

func gather(typ reflect.Type, args []reflect.Value) []reflect.Value {
	fixed := typ.NumIn() - 1
	rest := reflect.MakeSlice(typ.In(fixed), 0, len(args)-fixed)
	rest = reflect.Append(rest, args[fixed:]...)
	return append(append([]reflect.Value(nil), args[:fixed]...), rest)
}

// weigh is about how many bytes values hold, or more than maxWeight.
func weigh(vs ...reflect.Value) int {
	w := scales{left: maxWeight}
	for _, v := range vs {
		w.add(v, 0)
	}
	if w.left < 0 {
		return maxWeight + 1
	}
	return maxWeight - w.left
}

type scales struct{ left int }

func (w *scales) add(v reflect.Value, depth int) {
	if w.left -= 8; w.left < 0 || depth > 2*maxDepth {
		w.left = -1
		return
	}
	switch v.Kind() {
	case reflect.String:
		w.left -= v.Len()
	case reflect.Interface, reflect.Pointer:
		if !v.IsNil() {
			w.add(v.Elem(), depth+1)
		}
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			w.left -= v.Len()
			return
		}
		for i := 0; i < v.Len() && w.left >= 0; i++ {
			w.add(v.Index(i), depth+1)
		}
	case reflect.Map:
		for it := v.MapRange(); w.left >= 0 && it.Next(); {
			w.add(it.Key(), depth+1)
			w.add(it.Value(), depth+1)
		}
	}
}
