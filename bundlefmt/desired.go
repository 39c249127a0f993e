package bundlefmt

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"time"
)

// Desired is everything one cluster is to run. On the wire it is CBOR; the JSON names are for tools that show it.
type Desired struct {
	Workspace   string       `json:"workspace"`
	Cluster     string       `json:"cluster"`
	Serial      Serial       `json:"serial"`
	IssuedAt    time.Time    `json:"issuedAt"`            // whole seconds
	StaleAfter  time.Time    `json:"staleAfter,omitzero"` // zero: never. Past it the agent says Stale and goes on
	Deployments []Deployment `json:"deployments,omitempty"`
	Remove      []Removal    `json:"remove,omitempty"`
	Windows     []Window     `json:"windows,omitempty"` // none: changes at any time
}

// Window is a span of time, repeated by a schedule, in which a site may be changed. With at least one window for an
// activity, that activity begins only inside of one. Repairing drift is no change.
type Window struct {
	Schedule string `cbor:"1,keyasint" json:"schedule"`                     // when it opens: cron with five fields, minute first
	Seconds  uint64 `cbor:"2,keyasint" json:"seconds"`                      // how long it stays open; at most a week
	TimeZone string `cbor:"3,keyasint,omitempty" json:"timeZone,omitempty"` // IANA name; empty: the site's own
	Download bool   `cbor:"4,keyasint,omitempty" json:"download,omitempty"` // for fetching bundles
	Apply    bool   `cbor:"5,keyasint,omitempty" json:"apply,omitempty"`    // for applying releases, and removing
}

// Deployment orders a bundle to be at a release.
type Deployment struct {
	Name     string `json:"name"`
	Serial   Serial `json:"serial"`
	Digest   Digest `json:"digest"`
	RawSize  int64  `json:"rawSize"`
	Size     int64  `json:"size"`               // bytes of all parts
	Parts    int    `json:"parts"`              // messages
	Group    string `json:"group,omitempty"`    // audience: the cluster group whose topic holds the parts, or AllGroup; empty: this cluster's own topic
	Revision string `json:"revision,omitempty"` // for people: where the bundle came from; at most MaxRevision bytes
	Policy   Policy `json:"policy,omitzero"`
}

// Policy is how a deployment is to be treated on the site. The zero value is the default. Compare with Equal.
type Policy struct {
	Namespace          string `cbor:"1,keyasint,omitempty" json:"namespace,omitempty"`          // for namespaced objects without one; empty: "default"
	ForceNamespace     bool   `cbor:"2,keyasint,omitempty" json:"forceNamespace,omitempty"`     // every object goes to Namespace; a cluster-scoped one is an error
	NoCreateNamespace  bool   `cbor:"3,keyasint,omitempty" json:"noCreateNamespace,omitempty"`  // fail when Namespace is missing
	CorrectDrift       bool   `cbor:"4,keyasint,omitempty" json:"correctDrift,omitempty"`       // repair what was changed on the site, else report Modified
	CorrectDriftForce  bool   `cbor:"5,keyasint,omitempty" json:"correctDriftForce,omitempty"`  // recreate objects that cannot be changed in place
	KeepResources      bool   `cbor:"6,keyasint,omitempty" json:"keepResources,omitempty"`      // removal leaves the objects where they are
	Paused             bool   `cbor:"7,keyasint,omitempty" json:"paused,omitempty"`             // nothing is changed on the site
	ReadyTimeoutSecond uint64 `cbor:"8,keyasint,omitempty" json:"readyTimeoutSecond,omitempty"` // 0: the agent's default; at most 30 days

	// Since version 2.
	TakeOwnership   bool         `cbor:"9,keyasint,omitempty" json:"takeOwnership,omitempty"`    // adopt objects that are there and belong to nobody
	Force           bool         `cbor:"10,keyasint,omitempty" json:"force,omitempty"`           // an upgrade may delete and create again what cannot be changed in place
	Rollback        bool         `cbor:"11,keyasint,omitempty" json:"rollback,omitempty"`        // failed, or not ready in time: back to the release before
	WaitForJobs     bool         `cbor:"12,keyasint,omitempty" json:"waitForJobs,omitempty"`     // a Job is ready when it is complete, not when it runs
	ServiceAccount  string       `cbor:"13,keyasint,omitempty" json:"serviceAccount,omitempty"`  // in the agent's namespace; objects are written with its rights
	DeleteNamespace bool         `cbor:"14,keyasint,omitempty" json:"deleteNamespace,omitempty"` // removal deletes Namespace, with everything in it
	DeleteCRDs      bool         `cbor:"15,keyasint,omitempty" json:"deleteCRDs,omitempty"`      // removal deletes CRDs, with all their objects
	DeleteVolumes   bool         `cbor:"16,keyasint,omitempty" json:"deleteVolumes,omitempty"`   // removal deletes PersistentVolumes and their claims
	ForceSync       uint64       `cbor:"17,keyasint,omitempty" json:"forceSync,omitempty"`       // another number than before: apply again although nothing changed
	ConfirmPrune    bool         `cbor:"18,keyasint,omitempty" json:"confirmPrune,omitempty"`    // the release may delete unusually much
	DependsOn       []Dependency `cbor:"19,keyasint,omitempty" json:"dependsOn,omitempty"`       // deployments of this cluster that come first

	// Since version 3.
	CorrectDriftStrict bool `cbor:"21,keyasint,omitempty" json:"correctDriftStrict,omitempty"` // whatever the bundle does not state and somebody added is drift
}

