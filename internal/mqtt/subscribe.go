package mqtt

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// perSubscribe is how many filters go into one SUBSCRIBE: AWS IoT allows no more.
const perSubscribe = 8

type subscription struct {
	filters []string
	h       func(Message)
	box     inbox
}

// inbox carries messages from paho's goroutine, which must not block, to the handler's.
type inbox struct {
	limit int
	ready chan struct{} // holds a token while there is something to do

	mu     sync.Mutex
	queue  []Message
	bytes  int
	closed bool
}

func (b *inbox) put(m Message) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return true
	}
	size := len(m.Payload) + len(m.Topic) + 64
	if b.bytes+size > b.limit && len(b.queue) > 0 {
		return false
	}
	b.queue = append(b.queue, m)
	b.bytes += size
	b.signal()
	return true
}

func (b *inbox) signal() {
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.queue = nil
	b.signal()
}

// next blocks until there is a message; ok is false once the inbox is closed.
func (b *inbox) next() (m Message, ok bool) {
	for {
		b.mu.Lock()
		if b.closed {
			b.mu.Unlock()
			return Message{}, false
		}
		if len(b.queue) > 0 {
			m = b.queue[0]
			b.queue[0] = Message{}
			b.queue = b.queue[1:]
			b.bytes -= len(m.Payload) + len(m.Topic) + 64
			if len(b.queue) == 0 {
				b.queue = nil
			}
			b.mu.Unlock()
			return m, true
		}
		b.mu.Unlock()
		<-b.ready
	}
}

// start runs the handler's goroutine; c.mu is held and Run is under way.
func (c *Client) start(s *subscription) {
	c.work.Add(1)
	go func() {
		defer c.work.Done()
		for {
			m, ok := s.box.next()
			if !ok {
				return
			}
			s.h(m)
		}
	}()
}

