package apply

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
)

// filling replaces tokens by what the site says. What it fills in never leaves this package but in objects.
type filling struct {
	tokens   []string
	replacer *strings.Replacer
}

// source is an object on the site that holds values.
type source struct {
	gvr             schema.GroupVersionResource
	namespace, name string
}

func sourceOf(v bundlefmt.ValuesFrom, p bundlefmt.Policy) source {
	s := source{gvr: schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, namespace: v.Namespace, name: v.Name}
	if v.Kind == "Secret" {
		s.gvr.Resource = "secrets"
	}
	if s.namespace == "" {
		s.namespace = policyNamespace(p)
	}
	return s
}

// siteValues reads what the site fills in, with the deployment's rights. The finding, about the object that holds the
// values, names paths and never a value.
func (a *Applier) siteValues(ctx context.Context, p *pass) (*filling, *Finding, error) {
	h := p.d.Handling
	if len(h.SiteValues) == 0 && len(h.ValuesFrom) == 0 {
		return nil, nil, nil
	}
	var sources []source
	for _, v := range h.ValuesFrom {
		sources = append(sources, sourceOf(v, p.d.Policy))
	}
	a.tracked.reads(p.d.Name, sources)
	known := map[string]bundlefmt.SiteValue{}
	for _, v := range h.SiteValues {
		known[v.Path] = v
	}
	merged := map[string]any{}
	marks := &filling{replacer: strings.NewReplacer()} // finds tokens, fills nothing in
	for _, v := range h.SiteValues {
		if !v.Fixed {
			marks.tokens = append(marks.tokens, v.Token)
		}
	}
	for i, v := range h.ValuesFrom {
		ref := Ref{Version: "v1", Kind: v.Kind, Namespace: sources[i].namespace, Name: v.Name}
		doc, f, err := a.readValues(ctx, p, ref, sources[i], v)
		if f != nil || err != nil {
			return marks, f, err
		}
		if f := refuse(ref, v.Key, doc, known); f != nil {
			return marks, f, nil
		}
		merge(merged, doc)
	}
	set := map[string]any{}
	flatten(merged, "", set)
	out := &filling{tokens: marks.tokens}
	var pairs []string
	for _, v := range h.SiteValues {
		if v.Fixed {
			continue
		}
		text, ok := scalar(set[v.Path])
		if !ok {
			text = v.Default
		}
		pairs = append(pairs, v.Token, text)
	}
	out.replacer = strings.NewReplacer(pairs...)
	return out, nil, nil
}

var lineNumber = regexp.MustCompile(`line \d+`)

func (a *Applier) readValues(ctx context.Context, p *pass, ref Ref, s source, v bundlefmt.ValuesFrom) (map[string]any, *Finding, error) {
	fail := func(format string, args ...any) (map[string]any, *Finding, error) {
		return nil, &Finding{ref, NoSiteValues, fmt.Sprintf(format, args...)}, nil
	}
	client, f, err := p.writer(ctx, ref, kind{gvr: s.gvr, namespaced: true}, s.namespace)
	if f != nil || err != nil {
		return nil, f, err
	}
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	u, err := client.Get(rctx, s.name, metav1.GetOptions{})
	if out := a.outage(ctx, err); out != nil {
		return nil, nil, fmt.Errorf("read the site's values: %w", out)
	}
	if apierrors.IsNotFound(err) {
		return fail("is to hold values of this site and does not exist: create it, with the key %q", v.Key)
	}
	if err != nil {
		return fail("is to hold values of this site and cannot be read: %s", finding(ref, err).Message)
	}
	data, ok, _ := unstructured.NestedString(u.Object, "data", v.Key)
	text := []byte(data)
	if ok && v.Kind == "Secret" {
		if text, err = base64.StdEncoding.DecodeString(data); err != nil {
			return fail("key %q is not base64", v.Key)
		}
	}
	if binary, has, _ := unstructured.NestedString(u.Object, "binaryData", v.Key); !ok && has {
		if text, err = base64.StdEncoding.DecodeString(binary); err == nil {
			ok = true
		}
	}
	if !ok {
		return fail("is to hold values of this site and has no key %q: add it", v.Key)
	}
	var doc map[string]any
	b, err := yaml.YAMLToJSON(text)
	if err == nil {
		doc, err = decodeNumbers(b)
	}
	if err != nil { // the decoder's own words may quote a value
		where := ""
		if at := lineNumber.FindString(err.Error()); at != "" {
			where = ", see " + at
		}
		return fail("key %q is no YAML map of values%s", v.Key, where)
	}
	return doc, nil, nil
}

