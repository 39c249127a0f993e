package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller"
	"shoal.dev/shoal/controller/enroll"
	"shoal.dev/shoal/internal/watch"
	"shoal.dev/shoal/topics"
)

func topicsCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "topics",
		Short: "Look at what goes over the MQTT topics",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(topicsWatchCommand(a), topicsCredentialsCommand(a))
	return cmd
}

// readerFlags say how to connect as a reader. What is not given comes from the Secret that the hub keeps.
type readerFlags struct {
	systemNamespace    string
	url, ca, cert, key string
	root, prefix       string
}

func (f *readerFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.systemNamespace, "system-namespace", controller.DefaultNamespace, "namespace of the hub's own Secrets, where "+enroll.ReaderSecret+" is")
	fl.StringVar(&f.url, "url", "", "URL of the broker, such as mqtts://hub.example.com:8883 (default: from the Secret)")
	fl.StringVar(&f.ca, "ca", "", "file with the CA of the broker's certificate, PEM (default: from the Secret)")
	fl.StringVar(&f.cert, "cert", "", "file with a reader's certificate, PEM (default: from the Secret)")
	fl.StringVar(&f.key, "key", "", "file with the certificate's key, PEM (default: from the Secret)")
	fl.StringVar(&f.root, "root", "", "file with the root key that signs trust documents, hexadecimal (default: from the Secret)")
	fl.StringVar(&f.prefix, "topic-prefix", string(topics.Default), "start of every topic, as the hub has it")
	cmd.MarkFlagsRequiredTogether("cert", "key")
	for _, name := range []string{"ca", "cert", "key", "root"} {
		_ = cmd.MarkFlagFilename(name)
	}
}

// credential reads the files that were named; the Secret is asked only when they are not enough.
func (f *readerFlags) credential(ctx context.Context, a *app) (watch.Credential, error) {
	var c watch.Credential
	if f.url == "" || f.cert == "" {
		var err error
		if c, err = f.fromSecret(ctx, a); err != nil {
			return watch.Credential{}, err
		}
	}
	if f.url != "" {
		c.URL = f.url
	}
	for _, x := range []struct {
		path string
		to   *[]byte
	}{{f.ca, &c.CA}, {f.cert, &c.Cert}, {f.key, &c.Key}} {
		if x.path == "" {
			continue
		}
		data, err := os.ReadFile(x.path)
		if err != nil {
			return watch.Credential{}, err
		}
		*x.to = data
	}
	if f.root != "" {
		data, err := os.ReadFile(f.root)
		if err != nil {
			return watch.Credential{}, err
		}
		if c.Root, err = watch.ParseRoot(string(data)); err != nil {
			return watch.Credential{}, fmt.Errorf("--root %s: %w", f.root, err)
		}
	}
	return c, nil
}

func (f *readerFlags) fromSecret(ctx context.Context, a *app) (watch.Credential, error) {
	cfg, err := a.kubernetes.RESTConfig()
	if err != nil {
		return watch.Credential{}, fmt.Errorf("%w, or say how to connect with --url, --ca, --cert and --key", err)
	}
	kube, err := client.New(cfg, client.Options{})
	if err != nil {
		return watch.Credential{}, fmt.Errorf("connect to Kubernetes: %w", err)
	}
	var s corev1.Secret
	name := f.systemNamespace + "/" + enroll.ReaderSecret
	err = kube.Get(ctx, client.ObjectKey{Namespace: f.systemNamespace, Name: enroll.ReaderSecret}, &s)
	switch {
	case apierrors.IsNotFound(err):
		return watch.Credential{}, fmt.Errorf("secret %s is not there: the hub writes it when it starts; check that it runs on this cluster and that --system-namespace is right", name)
	case err != nil:
		return watch.Credential{}, fmt.Errorf("read secret %s: %w", name, err)
	}
	c, err := watch.FromSecret(s.Data)
	if err != nil {
		return watch.Credential{}, fmt.Errorf("secret %s: %w; delete it and restart the hub, which writes it anew", name, err)
	}
	return c, nil
}

