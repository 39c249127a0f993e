package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	yamlv3 "go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/check"
	"shoal.dev/shoal/controller/source"
)

// finding is one thing that lint has to say.
type finding struct {
	File     string `json:"file"`
	Line     int    `json:"line,omitempty"`
	Severity string `json:"severity"` // error, warning or note
	Message  string `json:"message"`
	bundle   string // that has it; empty: the tree as a whole, or a bundle that was not made
}

const (
	severityError   = "error"
	severityWarning = "warning"
	severityNote    = "note" // nothing has to be done: --strict leaves it
)

func lintCommand(a *app) *cobra.Command {
	var src sourceFlags
	var clusters, output string
	var strict bool
	cmd := &cobra.Command{
		Use:   "lint DIR",
		Short: "Find every problem of the bundles in DIR at once",
		Long: `Find every problem of the bundles in DIR, without any server: all files are read, and every target is rendered, for a cluster that has the
labels which the target asks for, or with --clusters for one cluster of that file for each set of options. The objects are held against the
schemas of Kubernetes' own kinds and of the resource definitions among them. One problem a line on standard output,
FILE:LINE: MESSAGE, as editors and compilers write it; a warning begins with "warning:", what needs no change with "note:".

Warnings are about what works and is unlikely to be meant: targets that match nothing or are never reached, overlays that nothing uses, files
that are left out, unknown fields, functions that give something else every time. Notes name fields of Fleet that have no effect here.

Exit codes: 0 no errors, 1 errors, 2 wrong usage.`,
		Example: `  shoal lint ./web

  # with the labels and values of real clusters; in CI, where warnings count as well
  shoal lint ./web --clusters clusters.yaml --strict

  # for scripts
  shoal lint ./web -o json`,
		Args:              arguments(1, 1),
		ValidArgsFunction: completeDirectory(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("--output", output, "", "json"); err != nil {
				return err
			}
			var fleet *clustersFile
			if clusters != "" {
				var err error
				if fleet, err = readClusters(clusters, a.kubernetes.namespace); err != nil {
					return err
				}
			}
			o, done, err := src.options(a, "")
			if err != nil {
				return err
			}
			defer done()
			found, err := lint(cmd.Context(), args[0], o, fleet)
			if err != nil {
				return err
			}
			if strict {
				for i := range found {
					if found[i].Severity == severityWarning {
						found[i].Severity = severityError
					}
				}
			}
			return a.report(asGiven(args[0], found), output)
		},
	}
	f := cmd.Flags()
	f.StringVar(&clusters, "clusters", "", "YAML file with clusters to render for, as shoal target takes it")
	f.StringVarP(&output, "output", "o", "", "json; default: a line for each problem")
	f.BoolVar(&strict, "strict", false, "warnings are errors")
	src.register(cmd)
	_ = cmd.MarkFlagFilename("clusters", "yaml", "yml", "json")
	completeValues(cmd, "output", "json")
	return cmd
}

