package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func renderCommand(a *app) *cobra.Command {
	var s siteFlags
	var src sourceFlags
	cmd := &cobra.Command{
		Use:   "render DIR",
		Short: "Print the objects one cluster would get, without any server",
		Long: `Print the objects that one cluster would get of the bundles in DIR, as a YAML stream on standard output. No server is
asked: describe the cluster by flags, its targets then match as they would on the hub. If none matches, nothing is printed
and the reason is on standard error.

A bundle with an error is left out: the others are printed, standard error names it, and the exit code is 1.

With several bundles in DIR, those of each stand below a line "# bundle: NAME". Above a hook stands a line that says when it
runs: "# hook: pre-install, weight 5". Values that the site may have (valuesFrom) are
shown as <site value PATH, else what holds without>. The
workspace, .ClusterNamespace in templates, is that of --namespace, or "default".

Objects are in the namespace in which the agent puts them: their own or the bundle's (defaultNamespace, or "default"), or all in the one
that namespace forces. Of a kind that neither Kubernetes nor the bundle defines only the cluster knows whether it belongs to one; a
note names it.`,
		Example: `  # what a production cluster gets
  shoal render ./web --cluster paris --label env=prod

  # does a cluster have it as it should?
  shoal render ./web --label env=prod | kubectl diff -f -

  # what members of a cluster group get
  shoal render ./web --group europe --group-label tier=1

  # for templates: an annotation and template values of the cluster
  shoal render ./web --label env=prod --annotation owner=south --value region=it --values-file ./site-values.yaml

  # for an older Kubernetes with an extra API
  shoal render ./web --kube-version v1.31.4 --api-version monitoring.coreos.com/v1

  # with targets that are not in the directory
  shoal render ./web --targets-file ./targets.yaml --label env=prod`,
		Args:              arguments(1, 1),
		ValidArgsFunction: completeDirectory(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.render(cmd.Context(), args[0], s, src)
		},
	}
	cmd.Flags().StringVar(&s.cluster, "cluster", "local", "name of the cluster")
	s.register(cmd)
	src.register(cmd)
	return cmd
}

func (a *app) render(ctx context.Context, dir string, flags siteFlags, src sourceFlags) error {
	s, err := flags.site(a.offlineWorkspace())
	if err != nil {
		return err
	}
	bundles, bad, err := src.bundles(ctx, a, dir, "")
	if err != nil {
		return err
	}
	var out bytes.Buffer // a bundle is printed as a whole or not at all
	for _, b := range bundles {
		r, why, err := s.render(b)
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("bundle %s: %w", b.Name, err))
			continue
		}
		if r == nil {
			fmt.Fprintf(a.stderr, "shoal: bundle %s: cluster %s gets nothing: %s\n", b.Name, flags.cluster, why)
			continue
		}
		a.notes(b.Name, len(bundles), append(r.notes, r.shown...))
		if len(r.documents) == 0 {
			fmt.Fprintf(a.stderr, "shoal: bundle %s: target %s: there are no objects in it\n", b.Name, r.match.Target)
		}
		if len(bundles) > 1 {
			fmt.Fprintf(&out, "# bundle: %s\n", b.Name)
		}
		for _, d := range r.documents {
			fmt.Fprint(&out, "---\n")
			if d.hook != "" {
				fmt.Fprintf(&out, "# hook: %s\n", d.hook)
			}
			fmt.Fprint(&out, d.text)
		}
	}
	_, err = out.WriteTo(a.stdout)
	return errors.Join(bad, err)
}

// notes prints what the renderer has to say; the bundle is named where there are several.
func (a *app) notes(bundle string, bundles int, notes []string) {
	for _, n := range notes {
		if bundles > 1 {
			n = "bundle " + bundle + ": " + n
		}
		fmt.Fprintf(a.stderr, "shoal: note: %s\n", n)
	}
}

// offlineWorkspace is the workspace for commands that ask no server: kubeconfig is left alone, so that the same command line gives
// the same everywhere.
func (a *app) offlineWorkspace() string {
	if a.kubernetes.namespace != "" {
		return a.kubernetes.namespace
	}
	return "default"
}
