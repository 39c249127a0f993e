package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/store"
)

func TestCommandLine(t *testing.T) {
	none := func(string) string { return "" }
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		args []string
		env  map[string]string
		code int
		out  string
		err  string
	}{
		{"help", []string{"--help"}, nil, 0, "shoal-agent status --data-dir", ""},
		{"help as a command", []string{"help"}, nil, 0, "Examples:", ""},
		{"version", []string{"version"}, nil, 0, "dev", ""},
		{"unknown command", []string{"rnu"}, nil, 2, "", `unknown command "rnu": want run, status, lock, unlock or version`},
		{"unknown flag", []string{"run", "--data"}, nil, 2, "", "flag provided but not defined: -data"},
		{"an argument too many", []string{"status", "x"}, nil, 2, "", `unexpected argument "x"`},
		{"no directory", []string{"status", "--data-dir", "/nonexistent"}, nil, 1, "", "is --data-dir /nonexistent right?"},
		{"environment", []string{"status"}, map[string]string{"SHOAL_DATA_DIR": "/nowhere"}, 1, "", "/nowhere"},
		{"flag before environment", []string{"status", "--data-dir", "/nonexistent"}, map[string]string{"SHOAL_DATA_DIR": "/nowhere"}, 1, "", "/nonexistent"},
		{"bad environment", []string{"run"}, map[string]string{"SHOAL_KEEP_ALIVE": "soon"}, 2, "", "SHOAL_KEEP_ALIVE"},
		{"bad prefix", []string{"run", "--topic-prefix", "a/b/c"}, nil, 2, "", "topic prefix"},
		{"bad level", []string{"run", "--log-level", "loud"}, nil, 2, "", "want trace, debug, info, warn or error"},
		{"bad format", []string{"run", "--log-format", "xml"}, nil, 2, "", "want json, text or auto"},
		{"bad time zone", []string{"run", "--time-zone", "Mars", "--kubeconfig", kubeconfig}, nil, 2, "", "want a name such as Europe/Berlin"},
		{"bad share", []string{"run", "--removal-share", "200", "--kubeconfig", kubeconfig}, nil, 1, "", "--removal-share between 1 and 100"},
		{"lock without a reason", []string{"lock"}, nil, 2, "", "say why with --reason"},
		{"lock for ever", []string{"lock", "--reason", "x", "--for", "999h"}, nil, 2, "", "a lock lasts a week at most"},
		{"lock nowhere", []string{"lock", "--reason", "x", "--data-dir", "/nonexistent"}, nil, 1, "", "is --data-dir /nonexistent right?"},
		{"unlock nowhere", []string{"unlock", "--data-dir", "/nonexistent"}, nil, 1, "", "is --data-dir /nonexistent right?"},
		{"no cluster", []string{"run"}, nil, 1, "", "give --kubeconfig"},
		{"no kubeconfig", []string{"run", "--kubeconfig", "/nonexistent"}, nil, 1, "", "/nonexistent"},
	} {
		t.Run(c.what, func(t *testing.T) {
			getenv := none
			if c.env != nil {
				getenv = func(k string) string { return c.env[k] }
			}
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			var stdout, stderr bytes.Buffer
			code := run(context.Background(), c.args, getenv, &stdout, &stderr)
			if code != c.code || !strings.Contains(stdout.String(), c.out) || !strings.Contains(stderr.String(), c.err) {
				t.Errorf("exit %d\nstdout: %s\nstderr: %s", code, &stdout, &stderr)
			}
		})
	}
}

// What a technician sees of an agent that is not running and left nothing but its records.
func TestStatusFromRecords(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(dir, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	rel := store.Release{Serial: 5, Digest: bundlefmt.Sum([]byte("x"))}
	for _, err := range []error{
		s.PutFloor(store.Floor{Desired: 7}),
		s.PutRecord(store.Record{Name: "web", Applied: &rel, State: bundlefmt.NotReady, Message: "1 of 2 objects are not ready", Since: time.Now().Add(-3 * time.Hour)}),
		s.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := status(config{dataDir: dir}, &out, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NOT RUNNING", "desired document 7", "web", "NotReady", "5 (2d711642)", "3h ago", "1 of 2 objects are not ready"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
}

// Somebody on the site holds changes up, sees it, and takes it back.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	do := func(want string, code int, args ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		got := run(context.Background(), append(args, "--data-dir", dir), func(string) string { return "" }, &stdout, &stderr)
		if out := stdout.String() + stderr.String(); got != code || !strings.Contains(out, want) {
			t.Errorf("%v: exit %d, want %q in:\n%s", args, got, want, out)
		}
	}
	do("no releases and no removals", 0, "lock", "--reason", "stock count", "--holder", "anna", "--for", "2h")
	do("by file manual: stock count (anna)", 0, "status")
	do("Locked until", 0, "lock", "--reason", "backup", "--name", "backup")
	do("is not a DNS label", 1, "lock", "--reason", "x", "--name", "../x")
	do("Lock manual is off: changes still wait for lock backup, until ", 0, "unlock")
	do("there is no lock file", 1, "unlock")
	do("by file backup: backup", 0, "status")
	do("Lock backup is off: what waited begins when the agent runs again", 0, "unlock", "--name", "backup")
}

// The agent stays small: none of the hub's heavy libraries may come in by any way.
func TestDependencies(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for p := range strings.Lines(string(out)) {
		p = strings.TrimSpace(p)
		for _, bad := range []string{"helm.sh/", "sigs.k8s.io/kustomize", "github.com/mochi-mqtt", "github.com/go-git", "sigs.k8s.io/controller-runtime", "shoal.dev/shoal/broker", "shoal.dev/shoal/controller"} {
			if strings.HasPrefix(p, bad) {
				t.Errorf("the agent reaches %s", p)
			}
		}
	}
	if !strings.Contains(string(out), filepath.Join("shoal.dev/shoal", "edgeagent")) {
		t.Error("go list did not list the agent's packages")
	}
}
