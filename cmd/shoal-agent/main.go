// Command shoal-agent keeps one Kubernetes cluster the way the hub has signed it. It uses the standard library's flags: it
// has three commands, and what it does without is not carried to every site.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"shoal.dev/shoal/edgeagent"
	"shoal.dev/shoal/internal/logging"
	"shoal.dev/shoal/topics"
)

// version is set by the linker: -X main.version=v1.2.3
var version = ""

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr)) }

const usage = `shoal-agent keeps this Kubernetes cluster the way its hub has signed it, with or without a link.

Usage:
  shoal-agent [run] [flags]     run the agent (what it does without a command)
  shoal-agent status [flags]    what runs here, how it stands, whether there is a link; needs no link
  shoal-agent version           the version of this binary

Examples:
  # on the hub: make a token, bring the file to the site
  shoal token create stores > token

  # at the site, outside the cluster
  shoal-agent run --kubeconfig /etc/rancher/k3s/k3s.yaml --data-dir /var/lib/shoal-agent --token-file token --cluster-name store-4711

  # what does this box run, and is it well?
  shoal-agent status --data-dir /var/lib/shoal-agent
  kubectl exec -n shoal-system deploy/shoal-agent -- shoal-agent status

Every flag has an environment variable: --data-dir is SHOAL_DATA_DIR, and so on. A flag goes before its variable.

Flags:
`

// errUsage is an error in what was typed: exit code 2.
var errUsage = errors.New("usage")

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	err := dispatch(ctx, args, getenv, stdout, stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "shoal-agent: %s\nTry: shoal-agent --help\n", strings.TrimPrefix(err.Error(), errUsage.Error()+": "))
		return 2
	}
	fmt.Fprintf(stderr, "shoal-agent: %s\n", err)
	return 1
}

func dispatch(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	cmd := "run"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		cmd, args = args[0], args[1:]
	}
	switch cmd {
	case "run", "status", "version", "help":
	default:
		return fmt.Errorf("%w: unknown command %q: want run, status or version", errUsage, cmd)
	}
	c, err := parse(cmd, args, getenv, stdout)
	if err != nil {
		return err
	}
	switch cmd {
	case "version":
		_, err = fmt.Fprintln(stdout, c.version)
		return err
	case "status":
		return status(c, stdout, time.Now())
	case "help":
		_, err = parse(cmd, []string{"--help"}, getenv, stdout)
		return err
	}
	return serve(ctx, c, stderr)
}

// config is what flags and environment say.
type config struct {
	dataDir, tokenFile, clusterName, kubeconfig, namespace, prefix string
	keepAlive                                                      time.Duration
	metricsListen, logLevel, logFormat, version                    string
}

func parse(cmd string, args []string, getenv func(string) string, stdout io.Writer) (config, error) {
	c := config{version: version}
	if c.version == "" {
		c.version = "dev"
		if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
			c.version = bi.Main.Version
		}
	}
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	fs := flag.NewFlagSet("shoal-agent "+cmd, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&c.dataDir, "data-dir", "/var/lib/shoal-agent", "`directory` of this site's identity, documents, bundles and records")
	fs.StringVar(&c.tokenFile, "token-file", "", "`file` with the enrolment token; not needed any more once the site has enrolled")
	fs.StringVar(&c.clusterName, "cluster-name", edgeagent.ClusterName(host), "`name` to enrol under: a DNS label")
	fs.StringVar(&c.kubeconfig, "kubeconfig", "", "`file` with access to the cluster; empty: the Pod's own service account")
	fs.StringVar(&c.namespace, "namespace", "shoal-system", "`namespace` the agent itself runs in")
	fs.StringVar(&c.prefix, "topic-prefix", string(topics.Default), "start of every MQTT `topic`; the same as on the hub")
	fs.DurationVar(&c.keepAlive, "keep-alive", time.Minute, "`interval` after which a quiet link is probed; the hub sees a lost one within 1.5 of it, and attempts to connect are at most 2 of it apart")
	fs.StringVar(&c.metricsListen, "metrics-listen", "", "`address` of /metrics and /healthz, such as :9464; empty: none")
	fs.StringVar(&c.logLevel, "log-level", "info", logging.LevelHelp)
	fs.StringVar(&c.logFormat, "log-format", "auto", logging.FormatHelp)
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		return c, flag.ErrHelp
	case err != nil:
		return c, fmt.Errorf("%w: %w", errUsage, err)
	case fs.NArg() > 0:
		return c, fmt.Errorf("%w: unexpected argument %q", errUsage, fs.Arg(0))
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	fs.VisitAll(func(f *flag.Flag) {
		name := "SHOAL_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v := getenv(name); v != "" && !given[f.Name] && err == nil {
			if serr := fs.Set(f.Name, v); serr != nil {
				err = fmt.Errorf("%w: environment variable %s: %w", errUsage, name, serr)
			}
		}
	})
	return c, err
}

// serve is the agent as a process.
func serve(ctx context.Context, c config, stderr io.Writer) error {
	log, err := logging.New(stderr, c.logFormat, c.logLevel)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	// client-go writes to standard error by itself, as prose; here it becomes part of the log.
	klog.LogToStderr(false)
	klog.SetOutput(lines{log.With().Str("component", "client-go").Logger()})
	prefix, err := topics.ParsePrefix(c.prefix)
	if err != nil {
		return fmt.Errorf("%w: --topic-prefix: %w", errUsage, err)
	}
	cfg, err := access(c.kubeconfig)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	a, err := edgeagent.New(edgeagent.Options{
		DataDir: c.dataDir, TokenFile: c.tokenFile, Cluster: c.clusterName, Kubernetes: cfg, Namespace: c.namespace, Prefix: prefix,
		Version: c.version, KeepAlive: c.keepAlive, MetricsListen: c.metricsListen, Log: log,
	})
	if err != nil {
		return err
	}
	if addr := a.Addr(); addr != nil {
		log.Info().Stringer("address", addr).Msg("serving metrics")
	}
	return a.Run(ctx)
}

func access(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("access to the cluster: not inside one (%w): give --kubeconfig", err)
		}
		return cfg, nil
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("access to the cluster: --kubeconfig %s: %w", kubeconfig, err)
	}
	return cfg, nil
}

// lines makes log entries of what a library prints.
type lines struct{ log zerolog.Logger }

func (l lines) Write(p []byte) (int, error) {
	l.log.Debug().Str("said", strings.TrimSpace(string(p))).Msg("library message")
	return len(p), nil
}
