package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

const (
	magic      = "shoal-store 1 "
	copySuffix = ".copy"
	maxFile    = 8 << 20 // of a checked file; far above anything written here
	maxDamaged = 32      // files kept in damaged/
)

var errDamaged = errors.New("file is damaged")

// replace writes a file so that after a power cut either the old or the new content is there, whole.
func replace(path string, data []byte) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	defer f.Cleanup() //nolint:errcheck // a no-op after success; after a failure the first error counts
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	return syncDir(filepath.Dir(path))
}

// cause leaves out the name of the temporary file: it is another one each time, and the error may be reported each time.
func cause(err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return p.Err
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

func wrap(data []byte) []byte {
	sum := sha256.Sum256(data)
	out := make([]byte, 0, len(magic)+2*len(sum)+1+len(data))
	out = append(out, magic...)
	out = hex.AppendEncode(out, sum[:])
	out = append(out, '\n')
	return append(out, data...)
}

func unwrap(b []byte) ([]byte, error) {
	head, data, ok := bytes.Cut(b, []byte("\n"))
	sum, ok2 := bytes.CutPrefix(head, []byte(magic))
	if !ok || !ok2 {
		return nil, errDamaged
	}
	if have := sha256.Sum256(data); hex.EncodeToString(have[:]) != string(sum) {
		return nil, errDamaged
	}
	return data, nil
}

func readChecked(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, errDamaged
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return unwrap(b)
}

// put writes a checked file and its copy. The same content again costs nothing.
func (s *Store) put(name string, data []byte) error {
	if s.readOnly {
		return errReadOnly
	}
	sum := sha256.Sum256(data)
	if s.written[name] == sum {
		return nil
	}
	b := wrap(data)
	path := filepath.Join(s.dir, name)
	if err := replace(path, b); err != nil {
		return err // what was there still is
	}
	delete(s.written, name)
	if err := replace(path+copySuffix, b); err != nil {
		return err
	}
	s.written[name] = sum
	return nil
}

// get reads a checked file or, when that is lost, its copy. valid says whether the content makes sense; what does not is treated like a
// damaged file. The error is fs.ErrNotExist when neither can be had.
func (s *Store) get(name string, valid func([]byte) error) ([]byte, error) {
	var lost error
	for _, n := range []string{name, name + copySuffix} {
		path := filepath.Join(s.dir, n)
		data, err := readChecked(path)
		if err == nil {
			err = valid(data)
		}
		switch {
		case err == nil && lost == nil:
			if n == name {
				if _, cerr := os.Lstat(path + copySuffix); cerr == nil {
					s.written[name] = sha256.Sum256(data)
				}
			}
			return data, nil
		case err == nil:
			s.log.Warn().Str("file", path).Msg("read the copy of a file that is lost")
			if !s.readOnly {
				if perr := s.put(name, data); perr != nil {
					s.log.Error().Err(perr).Msg("restore file from its copy")
				}
			}
			return data, nil
		case errors.Is(err, fs.ErrNotExist):
			lost = errors.Join(lost, err)
		default:
			s.setAside(path, err)
			lost = errors.Join(lost, err)
		}
	}
	return nil, fmt.Errorf("read %s: %w", name, fs.ErrNotExist)
}

// remove deletes the copy first: a power cut between the two leaves the file itself.
func (s *Store) remove(name string) error {
	delete(s.written, name)
	path := filepath.Join(s.dir, name)
	for _, p := range []string{path + copySuffix, path} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return syncDir(filepath.Dir(path))
}

// setAside moves a damaged file out of the way. It keeps a bounded number of them: a dying disk must not fill itself up.
func (s *Store) setAside(path string, why error) {
	s.damaged.Add(1)
	if s.readOnly {
		s.log.Warn().Str("file", path).AnErr("err", why).Msg("file is damaged")
		return
	}
	rel, err := filepath.Rel(s.dir, path)
	if err != nil {
		rel = filepath.Base(path)
	}
	to := filepath.Join(s.dir, damagedDir, fmt.Sprintf("%d-%s", time.Now().UnixNano(), strings.ReplaceAll(rel, string(filepath.Separator), "_")))
	err = os.Rename(path, to)
	if err != nil {
		err = errors.Join(err, os.RemoveAll(path))
	}
	ev := s.log.Error().Str("file", path).Str("moved_to", to).AnErr("why", why)
	if err != nil {
		ev = ev.AnErr("err", err)
	}
	ev.Msg("file is damaged and was moved aside; going on without it")
	names, err := os.ReadDir(filepath.Join(s.dir, damagedDir))
	if err != nil {
		return
	}
	for i := 0; i < len(names)-maxDamaged; i++ { // names start with the time: the oldest are first
		_ = os.RemoveAll(filepath.Join(s.dir, damagedDir, names[i].Name()))
	}
}

// sweep removes what a power cut left half-written.
func sweep(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), ".") {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("sweep: %w", err)
			}
		}
	}
	return nil
}

func names(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	var out []string
	for _, e := range list {
		if n := e.Name(); !strings.HasPrefix(n, ".") {
			out = append(out, strings.TrimSuffix(n, copySuffix))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func isDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}
