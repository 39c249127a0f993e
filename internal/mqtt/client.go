package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/rs/zerolog"
)

// Options configure a Client. Only URL and ClientID are required.
type Options struct {
	// URL of the broker: mqtts://host[:8883] (also ssl, tls), mqtt://host[:1883] (also tcp) without encryption,
	// wss://host[:443]/path and ws://host[:80]/path over WebSocket.
	URL      string
	ClientID string
	TLS      *tls.Config // nil: the system's CAs. GetClientCertificate is asked on every attempt

	Username string
	Password []byte
	Will     *Message

	// Attempt, if set, is asked before every connection attempt and replaces Username, Password and Will. An error counts as
	// a failed attempt.
	Attempt func(context.Context) (Attempt, error)

	// KeepAlive, 60 s by default, in whole seconds. The broker may impose its own.
	KeepAlive time.Duration
	// PacketTimeout bounds the wait for each answer of the broker and each write, 60 s by default: a 48 KiB message
	// needs that on a bad link.
	PacketTimeout time.Duration
	// ConnectTimeout bounds dial and TLS handshake, 30 s by default.
	ConnectTimeout time.Duration
	// BackoffBase and BackoffMax shape the pause before an attempt: random in [0, min(BackoffMax, BackoffBase·2ⁿ)), from
	// the first attempt on, so that a fleet does not redial in one instant. Defaults 1 s and 2 min.
	BackoffBase, BackoffMax time.Duration
	// MaxPacket bounds one incoming packet, 256 KiB by default: the broker may be someone else's.
	MaxPacket int
	// MaxInbox bounds the payload bytes that wait for one slow handler, 64 MiB by default. Beyond it the link is dropped,
	// which loses nothing retained: it is replayed.
	MaxInbox int
	// WillOnStop asks the broker to publish the Will also when Run ends normally ("disconnect with Will message").
	WillOnStop bool

	// OnUp is called when a connection is usable: births are acknowledged, subscriptions are in place. OnDown is called
	// when an attempt or a connection fails, with an error that says what to do; errors.Is tells the kind. Both are called
	// from Run's goroutine. OnRefused is called, from any goroutine, when the broker refuses a filter on a reconnect or a
	// message of the outbox, which is then dropped. None may block for long.
	OnUp      func()
	OnDown    func(error)
	OnRefused func(topicOrFilter string, err error)

	Log zerolog.Logger
}

// Attempt is what one connection attempt says of itself. Presence works like this: a fresh nonce goes into Will and Birth, so
// that a late Will of an older connection is told apart.
type Attempt struct {
	Username string
	Password []byte
	Will     *Message
	Birth    []Message // published in order right after the connection is accepted, before anything else
}

// Client is a Carrier over one MQTT 5 connection at a time, which Run keeps up. All methods are safe for concurrent use.
type Client struct {
	o    Options
	url  *url.URL
	log  zerolog.Logger
	box  outbox
	done chan struct{} // closed when Run has returned
	work sync.WaitGroup

	traffic traffic

	mu      sync.Mutex
	up      *paho.Client  // nil while there is no usable connection
	changed chan struct{} // closed and replaced when up changes
	subs    []*subscription
	started bool
	pending map[string]chan<- Message // answers awaited, by correlation data
	answers map[string]bool           // response topics; true once a broker has confirmed the subscription
}

// New checks the options. Nothing is dialled before Run.
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("parse MQTT URL: %w", err)
	}
	if _, err := address(u); err != nil {
		return nil, err
	}
	if o.ClientID == "" {
		return nil, errors.New("MQTT client id is empty")
	}
	if o.Will != nil {
		if err := CheckTopic(o.Will.Topic); err != nil {
			return nil, fmt.Errorf("will: %w", err)
		}
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.KeepAlive, 60*time.Second)
	def(&o.PacketTimeout, 60*time.Second)
	def(&o.ConnectTimeout, 30*time.Second)
	def(&o.BackoffBase, time.Second)
	def(&o.BackoffMax, 2*time.Minute)
	if o.KeepAlive < time.Second || o.KeepAlive > 65535*time.Second {
		return nil, fmt.Errorf("keep-alive %s is out of range: 1 s to 65535 s", o.KeepAlive)
	}
	if o.MaxPacket <= 0 {
		o.MaxPacket = 256 << 10
	}
	if o.MaxInbox <= 0 {
		o.MaxInbox = 64 << 20
	}
	return &Client{
		o: o, url: u, log: o.Log,
		box:     outbox{wake: make(chan struct{}, 1)},
		done:    make(chan struct{}),
		changed: make(chan struct{}),
		pending: map[string]chan<- Message{},
		answers: map[string]bool{},
	}, nil
}

// Up reports whether there is a usable connection now.
func (c *Client) Up() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up != nil
}

