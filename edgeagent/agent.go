// Package edgeagent makes a cluster what was signed for it, keeps it so with or without a link, and says where it stands.
//
// # Shape
//
// One goroutine, [site.run], owns all state: what is ordered, what is applied, what is reported. Everything else (messages,
// watch events, finished work, timers) reaches it as a function to run, so no field of site needs a lock and no two
// things happen at once. It never waits for the network or the cluster: downloads, applies and checks run in goroutines
// of their own, bounded in number and in time, and come back with what they found. What to do next is decided by the pure
// package plan; what must survive a power cut is on disk, in package store, before anything is done about it.
//
// # Without a link
//
// The link is only one of the things that bring news. Without it, and from the first moment after a restart, the site is
// kept as the documents on disk say.
package edgeagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/edgeagent/apply"
	"shoal.dev/shoal/edgeagent/store"
)

// Agent is one site's agent.
type Agent struct {
	o        Options
	log      zerolog.Logger
	store    *store.Store
	applier  *apply.Applier
	listener net.Listener // nil: no metrics
	metrics  *metrics
	advice   atomic.Pointer[error] // why the hub refuses the site's key, and what to do
}

// New validates options, takes the data directory (store.ErrLocked if another agent has it) and listens. Call Run afterwards,
// or Close.
func New(o Options) (*Agent, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	a := &Agent{o: o, log: o.Log.With().Str("component", "agent").Logger()}
	if a.store, err = store.Open(o.DataDir, o.Log); err != nil {
		return nil, fmt.Errorf("open data directory %s: %w", o.DataDir, err)
	}
	if a.applier, err = apply.New(o.Kubernetes, apply.Options{Namespace: o.Namespace}, o.Log); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	if o.MetricsListen != "" {
		if a.listener, err = net.Listen("tcp", o.MetricsListen); err != nil {
			return nil, errors.Join(fmt.Errorf("listen for metrics (--metrics-listen): %w", err), a.Close())
		}
	}
	a.metrics = newMetrics(a.applier)
	return a, nil
}

// Addr is where /metrics and /healthz are served; nil without a listener.
func (a *Agent) Addr() net.Addr {
	if a.listener == nil {
		return nil
	}
	return a.listener.Addr()
}

// Close releases what New acquired. Run does so by itself.
func (a *Agent) Close() error {
	var errs []error
	if a.listener != nil {
		if err := a.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if a.applier != nil {
		a.applier.Close()
	}
	if a.store != nil {
		errs = append(errs, a.store.Close())
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends, then says goodbye to the hub and joins every goroutine, within five seconds. It is called once.
func (a *Agent) Run(ctx context.Context) error {
	a.log.Info().Str("version", a.o.Version).Str("data_dir", a.o.DataDir).Str("namespace", a.o.Namespace).Msg("agent starts")
	s, err := newSite(a)
	if err != nil {
		return errors.Join(err, a.Close())
	}
	var wg sync.WaitGroup
	wg.Go(func() { a.serve(ctx, s) })
	wg.Go(func() { a.watch(ctx, s) })
	wg.Go(func() { a.watchLocks(ctx, s) })
	wg.Go(func() { a.link(ctx, s) })
	s.run(ctx)
	wg.Wait()
	s.work.Wait()
	a.log.Info().Msg("agent stopped")
	return a.Close()
}

// watch tells the site what changes on its cluster.
func (a *Agent) watch(ctx context.Context, s *site) {
	for n := 1; ctx.Err() == nil; n++ {
		err := a.applier.Watch(ctx, func(name string) {
			s.post(func() { s.changed(name) })
		})
		if ctx.Err() != nil {
			return
		}
		a.log.Warn().Err(err).Msg("watch of the cluster ended and is begun again")
		pause(ctx, s.backoff(n))
	}
}

// pause reports whether it lasted; false means that ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
