// Package controller is the hub without its broker: it watches Bundles, Clusters, ClusterGroups and registration tokens in a
// Kubernetes cluster, decides what each member of the fleet is to run, and publishes that through a mqtt.Carrier, which may
// be the embedded broker or a client of another one.
package controller

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/go-logr/zerologr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/enroll"
	"shoal.dev/shoal/controller/fleet"
	"shoal.dev/shoal/controller/lease"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/reconcile"
	"shoal.dev/shoal/controller/render"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

// DefaultNamespace is the hub's own namespace.
const DefaultNamespace = "shoal-system"

// Options of a hub.
type Options struct {
	Kubernetes *rest.Config // the cluster whose resources are the hub's API
	Namespace  string       // for the hub's own Secrets; default DefaultNamespace
	Prefix     topics.Prefix
	// StaleAfter is how long after the last news from the hub a site calls itself stale; documents are renewed in time.
	StaleAfter time.Duration
	// DefaultRollback is how long a release may take to become ready, where its bundle says nothing about going back; then
	// sites go back to the release before. 0: they do not.
	DefaultRollback time.Duration
	// DownstreamNamespaces are those whose Secrets and ConfigMaps bundles may send to clusters; "*": all but Namespace.
	DownstreamNamespaces []string
	// Holder names this hub in its Lease: the same over restarts, different for every other hub. Default: one of this process.
	Holder string
	// MetricsListen serves /metrics, /healthz and /readyz; empty: not served.
	MetricsListen string
	Registry      *prometheus.Registry // gathered besides the controllers' own; may be nil
	// RenderedDir keeps rendered bundles, Secrets among them, over a restart; empty: they are rendered again.
	RenderedDir string
	Log         zerolog.Logger
}

// Hub is made by New and serves once, by Run.
type Hub struct {
	o       Options
	keys    *enroll.Keys
	mgr     ctrl.Manager
	view    *fleet.View
	work    *reconcile.Hub
	metrics net.Listener
	synced  chan struct{} // closed when the cache is complete

	lease      *lease.Lease
	direct     client.Client // not cached
	plain      client.Client // not guarded either
	informers  []informer
	registry   *prometheus.Registry
	keeping    keeping
	background sync.WaitGroup
	ended      context.Context // of the background; its cause is why the hub has to end
	end        context.CancelCauseFunc
}

// Attachment is what carries the hub's messages.
type Attachment struct {
	Carrier mqtt.Carrier
	URL     string // of the broker, as agents and people reach it
	// Disconnect ends the connections of an identity; nil where the broker is not ours.
	Disconnect func(identity string)
}

