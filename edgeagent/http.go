package edgeagent

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// alive is how long the loop may take to answer /healthz: a slow disk holds it up for seconds, never longer.
const alive = 10 * time.Second

// serve answers /metrics and /healthz. A site without a link is healthy: it does what it is for.
func (a *Agent) serve(ctx context.Context, s *site) {
	if a.listener == nil {
		return
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), alive)
		defer cancel()
		select {
		case s.inbox <- func() {}:
			_, _ = w.Write([]byte("ok\n"))
		case <-s.done:
			http.Error(w, "stopping", http.StatusServiceUnavailable)
		case <-ctx.Done():
			http.Error(w, "the agent's loop does not answer", http.StatusServiceUnavailable)
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() {
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(sctx) != nil {
			_ = srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(a.listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
		a.log.Error().Err(err).Msg("serve metrics")
	}
	<-ctx.Done()
}
