package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"

	"shoal.dev/shoal/controller/source/charts/archive"
)

// Charts gets charts that are not in the directory; package charts implements it.
type Charts interface {
	// Get returns a chart with its dependencies below charts/. Errors name the chart, without credentials.
	Get(ctx context.Context, c ChartRef) (Chart, error)
	// Dependencies returns the files to add to a chart, below charts/, or nil if nothing is missing. Files are by path inside the
	// chart's directory; those of the rest of the bundle are "../x", for dependencies in file://../x.
	Dependencies(ctx context.Context, files map[string][]byte) (map[string][]byte, error)
}

// ChartRef is helm.chart, helm.repo and helm.version.
type ChartRef struct{ Chart, Repo, Version string }

// over lays what a target says over what the bundle says.
func (r ChartRef) over(base ChartRef) ChartRef {
	for _, f := range []struct{ own, base *string }{{&r.Chart, &base.Chart}, {&r.Repo, &base.Repo}, {&r.Version, &base.Version}} {
		if *f.own == "" {
			*f.own = *f.base
		}
	}
	return r
}

// String names the chart without credentials.
func (r ChartRef) String() string {
	s := redact(r.Chart)
	if r.Version != "" {
		s += " " + r.Version
	}
	if r.Repo != "" {
		s += " of " + redact(r.Repo)
	}
	return strings.TrimSpace(s)
}

// Chart is a chart from elsewhere; Files are by path inside the chart's directory.
type Chart struct {
	Name, Version, Digest string
	Files                 map[string][]byte
}

// OriginAnnotation of a Bundle says where its fetched and unpacked charts come from: a JSON list, in the order of directories.
const OriginAnnotation = "shoal.dev/charts"

type chartOrigin struct {
	Dir     string `json:"dir"`
	Chart   string `json:"chart,omitempty"`
	Repo    string `json:"repo,omitempty"`
	Asked   string `json:"asked,omitempty"` // for that version or range
	Version string `json:"version"`
	Digest  string `json:"digest,omitempty"`
}

func (h fleetHelm) ref() ChartRef { return ChartRef{Chart: h.Chart, Repo: h.Repo, Version: h.Version} }

// helmChart makes sure that the chart the options name is in the bundle, and points them at its directory. base is what the whole
// bundle says; for the bundle itself at is empty. It returns only errors that concern more than this field.
func (b *bundle) helmChart(ctx context.Context, at string, h *fleetHelm, base ChartRef) error {
	var own ChartRef
	if h != nil {
		own = h.ref()
	}
	if own == (ChartRef{}) {
		if _, root := b.files["Chart.yaml"]; root && at == "" {
			b.doc.report("helm", b.dependencies(ctx, "."))
		}
		return ctx.Err()
	}
	field := at + "helm.chart"
	for _, f := range []struct{ name, value string }{{"version", own.Version}, {"repo", own.Repo}, {"chart", own.Chart}} {
		if f.value != "" {
			field = at + "helm." + f.name
		}
	}
	ref := own.over(base)
	dir, ok := b.charts[ref]
	if !ok {
		var err error
		if dir, err = b.resolve(ctx, ref); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			b.doc.report(field, err)
			return nil
		}
		b.charts[ref] = dir
	}
	h.Chart, h.Repo, h.Version = dir, "", ""
	return nil
}

// resolve finds or fetches a chart and returns its directory in the bundle.
func (b *bundle) resolve(ctx context.Context, ref ChartRef) (string, error) {
	if ref.Repo != "" || b.elsewhere(ref.Chart) {
		return b.fetch(ctx, ref)
	}
	dir, err := inside(ref.Chart)
	if err != nil {
		return "", err
	}
	if data, ok := b.files[dir]; ok {
		return b.unpack(dir, data, ref)
	}
	meta, ok := b.files[path.Join(dir, "Chart.yaml")]
	switch {
	case !ok && ref.Chart == "":
		return "", errors.New("a version needs helm.chart: there is no Chart.yaml in the directory")
	case !ok:
		return "", fmt.Errorf("%q holds no Chart.yaml", ref.Chart)
	}
	if ref.Version != "" {
		_, have, err := archive.Meta(meta)
		if err == nil {
			err = suits(ref.Version, have)
		}
		if err != nil {
			return "", fmt.Errorf("%q: %w", dir, err)
		}
	}
	return dir, b.dependencies(ctx, dir)
}

// elsewhere says whether a chart has to be fetched: it is a URL, or an address without a scheme that is no path here.
func (b *bundle) elsewhere(chart string) bool {
	if isURL(chart) {
		return true
	}
	host, _, ok := strings.Cut(chart, "/")
	return ok && strings.Contains(strings.Trim(host, "."), ".") && !b.holds(path.Clean(chart)) && b.files[path.Clean(chart)] == nil
}

