package controller_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/broker"
	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/reconcile"
	"shoal.dev/shoal/internal/kubetest"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

func TestMain(m *testing.M) { kubetest.Main(m) }

// patience bounds every wait of these tests; it is only used up by a test that fails.
const patience = 60 * time.Second

// hub is a running hub: the real thing in this process, on the real API server of the package, with its own system namespace.
type hub struct {
	t      *testing.T
	cfg    *rest.Config
	kube   client.Client
	system string // namespace of the hub
	ns     string // a workspace
	dir    string
	log    *lockedBuffer
	stop   func()
	url    string
	wrap   func(mqtt.Carrier) mqtt.Carrier // what the hub publishes through; nil: the broker as it is
	// metrics is the address of probes and metrics.
	metrics string
}

func newHub(t *testing.T) *hub {
	t.Helper()
	cfg := kubetest.Shared(t)
	h := &hub{t: t, cfg: cfg, system: kubetest.Namespace(t, cfg), ns: kubetest.Namespace(t, cfg), dir: t.TempDir(), log: &lockedBuffer{}}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	h.start()
	var err error
	if h.kube, err = client.New(cfg, client.Options{Scheme: scheme}); err != nil { // after start: it installs the kinds
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.stop()
		h.clean()
		if t.Failed() {
			t.Log(h.log.String())
		}
	})
	return h
}

func (h *hub) start() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := zerolog.New(h.log).With().Timestamp().Logger()
	c, err := controller.New(ctx, controller.Options{Kubernetes: h.cfg, Namespace: h.system, StaleAfter: time.Hour, DownstreamNamespaces: []string{"*"}, MetricsListen: "127.0.0.1:0", Log: log})
	if err != nil {
		h.t.Fatal(err)
	}
	h.metrics = c.MetricsAddr().String()
	tlsConfig, err := c.ServerTLS([]string{"127.0.0.1"})
	if err != nil {
		h.t.Fatal(err)
	}
	b, err := broker.New(broker.Options{Listen: "127.0.0.1:0", TLS: tlsConfig, Auth: c.Authenticator(), Store: filepath.Join(h.dir, "retained.db"), MinKeepAlive: time.Second, Log: log})
	if err != nil {
		h.t.Fatal(err)
	}
	h.url = "mqtts://" + b.Addr().String()
	var carrier mqtt.Carrier = b
	if h.wrap != nil {
		carrier = h.wrap(b)
	}
	done := make(chan error, 2)
	brokerCtx, stopBroker := context.WithCancel(context.Background())
	go func() { done <- b.Run(brokerCtx) }()
	go func() {
		done <- c.Run(ctx, controller.Attachment{Carrier: carrier, URL: h.url, Disconnect: func(id string) { b.Disconnect(func(x string) bool { return x == id }) }})
		stopBroker()
	}()
	h.stop = sync.OnceFunc(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				h.t.Errorf("hub: %v", err)
			}
		}
		stopBroker()
		_ = b.Close()
	})
}

// clean takes everything away that the next hub on this API server would take for its own.
func (h *hub) clean() {
	ctx := context.Background()
	for _, list := range []client.ObjectList{&v1alpha1.ClusterList{}, &v1alpha1.BundleList{}} {
		if err := h.kube.List(ctx, list, client.InNamespace(h.ns)); err != nil {
			h.t.Error(err)
		}
		err := meta.EachListItem(list, func(o runtime.Object) error {
			x := o.(client.Object)
			if err := h.kube.Patch(ctx, x, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))); err != nil {
				return client.IgnoreNotFound(err)
			}
			return client.IgnoreNotFound(h.kube.Delete(ctx, x))
		})
		if err != nil {
			h.t.Error(err)
		}
	}
}

// create makes an object in the workspace.
func (h *hub) create(o client.Object) {
	h.t.Helper()
	o.SetNamespace(h.ns)
	if err := h.kube.Create(h.t.Context(), o); err != nil {
		h.t.Fatal(err)
	}
}

// wait polls until ok says so; last is what a failure shows.
func wait(t *testing.T, what string, ok func() (bool, string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, last := ok()
		if done {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v; last seen: %s", what, patience, last)
		case <-tick.C:
		}
	}
}

