package kubetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestBinaryFromEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shoal-kube")
	t.Setenv(BinaryVariable, path)
	if _, err := Binary(t.Context(), io.Discard); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Binary with a path to nothing = %v", err)
	}
	if err := os.WriteFile(path, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := Binary(t.Context(), io.Discard); err != nil || got != path {
		t.Errorf("Binary = %q, %v; want %q", got, err, path)
	}
}

func TestSourceKey(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := func() string {
		t.Helper()
		k, err := sourceKey(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write("go.mod", "module example.com/m\n")
	write("main.go", "package main\n")
	before := key()
	write("main_test.go", "package main\n")
	write("README.md", "read me\n")
	if key() != before {
		t.Error("the key depends on files that are not in the binary")
	}
	for _, name := range []string{"main.go", "go.sum", "stages.yaml"} {
		last := key()
		write(name, "changed\n")
		if key() == last {
			t.Errorf("the key does not depend on %s", name)
		}
	}
}

func TestCallersBuildSettingsStayOut(t *testing.T) {
	t.Setenv("GOFLAGS", "-race -mod=mod")
	t.Setenv("CGO_ENABLED", "0")
	env := buildEnv("CGO_ENABLED=1")
	for _, name := range []string{"GOFLAGS", "CGO_ENABLED"} {
		var got []string
		for _, kv := range env {
			if strings.HasPrefix(kv, name+"=") {
				got = append(got, kv)
			}
		}
		if len(got) != 1 || strings.Contains(got[0], "race") || got[0] == "CGO_ENABLED=0" {
			t.Errorf("%s in the build's environment: %q", name, got)
		}
	}
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		t.Error("the build's environment has no PATH")
	}
}

// signalWriter tells when something has been written.
type signalWriter struct {
	once    sync.Once
	written chan struct{}
	bytes.Buffer
}

func (w *signalWriter) Write(p []byte) (int, error) {
	defer w.once.Do(func() { close(w.written) })
	return w.Buffer.Write(p)
}

func TestBuildsTakeTurns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	progress := &signalWriter{written: make(chan struct{})}
	second := make(chan error, 1)
	go func() {
		unlock, err := lockFile(t.Context(), path, progress)
		if err == nil {
			unlock()
		}
		second <- err
	}()
	<-progress.written // it waits, and says so
	select {
	case err := <-second:
		t.Fatalf("second lock while the first is held: %v", err)
	default:
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := lockFile(ctx, path, io.Discard); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("lock until a deadline = %v", err)
	}

	unlock()
	if err := <-second; err != nil {
		t.Errorf("second lock after the first is released: %v", err)
	}
}
