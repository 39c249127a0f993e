package apply

import (
	"net/http"
	"strings"
	"sync/atomic"
)

// Requests counts what was asked of the API server since New, by what it costs there.
type Requests struct {
	Read      int64 // get and list of objects
	DryRun    int64
	Write     int64 // apply, create, delete
	Watch     int64 // connections, not events
	Discovery int64 // which kinds there are, version, health
}

// Total is the sum.
func (r Requests) Total() int64 { return r.Read + r.DryRun + r.Write + r.Watch + r.Discovery }

// Sub is what was asked since an earlier count.
func (r Requests) Sub(o Requests) Requests {
	return Requests{r.Read - o.Read, r.DryRun - o.DryRun, r.Write - o.Write, r.Watch - o.Watch, r.Discovery - o.Discovery}
}

// Requests is the count so far, repeated attempts included.
func (a *Applier) Requests() Requests {
	n := &a.requests
	return Requests{n.read.Load(), n.dryRun.Load(), n.write.Load(), n.watch.Load(), n.discovery.Load()}
}

type requests struct{ read, dryRun, write, watch, discovery atomic.Int64 }

type counter struct {
	next http.RoundTripper
	n    *requests
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	q := r.URL.Query()
	switch {
	case r.Method != http.MethodGet && q.Get("dryRun") != "":
		c.n.dryRun.Add(1)
	case r.Method != http.MethodGet:
		c.n.write.Add(1)
	case q.Get("watch") != "":
		c.n.watch.Add(1)
	case isObjectPath(r.URL.Path):
		c.n.read.Add(1)
	default:
		c.n.discovery.Add(1)
	}
	return c.next.RoundTrip(r)
}

// isObjectPath tells /api/v1/pods and /apis/apps/v1/deployments from /api/v1 and /apis/apps/v1.
func isObjectPath(p string) bool {
	parts := strings.Split(strings.Trim(p, "/"), "/")
	return parts[0] == "api" && len(parts) > 2 || parts[0] == "apis" && len(parts) > 3
}
