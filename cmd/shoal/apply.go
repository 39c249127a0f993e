package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/source"
)

// fieldManager owns what shoal apply writes: a file that is gone from the directory goes from the Bundle as well.
const fieldManager = "shoal-cli"

const pollInterval = 500 * time.Millisecond

type applyOptions struct {
	dryRun bool
	force  bool
	wait   time.Duration
}

func applyCommand(a *app) *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use:   "apply NAME DIR",
		Short: "Make or update a Bundle from a directory",
		Long: `Make or update the Bundle NAME from the files in DIR: a Helm chart, a kustomization or plain YAML, with options in
fleet.yaml. The hub then brings it to the clusters that its targets match. Nothing else is written; delete the bundle with
kubectl delete bundle NAME.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not ready in time (--wait).`,
		Example: `  # deploy, or update what is deployed
  shoal apply web ./web

  # to another workspace, and wait up to 5 minutes until all clusters have it
  shoal apply web ./web -n team-a --wait=5m

  # would the hub accept it?
  shoal apply web ./web --dry-run`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeDirectory(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.apply(cmd.Context(), args[0], args[1], o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "let the API server check it, change nothing")
	f.BoolVar(&o.force, "force-conflicts", false, "take over fields that another tool wrote")
	f.DurationVar(&o.wait, "wait", 0, "wait until the bundle is ready on all its clusters; --wait alone means 10m")
	f.Lookup("wait").NoOptDefVal = "10m"
	return cmd
}

func (a *app) apply(ctx context.Context, name, dir string, o applyOptions) error {
	b, err := source.Dir(ctx, dir, source.Options{Name: name})
	if err != nil {
		return err
	}
	cfg, err := a.kubernetes.RESTConfig()
	if err != nil {
		return err
	}
	if b.Namespace, err = a.kubernetes.Namespace(); err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("connect to the hub's Kubernetes: %w", err)
	}
	bundles := client.Resource(v1alpha1.GroupVersion.WithResource("bundles")).Namespace(b.Namespace)
	verb, err := applyBundle(ctx, bundles, b, o)
	if err != nil {
		return explain(fmt.Errorf("apply bundle %s/%s: %w", b.Namespace, b.Name, err), cfg.Host, b.Namespace)
	}
	if o.dryRun {
		verb += " (dry run)"
	}
	fmt.Fprintf(a.stdout, "bundle %s/%s %s\n", b.Namespace, b.Name, verb)
	if o.dryRun || o.wait <= 0 {
		return nil
	}
	return waitReady(ctx, bundles, b.Name, o.wait, a.stdout)
}

// applyBundle writes the bundle by server-side apply and says what that did.
func applyBundle(ctx context.Context, bundles dynamic.ResourceInterface, b *v1alpha1.Bundle, o applyOptions) (string, error) {
	before, err := get(ctx, bundles, b.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return "", err
	}
	data, err := json.Marshal(b)
	if err != nil {
		return "", err
	}
	opts := metav1.PatchOptions{FieldManager: fieldManager, Force: &o.force, FieldValidation: metav1.FieldValidationStrict}
	if o.dryRun {
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
	case equality.Semantic.DeepEqual(before.Spec, after.Spec) && equality.Semantic.DeepEqual(before.Labels, after.Labels):
		return "unchanged", nil
	}
	return "configured", nil
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

// explain adds what to do to the errors that beginners meet.
func explain(err error, host, namespace string) error {
	var status apierrors.APIStatus
	var op *net.OpError
	switch {
	case errors.As(err, &op):
		return fmt.Errorf("%w: is the hub's Kubernetes at %s running, and is this the right --kubeconfig and --context?", err, host)
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w: another tool owns these fields; take them over with --force-conflicts", err)
	case apierrors.IsNotFound(err) && errors.As(err, &status) && status.Status().Details != nil && status.Status().Details.Kind == "namespaces":
		return fmt.Errorf("%w: make it with: kubectl create namespace %s", err, namespace)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: this Kubernetes does not know bundles; start `shoal controller` on it once, it installs them", err)
	}
	return err
}

// waitReady prints progress until the bundle is ready everywhere, or time is up. Errors on the way are printed and
// retried: a hub that restarts must not end the wait.
func waitReady(ctx context.Context, bundles dynamic.ResourceInterface, name string, limit time.Duration, out io.Writer) error {
	outer := ctx // one look must not end because the time for all of them is nearly up
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errNotReady)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	last, start := "", time.Now()
	say := func(line string) {
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
	return strings.TrimSpace(line), meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionReady)
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
