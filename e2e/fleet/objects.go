package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"shoal.dev/shoal/internal/kubetest"
)

// Deployed is the label that agents put on what they apply.
const Deployed = "shoal.dev/deployment"

// Inventory lists every object on a cluster that an agent applied, and every Pod beside one, a line each: what it is, its UID
// (changes when it is deleted and made again), its resourceVersion (changes when anything writes to it; not of Pods, whose
// status a kubelet renews), and for Pods the number of restarts. Two equal inventories mean that nothing happened between them.
func Inventory(ctx context.Context, c *kubetest.Cluster) (string, error) {
	cfg, err := access(c)
	if err != nil {
		return "", err
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return "", err
	}
	kinds, err := listable(cfg)
	if err != nil {
		return "", err
	}
	var lines []string
	namespaces := map[string]bool{}
	for gvr := range kinds {
		list, err := dyn.Resource(gvr).List(ctx, metav1.ListOptions{LabelSelector: Deployed})
		if err != nil {
			return "", fmt.Errorf("list %s: %w", gvr.GroupResource(), err)
		}
		for _, u := range list.Items {
			namespaces[u.GetNamespace()] = true
			lines = append(lines, fmt.Sprintf("%s %s/%s uid=%s resourceVersion=%s", gvr.GroupResource(), u.GetNamespace(), u.GetName(), u.GetUID(), u.GetResourceVersion()))
		}
	}
	cl, err := kubeClient(c)
	if err != nil {
		return "", err
	}
	var pods corev1.PodList
	if err := cl.List(ctx, &pods); err != nil {
		return "", fmt.Errorf("list pods: %w", err)
	}
	for _, p := range pods.Items {
		if !namespaces[p.Namespace] {
			continue
		}
		restarts := int32(0)
		for _, s := range p.Status.ContainerStatuses {
			restarts += s.RestartCount
		}
		lines = append(lines, fmt.Sprintf("pods %s/%s uid=%s restarts=%d", p.Namespace, p.Name, p.UID, restarts))
	}
	slices.Sort(lines)
	return strings.Join(append(lines, ""), "\n"), nil
}

// listable returns the resources that can be listed and deleted, each in one version, and whether they are namespaced.
func listable(cfg *rest.Config) (map[schema.GroupVersionResource]bool, error) {
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, err
	}
	lists, err := disco.ServerPreferredResources()
	if err != nil && len(lists) == 0 {
		return nil, err
	}
	kinds := map[schema.GroupVersionResource]bool{}
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, r := range l.APIResources {
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "delete") || r.Kind == "Event" {
				continue
			}
			kinds[gv.WithResource(r.Name)] = r.Namespaced
		}
	}
	if len(kinds) == 0 {
		return nil, errors.New("the API server names no resources")
	}
	return kinds, nil
}
