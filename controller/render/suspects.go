package render

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// suspects remembers on disk what is being rendered. A template can take all memory, or more stack than there is, and that ends
// the process: nobody can recover from it. The hub starts again, and without a memory of it would render the same bundle
// again, for ever, and no tenant would get anything. A bundle that was being rendered each time the process ended is left alone
// for a while; those that were rendered beside it are tried again then.
//
// A file holds how often it was begun since it last came to an end. All of them may be lost.
type suspects struct {
	dir string // empty: nothing is remembered

	mu     sync.Mutex
	active map[[32]byte]int // renderings of a bundle's files that go on
}

const (
	suspectSuffix = ".begun"
	maxBegun      = 3         // times that a rendering is begun without an end
	suspectFor    = time.Hour // then it is left alone
)

func (s *suspects) path(key [32]byte) string {
	return filepath.Join(s.dir, hex.EncodeToString(key[:])+suspectSuffix)
}

// begin takes note that a bundle's files are being rendered, or refuses it; end must follow if it does not.
// What cannot be written down is rendered all the same.
func (s *suspects) begin(key [32]byte, name string, now time.Time) error {
	if s.dir == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active[key] == 0 {
		n, since := s.begun(key)
		if n >= maxBegun && now.Sub(since) < suspectFor {
			return fmt.Errorf("render: the hub ended %d times while it rendered bundle %s: it is not tried again before %s, or until its files change; look for templates that call themselves by tpl, or make very long texts",
				n, name, since.Add(suspectFor).UTC().Format(time.RFC3339))
		}
		_ = os.WriteFile(s.path(key), []byte(strconv.Itoa(n+1)), 0o600)
	}
	s.active[key]++
	return nil
}

func (s *suspects) end(key [32]byte) {
	if s.dir == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active[key]--; s.active[key] > 0 {
		return
	}
	delete(s.active, key)
	_ = os.Remove(s.path(key))
}

// begun says how often a rendering was begun without an end, and when last.
func (s *suspects) begun(key [32]byte) (n int, last time.Time) {
	info, err := os.Stat(s.path(key))
	if err != nil {
		return 0, last
	}
	data, err := os.ReadFile(s.path(key))
	if err != nil {
		return 0, last
	}
	n, err = strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || n < 0 {
		n = 1 // cut: it was begun
	}
	return n, info.ModTime()
}

// forget removes what is older than a day: bundles whose files have changed since.
func (s *suspects) forget(now time.Time) {
	list, _ := filepath.Glob(filepath.Join(s.dir, "*"+suspectSuffix)) // what cannot be read is not there
	for _, f := range list {
		if info, err := os.Stat(f); err == nil && now.Sub(info.ModTime()) > 24*time.Hour {
			_ = os.Remove(f)
		}
	}
}
