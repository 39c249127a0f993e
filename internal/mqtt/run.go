package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// settled is how long a connection must have been up for its end to start the back-off anew.
const settled = 30 * time.Second

// Run keeps a connection up until ctx ends, then disconnects and returns nil with every goroutine joined, within about two
// seconds. It returns an error only if it is called twice.
func (c *Client) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.started {
		c.mu.Unlock()
		return errors.New("run MQTT client: already started")
	}
	c.started = true
	for _, s := range c.subs {
		c.start(s)
	}
	c.mu.Unlock()
	defer c.close()

	for n := 0; ; n++ {
		select {
		case <-time.After(c.backoff(n)):
		case <-ctx.Done():
			return nil
		}
		began := time.Now()
		wasUp, err := c.connect(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if wasUp && time.Since(began) > settled {
			n = -1
		}
		err = explain(err)
		c.log.Warn().Err(err).Bool("was_up", wasUp).Msg("broker link down")
		if c.o.OnDown != nil {
			c.o.OnDown(err)
		}
	}
}

// close ends the handlers and waits for everything that was started.
func (c *Client) close() {
	c.mu.Lock()
	close(c.done)
	subs := c.subs
	c.subs = nil
	c.started = false // nothing may join work from here on
	c.mu.Unlock()
	for _, s := range subs {
		s.box.close()
	}
	c.work.Wait()
}

// backoff is full jitter: random in [0, min(max, base·2ⁿ)).
func (c *Client) backoff(n int) time.Duration {
	top := c.o.BackoffMax
	if n < 30 && c.o.BackoffBase<<n < top {
		top = c.o.BackoffBase << n
	}
	return rand.N(top) //nolint:gosec // spreads load, keeps no secret
}

// connect makes one attempt and serves the connection until it ends; err is never nil then, except when ctx ended it.
func (c *Client) connect(ctx context.Context) (wasUp bool, err error) {
	a := Attempt{Username: c.o.Username, Password: c.o.Password, Will: c.o.Will}
	if c.o.Attempt != nil {
		if a, err = c.o.Attempt(ctx); err != nil {
			return false, fmt.Errorf("prepare connection: %w", err)
		}
	}
	dialCtx, cancel := context.WithTimeout(ctx, c.o.ConnectTimeout)
	raw, err := dial(dialCtx, c.url, c.o.TLS)
	cancel()
	if err != nil {
		return false, fmt.Errorf("connect to %s: %w", c.url.Redacted(), err)
	}
	l := newLink(raw, c.o.PacketTimeout, c.o.MaxPacket)
	l.traffic = &c.traffic

	var cause causeOnce
	p := paho.NewClient(paho.ClientConfig{
		Conn:              l,
		PingHandler:       &pinger{link: l, cause: &cause},
		PacketTimeout:     c.o.PacketTimeout,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){c.receive(l, &cause)},
		OnClientError:     cause.set,
		OnServerDisconnect: func(d *paho.Disconnect) {
			e := &ReasonError{Op: "disconnect", Code: d.ReasonCode}
			if d.Properties != nil {
				e.Reason = d.Properties.ReasonString
			}
			cause.set(e)
		},
	})
	ack, err := p.Connect(ctx, c.packet(a))
	if ack != nil && ack.ReasonCode >= 0x80 {
		e := &ReasonError{Op: "connect", Code: ack.ReasonCode}
		if ack.Properties != nil {
			e.Reason = ack.Properties.ReasonString
		}
		return false, e
	}
	if err != nil {
		_ = l.Close()
		return false, fmt.Errorf("connect to %s: %w", c.url.Redacted(), err)
	}
	usable := false // until then nobody can take the birth back, so the Will does
	defer func() { c.hangUp(p, l, !usable || ctx.Err() == nil || c.o.WillOnStop) }()

	for _, m := range a.Birth {
		if err := c.send(ctx, p, m); err != nil {
			return false, fmt.Errorf("publish birth %s: %w", m.Topic, err)
		}
	}
	if err := c.resubscribe(ctx, p); err != nil {
		return false, err
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.setUp(nil)
	}()
	usable = true
	c.log.Info().Str("url", c.url.Redacted()).Msg("broker link up")
	if c.o.OnUp != nil {
		c.o.OnUp()
	}

	c.drain(ctx, p)
	if ctx.Err() != nil {
		return true, ctx.Err()
	}
	return true, cause.wait()
}

