package render

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
)

// Limits against YAML that is small to write and large to read.
const (
	maxNodes   = 500_000 // values of one document after its aliases are expanded
	maxNesting = 100
)

// documents cuts a stream at its "---" and "..." lines, and JSON values that follow one another. YAML allows these markers nowhere
// else at the start of a line, so a cut never falls into a text. Positions matter: document numbers in messages count empty ones too.
func documents(data []byte) [][]byte {
	var docs [][]byte
	for _, doc := range marked(data) {
		docs = append(docs, jsonValues(doc)...)
	}
	return docs
}

// marked cuts a stream at its markers.
func marked(data []byte) [][]byte {
	var docs [][]byte
	var doc []byte
	started := false
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))) {
		marker := bytes.TrimRight(line, " \t\r\n")
		switch {
		case bytes.Equal(marker, []byte("...")):
			if started || !blank(doc) {
				docs = append(docs, doc)
			}
			started, doc = false, nil
		case bytes.HasPrefix(line, []byte("---")) && (len(marker) == 3 || line[3] == ' ' || line[3] == '\t'):
			if started || !blank(doc) {
				docs = append(docs, doc)
			}
			started = true
			doc = append([]byte(nil), line[3:]...)
		default:
			doc = append(doc, line...)
		}
	}
	if started || !blank(doc) || len(docs) == 0 {
		docs = append(docs, doc)
	}
	return docs
}

func blank(doc []byte) bool { return len(bytes.TrimSpace(doc)) == 0 }

// jsonValues cuts a document that is several JSON values, as kubectl reads them; any other stays whole.
func jsonValues(doc []byte) [][]byte {
	if text := bytes.TrimSpace(doc); len(text) == 0 || text[0] != '{' {
		return [][]byte{doc}
	}
	var out [][]byte
	for dec := json.NewDecoder(bytes.NewReader(doc)); ; {
		var v json.RawMessage
		switch err := dec.Decode(&v); {
		case err == io.EOF:
			return out
		case err != nil:
			return [][]byte{doc} // flow YAML, or a mistake that others name
		}
		out = append(out, v)
	}
}

// checkEnd refuses a document after whose end something follows: the YAML library would not read it.
func checkEnd(doc []byte) error {
	if plainKey.Match(doc) {
		return nil // a map that begins at the margin ends where the document does
	}
	dec := yamlv3.NewDecoder(bytes.NewReader(doc))
	var n yamlv3.Node
	if err := dec.Decode(&n); err != nil {
		return nil // the engine says better what is wrong
	}
	if err := dec.Decode(&n); err != io.EOF {
		line := n.Line
		if err != nil {
			line = 0 // the library counts from 0 here, and leaves 0 out
			_, _ = fmt.Sscanf(err.Error(), "yaml: line %d:", &line)
			line++
		}
		return fmt.Errorf("line %d: more follows after the end of the object: put a line --- between objects", line)
	}
	return nil
}

// plainKey begins a document whose first line, comments aside, is a key at the margin.
var plainKey = regexp.MustCompile(`^(?:[ \t]*(?:#[^\n]*)?\r?\n)*[A-Za-z]`)

// toJSON converts one YAML document. Strict: a key given twice is an error. It returns nil for an empty document.
func toJSON(doc []byte, strict bool) ([]byte, error) {
	if err := checkAliases(doc); err != nil {
		return nil, err
	}
	if err := checkEnd(doc); err != nil {
		return nil, err
	}
	convert := yaml.YAMLToJSON
	if strict {
		convert = yaml.YAMLToJSONStrict
	}
	js, err := convert(doc)
	if err != nil {
		return nil, fmt.Errorf("%s", yamlMessage(err))
	}
	if bytes.Equal(js, []byte("null")) {
		return nil, nil
	}
	return js, nil
}

// checkAliases refuses documents that would become huge once aliases are written out; every engine writes them out.
func checkAliases(doc []byte) error {
	if !bytes.Contains(doc, []byte("&")) || !bytes.Contains(doc, []byte("*")) {
		return nil
	}
	var n yamlv3.Node
	if err := yamlv3.Unmarshal(doc, &n); err != nil {
		return nil // the engine says better what is wrong
	}
	left := maxNodes
	return spend(&n, 0, &left)
}

func spend(n *yamlv3.Node, depth int, left *int) error {
	if *left--; *left < 0 {
		return fmt.Errorf("holds more than %d values once its aliases are expanded", maxNodes)
	}
	if depth > maxNesting {
		return fmt.Errorf("nested deeper than %d", maxNesting)
	}
	if n.Kind == yamlv3.AliasNode {
		return spend(n.Alias, depth+1, left)
	}
	for _, c := range n.Content {
		if err := spend(c, depth+1, left); err != nil {
			return err
		}
	}
	return nil
}

