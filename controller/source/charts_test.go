package source_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/source"
	"shoal.dev/shoal/controller/source/charts/archive"
)

// shelf has one chart for every reference, and remembers what it was asked for.
type shelf struct {
	files map[string][]byte // of the chart, if it is not a made up one
	got   []source.ChartRef
	deps  [][]string
	fail  error
}

func (s *shelf) Get(_ context.Context, c source.ChartRef) (source.Chart, error) {
	s.got = append(s.got, c)
	if s.fail != nil {
		return source.Chart{}, s.fail
	}
	if s.files != nil {
		name, version, err := archive.Meta(s.files["Chart.yaml"])
		return source.Chart{Name: name, Version: version, Digest: "sha256:0123456789abcdef", Files: s.files}, err
	}
	version := strings.TrimPrefix(c.Version, "^")
	return source.Chart{Name: "web", Version: version, Digest: "sha256:0123456789abcdef", Files: map[string][]byte{
		"Chart.yaml": []byte("apiVersion: v2\nname: web\nversion: " + version + "\n"), "templates/a.yaml": []byte(configMap),
	}}, nil
}

func (s *shelf) Dependencies(_ context.Context, files map[string][]byte) (map[string][]byte, error) {
	var names []string
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	s.deps = append(s.deps, names)
	if s.fail != nil {
		return nil, s.fail
	}
	return map[string][]byte{"charts/lib/Chart.yaml": []byte("apiVersion: v2\nname: lib\nversion: 1.0.0\n")}, nil
}

func names(b *v1alpha1.Bundle) (out []string) {
	for _, r := range b.Spec.Resources {
		out = append(out, r.Name)
	}
	return out
}

// TestCharts: each chart that bundle and targets name together is fetched once, and the options point at it.
func TestCharts(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "fleet.yaml", []byte(`
helm: {repo: "https://user:secret@charts.example.com", chart: web, version: ^1.0.0}
targets:
- {name: same, clusterSelector: {}, helm: {version: ^1.0.0}}
- {name: newer, clusterSelector: {}, helm: {version: 2.0.0}}
- {name: again, clusterSelector: {}, helm: {chart: web, version: 2.0.0, values: {a: 1}}}
- {name: values, clusterSelector: {}, helm: {values: {a: 1}}}
`))
	var s shelf
	b, err := source.Dir(t.Context(), dir, source.Options{Name: "x", Charts: &s})
	if err != nil {
		t.Fatal(err)
	}
	repo := "https://user:secret@charts.example.com"
	if d := cmp.Diff([]source.ChartRef{{Chart: "web", Repo: repo, Version: "^1.0.0"}, {Chart: "web", Repo: repo, Version: "2.0.0"}}, s.got); d != "" {
		t.Errorf("asked for (-want +got)\n%s", d)
	}
	one, two := ".charts/web-1.0.0-01234567", ".charts/web-2.0.0-01234567"
	var charts []string
	for _, h := range []*v1alpha1.HelmOptions{b.Spec.Helm, b.Spec.Targets[0].Helm, b.Spec.Targets[1].Helm, b.Spec.Targets[2].Helm, b.Spec.Targets[3].Helm} {
		charts = append(charts, h.Chart)
		if h.Repo != "" || h.Version != "" {
			t.Errorf("repo %q and version %q are still there", h.Repo, h.Version)
		}
	}
	if d := cmp.Diff([]string{one, one, two, two, ""}, charts); d != "" {
		t.Errorf("charts (-want +got)\n%s", d)
	}
	if d := cmp.Diff([]string{one + "/Chart.yaml", one + "/templates/a.yaml", two + "/Chart.yaml", two + "/templates/a.yaml"}, names(b)); d != "" {
		t.Errorf("files (-want +got)\n%s", d)
	}
	want := `[{"dir":".charts/web-1.0.0-01234567","chart":"web","repo":"https://charts.example.com","asked":"^1.0.0","version":"1.0.0","digest":"sha256:0123456789abcdef"},` +
		`{"dir":".charts/web-2.0.0-01234567","chart":"web","repo":"https://charts.example.com","asked":"2.0.0","version":"2.0.0","digest":"sha256:0123456789abcdef"}]`
	if d := cmp.Diff(want, b.Annotations[source.OriginAnnotation]); d != "" {
		t.Errorf("origin (-want +got)\n%s", d)
	}
}

