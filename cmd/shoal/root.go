package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// app is what commands get from the process.
type app struct {
	stdout, stderr io.Writer
	getenv         func(string) string
	kubernetes     *kubernetesFlags
	started        bool // the command line was understood
}

// commands lists every command of shoal: a new one is one line here.
func commands(a *app) []*cobra.Command {
	return []*cobra.Command{
		applyCommand(a),
		backupCommand(a),
		controllerCommand(a),
		diffCommand(a),
		getCommand(a),
		lintCommand(a),
		renderCommand(a),
		restoreCommand(a),
		resumeCommand(a),
		schemaCommand(a),
		targetCommand(a),
		topicsCommand(a),
		tokenCommand(a),
		versionCommand(a),
	}
}

// run executes one command line and returns the exit code. SIGINT and SIGTERM end the context; a second one kills.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	a := &app{stdout: stdout, stderr: stderr, getenv: getenv, kubernetes: &kubernetesFlags{getenv: getenv, warnings: stderr}}
	root := rootCommand(a)
	root.SetArgs(joinWait(args))
	cmd, err := root.ExecuteContextC(ctx)
	err = a.kubernetes.explain(err)
	code := exitCode(err, a.started)
	if err != nil && !silent(err) {
		fmt.Fprintf(stderr, "shoal: %v\n", err)
	}
	if code == exitUsage && !errors.As(err, new(trouble)) {
		fmt.Fprintf(stderr, "Run '%s --help' for how to use it.\n", cmd.CommandPath())
	}
	return code
}

func rootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "shoal",
		Short: "Manage a fleet of Kubernetes clusters over MQTT",
		Long: `Shoal manages many Kubernetes clusters at the edge as one fleet: a hub turns bundles (Helm, Kustomize, plain YAML) into
signed manifests for each cluster and publishes them over MQTT 5; an agent on each cluster applies them and keeps them so.

This program is the hub (shoal controller) and the tool to work with it.`,
		Example: `  # find mistakes and see what a cluster would get, without any server
  shoal lint ./web
  shoal render ./web --cluster paris --label env=prod

  # what would change on a cluster
  shoal diff ./web --cluster paris

  # deploy a directory and wait until all clusters have it
  shoal apply web ./web --wait

  # how the fleet stands
  kubectl get bundles,clusters,clustergroups`,
		Version:       versionString(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate(versionLine())
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	a.kubernetes.register(root)
	for _, c := range commands(a) {
		a.noteStart(c)
		root.AddCommand(c)
	}
	return root
}

// noteStart makes a command and those below it note that the command line was understood.
func (a *app) noteStart(c *cobra.Command) {
	if f := c.RunE; f != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return f(cmd, args)
		}
	}
	for _, sub := range c.Commands() {
		a.noteStart(sub)
	}
}

// joinWait makes "--wait 5s" what people mean by it. The flag's value is optional, so that the parser takes only "--wait=5s" and
// would read 5s as a directory.
func joinWait(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			return append(out, args[i:]...)
		}
		if args[i] == "--wait" && i+1 < len(args) {
			if _, err := time.ParseDuration(args[i+1]); err == nil {
				out = append(out, args[i]+"="+args[i+1])
				i++
				continue
			}
		}
		out = append(out, args[i])
	}
	return out
}

// arguments is how many words a command takes; cobra's own message does not say which.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("something is missing: write %s", cmd.UseLine())
		case len(args) > most:
			return fmt.Errorf("%q is too much: write %s", args[most], cmd.UseLine())
		}
		return nil
	}
}
