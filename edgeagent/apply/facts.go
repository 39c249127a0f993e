package apply

import (
	"context"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"shoal.dev/shoal/bundlefmt"
)

// Facts describe the cluster for the hub's renderer; Agent is left to the caller. Four requests.
func (a *Applier) Facts(ctx context.Context) (bundlefmt.Facts, error) {
	var f bundlefmt.Facts
	if err := a.facts(ctx, &f); err != nil {
		if o := a.outage(ctx, err); o != nil {
			err = o
		}
		return bundlefmt.Facts{}, fmt.Errorf("read facts of the cluster: %w", err)
	}
	return f, nil
}

func (a *Applier) facts(ctx context.Context, f *bundlefmt.Facts) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	b, err := a.raw.Get().AbsPath("/version").DoRaw(ctx)
	if err != nil {
		return err
	}
	var v struct{ GitVersion string }
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf("decode /version: %w", err)
	}
	f.KubernetesVersion = v.GitVersion
	if f.APIVersions, err = a.kinds.names(ctx); err != nil {
		return err
	}
	// One item and the server's count of the rest: a large cluster must not send all its nodes.
	nodes, err := a.meta.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"}).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	f.Nodes = len(nodes.Items)
	if rest := nodes.RemainingItemCount; rest != nil {
		f.Nodes += int(*rest)
	}
	return nil
}
