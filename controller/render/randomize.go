package render

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template/parse"

	"helm.sh/helm/v3/pkg/chart"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// Helm's engine takes no functions from outside, except what lookup asks. So calls of random functions are rewritten when a chart is
// loaded: `randAlphaNum 8` becomes `call (lookup "shoal.dev/random" "randAlphaNum" "" "web/templates/a.yaml").f 8`, and lookup, which
// otherwise finds nothing, gives a function. Only the name is replaced, on its line: everything around it stays as it is.

// randomAPI is the group and version that only rewritten templates look up.
const (
	randomAPI = "shoal.dev/random"
	beginFile = "begin"
	rewrite   = "rewrite"
)

func randomFunctions() []string {
	return []string{
		"randAlphaNum", "randAlpha", "randAscii", "randNumeric", "randBytes", "randInt", "shuffle", "uuidv4", "now", "ago", "htpasswd", "bcrypt",
		"encryptAES", "genPrivateKey", "genCA", "genCAWithKey", "genSelfSignedCert", "genSelfSignedCertWithKey", "genSignedCert", "genSignedCertWithKey",
	}
}

// mayBeRandom finds texts that are worth parsing.
var mayBeRandom = regexp.MustCompile(`\b(` + strings.Join(randomFunctions(), "|") + `|tpl)\b`)

// steadyChart rewrites the templates of a chart and its dependencies.
func steadyChart(c *chart.Chart) {
	for _, t := range c.Templates {
		file := path.Join(c.ChartFullPath(), t.Name)
		text := steady(file, string(t.Data))
		if base := path.Base(t.Name); !strings.HasPrefix(base, "_") {
			// What is executed now is part of what values depend on: a template does not change those of another.
			text = fmt.Sprintf("{{ $_ := %s }}", lookupOf(beginFile, file)) + text
		}
		t.Data = []byte(text)
	}
	for _, d := range c.Dependencies() {
		steadyChart(d)
	}
}

func lookupOf(function, file string) string {
	return fmt.Sprintf("lookup %q %q %q %s", randomAPI, function, "", strconv.Quote(file))
}

// steady rewrites one template. A text that cannot be parsed stays as it is: Helm says what is wrong with it.
func steady(file, text string) string {
	if !mayBeRandom.MatchString(text) {
		return text
	}
	set := map[string]*parse.Tree{}
	tree := parse.New(file)
	tree.Mode = parse.SkipFuncCheck
	if _, err := tree.Parse(text, "{{", "}}", set); err != nil {
		return text
	}
	e := edits{file: file, text: text}
	seen := map[*parse.ListNode]bool{}
	for _, t := range set {
		if t.Root != nil && !seen[t.Root] {
			seen[t.Root] = true
			e.node(t.Root)
		}
	}
	if tree.Root != nil && !seen[tree.Root] {
		e.node(tree.Root)
	}
	return e.apply()
}

// edits are replacements in a text.
type edits struct {
	file, text string
	list       []edit
}

type edit struct {
	at, end int
	with    string
}

func (e *edits) apply() string {
	// From the end; of two at one place, what is inserted there comes last, so that the other still finds its text.
	slices.SortStableFunc(e.list, func(a, b edit) int { return cmp.Or(b.at-a.at, b.end-a.end) })
	text := e.text
	for _, c := range e.list {
		text = text[:c.at] + c.with + text[c.end:]
	}
	return text
}

func (e *edits) node(n parse.Node) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n != nil {
			for _, c := range n.Nodes {
				e.node(c)
			}
		}
	case *parse.ActionNode:
		e.pipe(n.Pipe)
	case *parse.TemplateNode:
		e.pipe(n.Pipe)
	case *parse.IfNode:
		e.branch(&n.BranchNode)
	case *parse.RangeNode:
		e.branch(&n.BranchNode)
	case *parse.WithNode:
		e.branch(&n.BranchNode)
	}
}

func (e *edits) branch(n *parse.BranchNode) {
	e.pipe(n.Pipe)
	e.node(n.List)
	e.node(n.ElseList)
}

