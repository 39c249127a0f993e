// Package component holds the programs that shoal-kube can be: the unmodified
// Kubernetes components, kine, kwok and, for people, kubectl. Each runs in a process of its own,
// because every one of them registers flags, metrics and signal handlers in
// package variables.
//
// Only this package imports Kubernetes. Keep it so: a change anywhere else in
// the module then compiles in seconds.
package component

import (
	"context"
	"errors"
	"fmt"
	"os"
	_ "time/tzdata" // CronJob time zones on machines without zoneinfo

	kineapp "github.com/k3s-io/kine/pkg/app"
	"github.com/spf13/pflag"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
	kwokconfig "sigs.k8s.io/kwok/pkg/config"
	kwok "sigs.k8s.io/kwok/pkg/kwok/cmd"
	kwoklog "sigs.k8s.io/kwok/pkg/log"
	kwoksignals "sigs.k8s.io/kwok/pkg/utils/signals"
)

// Names lists the components in the order in which the help prints them.
var Names = []string{
	"kine",
	"kube-apiserver",
	"kube-controller-manager",
	"kube-scheduler",
	"kubelet",
	"kwok",
	"kubectl",
}

// Run becomes the named component and returns its exit code. It sets os.Args,
// which the components parse themselves; the caller must do nothing else with
// the process. ok is false when there is no such component.
func Run(name string, args []string) (code int, ok bool) {
	os.Args = append([]string{name}, args...)
	switch name {
	case "kine":
		return runKine(), true
	case "kube-apiserver":
		return cli.Run(apiserver.NewAPIServerCommand()), true
	case "kube-controller-manager":
		return cli.Run(controllermanager.NewControllerManagerCommand()), true
	case "kube-scheduler":
		return cli.Run(scheduler.NewSchedulerCommand()), true
	case "kubelet":
		return cli.Run(kubelet.NewKubeletCommand(context.Background())), true
	case "kwok":
		return runKwok(), true
	case "kubectl":
		return cli.Run(kubectl.NewDefaultKubectlCommand()), true
	}
	return 0, false
}

func runKine() int {
	// A cancelled context is how kine reports that a signal stopped it.
	if err := kineapp.New().Run(os.Args); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "kine:", err)
		return 1
	}
	return 0
}

// runKwok reads its configuration before it builds its command, as kwok's own
// main does: the stages come from there, not from a flag.
func runKwok() int {
	// cobra adds the global flags to every command, and Kubernetes puts a
	// --version there that kwok's own does not agree with.
	pflag.CommandLine = pflag.NewFlagSet("kwok", pflag.ContinueOnError)

	flags := pflag.NewFlagSet("global", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	flags.Usage = func() {}

	ctx, _ := kwoklog.InitFlags(kwoksignals.SetupSignalContext(), flags)
	ctx, err := kwokconfig.InitFlags(ctx, flags)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kwok: read configuration:", err)
		return 1
	}
	command := kwok.NewCommand(ctx)
	command.PersistentFlags().AddFlagSet(flags)
	if err := command.ExecuteContext(ctx); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "kwok:", err)
		return 1
	}
	return 0
}
