package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/csaupgrade"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/target"
)

// fieldManager owns what shoal apply writes: a file that is gone from the directory goes from the Bundle as well.
const fieldManager = "shoal-cli"

const pollInterval = 500 * time.Millisecond

type applyOptions struct {
	source sourceFlags
	dryRun bool
	output string
	force  bool
	noLint bool
	wait   time.Duration
}

func applyCommand(a *app) *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use:   "apply [NAME] DIR",
		Short: "Make or update Bundles from a directory",
		Long: `Make or update a Bundle for every bundle in DIR: a Helm chart, a kustomization or plain YAML, with options in fleet.yaml. Charts that
are elsewhere are fetched into it. The hub then brings it to the clusters that its targets match. Nothing else is written: a bundle that is
no longer in DIR stays until you delete it with kubectl delete bundles.shoal.dev NAME.

What shoal lint says is said first: a bundle with an error is left out, the others are applied, and the exit code is 1. With --no-lint only what
keeps a Bundle from being made counts.

NAME is the bundle's name where DIR holds one bundle only; else, and without it, names are those in fleet.yaml or made from the directories.
Before anything is written, the API server has checked all of them.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not ready in time (--wait).`,
		Example: `  # deploy, or update what is deployed
  shoal apply web ./web

  # every bundle in a repository, to targets that it does not name itself
  shoal apply . --targets-file ./targets.yaml

  # to another workspace, and wait up to 5 minutes until all clusters have it
  shoal apply web ./web -n team-a --wait=5m

  # would the hub accept it, and what would be sent?
  shoal apply web ./web --dry-run

  # the Bundles as YAML, for another tool to apply; no server is asked
  shoal apply ./web -o yaml`,
		Args:              arguments(1, 2),
		ValidArgsFunction: completeNameAndDirectory(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("--output", o.output, "", "yaml"); err != nil {
				return err
			}
			name, dir := nameAndDirectory(args)
			return a.apply(cmd.Context(), name, dir, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "let the API server check it and print what would be sent, change nothing")
	f.StringVarP(&o.output, "output", "o", "", "yaml: print the Bundles and ask no server")
	f.BoolVar(&o.noLint, "no-lint", false, "do not lint first: bundles with errors that only shoal lint finds are sent")
	f.BoolVar(&o.force, "force-conflicts", false, "take over fields that another tool wrote")
	f.DurationVar(&o.wait, "wait", 0, "wait until the bundles are ready on all their clusters; --wait alone means 10m")
	f.Lookup("wait").NoOptDefVal = "10m"
	o.source.register(cmd)
	completeValues(cmd, "output", "yaml")
	return cmd
}

func (a *app) apply(ctx context.Context, name, dir string, o applyOptions) error {
	list, bad, err := o.source.linted(ctx, a, dir, name, !o.noLint)
	if err != nil {
		return err
	}
	if o.output == "yaml" {
		return errors.Join(bad, a.printBundles(list))
	}
	cfg, err := a.kubernetes.RESTConfig()
	if err != nil {
		return err
	}
	ns, err := a.kubernetes.Namespace()
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("connect to the hub's Kubernetes: %w", err)
	}
	bundles := client.Resource(v1alpha1.GroupVersion.WithResource("bundles")).Namespace(ns)
	for _, dryRun := range passes(len(list), o.dryRun) {
		for _, b := range list {
			b.Namespace = ns
			verb, err := applyBundle(ctx, bundles, b, o.force, dryRun)
			if err != nil {
				return notAccepted(fmt.Errorf("apply bundle %s/%s: %w", ns, b.Name, err))
			}
			switch {
			case !dryRun:
				fmt.Fprintf(a.stdout, "bundle %s/%s %s\n", ns, b.Name, verb)
			case o.dryRun:
				fmt.Fprintf(a.stdout, "bundle %s/%s %s (dry run)\n%s", ns, b.Name, verb, contents(b))
			}
		}
	}
	if o.dryRun || o.wait <= 0 {
		return bad
	}
	return errors.Join(bad, a.waitForAll(ctx, bundles, list, o.wait))
}

