package apply

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

const (
	// DefaultAccount is the service account in the agent's namespace with whose rights deployments are written that name
	// none, where the site has one. It is the site's means to bound what the hub can do.
	DefaultAccount = "shoal-default"

	// AgentDeployment is the deployment by which the agent upgrades itself. It has the agent's own rights, and no other
	// one may touch what carries [AgentLabel].
	AgentDeployment = "shoal-agent"
	// AgentLabel with the value "true" marks what the agent lives by: its Deployment, account, credential, network policy.
	// Such objects are never deleted by the agent.
	AgentLabel = "shoal.dev/agent"
)

var serviceAccounts = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}

// writer is where objects of a kind are written with the deployment's rights. The account is looked for at the first
// write: a pass that changes nothing does not ask. finding says that it does not exist; nothing is written then.
func (p *pass) writer(ctx context.Context, ref Ref, k kind, namespace string) (dynamic.ResourceInterface, *Finding, error) {
	if err := p.resolve(ctx); err != nil {
		return nil, nil, err
	}
	if p.noAccount != "" {
		return nil, &Finding{ref, NoAccount, p.noAccount}, nil
	}
	if k.namespaced {
		return p.dyn.Resource(k.gvr).Namespace(namespace), nil, nil
	}
	return p.dyn.Resource(k.gvr), nil, nil
}

func (p *pass) resolve(ctx context.Context) error {
	if p.resolved {
		return nil
	}
	if err := p.findAccount(ctx); err != nil {
		return err
	}
	p.resolved = true
	return nil
}

func (p *pass) findAccount(ctx context.Context) error {
	p.dyn = p.a.dyn
	ns, name := p.a.o.Namespace, p.d.Policy.ServiceAccount
	switch {
	case name != "" && ns == "":
		p.noAccount = fmt.Sprintf("service account %q cannot be used: the agent does not know its own namespace", name)
		return nil
	case name == "" && (ns == "" || p.d.Name == AgentDeployment):
		return nil
	}
	named := name != ""
	if !named {
		name = DefaultAccount
	}
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	account, err := p.a.dyn.Resource(serviceAccounts).Namespace(ns).Get(rctx, name, metav1.GetOptions{})
	if out := p.a.outage(ctx, err); out != nil {
		return fmt.Errorf("look for service account %q: %w", name, out)
	}
	switch {
	case apierrors.IsNotFound(err) && p.removing:
		// Who cleans up a tenant may have begun with its account. Only what carries the deployment's label goes, and no hook
		// of it runs: that would be with more rights than it ever had.
		p.orphaned = named
		return nil
	case apierrors.IsNotFound(err) && named:
		p.noAccount = fmt.Sprintf("service account %q does not exist in namespace %q, where the agent is: create it, or take serviceAccount out of the bundle", name, ns)
		return nil
	case err != nil && !named: // not there, or not ours to see
		return nil
	case err == nil && named && !p.removing && account.GetLabels()[AgentLabel] == "true" && p.d.Name != AgentDeployment:
		// Else a bundle could have more rights than the site's default account by asking for the agent's.
		p.noAccount = fmt.Sprintf("service account %q is the agent's own, and not for bundles: name another one of namespace %q, or take serviceAccount out of the bundle", name, ns)
		return nil
	}
	p.dyn, err = p.a.as(ns, name)
	return err
}

// as is the cluster with the rights of a service account.
func (a *Applier) as(namespace, account string) (dynamic.Interface, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	user := "system:serviceaccount:" + namespace + ":" + account
	if c := a.accounts[user]; c != nil {
		return c, nil
	}
	cfg := rest.CopyConfig(a.cfg)
	// No groups: the API server adds those of an account, and naming them would take the right to impersonate groups as well.
	cfg.Impersonate = rest.ImpersonationConfig{UserName: user}
	c, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API as %s: %w", user, err)
	}
	a.accounts[user] = c
	return c, nil
}

// protects says why a deployment must not touch an object for the agent's sake; nil: it may. live may be nil.
func (a *Applier) protects(deployment string, ref Ref, live, want *unstructured.Unstructured) *Finding {
	if deployment == AgentDeployment {
		return nil
	}
	const agents = "belongs to the agent itself: only the deployment \"" + AgentDeployment + "\" may change it"
	switch {
	case live != nil && live.GetLabels()[AgentLabel] == "true":
		return &Finding{ref, Protected, agents + "; take it out of the bundle"}
	case want != nil && want.GetLabels()[AgentLabel] == "true":
		return &Finding{ref, Protected, fmt.Sprintf("carries the label %s, which marks what %s; take the label out of the bundle", AgentLabel, agents)}
	case a.o.Namespace != "" && ref.Namespace == a.o.Namespace && ref.Group == "networking.k8s.io" && ref.Kind == "NetworkPolicy":
		return &Finding{ref, Protected, fmt.Sprintf("a network policy in the agent's namespace %q could cut the agent off: put it into another namespace", a.o.Namespace)}
	}
	return nil
}

// lives says why an object is never deleted; nil: it may be.
func (a *Applier) lives(ref Ref, live *unstructured.Unstructured) *Finding {
	switch {
	case live.GetLabels()[AgentLabel] == "true":
		return &Finding{ref, Protected, "kept: the agent lives by it"}
	case a.o.Namespace != "" && ref.Group == "" && ref.Kind == "Namespace" && ref.Name == a.o.Namespace:
		return &Finding{ref, Protected, "kept: the agent is in it"}
	}
	return nil
}
