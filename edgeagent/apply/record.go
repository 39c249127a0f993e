package apply

import (
	"context"
	"encoding/base64"
	"fmt"

	"github.com/klauspost/compress/zstd"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	// RecordLabel marks what the agent keeps on the cluster about itself; its value is the deployment.
	RecordLabel = "shoal.dev/record"
	agentLabel  = "shoal.dev/agent" // what belongs to the agent: no bundle but its own may touch it

	// ownManager is the field manager of what the agent keeps for itself. The chart of the agent, which may be a bundle, makes the
	// Secret of the identity: under one name the chart's release would take the identity away, and the identity the release's labels.
	ownManager = FieldManager + "-own"

	recordPrefix = "shoal-record-"
	recordKey    = "record.zst"
	maxRecord    = 900 << 10 // bytes, compressed: an object of Kubernetes holds 1 MiB
	maxOpened    = 8 << 20   // bytes, as on disk
)

var (
	configMapKind = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	secretKind    = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
)

// Records are what PutRecord has left on the cluster, by deployment. One that cannot be read is nil: it is there, and to be
// written again. One request.
func (a *Applier) Records(ctx context.Context) (map[string][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	list, err := a.dyn.Resource(configMapKind).Namespace(a.o.Namespace).List(ctx, metav1.ListOptions{LabelSelector: RecordLabel})
	if err != nil {
		return nil, fmt.Errorf("read records in namespace %s: %w", a.o.Namespace, a.orOutage(ctx, err))
	}
	out := map[string][]byte{}
	for i := range list.Items {
		u := &list.Items[i]
		name := u.GetLabels()[RecordLabel]
		if u.GetName() != recordPrefix+name {
			continue
		}
		out[name] = openRecord(u)
	}
	return out, nil
}

func openRecord(u *unstructured.Unstructured) []byte {
	text, _, _ := unstructured.NestedString(u.Object, "binaryData", recordKey)
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) == 0 {
		return nil
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxOpened))
	if err != nil {
		return nil
	}
	defer d.Close()
	out, err := d.DecodeAll(b, nil)
	if err != nil {
		return nil
	}
	return out
}

// PutRecord keeps data about a deployment on the cluster, in a ConfigMap of the agent's namespace, which is made if it is
// not there.
func (a *Applier) PutRecord(ctx context.Context, deployment string, data []byte) error {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithWindowSize(1<<20))
	if err != nil {
		return fmt.Errorf("compress record: %w", err)
	}
	packed := e.EncodeAll(data, nil)
	if err := e.Close(); err != nil {
		return fmt.Errorf("compress record: %w", err)
	}
	if len(packed) > maxRecord {
		return fmt.Errorf("record of %s: %d bytes compressed are more than fit into an object", deployment, len(packed))
	}
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata":   map[string]any{"name": recordPrefix + deployment, "labels": map[string]any{RecordLabel: deployment, agentLabel: "true"}},
		"binaryData": map[string]any{recordKey: base64.StdEncoding.EncodeToString(packed)},
	}}
	if err := a.putOwn(ctx, configMapKind, u); err != nil {
		return fmt.Errorf("write record of %s: %w", deployment, err)
	}
	return nil
}

// putOwn writes an object of the agent's own.
func (a *Applier) putOwn(ctx context.Context, gvr schema.GroupVersionResource, u *unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	client := a.dyn.Resource(gvr).Namespace(a.o.Namespace)
	_, err := client.Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: ownManager, Force: true})
	if apierrors.IsNotFound(err) { // outside of a Pod nobody has made the namespace
		ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace",
			"metadata": map[string]any{"name": a.o.Namespace, "labels": map[string]any{agentLabel: "true"}}}}
		if _, err = a.dyn.Resource(namespaces).Create(ctx, ns, metav1.CreateOptions{FieldManager: ownManager}); err == nil || apierrors.IsAlreadyExists(err) {
			_, err = client.Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: ownManager, Force: true})
		}
	}
	return a.orOutage(ctx, err)
}

// DeleteRecord forgets a deployment; forgetting it twice is no error.
func (a *Applier) DeleteRecord(ctx context.Context, deployment string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := a.dyn.Resource(configMapKind).Namespace(a.o.Namespace).Delete(ctx, recordPrefix+deployment, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete record of %s: %w", deployment, a.orOutage(ctx, err))
	}
	return nil
}

const secretKey = "identity"

// Identity is what PutIdentity has left in the Secret; nil: nothing.
func (a *Applier) Identity(ctx context.Context, secret string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	u, err := a.dyn.Resource(secretKind).Namespace(a.o.Namespace).Get(ctx, secret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read identity from secret %s/%s: %w", a.o.Namespace, secret, a.orOutage(ctx, err))
	}
	text, _, _ := unstructured.NestedString(u.Object, "data", secretKey)
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) == 0 {
		return nil, nil
	}
	return b, nil
}

// PutIdentity keeps data in a Secret of the agent's namespace.
func (a *Applier) PutIdentity(ctx context.Context, secret string, data []byte) error {
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret",
		"metadata": map[string]any{"name": secret, "labels": map[string]any{agentLabel: "true"}},
		"data":     map[string]any{secretKey: base64.StdEncoding.EncodeToString(data)},
	}}
	if err := a.putOwn(ctx, secretKind, u); err != nil {
		return fmt.Errorf("keep identity in secret %s/%s: %w", a.o.Namespace, secret, err)
	}
	return nil
}

// orOutage is err, as ErrUnavailable if the API server is to blame.
func (a *Applier) orOutage(ctx context.Context, err error) error {
	if o := a.outage(ctx, err); o != nil {
		return o
	}
	return err
}