// TestChartFails: the error names the line and keeps its cause.
func TestChartFails(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "fleet.yaml", []byte("helm:\n  chart: oci://u:secret@registry.example.com/web\n  version: 1.0.0\n"))
	gone := errors.New("gone")
	_, err := source.Dir(t.Context(), dir, source.Options{Charts: &shelf{fail: gone}})
	if err == nil || err.Error() != "fleet.yaml:2: helm.chart: gone" || !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := source.Dir(ctx, dir, source.Options{Charts: &shelf{fail: gone}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// TestDependencies: what a chart in the directory lacks is added, once, unless that is switched off.
func TestDependencies(t *testing.T) {
	chart := []byte("apiVersion: v2\nname: web\nversion: 1.0.0\n")
	for name, c := range map[string]struct {
		options, dir string
		deps         [][]string
		files        []string
	}{
		"root":      {"", ".", [][]string{{"Chart.yaml", "lib/x.yaml"}}, []string{"Chart.yaml", "charts/lib/Chart.yaml", "lib/x.yaml"}},
		"directory": {"helm: {chart: sub}\ntargets: [{clusterSelector: {}, helm: {chart: ./sub}}]", "sub", [][]string{{"../lib/x.yaml", "Chart.yaml"}}, []string{"lib/x.yaml", "sub/Chart.yaml", "sub/charts/lib/Chart.yaml"}},
		"off":       {"helm: {chart: sub, disableDependencyUpdate: true}", "sub", nil, []string{"lib/x.yaml", "sub/Chart.yaml"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "fleet.yaml", []byte(c.options))
			write(t, dir, c.dir+"/Chart.yaml", chart)
			write(t, dir, "lib/x.yaml", nil)
			var s shelf
			b, err := source.Dir(t.Context(), dir, source.Options{Name: "x", Charts: &s})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.deps, s.deps); d != "" {
				t.Errorf("asked for (-want +got)\n%s", d)
			}
			if d := cmp.Diff(c.files, names(b)); d != "" {
				t.Errorf("files (-want +got)\n%s", d)
			}
		})
	}
}