// report prints errors, then warnings, then notes, each in the order of files and lines.
func (a *app) report(found []finding, output string) error {
	slices.SortStableFunc(found, func(x, y finding) int {
		order := func(f finding) int {
			return slices.Index([]string{severityError, severityWarning, severityNote}, f.Severity)
		}
		return cmp.Or(order(x)-order(y), strings.Compare(x.File, y.File), x.Line-y.Line)
	})
	found = slices.Compact(found)
	n := map[string]int{}
	for _, f := range found {
		n[f.Severity]++
	}
	if output == "json" {
		if found == nil {
			found = []finding{}
		}
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		if err := e.Encode(found); err != nil {
			return err
		}
	} else {
		for _, f := range found {
			fmt.Fprintln(a.stdout, f)
		}
		if len(found) == 0 {
			fmt.Fprintln(a.stderr, "shoal: no problems")
		} else {
			fmt.Fprintf(a.stderr, "shoal: %s, %s, %s\n",
				count(n[severityError], "error"), count(n[severityWarning], "warning"), count(n[severityNote], "note"))
		}
	}
	if n[severityError] > 0 {
		return errProblems
	}
	return nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

func (f finding) String() string {
	s := ""
	if f.File != "" {
		s = f.File + ":"
		if f.Line > 0 {
			s += strconv.Itoa(f.Line) + ":"
		}
		s += " "
	}
	if f.Severity != severityError {
		s += f.Severity + ": "
	}
	return s + strings.ReplaceAll(f.Message, "\n", " ")
}

// linter collects findings about a tree.
type linter struct {
	fleet *clustersFile
	found []finding
}

// place is where a bundle is, and its options file.
type place struct {
	dir  string       // below the root; "."
	file string       // empty: it has none
	root *yamlv3.Node // nil: none
}

// lint returns everything that is wrong with a tree. Its error is about the command line: there is nothing to read.
func lint(ctx context.Context, dir string, o source.Options, fleet *clustersFile) ([]finding, error) {
	switch info, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read %s: there is no such directory", dir)
	case err != nil || !info.IsDir():
		return nil, fmt.Errorf("read %s: want a directory", dir)
	}
	bundles, problems, err := source.Tree(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	return lintBundles(dir, bundles, problems, fleet), nil
}

// asGiven names files as they are found from where the command runs: what editors and people can open.
func asGiven(dir string, found []finding) []finding {
	if dir = strings.TrimRight(dir, "/"); path.Clean(dir) == "." {
		return found
	}
	for i := range found {
		if found[i].File != "" {
			found[i].File = dir + "/" + found[i].File
		}
	}
	return found
}

// lintBundles returns what is wrong with bundles that were read from a directory, with the problems of reading them.
func lintBundles(dir string, bundles []source.Found, problems source.Problems, fleet *clustersFile) []finding {
	l := &linter{fleet: fleet}
	for _, p := range problems {
		severity := severityError
		if p.Warning {
			severity = severityWarning
		}
		l.found = append(l.found, finding{File: p.File, Line: p.Line, Severity: severity, Message: p.Message})
	}
	all := map[string]linted{}
	for _, f := range bundles {
		x := linted{linter: l, place: placeOf(dir, f), bundle: f.Bundle}
		all[f.Bundle.Name] = x
		x.targets()
		x.overlays()
		x.withoutEffect()
		x.renderAll()
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if circle := circleFrom(all, name); circle != nil && name == slices.Min(circle) {
			all[name].say(severityError, "dependsOn", "dependsOn goes in a circle, so that none of them can ever be deployed: %s", strings.Join(append(circle, name), " → "))
		}
	}
	return l.found
}

// placeOf reads the options file again, for the lines of what it says.
func placeOf(dir string, f source.Found) place {
	p := place{dir: f.Dir, file: f.File}
	if f.File == "" {
		return p
	}
	var doc yamlv3.Node
	data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(f.File)))
	if err == nil && yamlv3.Unmarshal(data, &doc) == nil && len(doc.Content) > 0 {
		p.root = doc.Content[0]
	}
	return p
}

// linted is one bundle and where it is.
type linted struct {
	*linter
	place
	bundle *v1alpha1.Bundle
}

// circleFrom is a shortest way along dependsOn from a bundle back to itself, or nil. Only names count: selectors depend on what
// else is there.
func circleFrom(all map[string]linted, start string) []string {
	ways := [][]string{{start}}
	seen := map[string]bool{}
	for len(ways) > 0 {
		way := ways[0]
		ways = ways[1:]
		x, ok := all[way[len(way)-1]]
		if !ok {
			continue // elsewhere
		}
		for _, d := range x.bundle.Spec.DependsOn {
			if d.Name == start {
				return way
			}
			if d.Name != "" && !seen[d.Name] {
				seen[d.Name] = true
				ways = append(ways, append(slices.Clone(way), d.Name))
			}
		}
	}
	return nil
}

func (x linted) add(f finding) {
	f.bundle = x.bundle.Name
	x.found = append(x.found, f)
}

