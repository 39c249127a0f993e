package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// oneOf refuses values of a flag that are not listed; "" in the list stands for the flag not being set.
func oneOf(flag, value string, known ...string) error {
	if slices.Contains(known, value) {
		return nil
	}
	known = slices.DeleteFunc(slices.Clone(known), func(s string) bool { return s == "" })
	return usage{fmt.Errorf("%s %q: want %s", flag, value, strings.Join(known, ", "))}
}

func completeValues(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
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

// completeNameAndDirectory is for [NAME] DIR: the first word is either.
func completeNameAndDirectory(a *app) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 && !strings.ContainsAny(word, "./") {
			if names, _ := a.completeBundles(cmd, args, word); len(names) > 0 {
				return names, cobra.ShellCompDirectiveDefault
			}
		}
		if len(args) < 2 {
			return nil, cobra.ShellCompDirectiveFilterDirs
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) completeClusters(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.completeNames(cmd, &v1alpha1.ClusterList{}, word)
}

func (a *app) completeBundles(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.completeNames(cmd, &v1alpha1.BundleList{}, word)
}

func (a *app) completeGroups(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.completeNames(cmd, &v1alpha1.ClusterGroupList{}, word)
}

// completeNames asks the hub. Whoever presses Tab neither waits long nor reads about connections.
func (a *app) completeNames(cmd *cobra.Command, list client.ObjectList, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
	defer cancel()
	a.kubernetes.warnings = io.Discard
	kube, ns, err := a.hubClient()
	if err != nil || kube.List(ctx, list, client.InNamespace(ns)) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	add := func(name string) {
		if strings.HasPrefix(name, word) {
			names = append(names, name)
		}
	}
	switch l := list.(type) {
	case *v1alpha1.ClusterList:
		for _, c := range l.Items {
			add(c.Name)
		}
	case *v1alpha1.BundleList:
		for _, b := range l.Items {
			add(b.Name)
		}
	case *v1alpha1.ClusterGroupList:
		for _, g := range l.Items {
			add(g.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
