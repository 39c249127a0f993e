package edgeagent_test

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
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"shoal.dev/shoal/broker"
	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent"
	"shoal.dev/shoal/internal/kubetest"
	"shoal.dev/shoal/internal/link"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

const (
	prefix    = topics.Default
	workspace = "shops"
)

// hub is as much of a hub as an agent can see: the real broker, keys, enrolment, parts and documents.
type hub struct {
	t      *testing.T
	root   bundlefmt.Signer
	sign   bundlefmt.Signer
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	tls    *tls.Config
	limits bundlefmt.Limits

	addr   string
	store  string
	stop   func()
	broker *broker.Broker

	mu       sync.Mutex
	names    map[string]string // cluster to the hash of the key that has it
	reports  map[string]*bundlefmt.Reported
	presence map[string]*bundlefmt.Presence
	events   []bundlefmt.Event
	facts    []byte
	parts    map[string][][]byte // by short digest, to publish again
	asked    []bundlefmt.PartRequest
	change   chan struct{}
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{
		t: t, root: newSigner(), sign: newSigner(), limits: bundlefmt.DefaultLimits(), store: filepath.Join(t.TempDir(), "retained"), addr: "127.0.0.1:0",
		names: map[string]string{}, reports: map[string]*bundlefmt.Reported{}, presence: map[string]*bundlefmt.Presence{}, parts: map[string][][]byte{}, change: make(chan struct{}),
	}
	h.ca, h.caKey = newCA(t)
	pool := x509.NewCertPool()
	pool.AddCert(h.ca)
	h.tls = &tls.Config{Certificates: []tls.Certificate{h.serverCert(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS13}
	h.start()
	t.Cleanup(func() { h.stop() })
	h.publish(prefix.Trust(workspace), h.trust(1, h.sign.Public()))
	return h
}

func newSigner() bundlefmt.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return bundlefmt.NewSigner(key)
}

func newCA(t *testing.T) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hub"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().AddDate(-10, 0, 0), NotAfter: time.Now().AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (h *hub) serverCert(from, to time.Time) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "broker"}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, h.ca, &key.PublicKey, h.caKey)
	if err != nil {
		h.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// start runs the broker, on the address it had before if it ran before.
func (h *hub) start() {
	h.t.Helper()
	b, err := broker.New(broker.Options{Listen: h.addr, TLS: h.tls, Auth: h, Store: h.store, MinKeepAlive: time.Second, Log: zerolog.Nop()})
	if err != nil {
		h.t.Fatal(err)
	}
	h.addr = b.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	if _, err := b.Subscribe(ctx, h.receive, prefix.FromAgents()...); err != nil {
		h.t.Fatal(err)
	}
	h.broker = b
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
}

// Authenticate implements mqtt.Authenticator.
func (h *hub) Authenticate(c mqtt.Connect) (mqtt.Session, error) {
	if c.Certificate != nil {
		who := topics.Cluster{Workspace: c.Certificate.Subject.OrganizationalUnit[0], Name: c.Certificate.Subject.CommonName}
		if c.ClientID != "agent."+who.Workspace+"."+who.Name {
			return nil, fmt.Errorf("client id %q", c.ClientID)
		}
		return session{"agent/" + who.String(), prefix.Agent(who, func(g string) bool { return g == "eu" })}, nil
	}
	if c.Username != workspace+"/tok" || string(c.Password) != "secret" || !strings.HasPrefix(c.ClientID, "enroll.") {
		return nil, errors.New("wrong token")
	}
	return session{"enroll/" + c.ClientID, prefix.Enrollee(workspace, "tok")}, nil
}

type session struct {
	id   string
	role topics.Role
}

func (s session) Identity() string { return s.id }
func (s session) Allowed(a mqtt.Action, topic string) bool {
	if a == mqtt.Subscribe {
		return s.role.MaySubscribe(topic)
	}
	return s.role.MayPublish(topic)
}

func (h *hub) receive(m mqtt.Message) {
	t, err := prefix.Parse(m.Topic)
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch t.Kind {
	case topics.Reported:
		if r, err := bundlefmt.ParseReported(m.Payload, h.limits); err == nil {
			h.reports[t.Cluster] = r
		} else {
			h.t.Errorf("report of %s: %v", t.Cluster, err)
		}
	case topics.Presence:
		if p, err := bundlefmt.ParsePresence(m.Payload, h.limits); err == nil {
			h.presence[t.Cluster] = p
		} else {
			h.t.Errorf("presence of %s: %v", t.Cluster, err)
		}
	case topics.Event:
		if e, err := bundlefmt.ParseEvent(m.Payload, h.limits); err == nil {
			h.events = append(h.events, *e)
		} else {
			h.t.Errorf("event of %s: %v", t.Cluster, err)
		}
	case topics.Response:
		h.facts = bytes.Clone(m.Payload)
	case topics.EnrollRequest:
		h.enrol(t, m.Payload)
	case topics.Request:
		r, err := bundlefmt.ParsePartRequest(m.Payload, h.limits)
		if err != nil {
			h.t.Errorf("part request: %v", err)
			return
		}
		h.asked = append(h.asked, *r)
		for _, n := range r.Parts {
			if p := h.parts[r.Digest.Short()]; n < len(p) {
				h.publish(prefix.Part(t.ClusterID(), r.Group, r.Digest.Short(), n), p[n])
			}
		}
	}
	close(h.change)
	h.change = make(chan struct{})
}

// enrol answers; h.mu is held.
func (h *hub) enrol(t topics.Topic, payload []byte) {
	r, err := bundlefmt.ParseEnrollRequest(payload, h.limits)
	if err != nil {
		h.t.Errorf("enrol: %v", err)
		return
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil || csr.CheckSignature() != nil {
		h.t.Errorf("enrol: %v", err)
		return
	}
	out := bundlefmt.EnrollResponse{Workspace: workspace, Cluster: r.Cluster}
	key := bundlefmt.Sum(csr.RawSubjectPublicKeyInfo).String()
	if had := h.names[r.Cluster]; had != "" && had != key {
		out = bundlefmt.EnrollResponse{Error: "the name is taken by another site: choose another --cluster-name, or delete the Cluster", Final: true}
	} else {
		h.names[r.Cluster] = key
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			Subject:     pkix.Name{CommonName: r.Cluster, Organization: []string{"shoal:agent"}, OrganizationalUnit: []string{workspace}},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		if out.Certificate, err = x509.CreateCertificate(rand.Reader, tmpl, h.ca, csr.PublicKey, h.caKey); err != nil {
			h.t.Errorf("enrol: %v", err)
		}
		out.Trust = h.trust(1, h.sign.Public())
	}
	b, err := json.Marshal(out)
	if err != nil {
		h.t.Errorf("enrol: %v", err)
	}
	t.Kind = topics.EnrollResponse
	if err := h.broker.Publish(context.Background(), mqtt.Message{Topic: prefix.Name(t), Payload: b}); err != nil {
		h.t.Errorf("enrol: %v", err)
	}
}

func (h *hub) trust(serial bundlefmt.Serial, keys ...ed25519.PublicKey) []byte {
	d := bundlefmt.TrustDoc{Workspace: workspace, Serial: serial, IssuedAt: time.Unix(1_700_000_000, 0), Keys: keys}
	b, err := d.Sign(h.root)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// publish is retained, as everything the hub says is.
func (h *hub) publish(topic string, payload []byte) {
	if err := h.broker.Publish(context.Background(), mqtt.Message{Topic: topic, Payload: payload, Retain: true}); err != nil {
		h.t.Errorf("publish %s: %v", topic, err)
	}
}

func (h *hub) ticket(addr string) bundlefmt.Ticket {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.ca.Raw})
	return bundlefmt.Ticket{URL: "mqtts://" + addr, CA: string(ca), Root: h.root.Public(), Workspace: workspace, Token: "tok", Secret: "secret"}
}

// seal makes a bundle. It is known to the hub afterwards, so that it can be asked for; nothing is published.
func (h *hub) seal(objects ...string) bundlefmt.Sealed {
	h.t.Helper()
	return h.sealWith(bundlefmt.Handling{}, objects...)
}

func (h *hub) sealWith(handling bundlefmt.Handling, objects ...string) bundlefmt.Sealed {
	h.t.Helper()
	var list []bundlefmt.Object
	for _, o := range objects {
		obj, err := bundlefmt.NewObject([]byte(o))
		if err != nil {
			h.t.Fatal(err)
		}
		list = append(list, obj)
	}
	b, err := bundlefmt.New(list, handling, h.limits)
	if err != nil {
		h.t.Fatal(err)
	}
	s, err := bundlefmt.Seal(b, h.sign, h.limits)
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.parts[s.Digest.Short()] = s.Parts
	return s
}

// put publishes the parts of a bundle.
func (h *hub) put(c topics.Cluster, group string, s bundlefmt.Sealed) {
	for i, p := range s.Parts {
		h.publish(prefix.Part(c, group, s.Digest.Short(), i), p)
	}
}

func entry(name string, serial bundlefmt.Serial, s bundlefmt.Sealed, p bundlefmt.Policy) bundlefmt.Deployment {
	return bundlefmt.Deployment{Name: name, Serial: serial, Digest: s.Digest, RawSize: s.RawSize, Size: s.Size, Parts: len(s.Parts), Policy: p}
}

// document signs what a cluster is to run.
func (h *hub) document(c topics.Cluster, serial bundlefmt.Serial, change func(*bundlefmt.Desired), entries ...bundlefmt.Deployment) []byte {
	h.t.Helper()
	d := bundlefmt.Desired{Workspace: c.Workspace, Cluster: c.Name, Serial: serial, IssuedAt: time.Now(), Deployments: entries}
	if change != nil {
		change(&d)
	}
	b, err := d.Sign(h.sign, h.limits)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

func (h *hub) order(c topics.Cluster, serial bundlefmt.Serial, entries ...bundlefmt.Deployment) {
	h.t.Helper()
	h.publish(prefix.Desired(c), h.document(c, serial, nil, entries...))
}

// patience of the tests: how long something may take before they give up.
const patience = time.Minute

// await returns once ok does, asked again after every message.
func (h *hub) await(what string, ok func() error) {
	h.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		change, err := h.look(ok)
		if err == nil {
			return
		}
		select {
		case <-change:
		case <-deadline.C:
			h.mu.Lock()
			defer h.mu.Unlock()
			b, _ := json.MarshalIndent(h.reports, "", " ")
			h.t.Fatalf("wait for %s: %v\nreports: %s\nevents: %+v", what, err, b, h.events)
		}
	}
}

// look lets go of the lock whatever ok does: a panic must not end in a test that hangs.
func (h *hub) look(ok func() error) (chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.change, ok()
}

// awaitReport waits for a report that is as wanted.
func (h *hub) awaitReport(c topics.Cluster, what string, ok func(*bundlefmt.Reported) bool) *bundlefmt.Reported {
	h.t.Helper()
	var r *bundlefmt.Reported
	h.await(what, func() error {
		if r = h.reports[c.Name]; r == nil || !ok(r) {
			return errors.New("not reported yet")
		}
		return nil
	})
	return r
}

func (h *hub) awaitState(c topics.Cluster, name string, serial bundlefmt.Serial, st bundlefmt.State) bundlefmt.DeploymentReport {
	h.t.Helper()
	var d bundlefmt.DeploymentReport
	h.awaitReport(c, fmt.Sprintf("%s@%d %s", name, serial, st), func(r *bundlefmt.Reported) bool {
		var ok bool
		d, ok = of(r, name)
		return ok && d.State == st && d.Serial == serial
	})
	return d
}

func of(r *bundlefmt.Reported, name string) (bundlefmt.DeploymentReport, bool) {
	i := slices.IndexFunc(r.Deployments, func(d bundlefmt.DeploymentReport) bool { return d.Name == name })
	if i < 0 {
		return bundlefmt.DeploymentReport{}, false
	}
	return r.Deployments[i], true
}

func (h *hub) awaitPresence(c topics.Cluster, what string, ok func(*bundlefmt.Presence) bool) *bundlefmt.Presence {
	h.t.Helper()
	var p *bundlefmt.Presence
	h.await(what, func() error {
		if p = h.presence[c.Name]; p == nil || !ok(p) {
			return errors.New("no such presence yet")
		}
		return nil
	})
	return p
}

func (h *hub) awaitEvent(what string, ok func(bundlefmt.Event) bool) {
	h.t.Helper()
	h.await(what, func() error {
		if !slices.ContainsFunc(h.events, ok) {
			return errors.New("no such event yet")
		}
		return nil
	})
}

// site is one cluster with its agent.
type site struct {
	t     *testing.T
	h     *hub
	c     topics.Cluster
	link  *link.Link // between agent and broker
	o     edgeagent.Options
	log   *logBuffer
	agent *edgeagent.Agent
	halt  func()
	ns    string
	kube  dynamic.Interface
}

// newSite prepares a site; start starts its agent.
func newSite(t *testing.T, h *hub, name string) *site {
	t.Helper()
	cfg := kubetest.Shared(t)
	l, err := link.New(h.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(h.ticket(l.Addr()).String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	kube, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, h: h, c: topics.Cluster{Workspace: workspace, Name: name}, link: l, log: &logBuffer{}, kube: kube, ns: kubetest.Namespace(t, cfg)}
	s.o = edgeagent.Options{
		DataDir: filepath.Join(t.TempDir(), "data"), TokenFile: token, Cluster: name, Kubernetes: rest.CopyConfig(cfg), Version: "v0-test",
		MetricsListen: "127.0.0.1:0", Log: zerolog.New(s.log).Level(zerolog.DebugLevel),
		Timing: edgeagent.Timing{
			Report: 50 * time.Millisecond, NotReady: 200 * time.Millisecond, Settle: 50 * time.Millisecond, PartTimeout: 500 * time.Millisecond,
			RetryMin: 50 * time.Millisecond, RetryMax: 500 * time.Millisecond, EnrollAnswer: 10 * time.Second,
		},
	}
	t.Cleanup(func() {
		if t.Failed() || testing.Verbose() {
			t.Logf("log of %s:\n%s", name, s.log)
		}
	})
	return s
}

func (s *site) start() {
	s.t.Helper()
	a, err := edgeagent.New(s.o)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	s.agent = a
	s.halt = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				s.t.Error(err)
			}
		case <-time.After(5 * time.Second):
			s.t.Error("the agent did not stop within 5 s")
			<-done
		}
	})
	s.t.Cleanup(s.halt)
}

