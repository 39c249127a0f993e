package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// screen prints lines, each with the time since the start. It may be used by several goroutines.
type screen struct {
	mu    sync.Mutex
	w     io.Writer
	begin time.Time
}

func newScreen(w io.Writer) *screen { return &screen{w: w, begin: time.Now()} }

func (s *screen) title(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.w, "\n%s\n%s\n", text, strings.Repeat("─", len([]rune(text)))) //nolint:errcheck // nobody to tell
}

func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := time.Since(s.begin)
	lead := fmt.Sprintf("%3d:%02d  ", int(t.Minutes()), int(t.Seconds())%60)
	for line := range strings.Lines(strings.TrimRight(fmt.Sprintf(format, args...), "\n")) {
		fmt.Fprintf(s.w, "%s%s\n", lead, strings.TrimRight(line, "\n")) //nolint:errcheck // nobody to tell
		lead = strings.Repeat(" ", len(lead))
	}
}

// lines is a writer whose lines are said.
type lines struct{ *screen }

func (l lines) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		l.say("%s", bytes.TrimRight(line, "\n"))
	}
	return len(p), nil
}

// raw prints text that people copy from.
func (s *screen) raw(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprint(s.w, text) //nolint:errcheck // nobody to tell
}