// Equal reports whether two orders say the same.
func (d Deployment) Equal(o Deployment) bool {
	p, q := d.Policy, o.Policy
	d.Policy, o.Policy = Policy{}, Policy{}
	return p.Equal(q) && reflect.DeepEqual(d, o)
}

// Dependency is a deployment of the same cluster that has to be in one of States before another one changes.
type Dependency struct {
	Name   string  `cbor:"1,keyasint" json:"name"`
	States []State `cbor:"2,keyasint,omitempty" json:"states,omitempty"` // none: Ready
}

// Equal reports whether two policies say the same.
func (p Policy) Equal(q Policy) bool {
	pd, qd := p.DependsOn, q.DependsOn
	p.DependsOn, q.DependsOn = nil, nil
	return reflect.DeepEqual(p, q) && slices.EqualFunc(pd, qd, func(a, b Dependency) bool { return a.Name == b.Name && slices.Equal(a.States, b.States) })
}

// first reports whether the first version of the format can carry it.
func (p Policy) first() bool {
	return p.Equal(Policy{Namespace: p.Namespace, ForceNamespace: p.ForceNamespace, NoCreateNamespace: p.NoCreateNamespace, CorrectDrift: p.CorrectDrift,
		CorrectDriftForce: p.CorrectDriftForce, KeepResources: p.KeepResources, Paused: p.Paused, ReadyTimeoutSecond: p.ReadyTimeoutSecond})
}

// AllGroup is the audience that holds every cluster of the workspace. Only this name and DNS labels can stand in
// [Deployment.Group]: the agent makes a topic of it.
const AllGroup = "_all"

// MaxRevision bounds [Deployment.Revision], in bytes.
const MaxRevision = 64

const (
	maxReadyTimeout = 30 * 24 * 3600 // seconds
	maxWindow       = 7 * 24 * 3600  // seconds
	maxWindows      = 32
	maxDependencies = 64
)

// Removal orders a deployment to go away. It stays in the document until the agent reports that it is done.
type Removal struct {
	Name   string `json:"name"`
	Serial Serial `json:"serial"`
	Keep   bool   `json:"keep,omitempty"` // leave the objects, forget the deployment

	// Confirmed: somebody has seen how much goes. Without it an agent holds a document that removes unusually much.
	Confirmed bool `json:"confirmed,omitempty"`
}

type wireDeployment struct {
	Name     string `cbor:"1,keyasint"`
	Serial   uint64 `cbor:"2,keyasint"`
	Digest   []byte `cbor:"3,keyasint"`
	RawSize  uint64 `cbor:"4,keyasint"`
	Size     uint64 `cbor:"5,keyasint"`
	Parts    uint64 `cbor:"6,keyasint"`
	Group    string `cbor:"7,keyasint,omitempty"`
	Revision string `cbor:"8,keyasint,omitempty"`
	Policy   Policy `cbor:"9,keyasint"`
}

