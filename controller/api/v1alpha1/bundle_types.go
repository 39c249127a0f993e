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

	// TargetCustomizationMode says how targets combine that match the same cluster: the first one counts (FirstMatch, the
	// default), or all of them, merged in their order (AllMatches).
	// +optional
	// +kubebuilder:validation:Enum=FirstMatch;AllMatches
	TargetCustomizationMode string `json:"targetCustomizationMode,omitempty"`
	// TargetRestrictions say which clusters may have the bundle at all. With n of them the last n targets say the same with
	// options, and those before are customizations: they change options, they do not select.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1000
	TargetRestrictions []BundleTargetRestriction `json:"targetRestrictions,omitempty"`
	// DeleteNamespace: removing the bundle from a cluster deletes its namespace with everything in it.
	// +optional
	DeleteNamespace bool `json:"deleteNamespace,omitempty"`
	// DeleteCRDResources: removing the bundle deletes its CRDs, and with them all objects of these kinds. Default: they stay.
	// +optional
	DeleteCRDResources bool `json:"deleteCRDResources,omitempty"`
	// DeleteVolumes: removing the bundle deletes its PersistentVolumes and PersistentVolumeClaims. Default: they stay.
	// +optional
	DeleteVolumes bool `json:"deleteVolumes,omitempty"`
	// DependsOn names bundles that have to be in an accepted state on the same cluster before this one changes there.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	DependsOn []BundleDependency `json:"dependsOn,omitempty"`
	// Ignore says what does not count for readiness.
	// +optional
	Ignore *Ignore `json:"ignore,omitempty"`
	// Health says when objects of a kind are ready that Kubernetes has no rule for.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Health []HealthRule `json:"health,omitempty"`
	// Templating: what is templated with the cluster's labels and values: helm.values only ("values", the default), or plain
	// manifests, kustomize files, namespaces and the release name as well ("all").
	// +optional
	// +kubebuilder:validation:Enum=values;all
	Templating string `json:"templating,omitempty"`
	// Paused holds back updates: clusters keep what they have and show OutOfSync.
	// +optional
	Paused bool `json:"paused,omitempty"`

	// RolloutStrategy says how many clusters get a release at a time, and when the next ones do.
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
	// +kubebuilder:validation:MaxLength=253
	DefaultNamespace string `json:"defaultNamespace,omitempty"`

	// Namespace forces every object into this namespace; a bundle with a cluster-scoped object is then refused.
	// +optional
	// +kubebuilder:validation:MaxLength=253
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

	// Diff says what does not count as drift.
	// +optional
	Diff *Diff `json:"diff,omitempty"`
	// NamespaceLabels are set on the target namespace; other labels are removed from it, except
	// kubernetes.io/metadata.name and those below pod-security.kubernetes.io/.
	// +optional
	NamespaceLabels map[string]string `json:"namespaceLabels,omitempty"`
	// NamespaceAnnotations are set on the target namespace; other annotations are removed from it.
	// +optional
	NamespaceAnnotations map[string]string `json:"namespaceAnnotations,omitempty"`
	// ServiceAccount, in the agent's namespace on the cluster, with whose rights objects are written. Default: the service account
	// "shoal-default" if there is one, else the agent's own rights.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// ForceSyncGeneration: another number makes clusters apply again although nothing changed.
	// +optional
	// +kubebuilder:validation:Minimum=0
	ForceSyncGeneration int64 `json:"forceSyncGeneration,omitempty"`
	// DownstreamResources are Secrets and ConfigMaps of this namespace on the hub that go to the cluster with the bundle.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	DownstreamResources []DownstreamResource `json:"downstreamResources,omitempty"`
	// KeepResources leaves the objects on the cluster when the bundle is deleted or no longer targets the cluster.
	// +optional
	KeepResources bool `json:"keepResources,omitempty"`
}

