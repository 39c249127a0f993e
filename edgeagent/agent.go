// Package edgeagent makes a cluster what was signed for it, keeps it so with or without a link, and says where it stands.
package edgeagent

import (
	"context"
	"errors"
	"net"
)

// Agent is one site's agent.
type Agent struct{ o Options }

// New validates options, locks the data directory and listens. Call Run afterwards, or Close.
func New(o Options) (*Agent, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Agent{o: o}, nil
}

// Run serves until ctx ends, then says goodbye to the hub and joins every goroutine. It is called once.
func (a *Agent) Run(ctx context.Context) error { return errors.New("not written yet") }

// Addr is where /metrics and /healthz are served; nil without a listener.
func (a *Agent) Addr() net.Addr { return nil }

// Close releases what New acquired; for an Agent that is never run.
func (a *Agent) Close() error { return nil }
