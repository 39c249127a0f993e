// Package check holds objects against the schemas of their kinds, before any API server sees them: those of Kubernetes itself, and of
// the resource definitions among the objects.
//
// It finds what every API server refuses: kinds that do not exist, unknown fields, values of another type, fields that are missing,
// entries of a list that have the same key, and names that are none. What needs more than a schema is left to the API server, and
// so are kinds that nothing here defines.
//
// The schemas of Kubernetes are a file in this package, of one version (Version); generate makes it. They are read when they are used
// for the first time.
package check

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"shoal.dev/shoal/internal/nearest"
)

// Problem is one thing that is wrong with an object.
type Problem struct {
	Field   string // such as spec.replicas; empty: the object as a whole
	Message string
	Warning bool // it depends on the cluster's version
}

// String is "field: message".
func (p Problem) String() string {
	if p.Field == "" {
		return p.Message
	}
	return p.Field + ": " + p.Message
}

// schema is that of a value, in the words of OpenAPI.
type schema struct {
	Ref        string             `json:"$ref"`
	Type       string             `json:"type"`
	Format     string             `json:"format"`
	Properties map[string]*schema `json:"properties"`
	Required   []string           `json:"required"`
	Items      *schema            `json:"items"`
	Additional *additional        `json:"additionalProperties"`
	Enum       []any              `json:"enum"`
	ListType   string             `json:"x-kubernetes-list-type"`
	Keys       []string           `json:"x-kubernetes-list-map-keys"`
	Unknown    bool               `json:"x-kubernetes-preserve-unknown-fields"`
	IntOrText  bool               `json:"x-kubernetes-int-or-string"`
	Embedded   bool               `json:"x-kubernetes-embedded-resource"`
	Default    any                `json:"default"`
}

// additional is the schema of values whose keys are free; in a resource definition it can be true or false.
type additional struct{ schema *schema }

func (a *additional) UnmarshalJSON(data []byte) error {
	if data[0] != '{' {
		return nil
	}
	return json.Unmarshal(data, &a.schema)
}

type schemas struct {
	Version     string             `json:"version"`
	Kinds       map[string]string  `json:"kinds"` // "apps/v1/Deployment" → name of its definition
	Definitions map[string]*schema `json:"definitions"`
}

//go:embed kubernetes.json.gz
var packed []byte

var kubernetes = sync.OnceValue(func() schemas {
	var s schemas
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err == nil {
		err = json.NewDecoder(r).Decode(&s)
	}
	if err != nil {
		panic("controller/check: kubernetes.json.gz: " + err.Error()) // it is part of the program
	}
	return s
})

// Version is that of Kubernetes whose schemas these are, such as v1.36.
func Version() string { return kubernetes().Version }

// Checker knows the kinds of Kubernetes and of the resource definitions among some objects.
type Checker struct {
	own   map[string]*schema // "group/version/Kind"
	newer bool               // the cluster is newer than the schemas: it may know more fields
}

// New returns a Checker for objects as JSON that go to a cluster of that version; empty: any.
func New(objects []map[string]any, version string) Checker {
	c := Checker{own: map[string]*schema{}, newer: minor(version) > minor(Version())}
	for _, o := range objects {
		if api, _ := o["apiVersion"].(string); o["kind"] == "CustomResourceDefinition" && api == "apiextensions.k8s.io/v1" {
			c.define(o)
		}
	}
	return c
}

func (c Checker) define(o map[string]any) {
	var crd struct {
		Spec struct {
			Group string
			Names struct{ Kind string }
			// A version that is not served has a schema, too; the API server says that it is not served.
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPIV3Schema *schema `json:"openAPIV3Schema"`
				}
			}
		}
	}
	data, err := json.Marshal(o)
	if err != nil || json.Unmarshal(data, &crd) != nil {
		return // what is wrong with it, its own schema says
	}
	for _, v := range crd.Spec.Versions {
		c.own[crd.Spec.Group+"/"+v.Name+"/"+crd.Spec.Names.Kind] = v.Schema.OpenAPIV3Schema
	}
}