func topicsWatchCommand(a *app) *cobra.Command {
	var f readerFlags
	var workspace, cluster, output string
	var retainedOnly, once bool
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show every message on the topics, decoded",
		Long: `Show every message on the topics, one line each: retained ones first (=), then live ones (+) until Ctrl-C. Signatures of desired
documents and bundles are checked when the root key is known (from the hub's Secret, or --root): such a line ends in
[verified], any other says what is wrong. Watching changes nothing.

Of a desired document the line says what the cluster is to run (NAME@RELEASE=DIGEST, with pause, rollback and what comes first), what it is
to remove, and its windows; -o json has all of it.`,
		Example: `  # everything, as it happens
  shoal topics watch

  # what one cluster was told and what it says, then exit
  shoal topics watch --cluster shop/paris-1 --once

  # for scripts: states of all deployments
  shoal topics watch --once -o json | jq -c 'select(.kind=="reported") | {cluster, states: [.content.deployments[]?.state]}'

  # a broker without Kubernetes at hand
  shoal topics watch --url mqtts://hub.example.com:8883 --ca ca.crt --cert tls.crt --key tls.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := watch.Options{JSON: output == "json", RetainedOnly: retainedOnly, Once: once, Log: zerolog.Nop()}
			if output != "json" && output != "text" {
				return fmt.Errorf("--output %q: want text or json", output)
			}
			var err error
			if o.Prefix, err = topics.ParsePrefix(f.prefix); err != nil {
				return fmt.Errorf("--topic-prefix: %w", err)
			}
			if o.Workspace, o.Cluster, err = watched(workspace, a.kubernetes.namespace, cluster); err != nil {
				return err
			}
			if o.Credential, err = f.credential(cmd.Context(), a); err != nil {
				return err
			}
			return watch.Run(cmd.Context(), o, a.stdout)
		},
	}
	f.register(cmd)
	fl := cmd.Flags()
	fl.StringVar(&workspace, "workspace", "", "only this workspace (default: that of --namespace if given, else all)")
	fl.StringVar(&cluster, "cluster", "", "only this cluster: NAME, or WORKSPACE/NAME")
	fl.StringVarP(&output, "output", "o", "text", "text: a line for people; json: a line of JSON")
	fl.BoolVar(&retainedOnly, "retained-only", false, "leave out live messages")
	fl.BoolVar(&once, "once", false, "exit after the retained messages")
	completeValues(cmd, "output", "text", "json")
	_ = cmd.RegisterFlagCompletionFunc("cluster", a.completeClusters)
	return cmd
}

// watched sorts out which workspace and cluster are meant.
func watched(workspace, namespace, cluster string) (ws, name string, err error) {
	if ws = workspace; ws == "" {
		ws = namespace
	}
	name = cluster
	if strings.Contains(cluster, "/") {
		c, err := topics.ParseCluster(cluster)
		if err != nil {
			return "", "", fmt.Errorf("--cluster: %w", err)
		}
		if workspace != "" && workspace != c.Workspace {
			return "", "", fmt.Errorf("--cluster %s is not in --workspace %s", cluster, workspace)
		}
		return c.Workspace, c.Name, nil
	}
	for _, x := range [][2]string{{"--workspace", ws}, {"--cluster", name}} {
		if x[1] == "" {
			continue
		}
		if _, err := topics.ParseCluster("x/" + x[1]); err != nil {
			return "", "", fmt.Errorf("%s %q: want a DNS label (a-z, 0-9, dashes)", x[0], x[1])
		}
	}
	return ws, name, nil
}

func topicsCredentialsCommand(a *app) *cobra.Command {
	var f readerFlags
	cmd := &cobra.Command{
		Use:   "credentials DIR",
		Short: "Write a reader's credential to files, for mosquitto_sub and other MQTT tools",
		Long: `Write the credential with which the topics can be read (and nothing be written) into DIR: ca.crt, tls.crt, tls.key, url and root.pub.
It prints a command line for mosquitto_sub. Other tools: MQTT 5, TLS with these files, a client id that starts with "reader.", and
filters that start with the topic prefix (shoal/v1/#).

Who has these files sees every rendered bundle. Delete the Secret and restart the hub to revoke them.`,
		Example: `  shoal topics credentials ./reader
  sh -c "$(shoal topics credentials ./reader)"`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix, err := topics.ParsePrefix(f.prefix)
			if err != nil {
				return fmt.Errorf("--topic-prefix: %w", err)
			}
			c, err := f.credential(cmd.Context(), a)
			if err != nil {
				return err
			}
			line, err := c.Mosquitto(args[0], prefix.Everything())
			if err != nil {
				return err
			}
			if err := c.Write(args[0]); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, line)
			return err
		},
	}
	f.register(cmd)
	return cmd
}
