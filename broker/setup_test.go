package broker_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"

	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"shoal.dev/shoal/broker"
	"shoal.dev/shoal/internal/link"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/internal/mqtt/mqtttest"
)

func TestMain(m *testing.M) {
	if os.Getenv("SHOAL_TEST_BROKER") != "" {
		childBroker()
		return
	}
	goleak.VerifyTestMain(m)
}

// authority is a CA of the test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

var newCA = sync.OnceValue(func() *authority { return makeCA("test CA") })

func makeCA(name string) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

func (ca *authority) issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func serverTLS(t testing.TB) *tls.Config {
	ca := newCA()
	return &tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, "broker")}, ClientCAs: ca.pool, ClientAuth: tls.VerifyClientCertIfGiven,
		MinVersion: tls.VersionTLS13,
	}
}

func clientTLS() *tls.Config { return &tls.Config{RootCAs: newCA().pool, MinVersion: tls.VersionTLS13} }

func testLog(t testing.TB) zerolog.Logger {
	if testing.Verbose() {
		return zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.DebugLevel)
	}
	return zerolog.Nop()
}

// users is who may do what in most tests.
func users() *mqtttest.Auth {
	return &mqtttest.Auth{Users: map[string]mqtttest.User{
		"a":    {Password: "secret", Allow: []string{"suite/#"}},
		"b":    {Password: "secret", Allow: []string{"suite/#"}},
		"root": {Password: "secret", Allow: []string{"#"}},
		"none": {Password: "secret"},
		"user": {Password: "secret", Allow: []string{"suite/#"}},
	}}
}

// start runs a broker on a free port until the test ends.
func start(t testing.TB, change func(*broker.Options)) *broker.Broker {
	t.Helper()
	o := broker.Options{
		Listen: "127.0.0.1:0", Auth: users(), Log: testLog(t), MinKeepAlive: time.Second,
		PacketRate: 1e6, PacketBurst: 1e6, SourceRate: 1e6, SourceBurst: 1e6, ConnectRate: 1e6,
	}
	if change != nil {
		change(&o)
	}
	b, err := broker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "broker", b.Run)
	return b
}

// run runs f until the test ends, which it must do within five seconds.
func run(t testing.TB, what string, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		began := time.Now()
		if err := <-done; err != nil {
			t.Errorf("run %s: %v", what, err)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("%s took %s to stop", what, d)
		}
	})
	t.Cleanup(stop)
	return stop
}

// dial runs a client of the user, whose name is its client id, and waits until it is up.
func dial(t testing.TB, url, user string, change func(*mqtt.Options)) *mqtt.Client {
	t.Helper()
	c := client(t, url, user, change)
	ctx, cancel := context.WithTimeout(context.Background(), mqtttest.Patience)
	defer cancel()
	if err := c.AwaitUp(ctx); err != nil {
		t.Fatalf("client %s: %v", user, err)
	}
	return c
}

func client(t testing.TB, url, user string, change func(*mqtt.Options)) *mqtt.Client {
	t.Helper()
	o := mqtt.Options{
		URL: url, ClientID: user, Username: user, Password: []byte("secret"), TLS: clientTLS(), Log: testLog(t),
		BackoffBase: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond, KeepAlive: 5 * time.Second,
	}
	if change != nil {
		change(&o)
	}
	c, err := mqtt.New(o)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "client "+user, c.Run)
	return c
}

func plain(b *broker.Broker) string { return "mqtt://" + b.Addr().String() }

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(mqtttest.Patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s", what)
		}
		time.Sleep(2 * time.Millisecond) // polls a condition that has no signal
	}
}

// killed is the store as a killed broker leaves it.
func killed(t testing.TB, store string) string {
	t.Helper()
	data, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}
	cp := filepath.Join(t.TempDir(), "retained")
	if err := os.WriteFile(cp, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return cp
}

func TestCarrierInProcess(t *testing.T) {
	var fixture func(t *testing.T, store string) mqtttest.Fixture
	fixture = func(t *testing.T, store string) mqtttest.Fixture {
		b := start(t, func(o *broker.Options) { o.Store = store })
		return mqtttest.Fixture{
			A: b, B: b, AllowsAll: true,
			RestartBroker: func() mqtttest.Fixture { return fixture(t, killed(t, store)) },
		}
	}
	mqtttest.TestCarrier(t, func(t *testing.T) mqtttest.Fixture { return fixture(t, filepath.Join(t.TempDir(), "retained")) })
}

func TestCarrierOverTLS(t *testing.T) {
	var fixture func(t *testing.T, store string) mqtttest.Fixture
	fixture = func(t *testing.T, store string) mqtttest.Fixture {
		b := start(t, func(o *broker.Options) { o.Store, o.TLS = store, serverTLS(t) })
		l, err := link.New(b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		a := dial(t, "mqtts://"+l.Addr(), "a", nil)
		return mqtttest.Fixture{
			A: a, B: dial(t, "mqtts://"+b.Addr().String(), "b", nil),
			Cut: func() {
				l.Cut()
				eventually(t, "link down", func() bool { return !a.Up() })
			},
			Restore: func() {
				l.Restore()
				eventually(t, "link up", a.Up)
			},
			RestartBroker: func() mqtttest.Fixture { return fixture(t, killed(t, store)) },
		}
	}
	mqtttest.TestCarrier(t, func(t *testing.T) mqtttest.Fixture { return fixture(t, filepath.Join(t.TempDir(), "retained")) })
}

func (ca *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// tlsClient connects with TLS and leaves the connection idle.
func tlsClient(t testing.TB, b *broker.Broker, id string) {
	t.Helper()
	c, err := tls.Dial("tcp", b.Addr().String(), clientTLS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	r := &raw{c, bufio.NewReaderSize(c, 16), t}
	r.send(connectPacket(id, func(p *packets.Connect) { p.Username = "user" }))
	r.next()
}