func minor(version string) int {
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	if len(parts) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimRight(parts[1], "+"))
	return n
}

// Object returns everything that is wrong with an object.
func (c Checker) Object(o map[string]any) []Problem {
	api, _ := o["apiVersion"].(string)
	kind, _ := o["kind"].(string)
	w := walk{newer: c.newer}
	w.names(api, kind, o)
	if s, ok := c.own[api+"/"+kind]; ok {
		w.resource(s, o)
		return w.found
	}
	k := kubernetes()
	if name, ok := k.Kinds[api+"/"+kind]; ok {
		w.builtIn = true
		w.value(k.Definitions[name], o, "")
		return w.found
	}
	w.kind(api, kind)
	return w.found
}

type walk struct {
	builtIn bool
	newer   bool
	found   []Problem
}

func (w *walk) say(at, format string, args ...any) {
	w.found = append(w.found, Problem{Field: at, Message: fmt.Sprintf(format, args...)})
}

// kind is about one that is not known; groups that are not Kubernetes' own are somebody else's.
func (w *walk) kind(api, kind string) {
	group, _, ok := strings.Cut(api, "/")
	if !ok {
		group = ""
	}
	var here, elsewhere []string // kinds of this version; versions that have the kind
	groups := map[string]bool{}
	for k := range kubernetes().Kinds {
		i := strings.LastIndex(k, "/")
		a, name := k[:i], k[i+1:]
		g, _, ok := strings.Cut(a, "/")
		if !ok {
			g = ""
		}
		groups[g] = true
		if a == api {
			here = append(here, name)
		}
		if name == kind {
			elsewhere = append(elsewhere, a)
		}
	}
	slices.Sort(elsewhere)
	switch near := nearest.Word(kind, here); {
	case !groups[group]:
		return
	case len(here) > 0 && len(elsewhere) > 0 && !slices.ContainsFunc(elsewhere, func(a string) bool { return strings.HasPrefix(a, group+"/") }):
		w.say("", "%s has no kind %s: it is in %s", api, kind, strings.Join(elsewhere, ", "))
	case near != "" && len(elsewhere) == 0:
		w.say("", "%s has no kind %s (did you mean %s?)", api, kind, near)
	case len(elsewhere) > 0: // an older Kubernetes may have it
		w.found = append(w.found, Problem{Warning: true,
			Message: fmt.Sprintf("Kubernetes %s has no %s of %s: it is in %s there", Version(), kind, api, strings.Join(elsewhere, ", "))})
	default:
		w.found = append(w.found, Problem{Message: fmt.Sprintf("Kubernetes %s has no %s of %s", Version(), kind, api), Warning: true})
	}
}

// names checks what identifies the object, and its labels.
func (w *walk) names(api, kind string, o map[string]any) {
	meta, _ := o["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	if name == "" || isPlaceholder(name) {
		return // others say so
	}
	group, _, _ := strings.Cut(api, "/")
	var wrong []string
	switch {
	case group == "rbac.authorization.k8s.io":
		wrong = content.IsPathSegmentName(name)
	case api == "v1" && kind == "Namespace":
		wrong = validation.ValidateNamespaceName(name, false)
	case api == "v1" && kind == "Service": // RFC 1035 until 1.34
		wrong = validation.NameIsDNSLabel(name, false)
	default:
		wrong = validation.NameIsDNSSubdomain(name, false)
	}
	if len(wrong) > 0 {
		w.say("metadata.name", "%q is no name: %s", name, plain(wrong[0]))
	}
	if ns, _ := meta["namespace"].(string); ns != "" && !isPlaceholder(ns) {
		if wrong := validation.ValidateNamespaceName(ns, false); len(wrong) > 0 {
			w.say("metadata.namespace", "%q is no name: %s", ns, plain(wrong[0]))
		}
	}
	texts := func(key string) map[string]string {
		out := map[string]string{}
		m, _ := meta[key].(map[string]any)
		for k, v := range m {
			if s, ok := v.(string); ok && !isPlaceholder(s) && !isPlaceholder(k) {
				out[k] = s
			}
		}
		return out
	}
	errs := metav1.ValidateLabels(texts("labels"), field.NewPath("metadata", "labels"))
	errs = append(errs, validation.ValidateAnnotations(texts("annotations"), field.NewPath("metadata", "annotations"))...)
	for _, e := range errs {
		w.say(e.Field, "%v: %s", e.BadValue, plain(e.Detail))
	}
}

