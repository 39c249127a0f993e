package watch_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"shoal.dev/shoal/broker"
	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/decode"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/internal/watch"
	"shoal.dev/shoal/topics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// readers lets a certificate of organization "reader" read, as long as open says so.
type readers struct{}

type session struct{ topics.Role }

func (session) Identity() string { return "reader" }
func (s session) Allowed(a mqtt.Action, topic string) bool {
	if a == mqtt.Subscribe {
		return s.MaySubscribe(topic)
	}
	return s.MayPublish(topic)
}

func (readers) Authenticate(c mqtt.Connect) (mqtt.Session, error) {
	if c.Certificate == nil || c.Certificate.Subject.CommonName != "reader" || !strings.HasPrefix(c.ClientID, "reader.") {
		return nil, errors.New("no reader")
	}
	return session{topics.Default.Reader()}, nil
}

type pki struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pki{key, cert}
}

func (p *pki) issue(t *testing.T, name string) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: p.cert.NotBefore, NotAfter: p.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, p.cert, &key.PublicKey, p.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// hub is a broker with something on its topics.
type hub struct {
	*broker.Broker
	pki        *pki
	credential watch.Credential
	signer     bundlefmt.Signer
}

func startHub(t *testing.T) *hub {
	t.Helper()
	p := newPKI(t)
	certPEM, keyPEM := p.issue(t, "broker")
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(p.cert)
	b, err := broker.New(broker.Options{Listen: "127.0.0.1:0", Auth: readers{}, Log: zerolog.Nop(), TLS: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		b.Close()
	})
	root := newSigner(t)
	h := &hub{Broker: b, pki: p, signer: newSigner(t)}
	h.credential = watch.Credential{URL: "mqtts://" + b.Addr().String(), CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}), Root: root.Public()}
	h.credential.Cert, h.credential.Key = p.issue(t, "reader")
	for _, ws := range []string{"bank", "shop"} {
		doc := &bundlefmt.TrustDoc{Workspace: ws, Serial: 1, IssuedAt: time.Now(), Keys: []ed25519.PublicKey{h.signer.Public()}}
		msg, err := doc.Sign(root)
		if err != nil {
			t.Fatal(err)
		}
		h.put(t, topics.Default.Trust(ws), msg, true)
		for _, name := range []string{"paris-1", "rome-1"} {
			h.order(t, topics.Cluster{Workspace: ws, Name: name}, 1)
		}
	}
	return h
}

func newSigner(t *testing.T) bundlefmt.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return bundlefmt.NewSigner(key)
}

func (h *hub) put(t *testing.T, topic string, payload []byte, retain bool) {
	t.Helper()
	if err := h.Publish(t.Context(), mqtt.Message{Topic: topic, Payload: payload, Retain: retain}); err != nil {
		t.Fatal(err)
	}
}

func (h *hub) order(t *testing.T, c topics.Cluster, serial bundlefmt.Serial) {
	t.Helper()
	msg, err := (&bundlefmt.Desired{Workspace: c.Workspace, Cluster: c.Name, Serial: serial, IssuedAt: time.Now()}).Sign(h.signer, bundlefmt.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	h.put(t, topics.Default.Desired(c), msg, true)
}

func (h *hub) options() watch.Options {
	return watch.Options{Credential: h.credential, Prefix: topics.Default, JSON: true, Quiet: 500 * time.Millisecond, Log: zerolog.Nop()}
}

// records are the messages that were shown.
func records(t *testing.T, out string) []decode.Record {
	t.Helper()
	var all []decode.Record
	for line := range strings.Lines(out) {
		var r decode.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, r)
	}
	return all
}

