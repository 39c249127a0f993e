package main

import "errors"

// Exit codes, decided here and nowhere else.
const (
	exitOK       = 0
	exitFailed   = 1 // the command could not do what was asked
	exitUsage    = 2 // the command line makes no sense
	exitNotReady = 3 // what was applied did not become ready in time
)

var errNotReady = errors.New("not ready in time")

// exitCode maps an error to an exit code. started says whether the command began to run: before that, only the command
// line can be wrong.
func exitCode(err error, started bool) int {
	switch {
	case err == nil:
		return exitOK
	case !started:
		return exitUsage
	case errors.Is(err, errNotReady):
		return exitNotReady
	}
	return exitFailed
}
