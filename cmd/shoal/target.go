package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// targeted is one cluster and what it gets of one bundle.
type targeted struct {
	Bundle    string `json:"bundle"`
	Cluster   string `json:"cluster"`
	Target    string `json:"target,omitempty"` // none: it does not get it
	Namespace string `json:"namespace,omitempty"`
	Options   string `json:"options,omitempty"` // equal where options are
	Why       string `json:"why,omitempty"`
	Error     string `json:"error,omitempty"` // it should get it, and a template fails for it: it keeps what it has
}

func targetCommand(a *app) *cobra.Command {
	var src sourceFlags
	var clusters, output string
	var why bool
	cmd := &cobra.Command{
		Use:   "target DIR --clusters FILE",
		Short: "Print which clusters get the bundles in DIR and by which target, without any server",
		Long: `Print which clusters get the bundles in DIR, by which target and with which options. No server is asked: the clusters are those
in FILE ("-": standard input). Clusters with the same value in the column OPTIONS get the same options. A cluster for which a template fails, for example for want
of a label, keeps what it has: standard error says so, and the exit code is 1. So it is for a bundle with an error, which is left out.

` + clustersHelp,
		Example: `  # the fleet as it is
  kubectl get clusters.shoal.dev,clustergroups.shoal.dev -o yaml > clusters.yaml
  shoal target ./web --clusters clusters.yaml

  # also those that do not get it, and why
  shoal target ./web --clusters clusters.yaml --why

  # for scripts: BUNDLE/CLUSTER, one a line
  shoal target ./web --clusters clusters.yaml -o name`,
		Args:              arguments(1, 1),
		ValidArgsFunction: completeDirectory(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("--output", output, "", "json", "yaml", "name"); err != nil {
				return err
			}
			list, bad, err := a.targeted(cmd.Context(), args[0], clusters, src, why)
			if err != nil {
				return err
			}
			if err := errors.Join(bad, printTargeted(a.stdout, list, output, why)); err != nil {
				return err
			}
			if slices.ContainsFunc(list, func(t targeted) bool { return t.Error != "" }) {
				return errProblems
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&clusters, "clusters", "", "YAML file with the clusters and their groups (required)")
	f.StringVarP(&output, "output", "o", "", "json, yaml or name; default: a table")
	f.BoolVar(&why, "why", false, "also clusters that do not get it, with the reason")
	src.register(cmd)
	_ = cmd.MarkFlagRequired("clusters")
	_ = cmd.MarkFlagFilename("clusters", "yaml", "yml", "json")
	completeValues(cmd, "output", "json", "yaml", "name")
	return cmd
}

func (a *app) targeted(ctx context.Context, dir, file string, src sourceFlags, why bool) (list []targeted, bad, err error) {
	fleet, err := readClusters(file, a.kubernetes.namespace)
	if err != nil {
		return nil, nil, err
	}
	bundles, bad, err := src.bundles(ctx, a, dir, "")
	if err != nil {
		return nil, nil, err
	}
	list = []targeted{}
	for _, b := range bundles {
		some, err := fleet.targeted(b, why)
		if err != nil {
			return nil, nil, fmt.Errorf("bundle %s: %w", b.Name, err)
		}
		if !slices.ContainsFunc(some, func(t targeted) bool { return t.Target != "" }) {
			fmt.Fprintf(a.stderr, "shoal: bundle %s: none of the %d clusters in %s gets it%s\n", b.Name, len(fleet.clusters), file, map[bool]string{false: " (--why says the reasons)"}[why])
		}
		for _, t := range some {
			if t.Error != "" {
				fmt.Fprintf(a.stderr, "shoal: bundle %s: cluster %s keeps what it has: %s\n", b.Name, t.Cluster, t.Error)
			}
		}
		list = append(list, some...)
	}
	return list, bad, nil
}

// targeted is what the clusters of the file get of a bundle, sorted by name.
func (f *clustersFile) targeted(b *v1alpha1.Bundle, why bool) ([]targeted, error) {
	var clusters []target.Cluster
	for _, c := range f.clusters {
		clusters = append(clusters, matched(c))
	}
	groups := matchedGroups(f.groups)
	matches, err := target.Select(b.Spec, clusters, groups)
	if err != nil {
		return nil, err
	}
	var list []targeted
	has := map[string]bool{}
	for _, m := range matches {
		has[m.Cluster] = true
		if m.Err != nil {
			list = append(list, targeted{Bundle: b.Name, Cluster: m.Cluster, Target: m.Target, Error: m.Err.Error()})
			continue
		}
		list = append(list, targeted{Bundle: b.Name, Cluster: m.Cluster, Target: m.Target, Namespace: namespaceOf(m.Options), Options: optionsKey(m)})
	}
	for _, c := range clusters {
		if why && !has[c.Name] {
			list = append(list, targeted{Bundle: b.Name, Cluster: c.Name, Why: whyNot(b.Spec, c, groups)})
		}
	}
	slices.SortFunc(list, func(a, b targeted) int { return strings.Compare(a.Cluster, b.Cluster) })
	return list, nil
}

func namespaceOf(o v1alpha1.BundleOptions) string {
	switch {
	case o.Namespace != "":
		return o.Namespace
	case o.DefaultNamespace != "":
		return o.DefaultNamespace
	}
	return "default"
}

func printTargeted(w io.Writer, list []targeted, output string, why bool) error {
	switch output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(list)
	case "yaml":
		data, err := yaml.Marshal(list)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	case "name":
		for _, t := range list {
			if t.Target != "" {
				fmt.Fprintf(w, "%s/%s\n", t.Bundle, t.Cluster)
			}
		}
		return nil
	}
	if len(list) == 0 {
		return nil
	}
	t := table{header: []string{"BUNDLE", "CLUSTER", "TARGET", "NAMESPACE", "OPTIONS"}}
	if why {
		t.header = append(t.header, "WHY NOT")
	}
	for _, x := range list {
		row := []string{x.Bundle, x.Cluster, x.Target, x.Namespace, x.Options}
		switch {
		case x.Target == "":
			row = []string{x.Bundle, x.Cluster, "-", "-", "-", x.Why}
		case x.Error != "":
			row = []string{x.Bundle, x.Cluster, x.Target, "-", "error"}
		}
		t.rows = append(t.rows, row)
	}
	return t.write(w, true)
}
