package main

import "errors"

// Exit codes, decided here and nowhere else.
const (
	exitOK       = 0
	exitFailed   = 1 // the command could not do what was asked
	exitUsage    = 2 // the command line makes no sense
	exitNotReady = 3 // what was applied did not become ready in time

	// Those of shoal diff are what scripts expect of a diff: 0 no differences, 1 differences, 2 trouble.
	exitDifferent = 1
	exitTrouble   = 2
)

var errNotReady = errors.New("not ready in time")

// errDifferent is no mistake and says nothing: the differences are on standard output.
var errDifferent = errors.New("there are differences")

// errProblems says nothing more: the problems are on standard output.
var errProblems = errors.New("there are problems")

// usage is an error in what was typed that shows only when the command looks at it, such as a value that a flag does not know.
type usage struct{ error }

func (u usage) Unwrap() error { return u.error }

// trouble is an error of a command for which the exit code 1 means something else.
type trouble struct{ error }

func (t trouble) Unwrap() error { return t.error }

// exitCode maps an error to an exit code. started says whether the command began to run: before that, only the command
// line can be wrong.
func exitCode(err error, started bool) int {
	switch {
	case err == nil:
		return exitOK
	case !started, errors.As(err, new(usage)):
		return exitUsage
	case errors.Is(err, errNotReady):
		return exitNotReady
	case errors.Is(err, errDifferent):
		return exitDifferent
	case errors.As(err, new(trouble)):
		return exitTrouble
	}
	return exitFailed
}

// silent reports whether all has been said already.
func silent(err error) bool { return errors.Is(err, errDifferent) || errors.Is(err, errProblems) }