// hangUp ends the connection: politely if it still works, and soon in any case. A connection that ends against our will
// leaves its Will, or a birth already published would say for ever that we are online.
func (c *Client) hangUp(p *paho.Client, l *link, will bool) {
	l.hurry(time.Second)
	d := &paho.Disconnect{}
	if will {
		d.ReasonCode = 0x04
	}
	_ = p.Disconnect(d)
	<-p.Done()
}

// packet builds the CONNECT of one attempt. Clean start always: retained messages are the queue, so no state is wanted from an
// older session, and brokers differ most in what they keep of one. paho's packets package leaves content type, response
// topic and correlation data out of a Will: what matters of it belongs into its payload or its user properties.
func (c *Client) packet(a Attempt) *paho.Connect {
	receiveMax := uint16(16) // unset, paho allocates 65,535 slots
	maxPacket := uint32(c.o.MaxPacket)
	cp := &paho.Connect{
		ClientID:   c.o.ClientID,
		KeepAlive:  uint16((c.o.KeepAlive + time.Second - 1) / time.Second),
		CleanStart: true,
		Properties: &paho.ConnectProperties{ReceiveMaximum: &receiveMax, MaximumPacketSize: &maxPacket, RequestProblemInfo: true},
	}
	if a.Username != "" {
		cp.Username, cp.UsernameFlag = a.Username, true
	}
	if len(a.Password) > 0 {
		cp.Password, cp.PasswordFlag = a.Password, true
	}
	if w := a.Will; w != nil {
		cp.WillMessage = &paho.WillMessage{Topic: w.Topic, Payload: w.Payload, QoS: 1, Retain: w.Retain}
		cp.WillProperties = &paho.WillProperties{
			ContentType: w.ContentType, ResponseTopic: w.ResponseTopic, CorrelationData: w.CorrelationData,
		}
		for _, up := range w.Properties {
			cp.WillProperties.User.Add(up.Key, up.Value)
		}
	}
	return cp
}

// causeOnce keeps why a connection ended: the first reason paho gives, which it may give after Done.
type causeOnce struct {
	once sync.Once
	mu   sync.Mutex
	err  error
	ch   chan struct{}
}

func (o *causeOnce) init() { o.once.Do(func() { o.ch = make(chan struct{}) }) }

func (o *causeOnce) set(err error) {
	o.init()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
		close(o.ch)
	}
}

func (o *causeOnce) wait() error {
	o.init()
	select {
	case <-o.ch:
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.err
	case <-time.After(time.Second): // paho closed without a word
		return ErrLost
	}
}

// address is the host:port of an MQTT URL, with the default port of its scheme.
func address(u *url.URL) (string, error) {
	port := u.Port()
	def, ok := map[string]string{
		"mqtts": "8883", "ssl": "8883", "tls": "8883", "mqtt": "1883", "tcp": "1883",
	}[u.Scheme]
	switch {
	case !ok:
		return "", fmt.Errorf("MQTT URL %q: scheme %q is not supported: use mqtts://host:port", u.Redacted(), u.Scheme)
	case u.Hostname() == "":
		return "", fmt.Errorf("MQTT URL %q: no host: use mqtts://host:port", u.Redacted())
	case port == "":
		port = def
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

func dial(ctx context.Context, u *url.URL, conf *tls.Config) (net.Conn, error) {
	addr, err := address(u)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	switch u.Scheme {
	case "mqtt", "tcp":
		return d.DialContext(ctx, "tcp", addr)
	}
	return (&tls.Dialer{NetDialer: &d, Config: conf}).DialContext(ctx, "tcp", addr)
}
