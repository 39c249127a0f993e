// Package logging makes the one logger of a process: JSON lines, or a readable form on a terminal.
package logging

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/term"
)

// What the flags of New's arguments say of themselves.
const (
	LevelHelp  = "least `level` to log: trace, debug, info, warn or error"
	FormatHelp = "`format` of the log: json, text, or auto: text on a terminal"
)

// New makes a logger that writes to w.
func New(w io.Writer, format, level string) (zerolog.Logger, error) {
	l, err := zerolog.ParseLevel(level)
	if err != nil || level == "" {
		return zerolog.Nop(), fmt.Errorf("--log-level %q: want trace, debug, info, warn or error", level)
	}
	switch format {
	case "json":
	case "text":
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly, NoColor: !terminal(w)}
	case "auto":
		if terminal(w) {
			w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly}
		}
	default:
		return zerolog.Nop(), fmt.Errorf("--log-format %q: want json, text or auto", format)
	}
	return zerolog.New(w).Level(l).With().Timestamp().Logger(), nil
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
