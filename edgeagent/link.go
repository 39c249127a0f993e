package edgeagent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/store"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

type zlog = zerolog.Logger

// linkState is what the site knows of its link to the hub.
type linkState struct {
	client *mqtt.Client // nil until the site has enrolled
	up     bool
	since  time.Time // of up, or of its end
	err    string    // why there is none
}

// link keeps the site connected until ctx ends: first it enrols, if that is still to be done.
func (a *Agent) link(ctx context.Context, s *site) {
	id, ok := a.identity(ctx, s)
	if !ok {
		return
	}
	var kept sync.WaitGroup
	defer kept.Wait()
	kept.Go(func() { a.keepIdentity(ctx, id) })
	denied := make(chan struct{}, 1)
	kept.Go(func() { a.rejoin(ctx, s, id, denied) })
	c, goodbye, err := a.client(s, id, denied)
	if err != nil { // the identity on disk is at fault: a person must look, the site goes on without a link
		a.log.Error().Err(err).Msg("no link to the hub is possible")
		s.post(func() { s.linkDown(err) })
		<-ctx.Done()
		return
	}
	// The connection outlives ctx for a moment, to say goodbye.
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	_, err = c.Subscribe(ctx, func(m mqtt.Message) {
		s.post(func() { s.receive(m) })
	}, a.o.Prefix.ToAgent(topics.Cluster{Workspace: id.Workspace, Name: id.Cluster})...)
	if err != nil {
		a.log.Error().Err(err).Msg("subscribe")
	}
	if !s.post(func() { s.link.client = c }) {
		return
	}
	wg.Go(func() {
		if err := c.Run(run); err != nil {
			a.log.Error().Err(err).Msg("link to the hub")
		}
	})
	wg.Go(func() { s.sendEvents(ctx, c) })
	<-ctx.Done()
	// The hub may have heard of a connection that is not up yet on this side: it hears of its end as well.
	soon, cancel := context.WithTimeout(run, 500*time.Millisecond)
	defer cancel()
	if c.AwaitUp(soon) == nil {
		bye, cancel := context.WithTimeout(run, 1500*time.Millisecond)
		defer cancel()
		if err := c.Publish(bye, goodbye()); err != nil {
			a.log.Debug().Err(err).Msg("say goodbye")
		}
	}
}

// client makes the connection of an enrolled site. goodbye is the presence message of a clean stop.
func (a *Agent) client(s *site, id store.Identity, denied chan struct{}) (c *mqtt.Client, goodbye func() mqtt.Message, err error) {
	conf, err := tlsConfig(id, a.log)
	if err != nil {
		return nil, nil, err
	}
	cluster := topics.Cluster{Workspace: id.Workspace, Name: id.Cluster}
	presence := func(p bundlefmt.Presence) mqtt.Message {
		p.Agent = a.o.Version
		b, err := json.Marshal(p)
		if err != nil {
			b = nil // strings and times always encode
		}
		return mqtt.Message{Topic: a.o.Prefix.Presence(cluster), Retain: true, ContentType: bundlefmt.TypePresence, Payload: b}
	}
	var current atomic.Pointer[bundlefmt.Presence]
	c, err = mqtt.New(mqtt.Options{
		URL: id.URL, ClientID: "agent." + id.Workspace + "." + id.Cluster, TLS: conf, KeepAlive: a.o.KeepAlive,
		// A site that is to be missed within 1.5 keep-alives is to be back within two, once there is something to connect to.
		BackoffBase: a.o.Timing.RetryMin, BackoffMax: min(a.o.Timing.RetryMax, 2*a.o.KeepAlive, 2*time.Minute),
		Attempt: func(context.Context) (mqtt.Attempt, error) {
			p := bundlefmt.Presence{Online: true, Nonce: nonce(16), Since: time.Now().UTC().Truncate(time.Second)}
			current.Store(&p)
			gone := p
			gone.Online, gone.Reason = false, "connection lost"
			will := presence(gone)
			return mqtt.Attempt{Will: &will, Birth: []mqtt.Message{presence(p)}}, nil
		},
		OnUp: func() { s.post(s.linkUp) },
		OnDown: func(err error) {
			if errors.Is(err, mqtt.ErrNotAuthorized) {
				if advice := a.advice.Load(); advice != nil {
					err = *advice
				}
				offer(denied, struct{}{})
			}
			s.post(func() { s.linkDown(err) })
		},
		Log: a.o.Log.With().Str("component", "mqtt").Logger(),
	})
	if err != nil {
		return nil, nil, err
	}
	a.metrics.link.Store(c)
	return c, func() mqtt.Message {
		p := *current.Load()
		p.Online, p.Reason, p.Since = false, "stopped", time.Now().UTC().Truncate(time.Second)
		return presence(p)
	}, nil
}

func (s *site) linkUp() {
	now := time.Now()
	s.link.up, s.link.since, s.link.err = true, now, ""
	s.a.metrics.connected.Set(1)
	s.say.force = true // the broker may have lost what it had
	s.say.soon(now, 0)
}

func (s *site) linkDown(err error) {
	now := time.Now()
	if s.link.up || s.link.since.IsZero() {
		s.link.since = now
	}
	s.link.up, s.link.err = false, err.Error()
	s.a.metrics.connected.Set(0)
	s.say.soon(now, s.o.Timing.Report)
}

// nonce is n random bytes in hexadecimal.
func nonce(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// tlsConfig verifies the broker against the hub's own certificate authority and presents the site's certificate.
func tlsConfig(id store.Identity, log zlog) (*tls.Config, error) {
	u, err := url.Parse(id.URL)
	if err != nil {
		return nil, fmt.Errorf("parse URL of the hub: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(id.CA)) {
		return nil, fmt.Errorf("the hub's certificate authority holds no certificate: make a new token on the hub and enrol again")
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: u.Hostname(),
		// The verification that replaces the standard one does the same, but for the time; see verifyServer.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies
		VerifyConnection:   func(cs tls.ConnectionState) error { return verifyServer(cs, u.Hostname(), roots, log) },
	}
	if id.Enrolled() {
		key, err := x509.ParsePKCS8PrivateKey(id.Key)
		if err != nil {
			return nil, fmt.Errorf("private key of this site: %w", err)
		}
		cert := &tls.Certificate{Certificate: [][]byte{id.Certificate}, PrivateKey: key}
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return conf, nil
}

// verifyServer checks chain and host name. A box without a battery comes up in 1970, and a hub may have been off for years: a
// wrong clock must not cut a site off, so time only ever warns. What is believed rests on signatures and serials.
func verifyServer(cs tls.ConnectionState, host string, roots *x509.CertPool, log zlog) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("the broker has no certificate")
	}
	leaf := cs.PeerCertificates[0]
	now := time.Now()
	at := now
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between, CurrentTime: at}); err != nil {
		return fmt.Errorf("verify the broker's certificate: %w", err)
	}
	if !at.Equal(now) {
		log.Warn().Time("clock", now).Time("not_before", leaf.NotBefore).Time("not_after", leaf.NotAfter).
			Msg("by this machine's clock the broker's certificate is not valid: check the clock; going on")
	}
	return nil
}
