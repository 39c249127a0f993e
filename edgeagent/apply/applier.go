// Package apply turns a rendered bundle into what runs on the cluster, keeps watching it, and says exactly what is wrong.
//
// One file per verb: [Applier.Apply] (with prune), [Applier.Check], [Applier.Remove], [Applier.Watch], [Applier.Facts].
// All of them are safe to call at the same time, except that one deployment must not be applied or removed by two callers
// at once. None keeps state that matters: a new Applier over the same cluster carries on.
//
// # Ownership
//
// The label shoal.dev/deployment=NAME on an object is the record of ownership; nothing else is added to objects. An object
// with another deployment's label is not touched, that is an error of this deployment, unless the other one is ordered to drop it:
// it changes hands then, by its label alone. What a deployment drops and does not delete loses the label. An object without the label that a
// bundle names is adopted, as kubectl apply does, unless a controller owns it (a Pod of a ReplicaSet, say); an [Install] does
// so only with Policy.TakeOwnership, except for namespaces and for what the agent itself has written last. Prune and
// Remove delete only what carries the label at that moment, whatever the inventory says.
//
// What carries [AgentLabel] is changed by the deployment [AgentDeployment] only and deleted by none.
//
// # Rights
//
// Objects are read and watched with the agent's own rights. They are written and dry run, and the site's values are read,
// with those of the service account that the deployment names, or of [DefaultAccount] where the site has that.
//
// # Conflicts
//
// Objects are written with server-side apply under the field manager [FieldManager]. What the bundle states is the
// signed will of the fleet's owner, so its fields are taken even from other managers; every field that was taken is in
// [Result.Taken] with the manager that had it, so that a loop with another controller can be seen. What the bundle states is its
// alone: a field that a release drops goes, also when somebody else has set it as well. Fields the bundle never stated belong to
// whoever set them. Some fields the site owns although bundles usually state them, see [siteOwned].
//
// # Errors
//
// An error returned by a verb means that the pass could not be finished: the API server is away ([ErrUnavailable], try
// again with back-off) or ctx ended. What is wrong with single objects is a [Finding] in the result, and the rest went on.
package apply

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"shoal.dev/shoal/bundlefmt"
)

const (
	// Label names the deployment that owns an object.
	Label = "shoal.dev/deployment"
	// FieldManager is the agent's name in managedFields.
	FieldManager = "shoal-agent"

	// requestTimeout bounds one request: a hanging API server must not hold a pass for ever. Watches are exempt.
	requestTimeout = 30 * time.Second
)

// Ref names one object.
type Ref = bundlefmt.Ref

// Deployment is what to apply or check.
type Deployment struct {
	Name    string
	Serial  bundlefmt.Serial   // for logs
	Objects []bundlefmt.Object // with the objects of hooks
	Policy  bundlefmt.Policy

	Handling  bundlefmt.Handling
	Operation Operation

	// Before are the objects of what was applied before, asked for only where it matters: a field of theirs that is not in Objects
	// any more goes, also when somebody else has written it since. nil: not known.
	Before func() []bundlefmt.Object

	// Heir is who is ordered to have an object that this deployment drops; empty: nobody. wait says why that is not known yet: the
	// object stays then, and the pass ends with that as an error. nil: nobody has.
	Heir func(context.Context, Ref) (heir, wait string, err error)
	// Yields reports whether another deployment, which has an object, is ordered to drop it. nil: none is.
	Yields func(ctx context.Context, holder string, ref Ref) (bool, error)

	// Was is the number of objects of the release that was last applied in full, without a Held prune; 0: not known. The
	// share that a prune would delete is of this: previous is no measure, it holds the new objects as well.
	Was int

	// Progress is told, from the goroutine of Apply and Remove, what a long wait is for; nil: nobody wants to know.
	Progress func(message string)

	Runs []Run // as the last Apply or Check has returned them
}

// Operation is what an apply is to the site; it decides which hooks run.
type Operation string

// Operations. The empty one runs no hooks: a repair.
const (
	Install  Operation = "install"
	Upgrade  Operation = "upgrade"
	Rollback Operation = "rollback"
)

// Options say what the agent itself is on the cluster.
type Options struct {
	Namespace string // the agent's own: service accounts, locks and records are there; empty: none
}

// Applier works on one cluster.
type Applier struct {
	o        Options
	cfg      *rest.Config
	log      zerolog.Logger
	dyn      dynamic.Interface
	meta     metadata.Interface
	raw      rest.Interface
	kinds    *kinds
	http     *http.Client
	requests requests
	tracked  tracked

	mu       sync.Mutex
	verified map[id]verdict // objects known to be as wanted: spares the dry run
	accounts map[string]dynamic.Interface
	was      map[string]int     // Deployment.Was, as far as this process knows better
	removing map[string]leaving // removals under way
	scalers  map[string]rememberedScalers
	health   healthPrograms
	hidden   map[id]map[string]bool // where values of the site are
}

// id is a Ref without its version: the same object whatever version it was written in.
type id struct{ group, kind, namespace, name string }

func idOf(r Ref) id { return id{r.Group, r.Kind, r.Namespace, r.Name} }

// New prepares clients for the cluster that cfg names; it sends nothing. cfg is not changed.
func New(cfg *rest.Config, o Options, log zerolog.Logger) (*Applier, error) {
	a := &Applier{o: o, log: log.With().Str("component", "apply").Logger(), verified: map[id]verdict{},
		accounts: map[string]dynamic.Interface{}, was: map[string]int{}, removing: map[string]leaving{}, scalers: map[string]rememberedScalers{}, hidden: map[id]map[string]bool{}}
	c := rest.CopyConfig(cfg)
	c.UserAgent = FieldManager
	c.Timeout = 0 // would end watches; every other request has requestTimeout
	if c.QPS == 0 {
		c.QPS, c.Burst = 50, 100 // the default of 5 makes a large bundle take minutes
	}
	c.WarningHandlerWithContext = warnings{a.log}
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &counter{next: next, n: &a.requests} })
	a.cfg = c
	h, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	a.http = h
	if a.dyn, err = dynamic.NewForConfigAndClient(c, h); err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	if a.meta, err = metadata.NewForConfigAndClient(c, h); err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	rc := dynamic.ConfigFor(c)
	rc.GroupVersion, rc.APIPath = nil, "/"
	if a.raw, err = rest.UnversionedRESTClientForConfigAndClient(rc, h); err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	a.kinds = newKinds(a.raw)
	a.tracked.init()
	return a, nil
}

// Close drops idle connections. No verb may be running.
func (a *Applier) Close() { a.http.CloseIdleConnections() }

// client is where objects of o's kind and namespace are read and written.
func (a *Applier) client(k kind, namespace string) dynamic.ResourceInterface {
	if k.namespaced {
		return a.dyn.Resource(k.gvr).Namespace(namespace)
	}
	return a.dyn.Resource(k.gvr)
}

func (a *Applier) metaClient(k kind, namespace string) metadata.ResourceInterface {
	if k.namespaced && namespace != "" {
		return a.meta.Resource(k.gvr).Namespace(namespace)
	}
	return a.meta.Resource(k.gvr)
}

// owner is the deployment an object belongs to; empty: none.
func owner(u *unstructured.Unstructured) string { return u.GetLabels()[Label] }

// warnings carries the API server's warnings (deprecated versions, for one) into the log.
type warnings struct{ log zerolog.Logger }

func (w warnings) HandleWarningHeaderWithContext(_ context.Context, code int, _ string, text string) {
	if code == 299 && text != "" {
		w.log.Debug().Str("warning", text).Msg("api server warns")
	}
}