// TestChartArchive: an archive in the directory is unpacked, and itself left out.
func TestChartArchive(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "fleet.yaml", []byte("helm: {chart: ./web-1.0.0.tgz, version: ~1.0}"))
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for name, data := range map[string]string{"web/Chart.yaml": "apiVersion: v2\nname: web\nversion: 1.0.0\n", "web/templates/a.yaml": configMap} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "web-1.0.0.tgz", buf.Bytes())
	b, err := source.Dir(t.Context(), dir, source.Options{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	c := b.Spec.Helm.Chart
	if !strings.HasPrefix(c, ".charts/web-1.0.0-") || len(c) != len(".charts/web-1.0.0-")+8 {
		t.Errorf("chart is in %q", c)
	}
	if d := cmp.Diff([]string{c + "/Chart.yaml", c + "/templates/a.yaml"}, names(b)); d != "" {
		t.Errorf("files (-want +got)\n%s", d)
	}
	write(t, dir, "fleet.yaml", []byte("helm: {chart: ./web-1.0.0.tgz, version: ^2}"))
	wantError(t, dir, `fleet.yaml:1: helm.chart: "web-1.0.0.tgz": the chart is version 1.0.0, helm.version asks for ^2`)
}

// TestTargetsOfGitRepo: they select, and what the directory says customises.
func TestTargetsOfGitRepo(t *testing.T) {
	repo := []v1alpha1.BundleTarget{{Name: "eu", ClusterMatch: v1alpha1.ClusterMatch{ClusterGroup: "eu"}}}
	repo[0].Namespace = "from-repo"
	for name, c := range map[string]struct{ file, options, want string }{
		"none":     {"fleet.yaml", "", "eu | eu"},
		"targets":  {"fleet.yaml", "targets: [{name: a, clusterSelector: {}}]\ntargetCustomizations: [{name: b, clusterSelector: {}}]", "a b eu | eu"},
		"override": {"fleet.yaml", "targets: [{name: a, clusterSelector: {}}]\noverrideTargets: [{name: us, clusterGroup: us}]", "a us | us"},
		"nobody":   {"fleet.yaml", "overrideTargets: []", " | "},
		"2020":     {"bundle.yaml", "targets: [{name: a, clusterSelector: {}}]", "a no-other eu | eu"},
		"2020none": {"bundle.yaml", "defaultNamespace: x", "eu | eu"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, c.file, []byte(c.options))
			write(t, dir, "manifests/a.yaml", []byte(configMap))
			b, err := source.Dir(t.Context(), dir, source.Options{Name: "x", Targets: repo})
			if err != nil {
				t.Fatal(err)
			}
			var targets, restrictions []string
			for _, x := range b.Spec.Targets {
				targets = append(targets, x.Name)
			}
			for _, x := range b.Spec.TargetRestrictions {
				restrictions = append(restrictions, x.Name)
			}
			if got := strings.Join(targets, " ") + " | " + strings.Join(restrictions, " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestDriven: the options file has any name, and nothing is looked for.
func TestDriven(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "app/dev.yml", []byte("defaultNamespace: dev"))
	write(t, dir, "app/a.yaml", []byte(configMap))
	write(t, dir, "app/sub/fleet.yaml", []byte("name: other"))
	write(t, dir, "app/sub/b.yaml", []byte(configMap))
	b, err := source.Driven(t.Context(), dir, "app", "dev.yml", source.Options{Base: "repo"})
	if err != nil {
		t.Fatal(err)
	}
	if b.Name != "repo-app-dev" || b.Spec.DefaultNamespace != "dev" {
		t.Errorf("got %s with %+v", b.Name, b.Spec.BundleOptions)
	}
	if d := cmp.Diff([]string{"a.yaml", "sub/b.yaml", "sub/fleet.yaml"}, names(b)); d != "" {
		t.Errorf("files (-want +got)\n%s", d)
	}
	if b, err = source.Driven(t.Context(), dir, "app/sub", "", source.Options{Base: "repo"}); err != nil || b.Name != "other" {
		t.Errorf("without a file: got %v, %v", b, err)
	}
	for _, c := range []struct{ base, options, want string }{
		{"../app", "dev.yml", "outside of the directory"},
		{"app", "../app/dev.yml", "outside of the directory"},
		{"app", "prod.yml", "app/prod.yml: no such file"},
		{"gone", "", "gone: no such file"},
	} {
		if _, err := source.Driven(t.Context(), dir, c.base, c.options, source.Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: got %v", c.base, c.options, err)
		}
	}
}

// TestSeveral: one name, or one bundle, cannot be had of a directory that holds several; nothing is fetched to find out.
func TestSeveral(t *testing.T) {
	dir := t.TempDir()
	for i := range 12 {
		write(t, dir, fmt.Sprintf("b%02d/fleet.yaml", i), []byte("helm: {chart: oci://registry.example.com/web, version: 1.0.0}"))
	}
	var s shelf
	if _, err := source.Dir(t.Context(), dir, source.Options{Charts: &s}); err == nil || !strings.Contains(err.Error(), "holds 12 bundles") || !strings.HasSuffix(err.Error(), "b09 and 2 more") {
		t.Errorf("got %v", err)
	}
	if _, ps, err := source.Tree(t.Context(), dir, source.Options{Name: "web", Charts: &s}); err != nil || !strings.Contains(ps.Error(), "holds 12 bundles") {
		t.Errorf("got %v, %v", ps, err)
	}
	if len(s.got) > 0 {
		t.Errorf("fetched %v", s.got)
	}
	if all, ps, err := source.Tree(t.Context(), dir, source.Options{Charts: &s}); err != nil || len(ps) > 0 || len(all) != 12 {
		t.Errorf("got %d, %v, %v", len(all), ps, err)
	}
}

// TestValuesOfManyTargets: a file that many targets name multiplies.
func TestValuesOfManyTargets(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", []byte(configMap))
	write(t, dir, "v.yaml", []byte("a: "+strings.Repeat("x", 100_000)))
	write(t, dir, "fleet.yaml", []byte("targets:\n"+strings.Repeat("- {clusterSelector: {}, helm: {valuesFiles: [v.yaml]}}\n", 1000)))
	wantError(t, dir, "fleet.yaml: values of all targets have more than 1048576 bytes")
}

// TestProblems: an error tells every problem with its place.
func TestProblems(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "web/fleet.yaml", []byte("nam: x\n\npausd: true\n"))
	write(t, dir, "web/a.yaml", []byte(configMap))
	_, ps, err := source.Tree(t.Context(), dir, source.Options{})
	if err != nil || len(ps) != 2 || ps[1].File != "web/fleet.yaml" || ps[1].Line != 3 || ps[1].Message != `unknown field "pausd" (did you mean "paused"?)` {
		t.Errorf("got %#v, %v", ps, err)
	}
	if _, ps, err = source.Tree(t.Context(), t.TempDir(), source.Options{}); err != nil || !errors.Is(ps.Err(), source.ErrEmpty) {
		t.Errorf("got %#v, %v", ps, err)
	}
}
