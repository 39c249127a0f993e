package bundlefmt

import (
	"fmt"
	"slices"
)

// Handling is what a rendered bundle says beyond its objects: how a site is to treat them. It stands in the index, so
// the digest covers it. The zero value says nothing.
type Handling struct {
	Hooks            []Hook              `cbor:"1,keyasint,omitempty" json:"hooks,omitempty"`
	SiteValues       []SiteValue         `cbor:"2,keyasint,omitempty" json:"siteValues,omitempty"`
	ValuesFrom       []ValuesFrom        `cbor:"3,keyasint,omitempty" json:"valuesFrom,omitempty"` // in order: a later one wins
	ComparePatches   []ComparePatch      `cbor:"4,keyasint,omitempty" json:"comparePatches,omitempty"`
	IgnoreConditions []map[string]string `cbor:"5,keyasint,omitempty" json:"ignoreConditions,omitempty"` // a live condition with all pairs of one map does not count for readiness
	Health           []HealthRule        `cbor:"6,keyasint,omitempty" json:"health,omitempty"`

	// Set on the deployment's namespace when not empty; other labels (annotations) than these go, except
	// kubernetes.io/metadata.name and those below pod-security.kubernetes.io/, which are never touched.
	NamespaceLabels      map[string]string `cbor:"7,keyasint,omitempty" json:"namespaceLabels,omitempty"`
	NamespaceAnnotations map[string]string `cbor:"8,keyasint,omitempty" json:"namespaceAnnotations,omitempty"`
}

// Hook says that an object is no part of what runs: it is created at a moment of a release, as a Helm hook is.
type Hook struct {
	Object int          `cbor:"1,keyasint" json:"object"` // position in Objects
	Events []HookEvent  `cbor:"2,keyasint" json:"events"`
	Weight int64        `cbor:"3,keyasint,omitempty" json:"weight,omitempty"`
	Delete []HookDelete `cbor:"4,keyasint,omitempty" json:"delete,omitempty"` // none: BeforeCreation
}

// HookEvent is a moment of a release. The names are Helm's.
type HookEvent string

// Hook events. Test hooks are left out when a bundle is rendered.
const (
	PreInstall   HookEvent = "pre-install"
	PostInstall  HookEvent = "post-install"
	PreUpgrade   HookEvent = "pre-upgrade"
	PostUpgrade  HookEvent = "post-upgrade"
	PreDelete    HookEvent = "pre-delete"
	PostDelete   HookEvent = "post-delete"
	PreRollback  HookEvent = "pre-rollback"
	PostRollback HookEvent = "post-rollback"
)

// HookDelete is when a hook's object goes away again. The names are Helm's.
type HookDelete string

// Hook delete policies.
const (
	BeforeCreation HookDelete = "before-hook-creation"
	HookSucceeded  HookDelete = "hook-succeeded"
	HookFailed     HookDelete = "hook-failed"
)

// SiteValue is a value that the site fills in: wherever Token stands in a string of an object, the site's value (at Path of
// the documents that ValuesFrom names, Default where they have none) replaces it. In the data of a Secret the token
// stands inside the base64. A Fixed value has no token: the chart computes with it, and a site that sets it is in error.
type SiteValue struct {
	Path    string `cbor:"1,keyasint" json:"path"` // keys joined by ".", a "." in a key written "\."
	Token   string `cbor:"2,keyasint,omitempty" json:"token,omitempty"`
	Default string `cbor:"3,keyasint,omitempty" json:"default,omitempty"`
	Fixed   bool   `cbor:"4,keyasint,omitempty" json:"fixed,omitempty"`
}

// ValuesFrom names a YAML document with values that is on the site and never leaves it.
type ValuesFrom struct {
	Kind      string `cbor:"1,keyasint" json:"kind"` // Secret or ConfigMap
	Namespace string `cbor:"2,keyasint,omitempty" json:"namespace,omitempty"`
	Name      string `cbor:"3,keyasint" json:"name"`
	Key       string `cbor:"4,keyasint" json:"key"`
}

// ComparePatch says what does not count as drift, as Fleet's diff.comparePatches does.
type ComparePatch struct {
	APIVersion   string    `cbor:"1,keyasint,omitempty" json:"apiVersion,omitempty"`
	Kind         string    `cbor:"2,keyasint,omitempty" json:"kind,omitempty"`
	Namespace    string    `cbor:"3,keyasint,omitempty" json:"namespace,omitempty"`
	Name         string    `cbor:"4,keyasint,omitempty" json:"name,omitempty"`
	JSONPointers []string  `cbor:"5,keyasint,omitempty" json:"jsonPointers,omitempty"`
	Operations   []PatchOp `cbor:"6,keyasint,omitempty" json:"operations,omitempty"`
}

