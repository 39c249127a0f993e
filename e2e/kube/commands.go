package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"shoal.dev/shoal/e2e/kube/cluster"
	"shoal.dev/shoal/e2e/kube/image"
)

func up(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	f := flags("up --dir DIR [flags]", `Starts a cluster and stays in the foreground until SIGTERM or Ctrl-C. Progress goes
to stderr. When the cluster can be used, one line of JSON goes to stdout.
`, stderr)
	dir := f.String("dir", "", "`directory` of the cluster; made if missing, continued if a cluster ran there (required)")
	name := f.String("name", "shoal", "name of the cluster, its kubeconfig context and its node")
	nodes := f.String("nodes", string(cluster.Simulated), `"sim": Pods become Ready without running; "real": containers run, needs root and containerd`)
	listen := f.String("listen", "127.0.0.1", "IP `address` of the API server")
	pause := f.String("pause", "", "with real nodes: the static pause `binary` (default: shoal-pause beside this binary)")
	untilEOF := f.Bool("stop-on-stdin-close", false, "stop when stdin reaches its end, so that the cluster ends with the program that started it")
	if rest, err := parse(f, args); err != nil {
		return err
	} else if *dir == "" || len(rest) > 0 {
		f.Usage()
		return errUsage
	}
	kind, err := cluster.ParseNodes(*nodes)
	if err != nil {
		return err
	}
	if *untilEOF {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		go func() {
			io.Copy(io.Discard, stdin)
			cancel()
		}()
	}
	o := cluster.Options{Dir: *dir, Name: *name, Nodes: kind, Listen: *listen, Pause: *pause, Log: stderr}
	return cluster.Up(ctx, o, func(r cluster.Ready) { json.NewEncoder(stdout).Encode(r) })
}

func preflight(args []string, stdout, stderr io.Writer) error {
	f := flags("preflight", "Says what this machine lacks for \"up --nodes real\"; exit status 0 means nothing.", stderr)
	if _, err := parse(f, args); err != nil {
		return err
	}
	if err := cluster.Preflight(); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "real nodes are possible on this machine")
	return nil
}

func packImage(args []string, stdout, stderr io.Writer) error {
	f := flags("image NAME BINARY [--out FILE]", `Packs one static binary (CGO_ENABLED=0 go build) as a container image whose
entrypoint it is, in the archive format of "docker save". The same binary gives the
same bytes. Use it with imagePullPolicy: Never.
`, stderr)
	out := f.String("out", "", "`file` to write (default: stdout)")
	rest, err := parse(f, args)
	if err != nil {
		return err
	}
	if len(rest) != 2 {
		f.Usage()
		return errUsage
	}
	archive, err := image.Pack(rest[0], rest[1])
	if err != nil {
		return err
	}
	if *out == "" {
		_, err = stdout.Write(archive)
		return err
	}
	return os.WriteFile(*out, archive, 0o644)
}

func load(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flags("load --dir DIR FILE...", "Imports image archives into the containerd of a running cluster with real nodes.\n", stderr)
	dir := f.String("dir", "", "`directory` of the cluster (required)")
	files, err := parse(f, args)
	if err != nil {
		return err
	}
	if *dir == "" || len(files) == 0 {
		f.Usage()
		return errUsage
	}
	var errs []error
	for _, file := range files {
		name, err := cluster.Load(ctx, *dir, file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(stdout, name)
	}
	return errors.Join(errs...)
}

// node is not in the help: up runs it, in namespaces of its own.
func node(ctx context.Context, args []string, stderr io.Writer) error {
	f := flags("node --dir DIR", "Internal to \"up --nodes real\".\n", stderr)
	dir := f.String("dir", "", "`directory` of the cluster (required)")
	if _, err := parse(f, args); err != nil {
		return err
	}
	return cluster.RunNode(ctx, *dir)
}
