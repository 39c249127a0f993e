package broker

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// conn is a client's connection as mochi sees it. It starts with the CONNECT already read and bounded, sets its own
// deadlines, and keeps packets of several writers whole.
type conn struct {
	net.Conn
	session     *session
	remote      string
	certificate *x509.Certificate
	first       bytes.Reader // the CONNECT

	keepAlive atomic.Int64 // one and a half keep-alives; 0 until CONNECT is accepted
	write     sync.Mutex
}

// SetDeadline is for mochi, which would overflow above 43,690 s, round small keep-alives down and let the write deadline of
// a slow reader be as long as the keep-alive.
func (c *conn) SetDeadline(time.Time) error { return nil }

func (c *conn) Read(p []byte) (int, error) {
	if c.first.Len() > 0 {
		return c.first.Read(p)
	}
	// Bytes that arrive are proof of life: on a bad link one message can take longer than the keep-alive.
	if d := c.keepAlive.Load(); d > 0 {
		_ = c.SetReadDeadline(time.Now().Add(time.Duration(d)))
	}
	return c.Conn.Read(p)
}

func (c *conn) Write(p []byte) (int, error) {
	c.write.Lock()
	defer c.write.Unlock()
	return c.Conn.Write(p)
}

// hurry bounds everything that is still written, a write under way included.
func (c *conn) hurry(d time.Duration) { _ = c.SetWriteDeadline(time.Now().Add(d)) }

// paced is the raw connection below TLS. A write may take as long as the link needs, provided that something gets through
// within timeout; a reader that takes nothing for so long is given up (B2).
type paced struct {
	net.Conn
	timeout time.Duration
	closing atomic.Bool

	mu   sync.Mutex
	last time.Time // zero until closing
}

func (c *paced) Write(p []byte) (n int, err error) {
	for {
		if !c.closing.Load() {
			_ = c.Conn.SetWriteDeadline(time.Now().Add(c.timeout))
		}
		m, err := c.Conn.Write(p[n:])
		n += m
		if err == nil || m == 0 || !isTimeout(err) || c.closing.Load() {
			return n, err
		}
	}
}

// SetWriteDeadline sets a last deadline, which Write does not move and a later call (TLS grants itself five seconds to say
// goodbye) can only bring nearer.
func (c *paced) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closing.Store(true)
	if !c.last.IsZero() && t.After(c.last) {
		return nil
	}
	c.last = t
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline is called by the handshake; the write side keeps its own pace.
func (c *paced) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// maxConnect bounds the CONNECT, the only packet taken from someone unknown. mochi would allocate the declared length of
// whatever comes first, up to 256 MB (B7).
const maxConnect = 16 << 10

var errNotConnect = errors.New("first packet is not CONNECT")

// readConnect reads one whole CONNECT packet, as bytes.
func readConnect(r io.Reader) ([]byte, error) {
	var b [1]byte
	head := make([]byte, 0, 5)
	length, shift := 0, 0
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, err
		}
		head = append(head, b[0])
		if len(head) == 1 {
			if b[0] != 0x10 {
				return nil, errNotConnect
			}
			continue
		}
		length |= int(b[0]&0x7f) << shift
		shift += 7
		if length > maxConnect {
			return nil, fmt.Errorf("CONNECT of %d bytes or more, limit %d", length, maxConnect)
		}
		if b[0]&0x80 == 0 {
			break
		}
		if len(head) == 5 {
			return nil, errors.New("malformed packet length")
		}
	}
	packet := append(head, make([]byte, length)...)
	_, err := io.ReadFull(r, packet[len(head):])
	return packet, err
}