type wireRemoval struct {
	Name   string `cbor:"1,keyasint"`
	Serial uint64 `cbor:"2,keyasint"`
	Keep   bool   `cbor:"3,keyasint,omitempty"`

	Confirmed bool `cbor:"4,keyasint,omitempty"` // since version 2
}

type wireDesired struct {
	Version     uint64           `cbor:"1,keyasint"`
	Workspace   string           `cbor:"2,keyasint"`
	Cluster     string           `cbor:"3,keyasint"`
	Serial      uint64           `cbor:"4,keyasint"`
	IssuedAt    int64            `cbor:"5,keyasint"`
	StaleAfter  int64            `cbor:"6,keyasint,omitempty"`
	Deployments []wireDeployment `cbor:"7,keyasint,omitempty"`
	Remove      []wireRemoval    `cbor:"8,keyasint,omitempty"`
	Windows     []Window         `cbor:"9,keyasint,omitempty"` // since version 2
}

// version is the oldest one that can carry the document: an older agent goes on with whatever asks for nothing new.
func (w *wireDesired) version() uint64 {
	if len(w.Deployments)+len(w.Remove) > FewEntries ||
		slices.ContainsFunc(w.Deployments, func(d wireDeployment) bool { return d.Policy.CorrectDriftStrict }) {
		return 3
	}
	if len(w.Windows) == 0 &&
		!slices.ContainsFunc(w.Deployments, func(d wireDeployment) bool { return !d.Policy.first() }) &&
		!slices.ContainsFunc(w.Remove, func(r wireRemoval) bool { return r.Confirmed }) {
		return 1
	}
	return 2
}

// wire is the document as it is encoded.
func (d *Desired) wire() *wireDesired {
	w := &wireDesired{Workspace: d.Workspace, Cluster: d.Cluster, Serial: uint64(d.Serial), IssuedAt: unix(d.IssuedAt), StaleAfter: unix(d.StaleAfter), Windows: d.Windows}
	for _, x := range d.Deployments {
		digest := x.Digest
		w.Deployments = append(w.Deployments, wireDeployment{
			Name: x.Name, Serial: uint64(x.Serial), Digest: digest[:], RawSize: uint64(x.RawSize), Size: uint64(x.Size), Parts: uint64(x.Parts),
			Group: x.Group, Revision: x.Revision, Policy: x.Policy,
		})
	}
	for _, x := range d.Remove {
		w.Remove = append(w.Remove, wireRemoval{Name: x.Name, Serial: uint64(x.Serial), Keep: x.Keep, Confirmed: x.Confirmed})
	}
	w.Version = w.version()
	return w
}

// Sign encodes and signs the document. It refuses what [OpenDesired] would refuse: nothing is signed that no agent takes.
func (d *Desired) Sign(s Signer, l Limits) ([]byte, error) {
	w := d.wire()
	if _, err := w.open(l); err != nil {
		return nil, fmt.Errorf("sign desired document: %w", err)
	}
	msg, err := sign(s, TypeDesired, *w)
	if err != nil {
		return nil, err
	}
	return msg, atMost("desired document", int64(len(msg)), l.PartSize)
}

// envelopeSize is more than what signing adds to a payload.
const envelopeSize = 160

// Fits returns a [LimitError] if the document is too large: for one message, or for a report about all that it names and others
// beside, the deployments that the cluster has although the document does not name them. A document that fits can be signed, and
// what becomes of it can be reported.
func (d *Desired) Fits(l Limits, others ...string) error {
	if err := atMost("number of deployments and removals", int64(len(d.Deployments)+len(d.Remove)), l.Entries); err != nil {
		return err
	}
	payload, err := encMode.Marshal(d.wire())
	if err != nil {
		return fmt.Errorf("encode desired document: %w", err)
	}
	if err := atMost("size of the desired document in bytes", int64(len(payload))+envelopeSize, l.PartSize); err != nil {
		return err
	}
	if len(d.Deployments)+len(d.Remove)+len(others) <= FewEntries {
		return nil // its report fits whatever the names
	}
	report := int64(reportHead)
	for _, x := range d.Deployments {
		report += reportEntry(x.Name, d.Serial)
	}
	for _, x := range d.Remove {
		report += reportEntry(x.Name, d.Serial)
	}
	for _, n := range others {
		report += reportEntry(n, d.Serial)
	}
	return atMost("size of a report about all deployments in bytes", report, l.PartSize)
}

