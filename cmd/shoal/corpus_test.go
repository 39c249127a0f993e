package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/source"
	"shoal.dev/shoal/internal/cases"
)

// TestCorpus reads whole repositories as a GitRepo would, and lints them: those in testdata/corpus, where want is what lint says and
// what each target gives. With CORPUS=DIR it reads every directory in DIR instead, prints the share without errors and the errors of
// the others, and fails if there is nothing to read. With CORPUS_OBJECTS=FILE it writes one line for each target of each bundle with
// the SHA-256 of its objects there, to be compared with what another version writes.
//
// Charts and remote resources are not fetched: a chart with one ConfigMap stands for each. What a kustomization, or a chart that depends
// on it, misses in such a chart is no error of the repository.
func TestCorpus(t *testing.T) {
	if dir := os.Getenv("CORPUS"); dir != "" {
		corpus(t, dir, os.Getenv("CORPUS_OBJECTS"))
		return
	}
	cases.Run(t, "testdata/corpus/*.txtar", func(t *testing.T, files []txtar.File) string {
		dir := t.TempDir()
		if err := txtar.Write(&txtar.Archive{Files: files}, dir); err != nil {
			t.Fatal(err)
		}
		found, objects := corpusRepo(t, dir)
		var out strings.Builder
		for _, f := range found {
			fmt.Fprintf(&out, "%s\n", f)
		}
		for _, o := range objects {
			fmt.Fprintf(&out, "%s %s: %d objects\n", o.bundle, o.target, o.count)
		}
		return out.String()
	})
}

func corpus(t *testing.T, dir, objectsFile string) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		t.Fatalf("CORPUS=%s: %v, %d repositories", dir, err, len(entries))
	}
	var lines strings.Builder
	repos, goodRepos, bundles, badBundles := 0, 0, 0, map[string]bool{}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		repos++
		found, objects := corpusRepo(t, filepath.Join(dir, e.Name()))
		errs := slices.DeleteFunc(found, func(f finding) bool { return f.Severity != severityError })
		if len(errs) == 0 {
			goodRepos++
		}
		for _, f := range errs {
			t.Logf("%s: %s", e.Name(), f)
			badBundles[e.Name()+"/"+cmp.Or(f.bundle, path.Dir(f.File))] = true
		}
		names := map[string]bool{}
		for _, o := range objects {
			names[o.bundle] = true
			fmt.Fprintf(&lines, "%s %s %s %d %s\n", e.Name(), o.bundle, o.target, o.count, o.digest)
		}
		bundles += len(names)
	}
	t.Logf("%d of %d repositories have no errors; %d bundles give objects, %d bundles and directories have errors", goodRepos, repos, bundles, len(badBundles))
	if objectsFile != "" {
		if err := os.WriteFile(objectsFile, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// missedInStandIn is what is said where a real chart has more than the one that stands for it.
var missedInStandIn = regexp.MustCompile(`no matches for Id|\.charts/|helm\.valuesFrom`)

// undefined is a template that a chart uses and nothing defines; by custom its name begins with that of its chart.
var undefined = regexp.MustCompile(`template "([^".]+)[^"]*" not defined`)

// given is what one target of a bundle gives.
type given struct {
	bundle, target, digest string
	count                  int
}

func corpusRepo(t *testing.T, dir string) ([]finding, []given) {
	charts := standIn{}
	o := source.Options{Base: "repo", Charts: charts}
	bundles, problems, err := source.Tree(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	usesStandIn := func(b source.Found) bool { return b.Bundle.Annotations[source.OriginAnnotation] != "" }
	found := slices.DeleteFunc(lintBundles(dir, bundles, problems, nil), func(f finding) bool {
		if m := undefined.FindStringSubmatch(f.Message); m != nil && charts[m[1]] {
			return true
		}
		i := slices.IndexFunc(bundles, func(b source.Found) bool { return b.Bundle.Name == f.bundle })
		return i >= 0 && usesStandIn(bundles[i]) && missedInStandIn.MatchString(f.Message)
	})
	var out []given
	for _, b := range bundles {
		x := linted{linter: &linter{}, bundle: b.Bundle}
		for _, s := range x.sites() {
			r, _, err := s.site.render(s.bundle)
			if err != nil || r == nil {
				continue
			}
			h := sha256.New()
			for _, d := range r.documents {
				fmt.Fprintf(h, "%s\n%s\n", d.hook, d.text)
			}
			out = append(out, given{b.Bundle.Name, s.title, fmt.Sprintf("%x", h.Sum(nil)[:8]), len(r.documents)})
		}
	}
	return found, out
}

// standIn is a chart for every address: one ConfigMap with the values. It holds the names of charts that stand for dependencies.
type standIn map[string]bool

func (standIn) Get(_ context.Context, ref source.ChartRef) (source.Chart, error) {
	name, _, _ := strings.Cut(path.Base(cmp.Or(ref.Chart, ref.Repo)), "?")
	name, _, _ = strings.Cut(name, ":")
	name, _, _ = strings.Cut(strings.TrimSuffix(name, ".tgz"), "+")
	return source.Chart{Name: name, Version: "1.0.0", Digest: "sha256:0123456789abcdef", Files: map[string][]byte{
		"Chart.yaml":  []byte("apiVersion: v2\nname: " + name + "\nversion: 1.0.0\n"),
		"values.yaml": []byte("standIn: x\n"),
		"templates/a.yaml": []byte("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: stand-in\ndata:\n" +
			"  values: {{ omit .Values \"standIn\" | toJson | quote }}\n  one: {{ .Values.standIn | quote }}\n"),
	}}, nil
}

func (standIn) File(context.Context, string) ([]byte, string, error) {
	return []byte("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: stand-in\n"), "sha256:0123456789abcdef", nil
}

func (s standIn) Dependencies(_ context.Context, files map[string][]byte) (map[string][]byte, error) {
	var chart struct {
		Dependencies []struct{ Name string }
	}
	for _, file := range []string{"Chart.yaml", "requirements.yaml"} {
		_ = yaml.Unmarshal(files[file], &chart)
	}
	out := map[string][]byte{}
	for _, d := range chart.Dependencies {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(files)), func(n string) bool { return strings.HasPrefix(n, "charts/"+d.Name) }) {
			s[d.Name] = true
			out["charts/"+d.Name+"/Chart.yaml"] = []byte("apiVersion: v2\nname: " + d.Name + "\nversion: 1.0.0\n")
		}
	}
	return out, nil
}
