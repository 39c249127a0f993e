package broker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"shoal.dev/shoal/internal/mqtt"
)

var _ mqtt.Carrier = (*Broker)(nil)

// Publish implements mqtt.Carrier. It asks no Session: whoever holds the Broker may publish anything that is well formed. A
// retained message is on disk when it returns nil. Concurrent calls share an fsync: publish a lot from several goroutines.
func (b *Broker) Publish(ctx context.Context, m mqtt.Message) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("publish %s: %w", m.Topic, err)
	}
	if err := mqtt.CheckTopic(m.Topic); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if m.ResponseTopic != "" {
		if err := mqtt.CheckTopic(m.ResponseTopic); err != nil {
			return fmt.Errorf("publish %s: response %w", m.Topic, err)
		}
	}
	if len(m.Payload) > b.o.MaxPayload {
		return fmt.Errorf("publish %s: %w: payload of %d bytes, limit %d", m.Topic, mqtt.ErrTooLarge, len(m.Payload), b.o.MaxPayload)
	}
	enc, err := encodeMessage(m, time.Now())
	if err != nil {
		return fmt.Errorf("publish %s: %w", m.Topic, err)
	}
	if len(enc.wire) > b.o.MaxPacket {
		return fmt.Errorf("publish %s: %w: packet of %d bytes, limit %d", m.Topic, mqtt.ErrTooLarge, len(enc.wire), b.o.MaxPacket)
	}
	b.metrics.messagesIn.Inc()
	if err := b.publish(enc, nil); err != nil {
		return fmt.Errorf("publish %s: %w", m.Topic, err)
	}
	return nil
}

// Subscribe implements mqtt.Carrier: when it returns, h has been called with every retained message of filters. Messages for
// h are never dropped; while many wait, network publishers are held back.
func (b *Broker) Subscribe(ctx context.Context, h func(mqtt.Message), filters ...string) (func(), error) {
	if len(filters) == 0 {
		return nil, fmt.Errorf("subscribe: %w: no filter", mqtt.ErrInvalidTopic)
	}
	for _, f := range filters {
		if err := mqtt.CheckFilter(f); err != nil {
			return nil, fmt.Errorf("subscribe: %w", err)
		}
	}
	s := &local{b: b, filters: filters, h: h, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	b.localMu.Lock()
	if b.closed {
		b.localMu.Unlock()
		return nil, fmt.Errorf("subscribe: %w", ErrClosed)
	}
	b.locals[s] = struct{}{}
	b.localWork.Add(1)
	b.localMu.Unlock()
	go s.run()
	for _, f := range filters {
		b.subscribe(s, f, subscription{}, replayAlways, func(m *message) { s.put(delivery{m: m, retained: true}) })
	}
	replayed := make(chan struct{})
	s.put(delivery{mark: replayed})
	select {
	case <-replayed:
		return sync.OnceFunc(s.stop), nil
	case <-s.ended:
		return nil, fmt.Errorf("subscribe: %w", ErrClosed)
	case <-ctx.Done():
		s.stop()
		return nil, fmt.Errorf("subscribe: %w", ctx.Err())
	}
}

// local is one in-process subscription with its queue, which has no bound of its own: see heldBack.
type local struct {
	b       *Broker
	filters []string
	h       func(mqtt.Message)
	wake    chan struct{}
	ended   chan struct{}

	mu      sync.Mutex
	queue   []delivery
	stopped bool
	relief  chan struct{} // not nil while publishers are held back; closed when they may go on
}

type delivery struct {
	m        *message
	retained bool
	mark     chan struct{} // closed instead of delivering
}

// heldBack is how many messages may wait for one handler before network publishers wait too. In-process publishers
// never do: a handler that publishes would wait for itself.
const heldBack = 20_000

func (s *local) deliver(m *message, retained bool) { s.put(delivery{m: m, retained: retained}) }

func (s *local) put(d delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	s.queue = append(s.queue, d)
	if len(s.queue) > heldBack && s.relief == nil && d.m != nil && !d.retained {
		s.relief = make(chan struct{})
		s.b.holdBack(s.relief)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *local) run() {
	defer s.b.localWork.Done()
	defer close(s.ended)
	for range s.wake {
		for {
			s.mu.Lock()
			batch, stopped := s.queue, s.stopped
			s.queue = nil
			if s.relief != nil {
				close(s.relief)
				s.relief = nil
			}
			s.mu.Unlock()
			if stopped {
				return
			}
			if len(batch) == 0 {
				break
			}
			for _, d := range batch {
				if !s.handle(d) {
					return
				}
			}
		}
	}
}

func (s *local) handle(d delivery) bool {
	s.mu.Lock()
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		return false
	}
	if d.mark != nil {
		close(d.mark)
		return true
	}
	m, err := d.m.deliver(d.retained)
	if err != nil {
		s.b.log.Error().Err(err).Msg("message not delivered in process")
		return true
	}
	s.b.metrics.messagesOut.Inc()
	s.h(m)
	return true
}

func (s *local) stop() {
	s.b.unsubscribe(s, s.filters...)
	s.mu.Lock()
	s.stopped = true
	s.queue = nil
	if s.relief != nil {
		close(s.relief)
		s.relief = nil
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	s.b.localMu.Lock()
	delete(s.b.locals, s)
	s.b.localMu.Unlock()
}

// holdBack makes network publishers wait for relief; the newest handler in trouble counts.
func (b *Broker) holdBack(relief chan struct{}) { b.relief.Store(&relief) }

// awaitRelief is called from a network publisher's goroutine before its next message is taken.
func (b *Broker) awaitRelief(s *session) {
	relief := b.relief.Load()
	if relief == nil {
		return
	}
	select {
	case <-*relief:
		b.relief.CompareAndSwap(relief, nil)
	case <-s.ctx.Done():
	}
}