func TestOnceShowsWhatIsRetained(t *testing.T) {
	t.Parallel()
	h := startHub(t)
	h.put(t, topics.Default.Event(topics.Cluster{Workspace: "shop", Name: "paris-1"}), []byte(`{"at":"2026-11-22T03:00:00Z","message":"nobody was there"}`), false)
	for _, c := range []struct {
		workspace, cluster string
		want               []string
	}{
		{"", "", []string{"bank desired paris-1", "bank desired rome-1", "bank trust ", "shop desired paris-1", "shop desired rome-1", "shop trust "}},
		{"shop", "", []string{"shop desired paris-1", "shop desired rome-1", "shop trust "}},
		{"shop", "paris-1", []string{"shop desired paris-1", "shop trust "}},
		{"", "paris-1", []string{"bank desired paris-1", "bank trust ", "shop desired paris-1", "shop trust "}},
	} {
		o := h.options()
		o.Once, o.Workspace, o.Cluster = true, c.workspace, c.cluster
		var out bytes.Buffer
		if err := watch.Run(t.Context(), o, &out); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range records(t, out.String()) {
			got = append(got, r.Workspace+" "+r.Kind+" "+r.Cluster)
			if r.Verified != "yes" || !r.Retained {
				t.Errorf("%+v", r)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%+v: %s", c, diff)
		}
	}
}

// lines is a writer that a test can wait on.
type lines struct {
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

func (l *lines) await(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		l.mu.Lock()
		got := l.b.String()
		l.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		select {
		case <-l.more:
		case <-timeout:
			t.Fatalf("waiting for %q: %s", text, got)
		}
	}
}

func TestLive(t *testing.T) {
	t.Parallel()
	h := startHub(t)
	for _, retainedOnly := range []bool{false, true} {
		out := &lines{more: make(chan struct{}, 1)}
		o := h.options()
		o.JSON, o.Workspace, o.RetainedOnly = false, "shop", retainedOnly
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- watch.Run(ctx, o, out) }()
		out.await(t, "rome-1")
		h.put(t, topics.Default.Event(topics.Cluster{Workspace: "shop", Name: "paris-1"}), []byte(`{"at":"2026-11-22T03:00:00Z","deployment":"web","serial":2,"state":"Ready"}`), false)
		if !retainedOnly {
			out.await(t, "+ shop/cluster/paris-1/event       web@2 Ready")
			h.put(t, topics.Default.Desired(topics.Cluster{Workspace: "shop", Name: "paris-1"}), nil, true)
			out.await(t, "shop/cluster/paris-1/desired     cleared")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := out.b.String(); strings.Contains(got, "web@2") == retainedOnly || strings.Contains(got, "bank") {
			t.Errorf("retained only: %v:\n%s", retainedOnly, got)
		}
	}
}

func TestRefusedCredential(t *testing.T) {
	t.Parallel()
	h := startHub(t)
	o := h.options()
	o.Cert, o.Key = h.pki.issue(t, "somebody")
	if err := watch.Run(t.Context(), o, &bytes.Buffer{}); !errors.Is(err, mqtt.ErrNotAuthorized) || !strings.Contains(err.Error(), "shoal topics credentials") {
		t.Error(err)
	}
	o = h.options()
	o.CA = nil
	o.Patience = 2 * time.Second
	if err := watch.Run(t.Context(), o, &bytes.Buffer{}); !errors.Is(err, mqtt.ErrUnknownCA) {
		t.Error(err)
	}
}

func TestCredentialFiles(t *testing.T) {
	t.Parallel()
	h := startHub(t)
	c, err := watch.FromSecret(map[string][]byte{"url": []byte(h.credential.URL), "ca.crt": h.credential.CA, "tls.crt": h.credential.Cert, "tls.key": h.credential.Key, "root.pub": []byte(hex.EncodeToString(h.credential.Root) + "\n")})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h.credential, c); diff != "" {
		t.Error(diff)
	}
	if _, err := watch.FromSecret(map[string][]byte{"url": []byte("mqtts://hub")}); err == nil {
		t.Error("half a credential was accepted")
	}
	dir := filepath.Join(t.TempDir(), "for a shell's eyes")
	for range 2 { // over old files
		if err := c.Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "tls.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	line, err := c.Mosquitto(dir, topics.Default.Everything())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"mosquitto_sub", "-h 127.0.0.1", "-t 'shoal/v1/#'", `'\''`} {
		if !strings.Contains(line, want) {
			t.Errorf("%s lacks %s", line, want)
		}
	}
	if _, err := exec.LookPath("mosquitto_sub"); err != nil {
		t.Log("mosquitto_sub is not installed: the line was not run")
		return
	}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", line+" -C 6 -W 20").CombinedOutput()
	if err != nil || bytes.Count(out, []byte("shoal/v1/")) < 6 {
		t.Errorf("%s: %v: %q", line, err, out)
	}
}
