package bundlefmt

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// State is where a deployment, a bundle or a cluster stands.
type State string

// States of a deployment. The names that Fleet has mean the same here.
const (
	Ready       State = "Ready"       // applied, ready, as ordered
	NotReady    State = "NotReady"    // applied; some objects are not ready yet
	Pending     State = "Pending"     // ordered nothing yet, or nothing heard of it yet
	OutOfSync   State = "OutOfSync"   // a newer release waits for the rollout
	Modified    State = "Modified"    // somebody changed it on the site
	WaitApplied State = "WaitApplied" // ordered, not applied yet
	Downloading State = "Downloading" // parts are on their way
	Held        State = "Held"        // a window, a pause or a lock holds the change
	Orphaned    State = "Orphaned"    // on the site, but nobody orders or removes it
	RolledBack  State = "RolledBack"  // the release failed; the one before runs
	Refused     State = "Refused"     // what arrived was not acceptable
	ErrApplied  State = "ErrApplied"  // applying failed
)

// RemovalsHeld begins the message of a removal that the agent holds because it is one of unusually many, until each of them is
// confirmed in the desired document. Their number follows: "held: would remove 3 of 4 deployments".
const RemovalsHeld = "held: would remove "

// ranks orders states for summaries, worst first.
var ranks = []State{ErrApplied, Refused, RolledBack, WaitApplied, Downloading, Modified, OutOfSync, Held, Pending, Orphaned, NotReady, Ready}

// Worst is the state that a summary shows; with no states at all it is Ready: nothing is wrong.
func Worst(states ...State) State {
	worst := len(ranks) - 1
	for _, s := range states {
		if i := slices.Index(ranks, s); i >= 0 && i < worst {
			worst = i
		}
	}
	return ranks[worst]
}

// Reported is where each deployment of a cluster stands: retained, JSON, written by the agent.
type Reported struct {
	Version     int                `json:"version"`
	Serial      Serial             `json:"serial"`            // of the desired document last accepted; 0: none yet
	Document    Digest             `json:"document,omitzero"` // of that document's message: two documents with one serial are told apart by it
	Reads       int                `json:"reads,omitempty"`   // newest version of desired documents that the agent reads; 0: not said, at least 1
	Trust       Serial             `json:"trust,omitempty"`   // of the trust document in force
	At          time.Time          `json:"at"`
	Stale       bool               `json:"stale,omitempty"`
	Facts       string             `json:"facts,omitempty"`   // hash of the facts document
	Refused     *Refusal           `json:"refused,omitempty"` // the last message that was refused
	Deployments []DeploymentReport `json:"deployments,omitempty"`
}

