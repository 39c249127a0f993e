package edgeagent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/plan"
	"shoal.dev/shoal/edgeagent/store"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

// errFinal: the hub has answered, and trying again will not help until somebody changes something.
var errFinal = errors.New("refused by the hub")

// identity is who the site is; it enrols when nobody has said so yet. ok is false when ctx ended first.
func (a *Agent) identity(ctx context.Context, s *site) (id store.Identity, ok bool) {
	if err := s.ask(func() error { id = s.id; return nil }); err != nil {
		return id, false
	}
	for n := 1; !id.Enrolled(); n++ {
		next, err := a.recall(ctx, s, id)
		if err == nil && !next.Enrolled() {
			next, err = a.enroll(ctx, s, id)
		}
		if ctx.Err() != nil {
			return id, false
		}
		id = next
		if err == nil {
			break
		}
		wait := s.backoff(n)
		if errors.Is(err, errFinal) {
			wait = max(wait, s.o.Timing.RetryMax/2)
		}
		a.log.Error().Err(err).Stringer("again_in", wait.Round(time.Millisecond)).Msg("this site has not enrolled")
		s.post(func() { s.linkDown(err) })
		if !pause(ctx, wait) {
			return id, false
		}
	}
	return id, true
}

// recall takes the identity that is kept on the cluster, if there is one and the disk has lost it. Without an answer of the API
// server it is not known that there is none: enrolling anew would be refused, because the name is taken.
func (a *Agent) recall(ctx context.Context, s *site, id store.Identity) (store.Identity, error) {
	if a.o.IdentitySecret == "" {
		return id, nil
	}
	b, err := a.applier.Identity(ctx, a.o.IdentitySecret)
	if err != nil || b == nil {
		return id, err
	}
	var kept store.Identity
	if err := json.Unmarshal(b, &kept); err != nil || kept.Check() != nil || !kept.Enrolled() {
		a.log.Warn().Str("secret", a.o.IdentitySecret).Msg("the identity kept on the cluster cannot be used and is left out")
		return id, nil
	}
	err = s.ask(func() error {
		if err := s.store.PutIdentity(kept); err != nil {
			return err
		}
		s.identify(kept)
		return nil
	})
	if err != nil {
		return id, fmt.Errorf("keep identity: %w", err)
	}
	a.log.Warn().Str("workspace", kept.Workspace).Str("cluster", kept.Cluster).Str("secret", a.o.IdentitySecret).
		Msg("the disk has no identity: it is taken over from the cluster")
	return kept, nil
}

// keepIdentity keeps the identity on the cluster as well, once there is one. It ends when that is done.
func (a *Agent) keepIdentity(ctx context.Context, id store.Identity) {
	if a.o.IdentitySecret == "" {
		return
	}
	want, err := json.Marshal(id)
	if err != nil {
		return // bytes and strings always encode
	}
	for n := 1; ctx.Err() == nil; n++ {
		have, err := a.applier.Identity(ctx, a.o.IdentitySecret)
		if err == nil && bytes.Equal(have, want) {
			return
		}
		if err == nil {
			err = a.applier.PutIdentity(ctx, a.o.IdentitySecret, want)
		}
		if err == nil {
			a.log.Info().Str("secret", a.o.IdentitySecret).Msg("identity is kept on the cluster as well")
			return
		}
		if n == 1 {
			a.log.Warn().Err(err).Msg("identity is only on this disk, trying again")
		}
		pause(ctx, plan.Backoff(n, a.o.Timing.RetryMin, time.Hour))
	}
}

