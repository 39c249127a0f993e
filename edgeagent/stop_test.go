package edgeagent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/kubetest"
)

// A clean stop leaves nothing behind: no goroutine, no connection, no lock.
func TestCleanStop(t *testing.T) {
	h, s, b := installed(t, fix)
	s.halt()
	before := goleak.IgnoreCurrent()
	s.start()
	h.order(s.c, 2, entry("web", 2, b, fix))
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	s.halt()
	h.awaitPresence(s.c, "a goodbye", func(p *bundlefmt.Presence) bool { return !p.Online && p.Reason == "stopped" })
	h.stop() // with its goroutines the broker's are gone as well
	goleak.VerifyNone(t, before)
}

// The disk is full: what cannot be written down is not acted on, and said; what runs is kept; with room it goes on.
func TestFullDisk(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	if err := os.Mkdir(s.o.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", s.o.DataDir, "tmpfs", 0, "size=512k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mount a small file system: %v", err)
		}
		fmt.Fprintf(os.Stderr, "SKIPPED %s: mount a small file system: %v\n", t.Name(), err)
		t.Skip(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(s.o.DataDir, syscall.MNT_DETACH) })
	s.start()
	one := h.seal(s.configMap("a", "1"))
	h.put(s.c, "", one)
	h.order(s.c, 1, entry("web", 1, one, fix))
	h.awaitState(s.c, "web", 1, bundlefmt.Ready)

	ballast := filepath.Join(s.o.DataDir, "ballast")
	if err := os.WriteFile(ballast, bytes.Repeat([]byte("x"), 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	two := h.seal(s.configMap("a", "2"), s.configMap("b", strings.Repeat("y", 5000)))
	h.put(s.c, "", two)
	h.order(s.c, 2, entry("web", 2, two, fix))
	h.awaitReport(s.c, "the disk to be blamed", func(r *bundlefmt.Reported) bool {
		return r.Refused != nil && strings.Contains(r.Refused.Reason, "no space left on device") && r.Serial == 1
	})
	s.edit("a", "x")
	s.awaitValue("a", "1")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	h.awaitState(s.c, "web", 2, bundlefmt.Ready)
	s.awaitValue("a", "2")
}

// A deployment that hangs holds up nobody else for ever.
func TestManyDeployments(t *testing.T) {
	h := newHub(t)
	s := newSite(t, h, "store-1")
	s.start()
	var entries []bundlefmt.Deployment
	for i := range 20 {
		b := h.seal(s.configMap(fmt.Sprintf("m-%d", i), "1"))
		h.put(s.c, "", b)
		entries = append(entries, entry(fmt.Sprintf("app-%d", i), 1, b, fix))
	}
	h.order(s.c, 1, entries...)
	r := h.awaitReport(s.c, "all of them ready", func(r *bundlefmt.Reported) bool {
		for _, d := range r.Deployments {
			if d.State != bundlefmt.Ready || d.Ready != 1 {
				return false
			}
		}
		return len(r.Deployments) == 20
	})
	if r.Serial != 1 {
		t.Errorf("%+v", r)
	}
	kubetest.Wait(t, "room on the disk: every bundle is kept, no other", func(context.Context) error {
		list, err := os.ReadDir(filepath.Join(s.o.DataDir, "bundles"))
		if err == nil && len(list) != 20 {
			err = fmt.Errorf("%d bundles", len(list))
		}
		return err
	})
}
