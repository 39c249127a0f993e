package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// kind is where objects of a kind are found in the API.
type kind struct {
	gvr        schema.GroupVersionResource
	kind       string
	namespaced bool
	listable   bool
}

// kinds is what the API server serves. It is read on first use and again when somebody asks for a kind that is not in it,
// at most once per pass: a CRD may have come meanwhile. client-go's discovery client and RESTMapper do the same but drag
// in every typed API, OpenAPI and protobuf: 28 MB instead of 15 MB for a binary with nothing but this package.
type kinds struct {
	raw rest.Interface

	mu        sync.Mutex
	loaded    bool
	byKind    map[schema.GroupVersionKind]kind
	versions  map[schema.GroupKind][]string // in the server's order of preference
	groups    []schema.GroupVersion
	unhealthy map[schema.GroupVersion]bool // aggregated APIs that do not answer
}

func newKinds(raw rest.Interface) *kinds { return &kinds{raw: raw} }

// pass is what one Apply, Check or Remove finds out once: which kinds there are, and with whose rights to write.
type pass struct {
	a         *Applier
	d         Deployment
	removing  bool
	refreshed bool

	resolved  bool // the rest is known; see writer
	dyn       dynamic.Interface
	noAccount string
	orphaned  bool // the account is gone, and the agent's own rights stand in for it to clean up
}

func (a *Applier) pass(d Deployment) *pass { return &pass{a: a, d: d} }

// find is where a kind is served. finding is set when it is not; err when that cannot be known now.
func (p *pass) find(ctx context.Context, ref Ref) (kind, *Finding, error) {
	gvk := schema.GroupVersionKind{Group: ref.Group, Version: ref.Version, Kind: ref.Kind}
	k := p.a.kinds
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		if !k.loaded {
			if err := k.load(ctx); err != nil {
				if out := p.a.outage(ctx, err); out != nil {
					return kind{}, nil, out
				}
				return kind{}, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
			p.refreshed = true
		}
		if found, ok := k.byKind[gvk]; ok {
			return found, nil, nil
		}
		if p.refreshed {
			return kind{}, k.unknown(ref, gvk), nil
		}
		k.loaded = false
	}
}

// any finds a kind in whatever version is served now: for objects that were applied by an older release.
func (p *pass) any(ctx context.Context, ref Ref) (kind, *Finding, error) {
	found, f, err := p.find(ctx, ref)
	if f == nil || err != nil {
		return found, f, err
	}
	k := p.a.kinds
	k.mu.Lock()
	defer k.mu.Unlock()
	gk := schema.GroupKind{Group: ref.Group, Kind: ref.Kind}
	if vs := k.versions[gk]; len(vs) > 0 {
		return k.byKind[gk.WithVersion(vs[0])], nil, nil
	}
	return kind{}, f, nil
}

// unknown needs mu.
func (k *kinds) unknown(ref Ref, gvk schema.GroupVersionKind) *Finding {
	if k.unhealthy[gvk.GroupVersion()] {
		return &Finding{Ref: ref, Reason: Unavailable, Message: fmt.Sprintf("the API %s does not answer (see its APIService)", gvk.GroupVersion())}
	}
	msg := fmt.Sprintf("no matches for kind %q in version %q (is its CRD installed?)", gvk.Kind, gvk.GroupVersion())
	if vs := k.versions[gvk.GroupKind()]; len(vs) > 0 {
		msg = fmt.Sprintf("no matches for kind %q in version %q: this cluster serves %s", gvk.Kind, gvk.GroupVersion(), strings.Join(vs, ", "))
	}
	return &Finding{Ref: ref, Reason: UnknownKind, Message: msg}
}

// add makes kinds known that a CRD has just brought, without asking for all of them again.
func (k *kinds) add(found kind, versions []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.loaded {
		return
	}
	gk := schema.GroupKind{Group: found.gvr.Group, Kind: found.kind}
	for _, v := range versions {
		f := found
		f.gvr.Version = v
		k.byKind[gk.WithVersion(v)] = f
		if !slices.Contains(k.versions[gk], v) {
			k.versions[gk] = append(k.versions[gk], v)
		}
	}
}

// reset forgets everything: a kind that was served has gone.
func (k *kinds) reset() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.loaded = false
}

// preferred lists every kind that can be listed, once, in its preferred version.
func (k *kinds) preferred(ctx context.Context) ([]kind, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(ctx); err != nil {
		return nil, err
	}
	var out []kind
	for gk, vs := range k.versions {
		if f := k.byKind[gk.WithVersion(vs[0])]; f.listable {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b kind) int { return strings.Compare(a.gvr.String(), b.gvr.String()) })
	return out, nil
}

