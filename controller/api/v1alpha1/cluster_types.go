package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Cluster is a member of the fleet. It appears when an agent enrols with a registration token; its labels decide which
// bundles it gets.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=clusters,shortName=cl,categories=shoal
// +kubebuilder:printcolumn:name="Link",type=string,JSONPath=`.status.presence`,description="Whether its agent is connected"
// +kubebuilder:printcolumn:name="Link since",type=date,JSONPath=`.status.presenceSince`,description="How long the link has been so"
// +kubebuilder:printcolumn:name="Bundles",type=string,JSONPath=`.status.display.readyBundles`,description="Bundles that are ready / bundles it should have"
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.display.state`,description="Worst state over its bundles"
// +kubebuilder:printcolumn:name="Since",type=date,JSONPath=`.status.stateSince`,description="How long it has been in this state"
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.display.message`
// +kubebuilder:printcolumn:name="Kubernetes",type=string,JSONPath=`.status.kubernetesVersion`,priority=1
// +kubebuilder:printcolumn:name="Agent",type=string,JSONPath=`.status.agentVersion`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,priority=1
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a cluster's name must be a DNS label: lower case letters, digits and '-', at most 63 characters"
type Cluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what people want of the cluster.
	// +optional
	Spec ClusterSpec `json:"spec,omitzero"`
	// Status is what the hub sees; it is written by the hub only.
	// +optional
	Status ClusterStatus `json:"status,omitzero"`
}

// ClusterList is a list of clusters.
// +kubebuilder:object:root=true
type ClusterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Cluster `json:"items"`
}

// ClusterSpec is what people want of a cluster.
type ClusterSpec struct {
	// Paused: the cluster gets no updates and keeps what it has.
	// +optional
	Paused bool `json:"paused,omitempty"`

	// TemplateValues are for templates in bundles, as .ClusterValues.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	// +kubebuilder:pruning:PreserveUnknownFields
	TemplateValues Values `json:"templateValues,omitempty"`
	// Windows are when the cluster may be changed; those of its groups count as well. Without any: at any time.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Windows []Window `json:"windows,omitempty"`
	// AgentKeys are the SHA-256 hashes (hex) of the public keys (SubjectPublicKeyInfo) an agent may connect with as this
	// cluster. Enrolment sets them. Remove one to revoke that credential: the agent is disconnected at once.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:Pattern=`^[0-9a-f]{64}$`
	AgentKeys []string `json:"agentKeys,omitempty"`
}

// Window is a span of time, repeated by a schedule, in which clusters may be changed. Drift is repaired at any time.
type Window struct {
	// Schedule is when it opens, in cron's five fields (minute, hour, day of month, month, day of week): "0 2 * * *".
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Schedule string `json:"schedule"`
	// Duration is how long it stays open, such as "3h"; at most a week.
	Duration metav1.Duration `json:"duration"`
	// TimeZone of the schedule, such as "Europe/Berlin". Default: the site's own.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	TimeZone string `json:"timeZone,omitempty"`
	// For which activities: Download (fetching bundles), Apply (changing the cluster). Default: both.
	// +optional
	// +listType=set
	// +kubebuilder:validation:items:Enum=Download;Apply
	For []string `json:"for,omitempty"`
}