// enroll makes one attempt. The identity it returns holds the key also after an error: asking again with the same key is the
// same question, so an answer that was lost on the way costs nothing.
func (a *Agent) enroll(ctx context.Context, s *site, id store.Identity) (store.Identity, error) {
	t, err := a.o.ticket()
	if err != nil {
		return id, err
	}
	if a.o.Cluster == "" {
		return id, errors.New("this site has no name yet: give --cluster-name")
	}
	key, id, err := a.key(s, id)
	if err != nil {
		return id, err
	}
	r, err := a.redeem(ctx, t, key, a.o.Cluster)
	if err != nil {
		return id, err
	}
	cert, err := x509.ParseCertificate(r.Certificate)
	if err != nil {
		return id, fmt.Errorf("answer of the hub: certificate: %w", err)
	}
	if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return id, errors.New("answer of the hub: the certificate is for another key")
	}
	if _, err := bundlefmt.OpenTrust(r.Trust, t.Root, t.Workspace, 0); err != nil {
		return id, fmt.Errorf("answer of the hub: %w", err)
	}
	id.Certificate, id.URL, id.CA, id.Root, id.Workspace, id.Cluster = r.Certificate, t.URL, t.CA, t.Root, t.Workspace, a.o.Cluster
	err = s.ask(func() error {
		if err := s.store.PutTrust(r.Trust); err != nil {
			return err
		}
		if err := s.store.PutIdentity(id); err != nil {
			return err
		}
		s.identify(id)
		return nil
	})
	if err != nil {
		id.Certificate = nil
		return id, fmt.Errorf("keep identity: %w", err)
	}
	a.log.Info().Str("workspace", id.Workspace).Str("cluster", id.Cluster).Msg("enrolled")
	return id, nil
}

// key is the site's own, made once and on disk before anybody hears of it.
func (a *Agent) key(s *site, id store.Identity) (*ecdsa.PrivateKey, store.Identity, error) {
	if len(id.Key) > 0 {
		k, err := x509.ParsePKCS8PrivateKey(id.Key)
		if key, ok := k.(*ecdsa.PrivateKey); err == nil && ok {
			return key, id, nil
		}
		return nil, id, errors.New("the private key on disk is no ECDSA key: remove the file identity in the data directory to enrol under a new one")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, id, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, id, fmt.Errorf("make key: %w", err)
	}
	with := id
	with.Key = der
	if err := s.ask(func() error { return s.store.PutIdentity(with) }); err != nil {
		return nil, id, fmt.Errorf("keep key: %w", err)
	}
	return key, with, nil
}

// rejoin enrols a site again that the hub does not know any more: somebody deleted its Cluster by mistake. Name, key and certificate
// stay as they are, and so does what runs; the hub decides whether the token may do that.
func (a *Agent) rejoin(ctx context.Context, s *site, id store.Identity, denied <-chan struct{}) {
	for n := 1; ctx.Err() == nil; n++ {
		select {
		case <-ctx.Done():
			return
		case <-denied:
		}
		err := a.again(ctx, s, id)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			a.advice.Store(nil)
			a.log.Info().Msg("the hub refused this site's key: enrolled again under it, with the token")
			n = 0
		} else {
			a.advice.Store(&err)
			a.log.Error().Err(err).Msg("no link, and this site could not enrol again")
			s.post(func() {
				if !s.link.up {
					s.linkDown(err)
				}
			})
		}
		wait := s.backoff(n + 1)
		if errors.Is(err, errFinal) {
			wait = max(wait, s.o.Timing.RetryMax/2)
		}
		pause(ctx, wait)
	}
}

// again makes one attempt of rejoin.
func (a *Agent) again(ctx context.Context, s *site, id store.Identity) error {
	const what = "the hub refuses this site's key (its Cluster was deleted, the key was revoked, or the hub is only starting); what runs here stays. To enrol again, make a token on the hub (shoal token create)"
	t, err := a.o.ticket()
	switch {
	case err != nil:
		return fmt.Errorf("%s and give its file with --token-file (%w)", what, err)
	case t.Workspace != id.Workspace || !bytes.Equal(t.Root, id.Root):
		return fmt.Errorf("%s in workspace %s: the one in %s is for workspace %s or for another hub", what, id.Workspace, a.o.TokenFile, t.Workspace)
	}
	key, _, err := a.key(s, id)
	if err != nil {
		return err
	}
	if _, err := a.redeem(ctx, t, key, id.Cluster); err != nil {
		return fmt.Errorf("the hub refuses this site's key; what runs here stays: %w", err)
	}
	return nil
}