// passes are the rounds over the bundles, each a dry run or not: with several, all are checked before the first is written.
func passes(bundles int, dryRun bool) []bool {
	switch {
	case dryRun:
		return []bool{true}
	case bundles > 1:
		return []bool{true, false}
	}
	return []bool{false}
}

// contents is what a Bundle holds, for people.
func contents(b *v1alpha1.Bundle) string {
	var s strings.Builder
	size := 0
	for _, r := range b.Spec.Resources {
		size += len(r.Content)
	}
	fmt.Fprintf(&s, "  files    %d, %d bytes as they are sent\n", len(b.Spec.Resources), size)
	for _, r := range b.Spec.Resources {
		fmt.Fprintf(&s, "           %s\n", r.Name)
	}
	for i := range b.Spec.Targets {
		fmt.Fprintf(&s, "  target   %s\n", targetTitle(b.Spec.Targets, i))
	}
	if len(b.Spec.Targets) == 0 {
		fmt.Fprintf(&s, "  target   the cluster group %q\n", target.DefaultGroup)
	}
	for _, k := range slices.Sorted(maps.Keys(b.Annotations)) {
		fmt.Fprintf(&s, "  %s  %s\n", k, b.Annotations[k])
	}
	return s.String()
}

func (a *app) printBundles(list []*v1alpha1.Bundle) error {
	var out bytes.Buffer
	for _, b := range list {
		b.Namespace = a.kubernetes.namespace // none: that of whoever applies it
		data, err := json.Marshal(b)
		if err != nil {
			return err
		}
		var m map[string]any
		if err := json.Unmarshal(data, &m); err != nil {
			return err
		}
		delete(m, "status")
		text, err := yaml.Marshal(m)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "---\n%s", text)
	}
	_, err := out.WriteTo(a.stdout)
	return err
}

// waitForAll waits for one bundle after the other; the limit is for all of them.
func (a *app) waitForAll(ctx context.Context, bundles dynamic.ResourceInterface, list []*v1alpha1.Bundle, limit time.Duration) error {
	ends := time.Now().Add(limit)
	var late error
	for _, b := range list {
		err := waitReady(ctx, bundles, b.Name, max(time.Until(ends), time.Second), len(list) > 1, a.stdout)
		switch {
		case errors.Is(err, errNotReady):
			late = errors.Join(late, err)
		case err != nil:
			return err
		}
	}
	return late
}

