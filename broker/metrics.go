package broker

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	connections    prometheus.Gauge
	connects       *prometheus.CounterVec // by result
	messagesIn     prometheus.Counter
	messagesOut    prometheus.Counter
	coalesced      prometheus.Counter
	refused        *prometheus.CounterVec // by reason
	evicted        *prometheus.CounterVec // by reason
	wills          prometheus.Counter
	retainedTopics prometheus.Gauge
	retainedBytes  prometheus.Gauge
	commitSeconds  prometheus.Histogram
	acceptErrors   prometheus.Counter
	panics         prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	const ns = "shoal_broker_"
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: ns + name, Help: help})
	}
	vec := func(name, label, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + name, Help: help}, []string{label})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: ns + name, Help: help})
	}
	m := &metrics{
		connections:    gauge("connections", "Authenticated connections."),
		connects:       vec("connects_total", "result", "Connection attempts by result."),
		messagesIn:     counter("messages_received_total", "Messages published to the broker, in process included."),
		messagesOut:    counter("messages_sent_total", "Messages delivered to subscribers, in process included."),
		coalesced:      counter("messages_coalesced_total", "States replaced by a newer state of their topic before a slow reader took them."),
		refused:        vec("refused_total", "reason", "Messages and subscriptions refused by reason."),
		evicted:        vec("evicted_total", "reason", "Connections ended by the broker by reason."),
		wills:          counter("wills_total", "Wills published."),
		retainedTopics: gauge("retained_topics", "Topics with a retained message."),
		retainedBytes:  gauge("retained_bytes", "Bytes of all retained messages."),
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: ns + "store_commit_seconds", Help: "Time to make one batch of retained messages durable.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		acceptErrors: counter("accept_errors_total", "Errors of accept, for example for want of file descriptors."),
		panics:       counter("panics_total", "Connections ended by a bug."),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.connections, m.connects, m.messagesIn, m.messagesOut, m.coalesced, m.refused, m.evicted, m.wills,
		m.retainedTopics, m.retainedBytes, m.commitSeconds, m.acceptErrors, m.panics,
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
