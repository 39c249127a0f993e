package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"time"

	"golang.org/x/time/rate"
)

// accept takes connections until the listener is closed. Errors of Accept, such as too many open files, pass: the loop pauses
// and goes on (B6).
func (b *Broker) accept(ctx context.Context, ln net.Listener, serve func(net.Conn)) {
	total := rate.NewLimiter(rate.Limit(b.o.ConnectRate), max(1, int(b.o.ConnectRate)))
	pause := time.Duration(0)
	for {
		// Above the total rate connections wait in the kernel's backlog, which delays them and loses none.
		if total.Wait(ctx) != nil {
			return
		}
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			b.metrics.acceptErrors.Inc()
			b.log.Error().Err(err).Stringer("pause", pause).Msg("accept connection: trying again")
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			continue
		}
		pause = 0
		leave := b.gate.enter(c.RemoteAddr(), time.Now())
		if leave == nil {
			b.metrics.connects.WithLabelValues("rate-limited").Inc()
			_ = c.Close()
			continue
		}
		if !b.track(c) {
			leave()
			b.metrics.connects.WithLabelValues("too-many").Inc()
			_ = c.Close()
			continue
		}
		go func() {
			defer b.untrack(c)
			defer leave()
			b.serve(&paced{Conn: c, timeout: b.o.WriteTimeout}, serve)
		}()
	}
}

// track registers an open connection, unless there are too many or the broker stops.
func (b *Broker) track(c net.Conn) bool {
	b.sessionMu.Lock()
	defer b.sessionMu.Unlock()
	if b.stopping || len(b.conns) >= b.o.MaxConnections {
		return false
	}
	b.conns[c] = struct{}{}
	b.work.Add(1)
	return true
}

func (b *Broker) untrack(c net.Conn) {
	_ = c.Close()
	b.sessionMu.Lock()
	delete(b.conns, c)
	b.sessionMu.Unlock()
	b.work.Done()
}

// serve keeps a panic, of a decoder for example, from taking every other client down.
func (b *Broker) serve(c net.Conn, f func(net.Conn)) {
	defer func() {
		if r := recover(); r != nil {
			b.metrics.panics.Inc()
			b.log.Error().Interface("panic", r).Str("remote", c.RemoteAddr().String()).Bytes("stack", debug.Stack()).
				Msg("connection ended by a bug")
		}
	}()
	f(c)
}

// serveMQTT runs one connection from its first byte to its last.
func (b *Broker) serveMQTT(raw net.Conn) {
	_ = raw.SetReadDeadline(time.Now().Add(b.o.ConnectTimeout))
	c := &conn{Conn: raw, remote: raw.RemoteAddr().String()}
	if b.o.TLS != nil {
		t := tls.Server(raw, b.o.TLS)
		ctx, cancel := context.WithTimeout(context.Background(), b.o.ConnectTimeout)
		err := t.HandshakeContext(ctx)
		cancel()
		if err != nil {
			b.metrics.connects.WithLabelValues("tls").Inc()
			b.refusedConnect(c, "TLS handshake", "", err)
			return
		}
		if chain := t.ConnectionState().PeerCertificates; len(chain) > 0 {
			c.certificate = chain[0]
		}
		c.Conn = t
	}
	b.serveSession(c)
}

func (b *Broker) serveSession(c *conn) {
	packet, err := readConnect(c.Conn)
	if err != nil {
		b.metrics.connects.WithLabelValues("no-connect").Inc()
		if isTimeout(err) {
			err = fmt.Errorf("no CONNECT within %s", b.o.ConnectTimeout)
		}
		b.refusedConnect(c, "no CONNECT", "", err)
		return
	}
	c.first.Reset(packet)
	c.session = newSession(b, c)
	defer c.session.end()
	defer c.Close() //nolint:errcheck // it is over
	_ = b.server.EstablishConnection("shoal", c)
}

// refusedConnect logs at most a few lines a second: whoever can reach the port can cause them.
func (b *Broker) refusedConnect(c *conn, reason, id string, err error) {
	if b.refusedLog.Allow() {
		b.log.Warn().Err(err).Str("remote", c.remote).Str("client", id).Str("reason", reason).Msg("connection refused")
	}
}
