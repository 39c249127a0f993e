package mqtt_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"shoal.dev/shoal/broker"
	"shoal.dev/shoal/internal/link"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/internal/mqtt/mqtttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func runUntilEnd(t *testing.T, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		began := time.Now()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > 4*time.Second {
			t.Errorf("stop took %s", d)
		}
	})
	t.Cleanup(stop)
	return stop
}

func startBroker(t *testing.T, change func(*broker.Options)) *broker.Broker {
	t.Helper()
	o := broker.Options{
		Listen: "127.0.0.1:0", MinKeepAlive: time.Second, Log: zerolog.Nop(),
		Auth: &mqtttest.Auth{Users: map[string]mqtttest.User{
			"a": {Password: "secret", Allow: []string{"suite/#"}}, "b": {Password: "secret", Allow: []string{"suite/#"}},
		}},
	}
	if change != nil {
		change(&o)
	}
	b, err := broker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	runUntilEnd(t, b.Run)
	return b
}

func options(addr string) mqtt.Options {
	return mqtt.Options{
		URL: "mqtt://" + addr, ClientID: "a", Username: "a", Password: []byte("secret"), Log: zerolog.Nop(),
		BackoffBase: 5 * time.Millisecond, BackoffMax: 20 * time.Millisecond,
	}
}

func startClient(t *testing.T, o mqtt.Options) (*mqtt.Client, func()) {
	t.Helper()
	c, err := mqtt.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c, runUntilEnd(t, c.Run)
}

func awaitUp(t *testing.T, c *mqtt.Client) {
	t.Helper()
	if err := c.AwaitUp(patient(t)); err != nil {
		t.Fatal(err)
	}
}

func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), mqtttest.Patience)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(mqtttest.Patience); !ok(); time.Sleep(2 * time.Millisecond) { // polls what has no signal
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s", what)
		}
	}
}

