package controller

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/deploy"
)

// fieldManager owns what the hub applies.
const fieldManager = "shoal-controller"

// uncached lists kinds that are read from the API server each time.
func uncached() []client.Object { return []client.Object{&corev1.Secret{}, &corev1.ConfigMap{}} }

// Install brings the resource definitions up to date.
func Install(ctx context.Context, c client.Client) error {
	for _, doc := range deploy.CRDs() {
		var u unstructured.Unstructured
		if err := yaml.Unmarshal(doc, &u.Object); err != nil {
			return fmt.Errorf("read embedded resource definition: %w", err)
		}
		if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(&u), client.FieldOwner(fieldManager), client.ForceOwnership); err != nil {
			return fmt.Errorf("install %s: %w (the hub's identity needs create and patch on customresourcedefinitions)", u.GetName(), err)
		}
		if err := established(ctx, c, u.GetName()); err != nil {
			return err
		}
	}
	return served(ctx, c)
}

func established(ctx context.Context, c client.Client, name string) error {
	var u unstructured.Unstructured
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: apiextensionsv1.GroupName, Version: "v1", Kind: "CustomResourceDefinition"})
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		if err := c.Get(ctx, client.ObjectKey{Name: name}, &u); err != nil {
			return false, err
		}
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions") // null at first
		for _, x := range conditions {
			if m, ok := x.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("wait for %s to be served: %w", name, err)
	}
	return nil
}

// served waits until the kinds can be found: a definition is Established a moment before discovery tells of it.
func served(ctx context.Context, c client.Client) error {
	for _, list := range []client.ObjectList{&v1alpha1.BundleList{}, &v1alpha1.ClusterList{}, &v1alpha1.ClusterGroupList{}, &v1alpha1.ClusterRegistrationTokenList{}} {
		err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
			err := c.List(ctx, list, client.Limit(1))
			if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
				return false, nil
			}
			return err == nil, err
		})
		if err != nil {
			return fmt.Errorf("wait for the hub's kinds to be served: %w", err)
		}
	}
	return nil
}
