package broker

import (
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func (b *Broker) close() error {
	err := b.ln.Close()
	b.sessionMu.Lock()
	b.stopping = true
	for _, s := range b.sessions {
		s.evict(packets.ErrServerShuttingDown, "shutdown")
	}
	b.sessionMu.Unlock()
	quit, watched := make(chan struct{}), make(chan struct{})
	go func() { // those that are no session yet, and those that do not go
		defer close(watched)
		select {
		case <-quit:
		case <-time.After(1500 * time.Millisecond):
			b.sessionMu.Lock()
			defer b.sessionMu.Unlock()
			for c := range b.conns {
				_ = c.Close()
			}
		}
	}()
	b.work.Wait() // Wills included
	close(quit)
	<-watched

	b.localMu.Lock()
	b.closed = true
	locals := make([]*local, 0, len(b.locals))
	for s := range b.locals {
		locals = append(locals, s)
	}
	b.localMu.Unlock()
	for _, s := range locals {
		s.stop()
	}
	b.localWork.Wait()

	close(b.stopCommit)
	<-b.committed
	if b.store != nil {
		if serr := b.store.close(); err == nil {
			err = serr
		}
	}
	b.log.Info().Msg("broker stopped")
	return err
}

// Connections is the number of authenticated connections.
func (b *Broker) Connections() int {
	b.sessionMu.Lock()
	defer b.sessionMu.Unlock()
	return len(b.sessions)
}
