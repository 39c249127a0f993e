package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
)

// downstreamEvery is how often Secrets and ConfigMaps that go to clusters are read again. The hub has no right to watch them:
// that would be the right to read every one there is.
const downstreamEvery = 15 * time.Second

// downstream reads the objects of the bundle's namespace that go to clusters with it, each once a pass. They lose everything
// but their content. problem is for people; err is worth trying again.
func (p *pass) downstream(ctx context.Context, wanted []v1alpha1.DownstreamResource) (objects []bundlefmt.Object, problem, err error) {
	for _, r := range wanted {
		got, ok := p.extras[r]
		if !ok {
			if got.object, got.problem, err = p.readDownstream(ctx, r); err != nil {
				return nil, nil, err
			}
			if p.extras == nil {
				p.extras = map[v1alpha1.DownstreamResource]extra{}
			}
			p.extras[r] = got
		}
		if got.problem != nil {
			return nil, got.problem, nil
		}
		objects = append(objects, got.object)
	}
	return objects, nil, nil
}

// extra is a downstream resource as it was read.
type extra struct {
	object  bundlefmt.Object
	problem error
}

// sendsFrom says whether bundles may send what is in a namespace of the hub's API. The hub's own holds its keys: it must be named.
func (h *Hub) sendsFrom(namespace string) bool {
	return slices.Contains(h.DownstreamNamespaces, namespace) || namespace != h.Namespace && slices.Contains(h.DownstreamNamespaces, "*")
}

func (p *pass) readDownstream(ctx context.Context, r v1alpha1.DownstreamResource) (o bundlefmt.Object, problem, err error) {
	key := types.NamespacedName{Namespace: p.bundle.Namespace, Name: r.Name}
	content := map[string]any{"apiVersion": "v1", "kind": r.Kind, "metadata": map[string]any{"name": r.Name}}
	put := func(k string, v any, there bool) {
		if there {
			content[k] = v
		}
	}
	if why := validation.IsDNS1123Subdomain(r.Name); len(why) > 0 { // asking for it would fail for ever, and no status would say so
		return o, fmt.Errorf("downstreamResources: %s %.80q is no name of an object: use lower case letters, digits, '-' and '.'", r.Kind, r.Name), nil
	}
	forbidden := func() error {
		return fmt.Errorf("downstreamResources: %s %s: the hub may not read %ss in namespace %s: add the namespace to rbac.downstreamNamespaces of the hub's chart", r.Kind, r.Name, strings.ToLower(r.Kind), key.Namespace)
	}
	if !p.sendsFrom(key.Namespace) {
		return o, forbidden(), nil
	}
	switch r.Kind {
	case "Secret":
		var s corev1.Secret
		err = p.Client.Get(ctx, key, &s)
		put("type", s.Type, s.Type != "")
		put("data", s.Data, len(s.Data) > 0)
		put("immutable", s.Immutable, s.Immutable != nil)
	case "ConfigMap":
		var c corev1.ConfigMap
		err = p.Client.Get(ctx, key, &c)
		put("data", c.Data, len(c.Data) > 0)
		put("binaryData", c.BinaryData, len(c.BinaryData) > 0)
		put("immutable", c.Immutable, c.Immutable != nil)
	default:
		return o, fmt.Errorf("downstreamResources: %s %s: only Secret and ConfigMap can go to clusters", r.Kind, r.Name), nil
	}
	switch {
	case apierrors.IsNotFound(err):
		return o, fmt.Errorf("downstreamResources: %s %s: there is none of that name in namespace %s of the hub", r.Kind, r.Name, key.Namespace), nil
	case apierrors.IsForbidden(err):
		return o, forbidden(), nil
	case err != nil:
		return o, nil, fmt.Errorf("read %s %s: %w", r.Kind, r.Name, err)
	}
	b, err := json.Marshal(content)
	if err != nil {
		return o, nil, fmt.Errorf("encode %s %s: %w", r.Kind, r.Name, err)
	}
	if o, err = bundlefmt.NewObject(b); err != nil {
		return o, fmt.Errorf("downstreamResources: %s %s: %w", r.Kind, r.Name, err), nil
	}
	return o, nil, nil
}