// names lists "group/version" and "group/version/Kind", sorted: what charts ask .Capabilities.APIVersions for.
func (k *kinds) names(ctx context.Context) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(ctx); err != nil {
		return nil, err
	}
	var out []string
	for _, gv := range k.groups {
		out = append(out, gv.String())
	}
	for gvk := range k.byKind {
		out = append(out, gvk.GroupVersion().String()+"/"+gvk.Kind)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// acceptDiscovery asks for everything in one document; servers before 1.27 answer with the old form instead.
const acceptDiscovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList," +
	"application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"

// discovered is the aggregated form and, in Kind APIGroupList and APIVersions, the old one.
type discovered struct {
	Kind  string `json:"kind"`
	Items []struct {
		Metadata struct{ Name string } `json:"metadata"`
		Versions []struct {
			Version   string `json:"version"`
			Freshness string `json:"freshness"`
			Resources []struct {
				Resource     string                                `json:"resource"`
				Scope        string                                `json:"scope"`
				ResponseKind struct{ Group, Version, Kind string } `json:"responseKind"`
				Verbs        []string                              `json:"verbs"`
			} `json:"resources"`
		} `json:"versions"`
	} `json:"items"`
	Versions []string `json:"versions"` // APIVersions
	Groups   []struct {
		Name     string                     `json:"name"`
		Versions []struct{ Version string } `json:"versions"`
	} `json:"groups"` // APIGroupList
}

// load needs mu.
func (k *kinds) load(ctx context.Context) error {
	fresh := &kinds{byKind: map[schema.GroupVersionKind]kind{}, versions: map[schema.GroupKind][]string{}, unhealthy: map[schema.GroupVersion]bool{}}
	for _, path := range []string{"/api", "/apis"} {
		if err := k.loadFrom(ctx, path, fresh); err != nil {
			return fmt.Errorf("read the API server's kinds: %w", err)
		}
	}
	k.byKind, k.versions, k.groups, k.unhealthy, k.loaded = fresh.byKind, fresh.versions, fresh.groups, fresh.unhealthy, true
	return nil
}

func (k *kinds) loadFrom(ctx context.Context, path string, into *kinds) error {
	var d discovered
	if err := k.get(ctx, path, acceptDiscovery, &d); err != nil {
		return err
	}
	for _, g := range d.Items {
		for _, v := range g.Versions {
			gv := schema.GroupVersion{Group: g.Metadata.Name, Version: v.Version}
			into.groups = append(into.groups, gv)
			if v.Freshness == "Stale" {
				into.unhealthy[gv] = true
			}
			for _, r := range v.Resources {
				into.put(gv, kind{gvr: gv.WithResource(r.Resource), kind: r.ResponseKind.Kind, namespaced: r.Scope == "Namespaced", listable: slices.Contains(r.Verbs, "list")})
			}
		}
	}
	for _, v := range d.Versions {
		if err := k.loadOld(ctx, schema.GroupVersion{Version: v}, into); err != nil {
			return err
		}
	}
	for _, g := range d.Groups {
		for _, v := range g.Versions {
			if err := k.loadOld(ctx, schema.GroupVersion{Group: g.Name, Version: v.Version}, into); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *kinds) loadOld(ctx context.Context, gv schema.GroupVersion, into *kinds) error {
	into.groups = append(into.groups, gv)
	path := "/apis/" + gv.String()
	if gv.Group == "" {
		path = "/api/" + gv.Version
	}
	var list struct {
		Resources []struct {
			Name, Kind string
			Namespaced bool
			Verbs      []string
		}
	}
	if err := k.get(ctx, path, "application/json", &list); err != nil {
		if gv.Group != "" && isStatus(err) {
			into.unhealthy[gv] = true
			return nil
		}
		return err
	}
	for _, r := range list.Resources {
		if !strings.Contains(r.Name, "/") {
			into.put(gv, kind{gvr: gv.WithResource(r.Name), kind: r.Kind, namespaced: r.Namespaced, listable: slices.Contains(r.Verbs, "list")})
		}
	}
	return nil
}

func (k *kinds) put(gv schema.GroupVersion, f kind) {
	if f.kind == "" {
		return
	}
	gvk := gv.WithKind(f.kind)
	if _, ok := k.byKind[gvk]; ok {
		return // the first resource that yields a kind is the kind's own
	}
	k.byKind[gvk] = f
	k.versions[gvk.GroupKind()] = append(k.versions[gvk.GroupKind()], gv.Version)
}

func (k *kinds) get(ctx context.Context, path, accept string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	b, err := k.raw.Get().AbsPath(path).SetHeader("Accept", accept).DoRaw(ctx)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}
