package controller

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/lease"
)

// keysInterval is how often the Secret with the keys is looked at.
const keysInterval = 10 * time.Second

// keeping is whether the hub's keys are stored.
type keeping struct {
	mu      sync.Mutex
	failure error // nil: they are
}

// keepKeys looks after the Secret with the keys: one that is deleted under a running hub must not be missed first at its restart.
func (h *Hub) keepKeys(ctx context.Context) {
	t := time.NewTicker(keysInterval)
	defer t.Stop()
	for {
		written, err := h.keys.Keep(ctx, h.direct, h.o.Namespace)
		if ctx.Err() != nil {
			return
		}
		h.keeping.mu.Lock()
		news := fmt.Sprint(h.keeping.failure) != fmt.Sprint(err)
		h.keeping.failure = err
		h.keeping.mu.Unlock()
		switch {
		case err != nil && news:
			h.o.Log.Error().Err(err).Msg("the hub's keys are not stored")
		case written:
			h.o.Log.Warn().Str("namespace", h.o.Namespace).Msg("secret shoal-keys was deleted: the hub has written its keys again")
		case news:
			h.o.Log.Info().Msg("the hub's keys are stored")
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// watchOver ends the hub when its Lease says so.
func (h *Hub) watchOver(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-h.ended.Done():
	}
	err := context.Cause(h.ended)
	if errors.Is(err, lease.ErrWentBack) {
		// The older state may be from before the keys, which would then be lost with this process.
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := h.keys.Keep(ctx, h.plain, h.o.Namespace); err != nil {
			h.o.Log.Error().Err(err).Msg("the hub's keys are not stored")
		}
	}
	return fmt.Errorf("the hub ends, and starts anew when it is started again: %w", err)
}

// seen is what the hub's watches have reached.
func (h *Hub) seen() []lease.Seen {
	var out []lease.Seen
	for _, k := range h.informers {
		at := k.informer.LastSyncResourceVersion()
		if at == "" {
			continue // nothing read yet
		}
		out = append(out, lease.Seen{Revision: at, Now: func(ctx context.Context) (string, error) {
			list := k.list()
			err := h.plain.List(ctx, list, client.Limit(1))
			return list.GetResourceVersion(), err
		}})
	}
	return out
}

// informer is a watch of the hub's cache, and how to list the kind.
type informer struct {
	informer interface{ LastSyncResourceVersion() string }
	list     func() client.ObjectList
}

// watch starts the watches whose progress the Lease is compared with.
func (h *Hub) watch(ctx context.Context) error {
	for _, k := range []struct {
		object client.Object
		list   func() client.ObjectList
	}{
		{&v1alpha1.Bundle{}, func() client.ObjectList { return &v1alpha1.BundleList{} }},
		{&v1alpha1.Cluster{}, func() client.ObjectList { return &v1alpha1.ClusterList{} }},
		{&v1alpha1.ClusterGroup{}, func() client.ObjectList { return &v1alpha1.ClusterGroupList{} }},
		{&v1alpha1.ClusterRegistrationToken{}, func() client.ObjectList { return &v1alpha1.ClusterRegistrationTokenList{} }},
	} {
		i, err := h.mgr.GetCache().GetInformer(ctx, k.object, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		at, ok := i.(interface{ LastSyncResourceVersion() string })
		if !ok {
			return fmt.Errorf("a watch of %T does not say how far it is", k.object)
		}
		h.informers = append(h.informers, informer{at, k.list})
	}
	h.lease.Compare(h.seen)
	return nil
}

// notReady says what keeps the hub from its work, a line each.
func (h *Hub) notReady() []string {
	var out []string
	s := h.lease.State()
	switch {
	case lease.Refused(s.Failure):
		out = append(out, fmt.Sprintf("the Kubernetes API refuses the hub's Lease: %v", s.Failure))
	case s.Failure != nil:
		out = append(out, fmt.Sprintf("no answer from the Kubernetes API since %s: %v", h.lease.Since().UTC().Format(time.RFC3339), s.Failure))
	case s.Other != "":
		out = append(out, fmt.Sprintf("waiting for the hub %q, which has the Lease", s.Other))
	case !s.Held:
		out = append(out, "starting: the hub does not hold its Lease")
	}
	select {
	case <-h.synced:
	default:
		out = append(out, "starting: the Kubernetes cache is not complete yet")
	}
	h.keeping.mu.Lock()
	defer h.keeping.mu.Unlock()
	if h.keeping.failure != nil {
		out = append(out, h.keeping.failure.Error())
	}
	return out
}

// serveMetrics serves until ctx ends. /healthz answers as long as the process does: a restart cures neither an API that is away
// nor another hub. /readyz says whether the hub can do its work, and if not, why.
func (h *Hub) serveMetrics(ctx context.Context) {
	if h.metrics == nil {
		return
	}
	gather := prometheus.Gatherers{ctrlmetrics.Registry, h.registry}
	if h.o.Registry != nil {
		gather = append(gather, h.o.Registry)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(gather, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if problems := h.notReady(); len(problems) > 0 {
			http.Error(w, strings.Join(problems, "\n"), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(h.metrics); !errors.Is(err, http.ErrServerClosed) {
		h.end(fmt.Errorf("serve metrics: %w", err))
	}
}

// health tells the same to Prometheus.
type health struct{ h *Hub }

var (
	leading  = prometheus.NewDesc("shoal_hub_leading", "1 while this hub holds the Lease and may write.", nil, nil)
	apiUp    = prometheus.NewDesc("shoal_hub_api_up", "1 while the hub's Kubernetes API answers.", nil, nil)
	answered = prometheus.NewDesc("shoal_hub_api_answered_timestamp_seconds", "When the hub's Kubernetes API last answered, in Unix time; 0: never.", nil, nil)
	stored   = prometheus.NewDesc("shoal_hub_keys_stored", "1 if the Secret with the hub's keys was right when last looked at.", nil, nil)
)

func (c health) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{leading, apiUp, answered, stored} {
		ch <- d
	}
}

func (c health) Collect(ch chan<- prometheus.Metric) {
	s := c.h.lease.State()
	at := 0.0
	if !s.Answered.IsZero() {
		at = float64(s.Answered.UnixMilli()) / 1000
	}
	c.h.keeping.mu.Lock()
	kept := c.h.keeping.failure == nil
	c.h.keeping.mu.Unlock()
	for d, v := range map[*prometheus.Desc]float64{
		leading: number(s.Held), apiUp: number(!s.Answered.IsZero() && (s.Failure == nil || lease.Refused(s.Failure))), answered: at, stored: number(kept),
	} {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
