package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/enroll"
	"shoal.dev/shoal/controller/reconcile"
)

func tokenCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make tokens by which clusters enrol", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(tokenCreateCommand(a))
	return cmd
}

func tokenCreateCommand(a *app) *cobra.Command {
	var spec v1alpha1.ClusterRegistrationTokenSpec
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an enrolment token and print it",
		Long: `Make a ClusterRegistrationToken in the workspace and print the enrolment token: one line that holds where the hub is, what to
trust and a secret. It is printed once; the hub keeps only a hash of the secret. Give it to agents as a file. It can be used
for any number of clusters until it expires or is deleted (kubectl delete clusterregistrationtokens.shoal.dev NAME).`,
		Example: `  # a week for new stores, which get env=prod and the labels of the group "stores"
  shoal token create stores --group stores --label env=prod > token

  # on the site
  shoal-agent --token-file token --data-dir /var/lib/shoal-agent --cluster-name store-4711`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !bundlefmt.ValidName(args[0]) {
				return fmt.Errorf("token name %q: want lower case letters, digits and dashes, at most 63", args[0])
			}
			if ttl <= 0 {
				return fmt.Errorf("--ttl %v: want more than zero", ttl)
			}
			spec.TTL = &metav1.Duration{Duration: ttl}
			ticket, err := createToken(cmd.Context(), a, args[0], spec)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, ticket)
			return err
		},
	}
	f := cmd.Flags()
	f.DurationVar(&ttl, "ttl", enroll.DefaultTTL, "how long the token can be used")
	f.StringVar(&spec.ClusterGroup, "group", "", "cluster group that enrolled clusters get the labels of")
	f.StringToStringVar(&spec.Labels, "label", nil, "label of enrolled clusters, key=value; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("group", a.completeGroups)
	return cmd
}

// createToken makes the secret here, so that the hub only ever sees its hash, and waits for the hub to say where it is.
func createToken(ctx context.Context, a *app, name string, spec v1alpha1.ClusterRegistrationTokenSpec) (bundlefmt.Ticket, error) {
	kube, ns, err := a.hubClient()
	if err != nil {
		return bundlefmt.Ticket{}, err
	}
	secret := rand.Text()
	spec.SecretHash = reconcile.SecretHash(secret)
	t := &v1alpha1.ClusterRegistrationToken{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: spec}
	if err := kube.Create(ctx, t); err != nil {
		return bundlefmt.Ticket{}, fmt.Errorf("create token: %w", err)
	}
	err = wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		err := kube.Get(ctx, client.ObjectKeyFromObject(t), t)
		return t.Status.Endpoint != nil, err
	})
	if err != nil {
		_ = kube.Delete(context.WithoutCancel(ctx), t) // nobody will ever know its secret
		return bundlefmt.Ticket{}, fmt.Errorf("token %s: the hub has not completed it within 30 s: does shoal controller run against this cluster? (%w)", name, err)
	}
	if c := meta.FindStatusCondition(t.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Status == metav1.ConditionFalse {
		fmt.Fprintf(a.stderr, "shoal: warning: clusters cannot enrol yet: %s\n", c.Message)
	}
	root, err := base64.StdEncoding.DecodeString(t.Status.Endpoint.RootKey)
	if err != nil {
		return bundlefmt.Ticket{}, fmt.Errorf("token %s: status.endpoint.rootKey: %w", name, err)
	}
	return bundlefmt.Ticket{URL: t.Status.Endpoint.URL, CA: t.Status.Endpoint.CA, Root: root, Workspace: ns, Token: name, Secret: secret}, nil
}
