package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/internal/kubetest"
)

// Pool hands out clusters that look like new. Starting one costs seconds of both cores, cleaning one costs almost nothing.
type Pool struct {
	dir string
	log io.Writer

	limit int

	mu       sync.Mutex
	all      []*kubetest.Cluster
	idle     []*kubetest.Cluster
	cleaning int
	cleaned  chan struct{} // closed and replaced when cleaning is smaller
	work     sync.WaitGroup
	errs     []error // of cleaning
}

// NewPool makes an empty pool; clusters are started when they are needed, below dir, which must be short. When there are limit of
// them, a wish waits for one that is being cleaned rather than start another.
func NewPool(dir string, limit int, log io.Writer) *Pool {
	return &Pool{dir: dir, log: log, limit: limit, cleaned: make(chan struct{})}
}

// Get returns a clean cluster.
func (p *Pool) Get(ctx context.Context) (*kubetest.Cluster, error) {
	for {
		p.mu.Lock()
		if n := len(p.idle); n > 0 {
			c := p.idle[n-1]
			p.idle = p.idle[:n-1]
			p.mu.Unlock()
			return c, nil
		}
		wait, cleaned := p.cleaning > 0 && len(p.all) >= p.limit, p.cleaned
		p.mu.Unlock()
		if !wait {
			return p.Start(ctx, "sim")
		}
		select {
		case <-cleaned:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Start starts a cluster that is not for reuse unless it is Put.
func (p *Pool) Start(ctx context.Context, nodes string) (*kubetest.Cluster, error) {
	p.mu.Lock()
	n := len(p.all) + 1
	p.all = append(p.all, nil)
	p.mu.Unlock()
	name := "k" + strconv.Itoa(n)
	c, err := kubetest.Start(ctx, kubetest.Options{Dir: filepath.Join(p.dir, name), Name: name, Nodes: nodes, Log: p.log})
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all[n-1] = c
	return c, nil
}

// Put gives a cluster back. It can be had again once it is clean.
func (p *Pool) Put(c *kubetest.Cluster) {
	p.mu.Lock()
	p.cleaning++
	p.mu.Unlock()
	p.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		err := clean(ctx, c)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.cleaning--
		close(p.cleaned)
		p.cleaned = make(chan struct{})
		if err != nil { // nobody gets it any more
			p.errs = append(p.errs, fmt.Errorf("clean cluster %s: %w", c.Dir(), err))
			return
		}
		p.idle = append(p.idle, c)
	})
}

// Close stops all clusters at once.
func (p *Pool) Close() error {
	p.work.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	errs := make([]error, len(p.all))
	var wg sync.WaitGroup
	for i, c := range p.all {
		if c != nil {
			wg.Go(func() { errs[i] = c.Stop(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(append(errs, p.errs...)...)
}

// own namespaces of Kubernetes.
func builtin(namespace string) bool {
	return namespace == "default" || strings.HasPrefix(namespace, "kube-")
}

// clean removes what a story left: Shoal's own objects, whatever agents applied, and every namespace that Kubernetes does not
// make itself. Definitions stay: they harm nobody.
func clean(ctx context.Context, c *kubetest.Cluster) error {
	cl, err := kubeClient(c)
	if err != nil {
		return err
	}
	cfg, err := access(c)
	if err != nil {
		return err
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return err
	}
	kinds, err := listable(cfg)
	if err != nil {
		return err
	}
	for gvr := range kinds {
		options := metav1.ListOptions{LabelSelector: "shoal.dev/deployment"}
		if gvr.Group == "shoal.dev" {
			options = metav1.ListOptions{}
		}
		if err := removeAll(ctx, dyn.Resource(gvr), kinds[gvr], options); err != nil {
			return fmt.Errorf("%s: %w", gvr, err)
		}
	}
	return cleanNamespaces(ctx, cl)
}

func removeAll(ctx context.Context, r dynamic.NamespaceableResourceInterface, namespaced bool, o metav1.ListOptions) error {
	list, err := r.List(ctx, o)
	if err != nil {
		return client.IgnoreNotFound(err) // its definition went a moment ago
	}
	for _, u := range list.Items {
		at := dynamic.ResourceInterface(r)
		if namespaced {
			at = r.Namespace(u.GetNamespace())
		}
		if u.GetNamespace() == "" && u.GetKind() == "Namespace" {
			continue // see cleanNamespaces
		}
		if len(u.GetFinalizers()) > 0 { // nobody is there to take them off
			if _, err := at.Patch(ctx, u.GetName(), types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); client.IgnoreNotFound(err) != nil {
				return err
			}
		}
		if err := at.Delete(ctx, u.GetName(), metav1.DeleteOptions{}); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}

// cleanNamespaces deletes the namespaces and waits until they are gone: a story must be able to make one of the same name.
func cleanNamespaces(ctx context.Context, cl client.Client) error {
	return Until(ctx, func(ctx context.Context) error {
		var list corev1.NamespaceList
		if err := cl.List(ctx, &list); err != nil {
			return err
		}
		left := 0
		for _, ns := range list.Items {
			if builtin(ns.Name) {
				continue
			}
			left++
			if ns.DeletionTimestamp == nil {
				if err := cl.Delete(ctx, &ns); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
					return err
				}
			}
		}
		if left > 0 {
			return fmt.Errorf("%d namespaces are still there", left)
		}
		return nil
	})
}