func newLink(t *testing.T, b *broker.Broker) *link.Link {
	t.Helper()
	l, err := link.New(b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func observe(t *testing.T, c mqtt.Carrier, filters ...string) *mqtttest.Recorder {
	t.Helper()
	r := &mqtttest.Recorder{}
	stop, err := c.Subscribe(patient(t), r.Add, filters...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return r
}

func certificate(t *testing.T, host string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// Each way a link fails is told apart, and the text says what to do.
func TestErrors(t *testing.T) {
	cert, pool := certificate(t, "localhost")
	_, foreign := certificate(t, "localhost")
	encrypted := startBroker(t, func(o *broker.Options) { o.TLS = &tls.Config{Certificates: []tls.Certificate{cert}} })
	mutual := startBroker(t, func(o *broker.Options) {
		o.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	})
	open := startBroker(t, nil)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close() //nolint:errcheck // a test
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	local := func(a net.Addr) string {
		_, port, _ := net.SplitHostPort(a.String())
		return "mqtts://localhost:" + port
	}
	for name, c := range map[string]struct {
		change func(*mqtt.Options)
		want   error
		text   string
	}{
		"refused":        {func(o *mqtt.Options) { o.URL = "mqtt://" + gone.Addr().String() }, mqtt.ErrConnectionRefused, "hub is running"},
		"no such host":   {func(o *mqtt.Options) { o.URL = "mqtt://no-such-host.invalid" }, mqtt.ErrUnreachable, "host name"},
		"unknown CA":     {func(o *mqtt.Options) { o.URL, o.TLS = local(encrypted.Addr()), &tls.Config{RootCAs: foreign} }, mqtt.ErrUnknownCA, "CA"},
		"wrong name":     {func(o *mqtt.Options) { o.URL, o.TLS = "mqtts://"+encrypted.Addr().String(), &tls.Config{RootCAs: pool} }, mqtt.ErrWrongName, "another host name"},
		"no certificate": {func(o *mqtt.Options) { o.URL, o.TLS = local(mutual.Addr()), &tls.Config{RootCAs: pool} }, mqtt.ErrNotAuthorized, "enrolled"},
		"not TLS":        {func(o *mqtt.Options) { o.URL = local(echo(t)) }, mqtt.ErrNotTLS, "port"},
		"password":       {func(o *mqtt.Options) { o.Password = []byte("wrong") }, mqtt.ErrNotAuthorized, "enrolled"},
		"client id":      {func(o *mqtt.Options) { o.ClientID = "b" }, mqtt.ErrNotAuthorized, "enrolled"},
		"will":           {func(o *mqtt.Options) { o.Will = &mqtt.Message{Topic: "other", Payload: []byte("x")} }, mqtt.ErrNotAuthorized, "enrolled"},
		"no CONNACK": {func(o *mqtt.Options) {
			o.URL, o.PacketTimeout = "mqtt://"+silent.Addr().String(), 50*time.Millisecond
		}, mqtt.ErrTimeout, "in time"},
		"attempt": {func(o *mqtt.Options) {
			o.Attempt = func(context.Context) (mqtt.Attempt, error) { return mqtt.Attempt{}, errTest }
		}, errTest, "prepare connection"},
	} {
		t.Run(name, func(t *testing.T) {
			down := make(chan error, 100)
			o := options(open.Addr().String())
			o.OnDown = func(err error) {
				select {
				case down <- err:
				default:
				}
			}
			c.change(&o)
			client, _ := startClient(t, o)
			select {
			case err := <-down:
				if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("password in %v", err)
				}
			case <-time.After(mqtttest.Patience):
				t.Fatal("OnDown was not called")
			}
			if err := client.Publish(patient(t), mqtt.Message{Topic: "suite/x"}); !errors.Is(err, mqtt.ErrOffline) {
				t.Errorf("publish: %v, want ErrOffline", err)
			}
		})
	}
}

var errTest = errors.New("test")

// echo is a server that answers TLS with something else.
func echo(t *testing.T) net.Addr {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 64))
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr()
}

func TestNewRefuses(t *testing.T) {
	for name, o := range map[string]mqtt.Options{
		"no scheme":    {URL: "host:1883", ClientID: "a"},
		"http":         {URL: "http://host", ClientID: "a"},
		"no host":      {URL: "mqtts://", ClientID: "a"},
		"no client id": {URL: "mqtts://host"},
		"will topic":   {URL: "mqtts://host", ClientID: "a", Will: &mqtt.Message{Topic: "a/+"}},
		"keep-alive":   {URL: "mqtts://host", ClientID: "a", KeepAlive: time.Millisecond},
	} {
		if _, err := mqtt.New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Every attempt has its own nonce in Will and birth; however often the link breaks, presence ends with the newest birth.
func TestPresence(t *testing.T) {
	b := startBroker(t, nil)
	l := newLink(t, b)
	presence := observe(t, b, "suite/presence")
	var nonce atomic.Int64
	say := func(what string, n int64) mqtt.Message {
		return mqtt.Message{Topic: "suite/presence", Payload: fmt.Appendf(nil, "%s %d", what, n), Retain: true}
	}
	o := options(l.Addr())
	o.WillOnStop = true
	o.Attempt = func(context.Context) (mqtt.Attempt, error) {
		n := nonce.Add(1)
		will := say("offline", n)
		return mqtt.Attempt{Username: "a", Password: []byte("secret"), Will: &will, Birth: []mqtt.Message{say("online", n)}}, nil
	}
	c, stop := startClient(t, o)
	awaitUp(t, c)
	for range 5 {
		n := nonce.Load()
		presence.AwaitPayload(t, fmt.Sprintf("online %d", n))
		l.Cut()
		presence.AwaitPayload(t, fmt.Sprintf("offline %d", n))
		eventually(t, "link down", func() bool { return !c.Up() })
		l.Restore()
		awaitUp(t, c)
	}
	n := nonce.Load()
	presence.AwaitPayload(t, fmt.Sprintf("online %d", n))
	stop()
	presence.AwaitPayload(t, fmt.Sprintf("offline %d", n)) // "disconnect with Will message"
	if got := presence.Payloads(); got[len(got)-1] != fmt.Sprintf("offline %d", n) {
		t.Errorf("presence: %q", got)
	}
}

// The outbox delivers the newest value of each topic once there is a link, and what the broker refuses does not block the rest.
func TestOutbox(t *testing.T) {
	b := startBroker(t, nil)
	l := newLink(t, b)
	l.Cut()
	r := observe(t, b, "suite/#")
	refused := make(chan string, 10)
	o := options(l.Addr())
	o.OnRefused = func(topic string, err error) {
		refused <- fmt.Sprintf("%s %v", topic, errors.Is(err, mqtt.ErrNotAuthorized))
	}
	c, _ := startClient(t, o)
	put := func(topic, payload string) {
		c.Enqueue(mqtt.Message{Topic: topic, Payload: []byte(payload), Retain: true})
	}
	put("other/x", "not ours")
	for i := range 100 {
		put("suite/reported", strconv.Itoa(i))
		put("suite/facts", strconv.Itoa(i))
	}
	if n := c.Queued(); n != 3 {
		t.Errorf("%d queued, want 3", n)
	}
	l.Restore()
	eventually(t, "empty outbox", func() bool { return c.Queued() == 0 })
	if got := <-refused; got != "other/x true" {
		t.Errorf("refused %q", got)
	}
	if got := r.Payloads(); !slices.Equal(got, []string{"99"}) {
		t.Errorf("got %q", got)
	}
	put("suite/\x00", "x")
	if got := <-refused; !strings.HasPrefix(got, "suite/") {
		t.Errorf("refused %q", got)
	}
	for i := range 30 { // the link breaks in the middle of things
		l.DropAfter(int64(20 + 37*i))
		put("suite/reported", fmt.Sprintf("cut %d", i))
		r.AwaitPayload(t, fmt.Sprintf("cut %d", i))
	}
	l.DropAfter(-1)
	eventually(t, "empty outbox", func() bool { return c.Queued() == 0 })
}

func TestRequest(t *testing.T) {
	b := startBroker(t, nil)
	l := newLink(t, b)
	stop, err := b.Subscribe(patient(t), func(m mqtt.Message) {
		if string(m.Payload) == "silence" {
			return
		}
		for _, id := range [][]byte{[]byte("foreign"), m.CorrelationData} {
			_ = b.Publish(context.Background(), mqtt.Message{
				Topic: m.ResponseTopic, CorrelationData: id, Payload: append([]byte("re: "), m.Payload...), ContentType: "x/y",
			})
		}
	}, "suite/request/+")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	c, _ := startClient(t, options(l.Addr()))
	if _, err := c.Request(patient(t), mqtt.Message{Topic: "suite/request/x"}, "suite/response"); !errors.Is(err, mqtt.ErrOffline) && err != nil {
		t.Errorf("before the link is up: %v", err)
	}
	awaitUp(t, c)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			got, err := c.Request(patient(t), mqtt.Message{Topic: "suite/request/x", Payload: []byte(strconv.Itoa(i))}, "suite/response")
			if err != nil || string(got.Payload) != fmt.Sprintf("re: %d", i) || got.ContentType != "x/y" {
				t.Errorf("request %d: %q, %v", i, got.Payload, err)
			}
		})
	}
	wg.Wait()
	l.Cut()
	eventually(t, "link down", func() bool { return !c.Up() })
	l.Restore()
	awaitUp(t, c)
	if _, err := c.Request(patient(t), mqtt.Message{Topic: "suite/request/x", Payload: []byte("again")}, "suite/response"); err != nil {
		t.Errorf("after a reconnect: %v", err)
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Request(short, mqtt.Message{Topic: "suite/request/x", Payload: []byte("silence")}, "suite/response"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	if _, err := c.Request(patient(t), mqtt.Message{Topic: "suite/request/x"}, "other/response"); !errors.Is(err, mqtt.ErrNotAuthorized) {
		t.Errorf("foreign response topic: %v", err)
	}
}

// Being replaced and being revoked are told apart.
func TestDisconnectReasons(t *testing.T) {
	b := startBroker(t, nil)
	down := make(chan error, 100)
	o := options(b.Addr().String())
	o.OnDown = func(err error) { down <- err }
	o.BackoffBase, o.BackoffMax = time.Hour, time.Hour // the first attempt's pause is random as well, so:
	o.BackoffBase = 50 * time.Millisecond
	c, _ := startClient(t, o)
	awaitUp(t, c)
	b.Disconnect(func(string) bool { return true })
	if err := <-down; !errors.Is(err, mqtt.ErrNotAuthorized) {
		t.Errorf("revoked: %v", err)
	}
	awaitUp(t, c)
	second := options(b.Addr().String())
	other, _ := startClient(t, second)
	awaitUp(t, other)
	if err := <-down; !errors.Is(err, mqtt.ErrTakenOver) {
		t.Errorf("taken over: %v", err)
	}
}

// A link that swallows everything is noticed after one and a half keep-alives, and does not hold up a stop.
func TestBlackHole(t *testing.T) {
	b := startBroker(t, nil)
	l := newLink(t, b)
	down := make(chan error, 100)
	o := options(l.Addr())
	o.KeepAlive = time.Second
	o.OnDown = func(err error) { down <- err }
	c, stop := startClient(t, o)
	awaitUp(t, c)
	l.SetDelay(time.Hour)
	began := time.Now()
	if err := <-down; !errors.Is(err, mqtt.ErrTimeout) {
		t.Errorf("got %v, want ErrTimeout", err)
	}
	if d := time.Since(began); d < time.Second || d > 4*time.Second {
		t.Errorf("noticed after %s, want about 1.5 s", d)
	}
	stop()
}

// A message that takes longer than the keep-alive to arrive does not break the link.
func TestSlowLink(t *testing.T) {
	b := startBroker(t, nil)
	l := newLink(t, b)
	var downs atomic.Int32
	o := options(l.Addr())
	o.KeepAlive = time.Second
	o.OnDown = func(error) { downs.Add(1) }
	c, _ := startClient(t, o)
	awaitUp(t, c)
	r := observe(t, c, "suite/big")
	l.SetRate(12 << 10)
	payload := strings.Repeat("x", 48<<10) // 4 s
	if err := b.Publish(patient(t), mqtt.Message{Topic: "suite/big", Payload: []byte(payload), Retain: true}); err != nil {
		t.Fatal(err)
	}
	r.AwaitPayload(t, payload)
	if err := c.Publish(patient(t), mqtt.Message{Topic: "suite/up", Payload: []byte(payload)}); err != nil { // and the way up
		t.Error(err)
	}
	if n := downs.Load(); n != 0 {
		t.Errorf("the link broke %d times", n)
	}
}

// A broker that announces a huge packet is hung up on before anything is allocated for it.
func TestHugePacket(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1024))
			_, _ = c.Write([]byte{0x20, 3, 0, 0, 0})                // CONNACK
			_, _ = c.Write([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0}) // PUBLISH of 256 MB
			_, _ = c.Read(make([]byte, 1024))
			_ = c.Close()
		}
	})
	defer wg.Wait()
	defer ln.Close() //nolint:errcheck // a test
	down := make(chan error, 1)
	o := options(ln.Addr().String())
	o.OnDown = func(err error) {
		select {
		case down <- err:
		default:
		}
	}
	_, stop := startClient(t, o)
	if err := <-down; !errors.Is(err, mqtt.ErrTooLarge) {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
	stop()
}

