package enroll

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

// Authenticator says who a client of the broker is. It reads Clusters and tokens from the hub's cache at each connection, so
// that what people change there holds from the next packet on.
type Authenticator struct {
	Reader    client.Reader // cached
	Synced    func(context.Context) bool
	Namespace string // of the hub's own Secrets
	Prefix    topics.Prefix
	InGroup   func(c topics.Cluster, group string) bool
	Refusals  *Refusals
}

type session struct {
	identity string
	role     topics.Role
}

func (s session) Identity() string { return s.identity }

func (s session) Allowed(a mqtt.Action, topic string) bool {
	if a == mqtt.Subscribe {
		return s.role.MaySubscribe(topic)
	}
	return s.role.MayPublish(topic)
}

// patience bounds how long a connection waits for a hub that is just starting.
const patience = 5 * time.Second

// Authenticate implements mqtt.Authenticator.
func (a *Authenticator) Authenticate(c mqtt.Connect) (mqtt.Session, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if !a.Synced(ctx) {
		return nil, errNotYet
	}
	switch {
	case c.Certificate == nil && c.Username != "":
		return a.enrollee(ctx, c)
	case c.Certificate == nil:
		return nil, errors.New("neither certificate nor enrolment token")
	case slices.Equal(c.Certificate.Subject.Organization, []string{orgAgent}):
		return a.agent(ctx, c)
	case slices.Equal(c.Certificate.Subject.Organization, []string{orgReader}):
		return a.reader(ctx, c)
	}
	return nil, fmt.Errorf("certificate of %q is for no known role", c.Certificate.Subject)
}

// AgentIdentity is the identity of a cluster's connection; see mqtt.Session.
func AgentIdentity(c topics.Cluster) string { return "agent/" + c.String() }

func (a *Authenticator) agent(ctx context.Context, c mqtt.Connect) (mqtt.Session, error) {
	who := topics.Cluster{Name: c.Certificate.Subject.CommonName}
	if ou := c.Certificate.Subject.OrganizationalUnit; len(ou) == 1 {
		who.Workspace = ou[0]
	}
	if _, err := topics.ParseCluster(who.String()); err != nil {
		return nil, err
	}
	if want := "agent." + who.Workspace + "." + who.Name; c.ClientID != want {
		return nil, fmt.Errorf("cluster %s connects as client %q, want %q", who, c.ClientID, want)
	}
	var cl v1alpha1.Cluster
	if err := a.Reader.Get(ctx, client.ObjectKey{Namespace: who.Workspace, Name: who.Name}, &cl); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", who, err)
	}
	if !slices.Contains(cl.Spec.AgentKeys, KeyHash(c.Certificate.RawSubjectPublicKeyInfo)) {
		return nil, fmt.Errorf("cluster %s: this key is not in spec.agentKeys (revoked?)", who)
	}
	if cl.DeletionTimestamp != nil {
		return nil, fmt.Errorf("cluster %s is being deleted", who)
	}
	return session{AgentIdentity(who), a.Prefix.Agent(who, func(g string) bool { return a.InGroup(who, g) })}, nil
}

func (a *Authenticator) reader(ctx context.Context, c mqtt.Connect) (mqtt.Session, error) {
	if !strings.HasPrefix(c.ClientID, "reader.") {
		return nil, fmt.Errorf("a reader connects as client %q, want reader.<anything>", c.ClientID)
	}
	var s corev1.Secret
	if err := a.Reader.Get(ctx, client.ObjectKey{Namespace: a.Namespace, Name: ReaderSecret}, &s); err != nil {
		return nil, fmt.Errorf("reader: %w", err)
	}
	block, _ := pem.Decode(s.Data["tls.crt"])
	if block == nil {
		return nil, fmt.Errorf("secret %s has no certificate", ReaderSecret)
	}
	current, err := x509.ParseCertificate(block.Bytes)
	if err != nil || !current.Equal(c.Certificate) {
		return nil, errors.New("reader: not the certificate that is in force")
	}
	return session{"reader/" + c.ClientID, a.Prefix.Reader()}, nil
}

func (a *Authenticator) enrollee(ctx context.Context, c mqtt.Connect) (mqtt.Session, error) {
	if !strings.HasPrefix(c.ClientID, "enroll.") {
		return nil, fmt.Errorf("a site that enrols connects as client %q, want enroll.<random>", c.ClientID)
	}
	workspace, name, ok := strings.Cut(c.Username, "/")
	if !ok {
		return nil, errors.New("enrolment: user name is not workspace/token")
	}
	var t v1alpha1.ClusterRegistrationToken
	if err := a.Reader.Get(ctx, client.ObjectKey{Namespace: workspace, Name: name}, &t); err != nil {
		return nil, fmt.Errorf("enrolment with token %s/%s: %w", workspace, name, err)
	}
	sum := sha256.Sum256(c.Password)
	if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(t.Spec.SecretHash)) != 1 {
		a.Refusals.Note(client.ObjectKeyFromObject(&t), "", errors.New("wrong secret: the token file is cut, or is of an older token of this name"))
		return nil, fmt.Errorf("enrolment with token %s/%s: wrong secret", workspace, name)
	}
	// An expired token may still ask: it is told so, which CONNACK could not say.
	return session{"enroll/" + c.Username + "/" + c.ClientID, a.Prefix.Enrollee(workspace, name)}, nil
}
