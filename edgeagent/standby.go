package edgeagent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"shoal.dev/shoal/edgeagent/apply"
	"shoal.dev/shoal/edgeagent/store"
)

// Standby returns when no other agent has the data directory. Until then it answers /healthz and /readyz: with 200 once it has read what it
// will take over and has talked to the API server, so that an update of the agent's own Deployment ends the old Pod only when
// the new one can do its work. Whoever calls it calls New next, and comes back on store.ErrLocked.
func Standby(ctx context.Context, o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	if !taken(o.DataDir) {
		return nil
	}
	log := o.Log.With().Str("component", "agent").Logger()
	log.Info().Str("version", o.Version).Msg("another agent runs with this data directory: standing by until it ends")
	var why atomic.Pointer[string]
	say := func(err error) {
		s := ""
		if err != nil {
			s = err.Error()
		}
		if was := why.Swap(&s); was == nil || *was != s {
			log.Info().AnErr("not_yet", err).Bool("ready", err == nil).Msg("standby")
		}
	}
	say(errors.New("nothing was tried yet"))
	if o.MetricsListen != "" {
		l, err := net.Listen("tcp", o.MetricsListen)
		if err != nil {
			return fmt.Errorf("listen for metrics (--metrics-listen): %w", err)
		}
		mux := http.NewServeMux()
		answer := func(w http.ResponseWriter, _ *http.Request) {
			if s := *why.Load(); s != "" {
				http.Error(w, "standing by: "+s, http.StatusServiceUnavailable)
				return
			}
			_, _ = w.Write([]byte("standing by\n"))
		}
		mux.HandleFunc("GET /healthz", answer)
		mux.HandleFunc("GET /readyz", answer)
		srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = srv.Serve(l)
		}()
		defer func() {
			_ = srv.Close()
			<-done
		}()
	}
	a, err := apply.New(o.Kubernetes, apply.Options{Namespace: o.Namespace}, o.Log)
	if err != nil {
		return err
	}
	defer a.Close()
	var next time.Time
	for taken(o.DataDir) {
		if now := time.Now(); now.After(next) {
			say(fit(ctx, a, o.DataDir))
			next = now.Add(o.Timing.RetryMin)
		}
		if !pause(ctx, min(500*time.Millisecond, o.Timing.RetryMin)) {
			return ctx.Err()
		}
	}
	return nil
}

func taken(dir string) bool {
	st, err := store.Read(dir)
	return err == nil && st.Running()
}

// fit says why an agent could not do its work here; nil: it could.
func fit(ctx context.Context, a *apply.Applier, dir string) error {
	st, err := store.Read(dir)
	if err != nil {
		return err
	}
	if _, err := st.Identity(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read identity: %w", err)
	}
	if _, err := st.Floor(); err != nil {
		return fmt.Errorf("read floor: %w", err)
	}
	if _, err := st.Records(); err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	if st.Damaged() > 0 {
		return fmt.Errorf("%d files on disk cannot be read by this version", st.Damaged())
	}
	_, err = a.Facts(ctx)
	return err
}
