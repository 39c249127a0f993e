package kubetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Options says which cluster Start starts.
type Options struct {
	// Dir holds the cluster and its state; a directory in which one was stopped
	// brings it back. Empty means a temporary one that Stop removes. With real
	// nodes the path must be short, at most 70 bytes, which t.TempDir may not be.
	Dir string
	// Name of the cluster, its kubeconfig context and its node. Default: shoal.
	Name string
	// Nodes is "sim" (the default), where Pods become Ready without running, or
	// "real"; see RequireReal.
	Nodes string
	// Log gets progress lines, and those of building the binary. May be nil.
	Log io.Writer
}

// A Cluster is a running one. It ends at the latest when this process does,
// however that happens.
type Cluster struct {
	o      Options
	binary string
	tmp    bool // Dir is ours to remove

	mu  sync.Mutex
	run *run // nil while stopped
}

// run is one run of shoal-kube up.
type run struct {
	cmd   *exec.Cmd
	stdin io.Closer
	said  *tailWriter // what it wrote to stderr
	ready ready
	done  chan struct{} // closed when it has ended
	err   error         // why; read after done
}

// ready is the line that shoal-kube prints when the cluster can be used.
type ready struct {
	Ready    bool
	HostIP   string
	PID      int
	Children map[string]int
}

// Start starts a cluster and returns when its API answers, a node is Ready and
// the default ServiceAccount exists. Cancelling ctx later does not stop it.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Name == "" {
		o.Name = "shoal"
	}
	if o.Nodes == "" {
		o.Nodes = "sim"
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	o.Log = &lockedWriter{w: o.Log}
	c := &Cluster{o: o}
	var err error
	if c.binary, err = Binary(ctx, o.Log); err != nil {
		return nil, err
	}
	if o.Dir == "" {
		if c.o.Dir, err = os.MkdirTemp("", "kubetest-"); err != nil {
			return nil, err
		}
		c.tmp = true
	}
	if err := c.start(ctx); err != nil {
		c.removeTemp()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	cmd := exec.Command(c.binary, "up", "--dir", c.o.Dir, "--name", c.o.Name, "--nodes", c.o.Nodes, "--stop-on-stdin-close")
	ownGroup(cmd)
	said := new(tailWriter)
	cmd.Stderr = io.MultiWriter(c.o.Log, said)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	// A pipe of our own: with StdoutPipe, Wait could close it before the line
	// is read.
	stdout, stdoutW := io.Pipe()
	cmd.Stdout = stdoutW
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start shoal-kube: %w", err)
	}
	r := &run{cmd: cmd, stdin: stdin, said: said, done: make(chan struct{})}
	line := make(chan error, 1)
	go func() {
		b, err := bufio.NewReader(stdout).ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(b, &r.ready)
		}
		line <- err
		io.Copy(io.Discard, stdout)
	}()
	go func() {
		r.err = cmd.Wait()
		stdoutW.Close()
		close(r.done)
	}()
	select {
	case err = <-line:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		r.stop(stop)
		return fmt.Errorf("start cluster %s: %w\n%s", c.o.Name, err, said.Bytes())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.run = r
	return nil
}

// Kubeconfig returns the path of the administrator's kubeconfig. It is the same
// after Restart.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.o.Dir, "kubeconfig") }

// Dir returns the directory of the cluster; the components' logs are in its
// folder logs.
func (c *Cluster) Dir() string { return c.o.Dir }

// HostIP returns the address at which Pods of a real node reach servers of this
// machine, if those listen there. It is empty with simulated nodes and while the
// cluster is stopped.
func (c *Cluster) HostIP() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil {
		return ""
	}
	return c.run.ready.HostIP
}

// RESTConfig returns the administrator's access. It stays valid over Restart.
func (c *Cluster) RESTConfig() (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst = 500, 1000
	return cfg, nil
}

// Stop stops every process of the cluster and returns when they have ended. When
// ctx ends first, they are killed. Stopping a stopped cluster does nothing; one
// that died before is an error that says why.
func (c *Cluster) Stop(ctx context.Context) error {
	err := c.halt(ctx)
	c.removeTemp()
	return err
}

// Halt is Stop for a cluster that Restart will bring back: it keeps the
// directory even if it is a temporary one.
func (c *Cluster) Halt(ctx context.Context) error { return c.halt(ctx) }

// Restart stops the cluster if it runs and starts it with the state and the
// address it had. Failing to stop in order, as after a crash, does not hinder it.
func (c *Cluster) Restart(ctx context.Context) error {
	if err := c.halt(ctx); err != nil {
		fmt.Fprintf(c.o.Log, "restart %s: %v\n", c.o.Name, err)
	}
	return c.start(ctx)
}

// Kill ends every process at once, like a power cut. Restart brings the cluster
// back.
func (c *Cluster) Kill() {
	if r := c.take(); r != nil {
		r.cmd.Process.Kill()
		<-r.done
	}
}

// LoadBinary makes an image of a static Linux binary and gives it to a cluster
// with real nodes. Pods use it as image with imagePullPolicy Never.
func (c *Cluster) LoadBinary(ctx context.Context, image, binary string) error {
	tmp, err := os.MkdirTemp("", "kubetest-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	archive := filepath.Join(tmp, "image.tar")
	for _, args := range [][]string{
		{"image", image, binary, "--out", archive},
		{"load", "--dir", c.o.Dir, archive},
	} {
		if out, err := exec.CommandContext(ctx, c.binary, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("load image %s: %w\n%s", image, err, out)
		}
	}
	return nil
}

func (c *Cluster) take() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.run
	c.run = nil
	return r
}

func (c *Cluster) halt(ctx context.Context) error {
	r := c.take()
	if r == nil {
		return nil
	}
	if err := r.stop(ctx); err != nil {
		return fmt.Errorf("cluster %s: %w", c.o.Name, err)
	}
	return nil
}

func (c *Cluster) removeTemp() {
	if c.tmp {
		os.RemoveAll(c.o.Dir)
	}
}

// stop ends a run. The error is how it ended, if not in order.
func (r *run) stop(ctx context.Context) error {
	defer r.stdin.Close()
	r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.done:
	case <-ctx.Done():
		r.cmd.Process.Kill()
		<-r.done
		return errors.Join(fmt.Errorf("killed: it did not stop in time: %w", context.Cause(ctx)), r.err)
	}
	if r.err != nil {
		return fmt.Errorf("%w\n%s", r.err, r.said.Bytes())
	}
	return nil
}

// lockedWriter lets several goroutines write lines to w.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// tailWriter keeps the end of what is written, for errors.
type tailWriter struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p)
	if extra := t.b.Len() - 8192; extra > 0 {
		t.b.Next(extra)
	}
	return len(p), nil
}

func (t *tailWriter) Bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.b.Bytes())
}