// redeem asks the hub for an identity.
func (a *Agent) redeem(ctx context.Context, t bundlefmt.Ticket, key *ecdsa.PrivateKey, name string) (*bundlefmt.EnrollResponse, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	body, err := json.Marshal(bundlefmt.EnrollRequest{Cluster: name, CSR: csr, Agent: a.o.Version})
	if err != nil {
		return nil, fmt.Errorf("encode enrolment request: %w", err)
	}
	answer, err := a.question(ctx, t, body)
	if err != nil {
		return nil, err
	}
	r, err := bundlefmt.ParseEnrollResponse(answer, bundlefmt.DefaultLimits())
	switch {
	case err != nil:
		return nil, err
	case r.Error != "" && r.Final:
		return nil, fmt.Errorf("enrol as %q: %w: %s", name, errFinal, r.Error)
	case r.Error != "":
		return nil, fmt.Errorf("enrol as %q: the hub cannot do it now: %s", name, r.Error)
	case r.Workspace != t.Workspace || r.Cluster != name:
		return nil, fmt.Errorf("answer of the hub: it is for %s/%s, asked was %s/%s", r.Workspace, r.Cluster, t.Workspace, name)
	}
	return r, nil
}

// question connects with the token, publishes the request and waits for the answer.
func (a *Agent) question(ctx context.Context, t bundlefmt.Ticket, body []byte) ([]byte, error) {
	conf, err := tlsConfig(store.Identity{URL: t.URL, CA: t.CA}, a.log)
	if err != nil {
		return nil, err
	}
	up, down, answer := make(chan struct{}, 1), make(chan error, 1), make(chan []byte, 1)
	c, err := mqtt.New(mqtt.Options{
		URL: t.URL, ClientID: "enroll." + nonce(8), Username: t.Workspace + "/" + t.Token, Password: []byte(t.Secret), TLS: conf,
		KeepAlive: a.o.KeepAlive, BackoffBase: a.o.Timing.RetryMin,
		OnUp: func() { offer(up, struct{}{}) }, OnDown: func(err error) { offer(down, err) },
		Log: a.o.Log.With().Str("component", "mqtt").Logger(),
	})
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	topic := topics.Topic{Kind: topics.EnrollResponse, Workspace: t.Workspace, Token: t.Token, Nonce: nonce(16)}
	if _, err := c.Subscribe(ctx, func(m mqtt.Message) { offer(answer, bytes.Clone(m.Payload)) }, a.o.Prefix.Name(topic)); err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			offer(down, err)
		}
	})
	select {
	case <-up:
	case err := <-down:
		return nil, unenrolled(t, err)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	wait, stop := context.WithTimeout(ctx, a.o.Timing.EnrollAnswer)
	defer stop()
	topic.Kind = topics.EnrollRequest
	if err := c.Publish(wait, mqtt.Message{Topic: a.o.Prefix.Name(topic), ContentType: bundlefmt.TypeEnroll, Payload: body}); err != nil {
		return nil, fmt.Errorf("enrol with the hub at %s: %w", t.URL, err)
	}
	select {
	case b := <-answer:
		return b, nil
	case err := <-down:
		return nil, unenrolled(t, err)
	case <-wait.Done():
		return nil, fmt.Errorf("enrol with the hub at %s: the broker took the request, but no hub answered within %s: check that the hub runs (shoal controller)", t.URL, a.o.Timing.EnrollAnswer)
	}
}

// unenrolled says what a failed connection means for a site that has no identity yet.
func unenrolled(t bundlefmt.Ticket, err error) error {
	if errors.Is(err, mqtt.ErrNotAuthorized) {
		return fmt.Errorf("enrol with the hub at %s: the hub does not know the token %s/%s or its secret is wrong (expired, deleted, or made by another hub): make a new one with \"shoal token create\" and replace the token file; the agent tries again by itself (%w)",
			t.URL, t.Workspace, t.Token, err)
	}
	return fmt.Errorf("enrol with the hub at %s: %w", t.URL, err)
}

func offer[T any](ch chan T, v T) {
	select {
	case ch <- v:
	default:
	}
}
