package kubetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
)

// kubernetesVersion is what the clusters say they are: the version of
// k8s.io/kubernetes in e2e/kube/go.mod.
const kubernetesVersion = "v1.36.3"

// BinaryVariable names the environment variable with the path of a shoal-kube
// to use instead of building one.
const BinaryVariable = "SHOAL_KUBE_BINARY"

// Binary returns the path of shoal-kube. It builds the binary when the cache has
// none for the present sources of e2e/kube and the present Go. That takes
// minutes, of which progress gets a line now and then. Several processes may
// call it at once: one builds, the others wait.
func Binary(ctx context.Context, progress io.Writer) (string, error) {
	if path := os.Getenv(BinaryVariable); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("%s: %w", BinaryVariable, err)
		}
		return path, nil
	}
	source, err := sourceDir(ctx)
	if err != nil {
		return "", err
	}
	key, err := sourceKey(ctx, source)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for a cached shoal-kube: %w", err)
	}
	cache = filepath.Join(cache, "shoal-kube")
	dir := filepath.Join(cache, key)
	binary := filepath.Join(dir, "shoal-kube")
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, filepath.Join(cache, "lock"), progress)
	if err != nil {
		return "", fmt.Errorf("wait for another build of shoal-kube: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(binary); err == nil {
		return binary, nil // built while we waited
	}
	if err := buildInto(ctx, source, dir, progress); err != nil {
		return "", err
	}
	return binary, nil
}

// buildInto builds shoal-kube and shoal-pause; dir appears when both are there.
func buildInto(ctx context.Context, source, dir string, progress io.Writer) error {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	const version = "k8s.io/component-base/version."
	ldflags := "-s -w -X " + version + "gitVersion=" + kubernetesVersion +
		" -X " + version + "gitMajor=1 -X " + version + "gitMinor=36 -X " + version + "gitTreeState=clean"
	// The pause binary goes into images, hence static; SQLite needs cgo.
	if err := build(ctx, source, "CGO_ENABLED=0", progress, "-ldflags=-s -w", "-o", filepath.Join(tmp, "shoal-pause"), "./pause"); err != nil {
		return err
	}
	if err := build(ctx, source, "CGO_ENABLED=1", progress, "-ldflags="+ldflags, "-o", filepath.Join(tmp, "shoal-kube"), "."); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// build runs go build in the module of shoal-kube and counts the packages.
func build(ctx context.Context, source, cgo string, progress io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-v", "-trimpath", "-buildvcs=false"}, args...)...)
	cmd.Dir = source
	cmd.Env = buildEnv(cgo)
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("build shoal-kube: %w (it needs the go command)", err)
	}
	done := make(chan struct{})
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		tick := time.NewTicker(15 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(progress, "building shoal-kube (once a machine, ten minutes on two cores): %d packages after %s\n",
					out.lines.Load(), time.Since(begin).Round(time.Second))
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(done)
	<-reported
	if ctx.Err() != nil {
		return fmt.Errorf("build shoal-kube: %w after %s; what is compiled is kept: go run ./internal/kubetest/prebuild does the rest",
			context.Cause(ctx), time.Since(begin).Round(time.Second))
	}
	if err != nil {
		return fmt.Errorf("build shoal-kube in %s: %w\n%s", source, err, out.tail.Bytes())
	}
	return nil
}

// buildEnv keeps the caller's settings for a build out of this one: with -race,
// another -mod or another GOARCH it would not be the binary that is cached.
func buildEnv(cgo string) []string {
	var env []string
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "GOFLAGS", "GOWORK", "GOOS", "GOARCH", "CGO_ENABLED", "GOEXPERIMENT", "GODEBUG", "GOCOVERDIR", "PWD":
		default:
			env = append(env, kv)
		}
	}
	// Not empty: an empty GOFLAGS would fall back to what "go env -w" stored.
	return append(env, cgo, "GOFLAGS=-mod=readonly", "GOWORK=off")
}

// output counts the lines of go build -v and keeps the end for errors. Only
// lines is read while the build runs.
type output struct {
	lines atomic.Int64
	tail  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.lines.Add(int64(bytes.Count(p, []byte("\n"))))
	o.tail.Write(p)
	if extra := o.tail.Len() - 4096; extra > 0 {
		o.tail.Next(extra)
	}
	return len(p), nil
}

// sourceDir finds the module e2e/kube beside this package.
func sourceDir(ctx context.Context) (string, error) {
	// The compiler recorded where this file lies, unless it ran with -trimpath.
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		dir := filepath.Join(filepath.Dir(file), "..", "..", "e2e", "kube")
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "shoal.dev/shoal").Output()
	if err != nil {
		return "", fmt.Errorf("find the sources of shoal-kube: go list -m shoal.dev/shoal: %w (run inside the source tree or set %s)", err, BinaryVariable)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "e2e", "kube")
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return "", fmt.Errorf("find the sources of shoal-kube: %w (run inside the source tree or set %s)", err, BinaryVariable)
	}
	return dir, nil
}

// sourceKey is a hash over everything the binary is made of.
func sourceKey(ctx context.Context, source string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION", "GOOS", "GOARCH")
	cmd.Dir, cmd.Env = source, buildEnv("CGO_ENABLED=1")
	toolchain, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	h := sha256.New()
	h.Write(toolchain)
	err = filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || !isSource(d.Name()) {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %x\n", filepath.ToSlash(name), sha256.Sum256(b))
		return nil
	})
	if err != nil {
		return "", errors.Join(errors.New("hash the sources of shoal-kube"), err)
	}
	return hex.EncodeToString(h.Sum(nil))[:20], nil
}

func isSource(name string) bool {
	switch filepath.Ext(name) {
	case ".go":
		return !strings.HasSuffix(name, "_test.go")
	case ".mod", ".sum", ".yaml":
		return true
	}
	return false
}
