package broker

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"
)

// TestMayNotWrite: a volume that belongs to root (a hostPath that ignores fsGroup) is named, and what to do about it.
func TestMayNotWrite(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		runtime.LockOSThread() // and never unlocked: the user is that of one thread, which ends with the test
		if err := syscall.Setfsuid(65532); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := syscall.Setfsuid(0); err != nil {
				t.Error(err)
			}
		}()
	}
	_, err := openStore(filepath.Join(dir, "retained"), zerolog.Nop(), func(*message) {})
	if err == nil {
		t.Fatal("opened, although the directory cannot be written")
	}
	if want := "make " + dir + " writable for user"; !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}
