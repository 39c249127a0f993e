package broker

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// gate decides whether a new connection is worth a handshake. It counts by source, so that one address cannot keep the others
// out; many sites may share one address behind a NAT, so the defaults are generous.
type gate struct {
	rate  float64
	burst int
	max   int // handshakes under way from one source

	mu      sync.Mutex
	sources map[netip.Prefix]*source
	swept   time.Time
}

type source struct {
	rate *rate.Limiter
	open int // handshakes under way
	seen time.Time
}

// sourceOf groups an IPv6 /64, which one customer owns.
func sourceOf(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	ip := ap.Addr().Unmap()
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits)
	return p
}

// enter returns nil if the connection is refused, else a function to call once when it is authenticated or over.
func (g *gate) enter(a net.Addr, now time.Time) (leave func()) {
	key := sourceOf(a)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweep(now)
	s := g.sources[key]
	if s == nil {
		s = &source{rate: rate.NewLimiter(rate.Limit(g.rate), g.burst)}
		g.sources[key] = s
	}
	s.seen = now
	if s.open >= g.max || !s.rate.AllowN(now, 1) {
		return nil
	}
	s.open++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		s.open--
	})
}

// sweep forgets sources that have been quiet long enough for their allowance to be full again.
func (g *gate) sweep(now time.Time) {
	if now.Sub(g.swept) < time.Minute {
		return
	}
	g.swept = now
	full := time.Duration(float64(g.burst)/g.rate*float64(time.Second)) + time.Minute
	for k, s := range g.sources {
		if s.open == 0 && now.Sub(s.seen) > full {
			delete(g.sources, k)
		}
	}
}
