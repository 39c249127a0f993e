package broker

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/internal/mqtt/mqtttest"
)

func newBroker(t *testing.T, store string) *Broker {
	t.Helper()
	b, err := New(Options{
		Listen: "127.0.0.1:0", Store: store, Log: zerolog.Nop(),
		Auth: &mqtttest.Auth{Users: map[string]mqtttest.User{"a": {Password: "secret", Allow: []string{"#"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// failing is a listener whose Accept fails the first times, as with EMFILE.
type failing struct {
	net.Listener
	left atomic.Int32
}

func (f *failing) Accept() (net.Conn, error) {
	if f.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return f.Listener.Accept()
}

// B6: an error of Accept is not the end of the listener.
func TestB6AcceptError(t *testing.T) {
	b := newBroker(t, "")
	f := &failing{Listener: b.ln}
	f.left.Store(4)
	b.ln = f
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	c, err := mqtt.New(mqtt.Options{URL: "mqtt://" + b.Addr().String(), ClientID: "a", Username: "a", Password: []byte("secret"), BackoffBase: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	up := make(chan error, 1)
	go func() { up <- c.Run(ctx) }()
	wait, stop := context.WithTimeout(ctx, mqtttest.Patience)
	defer stop()
	if err := c.AwaitUp(wait); err != nil {
		t.Errorf("after errors of Accept: %v", err)
	}
	cancel()
	if err := errors.Join(<-done, <-up); err != nil {
		t.Error(err)
	}
}

// A retained message that cannot be stored is refused in process and with a reason code, is not seen by anyone, and the store
// heals when the disk does.
func TestStoreFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b := newBroker(t, filepath.Join(dir, "retained"))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	c, err := mqtt.New(mqtt.Options{URL: "mqtt://" + b.Addr().String(), ClientID: "a", Username: "a", Password: []byte("secret"), BackoffBase: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	up := make(chan error, 1)
	go func() { up <- c.Run(ctx) }()
	wait, stop := context.WithTimeout(ctx, mqtttest.Patience)
	defer stop()
	if err := c.AwaitUp(wait); err != nil {
		t.Fatal(err)
	}
	r := &mqtttest.Recorder{}
	if _, err := b.Subscribe(ctx, r.Add, "#"); err != nil {
		t.Fatal(err)
	}

	_ = b.store.f.Close() // writes fail
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(wait, mqtt.Message{Topic: "x", Payload: []byte("lost"), Retain: true}); !errors.Is(err, ErrStore) {
		t.Errorf("in process: %v, want ErrStore", err)
	}
	var reason *mqtt.ReasonError
	if err := c.Publish(wait, mqtt.Message{Topic: "x", Payload: []byte("lost"), Retain: true}); !errors.As(err, &reason) || reason.Code != 0x83 {
		t.Errorf("over the network: %v, want reason code 0x83", err)
	}
	if err := c.Publish(wait, mqtt.Message{Topic: "x", Payload: []byte("event")}); err != nil {
		t.Errorf("an event needs no store: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Publish(wait, mqtt.Message{Topic: "x", Payload: []byte("kept"), Retain: true}); err != nil {
		t.Errorf("after the disk is back: %v", err)
	}
	r.AwaitPayload(t, "kept") // it is handed over after the acknowledgement, or before
	if got := r.Payloads(); !slices.Equal(got, []string{"event", "kept"}) {
		t.Errorf("subscribers saw %q", got)
	}
	cancel()
	if err := errors.Join(<-done, <-up); err != nil {
		t.Error(err)
	}
	if got, _ := contents(t, filepath.Join(dir, "retained")); got["x"] != "kept" {
		t.Errorf("store holds %q", got)
	}
}

func TestTree(t *testing.T) {
	filters := []string{"#", "+", "+/+", "a", "a/#", "a/b", "a/+", "a/b/#", "+/b/c", "a/b/c", "/", "/a", "+/a", "a//b", "a/+/b"}
	topics := []string{"a", "a/b", "a/b/c", "b", "b/b/c", "/", "/a", "a//b", "a/", "b/c/d/e"}
	var byFilter tree[string]
	var byTopic tree[string]
	for _, f := range filters {
		byFilter.put(f, f)
	}
	for _, topic := range topics {
		byTopic.put(topic, topic)
	}
	for _, topic := range topics {
		var got, want []string
		byFilter.matching(topic, func(f string) { got = append(got, f) })
		for _, f := range filters {
			if mqtt.Match(f, topic) {
				want = append(want, f)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("filters that match %q: %q, want %q", topic, got, want)
		}
	}
	for _, f := range filters {
		var got, want []string
		byTopic.selected(f, func(topic string) { got = append(got, topic) })
		for _, topic := range topics {
			if mqtt.Match(f, topic) {
				want = append(want, topic)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("topics that %q selects: %q, want %q", f, got, want)
		}
	}
	for i, f := range filters {
		if byFilter.del(f); byFilter.n != len(filters)-i-1 {
			t.Errorf("after deleting %q: %d left", f, byFilter.n)
		}
	}
	if len(byFilter.root.child) != 0 {
		t.Errorf("empty tree keeps %d children", len(byFilter.root.child))
	}
}

// A message with an expiry is replayed with what is left of it, and not at all after.
func TestExpiry(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	m := retainedMessage(t, "a", "x")
	m.expires = now.Unix() + 10
	wire, ok := m.appendTo(nil, true, now.Add(4*time.Second))
	if !ok || !strings.Contains(string(wire), "\x02\x00\x00\x00\x06") || wire[0]&retainFlag == 0 {
		t.Errorf("after 4 s: % x, %v", wire, ok)
	}
	if _, ok := m.appendTo(nil, true, now.Add(10*time.Second)); ok || !m.expired(now.Add(10*time.Second)) {
		t.Error("delivered after it expired")
	}
	m.expires = 0
	if m.expired(now.Add(1000 * time.Hour)) {
		t.Error("expired without an expiry")
	}
}
