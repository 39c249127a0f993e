package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// kubernetesFlags say which Kubernetes holds the hub's API, as with kubectl.
type kubernetesFlags struct {
	kubeconfig, context, namespace string

	getenv   func(string) string
	warnings io.Writer
}

func (k *kubernetesFlags) register(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&k.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster that holds the hub's API (default: $KUBECONFIG, ~/.kube/config, or in a pod its own cluster)")
	f.StringVar(&k.context, "context", "", "context of the kubeconfig (default: its current one)")
	f.StringVarP(&k.namespace, "namespace", "n", "", "workspace: namespace of bundles and clusters (default: that of the kubeconfig's context)")
	_ = root.MarkPersistentFlagFilename("kubeconfig")
}

func (k *kubernetesFlags) config() clientcmd.ClientConfig {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: k.kubeconfig, DefaultClientConfig: &clientcmd.DefaultClientConfig}
	if list := k.getenv("KUBECONFIG"); list != "" {
		rules.Precedence = filepath.SplitList(list)
	} else if home := k.getenv("HOME"); home != "" {
		rules.Precedence = []string{filepath.Join(home, ".kube", "config")}
	}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: k.context})
}

var errNoKubernetes = errors.New("no Kubernetes to talk to: set --kubeconfig or KUBECONFIG")

// RESTConfig is how to reach the API server. Its warnings go to standard error.
func (k *kubernetesFlags) RESTConfig() (*rest.Config, error) {
	cfg, err := k.config().ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err):
		return nil, errNoKubernetes
	case err != nil:
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	cfg.UserAgent = "shoal/" + versionString()
	cfg.QPS, cfg.Burst = 50, 100
	cfg.WarningHandler = rest.NewWarningWriter(k.warnings, rest.WarningWriterOptions{Deduplicate: true})
	return cfg, nil
}

// hubClient talks to the hub's API and says which workspace is meant.
func (a *app) hubClient() (client.Client, string, error) {
	cfg, err := a.kubernetes.RESTConfig()
	if err != nil {
		return nil, "", err
	}
	ns, err := a.kubernetes.Namespace()
	if err != nil {
		return nil, "", err
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, "", fmt.Errorf("build scheme: %w", err)
		}
	}
	kube, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		return nil, "", fmt.Errorf("reach the hub's Kubernetes API at %s: %w", cfg.Host, err)
	}
	return kube, ns, nil
}

// Namespace is the workspace that a command works in.
func (k *kubernetesFlags) Namespace() (string, error) {
	if k.namespace != "" {
		return k.namespace, nil
	}
	ns, _, err := k.config().Namespace()
	switch {
	case clientcmd.IsEmptyConfig(err):
		return "", errNoKubernetes
	case err != nil:
		return "", fmt.Errorf("read kubeconfig: %w", err)
	}
	return ns, nil
}
