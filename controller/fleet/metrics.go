package fleet

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// collector counts the view when it is asked: nothing to keep in step.
type collector struct {
	v                     *View
	clusters, deployments *prometheus.Desc
}

// Metrics describes the fleet to Prometheus: clusters by link, deployments by state. Both are counts over the
// whole fleet, so their number of series does not grow with it.
func (v *View) Metrics() prometheus.Collector {
	return collector{
		v:           v,
		clusters:    prometheus.NewDesc("shoal_clusters", "Clusters by link.", []string{"link"}, nil),
		deployments: prometheus.NewDesc("shoal_deployments", "Deployments (a bundle on a cluster) by state, as in the status of Bundles and Clusters.", []string{"state"}, nil),
	}
}

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.clusters
	ch <- c.deployments
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	links := map[Link]int{Online: 0, Offline: 0, Unknown: 0}
	states := map[v1alpha1.State]int{}
	for _, m := range c.v.all() {
		links[m.Link]++
		known := append(m.Deployments(), m.Leaving()...)
		for _, name := range known {
			states[m.Status(name).State]++
		}
		if m.Reported == nil {
			continue
		}
		for _, d := range m.Reported.Deployments {
			if !slices.Contains(known, d.Name) {
				states[v1alpha1.StateOrphaned]++
			}
		}
	}
	for l, n := range links {
		ch <- prometheus.MustNewConstMetric(c.clusters, prometheus.GaugeValue, float64(n), string(l))
	}
	for s, n := range states {
		ch <- prometheus.MustNewConstMetric(c.deployments, prometheus.GaugeValue, float64(n), string(s))
	}
}
