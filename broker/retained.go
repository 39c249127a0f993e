package broker

import (
	"errors"
	"fmt"
	"time"
)

// ErrQuota: a retained message would exceed Options.MaxRetained or MaxRetainedBytes. ErrStore: it could not be made durable;
// the disk's own error is wrapped. ErrClosed: the broker is stopped.
var (
	ErrQuota  = errors.New("retained store is full")
	ErrStore  = errors.New("retained store cannot be written: check space and health of the hub's disk")
	ErrClosed = errors.New("broker is stopped")
)

// commit asks the committer to make one retained message (or the clearing of one) durable, then visible.
type commit struct {
	m    *message
	from *session // nil in process
	done chan<- error
}

const (
	maxBatch      = 2048
	maxBatchBytes = 8 << 20
)

// commitLoop is the only writer of the retained messages. Whoever comes while a batch is being fsynced waits for the next
// batch, so that the price of an fsync is shared: this is what makes "acknowledged means durable" cheap for a fleet.
func (b *Broker) commitLoop() {
	defer close(b.committed)
	for {
		var batch []commit
		size := 0
		select {
		case c := <-b.commits:
			batch, size = append(batch, c), c.m.size()
		case <-b.stopCommit:
			return
		}
	gather:
		for len(batch) < maxBatch && size < maxBatchBytes {
			select {
			case c := <-b.commits:
				batch = append(batch, c)
				size += c.m.size()
			default:
				break gather
			}
		}
		b.commit(b.fitting(batch))
	}
}

// fitting answers those that would exceed a limit and returns the rest.
func (b *Broker) fitting(batch []commit) []commit {
	n, bytes := b.retained.n, b.retainedBytes
	latest := map[string]*message{} // of this batch
	fit := batch[:0]
	for _, c := range batch {
		old, known := latest[c.m.topic]
		if !known {
			old, _ = b.retained.get(c.m.topic)
		}
		dn, dbytes := 0, 0
		if old != nil && !old.clears() {
			dn, dbytes = -1, -old.size()
		}
		if !c.m.clears() {
			dn, dbytes = dn+1, dbytes+c.m.size()
		}
		if dn > 0 && n+dn > b.o.MaxRetained {
			c.done <- fmt.Errorf("%w: limit of %d topics", ErrQuota, b.o.MaxRetained)
			continue
		}
		if dbytes > 0 && bytes+dbytes > b.o.MaxRetainedBytes {
			c.done <- fmt.Errorf("%w: limit of %d bytes", ErrQuota, b.o.MaxRetainedBytes)
			continue
		}
		latest[c.m.topic] = c.m
		n, bytes = n+dn, bytes+dbytes
		fit = append(fit, c)
	}
	return fit
}

func (b *Broker) commit(batch []commit) {
	if len(batch) == 0 {
		return
	}
	if b.store != nil {
		msgs := make([]*message, len(batch))
		for i, c := range batch {
			msgs[i] = c.m
		}
		began := time.Now()
		err := b.store.append(msgs, int64(b.retainedBytes), func(visit func(*message)) { b.retained.root.all(visit) })
		b.metrics.commitSeconds.Observe(time.Since(began).Seconds())
		if err != nil {
			b.log.Error().Err(err).Int("messages", len(batch)).Msg("retained messages not stored")
			for _, c := range batch {
				c.done <- fmt.Errorf("%w: %w", ErrStore, err)
			}
			return
		}
	}
	b.mu.Lock()
	for _, c := range batch {
		b.keep(c.m)
		b.fanOut(c.m, c.from)
	}
	b.mu.Unlock()
	for _, c := range batch {
		c.done <- nil
	}
}

// keep changes the retained messages in memory; b.mu is held for writing.
func (b *Broker) keep(m *message) {
	if old, ok := b.retained.get(m.topic); ok {
		b.retainedBytes -= old.size()
	}
	if m.clears() {
		b.retained.del(m.topic)
	} else {
		b.retained.put(m.topic, m)
		b.retainedBytes += m.size()
	}
	b.metrics.retainedTopics.Set(float64(b.retained.n))
	b.metrics.retainedBytes.Set(float64(b.retainedBytes))
}

// publish stores m if it is a state and distributes it. It returns when a retained message is durable and every subscriber has it in its queue.
func (b *Broker) publish(m *message, from *session) error {
	if !m.retain {
		b.mu.RLock()
		defer b.mu.RUnlock()
		b.fanOut(m, from)
		return nil
	}
	done := make(chan error, 1)
	select {
	case b.commits <- commit{m, from, done}:
	case <-b.stopCommit:
		return ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-b.committed: // stopped; the last batch may still have answered
		select {
		case err := <-done:
			return err
		default:
			return ErrClosed
		}
	}
}

// subscriber is one receiver in the subscription tree; deliver must not block.
type subscriber interface {
	deliver(m *message, retained bool)
}

type subscription struct {
	noLocal           bool // not to the publisher itself
	retainAsPublished bool
}

type subscribers map[subscriber]subscription

// fanOut puts m into the queue of every subscriber; b.mu is held. A subscriber whose filters overlap gets one copy.
func (b *Broker) fanOut(m *message, from *session) {
	var first subscribers
	var seen map[subscriber]bool
	b.subs.matching(m.topic, func(to subscribers) {
		if first != nil && seen == nil {
			seen = make(map[subscriber]bool, len(first))
			for s := range first {
				seen[s] = true
			}
		}
		for s, opt := range to {
			if seen[s] || opt.noLocal && from != nil && s == subscriber(from) {
				continue
			}
			if seen != nil {
				seen[s] = true
			}
			s.deliver(m, m.retain && opt.retainAsPublished)
		}
		first = to
	})
}

// retainHandling says what a new subscription wants replayed. MQTT 5 §3.8.3.1.
type retainHandling byte

const (
	replayAlways retainHandling = iota
	replayIfNew
	replayNever
)

// subscribe adds s to the tree and returns what is to be replayed to it. Both happen under one lock: a message is either
// in the replay or delivered after it.
func (b *Broker) subscribe(s subscriber, filter string, opt subscription, rh retainHandling, replay func(*message)) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	to, ok := b.subs.get(filter)
	if !ok {
		to = subscribers{}
		b.subs.put(filter, to)
	}
	_, existed := to[s]
	to[s] = opt
	if rh == replayNever || rh == replayIfNew && existed {
		return
	}
	b.retained.selected(filter, func(m *message) {
		if !m.expired(now) {
			replay(m)
		}
	})
}

func (b *Broker) unsubscribe(s subscriber, filters ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range filters {
		if to, ok := b.subs.get(f); ok {
			delete(to, s)
			if len(to) == 0 {
				b.subs.del(f)
			}
		}
	}
}