// logBuffer keeps what the agent logs.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}

// configMap is an object in the site's namespace.
func (s *site) configMap(name, value string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q,"namespace":%q},"data":{"v":%q}}`, name, s.ns, value)
}

func (s *site) workload(name string) string {
	return fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":%[1]q,"namespace":%[2]q},"spec":{"replicas":1,"selector":{"matchLabels":{"app":%[1]q}},
		"template":{"metadata":{"labels":{"app":%[1]q}},"spec":{"containers":[{"name":"c","image":"example.test/app:1"}]}}}}`, name, s.ns)
}

// value is what a ConfigMap holds on the cluster; "" when it is not there.
func (s *site) value(ctx context.Context, name string) (value, version string, err error) {
	u, err := s.kube.Resource(configMaps).Namespace(s.ns).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", "", err
	}
	data, _ := u.Object["data"].(map[string]any)
	v, _ := data["v"].(string)
	return v, u.GetResourceVersion(), nil
}

func (s *site) awaitValue(name, want string) {
	s.t.Helper()
	kubetest.Wait(s.t, fmt.Sprintf("configmap %s to be %q", name, want), func(ctx context.Context) error {
		got, _, err := s.value(ctx, name)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
}

func (s *site) version(name string) string {
	s.t.Helper()
	_, v, err := s.value(s.t.Context(), name)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// edit is somebody on the site.
func (s *site) edit(name, value string) {
	s.t.Helper()
	patch := fmt.Appendf(nil, `{"data":{"v":%q}}`, value)
	if _, err := s.kube.Resource(configMaps).Namespace(s.ns).Patch(s.t.Context(), name, "application/merge-patch+json", patch, metav1.PatchOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) names() []string {
	s.t.Helper()
	l, err := s.kube.Resource(configMaps).Namespace(s.ns).List(s.t.Context(), metav1.ListOptions{LabelSelector: "shoal.dev/deployment"})
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, u := range l.Items {
		if u.GetDeletionTimestamp() == nil {
			out = append(out, u.GetName())
		}
	}
	return out
}

// apiLink puts a link between the agent and its API server.
func (s *site) apiLink() *link.Link {
	s.t.Helper()
	u, err := url.Parse(s.o.Kubernetes.Host)
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := link.New(u.Host)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	s.o.Kubernetes.TLSClientConfig.ServerName = u.Hostname()
	u.Host = l.Addr()
	s.o.Kubernetes.Host = u.String()
	return l
}
