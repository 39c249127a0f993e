package mqtt

import (
	"bytes"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// link is the connection as paho sees it. It adds what paho lacks: one write (and so one TLS record) a packet, a write
// deadline, the limit on incoming packets that paho announces and does not enforce, and the time of the last byte.
type link struct {
	net.Conn
	mu      sync.Mutex // sync.Locker: paho holds it while it writes one packet
	out     bytes.Buffer
	timeout time.Duration
	closing atomic.Bool

	lastRead atomic.Int64 // unix nanoseconds
	written  atomic.Int64 // bytes handed to the kernel or below
	arrived  atomic.Int64 // of written, those the broker is known to have read
	traffic  *traffic     // of the client, over all its connections

	limit  int // of one incoming packet in bytes
	header int // bytes of the current fixed header seen
	length int // remaining length so far, then what is left of the packet
	shift  int
}

func newLink(c net.Conn, timeout time.Duration, limit int) *link {
	l := &link{Conn: c, timeout: timeout, limit: limit}
	l.lastRead.Store(time.Now().UnixNano())
	return l
}

func (l *link) Lock() { l.mu.Lock() }

// Unlock sends the packet. An error closes the connection, which the reader notices: paho has no way to hear of it here.
func (l *link) Unlock() {
	defer l.mu.Unlock()
	if l.out.Len() == 0 {
		return
	}
	if !l.closing.Load() {
		_ = l.SetWriteDeadline(time.Now().Add(l.timeout))
	}
	l.written.Add(int64(l.out.Len()))
	if _, err := l.Conn.Write(l.out.Bytes()); err != nil {
		_ = l.Conn.Close()
	}
	l.out.Reset()
	if l.out.Cap() > 4096 {
		l.out = bytes.Buffer{} // an agent is small at rest
	}
}

func (l *link) Write(p []byte) (int, error) { return l.out.Write(p) }

// hurry bounds everything that is written from now on, a write under way included.
func (l *link) hurry(d time.Duration) {
	l.closing.Store(true)
	_ = l.SetWriteDeadline(time.Now().Add(d))
}

func (l *link) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if n > 0 {
		l.lastRead.Store(time.Now().UnixNano())
		if l.traffic != nil {
			l.traffic.received.Add(int64(n))
			l.traffic.heard.Store(time.Now().UnixNano())
		}
		if ferr := l.follow(p[:n]); ferr != nil {
			return 0, ferr
		}
	}
	return n, err
}

// follow tracks packet borders, so that a declared length above the limit ends the connection before it is allocated.
func (l *link) follow(p []byte) error {
	for len(p) > 0 {
		if l.header < 0 { // inside a packet
			n := min(len(p), l.length)
			l.length -= n
			p = p[n:]
			if l.length == 0 {
				l.header = 0
			}
			continue
		}
		b := p[0]
		p = p[1:]
		l.header++
		if l.header == 1 {
			l.length, l.shift = 0, 0
			continue
		}
		l.length |= int(b&0x7f) << l.shift
		l.shift += 7
		if l.length > l.limit {
			return fmt.Errorf("%w: the broker sends a packet of at least %d bytes, limit %d", ErrTooLarge, l.length, l.limit)
		}
		switch {
		case b&0x80 != 0 && l.shift > 21:
			return fmt.Errorf("%w: malformed length", ErrNotMQTT)
		case b&0x80 != 0:
		case l.length == 0:
			l.header = 0
		default:
			l.header = -1
		}
	}
	return nil
}

// traffic is what came over all connections of a client.
type traffic struct{ received, heard atomic.Int64 }

// Received is the number of bytes that came from the broker since New, without those of TLS and TCP.
func (c *Client) Received() int64 { return c.traffic.received.Load() }

// Heard is when the last byte came from the broker; zero before the first. While a large message crawls over a slow link this
// is the only sign that it is coming.
func (c *Client) Heard() time.Time {
	if n := c.traffic.heard.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}
