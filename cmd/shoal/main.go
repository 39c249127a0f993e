// Command shoal is the hub and the operator's tool of Shoal.
//
// run is the only place that knows arguments and environment; every command is one file and one line in root.go.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}
