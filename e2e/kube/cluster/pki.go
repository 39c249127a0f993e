package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// An identity is a user the API server knows by a token.
type identity struct {
	user   string
	groups string // comma separated
	file   string // its kubeconfig, under the directory
}

const nodePrefix = "system:node:"

// The controller manager runs as administrator instead of handing each of its
// controllers a ServiceAccount: forty clients less. kwok writes Nodes, Pods and
// Leases of any node.
var identities = []identity{
	{user: "admin", groups: "system:masters", file: "kubeconfig"},
	{user: "system:kube-controller-manager", groups: "system:masters", file: "pki/kube-controller-manager.kubeconfig"},
	{user: "system:kube-scheduler", groups: "", file: "pki/kube-scheduler.kubeconfig"},
	{user: "kwok", groups: "system:masters", file: "pki/kwok.kubeconfig"},
	{user: nodePrefix, groups: "system:nodes", file: "pki/kubelet.kubeconfig"},
}

// writeIdentities writes everything that lets the processes and the user trust
// each other. Keys and the CA are made once; what depends on the address is
// rewritten at every start.
func writeIdentities(dir string, s state) error {
	pki := filepath.Join(dir, "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return err
	}
	ca, caKey, err := authority(pki)
	if err != nil {
		return err
	}
	if err := serverCertificate(pki, s, ca, caKey); err != nil {
		return err
	}
	if err := kubeletClientCertificate(pki, ca, caKey); err != nil {
		return err
	}
	if _, err := loadOrCreateKey(filepath.Join(pki, "sa.key")); err != nil {
		return err
	}
	var tokens strings.Builder
	for i, id := range identities {
		token, user := s.Tokens[id.user], id.user
		if user == nodePrefix {
			user += s.Name
		}
		fmt.Fprintf(&tokens, "%s,%s,%d,%q\n", token, user, i+1, id.groups)
		kubeconfig, err := kubeconfig(s, ca.Raw, user, token)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, id.file), kubeconfig); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(pki, "tokens.csv"), []byte(tokens.String()))
}

// kubeconfig is written as JSON, which is YAML too.
func kubeconfig(s state, ca []byte, user, token string) ([]byte, error) {
	type object = map[string]any
	return json.MarshalIndent(object{
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": []object{{"name": s.Name, "cluster": object{
			"server":                     s.server(),
			"certificate-authority-data": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca}),
		}}},
		"users":           []object{{"name": user, "user": object{"token": token}}},
		"contexts":        []object{{"name": s.Name, "context": object{"cluster": s.Name, "user": user}}},
		"current-context": s.Name,
	}, "", "  ")
}

func (s state) server() string {
	return "https://" + net.JoinHostPort(s.Listen, strconv.Itoa(s.Port))
}

func authority(pki string) (*x509.Certificate, crypto.Signer, error) {
	key, err := loadOrCreateKey(filepath.Join(pki, "ca.key"))
	if err != nil {
		return nil, nil, err
	}
	path := filepath.Join(pki, "ca.crt")
	if b, err := os.ReadFile(path); err == nil {
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, nil, fmt.Errorf("%s holds no PEM certificate: remove the cluster's directory to start afresh", path)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		return cert, key, err
	}
	template := certificate("shoal test cluster")
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	return cert, key, writePEM(path, "CERTIFICATE", der)
}

func serverCertificate(pki string, s state, ca *x509.Certificate, caKey crypto.Signer) error {
	key, err := loadOrCreateKey(filepath.Join(pki, "apiserver.key"))
	if err != nil {
		return err
	}
	template := certificate("kube-apiserver")
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	template.DNSNames = []string{
		"localhost", "kubernetes", "kubernetes.default",
		"kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}
	template.IPAddresses = []net.IP{
		net.IPv4(127, 0, 0, 1), net.IPv6loopback, nth(s.serviceNet(), 1), nth(s.podNet(), 1),
	}
	if ip := net.ParseIP(s.Listen); ip != nil {
		template.IPAddresses = append(template.IPAddresses, ip)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	return writePEM(filepath.Join(pki, "apiserver.crt"), "CERTIFICATE", der)
}

// kubeletClientCertificate is what the API server shows a kubelet, for logs and
// exec.
func kubeletClientCertificate(pki string, ca *x509.Certificate, caKey crypto.Signer) error {
	key, err := loadOrCreateKey(filepath.Join(pki, "kubelet-client.key"))
	if err != nil {
		return err
	}
	template := certificate("kube-apiserver-kubelet-client")
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	return writePEM(filepath.Join(pki, "kubelet-client.crt"), "CERTIFICATE", der)
}

func certificate(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.AddDate(10, 0, 0),
	}
}

func loadOrCreateKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, fmt.Errorf("%s holds no PEM key: remove the cluster's directory to start afresh", path)
		}
		return x509.ParseECPrivateKey(block.Bytes)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(path, "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
