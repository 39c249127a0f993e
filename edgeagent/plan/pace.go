package plan

import (
	"errors"
	"fmt"
	"time"

	"shoal.dev/shoal/bundlefmt"
)

// Backoff is how long to wait after count failures in a row: min, doubled each time, at most max. The caller jitters it.
func Backoff(count int, lo, hi time.Duration) time.Duration {
	d := lo
	for range count - 1 {
		if d *= 2; d >= hi {
			return hi
		}
	}
	return min(d, hi)
}

const (
	freeRepairs  = 3                // are made at once
	repairMemory = 10 * time.Minute // a repair that lasted so long counts as lasting
	repairMin    = 10 * time.Second
	repairMax    = 30 * time.Minute
)

// Made counts a repair.
func (r Repairs) Made(now time.Time) Repairs {
	if now.Sub(r.Last) > max(repairMemory, 2*r.after().Sub(r.Last)) {
		r.Count = 0
	}
	return Repairs{Count: r.Count + 1, Last: now}
}

// after is when the next repair may be made.
func (r Repairs) after() time.Time {
	if r.Count <= freeRepairs {
		return r.Last
	}
	return r.Last.Add(Backoff(r.Count-freeRepairs, repairMin, repairMax))
}

// Stale says whether the document's time has run out. That is said and stops nothing.
func Stale(d *bundlefmt.Desired, now time.Time) bool {
	return d != nil && !d.StaleAfter.IsZero() && now.After(d.StaleAfter)
}

// ErrSameSerial: two documents with one serial. The one that came first counts.
var ErrSameSerial = errors.New("another document with this serial is in force already")

// Accept says whether a verified document that arrived is news. have and content describe the one in force, or the
// newest that ever was: its serial and the hash of its bytes. The same document again is no news and no error.
func Accept(have bundlefmt.Serial, content bundlefmt.Digest, got bundlefmt.Serial, gotContent bundlefmt.Digest) (bool, error) {
	switch {
	case got < have:
		return false, fmt.Errorf("%w: serial %d, already at %d", bundlefmt.ErrStale, got, have)
	case got > have:
		return true, nil
	case content.IsZero():
		return true, nil
	case content != gotContent:
		return false, fmt.Errorf("%w: serial %d", ErrSameSerial, got)
	}
	return false, nil
}
