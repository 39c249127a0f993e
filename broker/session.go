package broker

import (
	"context"
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/time/rate"

	"shoal.dev/shoal/internal/mqtt"
)

// session is one network connection from CONNECT to its end. There are no sessions beyond a connection: retained messages are
// the queue, so nothing is kept for a client that is away (B4, B11), and nothing but QoS 0 leaves (B1 to B3).
type session struct {
	b      *Broker
	conn   *conn
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	gone   chan struct{} // closed when nothing of the session is left
	rate   *rate.Limiter

	// Set by the connection's own goroutine at CONNECT, before anyone else knows the session.
	cl        *mochi.Client
	id        string
	identity  string
	auth      mqtt.Session
	will      *message
	maxPacket int // what the client is willing to receive, 0 = anything

	// Used by the connection's own goroutine only.
	graceful bool                // the client said goodbye: no Will
	filters  map[string]struct{} // subscribed to
	refusals int

	mu       sync.Mutex
	queue    []outgoing
	pending  map[string]int // while the queue is long: topic → place of its newest state, counted from base
	base     int            // how many left the queue since pending was built
	bytes    int            // of live messages in queue
	draining bool
	held     bool // a SUBACK is to go out first
	closed   bool
}

type outgoing struct {
	m        *message
	retained bool // send with the retain flag
	replay   bool // from the retained store: paced by the reader and not counted against it
}

const (
	// coalesceFrom is the queue length from which a newer state of a topic replaces the older one that still waits. A
	// reader that keeps up sees every message; one that lags sees the newest state of every topic, which is what retained
	// messages mean.
	coalesceFrom = 64
	// perMessage is what a queued message costs besides its bytes.
	perMessage = 64
	// writeBatch is how much is written at once when much is waiting.
	writeBatch = 32 << 10
)

