package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/render"
	"shoal.dev/shoal/controller/source"
	"shoal.dev/shoal/controller/target"
)

// renderOptions describe the one cluster to render for.
type renderOptions struct {
	cluster     string
	labels      []string
	groups      []string
	groupLabels []string
	kubeVersion string
	apiVersions []string
}

func renderCommand(a *app) *cobra.Command {
	var o renderOptions
	cmd := &cobra.Command{
		Use:   "render DIR",
		Short: "Print the objects one cluster would get, without any server",
		Long: `Print the objects that one cluster would get of the bundle in DIR, as a YAML stream on standard output. No server is
asked: describe the cluster by flags, its targets then match as they would on the hub. If none matches, nothing is printed
and the reason is on standard error.

Objects without a namespace get the one of the bundle (namespace, defaultNamespace, or "default") when an agent applies them.`,
		Example: `  # what a production cluster gets
  shoal render ./web --cluster paris --label env=prod

  # what members of a cluster group get
  shoal render ./web --group europe --group-label tier=1

  # for an older Kubernetes with an extra API
  shoal render ./web --kube-version v1.31.4 --api-version monitoring.coreos.com/v1`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeDirectory(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return renderDir(cmd.Context(), args[0], o, a.stdout, a.stderr)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.cluster, "cluster", "local", "name of the cluster")
	f.StringArrayVar(&o.labels, "label", nil, "label of the cluster, KEY=VALUE (may be repeated)")
	f.StringArrayVar(&o.groups, "group", nil, `cluster group the cluster is in (may be repeated; default: "default" for a bundle without targets, else none)`)
	f.StringArrayVar(&o.groupLabels, "group-label", nil, "label of these groups, KEY=VALUE (may be repeated)")
	f.StringVar(&o.kubeVersion, "kube-version", "", "Kubernetes version that charts see (default "+render.DefaultKubeVersion+")")
	f.StringArrayVar(&o.apiVersions, "api-version", nil, "API that charts see beside Kubernetes' own, GROUP/VERSION or GROUP/VERSION/KIND (may be repeated)")
	return cmd
}

func renderDir(ctx context.Context, dir string, o renderOptions, stdout, stderr io.Writer) error {
	cluster := target.Cluster{Name: o.cluster}
	var err error
	if cluster.Labels, err = parseLabels("--label", o.labels); err != nil {
		return err
	}
	b, err := source.Dir(ctx, dir, source.Options{})
	if err != nil {
		return err
	}
	groups, err := o.clusterGroups(b.Spec)
	if err != nil {
		return err
	}
	matches, err := target.Select(b.Spec, []target.Cluster{cluster}, groups)
	if err != nil {
		return err
	}
	if len(matches) == 0 {
		fmt.Fprintf(stderr, "shoal: bundle %s: cluster %s gets nothing: %s\n", b.Name, o.cluster, whyNot(b.Spec, cluster, groups))
		return nil
	}
	in := render.Input{Name: b.Name, Resources: b.Spec.Resources, Options: matches[0].Options, KubeVersion: o.kubeVersion}
	if len(o.apiVersions) > 0 {
		in.APIVersions = append(render.DefaultAPIVersions(), o.apiVersions...)
	}
	r, err := render.WithNotes(in)
	if err != nil {
		return fmt.Errorf("bundle %s: target %s: %w", b.Name, matches[0].Target, err)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(stderr, "shoal: note: %s\n", n)
	}
	if len(r.Bundle.Objects()) == 0 {
		fmt.Fprintf(stderr, "shoal: bundle %s: target %s: there are no objects in it\n", b.Name, matches[0].Target)
	}
	w := bufio.NewWriter(stdout)
	for _, obj := range r.Bundle.Objects() {
		y, err := yaml.JSONToYAML(obj.JSON)
		if err != nil {
			return fmt.Errorf("print %s: %w", obj.Ref, err)
		}
		fmt.Fprintf(w, "---\n%s", y)
	}
	return w.Flush()
}

// clusterGroups are the groups that the flags put the cluster in.
func (o renderOptions) clusterGroups(spec v1alpha1.BundleSpec) ([]target.Group, error) {
	labels, err := parseLabels("--group-label", o.groupLabels)
	if err != nil {
		return nil, err
	}
	names := o.groups
	switch {
	case len(names) > 0:
	case len(labels) > 0:
		names = []string{"local"} // a group of that kind, whatever its name
	case len(spec.Targets) == 0:
		names = []string{target.DefaultGroup}
	}
	var groups []target.Group
	for _, n := range names {
		groups = append(groups, target.Group{Name: n, Labels: labels, Selector: &metav1.LabelSelector{}})
	}
	return groups, nil
}

// whyNot says why no target gave the cluster anything.
func whyNot(spec v1alpha1.BundleSpec, c target.Cluster, groups []target.Group) string {
	if len(spec.Targets) == 0 {
		return fmt.Sprintf("the bundle has no targets, so it is for the cluster group %q", target.DefaultGroup)
	}
	// A doNotDeploy that matched looks like no match from outside: ask again as if it were an ordinary target.
	asked := *spec.DeepCopy()
	for i := range asked.Targets {
		asked.Targets[i].DoNotDeploy = false
	}
	if m, err := target.Select(asked, []target.Cluster{c}, groups); err == nil && len(m) > 0 {
		return fmt.Sprintf("target %s matches it and says doNotDeploy", m[0].Target)
	}
	var tried []string
	for i, t := range spec.Targets {
		name := t.Name
		if name == "" {
			name = fmt.Sprintf("targets[%d]", i)
		}
		tried = append(tried, name)
	}
	return fmt.Sprintf("none of its targets matches (%s): describe the cluster with --cluster, --label, --group and --group-label", strings.Join(tried, ", "))
}

func parseLabels(flag string, list []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%s %q: write KEY=VALUE", flag, l)
		}
		labels[k] = v
	}
	return labels, nil
}

// completeDirectory completes directories for the argument at position at.
func completeDirectory(at int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == at {
			return nil, cobra.ShellCompDirectiveFilterDirs
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}