// say notes a finding at a field of the options, or at the bundle as a whole.
func (x linted) say(severity, field, format string, args ...any) {
	f := finding{File: x.file, Severity: severity, Message: fmt.Sprintf(format, args...)}
	if x.root != nil && field != "" {
		f.Line = lineOf(x.root, field).Line
	}
	if x.file == "" {
		f.Message = "bundle " + x.bundle.Name + ": " + f.Message
	}
	x.add(f)
}

// targets finds those that can never count.
func (x linted) targets() {
	spec := x.bundle.Spec
	names := map[string]bool{}
	everyone := ""
	for i, t := range spec.Targets {
		field := x.targetField(i)
		title := cmp.Or(t.Name, field, targetTitle(spec.Targets, i))
		switch m := t.ClusterMatch; {
		case m.ClusterName == "" && m.ClusterGroup == "" && m.ClusterSelector == nil && m.ClusterGroupSelector == nil:
			x.say(severityWarning, field, "target %s has no criteria, so it matches no cluster: clusterSelector: {} matches all", title)
		case everyone != "" && spec.TargetCustomizationMode != "AllMatches" && len(spec.TargetRestrictions) == 0:
			x.say(severityWarning, field, "target %s is never reached: target %s before it matches every cluster", title, everyone)
		}
		if t.Name != "" && names[t.Name] {
			x.say(severityWarning, field, "two targets have the name %s: messages cannot tell them apart", t.Name)
		}
		names[t.Name] = true
		if everyone == "" && matchesEveryone(t.ClusterMatch) {
			everyone = title
		}
	}
}

func matchesEveryone(m v1alpha1.ClusterMatch) bool {
	empty := func(s *metav1.LabelSelector) bool {
		return s != nil && len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0
	}
	return m.ClusterName == "" && m.ClusterGroup == "" && empty(m.ClusterSelector) && (m.ClusterGroupSelector == nil || empty(m.ClusterGroupSelector))
}

// targetField is where a target of the bundle stands in its options file.
func (x linted) targetField(i int) string {
	for _, key := range []string{"targets", "targetCustomizations"} {
		n := 0
		if x.root != nil {
			if list := child(x.root, key); list != nil {
				n = len(list.Content)
			}
		}
		if i < n {
			return fmt.Sprintf("%s[%d]", key, i)
		}
		i -= n
	}
	return ""
}

// overlays finds directories of overlays that nothing uses.
func (x linted) overlays() {
	used := map[string]bool{}
	other := false // a chart or a kustomization
	use := func(o v1alpha1.BundleOptions) {
		other = other || o.Kustomize != nil || o.Helm != nil && o.Helm.Chart != ""
		if o.YAML != nil {
			for _, name := range o.YAML.Overlays {
				used[name] = true
			}
		}
	}
	use(x.bundle.Spec.BundleOptions)
	for _, t := range x.bundle.Spec.Targets {
		use(t.BundleOptions)
	}
	there := map[string]bool{}
	for _, r := range x.bundle.Spec.Resources {
		if rest, ok := strings.CutPrefix(r.Name, "overlays/"); ok {
			name, _, below := strings.Cut(rest, "/")
			there[name] = there[name] || below
		}
	}
	switch {
	case x.bundle.Spec.Templating == "all" && len(used) > 0:
		return // their names may be templates
	case slices.ContainsFunc([]string{"Chart.yaml", "kustomization.yaml", "kustomization.yml", "Kustomization"}, x.has):
		return // charts and kustomizations have their own ways to use files
	case other:
		return
	}
	for _, name := range slices.Sorted(maps.Keys(there)) {
		if there[name] && !used[name] {
			x.add(finding{File: x.below("overlays/" + name), Severity: severityWarning, Message: "this overlay is not used: name it in yaml.overlays of the bundle or of a target"})
		}
	}
}

func (x linted) has(file string) bool {
	return slices.ContainsFunc(x.bundle.Spec.Resources, func(r v1alpha1.BundleResource) bool { return r.Name == file })
}