// addYAML adds the objects of a YAML stream.
func (r *rendering) addYAML(origin string, data []byte, strict bool) error {
	how := yamlStream
	if strict {
		how = strictStream
	}
	docs, err := r.memory.read(how, string(data), func() ([]document, error) {
		var out []document
		var errs []error
		docs := documents(data)
		for i, doc := range docs {
			d, err := parseDocument(string(doc), strict)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s%w", where(origin, i, len(docs)), err))
			}
			out = append(out, d)
		}
		return out, errors.Join(errs...)
	})
	if err != nil {
		return err
	}
	for i, d := range docs {
		where := where(origin, i, len(docs))
		if d.other != "" {
			r.note("%s: left out: %s", where, d.other)
		}
		if d.isHook() {
			r.note("%s: %s counts only in the templates of a chart: applied as an ordinary object", where, hookAnnotation)
		}
		if err := r.add(where, d, nil); err != nil {
			return err
		}
	}
	return nil
}

// where names a document of several.
func where(origin string, i, n int) string {
	if n == 1 {
		return origin
	}
	return fmt.Sprintf("%s (document %d)", origin, i+1)
}

// document is what one YAML document holds.
type document struct {
	objects     []bundlefmt.Object // of a list its items
	kind, name  string
	annotations map[string]string // of a hook
	other       string            // why it holds none: it is a file for something else
}

func (d document) isHook() bool { _, ok := d.annotations[hookAnnotation]; return ok }