// plain leaves out the examples and expressions that Kubernetes adds to its messages.
func plain(s string) string {
	s, _, _ = strings.Cut(s, " (e.g. ")
	for _, what := range []string{"a lowercase RFC 1123 label ", "a lowercase RFC 1123 subdomain "} {
		s = strings.TrimPrefix(s, what)
	}
	return s
}

// resource checks an object of a resource definition; its metadata is Kubernetes'.
func (w *walk) resource(s *schema, o map[string]any) {
	if s == nil {
		return
	}
	own := *s
	own.Properties = maps.Clone(s.Properties)
	for _, k := range []string{"apiVersion", "kind", "metadata"} {
		delete(own.Properties, k)
	}
	rest := maps.Clone(o)
	meta := rest["metadata"]
	for _, k := range []string{"apiVersion", "kind", "metadata"} {
		delete(rest, k)
	}
	own.Required = slices.DeleteFunc(slices.Clone(own.Required), func(k string) bool { return k == "metadata" || k == "kind" || k == "apiVersion" })
	w.value(&own, rest, "")
	w.value(&schema{Ref: "apimachinery.pkg.apis.meta.v1.ObjectMeta"}, meta, "metadata")
}

func (w *walk) value(s *schema, v any, at string) {
	if s == nil || v == nil { // a null is as if the field were absent
		return
	}
	if s.Ref != "" {
		w.reference(s.Ref, v, at)
		return
	}
	if text, ok := v.(string); ok && isPlaceholder(text) {
		return
	}
	if s.IntOrText || s.Format == "int-or-string" {
		switch v.(type) {
		case string, float64, json.Number:
		default:
			w.say(at, "must be a number or a string, not %s", wordsOf(v))
		}
		return
	}
	switch m := v.(type) {
	case map[string]any:
		if s.Type != "object" && s.Type != "" {
			break
		}
		w.object(s, m, at)
		return
	case []any:
		if s.Type != "array" && s.Type != "" {
			break
		}
		w.list(s, m, at)
		return
	case string:
		if s.Type != "string" && s.Type != "" {
			break
		}
		if s.Format == "byte" {
			if _, err := base64.StdEncoding.DecodeString(m); err != nil {
				w.say(at, "must be base64: plain text of a Secret stands in stringData")
			}
		}
		w.enum(s, v, at)
		return
	case bool:
		if s.Type == "boolean" || s.Type == "" {
			return
		}
	case float64:
		if s.Type == "number" || s.Type == "" || s.Type == "integer" && m == float64(int64(m)) {
			w.enum(s, v, at)
			return
		}
	}
	if s.Type == "string" {
		w.say(at, "must be a string, not %s: put it in quotes", wordsOf(v))
		return
	}
	article := map[string]string{"object": "a map", "array": "a list", "integer": "a whole number", "number": "a number", "boolean": "true or false"}
	if want := article[s.Type]; want != "" {
		w.say(at, "must be %s, not %s", want, wordsOf(v))
	}
}

