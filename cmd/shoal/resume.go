package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/reconcile"
)

func resumeCommand(a *app) *cobra.Command {
	var selector string
	var all, dryRun bool
	cmd := &cobra.Command{
		Use:   "resume [NAME...]",
		Short: "Let the hub order again where its clusters are in conflict with it",
		Long: `A cluster that follows a newer document than the hub knows of is in conflict with it: the hub, or its Kubernetes, was restored from a
backup. Nothing is ordered there until somebody has looked whether the Bundles are as they should be. Resume says that they are, for the clusters
named, selected, or all of the workspace: they then get what the hub's Bundles say. Clusters without a conflict are left alone.

It sets the annotation that each Cluster's message gives, with its own number.`,
		Example: `  # which are in conflict, and what would be done
  shoal resume --all --dry-run

  shoal resume store-1 store-2
  shoal resume -l region=eu`,
		ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, names []string) error {
			if n := chosen(len(names) > 0, selector != "", all); n != 1 {
				return usage{errors.New("say which clusters: NAME..., -l SELECTOR or --all")}
			}
			sel, err := labels.Parse(selector)
			if err != nil {
				return usage{fmt.Errorf("--selector: %w", err)}
			}
			return a.resume(cmd.Context(), names, sel, dryRun)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&selector, "selector", "l", "", "clusters with these labels")
	f.BoolVar(&all, "all", false, "all clusters of the workspace")
	f.BoolVar(&dryRun, "dry-run", false, "only say which")
	return cmd
}

func chosen(of ...bool) (n int) {
	for _, b := range of {
		if b {
			n++
		}
	}
	return n
}

// resumeNumber finds the number in the command that a Cluster's message gives.
var resumeNumber = regexp.MustCompile(regexp.QuoteMeta(reconcile.Resume) + `=([0-9]+)`)

func (a *app) resume(ctx context.Context, names []string, sel labels.Selector, dryRun bool) error {
	kube, ns, err := a.hubClient()
	if err != nil {
		return err
	}
	var list v1alpha1.ClusterList
	if err := kube.List(ctx, &list, client.InNamespace(ns), client.MatchingLabelsSelector{Selector: sel}); err != nil {
		return fmt.Errorf("list clusters: %w", err)
	}
	for _, n := range names {
		if !slices.ContainsFunc(list.Items, func(c v1alpha1.Cluster) bool { return c.Name == n }) {
			return fmt.Errorf("there is no cluster %s/%s", ns, n)
		}
	}
	found := 0
	for _, c := range list.Items {
		if len(names) > 0 && !slices.Contains(names, c.Name) {
			continue
		}
		number, reason, why := conflict(&c)
		switch {
		case number == "" && len(names) > 0:
			fmt.Fprintf(a.stdout, "cluster %s/%s is not in conflict\n", ns, c.Name)
			continue
		case number == "":
			continue
		case reason == publish.StoreOlder && len(names) == 0:
			found++
			fmt.Fprintf(a.stdout, "cluster %s/%s is left alone: %s. To order without that, name it\n", ns, c.Name, why)
			continue
		}
		found++
		if dryRun {
			fmt.Fprintf(a.stdout, "cluster %s/%s would be resumed at %s: %s\n", ns, c.Name, number, why)
			continue
		}
		patch := client.MergeFrom(c.DeepCopy())
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, reconcile.Resume, number)
		if err := kube.Patch(ctx, &c, patch); err != nil {
			return fmt.Errorf("resume cluster %s/%s: %w", ns, c.Name, err)
		}
		fmt.Fprintf(a.stdout, "cluster %s/%s resumed at %s\n", ns, c.Name, number)
	}
	if found == 0 && len(names) == 0 {
		fmt.Fprintf(a.stdout, "no cluster of %s is in conflict\n", ns)
	}
	return nil
}

// conflict is the number that resumes a cluster, and what is wrong; without a number it is not in conflict.
func conflict(c *v1alpha1.Cluster) (number, reason, why string) {
	ready := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status != metav1.ConditionFalse {
		return "", "", ""
	}
	m := resumeNumber.FindStringSubmatch(ready.Message)
	if m == nil {
		return "", "", ""
	}
	why, _, _ = strings.Cut(ready.Message, ";")
	return m[1], ready.Reason, why
}
