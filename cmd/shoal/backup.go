package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/enroll"
	"shoal.dev/shoal/controller/reconcile"
)

// backupMark ends the last line of a backup, after the number of objects: a file that was cut short lacks it.
const backupMark = "objects: end of the backup"

// apisPrefix begins the names of ConfigMaps with the API versions of clusters; statuses name them.
const apisPrefix = "shoal-apis-"

func backupCommand(a *app) *cobra.Command {
	var system string
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write everything a hub is rebuilt from into a file",
		Long: `Write everything a hub is rebuilt from into FILE, as YAML: the hub's keys, and of all workspaces Clusters, ClusterGroups, registration
tokens and Bundles, with what of their status must not be lost (serials, known and revoked keys). The hub may run meanwhile. Secrets and ConfigMaps
that bundles only refer to (downstreamResources) are yours to back up.

FILE holds the fleet's private keys: whoever has it can give orders to every site. It is made readable by its owner only, and must not exist.`,
		Example: `  shoal backup fleet-backup.yaml

  # on a new Kubernetes, before the hub runs there
  shoal restore fleet-backup.yaml`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.backup(cmd.Context(), args[0], system, time.Now())
		},
	}
	cmd.Flags().StringVar(&system, "system-namespace", controller.DefaultNamespace, "namespace of the hub's own Secrets")
	return cmd
}

func (a *app) backup(ctx context.Context, file, system string, now time.Time) error {
	kube, _, err := a.hubClient()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("write backup: %s exists: give another name, or remove it first", file)
	}
	objects, err := collect(ctx, kube, system)
	if err != nil {
		return err
	}
	host := ""
	if cfg, err := a.kubernetes.RESTConfig(); err == nil {
		host = cfg.Host
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# Backup of the hub at %s, %s. IT HOLDS THE PRIVATE KEYS OF THE FLEET: keep it as secret as they are.\n# shoal restore FILE\n", host, now.UTC().Format(time.RFC3339))
	for _, o := range objects {
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			return fmt.Errorf("write backup: %w", err)
		}
		fmt.Fprintf(&out, "---\n%s", text)
	}
	fmt.Fprintf(&out, "# %d %s\n", len(objects), backupMark)
	if err := writeSecretFile(file, out.Bytes()); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	fmt.Fprintf(a.stdout, "%s: %s\n", file, counted(objects))
	fmt.Fprintf(a.stderr, "shoal: warning: %s holds the private keys of the fleet: keep it as secret as they are\n", file)
	return nil
}

// writeSecretFile writes a file that only its owner can read: all of it, or none.
func writeSecretFile(name string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".shoal-backup-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), name); err != nil { // unlike a rename it replaces nothing
		return err
	}
	return os.Remove(f.Name())
}

// backupKinds in the order in which they are read. Clusters come before Bundles: a Bundle that is newer than the serials beside it
// shows as a conflict after a restore, an older one would be rolled out without a word.
var backupKinds = []string{"Cluster", "ClusterGroup", "ClusterRegistrationToken", "Bundle"}

// collect reads what a backup holds.
func collect(ctx context.Context, kube client.Client, system string) ([]unstructured.Unstructured, error) {
	keys := object(corev1.SchemeGroupVersion.WithKind("Secret"))
	if err := kube.Get(ctx, client.ObjectKey{Namespace: system, Name: enroll.KeysSecret}, &keys); apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("there is no secret %s/%s: has a hub run on this Kubernetes, with that --system-namespace?", system, enroll.KeysSecret)
	} else if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	out := []unstructured.Unstructured{keys}
	for _, kind := range backupKinds {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind + "List"))
		if err := kube.List(ctx, list); err != nil {
			return nil, fmt.Errorf("list %ss: %w", kind, err)
		}
		for _, o := range list.Items {
			if o.GetDeletionTimestamp() == nil {
				out = append(out, o)
			}
		}
	}
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMapList"))
	if err := kube.List(ctx, list, client.InNamespace(system)); err != nil {
		return nil, fmt.Errorf("list configmaps: %w", err)
	}
	for _, o := range list.Items {
		if strings.HasPrefix(o.GetName(), apisPrefix) {
			out = append(out, o)
		}
	}
	for i := range out {
		strip(&out[i])
	}
	return out, nil
}

func object(gvk schema.GroupVersionKind) unstructured.Unstructured {
	var u unstructured.Unstructured
	u.SetGroupVersionKind(gvk)
	return u
}

// strip leaves what makes the same object elsewhere, field managers included: whoever wrote a field goes on with it after a restore.
func strip(o *unstructured.Unstructured) {
	if a := o.GetAnnotations(); o.GetKind() == "Bundle" && a[reconcile.Made] == "" {
		if a == nil {
			a = map[string]string{}
		}
		a[reconcile.Made] = o.GetCreationTimestamp().UTC().Format(time.RFC3339)
		o.SetAnnotations(a)
	}
	for _, f := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "selfLink", "ownerReferences"} {
		unstructured.RemoveNestedField(o.Object, "metadata", f)
	}
	o.SetManagedFields(slices.DeleteFunc(o.GetManagedFields(), func(m metav1.ManagedFieldsEntry) bool { return m.Subresource != "" }))
	if o.GetKind() != "Cluster" {
		unstructured.RemoveNestedField(o.Object, "status") // the hub makes it again
		return
	}
	for _, f := range []string{"observedGeneration", "presence", "presenceSince", "display", "stateSince", "summary", "notReady", "reportedSerial", "conditions"} {
		unstructured.RemoveNestedField(o.Object, "status", f) // true only while it was written
	}
}

// counted says how many there are of each kind.
func counted(objects []unstructured.Unstructured) string {
	var parts []string
	for _, kind := range append([]string{"Secret"}, append(slices.Clone(backupKinds), "ConfigMap")...) {
		n := 0
		for _, o := range objects {
			if o.GetKind() == kind {
				n++
			}
		}
		parts = append(parts, fmt.Sprintf("%d %s", n, kind))
	}
	return strings.Join(parts, ", ")
}

// readBackup reads a file that backup wrote.
func readBackup(file string) ([]unstructured.Unstructured, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read backup: %w", err)
	}
	text := strings.TrimRight(string(data), "\n")
	last := text[strings.LastIndexByte(text, '\n')+1:]
	var n int
	if _, err := fmt.Sscanf(last, "# %d "+backupMark, &n); err != nil || !strings.HasSuffix(last, backupMark) {
		return nil, fmt.Errorf("read backup %s: its last line is not the one of a backup: it was cut short, or shoal backup did not write it", file)
	}
	var out []unstructured.Unstructured
	for i, doc := range strings.Split("\n"+text, "\n---\n")[1:] {
		var o unstructured.Unstructured
		js, err := yaml.YAMLToJSON([]byte(doc))
		if err == nil {
			err = o.UnmarshalJSON(js) // numbers become integers, as those that are read from the API
		}
		if err != nil || o.GetKind() == "" || o.GetName() == "" {
			return nil, fmt.Errorf("read backup %s: object %d is damaged: %w", file, i+1, errors.Join(err, errors.New("no kind or no name")))
		}
		out = append(out, o)
	}
	if len(out) != n {
		return nil, fmt.Errorf("read backup %s: it holds %d objects, its end says %d", file, len(out), n)
	}
	return out, nil
}
