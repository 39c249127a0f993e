package edgeagent

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// alive is how long the loop may take to answer /healthz: a slow disk holds it up for seconds, never longer.
const alive = 10 * time.Second

// serve answers /metrics, /healthz and /readyz. A site without a link is healthy and ready: it does what it is for. One that has
// never enrolled is not ready: nothing can be ordered for it.
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
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), alive)
		defer cancel()
		problem := make(chan string, 1)
		ask := func() {
			if s.id.Enrolled() {
				problem <- ""
				return
			}
			problem <- "this site has not enrolled: " + cmp.Or(s.link.err, "no attempt has ended yet")
		}
		text := "the agent's loop does not answer"
		select {
		case s.inbox <- ask:
			select {
			case text = <-problem:
			case <-ctx.Done():
			case <-s.done:
			}
		case <-s.done:
		case <-ctx.Done():
		}
		if text != "" {
			http.Error(w, text, http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
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
