// Package v1alpha1 holds the Kubernetes types users write and read on the hub: Bundle, Cluster, ClusterGroup and
// ClusterRegistrationToken of group shoal.dev. Their namespace is the workspace (one tenant).
//
// The comments on fields are what `kubectl explain` prints, so they are written for users. The CRDs in deploy/crds and
// zz_generated.deepcopy.go are generated from this package (`task gen`); a test in package deploy fails when they differ.
//
// Spec is what people want and only people (or tools on their behalf) write it; status is what the hub saw and only the
// hub writes it. There is no object per bundle and cluster: the summaries here and the reported documents on the broker
// take that place.
//
// The package imports apimachinery only, so that everything may import it cheaply.
//
// +kubebuilder:object:generate=true
// +groupName=shoal.dev
package v1alpha1
