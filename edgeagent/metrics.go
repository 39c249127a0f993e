package edgeagent

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/apply"
	"shoal.dev/shoal/edgeagent/plan"
	"shoal.dev/shoal/internal/mqtt"
)

type metrics struct {
	registry    *prometheus.Registry
	deployments *prometheus.GaugeVec
	applies     *prometheus.CounterVec
	repairs     prometheus.Counter
	refused     *prometheus.CounterVec
	connected   prometheus.Gauge
	serial      prometheus.Gauge
	stale       prometheus.Gauge
	damaged     prometheus.Gauge
	link        atomic.Pointer[mqtt.Client]
}

func newMetrics(a *apply.Applier) *metrics {
	m := &metrics{
		registry:    prometheus.NewRegistry(),
		deployments: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "shoal_agent_deployments", Help: "Deployments on this site by state."}, []string{"state"}),
		applies:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shoal_agent_applies_total", Help: "Releases applied, or not, repairs included."}, []string{"result"}),
		repairs:     prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_agent_repairs_total", Help: "Times that drift was repaired."}),
		refused:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shoal_agent_refused_total", Help: "Messages that were not acted on, by reason."}, []string{"reason"}),
		connected:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "shoal_agent_connected", Help: "1 while there is a link to the hub."}),
		serial:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "shoal_agent_desired_serial", Help: "Serial of the desired document in force."}),
		stale:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "shoal_agent_stale", Help: "1 while the desired document is past its time."}),
		damaged:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "shoal_agent_damaged_files", Help: "Damaged files found in the data directory since the start."}),
	}
	m.registry.MustRegister(m.deployments, m.applies, m.repairs, m.refused, m.connected, m.serial, m.stale, m.damaged,
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "shoal_agent_received_bytes_total", Help: "Bytes received from the broker."}, func() float64 {
			if c := m.link.Load(); c != nil {
				return float64(c.Received())
			}
			return 0
		}),
		requests{a, prometheus.NewDesc("shoal_agent_api_requests_total", "Requests to the site's API server.", []string{"kind"}, nil)},
	)
	return m
}

// requests reads the applier's counters when they are asked for.
type requests struct {
	a    *apply.Applier
	desc *prometheus.Desc
}

func (r requests) Describe(ch chan<- *prometheus.Desc) { ch <- r.desc }

func (r requests) Collect(ch chan<- prometheus.Metric) {
	n := r.a.Requests()
	for kind, v := range map[string]int64{"read": n.Read, "dry-run": n.DryRun, "write": n.Write, "watch": n.Watch, "discovery": n.Discovery} {
		ch <- prometheus.MustNewConstMetric(r.desc, prometheus.CounterValue, float64(v), kind)
	}
}

// refuse counts a refusal. Reasons are few and fixed: they are labels.
func (m *metrics) refuse(err error) { m.refused.WithLabelValues(why(err)).Inc() }

func why(err error) string {
	var limit *bundlefmt.LimitError
	for _, r := range []struct {
		err  error
		name string
	}{
		{bundlefmt.ErrEmpty, "empty"}, {bundlefmt.ErrUntrusted, "untrusted"}, {bundlefmt.ErrAudience, "audience"}, {bundlefmt.ErrStale, "older"},
		{plan.ErrSameSerial, "same-serial"}, {bundlefmt.ErrVersion, "version"}, {bundlefmt.ErrDigest, "digest"}, {bundlefmt.ErrMalformed, "malformed"},
	} {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	if errors.As(err, &limit) {
		return "limit"
	}
	return "other"
}

func (m *metrics) observe(s *site, now time.Time) {
	m.deployments.Reset()
	for _, l := range s.local {
		if l.standing.state != "" {
			m.deployments.WithLabelValues(string(l.standing.state)).Inc()
		}
	}
	m.serial.Set(float64(s.floor.Desired))
	m.damaged.Set(float64(s.store.Damaged()))
	stale := 0.0
	if s.stale(now) {
		stale = 1
	}
	m.stale.Set(stale)
}
