package store

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/bundlefmt"
)

// ErrLocked: another agent uses the directory.
var ErrLocked = errors.New("another agent runs with this data directory")

var errReadOnly = errors.New("store was opened for reading")

const (
	recordsDir = "records"
	bundlesDir = "bundles"
	damagedDir = "damaged"
)

// Store is one agent's data directory. Documents and records belong to one goroutine; parts and bundles (files of their
// own) may be used from any.
type Store struct {
	dir      string
	log      zerolog.Logger
	lock     *os.File
	readOnly bool
	written  map[string][sha256.Size]byte // what checked files hold, so that no write repeats it
	damaged  atomic.Int64
}

// mayNotWrite adds what to do where the directory belongs to somebody else.
func mayNotWrite(err error, dir string) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: make %s writable for user %d, who runs this (volumes such as a bare hostPath ignore fsGroup)",
			err, dir, os.Getuid())
	}
	return err
}

// Open makes the directory if need be, takes it for this process, and sweeps away what a power cut left half-written.
func Open(dir string, log zerolog.Logger) (*Store, error) {
	s := &Store{dir: dir, log: log.With().Str("component", "store").Logger(), written: map[string][sha256.Size]byte{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", mayNotWrite(err, dir))
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		s.log.Warn().Err(err).Msg("data directory holds the site's private key and its permissions cannot be narrowed")
	}
	var err error
	if s.lock, err = lock(s.path("lock")); err != nil {
		return nil, mayNotWrite(err, dir)
	}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) prepare() error {
	for _, d := range []string{recordsDir, bundlesDir, locksDir, damagedDir} {
		info, err := os.Lstat(s.path(d))
		if err == nil && !info.IsDir() {
			if err := os.Rename(s.path(d), s.path(fmt.Sprintf("%s.%d", d, time.Now().UnixNano()))); err != nil {
				return fmt.Errorf("move aside: %w", err)
			}
		}
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return fmt.Errorf("make data directory: %w", err)
		}
	}
	swept := []string{"", recordsDir}
	bundles, err := names(s.path(bundlesDir))
	if err != nil {
		return err
	}
	for _, b := range bundles {
		if d := filepath.Join(bundlesDir, b); isDir(s.path(d)) {
			swept = append(swept, d)
		}
	}
	for _, d := range swept {
		if err := sweep(s.path(d)); err != nil {
			return err
		}
	}
	return syncDir(s.dir)
}

// Read opens the directory to look at it, whether an agent runs there or not. Nothing is changed.
func Read(dir string) (*Store, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	return &Store{dir: dir, log: zerolog.Nop(), readOnly: true, written: map[string][sha256.Size]byte{}}, nil
}

// Close lets go of the directory.
func (s *Store) Close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// Damaged is how many damaged files were met since Open.
func (s *Store) Damaged() int64 { return s.damaged.Load() }

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// Identity is who this site is and how it knows its hub. Certificate is empty until the hub has answered; the key is made
// once and kept through every attempt, so that asking again is the same question.
type Identity struct {
	Key         []byte            `json:"key"` // PKCS #8, DER
	Certificate []byte            `json:"certificate,omitempty"`
	URL         string            `json:"url,omitempty"`
	CA          string            `json:"ca,omitempty"` // PEM
	Root        ed25519.PublicKey `json:"root,omitempty"`
	Workspace   string            `json:"workspace,omitempty"`
	Cluster     string            `json:"cluster,omitempty"`
}

// Enrolled says whether the hub has given this identity a name.
func (i Identity) Enrolled() bool { return len(i.Certificate) > 0 }

// Check says what is wrong with an identity, whoever kept it.
func (i Identity) Check() error {
	if len(i.Key) == 0 {
		return errors.New("identity has no key")
	}
	if i.Enrolled() && (i.URL == "" || len(i.Root) != ed25519.PublicKeySize || !bundlefmt.ValidName(i.Workspace) || !bundlefmt.ValidName(i.Cluster)) {
		return errors.New("identity lacks a field")
	}
	return nil
}

// Identity is fs.ErrNotExist before the first PutIdentity.
func (s *Store) Identity() (Identity, error) {
	return getJSON(s, "identity", Identity.Check)
}

// PutIdentity replaces the identity.
func (s *Store) PutIdentity(id Identity) error { return s.putJSON("identity", id) }

// Floor is how far this site has come. Nothing below it is accepted again.
type Floor struct {
	Desired  bundlefmt.Serial `json:"desired"`
	Document bundlefmt.Digest `json:"document"` // SHA-256 of that document's bytes: one serial has one content
	Trust    bundlefmt.Serial `json:"trust"`
}

// Floor is zero when there is none.
func (s *Store) Floor() (Floor, error) {
	f, err := getJSON(s, "floor", func(Floor) error { return nil })
	if errors.Is(err, fs.ErrNotExist) {
		return Floor{}, nil
	}
	return f, err
}

// PutFloor is called before the document is acted on.
func (s *Store) PutFloor(f Floor) error { return s.putJSON("floor", f) }

// Desired is the document in force, as it came; fs.ErrNotExist when there is none. The caller verifies it again.
func (s *Store) Desired() ([]byte, error) {
	return s.get("desired", func([]byte) error { return nil })
}

// PutDesired keeps a document whose signature, audience and serial the caller has checked.
func (s *Store) PutDesired(msg []byte) error { return s.put("desired", msg) }

// Trust is the trust document in force, as it came; fs.ErrNotExist when there is none.
func (s *Store) Trust() ([]byte, error) {
	return s.get("trust", func([]byte) error { return nil })
}

// PutTrust keeps a trust document that the caller has checked.
func (s *Store) PutTrust(msg []byte) error { return s.put("trust", msg) }

// PutStatus keeps what "shoal-agent status" shows. It is not synced: losing it costs nothing.
func (s *Store) PutStatus(b []byte) error {
	tmp := s.path(".status")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	if err := os.Rename(tmp, s.path("status")); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// Status is what PutStatus wrote last.
func (s *Store) Status() ([]byte, error) { return os.ReadFile(s.path("status")) }

func (s *Store) putJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return s.put(name, append(b, '\n'))
}

// getJSON reads into a fresh value for each of file and copy: what a damaged one held must not shine through.
func getJSON[T any](s *Store, name string, check func(T) error) (T, error) {
	var out T
	_, err := s.get(name, func(b []byte) error {
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
		if err := check(v); err != nil {
			return err
		}
		out = v
		return nil
	})
	return out, err
}