// Subscribe implements Carrier. Without a connection it returns nil at once and the filters are subscribed to with the
// next one; a refusal is then reported to OnRefused. With a connection it waits for the broker's answer. Two
// subscriptions that overlap each get every message, and a message replayed for one may reach the other again.
func (c *Client) Subscribe(ctx context.Context, h func(Message), filters ...string) (func(), error) {
	if len(filters) == 0 {
		return nil, fmt.Errorf("subscribe: %w: no filter", ErrInvalidTopic)
	}
	for _, f := range filters {
		if err := CheckFilter(f); err != nil {
			return nil, fmt.Errorf("subscribe: %w", err)
		}
	}
	s := &subscription{filters: slices.Clone(filters), h: h}
	s.box.limit, s.box.ready = c.o.MaxInbox, make(chan struct{}, 1)
	c.mu.Lock()
	select {
	case <-c.done:
		c.mu.Unlock()
		return nil, fmt.Errorf("subscribe: %w", ErrClosed)
	default:
	}
	c.subs = append(c.subs, s)
	if c.started {
		c.start(s)
	}
	up := c.up
	c.mu.Unlock()

	stop := sync.OnceFunc(func() { c.unsubscribe(s) })
	if up == nil {
		return stop, nil
	}
	refused, err := c.subscribe(ctx, up, s.filters)
	if errors.Is(err, ErrLost) && ctx.Err() == nil { // the next connection subscribes
		return stop, nil
	}
	for f, e := range refused {
		err = errors.Join(err, fmt.Errorf("subscribe %s: %w", f, e))
	}
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// subscribe sends filters and returns those the broker refused, with the reason.
func (c *Client) subscribe(ctx context.Context, p *paho.Client, filters []string) (map[string]error, error) {
	refused := map[string]error{}
	for chunk := range slices.Chunk(filters, perSubscribe) {
		req := &paho.Subscribe{}
		for _, f := range chunk {
			req.Subscriptions = append(req.Subscriptions, paho.SubscribeOptions{Topic: f, QoS: 1})
		}
		ack, err := await(ctx, c, p, func(ctx context.Context) (*paho.Suback, error) { return p.Subscribe(ctx, req) })
		if ack == nil || len(ack.Reasons) != len(chunk) {
			if err == nil {
				err = ErrNotMQTT
			}
			return refused, fmt.Errorf("subscribe %s: %w", chunk[0], lost(p, err))
		}
		for i, code := range ack.Reasons {
			if code >= 0x80 {
				e := &ReasonError{Op: "subscribe", Code: code}
				if ack.Properties != nil {
					e.Reason = ack.Properties.ReasonString
				}
				refused[chunk[i]] = e
			}
		}
	}
	return refused, nil
}

// resubscribe replays every subscription on a new connection and makes the connection usable. Both happen under one look
// at the list: a Subscribe that comes later sees the connection and sends its own SUBSCRIBE.
func (c *Client) resubscribe(ctx context.Context, p *paho.Client) error {
	done := map[string]bool{}
	for {
		c.mu.Lock()
		var todo []string
		for _, f := range c.filters() {
			if !done[f] {
				done[f] = true
				todo = append(todo, f)
			}
		}
		if len(todo) == 0 {
			c.setUp(p)
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		refused, err := c.subscribe(ctx, p, todo)
		if err != nil {
			return err
		}
		for f, e := range refused {
			c.refused(f, e)
		}
	}
}

// filters is the union of all filters in use; c.mu is held.
func (c *Client) filters() []string {
	var all []string
	for _, s := range c.subs {
		all = append(all, s.filters...)
	}
	for t := range c.answers {
		all = append(all, t)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (c *Client) unsubscribe(s *subscription) {
	s.box.close()
	c.mu.Lock()
	c.subs = slices.DeleteFunc(c.subs, func(o *subscription) bool { return o == s })
	inUse := c.filters()
	var gone []string
	for _, f := range s.filters {
		if !slices.Contains(inUse, f) {
			gone = append(gone, f)
		}
	}
	up := c.up
	c.mu.Unlock()
	if up == nil || len(gone) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), min(c.o.PacketTimeout, 10*time.Second))
	defer cancel()
	for chunk := range slices.Chunk(gone, perSubscribe) {
		if _, err := await(ctx, c, up, func(ctx context.Context) (*paho.Unsuback, error) {
			return up.Unsubscribe(ctx, &paho.Unsubscribe{Topics: chunk})
		}); err != nil {
			c.log.Debug().Err(err).Msg("unsubscribe")
			return
		}
	}
}

// receive is called by paho, one message at a time, and never blocks.
func (c *Client) receive(l *link, cause *causeOnce) func(paho.PublishReceived) (bool, error) {
	return func(r paho.PublishReceived) (bool, error) {
		m := fromPublish(r.Packet)
		if m.Topic == "" {
			return true, nil // an alias we did not offer
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if _, ok := c.answers[m.Topic]; ok && !m.Retain {
			if ch, ok := c.pending[string(m.CorrelationData)]; ok {
				delete(c.pending, string(m.CorrelationData))
				ch <- m // holds one
			}
		}
		for _, s := range c.subs {
			if !slices.ContainsFunc(s.filters, func(f string) bool { return Match(f, m.Topic) }) {
				continue
			}
			if !s.box.put(m) {
				cause.set(fmt.Errorf("%w: more than %d bytes wait on %s", ErrSlowHandler, c.o.MaxInbox, s.filters[0]))
				_ = l.Close()
			}
		}
		return true, nil
	}
}

// Request publishes m with responseTopic and fresh correlation data and returns the answer. It needs a connection; if that
// breaks on the way the answer is lost and ctx decides how long the wait is. The subscription to responseTopic is kept,
// so use one response topic per client.
func (c *Client) Request(ctx context.Context, m Message, responseTopic string) (Message, error) {
	if err := CheckTopic(responseTopic); err != nil {
		return Message{}, fmt.Errorf("request %s: response %w", m.Topic, err)
	}
	p, err := c.connection()
	if err != nil {
		return Message{}, fmt.Errorf("request %s: %w", m.Topic, err)
	}
	c.mu.Lock()
	confirmed := c.answers[responseTopic]
	c.answers[responseTopic] = confirmed // from now on every new connection subscribes to it
	c.mu.Unlock()
	if !confirmed {
		refused, err := c.subscribe(ctx, p, []string{responseTopic})
		if err == nil {
			err = refused[responseTopic]
		}
		c.mu.Lock()
		if err != nil {
			delete(c.answers, responseTopic)
			c.mu.Unlock()
			return Message{}, fmt.Errorf("request %s: subscribe %s: %w", m.Topic, responseTopic, err)
		}
		c.answers[responseTopic] = true
		c.mu.Unlock()
	}

	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	ch := make(chan Message, 1)
	c.mu.Lock()
	c.pending[string(id)] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.pending, string(id))
	}()
	m.ResponseTopic, m.CorrelationData = responseTopic, id
	if err := c.Publish(ctx, m); err != nil {
		return Message{}, fmt.Errorf("request: %w", err)
	}
	select {
	case answer := <-ch:
		return answer, nil
	case <-c.done:
		return Message{}, fmt.Errorf("request %s: %w", m.Topic, ErrClosed)
	case <-ctx.Done():
		return Message{}, fmt.Errorf("request %s: no answer: %w", m.Topic, ctx.Err())
	}
}
