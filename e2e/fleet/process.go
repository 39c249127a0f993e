package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// StopLimit is how long hub and agent may take to stop after SIGTERM.
const StopLimit = 5 * time.Second

// command says how to start a process.
type command struct {
	name string // for messages
	path string
	args []string
	log  string // file that its output is appended to
	// ready is the URL, without its scheme, that answers once the process serves.
	ready string
}

// process is one run of a command.
type process struct {
	command
	cmd   *exec.Cmd
	begin int64         // length of the log before this run
	done  chan struct{} // closed when it has ended
	err   error         // how; read after done
}

// start starts a process and waits until it serves.
func start(ctx context.Context, c command) (*process, error) {
	p, err := spawn(c)
	if err != nil {
		return nil, err
	}
	if err := p.waitHealthy(ctx); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// spawn starts a process and returns at once.
func spawn(c command) (*process, error) {
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the child has its own
	at, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	p := &process{command: c, cmd: exec.Command(c.path, c.args...), begin: at, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A race that the detector finds must not pass for an ordinary exit.
	p.cmd.Env = append(os.Environ(), "GORACE=exitcode=66")
	apart(p.cmd)
	started := make(chan error, 1)
	go func() {
		// The child ends with this thread, which therefore waits for it. It is not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	return p, nil
}

func (p *process) waitHealthy(ctx context.Context) error {
	err := Until(ctx, func(ctx context.Context) error {
		select {
		case <-p.done:
			return stop{fmt.Errorf("it ended: %v\n%s", p.err, p.tail(30))}
		default:
		}
		return healthy(ctx, p.ready)
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w", p.name, err)
	}
	return nil
}

func healthy(ctx context.Context, ready string) error {
	addr, path, _ := strings.Cut(ready, "/")
	b, err := Get(ctx, addr, "/"+path)
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(b))
	}
	return nil
}

// Get reads a page of a process: /metrics, /healthz or /readyz.
func Get(ctx context.Context, addr, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return b, err
}

// terminate asks the process to stop and waits. It is an error if that takes too long or ends with anything but success.
func (p *process) terminate() (time.Duration, error) {
	begin := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGCONT) // it may be frozen
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
	case <-time.After(3 * StopLimit):
		p.kill()
		return time.Since(begin), fmt.Errorf("stop %s: it was still running %s after SIGTERM\n%s", p.name, 3*StopLimit, p.tail(30))
	}
	took := time.Since(begin)
	if p.err != nil {
		return took, fmt.Errorf("stop %s: %w\n%s", p.name, p.err, p.tail(30))
	}
	if took > StopLimit {
		return took, fmt.Errorf("stop %s: took %s, allowed are %s", p.name, took.Round(time.Millisecond), StopLimit)
	}
	return took, nil
}

// kill is a power cut.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// signal sends one that the process does not end by.
func (p *process) signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal %s to %s: %w", sig, p.name, err)
	}
	return nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// output is what this run has written so far.
func (p *process) output() []byte {
	b, err := os.ReadFile(p.log)
	if err != nil || int64(len(b)) < p.begin {
		return nil
	}
	return b[p.begin:]
}

func (p *process) tail(lines int) []byte { return tail(p.output(), lines) }

func tail(b []byte, lines int) []byte {
	at := len(b)
	for range lines + 1 {
		i := bytes.LastIndexByte(b[:at], '\n')
		if i < 0 {
			return b
		}
		at = i
	}
	return b[at+1:]
}

// rss is the resident memory of a process in bytes; 0 where that cannot be told.
func (p *process) rss() int64 {
	if p == nil || !p.running() {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// freeAddr is an address of this machine that nobody listens on right now. Hub and agents keep theirs over restarts.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close() //nolint:errcheck // nothing to lose
	return l.Addr().String(), nil
}

// stop is an error that Until does not wait out.
type stop struct{ error }

func (s stop) Unwrap() error { return s.error }

// Stop marks an error that trying again does not cure: Until returns it at once.
func Stop(err error) error { return stop{err} }

// Until calls try until it returns nil. When ctx ends first, the error is the last one of try, which should say what is
// missing.
func Until(ctx context.Context, try func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	begin := time.Now()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		var final stop
		if errors.As(err, &final) {
			return final.error
		}
		if last == nil || !endsSoon(ctx) {
			last = err // an attempt that ctx cut short says less than the one before
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", time.Since(begin).Round(100*time.Millisecond), last)
		}
	}
}

func endsSoon(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(deadline) < 50*time.Millisecond
}
