package reconcile

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/enroll"
)

// TokenKey is the key of the Secret that the hub writes for a token made without a secret: it holds the whole enrolment token.
const TokenKey = "token"

// reconcileToken completes a token and says whether it can be used.
func (h *Hub) reconcileToken(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var t v1alpha1.ClusterRegistrationToken
	if err := h.Client.Get(ctx, req.NamespacedName, &t); err != nil || t.DeletionTimestamp != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if t.Spec.Expires == nil {
		end := metav1.NewTime(enroll.Expires(&t))
		t.Spec.Expires = &end
		if err := h.Client.Update(ctx, &t); err != nil {
			return ctrl.Result{}, ignoreConflict(err)
		}
	}
	if t.Spec.SecretHash == "" {
		if err := h.completeToken(ctx, &t); err != nil {
			return ctrl.Result{}, err
		}
	}
	before := t.DeepCopy()
	_, problem := enroll.Labels(ctx, h.Client, &t)
	var clusters v1alpha1.ClusterList
	if err := h.Client.List(ctx, &clusters, client.InNamespace(t.Namespace)); err != nil {
		return ctrl.Result{}, fmt.Errorf("list clusters: %w", err)
	}
	now := time.Now()
	h.tokenStatus(&t, clusters.Items, problem, now)
	noted := h.Refusals.Add(&t)
	if err := h.writeStatus(ctx, before, &t); err != nil {
		return ctrl.Result{}, err
	}
	noted()
	return ctrl.Result{RequeueAfter: max(0, t.Status.Expires.Sub(now)) + time.Second}, nil
}

func (h *Hub) tokenStatus(t *v1alpha1.ClusterRegistrationToken, clusters []v1alpha1.Cluster, problem error, now time.Time) {
	s := &t.Status
	s.ObservedGeneration = t.Generation
	s.Expires = metav1.NewTime(enroll.Expires(t))
	s.Endpoint = &v1alpha1.Endpoint{URL: h.URL, CA: string(h.Keys.CAPEM()), RootKey: base64.StdEncoding.EncodeToString(h.Keys.Root.Public())}
	s.Enrolled = 0
	for _, c := range clusters {
		if c.Annotations[enroll.TokenAnnotation] == t.Name {
			s.Enrolled++
		}
	}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Usable", ObservedGeneration: t.Generation}
	switch {
	case !now.Before(s.Expires.Time):
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "Expired", "make a new token"
	case problem != nil:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "Invalid", problem.Error()
	}
	meta.SetStatusCondition(&s.Conditions, ready)
}

// completeToken makes the secret of a token that came without one, for people who only have kubectl. A crash half-way leaves
// the Secret, and the next pass takes its secret up again.
func (h *Hub) completeToken(ctx context.Context, t *v1alpha1.ClusterRegistrationToken) error {
	s := corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: t.Namespace, Name: t.Name}}
	ticket := bundlefmt.Ticket{URL: h.URL, CA: string(h.Keys.CAPEM()), Root: h.Keys.Root.Public(), Workspace: t.Namespace, Token: t.Name, Secret: rand.Text()}
	err := h.Client.Get(ctx, client.ObjectKeyFromObject(&s), &s)
	switch {
	case apierrors.IsNotFound(err):
		s.Data = map[string][]byte{TokenKey: []byte(ticket.String())}
		if err := controllerutil.SetControllerReference(t, &s, h.Client.Scheme()); err != nil {
			return fmt.Errorf("own secret: %w", err)
		}
		if err := h.Client.Create(ctx, &s); err != nil {
			return fmt.Errorf("write secret of token %s: %w", t.Name, err)
		}
	case err != nil:
		return fmt.Errorf("read secret of token %s: %w", t.Name, err)
	case !metav1.IsControlledBy(&s, t):
		return fmt.Errorf("token %s: a Secret of that name exists and is not ours: choose another name", t.Name)
	default:
		if ticket, err = bundlefmt.ParseTicket(string(s.Data[TokenKey])); err != nil {
			return fmt.Errorf("secret of token %s: %w", t.Name, err)
		}
	}
	t.Spec.SecretHash = SecretHash(ticket.Secret)
	if err := h.Client.Update(ctx, t); err != nil {
		return fmt.Errorf("write token %s: %w", t.Name, err)
	}
	return nil
}

// SecretHash is how a token's spec names its secret.
func SecretHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
