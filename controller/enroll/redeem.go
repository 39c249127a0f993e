package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/topics"
)

// TokenAnnotation, on a Cluster, names the token it enrolled with.
const TokenAnnotation = "shoal.dev/token"

// DefaultTTL is how long a token can be used unless it says otherwise.
const DefaultTTL = 7 * 24 * time.Hour

// Expires says when a token stops working.
func Expires(t *v1alpha1.ClusterRegistrationToken) time.Time {
	if t.Spec.Expires != nil {
		return t.Spec.Expires.Time
	}
	ttl := DefaultTTL
	if t.Spec.TTL != nil {
		ttl = t.Spec.TTL.Duration
	}
	return t.CreationTimestamp.Add(ttl)
}

// Final marks errors that trying again does not cure.
type Final struct{ Reason error }

func (f Final) Error() string { return f.Reason.Error() }
func (f Final) Unwrap() error { return f.Reason }

func finalf(format string, args ...any) error { return Final{fmt.Errorf(format, args...)} }

// Redeem turns a token into an identity. Asking again with the same key gives the same identity: the answer may have been
// lost. A name that another key holds is never given away.
func Redeem(ctx context.Context, c client.Client, k *Keys, t *v1alpha1.ClusterRegistrationToken, r *bundlefmt.EnrollRequest) (*bundlefmt.EnrollResponse, error) {
	if e := Expires(t); time.Now().After(e) {
		return nil, finalf("token %q expired on %s: ask for a new one (shoal token create)", t.Name, e.UTC().Format(time.RFC3339))
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return nil, finalf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, finalf("certificate request: %w", err)
	}
	want, err := Labels(ctx, c, t)
	if err != nil {
		return nil, err
	}
	who := topics.Cluster{Workspace: t.Namespace, Name: r.Cluster}
	if err := admit(ctx, c, applicant{who, KeyHash(csr.RawSubjectPublicKeyInfo), t.Name, want}); err != nil {
		return nil, err
	}
	cert, err := k.issueAgent(who, csr)
	if err != nil {
		return nil, finalf("issue certificate: %w", err)
	}
	trust, err := k.TrustDocument(who.Workspace)
	if err != nil {
		return nil, err
	}
	return &bundlefmt.EnrollResponse{Workspace: who.Workspace, Cluster: who.Name, Certificate: cert, Trust: trust}, nil
}

// applicant is a site that proved to hold a token and a key.
type applicant struct {
	topics.Cluster
	hash   string // of its key
	token  string
	labels map[string]string // what the token gives
}

// admit writes the key into the Cluster, making it if need be.
func admit(ctx context.Context, c client.Client, who applicant) error {
	var cl v1alpha1.Cluster
	err := c.Get(ctx, client.ObjectKey{Namespace: who.Workspace, Name: who.Name}, &cl)
	if apierrors.IsNotFound(err) {
		cl = v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Namespace: who.Workspace, Name: who.Name, Labels: who.labels, Annotations: map[string]string{TokenAnnotation: who.token}}, Spec: v1alpha1.ClusterSpec{AgentKeys: []string{who.hash}}}
		if err := c.Create(ctx, &cl); apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create cluster %s: %w", who.Cluster, err) // the cache lags: the agent asks again
		} else if err != nil {
			return fmt.Errorf("create cluster %s: %w", who.Cluster, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read cluster %s: %w", who.Cluster, err)
	}
	if slices.Contains(cl.Spec.AgentKeys, who.hash) {
		return nil
	}
	if slices.Contains(cl.Status.KnownKeys, who.hash) {
		return finalf("the key of this site was revoked on the hub, and a token does not change that: to let it in again: kubectl -n %s patch clusters.shoal.dev %s --type=json -p '[{\"op\":\"add\",\"path\":\"/spec/agentKeys\",\"value\":[%q]}]'; or enrol under a new key: stop the agent, remove the file identity in its data directory, and the identity Secret if there is one",
			who.Workspace, who.Name, who.hash)
	}
	if len(cl.Spec.AgentKeys) > 0 {
		return finalf("the cluster name %q is taken by another key: choose another --cluster-name, or, if this box replaces that one, let an operator release the name first: kubectl -n %s patch clusters.shoal.dev %s --type=merge -p '{\"spec\":{\"agentKeys\":[]}}'",
			who.Name, who.Workspace, who.Name)
	}
	// Made ahead by an operator, or released by one: the token decides the labels that are not set yet.
	if cl.Labels == nil {
		cl.Labels = map[string]string{}
	}
	for key, v := range who.labels {
		if _, ok := cl.Labels[key]; !ok {
			cl.Labels[key] = v
		}
	}
	metav1.SetMetaDataAnnotation(&cl.ObjectMeta, TokenAnnotation, who.token)
	cl.Spec.AgentKeys = []string{who.hash}
	if err := c.Update(ctx, &cl); err != nil { // with resourceVersion: two sites that race for the name cannot both win
		return fmt.Errorf("update cluster %s: %w", who.Cluster, err)
	}
	return nil
}

// Labels are what a cluster gets that enrols with a token: the token's own and those that put it into the token's group.
func Labels(ctx context.Context, c client.Reader, t *v1alpha1.ClusterRegistrationToken) (map[string]string, error) {
	out := maps.Clone(t.Spec.Labels)
	if out == nil {
		out = map[string]string{}
	}
	if t.Spec.ClusterGroup == "" {
		return out, nil
	}
	var g v1alpha1.ClusterGroup
	if err := c.Get(ctx, client.ObjectKey{Namespace: t.Namespace, Name: t.Spec.ClusterGroup}, &g); apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("token %q enrols into cluster group %q, which does not exist: create it", t.Name, t.Spec.ClusterGroup)
	} else if err != nil {
		return nil, fmt.Errorf("read cluster group %s: %w", t.Spec.ClusterGroup, err)
	}
	return groupLabels(out, t.Name, &g)
}

func groupLabels(out map[string]string, token string, g *v1alpha1.ClusterGroup) (map[string]string, error) {
	if g.Spec.Selector == nil {
		return nil, fmt.Errorf("cluster group %q has no selector, so nothing can be in it", g.Name)
	}
	for k, v := range g.Spec.Selector.MatchLabels {
		if own, ok := out[k]; ok && own != v {
			return nil, fmt.Errorf("token %q sets label %s=%s, but cluster group %q wants %s", token, k, own, g.Name, v)
		}
		out[k] = v
	}
	sel, err := metav1.LabelSelectorAsSelector(g.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("cluster group %q: spec.selector: %w", g.Name, err)
	}
	if !sel.Matches(labels.Set(out)) {
		return nil, fmt.Errorf("a cluster that enrols with token %q would not be in cluster group %q: add the labels that its matchExpressions want to the token's spec.labels", token, g.Name)
	}
	return out, nil
}

// Respond is the message for the site: an error it can act on, or its identity.
func Respond(r *bundlefmt.EnrollResponse, err error) *bundlefmt.EnrollResponse {
	if err == nil {
		return r
	}
	var f Final
	return &bundlefmt.EnrollResponse{Error: err.Error(), Final: errors.As(err, &f)}
}
