package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller"
	"shoal.dev/shoal/controller/lease"
)

func restoreCommand(a *app) *cobra.Command {
	var overwrite bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put back what shoal backup wrote",
		Long: `Put back what shoal backup wrote, onto a new Kubernetes or an old one. No hub may run on it meanwhile. What is missing is made; what is there
and the same stays as it is; what is there and differs is an error before anything is written, unless --overwrite puts the backup's in its place.
Keys that differ are never overwritten. No serial goes back, and nothing is deleted.

Then start the hub. Where sites follow newer documents than the backup knows of, it changes nothing and says conflict on the Cluster:
look whether the Bundles are as they should be, and resume (shoal resume --help).`,
		Example: `  shoal restore fleet-backup.yaml
  shoal get clusters -A
  shoal resume --all`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.restore(cmd.Context(), args[0], overwrite) },
	}
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "put the backup's objects in the place of those that differ")
	return cmd
}

func (a *app) restore(ctx context.Context, file string, overwrite bool) error {
	kube, _, err := a.hubClient()
	if err != nil {
		return err
	}
	objects, err := readBackup(file)
	if err != nil {
		return err
	}
	r := restorer{kube: kube, overwrite: overwrite}
	i := slices.IndexFunc(objects, func(o unstructured.Unstructured) bool { return o.GetKind() == "Secret" })
	if i < 0 {
		return fmt.Errorf("backup %s holds no keys", file)
	}
	if err := r.noHub(ctx, objects[i].GetNamespace()); err != nil {
		return err
	}
	if err := controller.Install(ctx, kube); err != nil {
		return err
	}
	if err := r.compare(ctx, objects); err != nil {
		return err
	}
	// Clusters last: the hub that is started meanwhile must not find a cluster without the bundles it has.
	order := []string{"Secret", "ConfigMap", "ClusterGroup", "ClusterRegistrationToken", "Bundle", "Cluster"}
	slices.SortStableFunc(objects, func(x, y unstructured.Unstructured) int {
		return slices.Index(order, x.GetKind()) - slices.Index(order, y.GetKind())
	})
	made := map[string]bool{}
	for _, o := range objects {
		if ns := o.GetNamespace(); !made[ns] {
			if err := kube.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}); err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("make namespace %s: %w", ns, err)
			}
			made[ns] = true
		}
		verb, err := r.put(ctx, o)
		if err != nil {
			return fmt.Errorf("restore %s: %w (what was restored so far stays; run it again)", title(&o), err)
		}
		fmt.Fprintf(a.stdout, "%s %s\n", title(&o), verb)
	}
	return nil
}

func title(o *unstructured.Unstructured) string {
	return strings.ToLower(o.GetKind()) + " " + o.GetNamespace() + "/" + o.GetName()
}

type restorer struct {
	kube      client.Client
	overwrite bool
}

// noHub makes sure that no hub works on the API: it would order from what is half restored.
func (r restorer) noHub(ctx context.Context, system string) error {
	var l coordinationv1.Lease
	err := r.kube.Get(ctx, client.ObjectKey{Namespace: system, Name: lease.Name}, &l)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a hub: %w", err)
	}
	if s := l.Spec; s.HolderIdentity != nil && *s.HolderIdentity != "" && s.RenewTime != nil && time.Since(s.RenewTime.Time) < lease.Duration {
		return fmt.Errorf("a hub runs on this Kubernetes (%s renewed its Lease at %s): stop it first, for example with kubectl -n %s scale deployment/shoal --replicas=0; a hub that was killed counts for 15 s",
			*s.HolderIdentity, s.RenewTime.UTC().Format(time.RFC3339), system)
	}
	return nil
}