func decodeNumbers(b []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var doc map[string]any
	if err := dec.Decode(&doc); err != nil && err != io.EOF {
		return nil, err
	}
	return doc, nil
}

// refuse says which path a site must not set.
func refuse(ref Ref, key string, doc map[string]any, known map[string]bundlefmt.SiteValue) *Finding {
	set := map[string]any{}
	flatten(doc, "", set)
	for _, path := range slices.Sorted(maps.Keys(set)) {
		v, ok := known[path]
		_, isScalar := scalar(set[path])
		why := ""
		switch {
		case !ok:
			why = "which the bundle does not read from the site: correct the path, or take it out"
		case v.Fixed:
			why = "which the chart computes with, so that it cannot be filled in here: set it in the bundle, and take it out here"
		case !isScalar:
			why = "and not to a text, a number, true or false"
		case empty(set[path]) && v.Default != "":
			why = "to an empty text, where the chart was rendered as if it had one: give it a text, or take it out for the bundle's own"
		default:
			continue
		}
		return &Finding{ref, NoSiteValues, fmt.Sprintf("key %q sets %s, %s", key, path, why)}
	}
	return nil
}

// flatten lists what a document sets, by path. null sets nothing.
func flatten(doc map[string]any, prefix string, into map[string]any) {
	for k, v := range doc {
		path := prefix + strings.ReplaceAll(k, ".", `\.`)
		switch x := v.(type) {
		case nil:
		case map[string]any:
			flatten(x, path+".", into)
		default:
			into[path] = v
		}
	}
}

func merge(into, from map[string]any) {
	for k, v := range from {
		f, ok1 := v.(map[string]any)
		i, ok2 := into[k].(map[string]any)
		if ok1 && ok2 {
			merge(i, f)
		} else {
			into[k] = v
		}
	}
}

// empty: a chart may leave out what belongs to a value without a text, which here is decided already.
func empty(v any) bool { s, ok := v.(string); return ok && s == "" }

func scalar(v any) (string, bool) {
	switch x := v.(type) {
	case string:
		return x, true
	case json.Number:
		return x.String(), true
	case bool:
		return fmt.Sprint(x), true
	}
	return "", false
}

// fill replaces the tokens in an object and notes where they were.
func (f *filling) fill(o *object) {
	if f == nil || len(f.tokens) == 0 || o.fail != nil {
		return
	}
	o.filled = map[string]bool{}
	for k, v := range o.want.Object {
		if k == "data" && isSecret(o.ref) {
			f.fillData(v, o.filled)
			continue
		}
		o.want.Object[k] = f.walk(v, loose("", k), o.filled)
	}
}

func (f *filling) walk(v any, path string, filled map[string]bool) any {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			x[k] = f.walk(e, loose(path, k), filled)
		}
	case []any:
		for i, e := range x {
			x[i] = f.walk(e, loose(path, "*"), filled)
		}
	case string:
		if f.has(x) {
			filled[path] = true
			return f.replacer.Replace(x)
		}
	}
	return v
}

func (f *filling) fillData(v any, filled map[string]bool) {
	data, _ := v.(map[string]any)
	for k, e := range data {
		s, _ := e.(string)
		if b, err := base64.StdEncoding.DecodeString(s); err == nil && f.has(string(b)) {
			filled[loose("/data", k)] = true
			data[k] = base64.StdEncoding.EncodeToString([]byte(f.replacer.Replace(string(b))))
		}
	}
}

func (f *filling) has(s string) bool {
	return slices.ContainsFunc(f.tokens, func(t string) bool { return strings.Contains(s, t) })
}

// loose is a path in which every element of a list is "*".
func loose(path, step string) string { return path + "/" + strings.ReplaceAll(step, "/", "~1") }

// hide notes where an object holds values of the site, now or by an earlier release: that may still be on the cluster.
func (a *Applier) hide(o *object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := id{o.ref.Group, o.ref.Kind, o.ref.Namespace, o.ref.Name}
	known := a.hidden[key]
	if len(o.filled) > 0 {
		if known == nil {
			known = map[string]bool{}
			a.hidden[key] = known
		}
		maps.Copy(known, o.filled)
	}
	o.hidden = maps.Clone(known)
}

// touches: the change is at, in, or around something that the site filled in.
func (o *object) touches(c change) bool {
	for p := range o.hidden {
		if p == c.loose || strings.HasPrefix(p, c.loose+"/") || strings.HasPrefix(c.loose, p+"/") {
			return true
		}
	}
	return false
}

// onlyFilled: nothing differs but what the site fills in.
func (o *object) onlyFilled(changes []change) bool {
	return !slices.ContainsFunc(changes, func(c change) bool { return !o.filled[c.loose] })
}
