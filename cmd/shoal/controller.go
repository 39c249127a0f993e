package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"shoal.dev/shoal/broker"
	"shoal.dev/shoal/controller"
	"shoal.dev/shoal/internal/logging"
	"shoal.dev/shoal/topics"
)

// hubOptions are the flags of shoal controller.
type hubOptions struct {
	namespace     string
	dataDir       string
	mqttListen    string
	mqttURL       string
	mqttHosts     []string
	prefix        string
	minKeepAlive  time.Duration
	staleAfter    time.Duration
	rollback      time.Duration
	downstream    []string
	metricsListen string
	logLevel      string
	logFormat     string
}

func controllerCommand(a *app) *cobra.Command {
	var o hubOptions
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the hub: embedded MQTT broker and controllers",
		Long: `Run the hub. Its API is the resources of group shoal.dev in the Kubernetes cluster that --kubeconfig names (in a pod: the
cluster it runs in); agents connect to its embedded MQTT 5 broker. Everything that must survive is in Kubernetes: the
resources and the Secret shoal-keys in --namespace, which you should back up. The broker's store and the rendered bundles in --data-dir
save traffic and work after a restart and may be lost.`,
		Example: `  # on a hub that agents reach as hub.example.com
  shoal controller --data-dir /var/lib/shoal --mqtt-url mqtts://hub.example.com:8883

  # try it on a laptop
  shoal controller --kubeconfig ~/.kube/config --data-dir ./hub --mqtt-listen 127.0.0.1:8883`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logging.New(a.stderr, o.logFormat, o.logLevel)
			if err != nil {
				return err
			}
			config, err := a.kubernetes.RESTConfig()
			if err != nil {
				return err
			}
			config.QPS, config.Burst = 200, 400 // a status write per cluster when a fleet comes back
			return runHub(cmd.Context(), config, o, log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.namespace, "system-namespace", controller.DefaultNamespace, "namespace of the hub's own Secrets")
	f.StringVar(&o.dataDir, "data-dir", "", "directory of the broker's store and of rendered bundles (required)")
	f.StringVar(&o.mqttListen, "mqtt-listen", ":8883", "address the broker listens on, with TLS")
	f.StringVar(&o.mqttURL, "mqtt-url", "", "URL by which agents reach the broker, such as mqtts://hub.example.com:8883 (default: this host's name and the port of --mqtt-listen)")
	f.StringSliceVar(&o.mqttHosts, "mqtt-host", nil, "more host names and addresses for the broker's certificate")
	f.StringVar(&o.prefix, "topic-prefix", string(topics.Default), "start of every topic; agents must use the same")
	f.DurationVar(&o.minKeepAlive, "min-keep-alive", 30*time.Second, "shortest keep-alive granted to clients; a lost link shows after 1.5 times the keep-alive")
	f.DurationVar(&o.staleAfter, "stale-after", 14*24*time.Hour, "time without news from the hub after which a site reports Stale (it goes on as before); 0: never")
	f.DurationVar(&o.rollback, "default-rollback", 0, "time in which a release has to be ready, unless its bundle is atomic and says so itself; then sites go back to the release before; 0: they do not")
	f.StringSliceVar(&o.downstream, "downstream-namespace", nil, `namespaces (workspaces) whose Secrets and ConfigMaps bundles may send to clusters (downstreamResources); "*": all but --system-namespace; default: none`)
	f.StringVar(&o.metricsListen, "metrics-listen", "127.0.0.1:9090", "address of /metrics, /healthz and /readyz; empty: not served")
	f.StringVar(&o.logLevel, "log-level", "info", logging.LevelHelp)
	f.StringVar(&o.logFormat, "log-format", "auto", logging.FormatHelp)
	_ = cmd.MarkFlagRequired("data-dir")
	_ = cmd.MarkFlagDirname("data-dir")
	return cmd
}

