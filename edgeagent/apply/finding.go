package apply

import (
	"fmt"
	"strings"

	"shoal.dev/shoal/bundlefmt"
)

// Reason is why an object is not as it should be, for programs; [Finding.Message] is for people.
type Reason string

// Reasons for which an object is not applied, not ready, not as wanted, or not deleted.
const (
	Invalid          Reason = "Invalid"          // the API server does not accept it as written
	Immutable        Reason = "Immutable"        // a field that cannot be changed in place would have to
	UnknownKind      Reason = "UnknownKind"      // no such kind here: its CRD is missing, or the version moved
	Forbidden        Reason = "Forbidden"        // the agent lacks a right, or quota or policy refuses
	Rejected         Reason = "Rejected"         // an admission webhook refuses or does not answer
	OwnedByOther     Reason = "OwnedByOther"     // another deployment or a controller has it
	ClusterScoped    Reason = "ClusterScoped"    // not allowed with a forced namespace
	NoNamespace      Reason = "NoNamespace"      // its namespace does not exist
	Terminating      Reason = "Terminating"      // it, or its namespace, is being deleted
	Unavailable      Reason = "Unavailable"      // the API of this kind does not answer; others do
	Conflict         Reason = "Conflict"         // somebody else changed it at the same moment
	Failed           Reason = "Failed"           // it will not become ready by waiting
	Suspended        Reason = "Suspended"        // it does nothing, as it is told to: ready
	InProgress       Reason = "InProgress"       // it becomes ready, or nobody has looked at it yet
	Missing          Reason = "Missing"          // it is not on the cluster
	Modified         Reason = "Modified"         // it differs from the bundle
	HasContent       Reason = "HasContent"       // deleting it would delete things that nobody named
	TakenFromManager Reason = "TakenFromManager" // fields that another manager had set
	NobodysObject    Reason = "NobodysObject"    // it was there before the bundle, and taking over is not allowed
	Protected        Reason = "Protected"        // the agent lives by it
	HookFailed       Reason = "HookFailed"       // a hook did not succeed, so the release did not go on
	NoSiteValues     Reason = "NoSiteValues"     // what the site is to fill in is missing or not acceptable
	NoAccount        Reason = "NoAccount"        // the service account to write with does not exist
	KeepPolicy       Reason = "KeepPolicy"       // it says itself that it stays
	PruneHeld        Reason = "PruneHeld"        // unusually much would be deleted
	Inherited        Reason = "Inherited"        // another deployment has it now
	Awaited          Reason = "Awaited"          // another deployment may be ordered to have it; that is not known yet
)

// Finding says one thing about one object. Message is short, names the field, and never holds a value out of a Secret.
type Finding struct {
	Ref     Ref
	Reason  Reason
	Message string
}

// String is what people read.
func (f Finding) String() string {
	if f.Message == "" {
		return fmt.Sprintf("%s: %s", f.Ref, strings.ToLower(string(f.Reason)))
	}
	return fmt.Sprintf("%s: %s", f.Ref, f.Message)
}

// Report is the form for reports.
func (f Finding) Report() bundlefmt.Finding {
	if f.Message == "" {
		return bundlefmt.Finding{Ref: f.Ref, Reason: string(f.Reason)}
	}
	return bundlefmt.Finding{Ref: f.Ref, Reason: f.Message}
}

// Findings holds the first few of many and how many there are.
type Findings struct {
	Count int
	First []Finding // at most bundlefmt.MaxFindings
}

func (fs *Findings) add(f Finding) {
	fs.Count++
	if len(fs.First) < bundlefmt.MaxFindings {
		fs.First = append(fs.First, f)
	}
}

// Report is the form for reports.
func (fs Findings) Report() []bundlefmt.Finding {
	var out []bundlefmt.Finding
	for _, f := range fs.First {
		out = append(out, f.Report())
	}
	return out
}

// ObjectErrors is the error of a pass that went through but could not apply every object.
type ObjectErrors struct {
	Total    int // objects of the deployment
	Findings []Finding
}

// Error names the first object and says how many more there are.
func (e *ObjectErrors) Error() string {
	s := e.Findings[0].String()
	if n := len(e.Findings) - 1; n > 0 {
		s += fmt.Sprintf(" (and %d more of %d objects)", n, e.Total)
	}
	return s
}