// withoutEffect finds fields that are accepted for Fleet's sake, and forms that have a successor.
func (x linted) withoutEffect() {
	if x.root == nil {
		return
	}
	if path.Base(x.file) == "bundle.yaml" {
		x.say(severityWarning, "", "this is the form of 2020: fleet.yaml has taken its place")
	}
	fields := []string{""}
	for _, key := range []string{"targets", "targetCustomizations"} {
		if list := child(x.root, key); list != nil {
			for i := range list.Content {
				fields = append(fields, fmt.Sprintf("%s[%d].", key, i))
			}
		}
	}
	for _, prefix := range fields {
		for field, why := range map[string]string{
			"helm.disableDNS":              "templates never resolve names",
			"helm.maxHistory":              "an agent always keeps the release before the current one",
			"correctDrift.keepFailHistory": "there is no Helm history on a cluster",
		} {
			if n := at(x.root, prefix+field); n != nil {
				x.say(severityNote, prefix+field, "%s%s has no effect: %s", prefix, field, why)
			}
		}
	}
	x.oldTemplates(x.root)
}

const oldTemplate = "global.fleet.clusterLabels."

func (x linted) oldTemplates(n *yamlv3.Node) {
	if n.Kind == yamlv3.ScalarNode && strings.HasPrefix(n.Value, oldTemplate) {
		label := strings.TrimPrefix(n.Value, oldTemplate)
		x.add(finding{File: x.file, Line: n.Line, Severity: severityWarning, Message: fmt.Sprintf("%s%s is the old form, and empty for a cluster without the label: write ${ get .ClusterLabels %q }", oldTemplate, label, label)})
	}
	for _, c := range n.Content {
		x.oldTemplates(c)
	}
}

// renderAll renders each target once, or with clusters each distinct set of options. What is said of several is said once.
func (x linted) renderAll() {
	said := map[string]bool{}
	for _, s := range x.sites() {
		r, _, err := s.site.render(s.bundle)
		switch {
		case err != nil:
			x.cannotRender(s, err)
			continue
		case r == nil:
			continue
		case len(r.documents) == 0:
			x.say(severityWarning, s.field, "target %s: there are no objects in it", s.title)
		}
		x.checkObjects(s, r)
		for _, n := range r.notes {
			before := strings.HasPrefix(n, oldTemplate) || strings.HasPrefix(n, "yaml.overlays[") // said already, with the line
			if !said[n] && !(before && x.root != nil) {
				said[n] = true
				x.note(s, n)
			}
		}
	}
}

// checkObjects holds what a target gives against the schemas of its kinds.
func (x linted) checkObjects(s lintedSite, r *rendition) {
	objects := make([]map[string]any, len(r.documents))
	for i, d := range r.documents {
		_ = yaml.Unmarshal([]byte(d.text), &objects[i]) // which was made of an object
	}
	c := check.New(objects, s.cluster.Status.KubernetesVersion)
	for i, o := range objects {
		for _, p := range c.Object(o) {
			severity := severityError
			if p.Warning {
				severity = severityWarning
			}
			f := finding{File: x.file, Severity: severity, Message: fmt.Sprintf("%s: %s", r.documents[i].ref, p), bundle: x.bundle.Name}
			if file, line := x.origin(o, p.Field); file != "" {
				f.File, f.Line = x.below(file), line
			} else {
				f.Message = "target " + s.title + ": " + f.Message
				if x.root != nil && s.field != "" {
					f.Line = lineOf(x.root, s.field).Line
				}
			}
			if !slices.Contains(x.found, f) { // another target has the same mistake
				x.add(f)
			}
		}
	}
}

