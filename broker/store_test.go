package broker

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/internal/mqtt"
)

func retainedMessage(t testing.TB, topic, payload string) *message {
	t.Helper()
	m, err := encodeMessage(mqtt.Message{Topic: topic, Payload: []byte(payload), Retain: true, ContentType: "text/plain"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// contents loads path the way a broker does.
func contents(t testing.TB, path string) (got map[string]string, log string) {
	t.Helper()
	var buf bytes.Buffer
	got = map[string]string{}
	s, err := openStore(path, zerolog.New(&buf), func(m *message) {
		if m.clears() {
			delete(got, m.topic)
		} else {
			got[m.topic] = string(m.wire[m.payload:])
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	return got, buf.String()
}

// written makes a store file of n batches of one message, without a clean end, and returns where the batches begin.
func written(t *testing.T, n int) (path string, at []int64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "retained")
	s, err := openStore(path, zerolog.Nop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		at = append(at, s.size)
		if err := s.append([]*message{retainedMessage(t, fmt.Sprintf("t/%d", i), strings.Repeat("x", 100))}, 1<<30, nil); err != nil {
			t.Fatal(err)
		}
	}
	at = append(at, s.size)
	_ = s.f.Close()
	_ = s.lock.Close()
	return path, at
}

// A power cut leaves any prefix of the last batch, or garbage of its length: everything before it is there, and nothing is
// called damage.
func TestStoreTornTail(t *testing.T) {
	path, at := written(t, 3)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := at[2]; size < at[3]; size++ {
		for _, fill := range []bool{false, true} {
			data := bytes.Clone(whole[:size])
			if fill { // the file was extended before its content was written
				data = append(data, make([]byte, at[3]-size)...)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			got, log := contents(t, path)
			if len(got) != 2 {
				t.Fatalf("cut at %d: %d messages, want 2", size-at[2], len(got))
			}
			if (size > at[2] || fill) != strings.Contains(log, "torn write") {
				t.Fatalf("cut at %d: log %q", size-at[2], log)
			}
		}
	}
}

// A byte that changes in what was durable is noticed wherever it is: the file is moved aside, the log says so, the store starts
// empty and works.
func TestStoreDamage(t *testing.T) {
	path, at := written(t, 3)
	if _, log := contents(t, path); log != "" { // leaves a clean end, so that the last batch is vouched for
		t.Fatal(log)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := int64(0); i < at[3]; i++ {
		data := bytes.Clone(whole)
		data[i] ^= 0x40
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, log := contents(t, path)
		if len(got) != 0 || !strings.Contains(log, "damaged") {
			t.Fatalf("byte %d flipped: %d messages, log %q", i, len(got), log)
		}
	}
	aside, err := filepath.Glob(path + ".damaged-*")
	if err != nil || int64(len(aside)) != at[3] {
		t.Errorf("%d damaged files kept, want %d", len(aside), at[3])
	}
	for _, junk := range []string{"", "x", "SQLite format 3\x00", storeMagic[:10]} {
		if err := os.WriteFile(path, []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, log := contents(t, path); len(got) != 0 || !strings.Contains(log, "damaged") {
			t.Errorf("%q: %d messages, log %q", junk, len(got), log)
		}
	}
}

// The log is rewritten when most of it is outdated, and what is live survives.
func TestStoreRewrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "retained")
	s, err := openStore(path, zerolog.Nop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	live := map[string]*message{}
	bytes, largest := 0, int64(0)
	for i := range 2000 {
		m := retainedMessage(t, fmt.Sprintf("t/%d", i%7), fmt.Sprintf("%d %s", i, strings.Repeat("x", 8<<10)))
		if err := s.append([]*message{m}, int64(bytes), func(visit func(*message)) {
			for _, m := range live {
				visit(m)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if live[m.topic] == nil {
			bytes += m.size()
		}
		live[m.topic] = m
		largest = max(largest, s.size)
	}
	if limit := int64(rewriteSlack + 4*bytes + 64<<10); largest > limit {
		t.Errorf("log grew to %d bytes, limit %d", largest, limit)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	got, log := contents(t, path)
	if len(got) != 7 || log != "" {
		t.Fatalf("%d messages, log %q", len(got), log)
	}
	for topic, payload := range got {
		if want := string(live[topic].wire[live[topic].payload:]); payload != want {
			t.Errorf("%s: %.10q, want %.10q", topic, payload, want)
		}
	}
}

// Two brokers on one store would each lose what the other acknowledged.
func TestStoreLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "retained")
	s, err := openStore(path, zerolog.Nop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(path, zerolog.Nop(), nil); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("second open: %v", err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	contents(t, path)
}

func FuzzStore(f *testing.F) {
	f.Add([]byte(storeMagic))
	f.Add(appendBatch([]byte(storeMagic), int64(len(storeMagic)), []*message{retainedMessage(f, "a/b", "x")}))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "fuzz")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = load(path, func(m *message) { _, _ = m.deliver(true) })
	})
}
