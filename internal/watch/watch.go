// Package watch shows what goes over the topics of a broker: it connects as a reader, decodes every message and writes a line
// for each. Credential is what it takes to connect, for this package and for other MQTT tools.
package watch

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/internal/decode"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

// Credential lets a reader connect. The hub keeps one in a Secret with these keys: url, ca.crt, tls.crt, tls.key, root.pub.
type Credential struct {
	URL  string
	CA   []byte            // PEM; empty: the system's
	Cert []byte            // PEM
	Key  []byte            // PEM
	Root ed25519.PublicKey // of the trust documents; empty: nothing can be verified
}

// FromSecret reads the form in which the hub keeps it.
func FromSecret(data map[string][]byte) (Credential, error) {
	c := Credential{URL: string(data["url"]), CA: data["ca.crt"], Cert: data["tls.crt"], Key: data["tls.key"]}
	if c.URL == "" || len(c.Cert) == 0 || len(c.Key) == 0 {
		return Credential{}, errors.New("it lacks url, tls.crt or tls.key")
	}
	if len(data["root.pub"]) > 0 {
		var err error
		if c.Root, err = ParseRoot(string(data["root.pub"])); err != nil {
			return Credential{}, err
		}
	}
	return c, nil
}

// ParseRoot reads a root key: 64 hexadecimal digits.
func ParseRoot(s string) (ed25519.PublicKey, error) {
	b, err := hex.DecodeString(strings.TrimSpace(s))
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, errors.New("root key: want 64 hexadecimal digits")
	}
	return b, nil
}

// Write puts the credential into files that MQTT tools read, the key readable by its owner only.
func (c Credential) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write credential: %w", err)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{"url", []byte(c.URL + "\n")}, {"ca.crt", c.CA}, {"tls.crt", c.Cert}, {"tls.key", c.Key}, {"root.pub", []byte(hex.EncodeToString(c.Root) + "\n")}} {
		path := filepath.Join(dir, f.name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // an old file keeps its old mode
			return fmt.Errorf("write credential: %w", err)
		}
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return fmt.Errorf("write credential: %w", err)
		}
	}
	return nil
}

// Mosquitto is the command line by which mosquitto_sub shows what is below filter, with the files that Write wrote.
func (c Credential) Mosquitto(dir, filter string) (string, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("broker URL %q: want mqtts://host:port", c.URL)
	}
	port := u.Port()
	if port == "" {
		port = "8883"
	}
	args := []string{"mosquitto_sub", "-V", "mqttv5", "-h", u.Hostname(), "-p", port}
	for _, f := range [][2]string{{"--cafile", "ca.crt"}, {"--cert", "tls.crt"}, {"--key", "tls.key"}} {
		args = append(args, f[0], quote(filepath.Join(dir, f[1])))
	}
	return strings.Join(append(args, "-i", "reader.mosquitto", "-t", quote(filter), "-v"), " "), nil
}

// quote makes s one word of a POSIX shell.
func quote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-") == "" && s != "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (c Credential) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(c.Cert) > 0 || len(c.Key) > 0 {
		cert, err := tls.X509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	if len(c.CA) > 0 {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(c.CA) {
			return nil, errors.New("CA: it holds no PEM certificate")
		}
	}
	return conf, nil
}

// Options of Run.
type Options struct {
	Credential
	Prefix       topics.Prefix
	Workspace    string // only this one; empty: all
	Cluster      string // only this one; empty: all
	JSON         bool
	RetainedOnly bool          // leave out live messages
	Kinds        []topics.Kind // only cluster topics of these kinds; empty: all
	// Handle is given messages instead of having them printed; nil: they are printed.
	Handle func(topics.Topic, mqtt.Message)
	// Once ends after the retained messages: when for Quiet (default 1 s) none has come any more. MQTT has no sign for the
	// end of a replay.
	Once  bool
	Quiet time.Duration
	// Patience bounds the wait for the first connection; default 15 s. Later the link may come and go.
	Patience time.Duration
	Now      func() time.Time // default time.Now
	Log      zerolog.Logger
}

// trustQuiet is how long trust documents are waited for, before anything that needs them is subscribed.
const trustQuiet = 200 * time.Millisecond