// Audience is who a reader is and what it has applied already.
type Audience struct {
	Workspace string
	Cluster   string
	Floor     Serial // a document with a lower serial is refused
}

// OpenDesired verifies a desired document. The checks run in this order: size, signature, form, audience, serial, and
// then the limits and the content of every entry.
// The document that is already applied (serial equal to the floor) opens as well: reading it again changes nothing,
// and a restarted agent does just that; whether an arriving one is news is for the caller to compare.
func OpenDesired(msg []byte, t Trust, who Audience, l Limits) (*Desired, error) {
	if err := atMost("desired document", int64(len(msg)), l.PartSize); err != nil {
		return nil, err
	}
	var w wireDesired
	if err := verify(t, TypeDesired, msg, &w); err != nil {
		return nil, fmt.Errorf("desired document: %w", err)
	}
	if w.Workspace != who.Workspace || w.Cluster != who.Cluster {
		return nil, fmt.Errorf("desired document: %w: it is for %s/%s, this is %s/%s", ErrAudience, w.Workspace, w.Cluster, who.Workspace, who.Cluster)
	}
	if Serial(w.Serial) < who.Floor {
		return nil, fmt.Errorf("desired document: %w: serial %d, already at %d", ErrStale, w.Serial, who.Floor)
	}
	return w.open(l)
}

func (w *wireDesired) open(l Limits) (*Desired, error) {
	if err := atMost("number of deployments", int64(len(w.Deployments)), l.Entries); err != nil {
		return nil, err
	}
	if err := atMost("number of deployments and removals", int64(len(w.Deployments)+len(w.Remove)), l.Entries); err != nil {
		return nil, err
	}
	if !ValidName(w.Workspace) || !ValidName(w.Cluster) {
		return nil, fmt.Errorf("%w: audience %q/%q is not two DNS labels", ErrMalformed, w.Workspace, w.Cluster)
	}
	if err := checkSerial(w.Serial); err != nil {
		return nil, err
	}
	if err := checkTime("time of issue", w.IssuedAt); err != nil {
		return nil, err
	}
	if err := checkTime("stale-after", w.StaleAfter); err != nil {
		return nil, err
	}
	if v := w.version(); w.Version != v {
		return nil, fmt.Errorf("%w: a document of version %d, marked %d", ErrMalformed, v, w.Version)
	}
	if err := atMost("number of windows", int64(len(w.Windows)), maxWindows); err != nil {
		return nil, err
	}
	for _, x := range w.Windows {
		if err := x.check(); err != nil {
			return nil, err
		}
	}
	d := &Desired{Windows: w.Windows, Workspace: w.Workspace, Cluster: w.Cluster, Serial: Serial(w.Serial), IssuedAt: fromUnix(w.IssuedAt), StaleAfter: fromUnix(w.StaleAfter)}
	seen := map[string]bool{}
	for _, x := range w.Deployments {
		if seen[x.Name] {
			return nil, fmt.Errorf("%w: deployment %q stands twice", ErrMalformed, x.Name)
		}
		seen[x.Name] = true
		if err := checkEntry(x.Name, x.Serial, w.Serial); err != nil {
			return nil, err
		}
		if err := x.check(l); err != nil {
			return nil, fmt.Errorf("deployment %s: %w", x.Name, err)
		}
		d.Deployments = append(d.Deployments, Deployment{
			Name: x.Name, Serial: Serial(x.Serial), Digest: Digest(x.Digest), RawSize: int64(x.RawSize), Size: int64(x.Size), Parts: int(x.Parts),
			Group: x.Group, Revision: x.Revision, Policy: x.Policy,
		})
	}
	for _, x := range w.Remove {
		if seen[x.Name] {
			return nil, fmt.Errorf("%w: %q is to run and to be removed", ErrMalformed, x.Name)
		}
		seen[x.Name] = true
		if err := checkEntry(x.Name, x.Serial, w.Serial); err != nil {
			return nil, err
		}
		d.Remove = append(d.Remove, Removal{Name: x.Name, Serial: Serial(x.Serial), Keep: x.Keep, Confirmed: x.Confirmed})
	}
	return d, nil
}