func newSession(b *Broker, c *conn) *session {
	s := &session{b: b, conn: c, gone: make(chan struct{}), filters: map[string]struct{}{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.rate = rate.NewLimiter(rate.Limit(b.o.PacketRate), b.o.PacketBurst)
	return s
}

// deliver implements subscriber.
func (s *session) deliver(m *message, retained bool) { s.put(outgoing{m: m, retained: retained}) }

func (s *session) put(o outgoing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || o.m.retain && s.replace(o) {
		return
	}
	if !o.replay {
		size := len(o.m.wire) + perMessage
		if s.bytes > 0 && s.bytes+size > s.b.o.MaxQueueBytes {
			s.hangUp(packets.ErrQuotaExceeded, "slow-reader")
			return
		}
		s.bytes += size
	}
	s.queue = append(s.queue, o)
	if s.pending != nil && o.m.retain {
		s.pending[o.m.topic] = s.base + len(s.queue) - 1
	}
	s.startDrain()
}

// startDrain is called with s.mu held.
func (s *session) startDrain() {
	if s.draining || s.held || s.closed || len(s.queue) == 0 {
		return
	}
	s.draining = true
	s.b.work.Add(1)
	go s.drain()
}

// hold keeps a silent queue silent. One that is being written is not stopped: MQTT lets messages overtake a SUBACK.
func (s *session) hold(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = on
	s.startDrain()
}

// replace puts a newer state in the place of the one that waits, if the queue is long; s.mu is held.
func (s *session) replace(o outgoing) bool {
	if s.pending == nil {
		if len(s.queue) < coalesceFrom {
			return false
		}
		s.base = 0
		s.pending = make(map[string]int, len(s.queue))
		for i, q := range s.queue {
			if q.m.retain {
				s.pending[q.m.topic] = i
			}
		}
	}
	i, ok := s.pending[o.m.topic]
	if !ok || i < s.base {
		return false
	}
	q := &s.queue[i-s.base]
	if !q.replay {
		s.bytes += len(o.m.wire) - len(q.m.wire)
	}
	q.m = o.m
	s.b.metrics.coalesced.Inc()
	return true
}

// take moves what fits into one write from the queue to buf; it reports false when there is nothing left and drain must end.
func (s *session) take(buf []byte, now time.Time) (_ []byte, n int, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := 0
	for ; i < len(s.queue) && len(buf) < writeBatch && !s.closed; i++ {
		o := s.queue[i]
		s.queue[i] = outgoing{}
		if !o.replay {
			s.bytes -= len(o.m.wire) + perMessage
		}
		at := len(buf)
		var fresh bool
		buf, fresh = o.m.appendTo(buf, o.retained, now)
		switch {
		case !fresh:
		case s.maxPacket > 0 && len(buf)-at > s.maxPacket: // [MQTT-3.1.2-24]
			buf = buf[:at]
			s.b.metrics.refused.WithLabelValues("larger-than-client-takes").Inc()
			s.b.log.Warn().Str("identity", s.identity).Str("topic", o.m.topic).Int("limit", s.maxPacket).
				Msg("message not delivered: larger than the client takes")
		default:
			n++
		}
	}
	s.queue = s.queue[i:]
	s.base += i
	if len(s.queue) == 0 {
		s.queue, s.pending, s.base = nil, nil, 0
	}
	if len(buf) == 0 || s.closed {
		s.draining = false
		return buf, 0, false
	}
	return buf, n, true
}

// drain writes the queue to the connection, as fast as the reader takes it, and ends when the queue is empty: an idle
// connection costs no goroutine for writing.
func (s *session) drain() {
	defer s.b.work.Done()
	buf := s.b.buffers.Get().(*[]byte) //nolint:errcheck // only drain puts
	defer func() {
		if cap(*buf) <= 4*writeBatch {
			s.b.buffers.Put(buf)
		}
	}()
	for {
		out, n, more := s.take((*buf)[:0], time.Now())
		*buf = out
		if !more {
			return
		}
		if _, err := s.conn.Write(out); err != nil {
			s.mu.Lock()
			s.draining = false
			if isTimeout(err) {
				s.hangUp(packets.ErrQuotaExceeded, "slow-reader")
			}
			s.mu.Unlock()
			_ = s.conn.Close()
			return
		}
		s.b.metrics.messagesOut.Add(float64(n))
	}
}

// evict ends the session from outside; its own goroutine cleans up.
func (s *session) evict(code packets.Code, why string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hangUp(code, why)
}

// hangUp takes nothing more for the client and tells it why within a second; s.mu is held.
func (s *session) hangUp(code packets.Code, why string) bool {
	if s.closed {
		return false
	}
	s.closed = true
	s.queue, s.pending = nil, nil
	s.cancel()
	s.b.metrics.evicted.WithLabelValues(why).Inc()
	s.b.log.Info().Str("identity", s.identity).Str("client", s.id).Str("reason", why).Msg("client disconnected by the broker")
	s.b.work.Add(1)
	go func() {
		defer s.b.work.Done()
		s.conn.hurry(time.Second)
		if s.cl != nil {
			_ = s.b.server.DisconnectClient(s.cl, code)
		}
		_ = s.conn.Close()
	}()
	return true
}

// end is the last thing that happens to a session, in its own goroutine. The Will is out before a take-over goes on, so that
// the birth of the new connection is always the later message (B5).
func (s *session) end() {
	s.mu.Lock()
	s.closed = true
	s.queue, s.pending = nil, nil
	s.mu.Unlock()
	s.cancel()
	filters := make([]string, 0, len(s.filters))
	for f := range s.filters {
		filters = append(filters, f)
	}
	s.b.unsubscribe(s, filters...)
	if s.will != nil && s.auth != nil && !s.graceful {
		s.b.metrics.wills.Inc()
		if err := s.b.publish(s.will, s); err != nil {
			s.b.log.Error().Err(err).Str("identity", s.identity).Str("topic", s.will.topic).Msg("will not published")
		}
	}
	if s.auth != nil {
		s.b.release(s)
		s.b.log.Debug().Str("identity", s.identity).Str("client", s.id).Bool("graceful", s.graceful).Msg("client gone")
	}
	close(s.gone)
}

// claim makes s the one session with its client id. A session of the same identity that has it is ended first and waited
// for; one of another identity keeps it (B12).
func (b *Broker) claim(s *session) *packets.Code {
	deadline := time.NewTimer(b.o.ConnectTimeout)
	defer deadline.Stop()
	for {
		b.sessionMu.Lock()
		old := b.sessions[s.id]
		if old == nil {
			defer b.sessionMu.Unlock()
			if b.stopping {
				return &packets.ErrServerShuttingDown
			}
			b.sessions[s.id] = s
			b.metrics.connections.Set(float64(len(b.sessions)))
			return nil
		}
		b.sessionMu.Unlock()
		if old.identity != s.identity {
			return &packets.ErrClientIdentifierNotValid
		}
		old.evict(packets.ErrSessionTakenOver, "taken-over")
		select {
		case <-old.gone:
		case <-s.ctx.Done():
			return &packets.ErrServerShuttingDown
		case <-deadline.C:
			return &packets.ErrServerBusy
		}
	}
}

func (b *Broker) release(s *session) {
	b.sessionMu.Lock()
	defer b.sessionMu.Unlock()
	if b.sessions[s.id] == s {
		delete(b.sessions, s.id)
		b.metrics.connections.Set(float64(len(b.sessions)))
	}
}

// Disconnect ends every connection whose identity matches, as a revocation wants it, and returns how many there were. That they
// cannot come back is the Authenticator's part.
func (b *Broker) Disconnect(match func(identity string) bool) int {
	b.sessionMu.Lock()
	var hit []*session
	for _, s := range b.sessions {
		if match(s.identity) {
			hit = append(hit, s)
		}
	}
	b.sessionMu.Unlock()
	n := 0
	for _, s := range hit {
		if s.evict(packets.ErrAdministrativeAction, "revoked") {
			n++
		}
	}
	return n
}
