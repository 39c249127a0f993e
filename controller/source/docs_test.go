package source

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal.dev/shoal/internal/cases"
)

const reference = "../../docs/bundle-reference.md"

// row is a field as the reference lists it.
type row struct {
	path, doc, target string
	leaf, refused     bool
}

// rows lists the fields of fleet.yaml. Those that say which clusters have one row each, under the name they have in targets, although
// overrideTargets and partitions have them as well; so do those of selectors.
func rows() []row {
	var out []row
	shared := map[string]bool{}
	var walk func(prefix string, f field, target string)
	walk = func(prefix string, f field, target string) {
		for _, s := range f.fields {
			at := join(prefix, s.name)
			does := target
			switch {
			case s.target == "field by field":
				does = "field by field"
			case s.target != "":
				does = s.target
			}
			switch isMatch := slices.ContainsFunc(matchFields(), func(m field) bool { return m.name == s.name }) || s.name == "doNotDeploy"; {
			case isMatch && shared[s.name], prefix != "clusterSelector" && (s.name == "matchLabels" || s.name == "matchExpressions"):
				continue
			case isMatch:
				shared[s.name] = true
				at, does = s.name, "which clusters"
			case s.refused == wholeBundle || prefix == "targets" && s.name != "name":
				continue // the option of the same name has its row
			case at == "targetCustomizations":
				s.fields = nil
			}
			out = append(out, row{path: at, doc: s.doc + s.refused, target: does, leaf: len(s.fields) == 0, refused: s.refused != ""})
			walk(at, s, does)
		}
	}
	walk("", fleetSchema(), "")
	return out
}

// TestReference: docs/bundle-reference.md lists every field with what the parser says about it, and with the cases that show it; no
// field is without a case that accepts and one that refuses it.
func TestReference(t *testing.T) {
	accepted, refused := fieldCases(t)
	var fields, table strings.Builder
	fields.WriteString("| field | meaning | in a target |\n|---|---|---|\n")
	table.WriteString("| field | accepted in | refused in |\n|---|---|---|\n")
	var known []string
	for _, r := range rows() {
		known = append(known, r.path)
		target := r.target
		if target == "" || target == "field by field" && r.leaf {
			target = "–"
		}
		if r.refused {
			r.doc = "Refused: " + r.doc + "."
		}
		fmt.Fprintf(&fields, "| `%s` | %s | %s |\n", r.path, strings.ReplaceAll(r.doc, "|", `\|`), target)
		a, b := accepted[r.path], refused[r.path]
		if !r.leaf && a == nil && b == nil {
			continue // its fields have their own
		}
		if a == nil && !r.refused {
			t.Errorf("no case accepts %s: write one with the line \"# fields: %s\" in its comment", r.path, r.path)
		}
		if b == nil && r.leaf {
			t.Errorf("no case refuses %s: write one with the line \"# fields: %s\" in its comment", r.path, r.path)
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", r.path, strings.Join(a, ", "), strings.Join(b, ", "))
	}
	table.WriteString("\n| rule | shown in | refused in |\n|---|---|---|\n")
	var rules []string
	for _, m := range []map[string][]string{accepted, refused} {
		for name := range m {
			if !slices.Contains(known, name) && !slices.Contains(rules, name) {
				rules = append(rules, name)
			}
		}
	}
	slices.Sort(rules)
	for _, name := range rules {
		fmt.Fprintf(&table, "| %s | %s | %s |\n", name, strings.Join(accepted[name], ", "), strings.Join(refused[name], ", "))
	}
	doc, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	want := between(t, between(t, doc, "fields", fields.String()), "cases", table.String())
	if cases.Update() {
		if err := os.WriteFile(reference, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(string(want), string(doc)); d != "" {
		t.Errorf("make it with go test ./controller/source -run TestReference -update\n(-want +got)\n%s", d)
	}
}

// fieldCases returns the cases that name a field, by field.
func fieldCases(t *testing.T) (accepted, refused map[string][]string) {
	t.Helper()
	accepted, refused = map[string][]string{}, map[string][]string{}
	for _, pattern := range []string{"testdata/*.txtar", "testdata/*/*.txtar", "../target/testdata/*.txtar", "../render/testdata/*.txtar"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %d files", pattern, err, len(files))
		}
		for _, file := range files {
			all, err := cases.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimSuffix(strings.Replace(strings.TrimPrefix("source/"+filepath.ToSlash(file), "source/../"), "/testdata", "", 1), ".txtar")
			for _, c := range all {
				to := accepted
				if c.Refused() {
					to = refused
				}
				for _, f := range c.Fields() {
					if !slices.Contains(to[f], name) {
						to[f] = append(to[f], name)
					}
				}
			}
		}
	}
	return accepted, refused
}

// between replaces what stands between two marks.
func between(t *testing.T, doc []byte, mark, text string) []byte {
	t.Helper()
	head, rest, ok := bytes.Cut(doc, []byte("<!-- "+mark+", "))
	line, rest, ok1 := bytes.Cut(rest, []byte("\n"))
	_, tail, ok2 := bytes.Cut(rest, []byte("<!-- end of "+mark+" -->"))
	if !ok || !ok1 || !ok2 {
		t.Fatalf("%s has no marks for %s", reference, mark)
	}
	return slices.Concat(head, []byte("<!-- "+mark+", "), line, []byte("\n"+text), []byte("<!-- end of "+mark+" -->"), tail)
}

// TestReferenceExamples: the examples parse.
func TestReferenceExamples(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(data), "\n```yaml\n")[1:]
	for _, b := range blocks {
		text, _, _ := strings.Cut(b, "\n```\n")
		var f fleetYAML
		if d, err := readOptions("example", []byte(text), fleetSchema(), &f); err != nil || len(d.problems) > 0 {
			t.Errorf("%v %v in\n%s", err, d, text)
		}
	}
	if len(blocks) == 0 {
		t.Error("there are no examples")
	}
}

// TestReference2020: the section about the form of 2020 names every key of it.
func TestReference2020(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(data), "\n## The form of 2020\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var walk func(f field)
	walk = func(f field) {
		for _, s := range f.fields {
			if !strings.Contains(section, "`"+s.name+"`") {
				t.Errorf("%s is not in it", s.name)
			}
			if s.name != "rolloutStrategy" && !strings.HasSuffix(s.name, "Selector") {
				walk(s)
			}
		}
	}
	walk(schema2020())
}
