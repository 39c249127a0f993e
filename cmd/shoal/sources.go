package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	yamlv3 "go.yaml.in/yaml/v3"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/source"
	"shoal.dev/shoal/controller/source/charts"
)

// sourceFlags say how directories are read, and how to reach the charts that are elsewhere.
type sourceFlags struct {
	targetsFile string
	paths       []string

	helmHost, helmUsername, helmPasswordFile, helmCAFile string
	helmPlainHTTP                                        []string
	dockerConfig                                         string
	cacheDir                                             string
}

func (f *sourceFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.targetsFile, "targets-file", "", "YAML file with targets for all bundles of the directory, as a GitRepo has them; the targets in fleet.yaml then only customize")
	fl.StringArrayVar(&f.paths, "path", nil, "directory below DIR to read bundles from, or a pattern such as 'apps/*', as in the paths of a GitRepo; files of all of DIR stay in reach (may be repeated; default: all of DIR)")
	fl.StringVar(&f.helmHost, "helm-host", "", "host that --helm-username is for, as in helm.repo or helm.chart, with the port if there is one (default: $SHOAL_HELM_HOST)")
	fl.StringVar(&f.helmUsername, "helm-username", "", "user name for charts from --helm-host (default: $SHOAL_HELM_USERNAME)")
	fl.StringVar(&f.helmPasswordFile, "helm-password-file", "", "file with the password for it (default: the password in $SHOAL_HELM_PASSWORD)")
	fl.StringVar(&f.helmCAFile, "helm-ca-file", "", "file with certificates of CAs that are trusted besides the system's when charts are fetched, PEM (default: $SHOAL_HELM_CA_FILE)")
	fl.StringArrayVar(&f.helmPlainHTTP, "helm-plain-http", nil, "host (with port) of an OCI registry without TLS (may be repeated)")
	fl.StringVar(&f.dockerConfig, "docker-config", "", "config.json of docker login with credentials of registries (default: $DOCKER_CONFIG/config.json, ~/.docker/config.json if it is there)")
	fl.StringVar(&f.cacheDir, "chart-cache", "", `directory that keeps charts; "none": none (default: shoal/charts below the user's cache directory)`)
	_ = cmd.MarkFlagFilename("targets-file", "yaml", "yml", "json")
	_ = cmd.MarkFlagFilename("helm-password-file")
	_ = cmd.MarkFlagFilename("helm-ca-file", "pem", "crt")
	_ = cmd.MarkFlagFilename("docker-config", "json")
	_ = cmd.MarkFlagDirname("chart-cache")
}

// bundles reads every bundle below a directory. A name is for the only one. Warnings are printed. A bundle with an error is left out:
// its problems are the second error, which is for the end, when the others are done. Where nothing can be read, that is the third.
func (f *sourceFlags) bundles(ctx context.Context, a *app, dir, name string) (list []*v1alpha1.Bundle, bad, err error) {
	o, done, err := f.options(a, name)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	found, ps, err := source.Tree(ctx, dir, o)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range ps.Warnings() {
		fmt.Fprintf(a.stderr, "shoal: %s\n", oneLine(p.Error()))
	}
	bad = ps.Err()
	if len(found) == 0 {
		return nil, nil, bad
	}
	for _, b := range found {
		list = append(list, b.Bundle)
	}
	return list, leftOut(bad), nil
}