// PatchOp is one operation of a ComparePatch: those of JSON Patch (RFC 6902), or "ignore".
type PatchOp struct {
	Op    string `cbor:"1,keyasint" json:"op"`
	Path  string `cbor:"2,keyasint,omitempty" json:"path,omitempty"`
	Value string `cbor:"3,keyasint,omitempty" json:"value,omitempty"` // JSON
}

// HealthRule says in CEL when objects of a kind are ready; self is the object.
type HealthRule struct {
	Group   string `cbor:"1,keyasint,omitempty" json:"group,omitempty"`
	Kind    string `cbor:"2,keyasint" json:"kind"`
	Ready   string `cbor:"3,keyasint,omitempty" json:"ready,omitempty"`   // bool
	Failed  string `cbor:"4,keyasint,omitempty" json:"failed,omitempty"`  // bool: it will never be ready
	Message string `cbor:"5,keyasint,omitempty" json:"message,omitempty"` // string: what to say while it is not ready
}

// Limits of the lists in a Handling.
const (
	maxHandlingList = 1024
	maxHandlingText = 16 << 10 // bytes of one text in it
)

// IsZero reports whether it says nothing.
func (h Handling) IsZero() bool {
	return len(h.Hooks) == 0 && len(h.SiteValues) == 0 && len(h.ValuesFrom) == 0 && len(h.ComparePatches) == 0 &&
		len(h.IgnoreConditions) == 0 && len(h.Health) == 0 && len(h.NamespaceLabels) == 0 && len(h.NamespaceAnnotations) == 0
}

var (
	hookEvents  = []HookEvent{PreInstall, PostInstall, PreUpgrade, PostUpgrade, PreDelete, PostDelete, PreRollback, PostRollback}
	hookDeletes = []HookDelete{BeforeCreation, HookSucceeded, HookFailed}
)

// check holds what an agent will act on to what it knows. objects is how many there are.
func (h Handling) check(objects int) error {
	for _, n := range []int{len(h.Hooks), len(h.SiteValues), len(h.ValuesFrom), len(h.ComparePatches), len(h.IgnoreConditions), len(h.Health), len(h.NamespaceLabels), len(h.NamespaceAnnotations)} {
		if err := atMost("length of a list in handling", int64(n), maxHandlingList); err != nil {
			return err
		}
	}
	hooked := map[int]bool{}
	for _, k := range h.Hooks {
		switch {
		case k.Object < 0 || k.Object >= objects:
			return fmt.Errorf("%w: hook is object %d of %d", ErrMalformed, k.Object, objects)
		case hooked[k.Object]:
			return fmt.Errorf("%w: object %d is a hook twice", ErrMalformed, k.Object)
		case len(k.Events) == 0:
			return fmt.Errorf("%w: hook without an event", ErrMalformed)
		case slices.ContainsFunc(k.Events, func(e HookEvent) bool { return !slices.Contains(hookEvents, e) }):
			return fmt.Errorf("%w: hook events %q", ErrMalformed, k.Events)
		case slices.ContainsFunc(k.Delete, func(d HookDelete) bool { return !slices.Contains(hookDeletes, d) }):
			return fmt.Errorf("%w: hook delete policies %q", ErrMalformed, k.Delete)
		}
		hooked[k.Object] = true
	}
	for _, v := range h.SiteValues {
		if v.Path == "" || v.Fixed != (v.Token == "") {
			return fmt.Errorf("%w: site value %.80q", ErrMalformed, v.Path)
		}
	}
	for _, v := range h.ValuesFrom {
		if v.Kind != "Secret" && v.Kind != "ConfigMap" || !pathSegment(v.Namespace) || !pathSegment(v.Name) || v.Name == "" || v.Key == "" {
			return fmt.Errorf("%w: valuesFrom %.80q %.80q", ErrMalformed, v.Kind, v.Name)
		}
	}
	for _, r := range h.Health {
		if r.Kind == "" || r.Ready == "" && r.Failed == "" {
			return fmt.Errorf("%w: health rule for %.80q", ErrMalformed, r.Kind)
		}
		if err := atMost("length of a health rule", int64(max(len(r.Ready), len(r.Failed), len(r.Message))), maxHandlingText); err != nil {
			return err
		}
	}
	return nil
}