// applyBundle writes the bundle by server-side apply and says what that did.
func applyBundle(ctx context.Context, bundles dynamic.ResourceInterface, b *v1alpha1.Bundle, force, dryRun bool) (string, error) {
	before, err := get(ctx, bundles, b.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return "", err
	}
	data, err := json.Marshal(b)
	if err != nil {
		return "", err
	}
	if !dryRun {
		if err := takeOver(ctx, bundles, b.Name); err != nil {
			return "", err
		}
	} else if byKubectl(before) {
		force = true // takeOver will have been there
	}
	opts := metav1.PatchOptions{FieldManager: fieldManager, Force: &force, FieldValidation: metav1.FieldValidationStrict}
	if dryRun {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	u, err := bundles.Patch(ctx, b.Name, types.ApplyPatchType, data, opts)
	if err != nil {
		return "", err
	}
	after, err := typed(u)
	switch {
	case err != nil:
		return "", err
	case before == nil:
		return "created", nil
	case equality.Semantic.DeepEqual(before.Spec, after.Spec) && equality.Semantic.DeepEqual(before.Labels, after.Labels) &&
		equality.Semantic.DeepEqual(before.Annotations, after.Annotations):
		return "unchanged", nil
	}
	return "configured", nil
}

// kubectlApply is the field manager of kubectl apply without --server-side.
const kubectlApply = "kubectl-client-side-apply"

func byKubectl(b *v1alpha1.Bundle) bool {
	return b != nil && slices.ContainsFunc(b.ManagedFields, func(m metav1.ManagedFieldsEntry) bool { return m.Manager == kubectlApply })
}

// takeOver makes what kubectl apply has written ours: it was the same person's way to do the same. Other managers stay.
func takeOver(ctx context.Context, bundles dynamic.ResourceInterface, name string) error {
	u, err := bundles.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	patch, err := csaupgrade.UpgradeManagedFieldsPatch(u, sets.New(kubectlApply), fieldManager)
	if err != nil || patch == nil {
		return err
	}
	_, err = bundles.Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	return err
}

func get(ctx context.Context, bundles dynamic.ResourceInterface, name string) (*v1alpha1.Bundle, error) {
	u, err := bundles.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return typed(u)
}

func typed(u *unstructured.Unstructured) (*v1alpha1.Bundle, error) {
	data, err := u.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var b v1alpha1.Bundle
	return &b, json.Unmarshal(data, &b)
}

// notAccepted says what to do about a Bundle that the API server does not take.
func notAccepted(err error) error {
	var status apierrors.APIStatus
	switch {
	case apierrors.IsInvalid(err) && errors.As(err, &status) && status.Status().Details != nil:
		return invalid(status.Status().Details)
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w: another tool owns these fields; take them over with --force-conflicts", err)
	}
	return err
}

// invalid is what the API server does not accept, a line each.
func invalid(d *metav1.StatusDetails) error {
	var s strings.Builder
	fmt.Fprintf(&s, "apply bundle %s: the hub does not accept it:", d.Name)
	for _, c := range d.Causes {
		fmt.Fprintf(&s, "\n  %s: %s", c.Field, c.Message)
	}
	return errors.New(s.String())
}

// waitReady prints progress until the bundle is ready everywhere, or time is up. Errors on the way are printed and
// retried: a hub that restarts must not end the wait.
func waitReady(ctx context.Context, bundles dynamic.ResourceInterface, name string, limit time.Duration, named bool, out io.Writer) error {
	outer := ctx // one look must not end because the time for all of them is nearly up
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errNotReady)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	last, start := "", time.Now()
	say := func(line string) {
		if named {
			line = name + ": " + line
		}
		if line != last && ctx.Err() == nil {
			fmt.Fprintf(out, "%5.1fs  %s\n", time.Since(start).Seconds(), line)
			last = line
		}
	}
	var b *v1alpha1.Bundle
	for {
		look, done := context.WithTimeout(outer, 10*time.Second)
		now, err := get(look, bundles, name)
		done()
		switch {
		case apierrors.IsNotFound(err):
			return fmt.Errorf("wait for bundle %s: it was deleted", name)
		case err != nil:
			say("cannot see the bundle: " + err.Error())
		default:
			b = now
			line, done := progress(b)
			say(line)
			if done {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for bundle %s: %w%s", name, context.Cause(ctx), notReady(b))
		case <-tick.C:
		}
	}
}

// progress is one line about a bundle, and whether it is ready.
func progress(b *v1alpha1.Bundle) (line string, ready bool) {
	s := b.Status
	if s.ObservedGeneration < b.Generation {
		return "waiting for the hub to see the change", false
	}
	line = fmt.Sprintf("%s  %s clusters ready", s.Display.State, s.Display.ReadyClusters)
	if s.Summary.Offline > 0 {
		line += fmt.Sprintf(", %d offline", s.Summary.Offline)
	}
	if s.Display.Message != "" {
		line += ": " + s.Display.Message
	}
	c := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady)
	return strings.TrimSpace(line), c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration >= b.Generation
}

// notReady lists the clusters that kept a bundle from being ready.
func notReady(b *v1alpha1.Bundle) string {
	if b == nil {
		return ""
	}
	var s strings.Builder
	for _, i := range b.Status.NotReady {
		fmt.Fprintf(&s, "\n  %s: %s", i.Name, i.State)
		if i.Message != "" {
			s.WriteString(": " + i.Message)
		}
	}
	return s.String()
}
