package mqtt

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
)

// outbox holds the newest unacknowledged message of each topic, oldest topic first. Its size is bounded by the number of
// topics its owner writes to.
type outbox struct {
	wake chan struct{} // holds a token while there may be something new

	mu    sync.Mutex
	topic map[string]*queued
	order []*queued
}

type queued struct {
	m   Message
	rev uint64 // grows when m is replaced, so that an acknowledgement of the older value does not drop the newer
}

func (b *outbox) put(m Message) {
	b.mu.Lock()
	if q := b.topic[m.Topic]; q != nil {
		q.m = m
		q.rev++
	} else {
		if b.topic == nil {
			b.topic = map[string]*queued{}
		}
		q := &queued{m: m}
		b.topic[m.Topic] = q
		b.order = append(b.order, q)
	}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *outbox) next() (m Message, rev uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.order) == 0 {
		return Message{}, 0, false
	}
	return b.order[0].m, b.order[0].rev, true
}

// sent drops the message of topic, unless it was replaced since; then it goes to the end, so that one busy topic does not
// starve the others.
func (b *outbox) sent(topic string, rev uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.order[0]
	b.order = b.order[1:]
	if q.rev != rev {
		b.order = append(b.order, q)
		return
	}
	delete(b.topic, topic)
}

func (b *outbox) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.order)
}

// drain publishes what is in the outbox until the connection ends. Only Run calls it, one connection at a time.
func (c *Client) drain(ctx context.Context, p *paho.Client) {
	for {
		m, rev, ok := c.box.next()
		if !ok {
			select {
			case <-c.box.wake:
				continue
			case <-p.Done():
				return
			case <-ctx.Done():
				return
			}
		}
		err := c.send(ctx, p, m)
		var reason *ReasonError
		switch {
		case err == nil:
			c.box.sent(m.Topic, rev)
		case errors.As(err, &reason) && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrQuota):
			c.refused(m.Topic, err)
			c.box.sent(m.Topic, rev)
		default: // the message stays; a connection that works badly is given time
			c.log.Debug().Err(err).Str("topic", m.Topic).Msg("outbox waits")
			select {
			case <-time.After(c.backoff(2)):
			case <-p.Done():
				return
			case <-ctx.Done():
				return
			}
		}
	}
}
