package main

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spf13/cobra"
)

// TestExamples runs every example of --help, in the directory that testdata/examples/files.txtar describes. Those that need no server
// must do what they say; the others must come as far as asking for one.
func TestExamples(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/examples/files.txtar")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := txtar.Write(archive, dir); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	offline := []string{"apply -o", "completion", "diff --from", "lint", "render", "schema", "target", "version"}
	asks := []string{"no Kubernetes to talk to", "--kubeconfig ~/.kube/config: no such file", "open ca.crt"}
	ran := map[string]int{}
	for _, line := range examples(t) {
		args := words(line)
		if len(args) == 0 || args[0] != "shoal" {
			continue // of another program
		}
		var stdout, stderr bytes.Buffer
		code := run(context.Background(), args[1:], func(string) string { return "" }, &stdout, &stderr)
		alone := slices.ContainsFunc(offline, func(s string) bool {
			return !slices.ContainsFunc(strings.Fields(s), func(w string) bool { return !slices.Contains(args, w) })
		})
		switch {
		case !alone && (code != exitFailed && code != exitTrouble || !slices.ContainsFunc(asks, func(s string) bool { return strings.Contains(stderr.String(), s) })):
			t.Errorf("%s\nexit %d, want it to ask for a Kubernetes:\n%s", line, code, stderr.String())
		case alone && stdout.Len() == 0 && args[1] != "lint":
			t.Errorf("%s\nprints nothing: %s", line, stderr.String())
		case alone && args[1] == "diff" && code != exitDifferent, alone && args[1] != "diff" && code != exitOK:
			t.Errorf("%s\nexit %d: %s", line, code, stderr.String())
		}
		ran[args[1]]++
	}
	t.Logf("examples by command: %v", ran)
	for _, c := range commands(&app{kubernetes: &kubernetesFlags{}}) {
		if ran[c.Name()] == 0 {
			t.Errorf("shoal %s has no example", c.Name())
		}
	}
}

// examples are the lines of all examples that are no comment.
func examples(t *testing.T) []string {
	t.Helper()
	a := &app{kubernetes: &kubernetesFlags{getenv: os.Getenv}}
	var lines []string
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Example == "" && !c.HasSubCommands() {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(rootCommand(a))
	return lines
}

// words are those of a command line as far as examples go: up to a pipe or a redirection; quotes hold words together.
func words(line string) []string {
	var out []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if line[0] == '|' || line[0] == '>' || line[0] == '#' {
			break
		}
		word := ""
		for line != "" && line[0] != ' ' {
			if q := line[0]; q == '\'' || q == '"' {
				quoted, rest, _ := strings.Cut(line[1:], string(q))
				word, line = word+quoted, rest
				continue
			}
			word, line = word+line[:1], line[1:]
		}
		out = append(out, word)
	}
	return out
}