// HelmOptions say how a chart is rendered.
type HelmOptions struct {
	// Chart is the chart's directory in the bundle. Default: the root, if it holds a Chart.yaml.
	// +optional
	Chart string `json:"chart,omitempty"`

	// ReleaseName is .Release.Name, at most 53 characters. Default: the bundle's name.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$|\$\{`
	ReleaseName string `json:"releaseName,omitempty"`

	// Repo and version of a chart that comes from a repository. shoal apply fetches such charts into the bundle and points
	// chart at the directory; the hub fetches nothing.
	// +optional
	Repo string `json:"repo,omitempty"`
	// Version of a chart from a repository.
	// +optional
	Version string `json:"version,omitempty"`
	// TemplateValues are templates of values, by top-level key: ${ } is replaced, the text parsed as YAML, and the result
	// takes the place of that key in values.
	// +optional
	TemplateValues map[string]string `json:"templateValues,omitempty"`
	// ValuesFrom names Secrets and ConfigMaps on the cluster with values that do not leave it. They win over all others.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	ValuesFrom []ValuesFrom `json:"valuesFrom,omitempty"`
	// TimeoutSeconds is how long a release may take to become ready. 0: no limit of its own. In a target a negative number
	// sets it back to 0.
	// +optional
	TimeoutSeconds int64 `json:"timeoutSeconds,omitempty"`
	// TakeOwnership: objects that are on the cluster already and belong to no bundle are adopted. Default: they are an error.
	// +optional
	TakeOwnership bool `json:"takeOwnership,omitempty"`
	// Force: an object that cannot be changed in place is deleted and created again.
	// +optional
	Force bool `json:"force,omitempty"`
	// Atomic: a release that fails, or is not ready within timeoutSeconds (default 600), gives way to the one before.
	// +optional
	Atomic bool `json:"atomic,omitempty"`
	// WaitForJobs: a Job is ready when it is complete.
	// +optional
	WaitForJobs bool `json:"waitForJobs,omitempty"`
	// DisablePreProcess: values are not templated.
	// +optional
	DisablePreProcess bool `json:"disablePreProcess,omitempty"`
	// SkipSchemaValidation: values are not held against the chart's values.schema.json.
	// +optional
	SkipSchemaValidation bool `json:"skipSchemaValidation,omitempty"`
	// DisableDNS is accepted for Fleet's sake: templates never resolve names here.
	// +optional
	DisableDNS bool `json:"disableDNS,omitempty"`
	// DisableDependencyUpdate: shoal apply does not fetch the chart's dependencies.
	// +optional
	DisableDependencyUpdate bool `json:"disableDependencyUpdate,omitempty"`
	// MaxHistory is accepted for Fleet's sake: an agent always keeps the release before the current one.
	// +optional
	MaxHistory int64 `json:"maxHistory,omitempty"`
	// RandomSeed is part of what random values of the chart are made of; another text gives other values. ${ } in it is filled in. A date
	// (2026-11-27, or with a time) is also what the function now gives.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	RandomSeed string `json:"randomSeed,omitempty"`
	// Values for the chart. A target's values are merged over the bundle's: maps key by key, lists are replaced.
	// The map {$null: true} is a null, which takes the chart's default away; a plain null does not survive every client.
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
	// Strict: whatever somebody has added that the bundle does not state is drift, not only what raises rights or adds code.
	// +optional
	Strict bool `json:"strict,omitempty"`
	// KeepFailHistory is accepted for Fleet's sake: there is no Helm history on a cluster.
	// +optional
	KeepFailHistory bool `json:"keepFailHistory,omitempty"`
}

// RolloutStrategy says how an update spreads.
type RolloutStrategy struct {
	// MaxUnavailable is how many clusters (number, or percentage of the targeted clusters) may be updating or not ready at
	// a time; first installs count. At least 1. Default: 100%.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) in [string] || self >= 1",message="must be 1 or more: 0 lets no cluster move, ever (paused: true holds updates back)"
	// +kubebuilder:validation:Pattern=`^0*[1-9][0-9]*%?$`
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`
	// MaxNotReady is how many clusters of a partition (number, or percentage rounded down) may be behind or not ready when the
	// next partition begins. Default: 0.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) in [string] || self >= 0",message="must be 0 or more"
	// +kubebuilder:validation:Pattern=`^[0-9]+%?$`
	MaxNotReady *intstr.IntOrString `json:"maxNotReady,omitempty"`
	// MaxUnavailablePartitions is how many partitions may be over their maxNotReady before the rollout stops. Default: 0.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) in [string] || self >= 0",message="must be 0 or more"
	// +kubebuilder:validation:Pattern=`^[0-9]+%?$`
	MaxUnavailablePartitions *intstr.IntOrString `json:"maxUnavailablePartitions,omitempty"`
	// AutoPartitionSize is the size of the partitions that are made when none are listed; 0 or less: none are made. Default: 25%.
	// +optional
	AutoPartitionSize *intstr.IntOrString `json:"autoPartitionSize,omitempty"`
	// AutoPartitionThreshold is the number of clusters from which on partitions are made. Default: 200.
	// +optional
	AutoPartitionThreshold *int32 `json:"autoPartitionThreshold,omitempty"`
	// MaxNew is how many clusters may be given the bundle for the first time at once. Default: 50, or 5% of the clusters if
	// that is more.
	// +optional
	// +kubebuilder:validation:Minimum=1
	MaxNew *int32 `json:"maxNew,omitempty"`
	// Partitions are updated one after the other. Clusters that none of them matches form a last one.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	Partitions []Partition `json:"partitions,omitempty"`
}

// Partition is a part of the clusters that is updated before the next one.
type Partition struct {
	// Name of the partition, for messages.
	// +optional
	Name string `json:"name,omitempty"`
	// MaxUnavailable within the partition. Default: that of the rollout strategy.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) in [string] || self >= 1",message="must be 1 or more: 0 lets no cluster move, ever (paused: true holds updates back)"
	// +kubebuilder:validation:Pattern=`^0*[1-9][0-9]*%?$`
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`
	// MaxNotReady of the partition. Default: that of the rollout strategy.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) in [string] || self >= 0",message="must be 0 or more"
	// +kubebuilder:validation:Pattern=`^[0-9]+%?$`
	MaxNotReady  *intstr.IntOrString `json:"maxNotReady,omitempty"`
	ClusterMatch `json:",inline"`
}