// check bounds what stands beside the name: the agent allocates, subscribes and waits by these values.
func (x *wireDeployment) check(l Limits) error {
	if len(x.Digest) != len(Digest{}) {
		return fmt.Errorf("%w: digest of %d bytes", ErrMalformed, len(x.Digest))
	}
	if err := atMost("bundle size", int64(x.RawSize), l.RawSize); err != nil {
		return err
	}
	if err := atMost("compressed bundle size", int64(x.Size), l.BodySize+l.PartSize); err != nil {
		return err
	}
	if err := atMost("number of parts", int64(x.Parts), l.Parts); err != nil {
		return err
	}
	if x.Parts == 0 {
		return fmt.Errorf("%w: no parts", ErrMalformed)
	}
	if x.Group != "" && x.Group != AllGroup && !ValidName(x.Group) {
		return fmt.Errorf("%w: group %q is not a DNS label", ErrMalformed, x.Group)
	}
	if err := atMost("length of revision", int64(len(x.Revision)), MaxRevision); err != nil {
		return err
	}
	return x.Policy.check()
}

func (p Policy) check() error {
	if p.Namespace != "" && !ValidName(p.Namespace) {
		return fmt.Errorf("%w: namespace %q is not a DNS label", ErrMalformed, p.Namespace)
	}
	if !pathSegment(p.ServiceAccount) {
		return fmt.Errorf("%w: service account %.80q", ErrMalformed, p.ServiceAccount)
	}
	if err := atMost("number of dependencies", int64(len(p.DependsOn)), maxDependencies); err != nil {
		return err
	}
	for _, d := range p.DependsOn {
		if !ValidName(d.Name) {
			return fmt.Errorf("%w: dependency %.80q is not a DNS label", ErrMalformed, d.Name)
		}
		if i := slices.IndexFunc(d.States, func(s State) bool { return !s.known() }); i >= 0 {
			return fmt.Errorf("%w: dependency %s: state %.80q", ErrMalformed, d.Name, string(d.States[i]))
		}
		if err := atMost("number of states", int64(len(d.States)), int64(len(ranks))); err != nil {
			return err
		}
	}
	return atMost("ready timeout in seconds", int64(min(p.ReadyTimeoutSecond, math.MaxInt64)), maxReadyTimeout)
}

// check leaves reading the schedule and the time zone to the agent: a window that it cannot read is closed, and said.
func (w Window) check() error {
	if w.Schedule == "" || len(w.Schedule) > 128 || len(w.TimeZone) > 64 || !w.Download && !w.Apply || w.Seconds == 0 {
		return fmt.Errorf("%w: window %.140q", ErrMalformed, w.Schedule)
	}
	return atMost("length of a window in seconds", int64(min(w.Seconds, math.MaxInt64)), maxWindow)
}

// checkEntry holds names to what can stand in a topic, a label and a file name. A release is never newer than its document.
func checkEntry(name string, serial, document uint64) error {
	if !ValidName(name) {
		return fmt.Errorf("%w: deployment name %q is not a DNS label", ErrMalformed, name)
	}
	if serial == 0 || serial > document {
		return fmt.Errorf("%w: %q has serial %d in document %d", ErrMalformed, name, serial, document)
	}
	return nil
}

// ValidName reports whether s is a DNS label (RFC 1123 §2.1): 1 to 63 of a-z, 0-9 and inner dashes.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// checkTime holds seconds since 1970 to years that RFC 3339 can write.
func checkTime(what string, s int64) error {
	if s < 0 || s > 253402300799 { // 9999-12-31T23:59:59Z
		return fmt.Errorf("%w: %s %d is no time", ErrMalformed, what, s)
	}
	return nil
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func fromUnix(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0).UTC()
}
