package target

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
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
	tmpl   *template.Template
	meter  *meter
}

// marked reports whether a text holds a template at all.
func marked(s string) bool { return strings.Contains(s, "${") }

// parseText parses a template with the delimiters ${ and }.
func parseText(name, source string) (*text, error) {
	if len(source) > maxText {
		return nil, fmt.Errorf("%s: %d bytes are too much for a template, the limit is %d", name, len(source), maxText)
	}
	t := &text{name: name, source: source, meter: &meter{}}
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

// run executes the template. data must not be shared: templates can change maps.
func (t *text) run(data any) (out string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: the template fails: %v", t.name, p)
		}
	}()
	*t.meter = meter{left: maxEffort}
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
	if n, _ := strconv.Atoi(m[1]); n > 0 {
		if lines := strings.SplitN(t.source, "\n", n+1); len(lines) >= n {
			line = strings.TrimSpace(lines[n-1])
		}
	}
	if len(line) > 120 {
		line = line[:120] + "…"
	}
	if errors.Is(err, errTooMuch) {
		return fmt.Errorf("%s: in %q: %w", t.name, line, errTooMuch)
	}
	what := strings.TrimPrefix(err.Error(), m[0])
	if i := strings.Index(what, "error calling "); i >= 0 {
		what = what[i+len("error calling "):]
	}
	return fmt.Errorf("%s: in %q: %s%s", t.name, line, what, advice(what))
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
			id := parse.NewIdentifier(printed).SetPos(n.Pos)
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

// meter takes a template's output and stops it when it has done too much.
type meter struct {
	out  bytes.Buffer
	left int
}

// Write counts every piece of output, the empty ones of step too.
func (m *meter) Write(p []byte) (int, error) {
	if m.out.Len()+len(p) > maxOutput || !m.spend(callCost+len(p)) {
		return 0, errTooMuch
	}
	return m.out.Write(p)
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