// filters are what a watcher subscribes: trust documents first, and the rest, which can be verified with them.
func (o Options) filters() (trust string, rest []string) {
	ws := o.Workspace
	if ws == "" {
		ws = "+"
	}
	trust = o.Prefix.Trust(ws)
	switch {
	case len(o.Kinds) > 0:
		cluster := o.Cluster
		if cluster == "" {
			cluster = "+"
		}
		for _, k := range o.Kinds {
			rest = append(rest, o.Prefix.Name(topics.Topic{Kind: k, Workspace: ws, Cluster: cluster}))
		}
		return trust, rest
	case o.Cluster != "":
		return trust, []string{strings.TrimSuffix(o.Prefix.Desired(topics.Cluster{Workspace: ws, Name: o.Cluster}), "desired") + "#"}
	case o.Workspace != "":
		return trust, []string{strings.TrimSuffix(trust, "trust") + "#"}
	}
	return trust, []string{o.Prefix.Everything()}
}

// Run writes a line to w for every message until ctx ends, which is no error.
func Run(ctx context.Context, o Options, w io.Writer) error {
	conf, err := o.tls()
	if err != nil {
		return err
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Quiet <= 0 {
		o.Quiet = time.Second
	}
	if o.Patience <= 0 {
		o.Patience = 15 * time.Second
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	up, heard := make(chan struct{}, 1), make(chan struct{}, 1)
	var last error
	downs := make(chan error, 16)
	client, err := mqtt.New(mqtt.Options{
		URL: o.URL, ClientID: "reader." + strings.ToLower(rand.Text()[:16]), TLS: conf, BackoffBase: 200 * time.Millisecond, BackoffMax: 10 * time.Second, Log: o.Log,
		OnUp: func() { signal(up) },
		OnDown: func(err error) {
			select {
			case downs <- err:
			default:
			}
		},
		OnRefused: func(filter string, err error) { cancel(fmt.Errorf("subscribe %s: %w", filter, err)) },
	})
	if err != nil {
		return err
	}
	p := printer{o: o, w: w, decoder: decode.New(o.Prefix, o.Root), trust: map[string][]byte{}}
	show := func(m mqtt.Message) {
		signal(heard)
		if err := p.print(m); err != nil {
			cancel(err)
		}
	}
	trust, rest := o.filters()
	stopTrust, err := client.Subscribe(ctx, show, trust)
	if err != nil {
		return err
	}
	defer stopTrust()
	stopRest := func() {}
	defer func() { stopRest() }()
	rested := false
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	defer func() { cancel(nil); <-done }()

	patience := time.NewTimer(o.Patience)
	defer patience.Stop()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	defer quiet.Stop()
	pause := func() { // until nothing more has come for a while
		switch {
		case !rested:
			quiet.Reset(trustQuiet)
		case o.Once:
			quiet.Reset(o.Quiet)
		}
	}
	for {
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		case last = <-downs:
			if errors.Is(last, mqtt.ErrNotAuthorized) {
				return fmt.Errorf("connect to %s: the broker does not accept this reader's credential; read it again with: shoal topics credentials (%w)", o.URL, last)
			}
		case <-patience.C:
			return fmt.Errorf("connect to %s: %w", o.URL, errors.Join(last, mqtt.ErrTimeout))
		case <-up:
			patience.Stop()
			pause()
		case <-heard:
			pause()
		case <-quiet.C:
			if rested {
				return nil
			}
			rested = true
			if stopRest, err = client.Subscribe(ctx, show, rest...); err != nil {
				stopRest = func() {}
				if ctx.Err() == nil {
					return err
				}
			}
			pause()
		}
	}
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// printer is called from the handlers of both subscriptions, which are goroutines of their own.
type printer struct {
	mu      sync.Mutex
	o       Options
	w       io.Writer
	decoder *decode.Decoder
	trust   map[string][]byte // shown last, by topic: two of our filters match trust documents
}

func (p *printer) print(m mqtt.Message) error {
	if p.o.RetainedOnly && !m.Retain {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t, err := p.o.Prefix.Parse(m.Topic)
	if p.o.Handle != nil {
		if err == nil && (len(p.o.Kinds) == 0 || slices.Contains(p.o.Kinds, t.Kind)) {
			p.o.Handle(t, m)
		}
		return nil
	}
	if err == nil && t.Kind == topics.Trust {
		if bytes.Equal(p.trust[m.Topic], m.Payload) {
			return nil
		}
		p.trust[m.Topic] = m.Payload
	}
	r := p.decoder.Message(p.o.Now(), m.Topic, m.Payload, m.Retain)
	line := []byte(r.String())
	if p.o.JSON {
		var err error
		if line, err = r.JSON(); err != nil {
			return err
		}
	}
	if _, err := p.w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
