package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// State is where a deployment stands, or the worst state of several. The names and the order of the first seven are
// Fleet's.
type State string

// States of a deployment (a bundle on a cluster), and of clusters.
const (
	StateReady       State = "Ready"       // every object is as wanted and healthy
	StateNotReady    State = "NotReady"    // applied, but some object is not healthy yet
	StatePending     State = "Pending"     // the rollout has not released it to this cluster yet
	StateOutOfSync   State = "OutOfSync"   // wanted differs from what the rollout released
	StateModified    State = "Modified"    // someone changed an object on the cluster
	StateWaitApplied State = "WaitApplied" // ordered, the cluster has not applied it yet
	StateErrApplied  State = "ErrApplied"  // the cluster could not apply it
	StateDownloading State = "Downloading" // the cluster fetches the rendered bundle
	StateRefused     State = "Refused"     // the agent refused the document (signature, audience, serial, limits)
	StateRolledBack  State = "RolledBack"  // the agent went back to the release before
	StateHeld        State = "Held"        // a window, a pause or a lock keeps the agent from acting
	StateOrphaned    State = "Orphaned"    // on the cluster, but neither ordered nor to be removed
	StateRemoving    State = "Removing"    // to be removed, and the cluster has not said yet that it is gone
	StateErrRendered State = "ErrRendered" // the hub could not render it: clusters keep what they have
	StateOffline     State = "Offline"     // the cluster has no link; normal, never a failure
	StateStale       State = "Stale"       // the cluster's newest order is older than it should be
)

// Presence says whether a cluster's agent has a link to the broker.
// +kubebuilder:validation:Enum=Online;Offline;Unknown
type Presence string

// Presence of a cluster.
const (
	PresenceOnline  Presence = "Online"
	PresenceOffline Presence = "Offline"
	PresenceUnknown Presence = "Unknown" // has never connected
)

// Condition types.
const (
	// ConditionReady is True when everything ordered is applied and healthy everywhere.
	ConditionReady = "Ready"
	// ConditionRendered is False when a bundle could not be rendered for some target; the message names file and field.
	ConditionRendered = "Rendered"
	// ConditionEnrolled is True on a Cluster whose agent has a credential.
	ConditionEnrolled = "Enrolled"
)

// Summary counts deployments by state; each deployment is counted in exactly one state, and all of them are counted.
type Summary struct {
	// Desired is the number of deployments there should be.
	// +optional
	Desired int32 `json:"desired,omitempty"`
	// Ready: every object is as wanted and healthy.
	// +optional
	Ready int32 `json:"ready,omitempty"`
	// NotReady: applied, but some object is not healthy yet.
	// +optional
	NotReady int32 `json:"notReady,omitempty"`
	// Pending: not released to the cluster yet.
	// +optional
	Pending int32 `json:"pending,omitempty"`
	// OutOfSync: an update is held back (paused or waiting for its turn in the rollout).
	// +optional
	OutOfSync int32 `json:"outOfSync,omitempty"`
	// Modified: an object was changed on the cluster.
	// +optional
	Modified int32 `json:"modified,omitempty"`
	// WaitApplied: ordered, not applied yet.
	// +optional
	WaitApplied int32 `json:"waitApplied,omitempty"`
	// ErrRendered: the hub could not render it for this cluster, which keeps what it has.
	// +optional
	ErrRendered int32 `json:"errRendered,omitempty"`
	// ErrApplied: the cluster could not apply it.
	// +optional
	ErrApplied int32 `json:"errApplied,omitempty"`
	// Downloading: the cluster fetches it.
	// +optional
	Downloading int32 `json:"downloading,omitempty"`
	// Refused: the agent refused the order.
	// +optional
	Refused int32 `json:"refused,omitempty"`
	// RolledBack: the agent went back to the release before.
	// +optional
	RolledBack int32 `json:"rolledBack,omitempty"`
	// Held: a window, a pause or a lock on the site keeps the agent from acting.
	// +optional
	Held int32 `json:"held,omitempty"`
	// Orphaned: still on the cluster, but neither ordered nor to be removed.
	// +optional
	Orphaned int32 `json:"orphaned,omitempty"`
	// Removing: on the cluster still, and to be removed. These are not among the desired.
	// +optional
	Removing int32 `json:"removing,omitempty"`
	// Stale: the newest order the cluster has is older than it should be.
	// +optional
	Stale int32 `json:"stale,omitempty"`
	// Offline is the number of deployments, already counted above, on clusters without a link.
	// +optional
	Offline int32 `json:"offline,omitempty"`
}

// NotReadyItem names one thing that is not Ready and why.
type NotReadyItem struct {
	// Name of the cluster (in a Bundle's status) or the bundle (in a Cluster's status).
	Name string `json:"name"`
	// State it is in.
	State State `json:"state"`
	// Message says why.
	// +optional
	Message string `json:"message,omitempty"`
	// Since when it is in this state.
	// +optional
	Since metav1.Time `json:"since,omitzero"`
}