// compare finds everything that stands in the way before anything is written.
func (r restorer) compare(ctx context.Context, objects []unstructured.Unstructured) error {
	var differ []string
	for _, o := range objects {
		live, err := r.live(ctx, &o)
		if err != nil {
			return err
		}
		if live == nil || same(live, &o) {
			continue
		}
		if o.GetKind() == "Secret" {
			return fmt.Errorf("%s holds other keys than the backup: sites that enrolled with those would not obey any more. If there are none, delete it first: kubectl -n %s delete secret %s",
				title(&o), o.GetNamespace(), o.GetName())
		}
		differ = append(differ, title(&o))
	}
	if len(differ) > 0 && !r.overwrite {
		return fmt.Errorf("nothing was restored, because these are there and differ from the backup:\n  %s\nkeep them and delete them from the backup, or put the backup's in their place with --overwrite", strings.Join(differ, "\n  "))
	}
	return nil
}

// live is nil if there is no such object.
func (r restorer) live(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	live := object(o.GroupVersionKind())
	err := r.kube.Get(ctx, client.ObjectKeyFromObject(o), &live)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", title(o), err)
	}
	return &live, nil
}

// same compares what people and the hub want; statuses are the hub's to write.
func same(x, y *unstructured.Unstructured) bool {
	for _, f := range []string{"spec", "data", "type"} {
		if !equality.Semantic.DeepEqual(x.Object[f], y.Object[f]) {
			return false
		}
	}
	return equality.Semantic.DeepEqual(x.GetLabels(), y.GetLabels()) && equality.Semantic.DeepEqual(x.GetAnnotations(), y.GetAnnotations())
}

// put makes or changes one object.
func (r restorer) put(ctx context.Context, o unstructured.Unstructured) (verb string, err error) {
	status, _, _ := unstructured.NestedMap(o.Object, "status")
	live, err := r.live(ctx, &o)
	switch {
	case err != nil:
		return "", err
	case live == nil:
		verb = "created"
		made := o.DeepCopy()
		made.SetManagedFields(nil)
		if err := r.kube.Create(ctx, made); err != nil {
			return "", err
		}
		live = made
	case same(live, &o):
		verb = "unchanged"
	case o.GetKind() == "Secret" || !r.overwrite:
		return "", errors.New("it has changed meanwhile")
	default:
		verb = "overwritten"
		o.SetResourceVersion(live.GetResourceVersion())
		next := o.DeepCopy()
		next.SetManagedFields(live.GetManagedFields())
		if err := r.kube.Update(ctx, next); err != nil {
			return "", err
		}
		live = next
	}
	if verb != "unchanged" && len(o.GetManagedFields()) > 0 {
		owners, err := json.Marshal(map[string]any{"metadata": map[string]any{"managedFields": o.GetManagedFields()}})
		if err != nil {
			return "", err
		}
		if err := r.kube.Patch(ctx, live, client.RawPatch(types.MergePatchType, owners)); err != nil {
			return "", err
		}
	}
	if o.GetKind() != "Cluster" || status == nil {
		return verb, nil
	}
	return verb, r.putStatus(ctx, live, status)
}

// putStatus puts back what the hub cannot learn again, without setting a serial back.
func (r restorer) putStatus(ctx context.Context, live *unstructured.Unstructured, old map[string]any) error {
	now, _, _ := unstructured.NestedMap(live.Object, "status")
	if now == nil {
		now = old
	}
	n, _, err := unstructured.NestedInt64(now, "desiredSerial")
	was, _, olderr := unstructured.NestedInt64(old, "desiredSerial")
	if err := errors.Join(err, olderr); err != nil {
		return err
	}
	now["desiredSerial"] = max(n, was)
	known, _, _ := unstructured.NestedStringSlice(now, "knownKeys")
	before, _, _ := unstructured.NestedStringSlice(old, "knownKeys")
	for _, k := range before {
		if !slices.Contains(known, k) {
			known = append(known, k)
		}
	}
	if len(known) > 0 {
		if err := unstructured.SetNestedStringSlice(now, known, "knownKeys"); err != nil {
			return err
		}
	}
	live.Object["status"] = now
	return r.kube.Status().Update(ctx, live)
}
