package source

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path"
	"path/filepath"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/internal/cases"
)

// jsonSchema is the schema as editors take it (draft 07, which all of them know).
func jsonSchema() ([]byte, error) {
	root := fleetSchema().json()
	root["$schema"] = "http://json-schema.org/draft-07/schema#"
	root["title"] = "fleet.yaml of Shoal"
	props := root["properties"].(map[string]any)
	entry := props["targets"].(map[string]any)["items"]
	root["definitions"] = map[string]any{"target": entry}
	for _, list := range []string{"targets", "targetCustomizations"} {
		props[list].(map[string]any)["items"] = map[string]any{"$ref": "#/definitions/target"}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(root)
	return b.Bytes(), err
}

func (f field) json() map[string]any {
	m := map[string]any{}
	if f.doc != "" {
		m["description"] = f.doc
	}
	if f.refused != "" {
		return map[string]any{"not": map[string]any{}, "description": f.refused}
	}
	list := func(kind kind) {
		item := f
		item.kind, item.doc, item.items = kind, "", 0
		m["type"], m["items"] = "array", item.json()
		if f.items > 0 {
			m["maxItems"] = f.items
		}
	}
	switch f.kind {
	case str:
		m["type"] = "string"
		if f.null != "" {
			m["type"] = []string{"string", "null"}
		}
		if len(f.enum) > 0 {
			m["enum"] = f.enum
		}
		if t := f.format; t != nil {
			p := t.pattern + "|^$"
			if t.templated {
				p += `|\$\{`
			}
			m["pattern"] = p
			if !t.templated {
				m["maxLength"] = t.max
			}
		}
	case boolean:
		m["type"] = "boolean"
	case integer:
		m["type"], m["minimum"] = "integer", f.min
		if f.max < math.MaxInt64 { // which editors cannot count
			m["maximum"] = f.max
		}
	case numberOrPercent:
		pattern := countFormat.pattern
		if f.min > 0 {
			pattern = `^(?:0*[1-9][0-9]*%?)$`
		}
		m["anyOf"] = []any{map[string]any{"type": "integer", "minimum": f.min}, map[string]any{"type": "string", "pattern": pattern}}
	case stringList:
		list(str)
	case stringMap:
		m["type"], m["additionalProperties"] = "object", map[string]any{"type": "string"}
		if len(f.required) > 0 {
			m["minProperties"] = 1
		}
	case stringMaps:
		f.required = []string{""}
		list(stringMap)
	case objects:
		list(object)
	case free:
		m["type"] = "object"
	case object:
		m["type"], m["additionalProperties"] = "object", false
		props := map[string]any{}
		for _, sub := range f.fields {
			props[sub.name] = sub.json()
		}
		m["properties"] = props
		if len(f.required) > 0 {
			m["required"] = f.required
		}
		var oneOf []any
		for _, k := range f.anyOf {
			oneOf = append(oneOf, map[string]any{"required": []string{k}})
		}
		if oneOf != nil {
			m["anyOf"] = oneOf
		}
	}
	return m
}

const schemaFile = "../../docs/fleet.schema.json"

// TestSchemaFile: the published schema is that of the parser.
func TestSchemaFile(t *testing.T) {
	t.Parallel()
	want, err := jsonSchema()
	if err != nil {
		t.Fatal(err)
	}
	if cases.Update() {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/fleet.schema.json is not that of the parser: go test ./controller/source -run TestSchemaFile -update")
	}
}

// TestSchemaAgrees: an editor that uses the published schema finds fault with the same files as the parser.
func TestSchemaAgrees(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("fleet.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("fleet.json")
	if err != nil {
		t.Fatal(err)
	}
	// What a schema cannot say: that ${ } needs templating: all, that an empty string is as good as none, and that another document
	// follows.
	except := map[string]bool{"namespace.txtar template-without-templating": true, "two_documents.txtar ": true, "two_documents_warn.txtar ": true}
	var n int
	for _, pattern := range []string{"testdata/*.txtar", "testdata/fields/*.txtar", "testdata/tree/*.txtar"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			all, err := cases.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range all {
				for _, f := range k.Files {
					name := filepath.Base(file) + " " + k.Name
					var into fleetYAML
					d, err := readOptions(f.Name, f.Data, fleetSchema(), &into)
					if path.Base(f.Name) != "fleet.yaml" || err != nil || except[name] {
						continue
					}
					js, err := yaml.YAMLToJSON(f.Data)
					if err != nil {
						t.Fatal(err)
					}
					v, err := jsonschema.UnmarshalJSON(bytes.NewReader(js))
					if err != nil {
						t.Fatal(err)
					}
					v = withoutNulls(v)
					if v == nil {
						continue
					}
					n++
					if got := schema.Validate(v); (got == nil) != (len(d.problems) == 0) {
						t.Errorf("%s: the schema says %v, the parser %v\n%s", name, got, d.problems, f.Data)
					}
				}
			}
		}
	}
	if n < 200 {
		t.Errorf("only %d files were looked at", n)
	}
}

// withoutNulls drops what is as if it were absent.
func withoutNulls(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if withoutNulls(e) == nil {
				delete(v, k)
			}
		}
	case []any:
		for _, e := range v {
			withoutNulls(e)
		}
	}
	return v
}
