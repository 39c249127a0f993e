package bundlefmt

import (
	"fmt"

	"github.com/veraison/go-cose"
)

// Inspection is what a signed message claims to be. Exactly one of the pointers is set.
type Inspection struct {
	Key     KeyID // that it claims to be signed with
	Desired *Desired
	Trust   *TrustDoc
	Header  *Header // of a bundle; the message was its part 0
}

// Inspect reads a desired document, a trust document or part 0 of a bundle WITHOUT verifying it: for people and tools that
// look at a broker. Nothing may be done because of what it returns; an agent has no use for it.
func Inspect(msg []byte, l Limits) (*Inspection, error) {
	if err := atMost("message", int64(len(msg)), l.PartSize); err != nil {
		return nil, err
	}
	var start []byte
	if len(msg) > 0 && msg[0] == 0 { // the length before a bundle header; a COSE_Sign1 tag is 0xd2
		var err error
		if msg, start, err = cutPart0(msg, l); err != nil {
			return nil, err
		}
	}
	m, id, err := envelope(msg)
	if err != nil {
		return nil, err
	}
	out := &Inspection{Key: id}
	switch contentType, _ := m.Headers.Protected[cose.HeaderLabelContentType].(string); contentType {
	case TypeDesired:
		var w wireDesired
		if err := inspect(m, id, contentType, msg, &w); err != nil {
			return nil, err
		}
		out.Desired, err = w.open(l)
	case TypeTrust:
		var w wireTrust
		if err := inspect(m, id, contentType, msg, &w); err != nil {
			return nil, err
		}
		out.Trust, err = w.open()
	case TypeBundle:
		var h header
		if err := inspect(m, id, contentType, msg, &h); err != nil {
			return nil, err
		}
		out.Header, err = h.open(start, l)
	default:
		return nil, fmt.Errorf("%w: content type %.80q", ErrMalformed, contentType)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func inspect(m *cose.Sign1Message, id KeyID, contentType string, msg []byte, v any) error {
	if err := checkEnvelope(m, id, contentType, msg); err != nil {
		return err
	}
	return decode(m.Payload, v, newestOf(contentType))
}