// linted is bundles; those in which lint finds errors are left out as well.
func (f *sourceFlags) linted(ctx context.Context, a *app, dir, name string, lint bool) (list []*v1alpha1.Bundle, bad, err error) {
	if !lint {
		return f.bundles(ctx, a, dir, name)
	}
	o, done, err := f.options(a, name)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	found, ps, err := source.Tree(ctx, dir, o)
	if err != nil {
		return nil, nil, err
	}
	var errs []string
	onlyLint := false
	for _, f := range lintBundles(dir, found, ps, nil) {
		switch f.Severity {
		case severityError:
			errs = append(errs, f.String())
			onlyLint = onlyLint || f.bundle != ""
			found = slices.DeleteFunc(found, func(b source.Found) bool { return f.bundle != "" && b.Bundle.Name == f.bundle })
		case severityWarning:
			fmt.Fprintf(a.stderr, "shoal: %s\n", f)
		}
	}
	if onlyLint {
		errs = append(errs, "What only shoal lint finds is sent all the same with --no-lint.")
	}
	if len(errs) > 0 {
		bad = errors.New(strings.Join(errs, "\n"))
	}
	if len(found) == 0 {
		return nil, nil, bad
	}
	for _, b := range found {
		list = append(list, b.Bundle)
	}
	return list, leftOut(bad), nil
}

// leftOut is an error about some of several bundles.
func leftOut(bad error) error {
	if bad == nil {
		return nil
	}
	return fmt.Errorf("left out because of errors:\n%w", bad)
}

// options are for reading directories until done is called.
func (f *sourceFlags) options(a *app, name string) (o source.Options, done func(), err error) {
	if name != "" && (!bundlefmt.ValidName(name) || len(name) > 53) {
		return o, nil, fmt.Errorf("bundle name %q: use lower case letters, digits and '-', at most 53 characters", name)
	}
	o.Name, o.Paths = name, f.paths
	if f.targetsFile != "" {
		if o.Targets, err = readTargets(f.targetsFile); err != nil {
			return o, nil, err
		}
	}
	c, err := f.charts(a)
	if err != nil {
		return o, nil, err
	}
	o.Charts = &toldCharts{Charts: c, say: a.stderr}
	return o, c.Close, nil
}

const howToLogIn = "--helm-host, --helm-username and --helm-password-file, or for a registry docker login"

// charts is how charts are fetched. Credentials come from files and the environment, never from the command line, which every
// process of the machine can read; and go to the one host that they are for.
func (f *sourceFlags) charts(a *app) (*charts.Client, error) {
	o := charts.Options{PlainHTTP: f.helmPlainHTTP, CacheDir: f.cache(a), Login: howToLogIn}
	host, user := cmp.Or(f.helmHost, a.getenv("SHOAL_HELM_HOST")), cmp.Or(f.helmUsername, a.getenv("SHOAL_HELM_USERNAME"))
	password := a.getenv("SHOAL_HELM_PASSWORD")
	if f.helmPasswordFile != "" {
		data, err := os.ReadFile(f.helmPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("--helm-password-file: %w", err)
		}
		password = strings.TrimRight(string(data), "\r\n")
	}
	switch {
	case user == "" && password == "":
	case user == "" || password == "":
		return nil, errors.New("a user name and a password for charts belong together: set --helm-username and --helm-password-file (or $SHOAL_HELM_USERNAME and $SHOAL_HELM_PASSWORD)")
	case host == "":
		return nil, errors.New("say which host the user name and password for charts are for, no other gets them: set --helm-host (or $SHOAL_HELM_HOST)")
	default:
		o.Credentials = append(o.Credentials, charts.Credential{Host: host, Username: user, Password: password})
	}
	if ca := cmp.Or(f.helmCAFile, a.getenv("SHOAL_HELM_CA_FILE")); ca != "" {
		var err error
		if o.CA, err = os.ReadFile(ca); err != nil {
			return nil, fmt.Errorf("--helm-ca-file: %w", err)
		}
	}
	docker, err := f.docker(a)
	if err != nil {
		return nil, err
	}
	for _, c := range docker {
		if len(o.Credentials) == 0 || c.Host != o.Credentials[0].Host {
			o.Credentials = append(o.Credentials, c)
		}
	}
	c, err := charts.New(o)
	if err != nil {
		return nil, fmt.Errorf("get charts: %w", err)
	}
	return c, nil
}

