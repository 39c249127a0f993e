package bundlefmt

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
)

// Digest is a SHA-256; the digest of a rendered bundle is that of its index.
type Digest [sha256.Size]byte

// Sum hashes b.
func Sum(b []byte) Digest { return sha256.Sum256(b) }

// String is the full hexadecimal form.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Short is the first 32 hexadecimal digits: the form used in topics.
func (d Digest) Short() string { return hex.EncodeToString(d[:16]) }

// IsZero reports whether no digest was set.
func (d Digest) IsZero() bool { return d == Digest{} }

// ParseDigest reads the form that String writes.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) || hex.EncodeToString(b) != s {
		return d, fmt.Errorf("digest %q: want 64 lower-case hexadecimal digits: %w", s, ErrMalformed)
	}
	copy(d[:], b)
	return d, nil
}

// MarshalText makes JSON documents carry the hexadecimal form.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText accepts what MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) error {
	v, err := ParseDigest(string(b))
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// Serial numbers the releases of a deployment and the desired documents of a cluster. It only ever grows, from 1 (0 is
// "none yet") to [MaxSerial].
type Serial uint64

// MaxSerial is 2⁵³−1, the largest number that every JSON reader keeps exact. A signed document with a larger serial is
// refused: it would leave no room for a correction.
const MaxSerial Serial = 1<<53 - 1

func checkSerial(s uint64) error {
	if s == 0 || s > uint64(MaxSerial) {
		return fmt.Errorf("%w: serial %d is not in 1 … %d", ErrMalformed, s, MaxSerial)
	}
	return nil
}

// String is the decimal form.
func (s Serial) String() string { return strconv.FormatUint(uint64(s), 10) }

// ParseSerial reads the form that String writes.
func ParseSerial(s string) (Serial, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || v > uint64(MaxSerial) || strconv.FormatUint(v, 10) != s {
		return 0, fmt.Errorf("serial %q: want a decimal number: %w", s, ErrMalformed)
	}
	return Serial(v), nil
}
