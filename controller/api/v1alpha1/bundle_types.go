package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Bundle is the unit of deployment: files (Helm chart, Kustomize directory or plain YAML), options, and targets that say
// which clusters of this namespace get it and with which options. `shoal apply NAME DIR` makes one from a directory.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=bundles,shortName=bdl,categories=shoal
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.display.readyClusters`,description="Clusters where it is ready / clusters that should have it"
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.display.state`,description="Worst state over all clusters"
// +kubebuilder:printcolumn:name="Since",type=date,JSONPath=`.status.stateSince`,description="How long it has been in this state"
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.display.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,priority=1
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 53 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a bundle's name must be a DNS label of at most 53 characters (it becomes the Helm release name)"
type Bundle struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what should run, and where.
	// +optional
	Spec BundleSpec `json:"spec,omitzero"`
	// Status is what the hub sees; it is written by the hub only.
	// +optional
	Status BundleStatus `json:"status,omitzero"`
}

// BundleList is a list of bundles.
// +kubebuilder:object:root=true
type BundleList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Bundle `json:"items"`
}

// BundleSpec says what should run, and where.
type BundleSpec struct {
	// Options that hold for every target, unless the target says otherwise.
	BundleOptions `json:",inline"`

	// Paused holds back updates: clusters keep what they have and show OutOfSync.
	// +optional
	Paused bool `json:"paused,omitempty"`

	// RolloutStrategy says how many clusters may be updated at a time. Default: all.
	// +optional
	RolloutStrategy *RolloutStrategy `json:"rolloutStrategy,omitempty"`

	// Resources are the files of the bundle.
	// +optional
	// +listType=map
	// +listMapKey=name
	Resources []BundleResource `json:"resources,omitempty"`

	// Targets say which clusters get the bundle, and with which options. They are tried in order for each cluster and the
	// first one that matches counts; a cluster that none matches does not get the bundle. No targets at all mean the
	// cluster group "default".
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1000
	Targets []BundleTarget `json:"targets,omitempty"`
}

// BundleOptions are the options that can be set for the whole bundle and again for a target.
type BundleOptions struct {
	// DefaultNamespace is the Helm release namespace and the namespace of objects that name none. Default: "default".
	// +optional
	// +kubebuilder:validation:MaxLength=63
	DefaultNamespace string `json:"defaultNamespace,omitempty"`

	// Namespace forces every object into this namespace; a bundle with a cluster-scoped object is then refused.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`

	// CreateNamespace: the namespace is created when it is missing. Default: true.
	// +optional
	CreateNamespace *bool `json:"createNamespace,omitempty"`

	// Helm options, for bundles with a chart; releaseName is also .Release.Name of other bundles.
	// +optional
	Helm *HelmOptions `json:"helm,omitempty"`

	// Kustomize options, for bundles with a kustomization.
	// +optional
	Kustomize *KustomizeOptions `json:"kustomize,omitempty"`

	// YAML options, for bundles of plain YAML.
	// +optional
	YAML *YAMLOptions `json:"yaml,omitempty"`

	// CorrectDrift: objects changed on the cluster are set back.
	// +optional
	CorrectDrift *CorrectDrift `json:"correctDrift,omitempty"`

	// KeepResources leaves the objects on the cluster when the bundle is deleted or no longer targets the cluster.
	// +optional
	KeepResources bool `json:"keepResources,omitempty"`
}

// HelmOptions say how a chart is rendered.
type HelmOptions struct {
	// Chart is the chart's directory in the bundle. Default: the root, if it holds a Chart.yaml.
	// +optional
	Chart string `json:"chart,omitempty"`

	// ReleaseName is .Release.Name. Default: the bundle's name.
	// +optional
	// +kubebuilder:validation:MaxLength=53
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`
	ReleaseName string `json:"releaseName,omitempty"`

	// Values for the chart. A target's values are merged over the bundle's: maps key by key, lists are replaced.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	// +kubebuilder:pruning:PreserveUnknownFields
	Values Values `json:"values,omitempty"`
}

// KustomizeOptions say which kustomization is built.
type KustomizeOptions struct {
	// Dir is the directory in the bundle that holds kustomization.yaml. Default: the root.
	// +optional
	Dir string `json:"dir,omitempty"`
}

// YAMLOptions are for bundles of plain YAML.
type YAMLOptions struct {
	// Overlays are names of directories below overlays/, laid over the bundle's files in this order. A target's overlays
	// come after the bundle's.
	// +optional
	// +listType=atomic
	Overlays []string `json:"overlays,omitempty"`
}

// CorrectDrift says what happens with objects that were changed on the cluster.
type CorrectDrift struct {
	// Enabled: changed and deleted objects are set back as the bundle wants them.
	// +optional
	Enabled bool `json:"enabled,omitempty"`
	// Force: an object that cannot be set back by an update (a field that cannot change) is deleted and created again.
	// +optional
	Force bool `json:"force,omitempty"`
}

// RolloutStrategy says how an update spreads.
type RolloutStrategy struct {
	// MaxUnavailable is how many clusters (number, or percentage of the targeted clusters) may be updating or not ready at
	// a time. New installs are not held back. 0 freezes updates of healthy clusters. Default: 100%.
	// +optional
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`
}