func (e *edits) pipe(p *parse.PipeNode) {
	if p == nil {
		return
	}
	for _, c := range p.Cmds {
		if id, ok := c.Args[0].(*parse.IdentifierNode); ok && id.Ident == "tpl" {
			e.tpl(c)
		}
		for i, a := range c.Args {
			e.arg(a, i == 0)
		}
	}
}

func (e *edits) arg(n parse.Node, first bool) {
	switch n := n.(type) {
	case *parse.PipeNode:
		e.pipe(n)
	case *parse.ChainNode:
		e.arg(n.Node, false)
	case *parse.IdentifierNode:
		at := int(n.Pos)
		if !slices.Contains(randomFunctions(), n.Ident) || !strings.HasPrefix(e.text[at:], n.Ident) {
			return
		}
		with := "call (" + lookupOf(n.Ident, e.file) + ").f"
		if !first {
			with = "(" + with + ")"
		}
		e.list = append(e.list, edit{at, at + len(n.Ident), with})
	}
}

// tpl makes the text that tpl is given pass through the same rewriting when it is known.
func (e *edits) tpl(c *parse.CommandNode) {
	if len(c.Args) < 2 {
		return
	}
	at := e.start(c.Args[1])
	end := at + len(c.Args[1].String())
	if len(c.Args) > 2 {
		end = e.start(c.Args[2])
	} else if end > len(e.text) || e.text[at:end] != c.Args[1].String() {
		return
	}
	for end > at && strings.ContainsRune(" \t\r\n", rune(e.text[end-1])) {
		end--
	}
	if at < 0 || end <= at {
		return
	}
	e.list = append(e.list, edit{at, at, "(call (" + lookupOf(rewrite, e.file) + ").f "}, edit{end, end, ")"})
}

// start is where a node begins in the text; that of a pipeline in parentheses is its opening one.
func (e *edits) start(n parse.Node) int {
	at := int(n.Position())
	if c, ok := n.(*parse.ChainNode); ok {
		return e.start(c.Node)
	}
	if _, ok := n.(*parse.PipeNode); ok {
		return strings.LastIndexByte(e.text[:at], '(')
	}
	// The position of .Values.a.b is that of its second part.
	text := n.String()
	return strings.LastIndex(e.text[:min(len(e.text), at+len(text))], text)
}

// randomSource answers the lookups of one rendering.
type randomSource struct {
	in   Input
	file string // the template that is executed
	seen map[[32]byte]int
}

func (s *randomSource) GetClientFor(apiVersion, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	return lookedUp{source: s, api: apiVersion, kind: kind}, true, nil
}

// lookedUp is what a lookup asks. Of Kubernetes' own there is nothing.
type lookedUp struct {
	dynamic.NamespaceableResourceInterface // nil: lookup calls nothing else
	source                                 *randomSource
	api, kind                              string
}

func (l lookedUp) Namespace(string) dynamic.ResourceInterface { return l }

func (l lookedUp) List(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	return nil, apierrors.NewNotFound(schema.GroupResource{}, "")
}

func (l lookedUp) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	if l.api != randomAPI {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, name)
	}
	var f any
	switch l.kind {
	case beginFile:
		l.source.file = name
	case rewrite:
		f = func(text string) string { return steady(name, text) }
	default:
		f = func(args ...any) (any, error) { return l.source.call(l.kind, name, args) }
	}
	return &unstructured.Unstructured{Object: map[string]any{"f": f}}, nil
}

func (s *randomSource) call(function, file string, args []any) (any, error) {
	js, err := json.Marshal(args)
	if err != nil {
		js = fmt.Append(nil, args)
	}
	seed := ""
	if h := s.in.Options.Helm; h != nil {
		seed = h.RandomSeed
	}
	place := mac(s.in.Random.Secret[:], "shoal random value", seed, s.file, file, function, string(js))
	n := s.seen[place]
	s.seen[place]++
	return call(function, args, newStream(mac(place[:], strconv.Itoa(n))), s.in.Random.since(s.in.Options))
}

// rewritten finds calls as they were rewritten, for messages.
var rewritten = regexp.MustCompile(`\(?call \(lookup "shoal\.dev/random" "([A-Za-z0-9]+)" "" "[^"]*"\)\.f\)?`)
