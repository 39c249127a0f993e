package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// This program plays the processes that a fleet starts, and a parent that is killed.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "play" {
		play(os.Args[2], os.Args[3])
	}
	os.Exit(m.Run())
}

func play(role, addr string) {
	if role == "parent" {
		p, err := start(context.Background(), player("good", addr, os.DevNull))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(p.cmd.Process.Pid)
		<-p.done
		os.Exit(1)
	}
	fmt.Println("role", role)
	if role == "crash" {
		os.Exit(7)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go http.ListenAndServe(addr, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) //nolint:errcheck // a test sees it
	<-term
	if role == "bad end" {
		os.Exit(3)
	}
	os.Exit(0)
}

func player(role, addr, log string) command {
	return command{name: role, path: os.Args[0], args: []string{"play", role, addr}, log: log, ready: addr + "/healthz"}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func addr(t *testing.T) string {
	t.Helper()
	a, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestProcessServesAndStops(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	for range 2 { // the log is continued, the second run's output begins anew
		p, err := start(within(t, 20*time.Second), player("good", addr(t), log))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(p.output()); got != "role good\n" {
			t.Errorf("output of this run = %q", got)
		}
		if runtime.GOOS == "linux" && p.rss() == 0 {
			t.Error("no memory is told")
		}
		if _, err := p.terminate(); err != nil {
			t.Error(err)
		}
		if p.running() {
			t.Error("it runs after terminate")
		}
	}
}

func TestProcessThatEndsBadlyIsAnError(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if _, err := start(within(t, 20*time.Second), player("crash", addr(t), log)); err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "role crash") {
		t.Errorf("start of one that crashes = %v, want its exit status and log", err)
	}
	p, err := start(within(t, 20*time.Second), player("bad end", addr(t), log))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.terminate(); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("terminate of one that ends badly = %v", err)
	}
}

func TestChildrenEndWithAKilledParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends children with their parent")
	}
	parent := exec.Command(os.Args[0], "play", "parent", addr(t))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the parent says %q", line)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	err = Until(within(t, 10*time.Second), func(context.Context) error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return nil
		}
		return errors.New("the child still runs")
	})
	if err != nil {
		t.Error(err)
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
}

func TestUntil(t *testing.T) {
	n := 0
	if err := Until(t.Context(), func(context.Context) error {
		if n++; n < 3 {
			return errors.New("not yet")
		}
		return nil
	}); err != nil || n != 3 {
		t.Errorf("Until = %v after %d tries, want success after 3", err, n)
	}
	final := errors.New("never")
	if err := Until(t.Context(), func(context.Context) error { return Stop(final) }); !errors.Is(err, final) {
		t.Errorf("Until = %v, want the error that stops it", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	missing := errors.New("this is missing")
	err := Until(ctx, func(ctx context.Context) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		cancel()
		return missing
	})
	if !errors.Is(err, missing) {
		t.Errorf("Until of a context that ended = %v, want what was missing", err)
	}
}
