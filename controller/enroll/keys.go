// Package enroll holds the hub's keys and decides who is who: tokens let a site in, certificates prove a cluster, and the
// Cluster object says which keys may speak for it.
//
// A credential is a key pair that never leaves the site. Its certificate only carries the key and the name through TLS; what
// counts is that the hash of the key stands in the Cluster's spec.agentKeys. Taking it out there revokes the credential at
// once, and no certificate has to be renewed on a link that may be down for months.
package enroll

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/topics"
)

// KeysSecret holds every key of the hub. Without it no enrolled site obeys any more: back it up.
const KeysSecret = "shoal-keys"

// Names of the keys in KeysSecret.
const (
	keyRoot    = "root.key"    // Ed25519, PKCS #8: signs the set of signing keys
	keySigning = "signing.key" // Ed25519, PKCS #8: signs desired documents and bundles
	keyCA      = "ca.key"      // ECDSA P-256, PKCS #8: issues the broker's certificate and the clusters'
	certCA     = "ca.crt"
)

// Who a certificate speaks for stands in its organisation.
const (
	orgAgent  = "shoal:agent"
	orgReader = "shoal:reader"
)

// lifetime of certificates: see the package comment for why it is long.
const lifetime = 20 * 365 * 24 * time.Hour

// Keys are the hub's.
type Keys struct {
	Root    bundlefmt.Signer
	Signing bundlefmt.Signer
	CA      *x509.Certificate
	created time.Time
	caKey   *ecdsa.PrivateKey
	random  [32]byte
	data    map[string][]byte // of KeysSecret
}

// ErrOtherKeys: KeysSecret holds other keys than this hub works with.
var ErrOtherKeys = errors.New("it holds other keys than this hub works with, and a restart would take those: put the old ones back from a backup, or restart the hub if the new ones are right")

// Keep makes sure that the keys are in their Secret. One that was deleted is written again; other keys are never overwritten.
func (k *Keys) Keep(ctx context.Context, c client.Client, namespace string) (written bool, err error) {
	s := corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: KeysSecret}}
	err = c.Get(ctx, client.ObjectKeyFromObject(&s), &s)
	if apierrors.IsNotFound(err) {
		s.Data = k.data
		if err := c.Create(ctx, &s); err != nil {
			return false, fmt.Errorf("the keys are only in this hub's memory, and lost when it ends: write secret %s/%s: %w", namespace, KeysSecret, err)
		}
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read keys: %w", err)
	}
	for _, name := range []string{keyRoot, keySigning, keyCA, certCA} {
		if !bytes.Equal(s.Data[name], k.data[name]) {
			return false, fmt.Errorf("secret %s/%s: %w", namespace, KeysSecret, ErrOtherKeys)
		}
	}
	return false, nil
}

// LoadKeys reads the hub's keys, or makes them for a hub that has no clusters yet. With enrolled clusters and no keys it fails:
// new keys would lock every one of them out.
func LoadKeys(ctx context.Context, c client.Client, namespace string) (*Keys, error) {
	var s corev1.Secret
	name := client.ObjectKey{Namespace: namespace, Name: KeysSecret}
	err := c.Get(ctx, name, &s)
	if apierrors.IsNotFound(err) {
		if err := noneEnrolled(ctx, c); err != nil {
			return nil, err
		}
		data, err := newKeys(time.Now())
		if err != nil {
			return nil, fmt.Errorf("make keys: %w", err)
		}
		s = corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: KeysSecret}, Data: data}
		err = c.Create(ctx, &s)
		if apierrors.IsAlreadyExists(err) {
			err = c.Get(ctx, name, &s)
		}
		if err != nil {
			return nil, fmt.Errorf("store keys in secret %s/%s: %w", namespace, KeysSecret, err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	k, err := parseKeys(s.Data)
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", namespace, KeysSecret, err)
	}
	return k, nil
}

func noneEnrolled(ctx context.Context, c client.Client) error {
	var list v1alpha1.ClusterList
	if err := c.List(ctx, &list); err != nil {
		return fmt.Errorf("look for enrolled clusters: %w", err)
	}
	for _, cl := range list.Items {
		if len(cl.Spec.AgentKeys) > 0 {
			return fmt.Errorf("the keys are gone, but cluster %s/%s is enrolled with them: restore secret %s from a backup (new keys would lock every site out; to start over, delete the Cluster objects first)",
				cl.Namespace, cl.Name, KeysSecret)
		}
	}
	return nil
}

func newKeys(now time.Time) (map[string][]byte, error) {
	data := map[string][]byte{}
	for _, name := range []string{keyRoot, keySigning} {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		if data[name], err = keyPEM(key); err != nil {
			return nil, err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if data[keyCA], err = keyPEM(key); err != nil {
		return nil, err
	}
	ca := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "shoal"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	data[certCA] = certPEM(der)
	return data, nil
}

func parseKeys(data map[string][]byte) (*Keys, error) {
	root, err := signer(data, keyRoot)
	if err != nil {
		return nil, err
	}
	signing, err := signer(data, keySigning)
	if err != nil {
		return nil, err
	}
	key, err := parseKey[*ecdsa.PrivateKey](data, keyCA)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data[certCA])
	if block == nil {
		return nil, fmt.Errorf("%s is missing or no PEM", certCA)
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certCA, err)
	}
	rootKey, err := parseKey[ed25519.PrivateKey](data, keyRoot)
	if err != nil {
		return nil, err
	}
	random, err := hkdf.Key(sha256.New, rootKey.Seed(), nil, "shoal random values of charts", 32)
	if err != nil {
		return nil, err
	}
	return &Keys{Root: root, Signing: signing, CA: ca, caKey: key, created: ca.NotBefore, data: data, random: [32]byte(random)}, nil
}