// docker reads what docker login wrote, where that is.
func (f *sourceFlags) docker(a *app) ([]charts.Credential, error) {
	file := f.dockerConfig
	switch {
	case file != "":
	case a.getenv("DOCKER_CONFIG") != "":
		file = filepath.Join(a.getenv("DOCKER_CONFIG"), "config.json")
	case a.getenv("HOME") != "":
		file = filepath.Join(a.getenv("HOME"), ".docker", "config.json")
	default:
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if f.dockerConfig == "" && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--docker-config: %w", err)
	}
	creds, err := charts.DockerCredentials(data)
	if err != nil {
		return nil, fmt.Errorf("--docker-config %s: %w", file, err)
	}
	return creds, nil
}

// cache is where charts are kept; without a place none are.
func (f *sourceFlags) cache(a *app) string {
	switch dir := cmp.Or(f.cacheDir, a.getenv("SHOAL_CHART_CACHE")); {
	case dir == "none":
		return ""
	case dir != "":
		return dir
	case a.getenv("XDG_CACHE_HOME") != "":
		return filepath.Join(a.getenv("XDG_CACHE_HOME"), "shoal", "charts")
	case a.getenv("HOME") != "":
		return filepath.Join(a.getenv("HOME"), ".cache", "shoal", "charts")
	}
	return ""
}

// toldCharts says on standard error what is being fetched: it can take a while.
type toldCharts struct {
	source.Charts
	say io.Writer
}

func (c *toldCharts) Get(ctx context.Context, ref source.ChartRef) (source.Chart, error) {
	what := printableChart(ref)
	fmt.Fprintf(c.say, "shoal: fetching chart %s\n", what)
	chart, err := c.Charts.Get(ctx, ref)
	if err == nil {
		fmt.Fprintf(c.say, "shoal: fetched chart %s %s\n", chart.Name, chart.Version)
	}
	return chart, err
}

// File says what is being fetched, too.
func (c *toldCharts) File(ctx context.Context, address string) ([]byte, string, error) {
	fmt.Fprintf(c.say, "shoal: fetching %s\n", printableChart(source.ChartRef{Chart: address}))
	files, ok := c.Charts.(source.Files)
	if !ok {
		return nil, "", errors.New("nothing is fetched here")
	}
	return files.File(ctx, address)
}

// printableChart names a chart; passwords and tokens in URLs stay out.
func printableChart(ref source.ChartRef) string {
	var words []string
	for _, w := range []string{ref.Repo, ref.Chart, ref.Version} {
		if u, err := url.Parse(w); err == nil && u.Scheme != "" {
			u.User, u.RawQuery = nil, ""
			w = u.String()
		}
		if w != "" {
			words = append(words, w)
		}
	}
	return oneLine(strings.Join(words, " "))
}

// readTargets reads targets: a list, or a list below the key targets.
func readTargets(file string) ([]v1alpha1.BundleTarget, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--targets-file: %w", err)
	}
	var doc yamlv3.Node
	if err := yamlv3.Unmarshal(data, &doc); err != nil {
		return nil, yamlProblem(file, err)
	}
	if len(doc.Content) == 0 {
		return nil, fmt.Errorf("%s: there are no targets in it", file)
	}
	n := doc.Content[0]
	if n.Kind == yamlv3.SequenceNode {
		n = &yamlv3.Node{Kind: yamlv3.MappingNode, Tag: "!!map", Line: n.Line, Content: []*yamlv3.Node{{Kind: yamlv3.ScalarNode, Tag: "!!str", Value: "targets", Line: n.Line}, n}}
	}
	var list struct {
		Targets []v1alpha1.BundleTarget `json:"targets"`
	}
	if err := decodeStrict(file, n, &list); err != nil {
		return nil, err
	}
	if len(list.Targets) == 0 {
		return nil, fmt.Errorf("%s: there are no targets in it", file)
	}
	return list.Targets, nil
}