// A handler that stands still costs a bounded amount of memory, and the other handlers nothing.
func TestSlowHandler(t *testing.T) {
	b := startBroker(t, nil)
	down := make(chan error, 100)
	o := options(b.Addr().String())
	o.MaxInbox = 100 << 10
	o.OnDown = func(err error) { down <- err }
	c, _ := startClient(t, o)
	awaitUp(t, c)
	release := make(chan struct{})
	if _, err := c.Subscribe(patient(t), func(mqtt.Message) { <-release }, "suite/slow"); err != nil {
		t.Fatal(err)
	}
	r := observe(t, c, "suite/fast")
	for range 50 {
		_ = b.Publish(patient(t), mqtt.Message{Topic: "suite/slow", Payload: make([]byte, 10<<10)})
	}
	if err := <-down; !errors.Is(err, mqtt.ErrSlowHandler) {
		t.Errorf("got %v, want ErrSlowHandler", err)
	}
	close(release)
	awaitUp(t, c)
	if err := b.Publish(patient(t), mqtt.Message{Topic: "suite/fast", Payload: []byte("fine"), Retain: true}); err != nil {
		t.Fatal(err)
	}
	r.AwaitPayload(t, "fine")
}

func TestCheckAndMatch(t *testing.T) {
	for filter, topics := range map[string]map[string]bool{
		"a/b": {"a/b": true, "a": false, "a/b/c": false, "a/bb": false},
		"a/+": {"a/b": true, "a": false, "a/": true, "a/b/c": false},
		"a/#": {"a": true, "a/b": true, "a/b/c": true, "b": false},
		"#":   {"a": true, "/": true, "$SYS/x": false},
		"+/b": {"a/b": true, "/b": true, "$SYS/b": false},
		"+":   {"a": true, "a/b": false, "/": false},
	} {
		for topic, want := range topics {
			if got := mqtt.Match(filter, topic); got != want {
				t.Errorf("Match(%q, %q) = %v", filter, topic, got)
			}
		}
	}
}
