package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ClusterRegistrationToken lets agents enrol as clusters of this namespace until it expires. The hub keeps only a hash of
// the secret; what an agent needs (secret and endpoint) is in the Secret of the same name.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=clusterregistrationtokens,shortName=crt,categories=shoal
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`,description="Whether agents can enrol with it now"
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Enrolled",type=integer,JSONPath=`.status.enrolled`,description="Clusters that enrolled with it"
// +kubebuilder:printcolumn:name="Refused",type=integer,JSONPath=`.status.refused`,description="Attempts to enrol with it that were refused"
// +kubebuilder:printcolumn:name="Group",type=string,JSONPath=`.spec.clusterGroup`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.status.expires`
// +kubebuilder:printcolumn:name="Last refusal",type=string,JSONPath=`.status.lastRefusal.reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="a token's name must be a DNS label: lower case letters, digits and '-', at most 63 characters"
type ClusterRegistrationToken struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec says for how long and into which group agents may enrol.
	// +optional
	Spec ClusterRegistrationTokenSpec `json:"spec,omitzero"`
	// Status is what the hub sees; it is written by the hub only.
	// +optional
	Status ClusterRegistrationTokenStatus `json:"status,omitzero"`
}

// ClusterRegistrationTokenList is a list of tokens.
// +kubebuilder:object:root=true
type ClusterRegistrationTokenList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterRegistrationToken `json:"items"`
}

// ClusterRegistrationTokenSpec says what a token is good for.
type ClusterRegistrationTokenSpec struct {
	// TTL is how long after its creation the token can be used. Default: 168h (one week). The hub makes expires of it, once.
	// +optional
	// +kubebuilder:default="168h"
	TTL *metav1.Duration `json:"ttl,omitempty"`

	// Expires is when the token stops working; ttl does not count any more. The hub sets it where it is missing: a token that is
	// restored from a backup is created anew, but its time does not start anew. Change it to give the token more time.
	// +optional
	Expires *metav1.Time `json:"expires,omitempty"`

	// ClusterGroup: clusters get this group's matchLabels when they enrol, so that they are in it.
	// +optional
	ClusterGroup string `json:"clusterGroup,omitempty"`

	// Labels every cluster gets when it enrols with this token.
	// +optional
	Labels map[string]string `json:"labels,omitempty"`

	// SecretHash is the SHA-256 (hex) of the token's secret. Empty: the hub makes a secret, writes it to the Secret of the
	// same name and sets this field.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9a-f]{64})?$`
	SecretHash string `json:"secretHash,omitempty"`
}

// ClusterRegistrationTokenStatus is what the hub sees of a token.
type ClusterRegistrationTokenStatus struct {
	// ObservedGeneration is the generation of the spec this status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Expires is when the token stops working.
	// +optional
	Expires metav1.Time `json:"expires,omitzero"`
	// Enrolled is how many clusters enrolled with this token.
	// +optional
	Enrolled int32 `json:"enrolled"`
	// Refused is how many attempts to enrol with this token were refused.
	// +optional
	Refused int64 `json:"refused,omitempty"`
	// LastRefusal is the newest of them.
	// +optional
	LastRefusal *Refusal `json:"lastRefusal,omitempty"`
	// Endpoint is where agents connect, and what they trust.
	// +optional
	Endpoint *Endpoint `json:"endpoint,omitempty"`
	// Conditions: Ready (False with reason Expired once its time is over).
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Refusal is an attempt to enrol that was refused.
type Refusal struct {
	// Time of the attempt.
	Time metav1.Time `json:"time"`
	// Cluster is the name that the site asked for; empty where it did not get so far.
	// +optional
	Cluster string `json:"cluster,omitempty"`
	// Reason it was refused for.
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason"`
}

// Endpoint is where agents connect, and what they trust.
type Endpoint struct {
	// URL of the broker, for instance mqtts://hub.example.com:8883.
	URL string `json:"url"`
	// CA is the certificate authority (PEM) of the broker; empty: the system's.
	// +optional
	CA string `json:"ca,omitempty"`
	// RootKey is the public key (base64) that signs the set of keys whose orders agents follow.
	// +optional
	RootKey string `json:"rootKey,omitempty"`
}