// ClusterStatus is what the hub sees of a cluster.
type ClusterStatus struct {
	// ObservedGeneration is the generation of the spec this status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Presence says whether the agent has a link. Offline is normal and no failure.
	// +optional
	Presence Presence `json:"presence,omitempty"`
	// PresenceSince is when presence last changed.
	// +optional
	PresenceSince metav1.Time `json:"presenceSince,omitzero"`
	// Display is for people.
	// +optional
	Display ClusterDisplay `json:"display,omitzero"`
	// StateSince is when display.state last changed.
	// +optional
	StateSince metav1.Time `json:"stateSince,omitzero"`
	// AgentVersion is the version of the agent.
	// +optional
	AgentVersion string `json:"agentVersion,omitempty"`
	// KubernetesVersion of the cluster; charts are rendered for it.
	// +optional
	KubernetesVersion string `json:"kubernetesVersion,omitempty"`
	// Nodes is how many nodes the cluster has.
	// +optional
	Nodes int32 `json:"nodes,omitempty"`
	// Facts is the hash of the cluster's facts that the fields above were taken from.
	// +optional
	Facts string `json:"facts,omitempty"`
	// APIVersions names the ConfigMap in the hub's namespace that lists the API versions charts are rendered for; clusters
	// with the same list share it.
	// +optional
	APIVersions string `json:"apiVersions,omitempty"`
	// Summary counts the cluster's deployments by state.
	// +optional
	Summary Summary `json:"summary,omitzero"`
	// NotReady names up to 10 bundles that are not ready here; the counts in summary cover all.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	NotReady []NotReadyItem `json:"notReady,omitempty"`
	// DesiredSerial is the number of the newest desired document published for this cluster.
	// +optional
	DesiredSerial int64 `json:"desiredSerial,omitempty"`
	// ReportedSerial is the number of the newest desired document the cluster reported.
	// +optional
	ReportedSerial int64 `json:"reportedSerial,omitempty"`
	// KnownKeys are those that spec.agentKeys has held, as far as the hub has seen it. One that is not there any more was revoked:
	// no token lets it in again.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	KnownKeys []string `json:"knownKeys,omitempty"`
	// Conditions: Ready and Enrolled.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ClusterDisplay is a cluster's status for people.
type ClusterDisplay struct {
	// ReadyBundles is "<ready>/<desired>".
	// +optional
	ReadyBundles string `json:"readyBundles,omitempty"`
	// State is the worst state over its bundles, or Offline.
	// +optional
	State State `json:"state,omitempty"`
	// Message says what is wrong, if anything is.
	// +optional
	Message string `json:"message,omitempty"`
}

// ClusterGroup is a set of clusters chosen by labels; a cluster can be in several groups.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=clustergroups,shortName=cg,categories=shoal
// +kubebuilder:printcolumn:name="Clusters",type=integer,JSONPath=`.status.clusterCount`,description="Clusters in the group"
// +kubebuilder:printcolumn:name="Online",type=integer,JSONPath=`.status.onlineCount`,description="Clusters whose agent is connected"
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.display.readyClusters`,description="Clusters that are ready / clusters in the group"
// +kubebuilder:printcolumn:name="Bundles",type=string,JSONPath=`.status.display.readyBundles`,description="Deployments that are ready / deployments there should be"
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.display.state`,description="Worst state over its clusters"
// +kubebuilder:printcolumn:name="Since",type=date,JSONPath=`.status.stateSince`,description="How long it has been in this state"
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.display.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,priority=1
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a cluster group's name must be a DNS label: lower case letters, digits and '-', at most 63 characters"
type ClusterGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec says which clusters are in the group.
	// +optional
	Spec ClusterGroupSpec `json:"spec,omitzero"`
	// Status is what the hub sees; it is written by the hub only.
	// +optional
	Status ClusterGroupStatus `json:"status,omitzero"`
}

// ClusterGroupList is a list of cluster groups.
// +kubebuilder:object:root=true
type ClusterGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterGroup `json:"items"`
}

// ClusterGroupSpec says which clusters are in a group.
type ClusterGroupSpec struct {
	// Selector selects clusters by their labels. Without one the group is empty; {} selects every cluster.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
	// Windows are when clusters of the group may be changed, beside those of the cluster itself and of its other groups.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Windows []Window `json:"windows,omitempty"`
}

// ClusterGroupStatus is what the hub sees of a group.
type ClusterGroupStatus struct {
	// ObservedGeneration is the generation of the spec this status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// ClusterCount is the number of clusters in the group.
	// +optional
	ClusterCount int32 `json:"clusterCount"`
	// OnlineCount is how many of them have a link.
	// +optional
	OnlineCount int32 `json:"onlineCount"`
	// Display is for people.
	// +optional
	Display ClusterGroupDisplay `json:"display,omitzero"`
	// StateSince is when display.state last changed.
	// +optional
	StateSince metav1.Time `json:"stateSince,omitzero"`
	// Summary counts the deployments of all clusters in the group by state.
	// +optional
	Summary Summary `json:"summary,omitzero"`
	// Conditions: Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ClusterGroupDisplay is a group's status for people.
type ClusterGroupDisplay struct {
	// ReadyClusters is "<ready>/<clusters>".
	// +optional
	ReadyClusters string `json:"readyClusters,omitempty"`
	// ReadyBundles is "<ready>/<desired>" deployments over all clusters of the group.
	// +optional
	ReadyBundles string `json:"readyBundles,omitempty"`
	// State is the worst state over its clusters.
	// +optional
	State State `json:"state,omitempty"`
	// Message says what is wrong, if anything is.
	// +optional
	Message string `json:"message,omitempty"`
}
