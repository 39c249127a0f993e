package edgeagent

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/client-go/rest"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/topics"
)

// Options is everything an agent is told from outside. Only DataDir and a way to the cluster (Kubernetes) are always needed;
// TokenFile and Cluster matter until the agent has enrolled and are ignored afterwards.
type Options struct {
	DataDir    string        // identity, documents, bundles and records; one running agent per directory
	TokenFile  string        // holds the enrolment ticket; read again before every attempt, so it may be replaced
	Cluster    string        // name to enrol under: a DNS label
	Kubernetes *rest.Config  // the site's own API server
	Prefix     topics.Prefix // empty: topics.Default
	Namespace  string        // the agent's own, inside the cluster: its records, locks and service accounts; empty: none of these
	Version    string        // of this agent, as reported

	// IdentitySecret names a Secret in Namespace in which the identity, private key and all, is kept as well: a lost disk then
	// needs no new enrolment. Empty: it is only on disk.
	IdentitySecret string

	Zone         *time.Location // for windows that name none; nil: time.Local
	ReadyTimeout time.Duration  // of releases that name none; 0: 10 min
	RemovalShare int            // percent of the deployments; a document that removes more (and at least three) has to be confirmed. 0: 50
	LinkTimeout  time.Duration  // a release with a way back after which the link stays away for so long is given up; 0: never

	KeepAlive     time.Duration // of the MQTT connection; 0: 60 s
	MetricsListen string        // "127.0.0.1:0" picks a port, see Addr; empty: no listener
	Log           zerolog.Logger

	Timing Timing
}

// Timing bounds and paces the agent. Zero fields take the defaults, which suit thousands of sites on one broker; tests
// shorten them.
type Timing struct {
	Report       time.Duration // least time between two retained reports; 1 s
	Refresh      time.Duration // the report is published again this often (jittered) though nothing changed; 10 min
	Recheck      time.Duration // every object is compared again this often (jittered), watch or no watch; 1 h
	NotReady     time.Duration // how soon objects that are not ready are looked at again; 15 s
	Settle       time.Duration // changes on the site are collected this long before they are looked at; 500 ms
	PartTimeout  time.Duration // a part that shows no sign of arriving is asked for by request; 20 s
	ActionLimit  time.Duration // one apply, check or removal may take this long; 5 min
	RetryMin     time.Duration // first back-off of a failed action; 2 s
	RetryMax     time.Duration // last; 5 min
	Locks        time.Duration // lock files are looked for this often; 5 s
	EnrollAnswer time.Duration // how long the hub may take to answer an enrolment; 1 min
}

func (t Timing) withDefaults() Timing {
	for _, f := range []struct {
		at *time.Duration
		d  time.Duration
	}{
		{&t.Report, time.Second},
		{&t.Refresh, 10 * time.Minute},
		{&t.Recheck, time.Hour},
		{&t.NotReady, 15 * time.Second},
		{&t.Settle, 500 * time.Millisecond},
		{&t.PartTimeout, 20 * time.Second},
		{&t.ActionLimit, 5 * time.Minute},
		{&t.RetryMin, 2 * time.Second},
		{&t.RetryMax, 5 * time.Minute},
		{&t.Locks, 5 * time.Second},
		{&t.EnrollAnswer, time.Minute},
	} {
		if *f.at <= 0 {
			*f.at = f.d
		}
	}
	return t
}

func (o Options) withDefaults() (Options, error) {
	switch {
	case o.DataDir == "":
		return o, fmt.Errorf("data directory is not set: give --data-dir")
	case o.Kubernetes == nil:
		return o, fmt.Errorf("no way to the site's API server: give --kubeconfig, or run inside the cluster")
	case o.RemovalShare < 0 || o.RemovalShare > 100:
		return o, fmt.Errorf("removal share %d is no percentage: give --removal-share between 1 and 100", o.RemovalShare)
	case o.IdentitySecret != "" && o.Namespace == "":
		return o, fmt.Errorf("identity secret %q: give --namespace as well", o.IdentitySecret)
	case o.Cluster != "" && !bundlefmt.ValidName(o.Cluster):
		return o, fmt.Errorf("cluster name %q is not a DNS label (a-z, 0-9, dashes; at most 63): give --cluster-name", o.Cluster)
	}
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return o, fmt.Errorf("data directory %s: %w", o.DataDir, err)
	}
	o.DataDir = dir
	if o.Prefix == "" {
		o.Prefix = topics.Default
	}
	if o.KeepAlive <= 0 {
		o.KeepAlive = time.Minute
	}
	if o.Zone == nil {
		o.Zone = time.Local
	}
	if o.ReadyTimeout <= 0 {
		o.ReadyTimeout = 10 * time.Minute
	}
	if o.Version == "" {
		o.Version = "dev"
	}
	o.Timing = o.Timing.withDefaults()
	return o, nil
}

// ClusterName makes a DNS label of a host name: the name a site enrols under unless told otherwise.
func ClusterName(host string) string {
	b := make([]byte, 0, len(host))
	for i := range len(host) {
		c := host[i]
		switch {
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		default:
			c = '-'
		}
		if c == '-' && (len(b) == 0 || b[len(b)-1] == '-') {
			continue
		}
		b = append(b, c)
	}
	if len(b) > 63 {
		b = b[:63]
	}
	for len(b) > 0 && b[len(b)-1] == '-' {
		b = b[:len(b)-1]
	}
	return string(b)
}

func (o Options) ticket() (bundlefmt.Ticket, error) {
	if o.TokenFile == "" {
		return bundlefmt.Ticket{}, fmt.Errorf("this site has not enrolled yet and no token file is set: make a token on the hub (shoal token create) and give its file with --token-file")
	}
	b, err := os.ReadFile(o.TokenFile)
	if err != nil {
		return bundlefmt.Ticket{}, fmt.Errorf("read enrolment token (--token-file): %w", err)
	}
	return bundlefmt.ParseTicket(string(b))
}
