package render

import "text/template/parse"

// comparisons are functions that say something about a text without showing it.
func comparisons() map[string]bool {
	m := map[string]bool{}
	for _, f := range []string{
		"eq", "ne", "lt", "le", "gt", "ge", "has", "mustHas", "contains", "hasPrefix", "hasSuffix", "hasKey",
		"regexMatch", "mustRegexMatch", "semverCompare",
	} {
		m[f] = true
	}
	return m
}

// comparedNames returns the names (the last part of .Values.service.type is "type") that templates compare, also through
// variables, through what with and range make the dot, and through keys of a dict that an included template gets. It tells no
// two values of one name apart: better a value too many that a site cannot set than one that means something else there.
func comparedNames(templates map[string]string) map[string]bool {
	w := walker{comparisons: comparisons(), found: map[string]bool{}, from: map[string][]string{}}
	for name, text := range templates {
		t := parse.New(name)
		t.Mode = parse.SkipFuncCheck
		set := map[string]*parse.Tree{}
		if _, err := t.Parse(text, "", "", set); err != nil {
			continue // rendering says what is wrong
		}
		for _, tree := range set {
			w.template = name + "\x00" + tree.Name + "\x00"
			w.node(tree.Root, nil)
		}
	}
	var open []string
	for n := range w.found {
		open = append(open, n)
	}
	for len(open) > 0 {
		n := open[len(open)-1]
		open = open[:len(open)-1]
		for _, f := range w.from[n] {
			if !w.found[f] {
				w.found[f] = true
				open = append(open, f)
			}
		}
	}
	return w.found
}

// walker walks the templates of a chart.
type walker struct {
	comparisons map[string]bool
	template    string              // in front of the names of variables
	found       map[string]bool     // names in comparisons
	from        map[string][]string // names whose values another name stands for
}

// node walks a node; dot are the names that the dot stands for.
func (w *walker) node(n parse.Node, dot []string) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n != nil {
			for _, e := range n.Nodes {
				w.node(e, dot)
			}
		}
	case *parse.ActionNode:
		w.pipe(n.Pipe, dot)
	case *parse.IfNode:
		w.pipe(n.Pipe, dot)
		w.node(n.List, dot)
		w.node(n.ElseList, dot)
	case *parse.WithNode:
		w.node(n.List, w.pipe(n.Pipe, dot))
		w.node(n.ElseList, dot)
	case *parse.RangeNode:
		w.node(n.List, w.pipe(n.Pipe, dot))
		w.node(n.ElseList, dot)
	case *parse.TemplateNode:
		w.pipe(n.Pipe, dot)
	}
}

// pipe returns the names that stand in it.
func (w *walker) pipe(p *parse.PipeNode, dot []string) (names []string) {
	if p == nil {
		return nil
	}
	compares := false
	for _, c := range p.Cmds {
		fn := ""
		if id, ok := c.Args[0].(*parse.IdentifierNode); ok {
			fn = id.Ident
		}
		compares = compares || w.comparisons[fn]
		key := ""
		for i, a := range c.Args {
			in := w.arg(a, dot)
			if s, ok := a.(*parse.StringNode); ok {
				switch {
				case fn == "index" || fn == "get" || fn == "dig" || fn == "pluck":
					in = []string{s.Text}
				case fn == "dict" && i%2 == 1:
					key = s.Text
				}
			}
			if key != "" && i%2 == 0 {
				w.from[key] = append(w.from[key], in...)
			}
			names = append(names, in...)
		}
	}
	for _, v := range p.Decl {
		name := w.template + v.Ident[0]
		w.from[name] = append(w.from[name], names...)
	}
	if compares {
		for _, n := range names {
			w.found[n] = true
		}
	}
	return names
}

func (w *walker) arg(a parse.Node, dot []string) []string {
	switch a := a.(type) {
	case *parse.FieldNode:
		return a.Ident[len(a.Ident)-1:]
	case *parse.VariableNode:
		if len(a.Ident) > 1 {
			return a.Ident[len(a.Ident)-1:]
		}
		return []string{w.template + a.Ident[0]}
	case *parse.ChainNode:
		w.arg(a.Node, dot)
		return a.Field[len(a.Field)-1:]
	case *parse.DotNode:
		return dot
	case *parse.PipeNode:
		return w.pipe(a, dot)
	}
	return nil
}