// BundleDependency names other bundles.
type BundleDependency struct {
	// Name of the bundle.
	// +optional
	Name string `json:"name,omitempty"`
	// Selector of the bundles' labels.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
	// AcceptedStates of the bundles on the cluster. Default: Ready.
	// +optional
	// +listType=atomic
	AcceptedStates []State `json:"acceptedStates,omitempty"`
}

// Ignore says what does not count for readiness.
type Ignore struct {
	// Conditions: a condition of an object that has all the pairs of one of these maps does not count.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Conditions []map[string]string `json:"conditions,omitempty"`
}

// HealthRule says in CEL when objects of a kind are ready; self is the object.
type HealthRule struct {
	// Group of the kind; empty: the core group.
	// +optional
	Group string `json:"group,omitempty"`
	// Kind of the objects.
	Kind string `json:"kind"`
	// Ready is a CEL expression that is true when the object is ready.
	// +optional
	Ready string `json:"ready,omitempty"`
	// Failed is a CEL expression that is true when the object will never be ready.
	// +optional
	Failed string `json:"failed,omitempty"`
	// Message is a CEL expression that says why it is not ready.
	// +optional
	Message string `json:"message,omitempty"`
}

// Diff says what does not count as drift.
type Diff struct {
	// ComparePatches are applied to both sides before they are compared.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	ComparePatches []ComparePatch `json:"comparePatches,omitempty"`
}

// ComparePatch takes parts of objects out of the comparison.
type ComparePatch struct {
	// APIVersion of the objects. Empty: any.
	// +optional
	APIVersion string `json:"apiVersion,omitempty"`
	// Kind of the objects. Empty: any.
	// +optional
	Kind string `json:"kind,omitempty"`
	// Namespace of the objects. Empty: any.
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// Name of the objects; a regular expression for the operation "ignore". Empty: any.
	// +optional
	Name string `json:"name,omitempty"`
	// JSONPointers (RFC 6901) of fields that do not count.
	// +optional
	// +listType=atomic
	JSONPointers []string `json:"jsonPointers,omitempty"`
	// Operations are those of JSON Patch (RFC 6902), done to both sides; "ignore": the object may be missing.
	// +optional
	// +listType=atomic
	Operations []ComparePatchOperation `json:"operations,omitempty"`
}

// ComparePatchOperation is one operation.
type ComparePatchOperation struct {
	// Op is add, remove, replace, move, copy, test or ignore.
	Op string `json:"op"`
	// Path is the JSON pointer of the field.
	// +optional
	Path string `json:"path,omitempty"`
	// Value as JSON text.
	// +optional
	Value string `json:"value,omitempty"`
}

// DownstreamResource names an object of the bundle's namespace on the hub.
type DownstreamResource struct {
	// Kind of the object.
	// +kubebuilder:validation:Enum=Secret;ConfigMap
	Kind string `json:"kind"`
	// Name of the object.
	Name string `json:"name"`
}

// ValuesFrom names values on the cluster. An entry may have both: the Secret wins.
type ValuesFrom struct {
	// ConfigMapKeyRef names a key of a ConfigMap.
	// +optional
	ConfigMapKeyRef *ValuesKey `json:"configMapKeyRef,omitempty"`
	// SecretKeyRef names a key of a Secret.
	// +optional
	SecretKeyRef *ValuesKey `json:"secretKeyRef,omitempty"`
}

// ValuesKey names a key of an object on the cluster that holds a YAML document with values.
type ValuesKey struct {
	// Name of the object.
	Name string `json:"name"`
	// Namespace of the object. Default: the release's.
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// Key in the object's data. Default: values.yaml.
	// +optional
	Key string `json:"key,omitempty"`
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
	Name         string `json:"name,omitempty"`
	ClusterMatch `json:",inline"`
	// DoNotDeploy keeps the bundle off these clusters, even if a later target matches them.
	// +optional
	DoNotDeploy bool `json:"doNotDeploy,omitempty"`
}

// BundleTargetRestriction says which clusters may have a bundle.
type BundleTargetRestriction struct {
	// Name of the restriction, for messages.
	// +optional
	Name         string `json:"name,omitempty"`
	ClusterMatch `json:",inline"`
}

// ClusterMatch selects clusters. All criteria that are set must hold; without any it matches nothing.
type ClusterMatch struct {
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
