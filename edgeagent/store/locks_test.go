package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

func TestLocks(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, err := s.Locks(); err != nil || len(got) != 0 {
		t.Fatalf("none: %v %v", got, err)
	}
	// A technician writes while the agent runs, with the tool or by hand.
	tool, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	until := time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)
	if err := tool.PutLock(Lock{Name: "till", Holder: "anna", Reason: "counting\nuntil: 2099-01-01T00:00:00Z", Until: until}); err != nil {
		t.Fatal(err)
	}
	since := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	byHand := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, "locks", name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, since, since)); err != nil {
			t.Fatal(err)
		}
	}
	byHand("Backup of\x00"[:9], "the database\nis being copied\n")
	byHand("empty", "")
	byHand("large", strings.Repeat("x", 5000))
	byHand("no-time", "until: tomorrow\nreason: party")
	byHand(".hidden", "")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "locks", "subdir"), 0o700), os.Chtimes(filepath.Join(dir, "locks", "till"), since, since), os.Chtimes(filepath.Join(dir, "locks", "subdir"), since, since)); err != nil {
		t.Fatal(err)
	}
	got, err := s.Locks()
	if err != nil {
		t.Fatal(err)
	}
	want := []Lock{
		{Name: "Backup of", Reason: "the database is being copied", Since: since},
		{Name: "empty", Since: since},
		{Name: "large", Reason: "the lock file cannot be read: it is no file of at most 4096 bytes", Since: since},
		{Name: "no-time", Reason: `(until "tomorrow" is no time such as 2026-01-31T18:00:00+01:00) party`, Since: since},
		{Name: "subdir", Reason: "the lock file cannot be read: it is no file of at most 4096 bytes", Since: since},
		{Name: "till", Holder: "anna", Reason: "counting until: 2099-01-01T00:00:00Z", Since: since, Until: until},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if err := tool.DeleteLock("till"); err != nil {
		t.Error(err)
	}
	if err := tool.DeleteLock("till"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("twice: %v", err)
	}
	for _, bad := range []string{"", "../x", "A", "a/b"} {
		if err := tool.PutLock(Lock{Name: bad}); err == nil {
			t.Errorf("lock %q was taken", bad)
		}
		if err := tool.DeleteLock(bad); err == nil {
			t.Errorf("lock %q was taken off", bad)
		}
	}
}
