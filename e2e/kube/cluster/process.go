package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A process is one running child.
type process struct {
	name string
	log  string // path
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // why; read after done
}

// spec says how to run a child.
type spec struct {
	name string   // also its log's name
	exe  string   // "" for this binary, which takes its role from name
	args []string //
	env  []string // added to the environment
	dir  string   // working directory, "" for the caller's
	attr func(*syscall.SysProcAttr)
}

// start runs a child whose output is appended to logs/NAME.log. The kernel
// kills it when the calling thread ends: callers stay on a locked thread that
// lives as long as the process (see Up).
func start(logs string, s spec) (*process, error) {
	path := filepath.Join(logs, s.name+".log")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if s.exe == "" {
		if s.exe, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(s.exe, s.args...)
	cmd.Args[0] = s.name
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = out, out
	// Its own process group: an interrupt typed at the terminal reaches only
	// us, and we stop the children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if s.attr != nil {
		s.attr(cmd.SysProcAttr)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.name, err)
	}
	p := &process{name: s.name, log: path, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// ended describes a child that stopped although nobody asked it to.
func (p *process) ended() error {
	<-p.done
	why := "exit status 0"
	if p.err != nil {
		why = p.err.Error()
	}
	return fmt.Errorf("%s ended: %s; the end of %s:\n%s", p.name, why, p.log, tail(p.log, 15))
}

// stop asks, waits for the grace period, and kills.
func (p *process) stop(grace time.Duration) {
	p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		p.cmd.Process.Kill()
		<-p.done
	}
}

// tail returns the last n lines of a file, for error messages.
func tail(path string, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const most = 16 << 10
	if size, err := f.Seek(0, 2); err == nil {
		f.Seek(max(0, size-most), 0)
	}
	b := make([]byte, most)
	k, _ := f.Read(b)
	lines := strings.Split(strings.TrimRight(string(b[:k]), "\n"), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-n):], "\n  ")
}

// poll runs try until it returns nil. It gives up when ctx ends or one of the
// processes does, and then says what try was still missing.
func poll(ctx context.Context, what string, procs []*process, try func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		for _, p := range procs {
			select {
			case <-p.done:
				return p.ended()
			default:
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, context.Cause(ctx), err)
		}
	}
}