// New waits until no other hub works on the API, installs the hub's resource definitions, loads or makes its keys and prepares
// everything up to, but not including, the first message. From then on the hub holds its Lease: Run or Close gives it up.
func New(ctx context.Context, o Options) (_ *Hub, err error) {
	if o.Namespace == "" {
		o.Namespace = DefaultNamespace
	}
	if o.Prefix == "" {
		o.Prefix = topics.Default
	}
	if o.Holder == "" {
		o.Holder = rand.Text()
	}
	lib := library(o.Log)
	ctrl.SetLogger(zerologr.New(&lib))
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("build scheme: %w", err)
	}
	h := &Hub{o: o, synced: make(chan struct{}), registry: prometheus.NewRegistry()}
	h.registry.MustRegister(health{h})
	h.lease, err = lease.New(lease.Options{Kubernetes: o.Kubernetes, Namespace: o.Namespace, Holder: o.Holder, Log: component(o.Log, "lease")})
	if err != nil {
		return nil, err
	}
	if o.MetricsListen != "" {
		if h.metrics, err = net.Listen("tcp", o.MetricsListen); err != nil {
			return nil, fmt.Errorf("listen for metrics: %w", err)
		}
	}
	h.ended, h.end = context.WithCancelCause(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	h.background.Go(func() { h.serveMetrics(h.ended) })
	if err := h.lease.Acquire(ctx); err != nil {
		return nil, err
	}
	h.background.Go(func() { h.end(h.lease.Run(h.ended)) })
	guarded := h.lease.Guard(o.Kubernetes)
	if h.plain, err = client.New(o.Kubernetes, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("reach the hub's Kubernetes API at %s: %w", o.Kubernetes.Host, err)
	}
	if h.direct, err = client.New(guarded, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("reach the hub's Kubernetes API at %s: %w", o.Kubernetes.Host, err)
	}
	if err := Install(ctx, h.direct); err != nil {
		return nil, err
	}
	if h.keys, err = enroll.LoadKeys(ctx, h.direct, o.Namespace); err != nil {
		return nil, err
	}
	h.background.Go(func() { h.keepKeys(h.ended) })
	if h.mgr, err = manager(o, guarded, scheme); err != nil {
		return nil, err
	}
	if err := h.watch(ctx); err != nil {
		return nil, err
	}
	log := component(o.Log, "render")
	rendered, err := render.NewCache(render.CacheOptions{Dir: o.RenderedDir, Warn: func(err error) { log.Warn().Err(err).Msg("rendered bundle not kept") }})
	if err != nil {
		return nil, err
	}
	h.work = &reconcile.Hub{Keys: h.keys, Render: rendered, Namespace: o.Namespace, StaleAfter: o.StaleAfter, DefaultRollback: o.DefaultRollback, DownstreamNamespaces: o.DownstreamNamespaces, Log: component(o.Log, "reconcile")}
	h.view = fleet.New(fleet.Options{Prefix: o.Prefix, Trust: h.keys.Trust(), Log: component(o.Log, "fleet"), Changed: h.work.Changed})
	h.work.View = h.view
	h.registry.MustRegister(h.view.Metrics())
	return h, nil
}

func manager(o Options, cfg *rest.Config, scheme *runtime.Scheme) (ctrl.Manager, error) {
	lib := library(o.Log)
	skipName := true // a process may hold several hubs, in tests
	opts := ctrl.Options{
		Scheme:                 scheme,
		Metrics:                server.Options{BindAddress: "0"}, // served with the hub's own
		HealthProbeBindAddress: "0",
		Logger:                 zerologr.New(&lib),
		Client:                 client.Options{Cache: &client.CacheOptions{}},
		// Secrets and ConfigMaps are read one at a time and seldom: a cache of them would hold every secret of the cluster.
		NewCache: cache.New,
	}
	opts.Client.Cache.DisableFor = uncached()
	opts.Controller.SkipNameValidation = &skipName
	timeout := 3 * time.Second // of the 5 s that a clean stop may take
	opts.GracefulShutdownTimeout = &timeout
	mgr, err := ctrl.NewManager(cfg, opts)
	if err != nil {
		return nil, fmt.Errorf("prepare controllers: %w", err)
	}
	return mgr, nil
}

// library is the log of controller-runtime. What it calls information (each source and worker that it starts) is of use only to
// whoever looks for a fault in the hub itself.
func library(log zerolog.Logger) zerolog.Logger {
	if log.GetLevel() > zerolog.DebugLevel {
		log = log.Level(max(log.GetLevel(), zerolog.WarnLevel))
	}
	return log.With().Str("component", "controller-runtime").Logger()
}

// ServerTLS is the broker's side of TLS for the given host names and addresses.
func (h *Hub) ServerTLS(hosts []string) (*tls.Config, error) { return h.keys.ServerTLS(hosts) }

// MetricsAddr is where metrics are served; nil if they are not.
func (h *Hub) MetricsAddr() net.Addr {
	if h.metrics == nil {
		return nil
	}
	return h.metrics.Addr()
}

