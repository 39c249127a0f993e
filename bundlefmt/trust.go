package bundlefmt

import (
	"crypto/ed25519"
	"fmt"
	"time"
)

// TrustDoc lists the keys that may sign desired documents and bundles of a workspace. The root key signs it; the agent
// learned the root key when it enrolled.
type TrustDoc struct {
	Workspace string              `json:"workspace"`
	Serial    Serial              `json:"serial"`
	IssuedAt  time.Time           `json:"issuedAt"`
	Keys      []ed25519.PublicKey `json:"keys"`
}

type wireTrust struct {
	Version   uint64   `cbor:"1,keyasint"`
	Workspace string   `cbor:"2,keyasint"`
	Serial    uint64   `cbor:"3,keyasint"`
	IssuedAt  int64    `cbor:"4,keyasint"`
	Keys      [][]byte `cbor:"5,keyasint"`
}

// Sign encodes and signs with the root key.
func (d *TrustDoc) Sign(root Signer) ([]byte, error) {
	w := wireTrust{Version: 1, Workspace: d.Workspace, Serial: uint64(d.Serial), IssuedAt: unix(d.IssuedAt)}
	for _, k := range d.Keys {
		w.Keys = append(w.Keys, k)
	}
	if _, err := w.open(); err != nil {
		return nil, fmt.Errorf("sign trust document: %w", err)
	}
	return sign(root, TypeTrust, w)
}

// maxKeys bounds a trust document: current, next and previous keys of a few hubs.
const maxKeys = 64

// OpenTrust verifies a trust document against the root key; one with a serial below floor is refused, so that a key that
// was taken out never comes back by replay.
func OpenTrust(msg []byte, root ed25519.PublicKey, workspace string, floor Serial) (*TrustDoc, error) {
	if err := atMost("trust document", int64(len(msg)), DefaultLimits().PartSize); err != nil {
		return nil, err
	}
	var w wireTrust
	if err := verify(NewTrust(root), TypeTrust, msg, &w); err != nil {
		return nil, fmt.Errorf("trust document: %w", err)
	}
	if w.Workspace != workspace {
		return nil, fmt.Errorf("trust document: %w: it is for workspace %s", ErrAudience, w.Workspace)
	}
	if Serial(w.Serial) < floor {
		return nil, fmt.Errorf("trust document: %w: serial %d, already at %d", ErrStale, w.Serial, floor)
	}
	d, err := w.open()
	if err != nil {
		return nil, fmt.Errorf("trust document: %w", err)
	}
	return d, nil
}

// open checks the form; Sign does so too, so that nothing is signed that no agent would take.
func (w *wireTrust) open() (*TrustDoc, error) {
	if !ValidName(w.Workspace) {
		return nil, fmt.Errorf("%w: workspace %q is not a DNS label", ErrMalformed, w.Workspace)
	}
	if err := checkSerial(w.Serial); err != nil {
		return nil, err
	}
	if err := checkTime("time of issue", w.IssuedAt); err != nil {
		return nil, err
	}
	if len(w.Keys) == 0 {
		return nil, fmt.Errorf("%w: no keys", ErrMalformed)
	}
	if err := atMost("number of keys", int64(len(w.Keys)), maxKeys); err != nil {
		return nil, err
	}
	d := &TrustDoc{Workspace: w.Workspace, Serial: Serial(w.Serial), IssuedAt: fromUnix(w.IssuedAt)}
	for _, k := range w.Keys {
		if len(k) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("%w: key of %d bytes", ErrMalformed, len(k))
		}
		d.Keys = append(d.Keys, k)
	}
	return d, nil
}
