package publish

import (
	"fmt"

	"shoal.dev/shoal/bundlefmt"
)

// Records are what the three places that keep state say of a cluster's documents. Each of them can be lost, put back to an older
// copy, or be another fleet's, alone or together with others, so none of them is believed against the others.
type Records struct {
	API      bundlefmt.Serial    // the number that was written down last, before its document was published
	Unused   bool                // API was written down by this process, and its document did not go out
	Ordered  *bundlefmt.Desired  // the newest document on the broker that this hub's key has signed; nil: none
	Message  bundlefmt.Digest    // of Ordered
	Reported *bundlefmt.Reported // nil: none
	Heard    bool                // the cluster itself has reported since the hub started
	Online   bool                // it is connected
	Resume   string              // a person's consent: the number in the message about the conflict
}

// Ground is what the cluster's next document stands on.
type Ground struct {
	Base    *bundlefmt.Desired // what the site follows, as far as the hub has it: what is not decided stays as it is there
	Serial  bundlefmt.Serial   // of the next document
	Resumed bool               // by consent: the next document is due even if it says nothing new
}

// Conflict says why nothing may be ordered for a cluster.
type Conflict struct {
	Reason  string
	Message string           // what is known, without the command that ends it
	Resume  bundlefmt.Serial // the number that consents to go on; 0: consent is not what is missing
}

// Reasons of conflicts.
const (
	SiteNewer     = "SerialConflict"   // the site follows a document that neither the API nor the broker knows of
	APIOlder      = "APIOlder"         // the API does not know of the hub's own document on the broker
	OtherDocument = "DocumentConflict" // site and hub mean different documents by one number
	StoreOlder    = "StoreOlder"       // the API knows of a document that the broker does not have
	NotReported   = "NotReported"      // it has connected, its report is on its way
	UsedUp        = "SerialsUsedUp"    // there is no number above the last one
)

// Agree compares the records. Exactly one of the results is set.
//
// A document that replaces one which the cluster has not confirmed bears the same number as long as the cluster was not heard since
// the hub started: API and broker may both have been put back by the same time, and then the site knows documents that nobody here
// does. Whatever their number, one above the last known is none that the site would take for newer.
func (r Records) Agree() (*Ground, *Conflict) {
	var ordered, reported bundlefmt.Serial
	if r.Ordered != nil {
		ordered = r.Ordered.Serial
	}
	if r.Reported != nil {
		reported = r.Reported.Serial
	}
	newest := max(r.API, ordered, reported)
	g := &Ground{Serial: newest + 1}
	other := r.Ordered != nil && r.Reported != nil && reported == ordered && !r.Reported.Document.IsZero() && r.Reported.Document != r.Message
	if reported <= ordered && !other {
		g.Base = r.Ordered
	}
	if newest >= bundlefmt.MaxSerial {
		return nil, &Conflict{Reason: UsedUp, Message: fmt.Sprintf("document %d has the highest number there is: nothing can be ordered after it", newest)}
	}
	c := &Conflict{Resume: newest}
	switch {
	case reported > max(r.API, ordered):
		c.Reason = SiteNewer
		c.Message = fmt.Sprintf("conflict: the cluster is at document %d, the hub only knows of %d (restored from an old backup?)", reported, max(r.API, ordered))
	case r.API < ordered:
		c.Reason = APIOlder
		c.Message = fmt.Sprintf("conflict: the hub has ordered document %d, its API only knows of %d (restored from an old backup?)", ordered, r.API)
	case other:
		c.Reason = OtherDocument
		c.Message = fmt.Sprintf("conflict: the cluster follows another document %d than the one the hub has (restored from an old backup?)", reported)
	case r.API > ordered && !r.Heard && !r.Unused:
		c.Reason = StoreOlder
		c.Message = fmt.Sprintf("the broker's store has document %d, the API knows of %d (store lost or restored?): the order waits until the cluster reports where it is", ordered, r.API)
	case !r.Heard && r.API == ordered && reported < ordered && (r.Reported == nil || reported == 0 || !r.Reported.Document.IsZero()):
		if r.Online {
			return nil, &Conflict{Reason: NotReported, Message: "connected: the order waits for its first report"}
		}
		g.Serial = ordered
		return g, nil
	default:
		return g, nil
	}
	if r.Resume != newest.String() {
		return nil, c
	}
	g.Resumed = true
	return g, nil
}
