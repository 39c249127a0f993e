package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	host     string // of the API server, for messages; known once RESTConfig was called
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

// errNoKubernetes: nothing says where the hub's API is.
var errNoKubernetes = errors.New("no Kubernetes to talk to: set --kubeconfig or KUBECONFIG " +
	"(on a K3s server: /etc/rancher/k3s/k3s.yaml)")

// readProblem says which file is to blame when there is no kubeconfig to read.
func (k *kubernetesFlags) readProblem(err error) error {
	list := filepath.SplitList(k.getenv("KUBECONFIG"))
	missing := func(file string) bool {
		_, err := os.Stat(file)
		return errors.Is(err, fs.ErrNotExist)
	}
	switch {
	case k.kubeconfig != "" && missing(k.kubeconfig):
		return fmt.Errorf("--kubeconfig %s: no such file", k.kubeconfig)
	case clientcmd.IsEmptyConfig(err) && k.kubeconfig == "" && len(list) > 0 && !slices.ContainsFunc(list, func(f string) bool { return !missing(f) }):
		return fmt.Errorf("KUBECONFIG %s: no such file", k.getenv("KUBECONFIG"))
	case clientcmd.IsEmptyConfig(err):
		return errNoKubernetes
	}
	return fmt.Errorf("read kubeconfig: %w", err)
}

// RESTConfig is how to reach the API server. Its warnings go to standard error.
func (k *kubernetesFlags) RESTConfig() (*rest.Config, error) {
	cfg, err := k.config().ClientConfig()
	if err != nil {
		return nil, k.readProblem(err)
	}
	k.host = cfg.Host
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
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, coordinationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, "", fmt.Errorf("build scheme: %w", err)
		}
	}
	kube, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		return nil, "", fmt.Errorf("connect to the hub's Kubernetes: %w", err)
	}
	return kube, ns, nil
}

// Namespace is the workspace that a command works in.
func (k *kubernetesFlags) Namespace() (string, error) {
	if k.namespace != "" {
		return k.namespace, nil
	}
	ns, _, err := k.config().Namespace()
	if err != nil {
		return "", k.readProblem(err)
	}
	return ns, nil
}

// explain adds what to do to the errors that every command can meet when it talks to the hub's Kubernetes.
func (k *kubernetesFlags) explain(err error) error {
	var status apierrors.APIStatus
	var op *net.OpError
	switch {
	case err == nil || k.host == "":
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("%w: is the hub's Kubernetes at %s running, and is this the right --kubeconfig and --context?", err, k.host)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w: the Kubernetes at %s does not accept these credentials: "+
			"is this the right --kubeconfig and --context?", err, k.host)
	case meta.IsNoMatchError(err):
		return noHub(err, k.host)
	case apierrors.IsNotFound(err) && errors.As(err, &status) && status.Status().Details != nil:
		switch d := status.Status().Details; {
		case d.Kind == "namespaces":
			return fmt.Errorf("%w: make it with: kubectl create namespace %s", err, d.Name)
		case apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse): // no such path: the kind is not known
			return noHub(err, k.host)
		}
	}
	return err
}

// noHub is for a Kubernetes that has none of our resource definitions.
func noHub(err error, host string) error {
	return fmt.Errorf("%w: the Kubernetes at %s does not know bundles, so no hub has run there: is this the right --kubeconfig and --context? "+
		"To make it a hub, start `shoal controller` on it or install deploy/charts/shoal", err, host)
}
