package logging

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestFormats(t *testing.T) {
	for _, format := range []string{"json", "auto"} { // a buffer is no terminal
		var b bytes.Buffer
		log, err := New(&b, format, "info")
		if err != nil {
			t.Fatal(err)
		}
		log.Debug().Msg("not this")
		log.Info().Str("cluster", "c").Msg("state changed")
		var line struct{ Level, Message, Cluster, Time string }
		if err := json.Unmarshal(b.Bytes(), &line); err != nil || line.Message != "state changed" || line.Cluster != "c" || line.Time == "" {
			t.Errorf("%s: %v in %q", format, err, b.String())
		}
	}
	var b bytes.Buffer
	log, err := New(&b, "text", "debug")
	if err != nil {
		t.Fatal(err)
	}
	log.Debug().Str("cluster", "c").Msg("state changed")
	if got := b.String(); !strings.Contains(got, "state changed cluster=c") || strings.Contains(got, "\x1b") {
		t.Errorf("got %q", got)
	}
}

func TestMistakes(t *testing.T) {
	for _, c := range [][3]string{{"xml", "info", "want json, text or auto"}, {"json", "loud", "--log-level \"loud\""}, {"json", "", "--log-level"}} {
		if _, err := New(&bytes.Buffer{}, c[0], c[1]); err == nil || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("%v: got %v", c, err)
		}
	}
}