// Refusal says which message was refused and why.
type Refusal struct {
	Topic  string    `json:"topic"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
	Count  int       `json:"count"` // how often since the agent started
}

// DeploymentReport is one deployment on one cluster. In a report about more than [FewEntries] a Digest or a Since may be left out:
// they are zero then. A digest that is left out although the serial is not 0 is the one that the hub ordered under that serial.
type DeploymentReport struct {
	Name     string    `json:"name"`
	Serial   Serial    `json:"serial"` // of the release that was applied last; 0: none yet
	Digest   Digest    `json:"digest"` // of that release
	State    State     `json:"state"`
	Message  string    `json:"message,omitempty"`
	Ready    int       `json:"ready"`
	Total    int       `json:"total"`
	Since    time.Time `json:"since"` // of the state; whole seconds
	NotReady []Finding `json:"notReady,omitempty"`
	Modified []Finding `json:"modified,omitempty"`
	// Counts of all findings; the lists above hold at most MaxFindings.
	NotReadyCount int `json:"notReadyCount,omitempty"`
	ModifiedCount int `json:"modifiedCount,omitempty"`

	AsOrdered bool `json:"-"` // Digest is the one ordered under Serial by the document in force: it need not be said
}

// MaxFindings bounds the lists in a report; the counts beside them are of everything.
const MaxFindings = 10

// newestReport is the last version that changed a report.
const newestReport = 3

// MaxMessage bounds a message or a reason, in bytes. What is longer is cut, by the writer and by the reader.
const MaxMessage = 1024

const maxVersion = 64 // bytes of what an agent calls its version

// Finding is an object that is not as it should be, and why.
type Finding struct {
	Ref
	Reason string `json:"reason"`
}

// Presence is the agent's birth message and, with Online false, its Will.
type Presence struct {
	Online bool      `json:"online"`
	Nonce  string    `json:"nonce"` // of the connection: a Will whose nonce is not the current one is late and means nothing
	Since  time.Time `json:"since"`
	Agent  string    `json:"agent,omitempty"` // version of the agent
	Reason string    `json:"reason,omitempty"`
}

// Event is one transition, sent at once and not retained.
type Event struct {
	At         time.Time `json:"at"`
	Deployment string    `json:"deployment,omitempty"`
	Serial     Serial    `json:"serial,omitempty"`
	State      State     `json:"state,omitempty"`
	Message    string    `json:"message,omitempty"`
}

// Facts describe a cluster; the hub renders for them.
type Facts struct {
	KubernetesVersion string   `json:"kubernetesVersion"`
	APIVersions       []string `json:"apiVersions,omitempty"`
	Nodes             int      `json:"nodes"`
	Agent             string   `json:"agent"`
}

// Hash identifies facts in reports: it is the hash of the bytes that json.Marshal gives, which the agent publishes.
func (f Facts) Hash() string {
	b, err := json.Marshal(f)
	if err != nil {
		return "" // strings and an int always encode
	}
	return Sum(b).Short()
}

// PartRequest asks the hub to publish parts of a bundle again: the answer comes on the parts' own topics.
type PartRequest struct {
	Deployment string `json:"deployment"`
	Digest     Digest `json:"digest"`
	Group      string `json:"group,omitempty"`
	Parts      []int  `json:"parts"`
}

// Encode writes the report so that it fits one message. What is too large loses findings first, then long messages, then all
// messages, then since when and of which bundle; never a deployment or a count. See [Desired.Fits].
func (r Reported) Encode(l Limits) ([]byte, error) {
	var size int64
	r.At = r.At.UTC().Truncate(time.Second)
	write, steps := encodeFew, []func(*DeploymentReport){
		tidy,
		func(d *DeploymentReport) { d.NotReady, d.Modified = first(d.NotReady, 1), first(d.Modified, 1) },
		func(d *DeploymentReport) { d.NotReady, d.Modified = nil, nil },
		func(d *DeploymentReport) { d.Message = "" },
	}
	if len(r.Deployments) > FewEntries {
		write = encodeMany
		steps = append(slices.Insert(steps, 3, func(d *DeploymentReport) { clip(&d.Message, 100) }),
			func(d *DeploymentReport) { d.Since = time.Time{} },
			func(d *DeploymentReport) { d.AsOrdered = true },
		)
		if r.Refused != nil {
			refused := *r.Refused
			clip(&refused.Reason, 200)
			r.Refused = &refused
		}
	}
	for _, shrink := range steps {
		r.Deployments = slices.Clone(r.Deployments)
		for i := range r.Deployments {
			shrink(&r.Deployments[i])
		}
		b, err := write(r)
		if err != nil {
			return nil, fmt.Errorf("encode report: %w", err)
		}
		if size = int64(len(b)); size <= l.PartSize {
			return b, nil
		}
	}
	return nil, &LimitError{What: "size of a report without findings and messages", Limit: l.PartSize, Got: size}
}

// encodeFew is the form of reports that every hub reads.
func encodeFew(r Reported) ([]byte, error) {
	r.Version = 1
	return json.Marshal(r)
}

// encodeMany is the form that leaves out what the hub knows.
func encodeMany(r Reported) ([]byte, error) {
	type short struct {
		DeploymentReport
		Digest *Digest    `json:"digest,omitempty"`
		Since  *time.Time `json:"since,omitempty"`
	}
	out := struct {
		Reported
		Deployments []short `json:"deployments"`
	}{Reported: r}
	out.Version = 3
	for i := range r.Deployments {
		d := short{DeploymentReport: r.Deployments[i]}
		if !d.AsOrdered && d.Serial > 0 {
			d.Digest = &r.Deployments[i].Digest
		}
		if !r.Deployments[i].Since.IsZero() {
			d.Since = &r.Deployments[i].Since
		}
		out.Deployments = append(out.Deployments, d)
	}
	return json.Marshal(out)
}

// reportHead is more than a report takes beside its deployments when it has to be short.
const reportHead = 2048

// reportEntry is the most that a deployment takes in a report that has to be short.
func reportEntry(name string, serial Serial) int64 {
	const form = `{"name":"","serial":,"state":"Downloading","ready":10000,"total":10000,"notReadyCount":10000,"modifiedCount":10000},`
	return int64(len(form) + len(name) + len(serial.String()))
}

// tidy holds a report to what ParseReported accepts.
func tidy(d *DeploymentReport) {
	d.Since = d.Since.UTC().Truncate(time.Second)
	d.NotReadyCount, d.ModifiedCount = max(d.NotReadyCount, len(d.NotReady)), max(d.ModifiedCount, len(d.Modified))
	d.NotReady, d.Modified = slices.Clone(first(d.NotReady, MaxFindings)), slices.Clone(first(d.Modified, MaxFindings))
	d.clip()
}

func (d *DeploymentReport) clip() {
	clip(&d.Message, MaxMessage)
	for _, l := range [][]Finding{d.NotReady, d.Modified} {
		for i := range l {
			clip(&l[i].Reason, MaxMessage)
		}
	}
}

func first(f []Finding, n int) []Finding { return f[:min(n, len(f))] }

// clip cuts text between two characters.
func clip(s *string, limit int) {
	if len(*s) <= limit {
		return
	}
	n := limit - len("…")
	for n > 0 && !utf8.RuneStart((*s)[n]) {
		n--
	}
	*s = (*s)[:n] + "…"
}

// ParseReported reads a report from a cluster that may be broken or hostile.
func ParseReported(b []byte, l Limits) (*Reported, error) {
	var r Reported
	if err := parseJSON("report", b, &r, l); err != nil {
		var newer struct{ Version int }
		if json.Unmarshal(b, &newer) == nil && newer.Version > newestReport {
			return nil, fmt.Errorf("report: %w", ErrVersion)
		}
		return nil, err
	}
	if r.Version > newestReport {
		return nil, fmt.Errorf("report: %w", ErrVersion)
	}
	if r.Version < 1 {
		return nil, fmt.Errorf("report: %w: no format version", ErrMalformed)
	}
	if err := r.checkVersion(l); err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	if r.Serial > MaxSerial || r.Trust > MaxSerial {
		return nil, fmt.Errorf("report: %w: serial above %d", ErrMalformed, MaxSerial)
	}
	if r.Refused != nil {
		clip(&r.Refused.Reason, MaxMessage)
	}
	seen := make(map[string]bool, len(r.Deployments))
	for i := range r.Deployments {
		d := &r.Deployments[i]
		if !ValidName(d.Name) {
			return nil, fmt.Errorf("report: %w: deployment name %.80q", ErrMalformed, d.Name)
		}
		if seen[d.Name] {
			return nil, fmt.Errorf("report: %w: deployment %q stands twice", ErrMalformed, d.Name)
		}
		seen[d.Name] = true
		if err := d.check(l); err != nil {
			return nil, fmt.Errorf("report: deployment %s: %w", d.Name, err)
		}
		d.clip()
	}
	return &r, nil
}

// checkVersion: only what is about many deployments has the form of version 3.
func (r *Reported) checkVersion(l Limits) error {
	n := int64(len(r.Deployments))
	if r.Version == 1 {
		return atMost("number of deployments", n, min(l.Entries, FewEntries))
	}
	if r.Version != newestReport || n <= FewEntries {
		return fmt.Errorf("%w: a report about %d deployments, marked %d", ErrMalformed, n, r.Version)
	}
	return atMost("number of deployments", n, l.Entries)
}

// check holds numbers to what can be added up over a fleet.
func (d *DeploymentReport) check(l Limits) error {
	if !d.State.known() {
		return fmt.Errorf("%w: state %.80q", ErrMalformed, string(d.State))
	}
	if d.Serial > MaxSerial {
		return fmt.Errorf("%w: serial above %d", ErrMalformed, MaxSerial)
	}
	for _, n := range []struct {
		what string
		n    int
	}{{"total", d.Total}, {"ready", d.Ready}, {"notReadyCount", d.NotReadyCount}, {"modifiedCount", d.ModifiedCount}} {
		if err := atMost(n.what, int64(n.n), l.Objects); err != nil {
			return err
		}
	}
	if d.Ready > d.Total {
		return fmt.Errorf("%w: %d of %d objects ready", ErrMalformed, d.Ready, d.Total)
	}
	if err := atMost("number of objects in notReady", int64(len(d.NotReady)), MaxFindings); err != nil {
		return err
	}
	return atMost("number of objects in modified", int64(len(d.Modified)), MaxFindings)
}

func (s State) known() bool { return slices.Contains(ranks, s) }

// ParsePresence reads a presence message.
func ParsePresence(b []byte, l Limits) (*Presence, error) {
	var p Presence
	if err := parseJSON("presence", b, &p, l); err != nil {
		return nil, err
	}
	if !ValidName(p.Nonce) {
		return nil, fmt.Errorf("presence: %w: nonce %.80q", ErrMalformed, p.Nonce)
	}
	clip(&p.Agent, maxVersion)
	clip(&p.Reason, MaxMessage)
	return &p, nil
}

// ParseEvent reads an event.
func ParseEvent(b []byte, l Limits) (*Event, error) {
	var e Event
	if err := parseJSON("event", b, &e, l); err != nil {
		return nil, err
	}
	if e.Deployment != "" && !ValidName(e.Deployment) {
		return nil, fmt.Errorf("event: %w: deployment name %.80q", ErrMalformed, e.Deployment)
	}
	if e.State != "" && !e.State.known() {
		return nil, fmt.Errorf("event: %w: state %.80q", ErrMalformed, string(e.State))
	}
	if e.Serial > MaxSerial {
		return nil, fmt.Errorf("event: %w: serial above %d", ErrMalformed, MaxSerial)
	}
	clip(&e.Message, MaxMessage)
	return &e, nil
}

// ParseFacts reads facts.
func ParseFacts(b []byte, l Limits) (*Facts, error) {
	var f Facts
	if err := parseJSON("facts", b, &f, l); err != nil {
		return nil, err
	}
	return &f, nil
}

// ParsePartRequest reads a request for parts. Whether the cluster runs that bundle, and whether the bundle has that many
// parts, is for the caller to look up.
func ParsePartRequest(b []byte, l Limits) (*PartRequest, error) {
	var p PartRequest
	if err := parseJSON("part request", b, &p, l); err != nil {
		return nil, err
	}
	if !ValidName(p.Deployment) {
		return nil, fmt.Errorf("part request: %w: deployment name %.80q", ErrMalformed, p.Deployment)
	}
	if p.Group != "" && p.Group != AllGroup && !ValidName(p.Group) {
		return nil, fmt.Errorf("part request: %w: group %.80q", ErrMalformed, p.Group)
	}
	if len(p.Parts) == 0 {
		return nil, fmt.Errorf("part request: %w: it names no part", ErrMalformed)
	}
	if err := atMost("number of parts", int64(len(p.Parts)), l.Parts); err != nil {
		return nil, err
	}
	for _, i := range p.Parts {
		if err := atMost("part", int64(i), l.Parts-1); err != nil {
			return nil, err
		}
	}
	return &p, nil
}

func parseJSON(what string, b []byte, v any, l Limits) error {
	if len(b) == 0 {
		return fmt.Errorf("%s: %w", what, ErrEmpty)
	}
	if err := atMost(what, int64(len(b)), l.PartSize); err != nil {
		return err
	}
	if err := checkDepth(b, 16); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w: %w", what, ErrMalformed, err)
	}
	return nil
}