func signer(data map[string][]byte, name string) (bundlefmt.Signer, error) {
	k, err := parseKey[ed25519.PrivateKey](data, name)
	if err != nil {
		return bundlefmt.Signer{}, err
	}
	return bundlefmt.NewSigner(k), nil
}

func parseKey[K any](data map[string][]byte, name string) (K, error) {
	var none K
	block, _ := pem.Decode(data[name])
	if block == nil {
		return none, fmt.Errorf("%s is missing or no PEM", name)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return none, fmt.Errorf("%s is no PKCS #8 key", name)
	}
	key, ok := k.(K)
	if !ok {
		return none, fmt.Errorf("%s is a %T, want %T", name, k, none)
	}
	return key, nil
}

// Random is what random values of charts are made of. It is derived from the root key, so that whoever backs that up has it, and says
// nothing about it.
func (k *Keys) Random() [32]byte { return k.random }

// CAPEM is the certificate authority that agents and tools verify the broker with.
func (k *Keys) CAPEM() []byte { return certPEM(k.CA.Raw) }

// Trust is the set of keys whose documents the hub accepts as its own.
func (k *Keys) Trust() bundlefmt.Trust { return bundlefmt.NewTrust(k.Signing.Public()) }

// TrustDocument is the signed set of signing keys for a workspace: the same bytes each time.
func (k *Keys) TrustDocument(workspace string) ([]byte, error) {
	d := bundlefmt.TrustDoc{Workspace: workspace, Serial: 1, IssuedAt: k.created, Keys: []ed25519.PublicKey{k.Signing.Public()}}
	return d.Sign(k.Root)
}

// ServerTLS is the broker's side of TLS for the given host names and addresses. Client certificates are asked for and, if
// given, verified; who has none can only try to enrol.
func (k *Keys) ServerTLS(hosts []string) (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make broker key: %w", err)
	}
	cert := &x509.Certificate{Subject: pkix.Name{CommonName: "shoal broker"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			cert.IPAddresses = append(cert.IPAddresses, ip)
		} else if h != "" {
			cert.DNSNames = append(cert.DNSNames, h)
		}
	}
	der, err := k.issue(cert, &key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("issue broker certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(k.CA)
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der, k.CA.Raw}, PrivateKey: key}},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    pool,
	}, nil
}

// issueAgent makes a cluster's certificate for the key in its request.
func (k *Keys) issueAgent(c topics.Cluster, csr *x509.CertificateRequest) ([]byte, error) {
	cert := &x509.Certificate{Subject: pkix.Name{Organization: []string{orgAgent}, OrganizationalUnit: []string{c.Workspace}, CommonName: c.Name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	return k.issue(cert, csr.PublicKey)
}

func (k *Keys) issue(cert *x509.Certificate, public any) ([]byte, error) {
	cert.SerialNumber = serial()
	cert.NotBefore = k.CA.NotBefore // not now: the clock of a site may be years behind
	cert.NotAfter = k.CA.NotAfter
	cert.KeyUsage = x509.KeyUsageDigitalSignature
	return x509.CreateCertificate(rand.Reader, cert, k.CA, public, k.caKey)
}

// KeyHash is how spec.agentKeys names a certificate's key.
func KeyHash(spki []byte) string {
	h := sha256.Sum256(spki)
	return hex.EncodeToString(h[:])
}

// ReaderSecret holds the credential with which people watch the topics.
const ReaderSecret = "shoal-mqtt-reader"

// EnsureReader writes the credential of people who watch the topics, unless it is there and fits. Deleting the Secret and
// restarting the hub revokes it.
func EnsureReader(ctx context.Context, c client.Client, namespace string, k *Keys, url string) error {
	s := corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: ReaderSecret}}
	err := c.Get(ctx, client.ObjectKeyFromObject(&s), &s)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read secret %s: %w", ReaderSecret, err)
	}
	missing := err != nil
	if !missing && string(s.Data["url"]) == url && k.owns(s.Data["tls.crt"]) {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make reader key: %w", err)
	}
	cert := &x509.Certificate{Subject: pkix.Name{Organization: []string{orgReader}, CommonName: "reader"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := k.issue(cert, &key.PublicKey)
	if err != nil {
		return fmt.Errorf("issue reader certificate: %w", err)
	}
	keyText, err := keyPEM(key)
	if err != nil {
		return fmt.Errorf("encode reader key: %w", err)
	}
	s.Type = corev1.SecretTypeOpaque
	s.Data = map[string][]byte{
		"url": []byte(url), "ca.crt": k.CAPEM(), "tls.crt": certPEM(der), "tls.key": keyText,
		"root.pub": []byte(hex.EncodeToString(k.Root.Public())),
	}
	if missing {
		err = c.Create(ctx, &s)
	} else {
		err = c.Update(ctx, &s)
	}
	if err != nil {
		return fmt.Errorf("write secret %s: %w", ReaderSecret, err)
	}
	return nil
}

// owns reports whether a certificate was issued by this authority.
func (k *Keys) owns(text []byte) bool {
	block, _ := pem.Decode(text)
	if block == nil {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	return err == nil && cert.CheckSignatureFrom(k.CA) == nil
}

func keyPEM(key any) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails: crypto/rand
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

var errNotYet = errors.New("the hub is starting: try again")
