package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"shoal.dev/shoal/bundlefmt"
)

const (
	locksDir = "locks"
	maxLock  = 4 << 10 // bytes of a lock file that are read
	maxLocks = 64
)

// Lock is a lock file: the site, or an application on it, asks for no changes. Anybody may write one, with any tool, while an agent
// runs: the file's name is the lock's, and its text is the reason. Lines "holder: NAME" and "until: TIME" (RFC 3339) say more. It
// holds from the time the file was last written.
type Lock struct {
	Name   string
	Holder string
	Reason string
	Since  time.Time
	Until  time.Time // zero: nobody said
}

// Locks are all lock files, ordered by name. One that cannot be read is a lock all the same: somebody meant something by it.
func (s *Store) Locks() ([]Lock, error) {
	list, err := os.ReadDir(s.path(locksDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read locks: %w", err)
	}
	var out []Lock
	for _, e := range list {
		if strings.HasPrefix(e.Name(), ".") || len(out) == maxLocks {
			continue
		}
		l, err := readLock(s.path(filepath.Join(locksDir, e.Name())), e.Name())
		if errors.Is(err, fs.ErrNotExist) { // taken off this moment
			continue
		}
		if err != nil {
			l.Reason = "the lock file cannot be read: " + err.Error()
		}
		out = append(out, l)
	}
	return out, nil
}

func readLock(path, name string) (Lock, error) {
	l := Lock{Name: name}
	info, err := os.Stat(path)
	if err != nil {
		return l, err
	}
	l.Since = info.ModTime().UTC()
	if !info.Mode().IsRegular() || info.Size() > maxLock {
		return l, fmt.Errorf("it is no file of at most %d bytes", maxLock)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return l, cause(err)
	}
	var reason []string
	for line := range strings.Lines(strings.ToValidUTF8(string(b), "?")) {
		line = strings.TrimSpace(line)
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(key) {
		case "":
		case "holder":
			l.Holder = value
		case "reason":
			reason = append(reason, value)
		case "until":
			t, err := time.Parse(time.RFC3339, value)
			if err != nil {
				reason = append(reason, fmt.Sprintf("(until %q is no time such as 2026-01-31T18:00:00+01:00)", value))
			}
			l.Until = t
		default:
			reason = append(reason, line)
		}
	}
	l.Reason = strings.Join(reason, " ")
	return l, nil
}

// PutLock takes a lock, or renews it. The directory may be opened for reading only: an agent runs there.
func (s *Store) PutLock(l Lock) error {
	if !bundlefmt.ValidName(l.Name) {
		return fmt.Errorf("lock %q: its name is not a DNS label (a-z, 0-9, dashes; at most 63)", l.Name)
	}
	var b strings.Builder
	for _, f := range []struct{ key, value string }{{"holder", l.Holder}, {"reason", l.Reason}} {
		if f.value != "" {
			fmt.Fprintf(&b, "%s: %s\n", f.key, strings.Join(strings.Fields(f.value), " "))
		}
	}
	if !l.Until.IsZero() {
		fmt.Fprintf(&b, "until: %s\n", l.Until.Format(time.RFC3339))
	}
	if b.Len() > maxLock {
		return fmt.Errorf("lock %s: reason and holder are longer than %d bytes", l.Name, maxLock)
	}
	if err := os.MkdirAll(s.path(locksDir), 0o700); err != nil {
		return fmt.Errorf("take lock %s: %w", l.Name, err)
	}
	path := s.path(filepath.Join(locksDir, l.Name))
	if err := replace(path, []byte(b.String())); err != nil {
		return err
	}
	// The technician may be root and the agent nobody in particular.
	if err := os.Chmod(path, 0o644); err != nil { //nolint:gosec // it lies in a directory that is the agent's alone
		return fmt.Errorf("take lock %s: %w", l.Name, err)
	}
	return nil
}

// DeleteLock takes a lock off; fs.ErrNotExist when there is none.
func (s *Store) DeleteLock(name string) error {
	list, err := os.ReadDir(s.path(locksDir))
	if err != nil {
		return fmt.Errorf("take lock %s off: %w", name, err)
	}
	if !slices.ContainsFunc(list, func(e fs.DirEntry) bool { return e.Name() == name }) {
		return fmt.Errorf("take lock %s off: %w", name, fs.ErrNotExist)
	}
	if err := os.Remove(s.path(filepath.Join(locksDir, name))); err != nil {
		return fmt.Errorf("take lock %s off: %w", name, err)
	}
	return nil
}
