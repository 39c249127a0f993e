package source

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestReferenceIsComplete: every key of fleet.yaml stands in docs/bundle-reference.md, in the tables if it works and among the
// refused ones if it does not.
func TestReferenceIsComplete(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../docs/bundle-reference.md")
	if err != nil {
		t.Fatal(err)
	}
	accepted, refused, ok := strings.Cut(string(data), "\n## Refused by name\n")
	if !ok {
		t.Fatal("docs/bundle-reference.md has no section about refused keys")
	}
	for key, works := range keys("", schema()) {
		name := key[strings.LastIndexByte(key, '.')+1:]
		switch {
		case works && !strings.Contains(accepted, "`"+key+"`"):
			t.Errorf("%s works, but has no row in the tables", key)
		case !works && !strings.Contains(refused, "`"+name+"`"):
			t.Errorf("%s is refused, but not listed as such", key)
		}
	}
}

// TestReferenceExamples: the examples parse.
func TestReferenceExamples(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../docs/bundle-reference.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(data), "\n```yaml\n")[1:]
	for _, b := range blocks {
		text, _, _ := strings.Cut(b, "\n```\n")
		if _, err := parse("example", []byte(text)); err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
	}
	if len(blocks) == 0 {
		t.Error("there are no examples")
	}
}

// keys lists the keys below at, and whether each works. Keys of a target count as those of the top level, since the tables
// have one row for both; those of a selector are Kubernetes' own.
func keys(at string, fields map[string]field) map[string]bool {
	out := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		f := fields[name]
		full := join(at, name)
		switch {
		case f.later, f.fields == nil:
			out[full] = !f.later
		case name == "targets", name == "targetCustomizations":
			out[full] = true
			maps.Copy(out, keys("", f.fields))
		case strings.HasSuffix(name, "Selector"):
			out[full] = true
		default:
			maps.Copy(out, keys(full, f.fields))
		}
	}
	return out
}
