package source

import (
	"errors"
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a directory.
type Problem struct {
	File    string // path below the directory that was read; empty: the directory itself
	Line    int    // 0: the file as a whole
	Message string // says what to do
	Warning bool   // the bundle is made all the same
	err     error  // what Message is about, for errors.Is
}

// Error is "file:line: message", and says so if it is a warning.
func (p Problem) Error() string {
	message := p.Message
	if p.Warning {
		message = "warning: " + message
	}
	switch {
	case p.File == "":
		return message
	case p.Line == 0:
		return p.File + ": " + message
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, message)
}

// Unwrap returns the error that the problem is about, if there is one.
func (p Problem) Unwrap() error { return p.err }

// Problems are all that is wrong with a directory, in the order of files and lines. As an error they are one problem a line.
type Problems []Problem

// Errors are the problems because of which a bundle is not made.
func (ps Problems) Errors() Problems { return ps.only(false) }

// Warnings are the problems with bundles that are made all the same.
func (ps Problems) Warnings() Problems { return ps.only(true) }

func (ps Problems) only(warnings bool) (out Problems) {
	for _, p := range ps {
		if p.Warning == warnings {
			out = append(out, p)
		}
	}
	return out
}

// Err is the errors among the problems, or nil if there is none.
func (ps Problems) Err() error {
	if errs := ps.Errors(); len(errs) > 0 {
		return errs
	}
	return nil
}

// Error is one problem a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes errors.Is and errors.As see every problem.
func (ps Problems) Unwrap() []error {
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = p
	}
	return errs
}

// problems is what an error says, as problems: of an error of another sort it makes one about file.
func problems(file string, err error) Problems {
	var ps Problems
	var p Problem
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ps):
		return ps
	case errors.As(err, &p):
		return Problems{p}
	}
	return Problems{{File: file, Message: err.Error(), err: err}}
}