// Authenticator says who the broker's clients are. It waits a little for a hub that is just starting.
func (h *Hub) Authenticator() mqtt.Authenticator {
	return &enroll.Authenticator{
		Reader: h.mgr.GetClient(), Namespace: h.o.Namespace, Prefix: h.o.Prefix, InGroup: h.work.InGroup, Refusals: &h.work.Refusals,
		Synced: func(ctx context.Context) bool {
			select {
			case <-h.synced:
				return true
			case <-ctx.Done():
				return false
			}
		},
	}
}

// Close gives the Lease up. Run does that as well; a hub that is not run has to be closed.
func (h *Hub) Close() {
	h.end(nil)
	h.background.Wait()
	if h.metrics != nil {
		_ = h.metrics.Close() // it may never have been served
	}
	h.lease.Release(context.Background())
}

// Run serves until ctx ends, or until another hub took over or the API went back to an older state: then the process is to end,
// and whoever starts it again gets a hub that reads everything anew.
func (h *Hub) Run(ctx context.Context, a Attachment) error {
	defer h.Close()
	started := time.Now()
	a.Carrier = h.lease.Carrier(a.Carrier)
	h.work.URL, h.work.Disconnect = a.URL, a.Disconnect
	h.work.Publisher = publish.New(publish.Options{Carrier: a.Carrier, Prefix: h.o.Prefix, Signer: h.keys.Signing, Log: component(h.o.Log, "publish")})
	if err := enroll.EnsureReader(ctx, h.mgr.GetClient(), h.o.Namespace, h.keys, a.URL); err != nil {
		return err
	}
	inbox := newInbox(h)
	// What was ordered is read back from the broker before anything is decided: see publish.
	stopOwn, err := a.Carrier.Subscribe(ctx, inbox.own, h.o.Prefix.FromHub()...)
	if err != nil {
		return fmt.Errorf("read back what was ordered: %w", err)
	}
	stopOwn()
	stop, err := a.Carrier.Subscribe(ctx, inbox.receive, h.o.Prefix.FromAgents()...)
	if err != nil {
		return fmt.Errorf("listen to clusters: %w", err)
	}
	defer stop()
	if err := h.work.Setup(h.mgr); err != nil {
		return err
	}
	if err := h.expect(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.watchOver(ctx) })
	g.Go(func() error { return h.openDoors(ctx) })
	g.Go(func() error { return h.mgr.Start(ctx) })
	g.Go(func() error { return inbox.run(ctx, a.Carrier) })
	g.Go(func() error { return h.tick(ctx, started) })
	h.o.Log.Info().Str("url", a.URL).Str("namespace", h.o.Namespace).Msg("hub serves")
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// expect tells the view which bundles there are: no document is written before each was looked at.
func (h *Hub) expect(ctx context.Context) error {
	var list v1alpha1.BundleList
	if err := h.mgr.GetAPIReader().List(ctx, &list); err != nil {
		return fmt.Errorf("list bundles: %w", err)
	}
	for _, b := range list.Items {
		h.view.Expect(b.Namespace, b.Name)
	}
	return nil
}

// openDoors lets clients in once the cache can tell who they are.
func (h *Hub) openDoors(ctx context.Context) error {
	if !h.mgr.GetCache().WaitForCacheSync(ctx) {
		return ctx.Err()
	}
	close(h.synced)
	return nil
}

// tick does what time alone makes due.
func (h *Hub) tick(ctx context.Context, started time.Time) error {
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			for _, c := range h.view.Tick(started, now) {
				if err := h.work.Publisher.Ask(ctx, c, topics.VerbReport); err != nil {
					h.o.Log.Warn().Err(err).Str("cluster", c.String()).Msg("ask for a report")
				}
			}
			if n%12 == 0 {
				if err := h.work.Publisher.Collect(ctx, now); err != nil {
					h.o.Log.Warn().Err(err).Msg("clear old parts")
				}
			}
		}
	}
}

func component(l zerolog.Logger, name string) zerolog.Logger {
	return l.With().Str("component", name).Logger()
}
