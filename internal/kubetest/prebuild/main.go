// Prebuild builds the cluster binary of package kubetest, unless it is cached
// already, and prints its path.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"

	"shoal.dev/shoal/internal/kubetest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Stdout, os.Stderr))
}

func run(ctx context.Context, stdout, stderr io.Writer) int {
	path, err := kubetest.Binary(ctx, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "prebuild:", err)
		return 1
	}
	fmt.Fprintln(stdout, path)
	return 0
}