// origin is the one manifest of the bundle that an object comes from, and the line in it where a field stands: the one that holds the
// field's key, at or after the object's name. 0: not known.
func (x linted) origin(o map[string]any, field string) (file string, line int) {
	meta, _ := o["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	key := field[strings.LastIndex(field, ".")+1:]
	key, _, _ = strings.Cut(key, "[")
	for _, res := range x.bundle.Spec.Resources {
		if ext := path.Ext(res.Name); ext != ".yaml" && ext != ".yml" || strings.HasPrefix(path.Base(res.Name), "values") {
			continue
		}
		data, err := res.Decode(1 << 20)
		if err != nil {
			continue
		}
		at := 1 // line where the document begins
		for doc := range strings.SplitSeq(string(data), "\n---") {
			var head struct {
				Kind     string
				Metadata struct{ Name string }
			}
			if yaml.Unmarshal([]byte(doc), &head) == nil && head.Kind == o["kind"] && head.Metadata.Name == name {
				if file != "" {
					return "", 0 // two of them
				}
				file = res.Name
				if m := regexp.MustCompile(`(?m)(^|[\s{,"'])` + regexp.QuoteMeta(key) + `["']?\s*:`).FindStringIndex(doc); key != "" && m != nil {
					line = at + strings.Count(doc[:m[1]], "\n")
				}
			}
			at += strings.Count(doc, "\n") + 1
		}
	}
	return file, line
}

// note is a warning of the renderer, which often begins with the file it is about.
func (x linted) note(s lintedSite, text string) {
	name, rest, _ := strings.Cut(text, " ")
	if file := x.fileOf(strings.TrimSuffix(name, ":")); file != "" {
		x.add(finding{File: x.below(file), Line: x.lineWith(file, rest), Severity: severityWarning, Message: rest})
		return
	}
	x.say(severityWarning, s.field, "%s", text)
}

var usesFunction = regexp.MustCompile(`^uses (\w+)`)

// lineWith is the first line of a file with the function that a note says it uses; 0: not known.
func (x linted) lineWith(file, note string) int {
	m := usesFunction.FindStringSubmatch(note)
	i := slices.IndexFunc(x.bundle.Spec.Resources, func(r v1alpha1.BundleResource) bool { return r.Name == file })
	if m == nil || i < 0 {
		return 0
	}
	data, err := x.bundle.Spec.Resources[i].Decode(1 << 20)
	if err != nil {
		return 0
	}
	before, _, found := strings.Cut(string(data), m[1])
	if !found {
		return 0
	}
	return 1 + strings.Count(before, "\n")
}

// below is the path of a file of the bundle in the tree.
func (x linted) below(file string) string { return path.Join(x.dir, file) }

// lintedSite is a cluster to render for, and the target that is tried with it.
type lintedSite struct {
	site
	bundle *v1alpha1.Bundle
	title  string
	field  string // of the target in the options file
	real   bool   // the cluster exists
}

func (x linted) sites() []lintedSite {
	if x.fleet != nil {
		return x.realSites()
	}
	spec := x.bundle.Spec
	if len(spec.Targets) == 0 {
		return []lintedSite{{site: site{cluster: madeUp(v1alpha1.ClusterMatch{}), byDefault: true}, bundle: x.bundle, title: "default"}}
	}
	var out []lintedSite
	for i, t := range spec.Targets {
		if t.DoNotDeploy {
			continue
		}
		// That target alone, for everyone: whether it matches is not the question here.
		alone := x.bundle.DeepCopy()
		t.ClusterMatch = v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{}}
		alone.Spec.Targets, alone.Spec.TargetRestrictions, alone.Spec.TargetCustomizationMode = []v1alpha1.BundleTarget{t}, nil, ""
		out = append(out, lintedSite{site: site{cluster: madeUp(spec.Targets[i].ClusterMatch)}, bundle: alone, title: cmp.Or(t.Name, x.targetField(i), targetTitle(spec.Targets, i)), field: x.targetField(i)})
	}
	return out
}

