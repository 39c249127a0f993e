// Package link is a TCP link that can be made bad: tests and the demo put one between a site and its hub, then cut it, slow it
// down or let it break in the middle of a message.
package link

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Link forwards connections to its target. All methods are safe for concurrent use and take effect on open connections.
type Link struct {
	target string
	ln     net.Listener
	work   sync.WaitGroup

	mu     sync.Mutex
	cut    bool
	closed bool
	delay  time.Duration
	rate   int
	drop   int64 // bytes until the next cut of all connections, -1 for never
	conns  map[net.Conn]struct{}
	change chan struct{} // closed and replaced when a setting changes
	total  int64
	breaks int // how often all connections were broken
}

// New listens on a free port of 127.0.0.1 and forwards to target ("host:port").
func New(target string) (*Link, error) { return On("127.0.0.1", target) }

// On is New for clients that do not share this machine's loopback, such as containers: it listens on host.
func On(host, target string) (*Link, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	l := &Link{target: target, ln: ln, drop: -1, conns: map[net.Conn]struct{}{}, change: make(chan struct{})}
	l.work.Add(1)
	go l.accept()
	return l, nil
}

// Addr is the "host:port" to connect to instead of the target.
func (l *Link) Addr() string { return l.ln.Addr().String() }

// Cut breaks all connections and refuses new ones until Restore.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	l.breakAll()
}

// Restore ends Cut. Connections do not come back by themselves.
func (l *Link) Restore() { l.set(func() { l.cut = false }) }

// SetDelay adds d to the way of every byte, in each direction.
func (l *Link) SetDelay(d time.Duration) { l.set(func() { l.delay = d }) }

// SetRate limits each direction of each connection to n bytes a second; 0 lifts the limit.
func (l *Link) SetRate(n int) { l.set(func() { l.rate = n }) }

// DropAfter breaks all connections once n more bytes have passed, both directions counted, then works on. A negative n
// disarms it.
func (l *Link) DropAfter(n int64) { l.set(func() { l.drop = n }) }

// Bytes is how many bytes have passed so far, both directions counted.
func (l *Link) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// Close breaks everything and waits until nothing is left.
func (l *Link) Close() error {
	l.mu.Lock()
	l.closed = true
	l.breakAll()
	l.mu.Unlock()
	err := l.ln.Close()
	l.work.Wait()
	return err
}

func (l *Link) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	l.signal()
}

func (l *Link) signal() {
	close(l.change)
	l.change = make(chan struct{})
}

// breakAll resets the connections, as a lost link does; l.mu is held.
func (l *Link) breakAll() {
	l.breaks++
	for c := range l.conns {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.Close()
	}
	l.signal()
}

func (l *Link) accept() {
	defer l.work.Done()
	for {
		c, err := l.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		l.work.Add(1)
		go l.serve(c)
	}
}

func (l *Link) serve(near net.Conn) {
	defer l.work.Done()
	defer near.Close() //nolint:errcheck // a link
	if !l.track(near) {
		return
	}
	defer l.untrack(near)
	far, err := net.DialTimeout("tcp", l.target, 5*time.Second)
	if err != nil {
		return
	}
	defer far.Close() //nolint:errcheck // a link
	if !l.track(far) {
		return
	}
	defer l.untrack(far)
	var both sync.WaitGroup
	both.Add(2)
	go func() { defer both.Done(); l.pipe(far, near) }()
	go func() { defer both.Done(); l.pipe(near, far) }()
	both.Wait()
}

func (l *Link) track(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut || l.closed {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *Link) untrack(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

type chunk struct {
	b    []byte
	when time.Time
}

// pipe carries one direction until either side ends, then ends the other.
func (l *Link) pipe(dst, src net.Conn) {
	l.mu.Lock()
	born := l.breaks
	l.mu.Unlock()
	ch := make(chan chunk, 64) // what is on its way
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer dst.Close() //nolint:errcheck // a link
		for c := range ch {
			if !l.pass(dst, c, born) {
				_ = src.Close()
				for range ch { //nolint:revive // let the reader go
				}
				return
			}
		}
	}()
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			ch <- chunk{append([]byte(nil), buf[:n]...), time.Now()}
		}
		if err != nil {
			break
		}
	}
	ch <- chunk{nil, time.Now()} // the end takes its time as well
	close(ch)
	<-done
}

// pass writes one chunk when its time has come, in steps small enough for rate and drop to be exact. It reports false when
// the connection is over.
func (l *Link) pass(dst io.Writer, c chunk, born int) bool {
	for {
		l.mu.Lock()
		rate, change := l.rate, l.change
		if l.breaks != born {
			l.mu.Unlock()
			return false
		}
		if wait := time.Until(c.when.Add(l.delay)); wait > 0 {
			l.mu.Unlock()
			select {
			case <-time.After(wait):
			case <-change:
			}
			continue
		}
		n := len(c.b)
		if rate > 0 {
			n = min(n, max(1, rate/20))
		}
		if l.drop >= 0 {
			n = min(n, int(l.drop))
			l.drop -= int64(n)
		}
		l.total += int64(n)
		last := l.drop == 0
		l.mu.Unlock()
		if n > 0 {
			if _, err := dst.Write(c.b[:n]); err != nil {
				return false
			}
			c.b = c.b[n:]
		}
		switch {
		case last:
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.drop == 0 {
				l.drop = -1
				l.breakAll()
			}
			return false
		case len(c.b) == 0:
			return true
		case rate > 0:
			select {
			case <-time.After(time.Duration(n) * time.Second / time.Duration(rate)):
			case <-change:
			}
		}
	}
}