func (h *hub) waitBundle(name, what string, ok func(b *v1alpha1.Bundle) bool) *v1alpha1.Bundle {
	h.t.Helper()
	b := &v1alpha1.Bundle{}
	wait(h.t, "bundle "+name+" "+what, func() (bool, string) {
		if err := h.kube.Get(h.t.Context(), client.ObjectKey{Namespace: h.ns, Name: name}, b); err != nil {
			return false, err.Error()
		}
		return ok(b), fmt.Sprintf("%+v", b.Status)
	})
	return b
}

func (h *hub) waitCluster(name, what string, ok func(c *v1alpha1.Cluster) bool) *v1alpha1.Cluster {
	h.t.Helper()
	c := &v1alpha1.Cluster{}
	wait(h.t, "cluster "+name+" "+what, func() (bool, string) {
		if err := h.kube.Get(h.t.Context(), client.ObjectKey{Namespace: h.ns, Name: name}, c); err != nil {
			return false, err.Error()
		}
		return ok(c), fmt.Sprintf("%+v", c.Status)
	})
	return c
}

// token makes a registration token and returns what a site is given.
func (h *hub) token(name string, spec v1alpha1.ClusterRegistrationTokenSpec) bundlefmt.Ticket {
	h.t.Helper()
	secret := rand.Text()
	spec.SecretHash = reconcile.SecretHash(secret)
	t := &v1alpha1.ClusterRegistrationToken{Spec: spec}
	t.Name = name
	h.create(t)
	wait(h.t, "token "+name, func() (bool, string) {
		if err := h.kube.Get(h.t.Context(), client.ObjectKeyFromObject(t), t); err != nil {
			return false, err.Error()
		}
		return t.Status.Endpoint != nil, fmt.Sprintf("%+v", t.Status)
	})
	root, err := base64.StdEncoding.DecodeString(t.Status.Endpoint.RootKey)
	if err != nil {
		h.t.Fatal(err)
	}
	return bundlefmt.Ticket{URL: t.Status.Endpoint.URL, CA: t.Status.Endpoint.CA, Root: root, Workspace: h.ns, Token: name, Secret: secret}
}

// site speaks the protocol of an agent, by hand, so that tests can also say what an agent never would.
type site struct {
	h      *hub
	id     topics.Cluster
	key    *ecdsa.PrivateKey
	cert   []byte
	trust  bundlefmt.Trust
	root   *x509.CertPool
	client *mqtt.Client
	stop   func()
	nonce  string

	mu      sync.Mutex
	desired *bundlefmt.Desired
	all     []*bundlefmt.Desired // that were received
	raw     []byte
	heard   []mqtt.Message
	down    error
}

func (h *hub) site(name string) *site {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	return &site{h: h, id: topics.Cluster{Workspace: h.ns, Name: name}, key: key, nonce: strings.ToLower(rand.Text())}
}

func (s *site) tls(withCert bool) *tls.Config {
	c := &tls.Config{RootCAs: s.root}
	if withCert {
		c.Certificates = []tls.Certificate{{Certificate: [][]byte{s.cert}, PrivateKey: s.key}}
	}
	return c
}

