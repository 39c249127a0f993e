// Package broker is the hub's embedded MQTT 5 broker: TLS listener, authentication, access control, retained messages on disk,
// and a Carrier for the hub in the same process.
//
// It stands on mochi-mqtt v2.7.9 for the protocol: packets, CONNECT, acknowledgements, errors. Everything of mochi that is
// known to break (the numbers B1 to B12 here and in traps_test.go) is not used:
//
//   - Subscriptions, fan-out, retained messages and Wills are our own. mochi never sees a message: its outbound queues,
//     inflight maps, retained map, housekeeping loop, storage hooks and $SYS topics stay empty or are not started.
//   - Everything leaves with QoS 0, whatever a client asks for; a PUBLISH with QoS 1 is acknowledged after its retained
//     message is on disk. That is as safe for Shoal: documents carry serials and are replayed on each connection.
//   - A connection is the session: no state outlives it, a take-over waits until the older connection and its Will are done.
//   - A slow reader hurts only itself. Its queue is bounded in bytes, holds one state a topic once it lags, and the
//     connection is cut when nothing gets through; publishers never wait for it. A replay of retained messages waits for the
//     reader and drops nothing.
//
// Not offered: QoS 2, MQTT 3, shared subscriptions, subscription identifiers, topic aliases, sessions, $-topics.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"shoal.dev/shoal/internal/mqtt"
)

