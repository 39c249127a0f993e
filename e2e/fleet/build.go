package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"shoal.dev/shoal/internal/kubetest"
)

// Binaries are the programs that a fleet is made of.
type Binaries struct {
	Shoal, Agent string
	Kube         string // shoal-kube, see kubetest
}

// Build compiles hub, tool and agent, with -race if the calling program was, so that both use the same build cache. What is
// already built takes a second. Progress gets a line now and then: the first build, which is also that of Kubernetes, takes many
// minutes.
func Build(ctx context.Context, progress io.Writer) (Binaries, error) {
	root, err := SourceRoot(ctx)
	if err != nil {
		return Binaries{}, err
	}
	kube, err := kubetest.Binary(ctx, progress)
	if err != nil {
		return Binaries{}, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return Binaries{}, fmt.Errorf("no place for the programs: %w", err)
	}
	dir := filepath.Join(cache, "shoal-e2e", "bin")
	args := []string{"build", "-v", "-ldflags=-s -w"}
	if raceEnabled {
		dir += "-race"
		args = append(args, "-race")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Binaries{}, err
	}
	// Packages are tested side by side: a program must not be run while another go build is writing it.
	unlock, err := lock(dir + ".lock")
	if err != nil {
		return Binaries{}, err
	}
	defer unlock()
	// A stable path: go build does not link again what is up to date there.
	cmd := exec.CommandContext(ctx, "go", append(args, "-o", dir+string(filepath.Separator), "./cmd/shoal", "./cmd/shoal-agent")...)
	cmd.Dir = root
	if err := counted(cmd, "building shoal and shoal-agent", progress); err != nil {
		return Binaries{}, err
	}
	return Binaries{Shoal: filepath.Join(dir, "shoal"), Agent: filepath.Join(dir, "shoal-agent"), Kube: kube}, nil
}

// into gives a fleet its own names for the programs: another build must not change them under it.
func (b Binaries) into(dir string) (Binaries, error) {
	own := Binaries{Shoal: filepath.Join(dir, "shoal"), Agent: filepath.Join(dir, "shoal-agent"), Kube: b.Kube}
	return own, errors.Join(linkOrCopy(b.Shoal, own.Shoal), linkOrCopy(b.Agent, own.Agent))
}

func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// SourceRoot finds the source tree this program is run in.
func SourceRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "shoal.dev/shoal").Output()
	if err != nil {
		return "", fmt.Errorf("find the source tree: go list -m shoal.dev/shoal: %w (run inside a clone of the repository, with Go installed)", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// counted runs go build -v and tells how many packages it has compiled.
func counted(cmd *exec.Cmd, what string, progress io.Writer) error {
	var out counter
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w (it needs the go command)", what, err)
	}
	ended := make(chan struct{})
	told := make(chan struct{})
	go func() {
		defer close(told)
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_, _ = fmt.Fprintf(progress, "%s: %d packages after %s\n", what, out.lines.Load(), time.Since(begin).Round(time.Second))
			case <-ended:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-told
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", what, err, tail(out.text.Bytes(), 40))
	}
	return nil
}

// counter counts lines and keeps the end of them. Only lines is read while it is written to.
type counter struct {
	lines atomic.Int64
	text  bytes.Buffer
}

func (c *counter) Write(p []byte) (int, error) {
	c.lines.Add(int64(bytes.Count(p, []byte("\n"))))
	c.text.Write(p)
	if extra := c.text.Len() - 16<<10; extra > 0 {
		c.text.Next(extra)
	}
	return len(p), nil
}

// CanRunContainers says why clusters with real nodes are impossible on this machine, if they are.
func CanRunContainers(ctx context.Context, b Binaries) error {
	out, err := exec.CommandContext(ctx, b.Kube, "preflight").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s", bytes.TrimSpace(out))
	}
	return nil
}

// LoadProgram compiles a program of this module statically and gives it as an image to a cluster with real nodes. The image's
// tag is the program's version, for one that has a version.
func LoadProgram(ctx context.Context, c *kubetest.Cluster, image, pkg string) error {
	dir, err := os.MkdirTemp("", "shoal-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	binary := filepath.Join(dir, "program")
	_, tag, _ := strings.Cut(path.Base(image), ":")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w -X main.version="+tag, "-o", binary, ".")
	cmd.Dir, cmd.Env = pkg, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return c.LoadBinary(ctx, image, binary)
}
