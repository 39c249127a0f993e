// Package cases runs tests that are data files.
//
// A file is a txtar archive. Its comment says why it exists. The entry "want" is what the code under test must say about the other
// entries; an error begins with "error". `go test ./… -update` rewrites it, the difference is then reviewed.
//
// One file can hold several cases: then every directory with a "want" is one, and the entries outside of such directories belong to
// all of them.
//
// A line `fields: a, b` in the comment names the fields of fleet.yaml that the cases are about; docs/bundle-reference.md links them.
package cases

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite what cases want")

// Update reports whether the test run shall rewrite files instead of comparing them.
func Update() bool { return *update }

// Case is one case.
type Case struct {
	File  string       // the archive
	Name  string       // the directory in it; empty if it is the only one
	Files []txtar.File // without want
	Want  string

	archive *txtar.Archive
	want    int
}

// Refused reports whether the case wants an error, at least for one of several things.
func (c Case) Refused() bool {
	return strings.HasPrefix(c.Want, "error") || strings.Contains(c.Want, ": error: ") || strings.Contains(c.Want, "\nerror: ")
}

// Fields are those that the archive's comment names.
func (c Case) Fields() []string {
	var out []string
	for line := range strings.Lines(string(c.archive.Comment)) {
		line = strings.TrimSpace(strings.TrimLeft(line, "# "))
		rest, ok := strings.CutPrefix(line, "fields:")
		if !ok {
			continue
		}
		for f := range strings.SplitSeq(rest, ",") {
			out = append(out, strings.TrimSpace(f))
		}
	}
	return out
}

// Load reads the cases of an archive.
func Load(file string) ([]Case, error) {
	ar, err := txtar.ParseFile(file)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(ar.Comment)) == 0 {
		return nil, fmt.Errorf("%s: a case begins with a comment that says why it exists", file)
	}
	var out []Case
	for i, f := range ar.Files {
		if path.Base(f.Name) == "want" && strings.Count(f.Name, "/") < 2 {
			name, _, ok := strings.Cut(f.Name, "/")
			if !ok {
				name = ""
			}
			out = append(out, Case{File: file, Name: name, Want: string(f.Data), archive: ar, want: i})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: there is no want", file)
	}
	for i := range out {
		for _, f := range ar.Files {
			dir, rest, ok := strings.Cut(f.Name, "/")
			switch other := ok && slices.ContainsFunc(out, func(c Case) bool { return c.Name == dir }); {
			case path.Base(f.Name) == "want" && strings.Count(f.Name, "/") < 2:
			case other && dir == out[i].Name:
				out[i].Files = append(out[i].Files, txtar.File{Name: rest, Data: f.Data})
			case !other:
				out[i].Files = append(out[i].Files, f)
			}
		}
	}
	return out, nil
}

// Run runs the cases of all archives that match a pattern. do returns what the code under test says about the entries of one.
func Run(t *testing.T, pattern string, do func(t *testing.T, files []txtar.File) string) {
	files, err := filepath.Glob(pattern)
	if err == nil && len(files) == 0 {
		err = errors.New("no cases match")
	}
	if err != nil {
		t.Fatalf("%s: %v", pattern, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			cases, err := Load(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range cases {
				if c.Name == "" {
					c.run(t, do)
					continue
				}
				t.Run(c.Name, func(t *testing.T) { c.run(t, do) })
			}
		})
	}
}

func (c Case) run(t *testing.T, do func(t *testing.T, files []txtar.File) string) {
	got := do(t, c.Files)
	if *update {
		c.archive.Files[c.want].Data = []byte(got)
		if err := os.WriteFile(c.File, txtar.Format(c.archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(c.Want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