// Options configure a Broker. Auth is required; everything else has a default.
type Options struct {
	// Listen is the TCP address, ":8883" with TLS and ":1883" without if empty; "127.0.0.1:0" in tests.
	Listen string
	// TLS is the server's side. For client certificates set ClientAuth to tls.VerifyClientCertIfGiven and ClientCAs. nil
	// means no encryption: for tests only.
	TLS *tls.Config
	// Auth decides who a client is. There is no anonymous access and no default permission.
	Auth mqtt.Authenticator
	// Store is the file of the retained messages; empty keeps them in memory only.
	Store string

	// MinKeepAlive and MaxKeepAlive bound what clients ask for, in whole seconds: 30 s and 900 s by default.
	MinKeepAlive, MaxKeepAlive time.Duration
	// ConnectTimeout bounds handshake and CONNECT together, 10 s by default.
	ConnectTimeout time.Duration
	// WriteTimeout is how long a client may take nothing before it is cut off, 30 s by default.
	WriteTimeout time.Duration

	MaxConnections   int // 15,000 by default; each needs a file descriptor
	MaxPayload       int // bytes of one message, 48 KiB by default
	MaxPacket        int // bytes of one packet, 128 KiB by default
	MaxSubscriptions int // of one connection, 64 by default
	MaxRetained      int // topics, 200,000 by default
	MaxRetainedBytes int // 512 MiB by default
	MaxQueueBytes    int // waiting for one connection, 8 MiB by default

	// ConnectRate is the total of new connections a second, 500 by default: more wait in the kernel's backlog.
	// SourceRate and SourceBurst are those of one address, which may be a NAT with many sites behind it: 50 and 500 by
	// default; more are closed at once.
	ConnectRate, SourceRate float64
	SourceBurst             int
	// PacketRate and PacketBurst pace what one connection sends: 200 a second and 1,000 by default. Above it the
	// connection is read more slowly; nothing is lost.
	PacketRate  float64
	PacketBurst int

	Log        zerolog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// Broker is a running broker. It is usable as a Carrier from New on; clients are served by Run.
type Broker struct {
	o          Options
	log        zerolog.Logger
	metrics    *metrics
	server     *mochi.Server
	ln         net.Listener
	gate       *gate
	refusedLog *rate.Limiter
	buffers    sync.Pool

	store      *store // nil: memory only
	commits    chan commit
	stopCommit chan struct{}
	committed  chan struct{} // closed when commitLoop has ended

	// mu guards what messages are looked up in. Only commitLoop writes retained and retainedBytes, so it may read them
	// without the lock.
	mu            sync.RWMutex
	subs          tree[subscribers]
	retained      tree[*message]
	retainedBytes int

	sessionMu sync.Mutex
	sessions  map[string]*session // by client id
	conns     map[net.Conn]struct{}
	stopping  bool

	localMu sync.Mutex
	locals  map[*local]struct{}
	closed  bool

	relief    atomic.Pointer[chan struct{}]
	work      sync.WaitGroup // connections and what they start
	localWork sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

func (o *Options) defaults() error {
	if o.Auth == nil {
		return errors.New("broker options: Auth is missing: there is no anonymous access")
	}
	if o.Listen == "" {
		o.Listen = ":8883"
		if o.TLS == nil {
			o.Listen = ":1883"
		}
	}
	dur := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	float := func(n *float64, v float64) {
		if *n <= 0 {
			*n = v
		}
	}
	dur(&o.MinKeepAlive, 30*time.Second)
	dur(&o.MaxKeepAlive, 900*time.Second)
	dur(&o.ConnectTimeout, 10*time.Second)
	dur(&o.WriteTimeout, 30*time.Second)
	num(&o.MaxConnections, 15_000)
	num(&o.MaxPayload, 48<<10)
	num(&o.MaxPacket, 128<<10)
	num(&o.MaxSubscriptions, 64)
	num(&o.MaxRetained, 200_000)
	num(&o.MaxRetainedBytes, 512<<20)
	num(&o.MaxQueueBytes, 8<<20)
	float(&o.ConnectRate, 500)
	float(&o.SourceRate, 50)
	num(&o.SourceBurst, 500)
	float(&o.PacketRate, 200)
	num(&o.PacketBurst, 1000)
	switch {
	case o.MinKeepAlive < time.Second || o.MinKeepAlive%time.Second != 0 || o.MaxKeepAlive%time.Second != 0:
		return fmt.Errorf("broker options: keep-alives of %s to %s: use whole seconds", o.MinKeepAlive, o.MaxKeepAlive)
	case o.MinKeepAlive > o.MaxKeepAlive || o.MaxKeepAlive > 43_000*time.Second:
		return fmt.Errorf("broker options: keep-alives of %s to %s: minimum above maximum, or maximum above 43000 s", o.MinKeepAlive, o.MaxKeepAlive)
	case o.MaxPacket < o.MaxPayload+1024:
		return fmt.Errorf("broker options: MaxPacket %d has no room for a payload of %d and its header", o.MaxPacket, o.MaxPayload)
	}
	return nil
}

// New opens the store, loads the retained messages and listens. Close or Run must follow.
func New(o Options) (_ *Broker, err error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	b := &Broker{
		o: o, log: o.Log,
		gate:       &gate{rate: o.SourceRate, burst: o.SourceBurst, max: o.SourceBurst, sources: map[netip.Prefix]*source{}},
		refusedLog: rate.NewLimiter(5, 20),
		buffers:    sync.Pool{New: func() any { return new([]byte) }},
		commits:    make(chan commit, maxBatch),
		stopCommit: make(chan struct{}),
		committed:  make(chan struct{}),
		sessions:   map[string]*session{},
		conns:      map[net.Conn]struct{}{},
		locals:     map[*local]struct{}{},
	}
	if b.metrics, err = newMetrics(o.Registerer); err != nil {
		return nil, fmt.Errorf("register broker metrics: %w", err)
	}
	if b.server, err = newServer(b); err != nil {
		return nil, err
	}
	if b.ln, err = net.Listen("tcp", o.Listen); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	if o.Store != "" {
		b.store, err = openStore(o.Store, b.log, b.load)
		if err != nil {
			_ = b.ln.Close()
			return nil, err
		}
	}
	b.log.Info().Stringer("listen", b.ln.Addr()).Bool("tls", o.TLS != nil).Int("retained", b.retained.n).Msg("broker ready")
	go b.commitLoop()
	return b, nil
}

// load takes one message of the store, in order; clearings included.
func (b *Broker) load(m *message) {
	m.retain = true
	if m.expired(time.Now()) {
		m = &message{topic: m.topic, wire: m.wire[:m.payload], payload: m.payload}
	}
	b.keep(m)
}

// newServer sets mochi up to do nothing by itself. Serve is never called: its event loop copies every retained message, client
// and inflight map each second, and there is nothing for it to do.
func newServer(b *Broker) (*mochi.Server, error) {
	caps := mochi.NewDefaultServerCapabilities()
	caps.MaximumClients = math.MaxInt64 // ours is MaxConnections, before the handshake
	caps.MaximumMessageExpiryInterval = 0
	caps.MaximumClientWritesPending = 1 // nothing is queued in mochi
	caps.MaximumSessionExpiryInterval = 0
	caps.MaximumPacketSize = uint32(b.o.MaxPacket)
	caps.ReceiveMaximum = 64
	caps.MaximumInflight = 64
	caps.TopicAliasMaximum = 0
	caps.SharedSubAvailable = 0
	caps.SubIDAvailable = 0
	caps.MinimumProtocolVersion = 5
	caps.MaximumQos = 1
	caps.Compatibilities.NoInheritedPropertiesOnAck = true // B10
	s := mochi.New(&mochi.Options{
		Capabilities: caps,
		Logger:       slog.New(slog.DiscardHandler), // it logs whole packets; ours says what matters
	})
	if err := s.AddHook(&hook{b: b}, nil); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return s, nil
}

// Addr is where the broker listens.
func (b *Broker) Addr() net.Addr { return b.ln.Addr() }

// Run serves clients until ctx ends, then closes the broker.
func (b *Broker) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.accept(ctx, b.ln, b.serveMQTT)
	}()
	select {
	case <-ctx.Done():
	case <-done: // closed by Close
	}
	err := b.Close()
	<-done
	return err
}

// Close stops the broker: clients are told that the server shuts down, their Wills are published and stored, everything is
// joined. It takes about a second if clients do not read. In-process handlers must return.
func (b *Broker) Close() error {
	b.closeOnce.Do(func() { b.closeErr = b.close() })
	return b.closeErr
}