// suits holds the version of a chart in the directory to what is asked for.
func suits(asked, have string) error {
	c, err := semver.NewConstraint(asked)
	if err != nil {
		return fmt.Errorf("helm.version %q is neither a version nor a range such as ^1.2", asked)
	}
	v, err := semver.NewVersion(have)
	if err != nil {
		return fmt.Errorf("version %q in Chart.yaml is no semantic version", have)
	}
	if !c.Check(v) && asked != have {
		return fmt.Errorf("the chart is version %s, helm.version asks for %s", have, asked)
	}
	return nil
}

func (b *bundle) fetch(ctx context.Context, ref ChartRef) (string, error) {
	switch {
	case ref.Chart == "" && !strings.HasPrefix(ref.Repo, "oci://"):
		return "", errors.New("a repository needs helm.chart, the name of the chart in it")
	case b.o.Charts == nil:
		return "", fmt.Errorf("chart %s is not in the directory, and nothing is fetched here", ref)
	}
	c, err := b.o.Charts.Get(ctx, ref)
	if err != nil {
		return "", err // it names the chart
	}
	return b.put(ref, c)
}

// unpack takes a chart out of an archive in the bundle.
func (b *bundle) unpack(file string, data []byte, ref ChartRef) (string, error) {
	if !strings.HasSuffix(file, ".tgz") && !strings.HasSuffix(file, ".tar.gz") {
		return "", fmt.Errorf("%q is neither a directory nor a .tgz archive", ref.Chart)
	}
	c, err := archive.Unpack(data)
	if err == nil && ref.Version != "" {
		err = suits(ref.Version, c.Version)
	}
	if err != nil {
		return "", fmt.Errorf("%q: %w", file, err)
	}
	b.used[file] = true
	h := sha256.Sum256(data)
	return b.put(ref, Chart{Name: c.Name, Version: c.Version, Digest: "sha256:" + hex.EncodeToString(h[:]), Files: c.Files})
}

// put adds a chart to the bundle's files.
func (b *bundle) put(ref ChartRef, c Chart) (string, error) {
	digest := strings.TrimPrefix(c.Digest, "sha256:")
	if !archive.ValidName(c.Name) || strings.ContainsAny(c.Version, "/\\") || len(digest) < 8 {
		return "", fmt.Errorf("chart %s has a name, version or digest that cannot be used: %q %q %q", ref, c.Name, c.Version, c.Digest)
	}
	dir := fmt.Sprintf(".charts/%s-%s-%s", c.Name, c.Version, digest[:8])
	for name, data := range c.Files {
		full := path.Join(dir, name)
		if !within(full, dir) {
			return "", fmt.Errorf("chart %s: file %q leads out of it", ref, name)
		}
		b.files[full] = data
	}
	if !slices.ContainsFunc(b.origin, func(o chartOrigin) bool { return o.Dir == dir }) {
		b.origin = append(b.origin, chartOrigin{Dir: dir, Chart: redact(ref.Chart), Repo: redact(ref.Repo), Asked: ref.Version, Version: c.Version, Digest: c.Digest})
	}
	return dir, nil
}

// dependencies adds what a chart in the directory lacks. Without somebody who can get it rendering says what is missing.
func (b *bundle) dependencies(ctx context.Context, dir string) error {
	if b.o.Charts == nil || b.whole[dir] || b.out.Spec.Helm != nil && b.out.Spec.Helm.DisableDependencyUpdate {
		return nil
	}
	b.whole[dir] = true
	seen := make(map[string][]byte, len(b.files))
	for name, data := range b.files {
		if b.used[name] {
			continue
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		seen[filepath.ToSlash(rel)] = data
	}
	more, err := b.o.Charts.Dependencies(ctx, seen)
	if err != nil {
		return err
	}
	for name, data := range more {
		full := path.Join(dir, name)
		if !within(full, path.Join(dir, "charts")) {
			return fmt.Errorf("dependency: file %q is not below charts/", name)
		}
		b.files[full] = data
	}
	return nil
}

// annotate says where charts come from.
func (b *bundle) annotate() error {
	if len(b.origin) == 0 {
		return nil
	}
	slices.SortFunc(b.origin, func(a, c chartOrigin) int { return strings.Compare(a.Dir, c.Dir) })
	js, err := json.Marshal(b.origin)
	if err != nil {
		return err
	}
	if b.out.Annotations == nil {
		b.out.Annotations = map[string]string{}
	}
	b.out.Annotations[OriginAnnotation] = string(js)
	return nil
}

// redact takes user and password, and what could hold a token, out of an address.
func redact(s string) string {
	s, _, _ = strings.Cut(s, "?")
	return userInfo.ReplaceAllString(s, "//")
}

var userInfo = regexp.MustCompile(`//[^/@]*@`)
