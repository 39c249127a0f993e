package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// diffOptions are the flags of shoal diff.
type diffOptions struct {
	site            siteFlags
	source          sourceFlags
	from            string
	systemNamespace string
}

func diffCommand(a *app) *cobra.Command {
	var o diffOptions
	cmd := &cobra.Command{
		Use:   "diff [NAME] DIR --cluster CLUSTER",
		Short: "Show what would change on a cluster",
		Long: `Show what applying DIR would change on one cluster: a unified diff of every object, hook and option, of each bundle in DIR.

What the cluster runs is the Bundle that the hub holds, rendered for that Cluster: its labels, groups, template values and Kubernetes are
those that the hub knows. If the cluster has not got there yet, or went back, standard error says so. NAME is the bundle's name, as with
shoal apply.

With --from, two directories are compared and no server is asked: describe the cluster by flags, as with shoal render.

The data of Secrets is never shown, only that it changes. Colours are for terminals; NO_COLOR turns them off.

Exit codes: 0 no differences, 1 differences, 2 trouble or wrong usage.`,
		Example: `  # before shoal apply ./web
  shoal diff ./web --cluster paris

  # between two directories, without any server
  shoal diff ./web --from ./old-web --cluster paris --label env=prod`,
		Args:              arguments(1, 2),
		ValidArgsFunction: completeNameAndDirectory(a),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range describing {
				if o.from == "" && cmd.Flags().Changed(name) {
					return fmt.Errorf("--%s describes a cluster for --from; without it the hub knows the cluster", name)
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name, dir := nameAndDirectory(args)
			different, err := a.diff(cmd.Context(), name, dir, o)
			switch {
			case err != nil:
				return trouble{err}
			case different:
				return errDifferent
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.site.cluster, "cluster", "", "name of the cluster (required)")
	f.StringVar(&o.from, "from", "", "directory to compare with, instead of what the hub holds")
	f.StringVar(&o.systemNamespace, "system-namespace", controller.DefaultNamespace, "namespace of the hub, where the API versions of clusters are listed")
	o.site.register(cmd)
	o.source.register(cmd)
	_ = cmd.MarkFlagRequired("cluster")
	_ = cmd.MarkFlagDirname("from")
	_ = cmd.RegisterFlagCompletionFunc("cluster", a.completeClusters)
	return cmd
}

// pair is a bundle before and after; one of them may be missing.
type pair struct {
	name          string
	before, after *v1alpha1.Bundle
}

// diff reports whether there are differences.
func (a *app) diff(ctx context.Context, name, dir string, o diffOptions) (bool, error) {
	after, bad, err := o.source.bundles(ctx, a, dir, name)
	if err != nil {
		return false, err
	}
	var pairs []pair
	var s site
	old := "hub"
	if o.from != "" {
		old = o.from
		s, err = o.site.site(a.offlineWorkspace())
		if err == nil {
			pairs, err = o.compareWithDirectory(ctx, a, name, after)
		}
	} else {
		s, pairs, err = a.compareWithHub(ctx, after, o)
	}
	if err != nil {
		return false, err
	}
	show := a.diffPrinter()
	different := false
	for _, p := range pairs {
		changed, err := a.diffBundle(p, s, old, dir, show)
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("bundle %s: %w", p.name, err))
		}
		different = different || changed
	}
	return different, bad
}

// compareWithDirectory pairs bundles by name.
func (o diffOptions) compareWithDirectory(ctx context.Context, a *app, name string, after []*v1alpha1.Bundle) ([]pair, error) {
	before, bad, err := o.source.bundles(ctx, a, o.from, name)
	if err = errors.Join(err, bad); err != nil {
		return nil, fmt.Errorf("--from: %w", err) // what is left out would look new
	}
	if len(before) == 1 && len(after) == 1 && name == "" {
		// Where no name is set they are named after their directories, which differ.
		before[0].Name = after[0].Name
		return []pair{{name: after[0].Name, before: before[0], after: after[0]}}, nil
	}
	var pairs []pair
	for _, b := range after {
		pairs = append(pairs, pair{name: b.Name, after: b})
	}
	for _, b := range before {
		i := slices.IndexFunc(pairs, func(p pair) bool { return p.name == b.Name })
		if i < 0 {
			pairs = append(pairs, pair{name: b.Name})
			i = len(pairs) - 1
		}
		pairs[i].before = b
	}
	return pairs, nil
}

// compareWithHub asks the hub's API for the cluster and the bundles it holds, and says where the cluster stands.
func (a *app) compareWithHub(ctx context.Context, after []*v1alpha1.Bundle, o diffOptions) (site, []pair, error) {
	kube, ns, err := a.hubClient()
	if err != nil {
		return site{}, nil, err
	}
	s, err := a.clusterOnHub(ctx, kube, ns, o)
	if err != nil {
		return site{}, nil, err
	}
	var pairs []pair
	for _, b := range after {
		p := pair{name: b.Name, after: b}
		var stored v1alpha1.Bundle
		err := kube.Get(ctx, client.ObjectKey{Namespace: ns, Name: b.Name}, &stored)
		switch {
		case apierrors.IsNotFound(err):
			fmt.Fprintf(a.stderr, "shoal: note: there is no bundle %s/%s yet\n", ns, b.Name)
		case err != nil:
			return site{}, nil, fmt.Errorf("read bundle %s/%s: %w", ns, b.Name, err)
		default:
			p.before = &stored
			for _, note := range standing(s.cluster, stored) {
				fmt.Fprintf(a.stderr, "shoal: note: %s\n", note)
			}
		}
		pairs = append(pairs, p)
	}
	return s, pairs, nil
}

// clusterOnHub is the cluster as the hub sees it.
func (a *app) clusterOnHub(ctx context.Context, kube client.Client, ns string, o diffOptions) (site, error) {
	var s site
	err := kube.Get(ctx, client.ObjectKey{Namespace: ns, Name: o.site.cluster}, &s.cluster)
	switch {
	case apierrors.IsNotFound(err):
		return site{}, fmt.Errorf("there is no cluster %s/%s: see shoal get clusters -A", ns, o.site.cluster)
	case err != nil:
		return site{}, fmt.Errorf("read cluster %s/%s: %w", ns, o.site.cluster, err)
	}
	var groups v1alpha1.ClusterGroupList
	if err := kube.List(ctx, &groups, client.InNamespace(ns)); err != nil {
		return site{}, fmt.Errorf("list cluster groups: %w", err)
	}
	s.groups = matchedGroups(groups.Items)
	if s.cluster.Status.KubernetesVersion == "" {
		fmt.Fprintf(a.stderr, "shoal: note: cluster %s has not connected yet: its Kubernetes version is not known, the default is taken\n", o.site.cluster)
	}
	list := s.cluster.Status.APIVersions
	if list == "" {
		return s, nil
	}
	var cm corev1.ConfigMap
	if err := kube.Get(ctx, client.ObjectKey{Namespace: o.systemNamespace, Name: list}, &cm); err != nil {
		fmt.Fprintf(a.stderr, "shoal: note: the API versions of cluster %s cannot be read, those of Kubernetes alone are taken: %v\n", o.site.cluster, err)
		return s, nil
	}
	s.apiVersions = strings.Fields(cm.Data["apiVersions"])
	return s, nil
}

// standing says why what the hub holds may not be what the cluster runs.
func standing(c v1alpha1.Cluster, b v1alpha1.Bundle) []string {
	var notes []string
	if b.Status.ObservedGeneration < b.Generation {
		notes = append(notes, fmt.Sprintf("the hub has not looked at the newest bundle %s yet", b.Name))
	}
	i := slices.IndexFunc(c.Status.NotReady, func(n v1alpha1.NotReadyItem) bool { return n.Name == b.Name })
	switch {
	case i >= 0:
		n := c.Status.NotReady[i]
		text := fmt.Sprintf("cluster %s: bundle %s is %s", c.Name, b.Name, n.State)
		if n.Message != "" {
			text += ": " + oneLine(n.Message)
		}
		switch n.State {
		case v1alpha1.StateReady, v1alpha1.StateNotReady, v1alpha1.StateModified:
		default:
			text += "; it may still run an older release than the one compared with"
		}
		notes = append(notes, text)
	case c.Status.ReportedSerial < c.Status.DesiredSerial:
		notes = append(notes, fmt.Sprintf("cluster %s has not reported what it was told last (%d, reported %d): it may still run an older release than the one compared with",
			c.Name, c.Status.DesiredSerial, c.Status.ReportedSerial))
	}
	if c.Status.Presence == v1alpha1.PresenceOffline {
		notes = append(notes, fmt.Sprintf("cluster %s is offline since %s", c.Name, c.Status.PresenceSince.UTC().Format("2006-01-02 15:04:05 UTC")))
	}
	return notes
}

// diffBundle prints what changes in one bundle.
func (a *app) diffBundle(p pair, s site, oldName, newName string, show func([]byte)) (bool, error) {
	before, err := a.side(p.before, s, oldName)
	if err != nil {
		return false, fmt.Errorf("%s: %w", oldName, err)
	}
	after, err := a.side(p.after, s, newName)
	if err != nil {
		return false, fmt.Errorf("%s: %w", newName, err)
	}
	different := false
	for _, ref := range order(before, after) {
		x, y := before.find(ref), after.find(ref)
		from, to := x.body(), y.body()
		if ref.Kind == "Secret" && ref.Group == "" {
			from, to = maskSecret(x, y)
		}
		d := diff.Diff(fmt.Sprintf("%s: %s: %s", oldName, p.name, ref), []byte(from), fmt.Sprintf("%s: %s: %s", newName, p.name, ref), []byte(to))
		if len(d) > 0 {
			different = true
			show(d)
		}
	}
	d := diff.Diff(fmt.Sprintf("%s: %s: options", oldName, p.name), []byte(before.options), fmt.Sprintf("%s: %s: options", newName, p.name), []byte(after.options))
	if len(d) > 0 {
		different = true
		show(d)
	}
	return different, nil
}

// sideOfDiff is what a cluster gets of a bundle, before or after.
type sideOfDiff struct {
	documents []document
	options   string // YAML: how the site is to treat them
}

func (a *app) side(b *v1alpha1.Bundle, s site, where string) (sideOfDiff, error) {
	if b == nil {
		return sideOfDiff{}, nil
	}
	r, why, err := s.render(b)
	if err != nil {
		return sideOfDiff{}, err
	}
	if r == nil {
		fmt.Fprintf(a.stderr, "shoal: note: %s: bundle %s: cluster %s gets nothing: %s\n", where, b.Name, s.cluster.Name, why)
		return sideOfDiff{}, nil
	}
	for _, n := range append(r.notes, r.shown...) {
		fmt.Fprintf(a.stderr, "shoal: note: %s: bundle %s: %s\n", where, b.Name, n)
	}
	options, err := siteOptions(b.Spec, r.match)
	return sideOfDiff{documents: r.documents, options: options}, err
}

// siteOptions are the options that are no part of the objects: how the bundle is rolled out, and how the site treats it.
func siteOptions(spec v1alpha1.BundleSpec, m target.Match) (string, error) {
	spec.Resources, spec.Targets, spec.TargetRestrictions, spec.TargetCustomizationMode, spec.Templating = nil, nil, nil, "", ""
	o := *m.Options.DeepCopy()
	if o.Helm != nil { // what of it only shapes objects is seen in them
		o.Helm = &v1alpha1.HelmOptions{
			ValuesFrom: o.Helm.ValuesFrom, TimeoutSeconds: o.Helm.TimeoutSeconds, TakeOwnership: o.Helm.TakeOwnership, Force: o.Helm.Force,
			Atomic: o.Helm.Atomic, WaitForJobs: o.Helm.WaitForJobs,
		}
	}
	o.Kustomize, o.YAML = nil, nil
	spec.BundleOptions = o
	data, err := yaml.Marshal(spec)
	if err != nil {
		return "", fmt.Errorf("print options: %w", err)
	}
	text := strings.ReplaceAll(string(data), "helm: {}\n", "")
	if text == "{}\n" {
		text = ""
	}
	return text, nil
}

func (s sideOfDiff) find(ref bundlefmt.Ref) *document {
	for i := range s.documents {
		if s.documents[i].ref == ref {
			return &s.documents[i]
		}
	}
	return nil
}

// body is the document with its hook line.
func (d *document) body() string {
	switch {
	case d == nil:
		return ""
	case d.hook == "":
		return d.text
	}
	return "# hook: " + d.hook + "\n" + d.text
}

// order is that of the new objects, and each removed one behind the last of its own side that is before it.
func order(before, after sideOfDiff) []bundlefmt.Ref {
	var refs []bundlefmt.Ref
	for _, d := range after.documents {
		refs = append(refs, d.ref)
	}
	at := 0
	for _, d := range before.documents {
		if i := slices.Index(refs, d.ref); i >= 0 {
			at = i + 1
			continue
		}
		refs = slices.Insert(refs, at, d.ref)
		at++
	}
	return refs
}

// maskSecret takes the values out of both sides, so that only what changes can be seen of them.
func maskSecret(x, y *document) (string, string) {
	from, to := x.values(), y.values()
	return x.masked(func(k, v string) string {
			if w, ok := to[k]; ok && w == v {
				return "***"
			}
			return "*** (before)"
		}), y.masked(func(k, v string) string {
			if w, ok := from[k]; ok && w == v {
				return "***"
			}
			return "*** (after)"
		})
}

var secretFields = []string{"data", "stringData"}

func (d *document) object() map[string]any {
	var o map[string]any
	if d == nil || yaml.Unmarshal([]byte(d.text), &o) != nil {
		return nil
	}
	return o
}

// values are those of a Secret, by field and key.
func (d *document) values() map[string]string {
	out := map[string]string{}
	for _, field := range secretFields {
		data, _ := d.object()[field].(map[string]any)
		for k, v := range data {
			out[field+"/"+k] = fmt.Sprint(v)
		}
	}
	return out
}

func (d *document) masked(mask func(key, value string) string) string {
	if d == nil {
		return ""
	}
	o := d.object()
	for _, field := range secretFields {
		data, ok := o[field].(map[string]any)
		if !ok && o[field] != nil || o == nil {
			return "*** (no proper Secret)\n" // whatever stands there is not for the terminal
		}
		for k, v := range data {
			data[k] = mask(field+"/"+k, fmt.Sprint(v))
		}
	}
	text, err := yaml.Marshal(o)
	if err != nil {
		return "*** (no proper Secret)\n"
	}
	return (&document{hook: d.hook, text: string(text)}).body()
}

// diffPrinter prints a unified diff without its first line, in colours where a person reads it.
func (a *app) diffPrinter() func([]byte) {
	colour := false
	if f, ok := a.stdout.(*os.File); ok && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb" {
		colour = term.IsTerminal(int(f.Fd()))
	}
	return func(d []byte) {
		_, d, _ = bytes.Cut(d, []byte("\n"))
		if colour {
			d = paint(d)
		}
		_, err := a.stdout.Write(d)
		_ = err // a reader that went away wants no more
	}
}

// paint colours a unified diff.
func paint(d []byte) []byte {
	var out bytes.Buffer
	for line := range bytes.Lines(d) {
		code := ""
		switch {
		case bytes.HasPrefix(line, []byte("---")), bytes.HasPrefix(line, []byte("+++")):
			code = "1"
		case line[0] == '@':
			code = "36"
		case line[0] == '-':
			code = "31"
		case line[0] == '+':
			code = "32"
		default:
			out.Write(line)
			continue
		}
		fmt.Fprintf(&out, "\x1b[%sm%s\x1b[0m\n", code, bytes.TrimSuffix(line, []byte("\n")))
	}
	return out.Bytes()
}

// nameAndDirectory splits [NAME] DIR.
func nameAndDirectory(args []string) (name, dir string) {
	if len(args) == 2 {
		return args[0], args[1]
	}
	return "", args[0]
}