// realSites is one cluster for each distinct outcome.
func (x linted) realSites() []lintedSite {
	seen := map[string]bool{}
	var out []lintedSite
	groups := matchedGroups(x.fleet.groups)
	for _, c := range x.fleet.clusters {
		s := site{cluster: c, groups: groups}
		m, err := s.match(x.bundle)
		if err == nil {
			if m == nil || seen[optionsKey(*m)] {
				continue
			}
			seen[optionsKey(*m)] = true
		}
		out = append(out, lintedSite{site: s, bundle: x.bundle, title: "for cluster " + c.Name, real: true})
	}
	return out
}

// madeUp is a cluster with the name and the labels that a target asks for.
func madeUp(m v1alpha1.ClusterMatch) v1alpha1.Cluster {
	c := v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: cmp.Or(m.ClusterName, "local"), Namespace: "default", Labels: map[string]string{}}}
	if m.ClusterSelector == nil {
		return c
	}
	maps.Copy(c.Labels, m.ClusterSelector.MatchLabels)
	for _, e := range m.ClusterSelector.MatchExpressions {
		if _, set := c.Labels[e.Key]; set {
			continue
		}
		switch {
		case e.Operator == metav1.LabelSelectorOpIn && len(e.Values) > 0:
			c.Labels[e.Key] = e.Values[0]
		case e.Operator == metav1.LabelSelectorOpExists:
			c.Labels[e.Key] = "some"
		}
	}
	return c
}

// inFile is where the renderer and Helm say that something is wrong: PATH, CHART/PATH or either with :LINE.
var inFile = regexp.MustCompile(`([A-Za-z0-9_./-]+\.(?:yaml|yml|json|tpl|txt))(?::(\d+))?`)

// cannotRender says why: everything, and each at the line of the file that is to blame if that is known.
func (x linted) cannotRender(s lintedSite, err error) {
	if !s.real && needsMore(err) {
		x.say(severityWarning, s.field, "cannot be tried without more about a cluster, use --clusters: %v", err)
		return
	}
	prefix := ""
	var several interface{ Unwrap() []error }
	if errors.As(err, &several) {
		prefix = strings.TrimSuffix(err.Error(), fmt.Sprint(several))
		for _, e := range several.Unwrap() {
			x.blame(s, prefix+e.Error())
		}
		return
	}
	x.blame(s, err.Error())
}

func (x linted) blame(s lintedSite, message string) {
	f := finding{Severity: severityError, Message: message}
	for _, m := range inFile.FindAllStringSubmatch(message, -1) {
		file := x.fileOf(m[1])
		if line, _ := strconv.Atoi(m[2]); file != "" && (f.File == "" || f.Line == 0 && line > 0) {
			f.File, f.Line = x.below(file), line
		}
	}
	switch {
	case f.File == "":
		x.say(severityError, s.field, "%s", message)
	case slices.ContainsFunc(x.found, func(g finding) bool {
		return g.File == f.File && g.Line == f.Line && f.Line > 0 && g.Severity == f.Severity
	}):
		// Another target has the same mistake.
	default:
		x.add(f)
	}
}

// fileOf is the file of the bundle that Helm calls CHART/PATH, or empty.
func (x linted) fileOf(name string) string {
	for strings.Contains(name, "/") || x.has(name) {
		if x.has(name) {
			return name
		}
		if h := x.bundle.Spec.Helm; h != nil && h.Chart != "" && x.has(path.Join(h.Chart, name)) {
			return path.Join(h.Chart, name)
		}
		_, name, _ = strings.Cut(name, "/")
	}
	return ""
}

// at is the node on a path, or nil.
func at(n *yamlv3.Node, path string) *yamlv3.Node {
	for key := range strings.SplitSeq(path, ".") {
		key, index, _ := strings.Cut(key, "[")
		if n = child(n, key); n == nil {
			return nil
		}
		if i, err := strconv.Atoi(strings.TrimSuffix(index, "]")); err == nil {
			if n.Kind != yamlv3.SequenceNode || i >= len(n.Content) {
				return nil
			}
			n = n.Content[i]
		}
	}
	return n
}

// needsMore tells a template that asks for a label or a value which a made-up cluster lacks.
func needsMore(err error) bool { return strings.Contains(err.Error(), "map has no entry for key") }