// enroll asks once and returns the hub's answer.
func (s *site) enroll(k bundlefmt.Ticket) *bundlefmt.EnrollResponse {
	t := s.h.t
	t.Helper()
	s.root = x509.NewCertPool()
	s.root.AppendCertsFromPEM([]byte(k.CA))
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: s.id.Name}}, s.key)
	if err != nil {
		t.Fatal(err)
	}
	c, stop := s.online(mqtt.Options{URL: s.h.url, ClientID: "enroll." + strings.ToLower(rand.Text()), Username: k.Workspace + "/" + k.Token, Password: []byte(k.Secret), TLS: s.tls(false), BackoffMax: 100 * time.Millisecond})
	defer stop()
	nonce := strings.ToLower(rand.Text())
	got := make(chan mqtt.Message, 8)
	p := topics.Default
	if _, err := c.Subscribe(t.Context(), func(m mqtt.Message) { got <- m }, p.Name(topics.Topic{Kind: topics.EnrollResponse, Workspace: k.Workspace, Token: k.Token, Nonce: nonce})); err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(bundlefmt.EnrollRequest{Cluster: s.id.Name, CSR: csr, Agent: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for { // the subscription, or the token in the hub's cache, may come after the first question
		if err := c.Publish(ctx, mqtt.Message{Topic: p.Name(topics.Topic{Kind: topics.EnrollRequest, Workspace: k.Workspace, Token: k.Token, Nonce: nonce}), Payload: body}); err != nil {
			t.Fatal(err)
		}
		select {
		case m := <-got:
			r, err := bundlefmt.ParseEnrollResponse(m.Payload, bundlefmt.DefaultLimits())
			if err != nil {
				t.Fatal(err)
			}
			if r.Error != "" && !r.Final && ctx.Err() == nil && !strings.Contains(r.Error, "cluster group") {
				continue
			}
			s.cert = r.Certificate
			if r.Error == "" {
				doc, err := bundlefmt.OpenTrust(r.Trust, k.Root, s.h.ns, 0)
				if err != nil {
					t.Fatal(err)
				}
				s.trust = bundlefmt.NewTrust(doc.Keys...)
			}
			return r
		case <-time.After(time.Second):
		case <-ctx.Done():
			t.Fatal("no answer to the enrolment")
		}
	}
}

// online runs a client and waits for its link.
func (s *site) online(o mqtt.Options) (*mqtt.Client, func()) {
	s.h.t.Helper()
	up := make(chan struct{})
	o.OnUp = sync.OnceFunc(func() { close(up) })
	c, stop := s.connect(o)
	select {
	case <-up:
	case <-time.After(patience):
		stop()
		s.h.t.Fatalf("%s: no link", o.ClientID)
	}
	return c, stop
}

// connect runs a client until stop.
func (s *site) connect(o mqtt.Options) (*mqtt.Client, func()) {
	s.h.t.Helper()
	c, err := mqtt.New(o)
	if err != nil {
		s.h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	return c, sync.OnceFunc(func() { cancel(); <-done })
}

// up goes online as the cluster: birth, subscription, first report with facts.
func (s *site) up() {
	s.h.t.Helper()
	p := topics.Default
	will := s.presence(false, s.nonce)
	c, stop := s.online(mqtt.Options{
		URL: s.h.url, ClientID: "agent." + s.id.Workspace + "." + s.id.Name, TLS: s.tls(true), KeepAlive: 10 * time.Second, Will: &will, BackoffMax: 100 * time.Millisecond,
		OnDown: func(err error) { s.mu.Lock(); defer s.mu.Unlock(); s.down = err },
	})
	s.client = c
	s.stop = stop
	s.h.t.Cleanup(stop)
	if _, err := c.Subscribe(s.h.t.Context(), s.receive, p.ToAgent(s.id)...); err != nil {
		s.h.t.Fatal(err)
	}
	s.say(s.presence(true, s.nonce))
}

func (s *site) presence(online bool, nonce string) mqtt.Message {
	b, err := json.Marshal(bundlefmt.Presence{Online: online, Nonce: nonce, Since: time.Now(), Agent: "v-test"})
	if err != nil {
		s.h.t.Fatal(err)
	}
	return mqtt.Message{Topic: topics.Default.Presence(s.id), Payload: b, Retain: true}
}

func (s *site) facts() bundlefmt.Facts {
	return bundlefmt.Facts{KubernetesVersion: "v1.36.3", APIVersions: []string{"v1", "apps/v1"}, Nodes: 1, Agent: "v-test"}
}

func (s *site) receive(m mqtt.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = append(s.heard, m)
	switch m.Topic {
	case topics.Default.Request(s.id, topics.VerbFacts):
		b, _ := json.Marshal(s.facts())
		go func() {
			_ = s.client.Publish(context.Background(), mqtt.Message{Topic: topics.Default.Response(s.id, topics.VerbFacts), Payload: b})
		}()
	case topics.Default.Desired(s.id):
		d, err := bundlefmt.OpenDesired(m.Payload, s.trust, bundlefmt.Audience{Workspace: s.id.Workspace, Cluster: s.id.Name}, bundlefmt.DefaultLimits())
		if err == nil {
			s.desired, s.raw = d, m.Payload
			s.all = append(s.all, d)
		}
	}
}

func (s *site) say(m mqtt.Message) {
	s.h.t.Helper()
	wait(s.h.t, "publish "+m.Topic, func() (bool, string) { // the link may just be down
		err := s.client.Publish(s.h.t.Context(), m)
		return err == nil, fmt.Sprint(err)
	})
}

// report says that everything ordered is in one state.
func (s *site) report(state bundlefmt.State, change ...func(*bundlefmt.Reported)) {
	s.h.t.Helper()
	s.mu.Lock()
	r := bundlefmt.Reported{At: time.Now(), Facts: s.facts().Hash()}
	if s.desired != nil {
		r.Serial = s.desired.Serial
		for _, d := range s.desired.Deployments {
			r.Deployments = append(r.Deployments, bundlefmt.DeploymentReport{Name: d.Name, Serial: d.Serial, Digest: d.Digest, State: state, Ready: 1, Total: 1, Since: time.Now()})
		}
	}
	s.mu.Unlock()
	for _, f := range change {
		f(&r)
	}
	b, err := r.Encode(bundlefmt.DefaultLimits())
	if err != nil {
		s.h.t.Fatal(err)
	}
	s.say(mqtt.Message{Topic: topics.Default.Reported(s.id), Payload: b, Retain: true})
}

// documents are those that were received so far.
func (s *site) documents() []*bundlefmt.Desired {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// waitDesired waits for a document that satisfies ok.
func (s *site) waitDesired(what string, ok func(*bundlefmt.Desired) bool) *bundlefmt.Desired {
	s.h.t.Helper()
	var got *bundlefmt.Desired
	wait(s.h.t, "desired document of "+s.id.Name+" "+what, func() (bool, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		got = s.desired
		return got != nil && ok(got), fmt.Sprintf("%+v", got)
	})
	return got
}

// join enrols and goes online with everything as it should be.
func (h *hub) join(name string, labels map[string]string) *site {
	h.t.Helper()
	s := h.site(name)
	k := h.token("token-"+name, v1alpha1.ClusterRegistrationTokenSpec{Labels: labels})
	if r := s.enroll(k); r.Error != "" {
		h.t.Fatal(r.Error)
	}
	s.up()
	s.report(bundlefmt.Ready)
	return s
}

// configMap is a bundle of one ConfigMap.
func configMap(name, value string) *v1alpha1.Bundle {
	b := &v1alpha1.Bundle{}
	b.Name = name
	b.Spec.Resources = []v1alpha1.BundleResource{{Name: "cm.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: " + name + "\ndata:\n  key: " + value + "\n"}}
	return b
}

func everywhere() []v1alpha1.BundleTarget {
	return []v1alpha1.BundleTarget{{Name: "all", ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{}}}}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func intOrString(n int) *intstr.IntOrString { v := intstr.FromInt32(int32(n)); return &v }

// ask requests parts of a bundle.
func (s *site) ask(d bundlefmt.Deployment, parts ...int) {
	s.h.t.Helper()
	b, err := json.Marshal(bundlefmt.PartRequest{Deployment: d.Name, Digest: d.Digest, Group: d.Group, Parts: parts})
	if err != nil {
		s.h.t.Fatal(err)
	}
	s.say(mqtt.Message{Topic: topics.Default.Request(s.id, topics.VerbBundle), Payload: b})
}

// plant writes a retained message into the broker's store while the hub is down, as somebody with access to it could.
func (h *hub) plant(topic string, payload []byte) {
	h.t.Helper()
	b, err := broker.New(broker.Options{Listen: "127.0.0.1:0", Auth: nobody{}, Store: filepath.Join(h.dir, "retained.db"), Log: zerolog.Nop()})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := b.Publish(h.t.Context(), mqtt.Message{Topic: topic, Payload: payload, Retain: true}); err != nil {
		h.t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		h.t.Fatal(err)
	}
}

type nobody struct{}

func (nobody) Authenticate(mqtt.Connect) (mqtt.Session, error) { return nil, errors.New("nobody") }
