package render

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"shoal.dev/shoal/bundlefmt"
)

// DefaultDiskSize holds some ten thousand results of usual size.
const DefaultDiskSize = 1 << 30

// disk keeps results in files named by Input.Key, so that a hub that starts again renders nothing again. Everything in it may be lost. The files hold the Secrets of bundles: only
// their owner can read them.
//
// A file is magic, the SHA-256 of the rest, the length of the notes (4 bytes, big endian), the notes as JSON, and the bundle in its
// raw form. One that does not read back is a result that is not there; the next rendering replaces it.
type disk struct {
	dir  string
	size int64

	mu   sync.Mutex
	used int64
}

const (
	diskMagic  = "shoal rendered 1\n"
	diskSuffix = ".rendered"
)

func openDisk(dir string, size int64) (*disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for rendered bundles: %w", err)
	}
	d := &disk{dir: dir, size: size}
	if size <= 0 {
		d.size = DefaultDiskSize
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read directory of rendered bundles: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "tmp-") { // of a process that was killed
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	d.used = d.shrink()
	return d, nil
}

func (d *disk) path(key [32]byte) string {
	return filepath.Join(d.dir, hex.EncodeToString(key[:])+diskSuffix)
}

func (d *disk) get(key [32]byte) (Result, bool) {
	data, err := os.ReadFile(d.path(key))
	if err != nil {
		return Result{}, false
	}
	r, err := decodeResult(data)
	if err != nil {
		return Result{}, false
	}
	now := time.Now()
	_ = os.Chtimes(d.path(key), now, now) // what is used stays
	return r, true
}

func (d *disk) put(key [32]byte, r Result) error {
	data, err := encodeResult(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(d.dir, "tmp-") // mode 0600
	if err != nil {
		return fmt.Errorf("keep rendered bundle: %w", err)
	}
	_, err = f.Write(data)
	// No sync: a file that a power cut left half written fails its checksum.
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), d.path(key))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("keep rendered bundle: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.used += int64(len(data)); d.used > d.size {
		d.used = d.shrink()
	}
	return nil
}

// shrink removes what was used longest ago until nine tenths of the size are left, if it is more than the size. It returns what is left.
func (d *disk) shrink() (left int64) {
	var files []fs.FileInfo
	entries, _ := os.ReadDir(d.dir) // what cannot be read is not there
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), diskSuffix) {
			files = append(files, info)
			left += info.Size()
		}
	}
	if left <= d.size {
		return left
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, f := range files {
		if left <= d.size/10*9 {
			break
		}
		if os.Remove(filepath.Join(d.dir, f.Name())) == nil {
			left -= f.Size()
		}
	}
	return left
}

func encodeResult(r Result) ([]byte, error) {
	notes, err := json.Marshal(r.Notes)
	if err != nil {
		return nil, fmt.Errorf("keep rendered bundle: %w", err)
	}
	raw := r.Bundle.Raw()
	out := make([]byte, len(diskMagic)+sha256.Size, len(diskMagic)+sha256.Size+4+len(notes)+len(raw))
	copy(out, diskMagic)
	out = binary.BigEndian.AppendUint32(out, uint32(len(notes)))
	out = append(append(out, notes...), raw...)
	sum := sha256.Sum256(out[len(diskMagic)+sha256.Size:])
	copy(out[len(diskMagic):], sum[:])
	return out, nil
}

var errDamaged = errors.New("rendered bundle on disk is damaged")

func decodeResult(data []byte) (r Result, err error) {
	rest, ok := bytes.CutPrefix(data, []byte(diskMagic))
	if !ok || len(rest) < sha256.Size+4 {
		return r, errDamaged
	}
	sum, rest := rest[:sha256.Size], rest[sha256.Size:]
	if have := sha256.Sum256(rest); !bytes.Equal(have[:], sum) {
		return r, errDamaged
	}
	n, rest := int64(binary.BigEndian.Uint32(rest)), rest[4:]
	if n > int64(len(rest)) {
		return r, errDamaged
	}
	if err := json.Unmarshal(rest[:n], &r.Notes); err != nil {
		return r, errDamaged
	}
	r.Bundle, err = bundlefmt.ParseRaw(rest[n:], bundlefmt.DefaultLimits())
	return r, err
}
