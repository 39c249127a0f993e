package bundlefmt

import (
	"crypto/ed25519"
	"fmt"
	"time"
)

// TrustDoc lists the keys that may sign desired documents and bundles of a workspace. The root key signs it; the agent
// learned the root key when it enrolled.
type TrustDoc struct {
	Workspace string
	Serial    Serial
	IssuedAt  time.Time
	Keys      []ed25519.PublicKey
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
	w := wireTrust{Version: Version, Workspace: d.Workspace, Serial: uint64(d.Serial), IssuedAt: unix(d.IssuedAt)}
	for _, k := range d.Keys {
		w.Keys = append(w.Keys, k)
	}
	return sign(root, TypeTrust, w)
}

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
	d := &TrustDoc{Workspace: w.Workspace, Serial: Serial(w.Serial), IssuedAt: fromUnix(w.IssuedAt)}
	for _, k := range w.Keys {
		if len(k) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("trust document: %w: key of %d bytes", ErrMalformed, len(k))
		}
		d.Keys = append(d.Keys, k)
	}
	if len(d.Keys) == 0 {
		return nil, fmt.Errorf("trust document: %w: no keys", ErrMalformed)
	}
	return d, nil
}
