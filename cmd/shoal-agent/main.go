// Command shoal-agent keeps one Kubernetes cluster the way the hub has signed it. It uses the standard library's flags: it
// has few commands, and what it does without is not carried to every site.
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
	_ "time/tzdata" // windows name time zones, and the image has no files of them

	"github.com/rs/zerolog"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"shoal.dev/shoal/edgeagent"
	"shoal.dev/shoal/edgeagent/store"
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
  shoal-agent lock [flags]      ask for no changes for a while; checks and repairs go on
  shoal-agent unlock [flags]    take that back
  shoal-agent version           the version of this binary

Examples:
  # on the hub: make a token, bring the file to the site
  shoal token create stores > token

  # at the site, outside the cluster
  shoal-agent run --kubeconfig /etc/rancher/k3s/k3s.yaml --data-dir /var/lib/shoal-agent --token-file token --cluster-name store-4711

  # what does this box run, and is it well?
  shoal-agent status --data-dir /var/lib/shoal-agent
  kubectl exec -n shoal-system deploy/shoal-agent -- shoal-agent status

  # nothing is to change while we count the stock; a lock ends by itself after a week at the latest
  shoal-agent lock --data-dir /var/lib/shoal-agent --reason "stock count" --for 2h
  shoal-agent unlock --data-dir /var/lib/shoal-agent

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
	case "run", "status", "lock", "unlock", "version", "help":
	default:
		return fmt.Errorf("%w: unknown command %q: want run, status, lock, unlock or version", errUsage, cmd)
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
	case "lock":
		return lock(c, stdout, time.Now())
	case "unlock":
		return unlock(c, stdout, time.Now())
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
	identitySecret, timeZone                                       string
	readyTimeout, linkTimeout                                      time.Duration
	removalShare                                                   int
	standby                                                        bool

	lockName, lockHolder, lockReason string // of lock and unlock
	lockFor                          time.Duration
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
	if cmd == "lock" || cmd == "unlock" {
		fs.StringVar(&c.lockName, "name", "manual", "`name` of the lock: a DNS label. Locks of different names hold beside each other")
	}
	if cmd == "lock" {
		fs.StringVar(&c.lockReason, "reason", "", "why nothing is to change; the hub shows `text`")
		fs.StringVar(&c.lockHolder, "holder", getenv("USER"), "`who` asks for it")
		fs.DurationVar(&c.lockFor, "for", 0, "`time` after which it ends by itself; without it, and at the latest, after a week")
	}
	fs.StringVar(&c.dataDir, "data-dir", "/var/lib/shoal-agent", "`directory` of this site's identity, documents, bundles and records")
	fs.StringVar(&c.tokenFile, "token-file", "", "`file` with the enrolment token; not needed any more once the site has enrolled")
	fs.StringVar(&c.clusterName, "cluster-name", edgeagent.ClusterName(host), "`name` to enrol under: a DNS label")
	fs.StringVar(&c.kubeconfig, "kubeconfig", "", "`file` with access to the cluster; empty: the Pod's own service account")
	fs.StringVar(&c.namespace, "namespace", "shoal-system", "`namespace` the agent itself runs in")
	fs.StringVar(&c.identitySecret, "identity-secret", "", "`name` of a Secret in the agent's namespace in which this site's identity, with its private key, is kept as well, so that a lost disk needs no new enrolment; empty: only on disk")
	fs.StringVar(&c.timeZone, "time-zone", "", "`zone` of this site, such as Europe/Berlin, for windows that name none; empty: the machine's")
	fs.DurationVar(&c.readyTimeout, "ready-timeout", 10*time.Minute, "`time` in which a release is to become ready, where the bundle names none; then a deployment with a way back goes back")
	fs.DurationVar(&c.linkTimeout, "link-timeout", 0, "a release with a way back is given up as well when the link to the hub was lost after it and stays away for this `time`; 0: never")
	fs.IntVar(&c.removalShare, "removal-share", 50, "a document that removes more than this `percent`age of the deployments, and at least three, has to be confirmed on the hub")
	fs.BoolVar(&c.standby, "standby", false, "while another agent runs with the data directory, wait for it to end")
	fs.StringVar(&c.prefix, "topic-prefix", string(topics.Default), "start of every MQTT `topic`; the same as on the hub")
	fs.DurationVar(&c.keepAlive, "keep-alive", time.Minute, "`interval` after which a quiet link is probed; the hub sees a lost one within 1.5 of it, and attempts to connect are at most 2 of it apart")
	fs.StringVar(&c.metricsListen, "metrics-listen", "", "`address` of /metrics, /healthz and /readyz, such as :9464; empty: none")
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
	zone := time.Local
	if c.timeZone != "" {
		if zone, err = time.LoadLocation(c.timeZone); err != nil {
			return fmt.Errorf("%w: --time-zone %q: want a name such as Europe/Berlin", errUsage, c.timeZone)
		}
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	a, err := start(ctx, edgeagent.Options{
		DataDir: c.dataDir, TokenFile: c.tokenFile, Cluster: c.clusterName, Kubernetes: cfg, Namespace: c.namespace, Prefix: prefix,
		Version: c.version, KeepAlive: c.keepAlive, MetricsListen: c.metricsListen, Log: log,
		IdentitySecret: c.identitySecret, Zone: zone, ReadyTimeout: c.readyTimeout, LinkTimeout: c.linkTimeout, RemovalShare: c.removalShare,
	}, c.standby)
	if a == nil {
		return err
	}
	if addr := a.Addr(); addr != nil {
		log.Info().Stringer("address", addr).Msg("serving metrics")
	}
	return a.Run(ctx)
}

// start waits for the data directory if it may; nil, nil: the process is to end first.
func start(ctx context.Context, o edgeagent.Options, standby bool) (*edgeagent.Agent, error) {
	for {
		if standby {
			if err := edgeagent.Standby(ctx, o); err != nil {
				if ctx.Err() != nil {
					return nil, nil
				}
				return nil, err
			}
		}
		a, err := edgeagent.New(o)
		if err != nil {
			if standby && errors.Is(err, store.ErrLocked) { // somebody was faster
				continue
			}
			return nil, err
		}
		return a, nil
	}
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