// BundleResource is one file.
type BundleResource struct {
	// Name is the file's path in the bundle, with forward slashes.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Name string `json:"name"`
	// Content of the file, encoded as encoding says.
	// +optional
	Content string `json:"content,omitempty"`
	// Encoding of content: empty (text), "base64", or "base64+gz" (gzip, then base64).
	// +optional
	Encoding ResourceEncoding `json:"encoding,omitempty"`
}

// ResourceEncoding says how the content of a BundleResource is encoded.
// +kubebuilder:validation:Enum="";base64;base64+gz
type ResourceEncoding string

// Encodings of a BundleResource.
const (
	EncodingText     ResourceEncoding = ""
	EncodingBase64   ResourceEncoding = "base64"
	EncodingBase64Gz ResourceEncoding = "base64+gz"
)

// BundleTarget selects clusters and customises options for them. All criteria that are set must hold; a target without
// any criterion matches nothing.
type BundleTarget struct {
	// Options for these clusters, merged over the bundle's.
	BundleOptions `json:",inline"`

	// Name of the target, for messages.
	// +optional
	Name string `json:"name,omitempty"`
	// ClusterName is the name of the one cluster.
	// +optional
	ClusterName string `json:"clusterName,omitempty"`
	// ClusterSelector selects by the cluster's labels; an empty selector ({}) matches every cluster.
	// +optional
	ClusterSelector *metav1.LabelSelector `json:"clusterSelector,omitempty"`
	// ClusterGroup is the name of a cluster group.
	// +optional
	ClusterGroup string `json:"clusterGroup,omitempty"`
	// ClusterGroupSelector selects by the labels of the groups a cluster is in; with clusterGroup, both must hold for the
	// same group. A cluster in no group counts as in one group without name and labels.
	// +optional
	ClusterGroupSelector *metav1.LabelSelector `json:"clusterGroupSelector,omitempty"`
	// DoNotDeploy keeps the bundle off these clusters, even if a later target matches them.
	// +optional
	DoNotDeploy bool `json:"doNotDeploy,omitempty"`
}

// BundleStatus is what the hub sees of a bundle.
type BundleStatus struct {
	// ObservedGeneration is the generation of the spec this status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Display is for people.
	// +optional
	Display BundleDisplay `json:"display,omitzero"`
	// StateSince is when display.state last changed.
	// +optional
	StateSince metav1.Time `json:"stateSince,omitzero"`
	// Summary counts all clusters by state.
	// +optional
	Summary Summary `json:"summary,omitzero"`
	// NotReady names up to 10 clusters where the bundle is not ready; the counts in summary cover all.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	NotReady []NotReadyItem `json:"notReady,omitempty"`
	// RemovalHeld is set while a removal that would hit unusually much waits for someone to confirm it.
	// +optional
	RemovalHeld *RemovalHeld `json:"removalHeld,omitempty"`
	// Conditions: Ready and Rendered.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// BundleDisplay is a bundle's status for people.
type BundleDisplay struct {
	// ReadyClusters is "<ready>/<desired>".
	// +optional
	ReadyClusters string `json:"readyClusters,omitempty"`
	// State is the worst state over all clusters.
	// +optional
	State State `json:"state,omitempty"`
	// Message says what is wrong, if anything is.
	// +optional
	Message string `json:"message,omitempty"`
}

// RemovalHeld describes a removal that waits for confirmation.
type RemovalHeld struct {
	// Clusters is how many clusters would lose the bundle.
	Clusters int32 `json:"clusters"`
	// Message says why it is held and how to confirm it.
	// +optional
	Message string `json:"message,omitempty"`
	// Since when it is held.
	// +optional
	Since metav1.Time `json:"since,omitzero"`
}