// AwaitUp returns nil once there is a usable connection.
func (c *Client) AwaitUp(ctx context.Context) error {
	for {
		c.mu.Lock()
		up, changed := c.up, c.changed
		c.mu.Unlock()
		if up != nil {
			return nil
		}
		select {
		case <-changed:
		case <-c.done:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrOffline, ctx.Err())
		}
	}
}

// setUp publishes the connection to callers; nil takes it away. c.mu is held.
func (c *Client) setUp(p *paho.Client) {
	c.up = p
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Client) connection() (*paho.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.up == nil {
		return nil, ErrOffline
	}
	return c.up, nil
}

// Publish sends m with QoS 1 and returns nil when the broker has acknowledged it. Without a connection it returns ErrOffline at
// once: for state that must arrive some time use Enqueue.
func (c *Client) Publish(ctx context.Context, m Message) error {
	if err := CheckTopic(m.Topic); err != nil {
		return err
	}
	p, err := c.connection()
	if err != nil {
		return fmt.Errorf("publish %s: %w", m.Topic, err)
	}
	if err := c.send(ctx, p, m); err != nil {
		return fmt.Errorf("publish %s: %w", m.Topic, err)
	}
	return nil
}

// send honours ctx even while paho is stuck in a write to a dead link, which ends with the link's own deadline.
func (c *Client) send(ctx context.Context, p *paho.Client, m Message) error {
	res, err := await(ctx, c, p, func(ctx context.Context) (*paho.PublishResponse, error) {
		return p.Publish(ctx, toPublish(m))
	})
	if res != nil && res.ReasonCode >= 0x80 {
		e := &ReasonError{Op: "publish", Code: res.ReasonCode}
		if res.Properties != nil {
			e.Reason = res.Properties.ReasonString
		}
		return e
	}
	return lost(p, err)
}

// lost tells a broken connection, for which paho has many words, from a broker that does not answer.
func lost(p *paho.Client, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return explain(err)
	}
	select {
	case <-p.Done():
		if !errors.Is(err, ErrLost) {
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
	case <-time.After(200 * time.Millisecond): // paho reports the loss to callers before it is done
	}
	return explain(err)
}

// await runs one exchange with the broker and ends when it, ctx or the connection ends. paho itself forgets what is in flight when
// a connection without a session breaks, and lets its callers wait for their timeout.
func await[T any](ctx context.Context, c *Client, p *paho.Client, f func(context.Context) (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var zero T
	ch := make(chan result, 1)
	c.mu.Lock()
	if !c.started {
		c.mu.Unlock()
		return zero, ErrOffline
	}
	c.work.Add(1)
	c.mu.Unlock()
	fctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer c.work.Done()
		v, err := f(fctx)
		ch <- result{v, err}
	}()
	select {
	case r := <-ch:
		return r.v, r.err
	case <-ctx.Done():
		return zero, ctx.Err()
	case <-p.Done():
	}
	select { // the answer may have come with the end
	case r := <-ch:
		if r.err == nil {
			return r.v, nil
		}
	default:
	}
	return zero, ErrLost
}

// Enqueue hands over the newest value of m.Topic and returns at once. It is published as soon as a link is there; a newer
// value of the same topic takes the place of one not yet acknowledged. Nothing is kept across a restart of the process. A
// message may be delivered twice. An invalid topic or a refusal by the broker is reported to OnRefused.
func (c *Client) Enqueue(m Message) {
	if err := CheckTopic(m.Topic); err != nil {
		c.refused(m.Topic, err)
		return
	}
	c.box.put(m)
}

// Queued is the number of topics whose newest value is not acknowledged yet.
func (c *Client) Queued() int { return c.box.len() }

func (c *Client) refused(topic string, err error) {
	c.log.Error().Err(err).Str("topic", clip(topic)).Msg("broker refused")
	if c.o.OnRefused != nil {
		c.o.OnRefused(topic, err)
	}
}

func toPublish(m Message) *paho.Publish {
	p := &paho.Publish{QoS: 1, Retain: m.Retain, Topic: m.Topic, Payload: m.Payload, Properties: &paho.PublishProperties{
		ContentType: m.ContentType, ResponseTopic: m.ResponseTopic, CorrelationData: m.CorrelationData,
	}}
	for _, up := range m.Properties {
		p.Properties.User.Add(up.Key, up.Value)
	}
	return p
}

func fromPublish(p *paho.Publish) Message {
	m := Message{Topic: p.Topic, Payload: p.Payload, Retain: p.Retain, QoS: p.QoS}
	if pr := p.Properties; pr != nil {
		m.ContentType, m.ResponseTopic, m.CorrelationData = pr.ContentType, pr.ResponseTopic, pr.CorrelationData
		for _, up := range pr.User {
			m.Properties = append(m.Properties, Property{up.Key, up.Value})
		}
	}
	return m
}
