package store

import (
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"shoal.dev/shoal/bundlefmt"
)

// Release is what an order said of a deployment: enough to fetch, apply and check it again without the order.
type Release struct {
	Serial bundlefmt.Serial `json:"serial"`
	Digest bundlefmt.Digest `json:"digest"`
	Policy bundlefmt.Policy `json:"policy"`
	Parts  int              `json:"parts"`
	Group  string           `json:"group,omitempty"`
}

// Record is what is known of one deployment on this site.
type Record struct {
	Name     string   `json:"name"`
	Applied  *Release `json:"applied,omitempty"`  // the last release that was applied in full
	Applying *Release `json:"applying,omitempty"` // a release whose apply has begun and not ended
	Removing bool     `json:"removing,omitempty"` // its removal has begun and not ended
	Good     bool     `json:"good,omitempty"`     // Applied has been ready
	Previous *Release `json:"previous,omitempty"` // the last release before Applied that was ready: the way back

	Rejected *Rejected     `json:"rejected,omitempty"` // the release that was given up last; not tried again
	Waited   time.Duration `json:"waited,omitempty"`   // for how long Applying, or else Applied, was seen not to be ready
	Linked   bool          `json:"linked,omitempty"`   // there was a link when the last apply began, and none was seen since
	Pruning  string        `json:"pruning,omitempty"`  // why Applied's prune is held
	Objects  int           `json:"objects,omitempty"`  // of Applied

	// Refs is every object that Applied has and that Applying may have made. It is written before an apply touches the
	// cluster: an object that is not in here would never be pruned.
	Refs []bundlefmt.Ref `json:"refs,omitempty"`

	Runs []Run `json:"runs,omitempty"` // of Jobs and the like, which are done when they have ended

	State   bundlefmt.State `json:"state,omitempty"`
	Since   time.Time       `json:"since,omitzero"`
	Message string          `json:"message,omitempty"`
}

// Run is the one time that a Job, or another object that does its work once, has done it.
type Run struct {
	Ref   bundlefmt.Ref    `json:"ref"`
	Spec  bundlefmt.Digest `json:"spec"`
	Force uint64           `json:"force,omitempty"`
	UID   string           `json:"uid"`
	End   string           `json:"end,omitempty"` // empty: it was not seen to end
	Why   string           `json:"why,omitempty"`
}

// Rejected is a release that was given up, and why.
type Rejected struct {
	Serial bundlefmt.Serial `json:"serial"`
	Digest bundlefmt.Digest `json:"digest"`
	Reason string           `json:"reason"`
}

// Records are all deployments known here; a damaged one is set aside and left out.
func (s *Store) Records() (map[string]Record, error) {
	list, err := names(s.path(recordsDir))
	if err != nil {
		return nil, err
	}
	out := make(map[string]Record, len(list))
	for _, n := range list {
		r, err := getJSON(s, filepath.Join(recordsDir, n), func(r Record) error {
			if r.Name != n || !bundlefmt.ValidName(n) {
				return errDamaged
			}
			return nil
		})
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[n] = r
	}
	return out, nil
}

// PutRecord keeps a record.
func (s *Store) PutRecord(r Record) error { return s.putJSON(filepath.Join(recordsDir, r.Name), r) }

// DeleteRecord forgets a deployment; forgetting it twice is no error.
func (s *Store) DeleteRecord(name string) error { return s.remove(filepath.Join(recordsDir, name)) }
