package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"shoal.dev/shoal/bundlefmt"
)

// version is set by the build: -ldflags "-X main.version=v1.2.3".
var version string

func versionString() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "+changes"
		}
	}
	switch {
	case revision != "":
		return "devel-" + revision + modified
	case info.Main.Version != "" && info.Main.Version != "(devel)":
		return info.Main.Version // go install shoal.dev/shoal/cmd/shoal@v1.2.3
	}
	return "devel"
}

// versionLine is what "shoal version" and "shoal --version" print.
func versionLine() string {
	return fmt.Sprintf("shoal %s (format %d, %s, %s/%s)\n",
		versionString(), bundlefmt.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  shoal version",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.stdout, versionLine())
			return err
		},
	}
}