// parseDocument reads one YAML document; an empty one holds nothing. Errors begin with ": " or the place in the document.
func parseDocument(doc string, strict bool) (document, error) {
	if d, ok := quickDocument(doc); ok {
		return d, nil
	}
	js, err := toJSON([]byte(doc), strict)
	if err != nil {
		return document{}, fmt.Errorf(": %w", err)
	}
	if js == nil {
		return document{}, nil
	}
	if why := foreign(js, strict); why != "" {
		return document{other: why}, nil
	}
	var head struct {
		Kind     string `json:"kind"`
		Metadata struct {
			Name        string            `json:"name"`
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	_ = json.Unmarshal(js, &head) // what is wrong with it, objects says
	d := document{kind: head.Kind, name: head.Metadata.Name}
	if _, ok := head.Metadata.Annotations[hookAnnotation]; ok {
		d.annotations = head.Metadata.Annotations
	}
	d.objects, err = objects(nil, js, 0)
	return d, err
}

// foreign says why a file of plain YAML is no Kubernetes object and was not meant to be one: settings of other tools, values, compose
// files lie in the same directories. What has apiVersion or metadata is an object in which something is missing.
func foreign(js []byte, plain bool) string {
	if !plain {
		return ""
	}
	if js[0] != '{' {
		return "it is no Kubernetes object, which is a map with apiVersion, kind and metadata"
	}
	var head map[string]json.RawMessage
	if json.Unmarshal(js, &head) != nil {
		return ""
	}
	var kind, api string
	_ = json.Unmarshal(head["kind"], &kind)
	_ = json.Unmarshal(head["apiVersion"], &api)
	switch {
	case kind == "Kustomization" || kind == "Component":
		if group, _, _ := strings.Cut(api, "/"); group == "kustomize.config.k8s.io" || api == "" {
			return "it is a kustomization that nothing uses: name its directory in kustomize.dir"
		}
	case head["kind"] == nil && head["apiVersion"] == nil && head["metadata"] == nil:
		return "it has neither kind nor apiVersion nor metadata, so it is no Kubernetes object"
	}
	return ""
}

// quickDocument reads a document of one object that is written simply, as nearly all are. It leaves all others to those who
// say better what is wrong with them.
func quickDocument(doc string) (document, bool) {
	v, ok := quickYAML(doc)
	if !ok {
		return document{}, false
	}
	meta, _ := v["metadata"].(map[string]any)
	kind, _ := v["kind"].(string)
	name, _ := meta["name"].(string)
	if strings.HasSuffix(kind, "List") {
		return document{}, false
	}
	o, err := bundlefmt.ObjectOf(v)
	if err != nil {
		return document{}, false
	}
	d := document{kind: kind, name: name, objects: []bundlefmt.Object{o}}
	annotations, _ := meta["annotations"].(map[string]any)
	if _, ok := annotations[hookAnnotation]; !ok {
		return d, true
	}
	d.annotations = make(map[string]string, len(annotations))
	for k, a := range annotations {
		if d.annotations[k], ok = a.(string); !ok {
			return document{}, false
		}
	}
	return d, true
}

// objects appends one object, or those in a list.
func objects(to []bundlefmt.Object, js []byte, depth int) ([]bundlefmt.Object, error) {
	var head struct {
		Kind     string            `json:"kind"`
		Items    []json.RawMessage `json:"items"`
		Metadata struct {
			Name         string `json:"name"`
			GenerateName string `json:"generateName"`
		} `json:"metadata"`
	}
	if js[0] != '{' {
		return nil, errors.New(": a Kubernetes object expected")
	}
	if err := json.Unmarshal(js, &head); err == nil {
		switch {
		case strings.HasSuffix(head.Kind, "List") && head.Items != nil && head.Metadata.Name == "":
			if depth > 2 {
				return nil, errors.New(": lists are nested too deeply")
			}
			for i, item := range head.Items {
				var err error
				if to, err = objects(to, item, depth+1); err != nil {
					return nil, fmt.Errorf(" (item %d)%w", i+1, err)
				}
			}
			return to, nil
		case head.Metadata.Name == "" && head.Metadata.GenerateName != "":
			return nil, fmt.Errorf(": %s has generateName, which makes a new object each time: give it a metadata.name", head.Kind)
		}
	}
	o, err := bundlefmt.NewObject(js)
	if err != nil {
		return nil, fmt.Errorf(": %w", err)
	}
	return append(to, o), nil
}

// add adds what a document holds.
func (r *rendering) add(origin string, d document, h *bundlefmt.Hook) error {
	if limit := bundlefmt.DefaultLimits().Objects; int64(len(r.objs)+len(d.objects)) > limit {
		return fmt.Errorf("%s: more than %d objects: split the bundle", origin, limit)
	}
	for i, o := range d.objects {
		where := origin
		if len(d.objects) > 1 {
			where = fmt.Sprintf("%s (item %d)", origin, i+1)
		}
		r.objs = append(r.objs, object{Object: o, origin: where, hook: h})
	}
	return nil
}

// bundle orders the objects and refuses what must not be shipped.
func (r *rendering) bundle() (*bundlefmt.Bundle, error) {
	if err := r.checkScope(); err != nil {
		return nil, err
	}
	rank := ranks()
	slices.SortStableFunc(r.objs, func(a, b object) int { return compare(rank, a.Ref, b.Ref) })
	seen := make(map[bundlefmt.Ref]int, len(r.objs))
	kept := make([]object, 0, len(r.objs))
	for _, o := range r.objs {
		id := o.Ref
		id.Version = ""
		// Two objects that differ only in that one leaves its namespace to the default are one on the cluster.
		if id.Namespace == "" || r.in.Options.Namespace != "" {
			id.Namespace = r.namespace()
		}
		if i, ok := seen[id]; ok {
			first := &kept[i]
			if first.hook == nil && o.hook == nil && first.Ref == o.Ref && bytes.Equal(first.JSON, o.JSON) {
				r.note("%s: %s is the same in %s, and counts once", o.origin, o.Ref, first.origin)
				continue
			}
			if !sameHook(*first, o) {
				return nil, collide(*first, o)
			}
			first.hook = &bundlefmt.Hook{Events: inOrder(append(slices.Clone(first.hook.Events), o.hook.Events...), hookEvents()), Weight: o.hook.Weight, Delete: o.hook.Delete}
			continue
		}
		seen[id] = len(kept)
		kept = append(kept, o)
	}
	objs := make([]bundlefmt.Object, len(kept))
	for i, o := range kept {
		objs[i] = o.Object
		if o.hook != nil {
			h := *o.hook
			h.Object = i
			r.handling.Hooks = append(r.handling.Hooks, h)
		}
	}
	// In the order in which Helm runs the hooks of one event: by weight, then name, then kind.
	slices.SortStableFunc(r.handling.Hooks, func(a, b bundlefmt.Hook) int {
		return cmp.Or(cmp.Compare(a.Weight, b.Weight), strings.Compare(objs[a.Object].Name, objs[b.Object].Name))
	})
	if err := r.handle(); err != nil {
		return nil, err
	}
	b, err := bundlefmt.New(objs, r.handling, bundlefmt.DefaultLimits())
	if err != nil {
		return nil, fmt.Errorf("%w: split the bundle", err)
	}
	return b, nil
}

// checkScope finds cluster-scoped objects in a bundle that forces a namespace. It knows Kubernetes' own kinds and those
// the bundle defines; the agent knows the rest.
func (r *rendering) checkScope() error {
	ns := r.in.Options.Namespace
	if ns == "" {
		return nil
	}
	all := make([]bundlefmt.Object, len(r.objs))
	for i, o := range r.objs {
		all[i] = o.Object
	}
	s := scopesOf(all)
	for _, o := range r.objs {
		if namespaced, _ := s.namespaced(o.Ref); !namespaced {
			return fmt.Errorf("%s: %s belongs to no namespace, but the option namespace forces all objects into %q: use defaultNamespace instead", o.origin, o.Ref, ns)
		}
	}
	return nil
}

func yamlMessage(err error) string {
	s := err.Error()
	for _, p := range []string{"error converting YAML to JSON: ", "yaml: ", "unmarshal errors:\n"} {
		s = strings.ReplaceAll(s, p, "")
	}
	return strings.Join(strings.Fields(s), " ")
}