// runHub wires broker and controllers and serves until ctx ends. The hub stops first: what it publishes last is still stored.
func runHub(ctx context.Context, config *rest.Config, o hubOptions, log zerolog.Logger) error {
	prefix, err := topics.ParsePrefix(o.prefix)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.dataDir, 0o700); err != nil {
		return fmt.Errorf("make --data-dir: %w", err)
	}
	holder, unlock, err := takeDataDir(o.dataDir)
	if err != nil {
		return err
	}
	defer unlock()
	registry := prometheus.NewRegistry()
	hub, err := controller.New(ctx, controller.Options{
		Kubernetes: config, Namespace: o.namespace, Prefix: prefix, StaleAfter: o.staleAfter, DefaultRollback: o.rollback,
		DownstreamNamespaces: o.downstream, MetricsListen: o.metricsListen, Registry: registry, Log: log,
		RenderedDir: filepath.Join(o.dataDir, "rendered"), Holder: holder,
	})
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // stopped while it waited
	}
	if err != nil {
		return err
	}
	defer hub.Close()
	hosts, err := brokerHosts(o)
	if err != nil {
		return err
	}
	tlsConfig, err := hub.ServerTLS(hosts)
	if err != nil {
		return err
	}
	b, err := broker.New(broker.Options{
		Listen: o.mqttListen, TLS: tlsConfig, Auth: hub.Authenticator(), Store: filepath.Join(o.dataDir, "retained.db"), MinKeepAlive: o.minKeepAlive,
		Log: log.With().Str("component", "broker").Logger(), Registerer: registry,
	})
	if err != nil {
		return err
	}
	defer b.Close()
	publicURL, err := publicURL(o, b.Addr())
	if err != nil {
		return err
	}
	brokerCtx, stopBroker := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBroker()
	var g errgroup.Group
	g.Go(func() error { return b.Run(brokerCtx) })
	g.Go(func() error {
		defer stopBroker()
		return hub.Run(ctx, controller.Attachment{
			Carrier: b, URL: publicURL,
			Disconnect: func(identity string) { b.Disconnect(func(id string) bool { return id == identity }) },
		})
	})
	err = g.Wait()
	log.Info().Msg("hub stopped")
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// takeDataDir takes the directory for this process, before the hub takes its Lease back by the name that is kept there: a second
// process with the same directory must not. The name holds the host's as well, in case the directory is a copy.
func takeDataDir(dir string) (holder string, unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "hub-id"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, fmt.Errorf("open --data-dir: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return "", nil, fmt.Errorf("--data-dir %s: in use by another process, stop that first: %w", dir, err)
	}
	id := make([]byte, 26)
	n, err := f.ReadAt(id, 0)
	if n < len(id) || strings.Trim(string(id), "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" { // new, or cut short
		id = []byte(rand.Text())
		if err := errors.Join(f.Truncate(0), write(f, id)); err != nil {
			return "", nil, fmt.Errorf("write to --data-dir: %w", err)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		host = "hub"
	}
	return host + "_" + string(id), func() { _ = f.Close() }, nil
}

func write(f *os.File, b []byte) error {
	_, err := f.WriteAt(b, 0)
	return err
}

// brokerHosts are the names that stand in the broker's certificate.
func brokerHosts(o hubOptions) ([]string, error) {
	hosts := append([]string{"localhost", "127.0.0.1", "::1"}, o.mqttHosts...)
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	if o.mqttURL != "" {
		u, err := url.Parse(o.mqttURL)
		if err != nil || u.Hostname() == "" || u.Scheme != "mqtts" {
			return nil, fmt.Errorf("--mqtt-url %q: want mqtts://host:port", o.mqttURL)
		}
		hosts = append(hosts, u.Hostname())
	}
	slices.Sort(hosts)
	return slices.Compact(hosts), nil
}

func publicURL(o hubOptions, listening net.Addr) (string, error) {
	if o.mqttURL != "" {
		return o.mqttURL, nil
	}
	host, port, err := net.SplitHostPort(listening.String())
	if err != nil {
		return "", fmt.Errorf("address of the broker: %w", err)
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("find this host's name: %w (set --mqtt-url)", err)
		}
	}
	return "mqtts://" + net.JoinHostPort(host, port), nil
}
