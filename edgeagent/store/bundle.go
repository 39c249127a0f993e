package store

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"shoal.dev/shoal/bundlefmt"
)

// ErrIncomplete: parts of the bundle are missing, or did not hold and were set aside. Fetch what Missing names.
var ErrIncomplete = errors.New("bundle is not complete on disk")

func (s *Store) bundleDir(d bundlefmt.Digest) string {
	return filepath.Join(s.dir, bundlesDir, d.String())
}

func (s *Store) partPath(d bundlefmt.Digest, n int) string {
	return filepath.Join(s.bundleDir(d), strconv.Itoa(n))
}

// PutPart keeps a part that the caller has checked against the bundle's header.
func (s *Store) PutPart(d bundlefmt.Digest, n int, data []byte) error {
	if err := os.Mkdir(s.bundleDir(d), 0o700); err == nil {
		if err := syncDir(s.path(bundlesDir)); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write part: %w", err)
	}
	return replace(s.partPath(d, n), data)
}

func (s *Store) part(d bundlefmt.Digest, n int, l bundlefmt.Limits) ([]byte, error) {
	info, err := os.Lstat(s.partPath(d, n))
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > l.PartSize {
		return nil, errDamaged
	}
	return os.ReadFile(s.partPath(d, n))
}

// Keys is what verifies a bundle.
type Keys struct {
	Public []ed25519.PublicKey // in force now
	Limits bundlefmt.Limits
}

// Trust is the set of keys for what arrives.
func (k Keys) Trust() bundlefmt.Trust { return bundlefmt.NewTrust(k.Public...) }

// keysFile stands beside the parts of a bundle that was complete and verified once. It holds the keys of that moment: when
// they are rotated out, what they signed is refused from the broker, but what already runs here can still be kept as it is.
// Nothing is lost by that, since a desired document, or the record of one, names the bundle by its hash.
const keysFile = "keys"

// Verified notes that a bundle is complete and acceptable.
func (s *Store) Verified(d bundlefmt.Digest, k Keys) error {
	return replace(filepath.Join(s.bundleDir(d), keysFile), wrap(bytes.Join(asBytes(k.Public), nil)))
}

func asBytes(keys []ed25519.PublicKey) [][]byte {
	out := make([][]byte, len(keys))
	for i, k := range keys {
		out[i] = k
	}
	return out
}

// trust is the set of keys for a bundle on disk.
func (s *Store) trust(d bundlefmt.Digest, k Keys) bundlefmt.Trust {
	b, err := readChecked(filepath.Join(s.bundleDir(d), keysFile))
	if err != nil || len(b)%ed25519.PublicKeySize != 0 { // without it the keys in force must do
		return k.Trust()
	}
	keys := slices.Clone(k.Public)
	for old := range slices.Chunk(b, ed25519.PublicKeySize) {
		keys = append(keys, old)
	}
	return bundlefmt.NewTrust(keys...)
}

// Missing verifies what is on disk of a bundle and names the parts that are not there. Parts that do not hold are set
// aside. Without part 0 only part 0 is known to be missing, and header is nil.
func (s *Store) Missing(d bundlefmt.Digest, k Keys) (missing []int, header *bundlefmt.Header, err error) {
	p0, err := s.part(d, 0, k.Limits)
	if err == nil {
		header, err = bundlefmt.OpenHeader(p0, d, s.trust(d, k), k.Limits)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []int{0}, nil, nil
	case err != nil:
		s.setAside(s.partPath(d, 0), err)
		return []int{0}, nil, nil
	}
	for n := 1; n < header.Parts(); n++ {
		b, err := s.part(d, n, k.Limits)
		if err == nil {
			err = header.CheckPart(n, b)
		}
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				s.setAside(s.partPath(d, n), err)
			}
			missing = append(missing, n)
		}
	}
	return missing, header, nil
}

// Bundle verifies and opens a bundle. ErrIncomplete asks to fetch; any other error is about content whose hashes hold, and fetching it
// again would bring the same.
func (s *Store) Bundle(d bundlefmt.Digest, k Keys) (*bundlefmt.Bundle, error) {
	missing, header, err := s.Missing(d, k)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%w: %s lacks %d parts", ErrIncomplete, d.Short(), len(missing))
	}
	parts := make([][]byte, header.Parts())
	for n := range parts {
		if parts[n], err = s.part(d, n, k.Limits); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrIncomplete, err)
		}
	}
	return bundlefmt.Open(parts, d, s.trust(d, k), k.Limits)
}

// Collect removes bundles that keep does not name and says how many.
func (s *Store) Collect(keep map[bundlefmt.Digest]bool) (int, error) {
	list, err := os.ReadDir(s.path(bundlesDir))
	if err != nil {
		return 0, fmt.Errorf("collect bundles: %w", err)
	}
	var errs []error
	n := 0
	for _, e := range list {
		d, err := bundlefmt.ParseDigest(e.Name())
		if err == nil && keep[d] {
			continue
		}
		if err := os.RemoveAll(s.path(filepath.Join(bundlesDir, e.Name()))); err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	if err := errors.Join(errs...); err != nil {
		return n, fmt.Errorf("collect bundles: %w", err)
	}
	return n, nil
}
