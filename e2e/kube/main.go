// Shoal-kube is a Kubernetes cluster in one binary, for tests and for the demo
// on machines that can download no cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"shoal.dev/shoal/e2e/kube/component"
)

const help = `shoal-kube runs a Kubernetes cluster from one directory: kine on SQLite, the API
server, controller manager and scheduler, and a node.

Usage:

  shoal-kube up --dir DIR [flags]          start a cluster and stay in the foreground
  shoal-kube preflight                     say what --nodes=real lacks on this machine
  shoal-kube image NAME BINARY [--out F]   pack one static binary as a container image
  shoal-kube load --dir DIR FILE...        import images into a cluster with real nodes
  shoal-kube COMPONENT [flags]             be one of: %s

"shoal-kube COMMAND --help" describes a command.

Examples:

  # A cluster with a simulated node: Pods become Ready without running.
  shoal-kube up --dir /tmp/edge1 --name edge1
  shoal-kube kubectl --kubeconfig /tmp/edge1/kubeconfig get nodes

  # Again, after Ctrl-C: same state, same kubeconfig.
  shoal-kube up --dir /tmp/edge1 --name edge1

  # Containers that run (root, and Debian's containerd).
  shoal-kube up --dir /tmp/edge2 --name edge2 --nodes real
  CGO_ENABLED=0 go build -o /tmp/hello ./hello
  shoal-kube image example/hello:1 /tmp/hello --out /tmp/hello.tar
  shoal-kube load --dir /tmp/edge2 /tmp/hello.tar
`

// errUsage is a command line that the flag package has already explained.
var errUsage = errors.New("usage")

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if !slices.Contains(component.Names, name) && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	if code, ok := component.Run(name, args); ok {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, name, args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp): // --help: it has been printed
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "shoal-kube:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, command string, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	switch command {
	case "up":
		return up(ctx, args, stdin, stdout, stderr)
	case "preflight":
		return preflight(args, stdout, stderr)
	case "image":
		return packImage(args, stdout, stderr)
	case "load":
		return load(ctx, args, stdout, stderr)
	case "node":
		return node(ctx, args, stderr)
	case "help", "-h", "-help", "--help":
		fmt.Fprintf(stdout, help, strings.Join(component.Names, ", "))
		return nil
	}
	fmt.Fprintf(stderr, help, strings.Join(component.Names, ", "))
	return errUsage
}

// flags makes the flag set of a command. usage is the line after "shoal-kube".
func flags(usage, about string, stderr io.Writer) *flag.FlagSet {
	name, _, _ := strings.Cut(usage, " ")
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, "Usage: shoal-kube %s\n\n%s\n", usage, about)
		f.PrintDefaults()
	}
	return f
}

// parse lets flags stand after arguments too and returns the arguments.
func parse(f *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, err
		} else if err != nil {
			return nil, errUsage
		}
		if f.NArg() == 0 {
			return rest, nil
		}
		rest, args = append(rest, f.Arg(0)), f.Args()[1:]
	}
}