func (w *walk) reference(name string, v any, at string) {
	switch {
	case strings.HasSuffix(name, "resource.Quantity"):
		if _, number := v.(float64); !number {
			w.value(&schema{Type: "string"}, v, at)
		}
	case strings.HasPrefix(name, "apiextensions-apiserver."):
		// Schemas inside resource definitions: the API server knows more about them than their schema says.
		if strings.HasSuffix(name, ".CustomResourceDefinitionSpec") || strings.HasSuffix(name, ".CustomResourceDefinitionNames") || strings.HasSuffix(name, ".CustomResourceDefinitionVersion") {
			w.value(kubernetes().Definitions[name], v, at)
		}
	default:
		w.value(kubernetes().Definitions[name], v, at)
		if c, ok := v.(map[string]any); ok && (strings.HasSuffix(name, "core.v1.Container") || strings.HasSuffix(name, "core.v1.Volume")) {
			if n, _ := c["name"].(string); n != "" && !isPlaceholder(n) {
				if wrong := utilvalidation.IsDNS1123Label(n); len(wrong) > 0 {
					w.say(join(at, "name"), "%q is no name: %s", n, plain(wrong[0]))
				}
			}
		}
	}
}

func (w *walk) object(s *schema, m map[string]any, at string) {
	for _, k := range s.Required {
		if m[k] == nil && !(at == "" && k == "status") && !slices.Contains(leftOut, k) {
			w.say(join(at, k), "is missing")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		sub, ok := s.Properties[k]
		switch {
		case at == "" && k == "status": // written by controllers
		case s.Embedded && (k == "apiVersion" || k == "kind" || k == "metadata"):
		case ok:
			w.value(sub, m[k], join(at, k))
		case s.Additional != nil:
			w.value(s.Additional.schema, m[k], join(at, k))
		case s.Unknown || len(s.Properties) == 0 || isPlaceholder(k):
		default:
			p := Problem{Field: join(at, k), Message: "unknown field", Warning: w.newer && w.builtIn}
			if near := nearest.Word(k, slices.Collect(maps.Keys(s.Properties))); near != "" {
				p.Message += fmt.Sprintf(" (did you mean %q?)", near)
			}
			w.found = append(w.found, p)
		}
	}
}

// leftOut are fields that a schema of Kubernetes requires and an API server does not.
var leftOut = []string{"creationTimestamp"}

func (w *walk) list(s *schema, list []any, at string) {
	seen := map[string]bool{}
	for i, v := range list {
		at := fmt.Sprintf("%s[%d]", at, i)
		w.value(s.Items, v, at)
		m, _ := v.(map[string]any)
		if s.ListType != "map" || m == nil {
			continue
		}
		var key []string
		for _, k := range s.Keys {
			id := m[k]
			if id == nil && k == "protocol" {
				id = "TCP"
			}
			if id == nil && s.Items != nil && s.Items.Properties[k] != nil {
				id = s.Items.Properties[k].Default
			}
			if id == nil {
				key = nil
				break
			}
			key = append(key, fmt.Sprintf("%s %v", k, id))
		}
		if id := strings.Join(key, ", "); id != "" && seen[id] {
			w.say(at, "%s is there twice", id)
		} else if id != "" {
			seen[id] = true
		}
	}
}

func (w *walk) enum(s *schema, v any, at string) {
	if len(s.Enum) == 0 || slices.ContainsFunc(s.Enum, func(e any) bool { return fmt.Sprint(e) == fmt.Sprint(v) }) {
		return
	}
	var known []string
	for _, e := range s.Enum {
		known = append(known, fmt.Sprint(e))
	}
	w.say(at, "%v is not known: use %s", v, strings.Join(known, ", "))
}

// isPlaceholder says whether a text stands for a value that only the site knows.
func isPlaceholder(s string) bool { return strings.Contains(s, "<site value ") }

// wordsOf names the type of a value; the value itself may be a secret.
func wordsOf(v any) string {
	switch v.(type) {
	case string:
		return "text"
	case bool:
		return "true or false"
	case float64:
		return "a number"
	case []any:
		return "a list"
	}
	return "a map"
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}
