package bundlefmt

import (
	"errors"
	"fmt"
)

// Reasons for which a message is refused. Test with errors.Is.
var (
	ErrUntrusted = errors.New("not signed by a trusted key")
	ErrAudience  = errors.New("meant for somebody else")
	ErrStale     = errors.New("older than what is already applied")
	ErrMalformed = errors.New("malformed")
	ErrVersion   = errors.New("written by a newer version: upgrade this side")
	ErrDigest    = errors.New("content does not match its digest")
	ErrEmpty     = errors.New("empty message")
)

// LimitError says which limit a message would break; it is returned before anything of that size is allocated.
type LimitError struct {
	What       string
	Limit, Got int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%s is %d, the limit is %d", e.What, e.Got, e.Limit)
}

func atMost(what string, got, limit int64) error {
	if got < 0 || got > limit {
		return &LimitError{What: what, Limit: limit, Got: got}
	}
	return nil
}

// FewEntries is how many deployments and removals a desired document before version 3, and a report before version 3, may hold. A
// report about so few always fits one message; of more, [Desired.Fits] tells.
const FewEntries = 128

// Limits are part of the format: both sides enforce them, before anything of that size is allocated.
type Limits struct {
	PartSize int64 // bytes of one message, and of every document
	Parts    int64 // parts of one bundle
	BodySize int64 // compressed bytes of one bundle
	RawSize  int64 // uncompressed bytes of one bundle
	Objects  int64 // objects in one bundle
	Object   int64 // bytes of one object
	Depth    int64 // nesting inside an object
	Entries  int64 // deployments and removals together in one desired document; the size of the message may allow fewer
}

// DefaultLimits fit every broker in the protocol document and a small edge box.
func DefaultLimits() Limits {
	return Limits{
		PartSize: 48 << 10,
		Parts:    512,
		BodySize: 16 << 20,
		RawSize:  32 << 20,
		Objects:  10_000,
		Object:   1 << 20,
		Depth:    64,
		Entries:  512,
	}
}
