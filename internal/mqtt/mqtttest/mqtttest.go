// Package mqtttest is the contract of mqtt.Carrier as a test-suite, and what tests of several packages need around it: an
// Authenticator that is a table, and a recorder of messages.
package mqtttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"shoal.dev/shoal/internal/mqtt"
)

// Patience is how long the suite waits for what must happen.
const Patience = 10 * time.Second

// Fixture is what newCarrier hands to the suite: two carriers of one broker, fresh for each test. Both may use every topic
// under "suite/" and no other, unless AllowsAll.
type Fixture struct {
	A, B mqtt.Carrier

	// Cut and Restore break and mend the link of A; nil for a carrier without one. Restore returns when A is up again.
	Cut, Restore func()
	// AllowsAll says that nobody checks what the carriers do, as in process.
	AllowsAll bool
	// RestartBroker kills the broker in the rudest way that is possible and starts it again on the same store; A and B of
	// the fixture it returns take the place of the old ones. nil if not supported.
	RestartBroker func() Fixture
}

// TestCarrier runs the contract on the carriers newCarrier makes.
func TestCarrier(t *testing.T, newCarrier func(t *testing.T) Fixture) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Fixture)
	}{
		{"live", live},
		{"retained set replace clear", retained},
		{"replay then live", replayThenLive},
		{"retain flag", retainFlag},
		{"properties", properties},
		{"big", big},
		{"order", order},
		{"wildcards", wildcards},
		{"stop", stop},
		{"overlap", overlap},
		{"handler publishes", handlerPublishes},
		{"concurrent", concurrent},
		{"invalid", invalid},
		{"deny", deny},
		{"reconnect", reconnect},
		{"offline", offline},
		{"durable", durable},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newCarrier(t)) })
	}
}

// Recorder keeps messages and lets a test wait for them. It is ready to use.
type Recorder struct {
	mu      sync.Mutex
	got     []mqtt.Message
	changed chan struct{}
}

// Add is a handler for Subscribe.
func (r *Recorder) Add(m mqtt.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, m)
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// All returns what was received so far.
func (r *Recorder) All() []mqtt.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// Payloads returns the payloads received so far, without a payload that repeats the one before: QoS 1 may deliver twice.
func (r *Recorder) Payloads() []string {
	var out []string
	for _, m := range r.All() {
		out = append(out, string(m.Payload))
	}
	return slices.Compact(out)
}

// Await waits until what was received satisfies ok and returns it; else the test ends.
func (r *Recorder) Await(t testing.TB, what string, ok func([]mqtt.Message) bool) []mqtt.Message {
	t.Helper()
	timeout := time.After(Patience)
	for {
		r.mu.Lock()
		got := slices.Clone(r.got)
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		changed := r.changed
		r.mu.Unlock()
		if ok(got) {
			return got
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("waiting for %s: got %d messages: %.2000q", what, len(got), r.Payloads())
		}
	}
}

// AwaitPayload waits for a message with the payload and returns it.
func (r *Recorder) AwaitPayload(t testing.TB, payload string) mqtt.Message {
	t.Helper()
	var hit mqtt.Message
	r.Await(t, fmt.Sprintf("payload %.40q", payload), func(ms []mqtt.Message) bool {
		i := slices.IndexFunc(ms, func(m mqtt.Message) bool { return string(m.Payload) == payload })
		if i >= 0 {
			hit = ms[i]
		}
		return i >= 0
	})
	return hit
}

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return c
}

func publish(t testing.TB, c mqtt.Carrier, topic, payload string, retain bool) {
	t.Helper()
	if err := c.Publish(ctx(t), mqtt.Message{Topic: topic, Payload: []byte(payload), Retain: retain}); err != nil {
		t.Fatalf("publish: %v", err)
	}
}

func subscribe(t testing.TB, c mqtt.Carrier, filters ...string) (*Recorder, func()) {
	t.Helper()
	r := &Recorder{}
	stop, err := c.Subscribe(ctx(t), r.Add, filters...)
	if err != nil {
		t.Fatalf("subscribe %v: %v", filters, err)
	}
	t.Cleanup(stop)
	return r, stop
}

// settle makes sure that everything published before has reached r, by a message of its own.
func settle(t testing.TB, c mqtt.Carrier, r *Recorder, topic string) {
	t.Helper()
	mark := "settled " + strconv.FormatInt(time.Now().UnixNano(), 36)
	publish(t, c, topic, mark, false)
	r.AwaitPayload(t, mark)
}

func live(t *testing.T, f Fixture) {
	r, _ := subscribe(t, f.A, "suite/x")
	publish(t, f.B, "suite/x", "1", false)
	m := r.AwaitPayload(t, "1")
	if m.Topic != "suite/x" || m.Retain {
		t.Errorf("got topic %q retain %v", m.Topic, m.Retain)
	}
	late, _ := subscribe(t, f.A, "suite/x")
	settle(t, f.B, late, "suite/x")
	if slices.Contains(late.Payloads(), "1") {
		t.Error("a message that was not retained was replayed")
	}
}

func retained(t *testing.T, f Fixture) {
	replay := func() []string {
		r, stop := subscribe(t, f.B, "suite/r", "suite/mark")
		defer stop()
		settle(t, f.A, r, "suite/mark")
		return slices.DeleteFunc(r.Payloads(), func(p string) bool { return strings.HasPrefix(p, "settled") })
	}
	publish(t, f.A, "suite/r", "1", true)
	if got := replay(); !slices.Equal(got, []string{"1"}) {
		t.Errorf("after set: %q", got)
	}
	publish(t, f.A, "suite/r", "2", true)
	if got := replay(); !slices.Equal(got, []string{"2"}) {
		t.Errorf("after replace: %q", got)
	}
	r, _ := subscribe(t, f.B, "suite/r")
	r.AwaitPayload(t, "2")
	publish(t, f.A, "suite/r", "", true)
	r.AwaitPayload(t, "") // subscribers hear of the clearing
	if got := replay(); len(got) != 0 {
		t.Errorf("after clear: %q", got)
	}
}

// replayThenLive: while one side counts up on a retained topic, a new subscriber never goes back.
func replayThenLive(t *testing.T, f Fixture) {
	const n = 200
	publish(t, f.A, "suite/count", "0", true)
	done := make(chan error, 1)
	go func() {
		for i := 1; i <= n; i++ {
			if err := f.A.Publish(context.Background(), mqtt.Message{Topic: "suite/count", Payload: []byte(strconv.Itoa(i)), Retain: true}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	var recorders []*Recorder
	for range 10 {
		r, _ := subscribe(t, f.B, "suite/count")
		recorders = append(recorders, r)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, r := range recorders {
		r.AwaitPayload(t, strconv.Itoa(n))
	}
	for i, r := range recorders[:1] { // the others share a connection with it on some carriers, and are replayed to as well
		last := -1
		for _, m := range r.All() {
			v, _ := strconv.Atoi(string(m.Payload))
			if v < last {
				t.Errorf("subscriber %d: %d after %d", i, v, last)
			}
			last = v
		}
	}
}

func retainFlag(t *testing.T, f Fixture) {
	publish(t, f.A, "suite/flag", "old", true)
	r, _ := subscribe(t, f.B, "suite/flag")
	if m := r.AwaitPayload(t, "old"); !m.Retain {
		t.Error("replayed message does not say Retain")
	}
	publish(t, f.A, "suite/flag", "new", true)
	if m := r.AwaitPayload(t, "new"); m.Retain {
		t.Error("live message says Retain")
	}
}

func properties(t *testing.T, f Fixture) {
	want := mqtt.Message{
		Topic: "suite/p", Payload: []byte{0, 1, 0xff}, Retain: true, ContentType: "application/x", ResponseTopic: "suite/answer",
		CorrelationData: []byte{0, 1, 2},
		Properties:      []mqtt.Property{{Key: "serial", Value: "7"}, {Key: "a", Value: "ü"}, {Key: "a", Value: "2"}},
	}
	same := func(how string, got mqtt.Message) {
		t.Helper()
		if got.ContentType != want.ContentType || got.ResponseTopic != want.ResponseTopic || !bytes.Equal(got.Payload, want.Payload) ||
			!bytes.Equal(got.CorrelationData, want.CorrelationData) || !slices.Equal(got.Properties, want.Properties) {
			t.Errorf("%s: got %+v", how, got)
		}
	}
	r, _ := subscribe(t, f.B, "suite/p")
	if err := f.A.Publish(ctx(t), want); err != nil {
		t.Fatal(err)
	}
	same("live", r.AwaitPayload(t, string(want.Payload)))
	late, _ := subscribe(t, f.B, "suite/p")
	same("replayed", late.AwaitPayload(t, string(want.Payload)))
}

func big(t *testing.T, f Fixture) {
	payload := strings.Repeat("0123456789abcdef", 48<<10/16)
	publish(t, f.A, "suite/big", payload, true)
	r, _ := subscribe(t, f.B, "suite/big")
	r.AwaitPayload(t, payload)
	err := f.A.Publish(ctx(t), mqtt.Message{Topic: "suite/big", Payload: []byte(payload + "x"), Retain: true})
	if !errors.Is(err, mqtt.ErrTooLarge) {
		t.Errorf("48 KiB + 1: got error %v, want ErrTooLarge", err)
	}
	publish(t, f.A, "suite/big", "still works", false)
	r.AwaitPayload(t, "still works")
}

func order(t *testing.T, f Fixture) {
	const n = 300
	r, _ := subscribe(t, f.B, "suite/o")
	for i := range n {
		publish(t, f.A, "suite/o", strconv.Itoa(i), false)
	}
	r.AwaitPayload(t, strconv.Itoa(n-1))
	for i, p := range r.Payloads() {
		if p != strconv.Itoa(i) {
			t.Fatalf("message %d is %q", i, p)
		}
	}
}

func wildcards(t *testing.T, f Fixture) {
	for _, topic := range []string{"suite/w/a/x", "suite/w/b/x", "suite/w/b/y", "suite/w"} {
		publish(t, f.A, topic, topic, true)
	}
	for filter, want := range map[string][]string{
		"suite/w/+/x": {"suite/w/a/x", "suite/w/b/x"},
		"suite/w/b/#": {"suite/w/b/x", "suite/w/b/y"},
		"suite/w/#":   {"suite/w", "suite/w/a/x", "suite/w/b/x", "suite/w/b/y"},
		"suite/w/+":   nil,
	} {
		r, stop := subscribe(t, f.B, filter, "suite/mark")
		settle(t, f.A, r, "suite/mark")
		var got []string
		for _, m := range r.All() {
			if m.Topic != "suite/mark" {
				got = append(got, m.Topic)
			}
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", filter, got, want)
		}
		stop()
	}
}

func stop(t *testing.T, f Fixture) {
	r, stop := subscribe(t, f.B, "suite/s")
	publish(t, f.A, "suite/s", "1", false)
	r.AwaitPayload(t, "1")
	stop()
	stop() // twice does no harm
	other, _ := subscribe(t, f.B, "suite/s")
	publish(t, f.A, "suite/s", "2", false)
	other.AwaitPayload(t, "2")
	if slices.Contains(r.Payloads(), "2") {
		t.Error("called after stop")
	}
}

// overlap: two subscriptions of one carrier that overlap each get every message, and stopping one leaves the other.
func overlap(t *testing.T, f Fixture) {
	one, stopOne := subscribe(t, f.B, "suite/v/a")
	all, _ := subscribe(t, f.B, "suite/v/+", "suite/v/a")
	publish(t, f.A, "suite/v/a", "1", false)
	one.AwaitPayload(t, "1")
	all.AwaitPayload(t, "1")
	stopOne()
	publish(t, f.A, "suite/v/a", "2", false)
	all.AwaitPayload(t, "2")
	if got := all.Payloads(); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("got %q", got)
	}
}

func handlerPublishes(t *testing.T, f Fixture) {
	answers, _ := subscribe(t, f.B, "suite/answers")
	c := ctx(t)
	returned := make(chan struct{}) // the last answer is there before its Publish has returned
	last := sync.OnceFunc(func() { close(returned) })
	stop, err := f.A.Subscribe(c, func(m mqtt.Message) {
		if err := f.A.Publish(c, mqtt.Message{Topic: "suite/answers", Payload: m.Payload, Retain: true}); err != nil {
			t.Errorf("publish in handler: %v", err)
		}
		if string(m.Payload) == "19" {
			last()
		}
	}, "suite/questions")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for i := range 20 {
		publish(t, f.B, "suite/questions", strconv.Itoa(i), false)
	}
	answers.AwaitPayload(t, "19")
	select {
	case <-returned:
	case <-c.Done():
		t.Error("publish in handler did not return")
	}
}

func concurrent(t *testing.T, f Fixture) {
	const writers, each = 8, 25
	r, _ := subscribe(t, f.B, "suite/c/+")
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				m := mqtt.Message{Topic: fmt.Sprintf("suite/c/%d", w), Payload: fmt.Appendf(nil, "%d-%d", w, i), Retain: true}
				if err := f.A.Publish(context.Background(), m); err != nil {
					t.Errorf("publish: %v", err)
				}
			}
		})
	}
	wg.Wait()
	r.Await(t, "the last of every writer", func(ms []mqtt.Message) bool {
		last := map[string]bool{}
		for _, m := range ms {
			if strings.HasSuffix(string(m.Payload), fmt.Sprintf("-%d", each-1)) {
				last[m.Topic] = true
			}
		}
		return len(last) == writers
	})
}

func invalid(t *testing.T, f Fixture) {
	for _, topic := range []string{"", "suite/+", "suite/#", "suite/\x00", "suite/\xff", "$SYS/x", strings.Repeat("a", 2000)} {
		if err := f.A.Publish(ctx(t), mqtt.Message{Topic: topic, Payload: []byte("x")}); !errors.Is(err, mqtt.ErrInvalidTopic) {
			t.Errorf("publish to %.20q: got error %v", topic, err)
		}
	}
	for _, filter := range []string{"", "suite/a+", "suite/#/a", "suite/a#", "suite/\x00", "$share/g/suite/a", "suite/\xff"} {
		if _, err := f.A.Subscribe(ctx(t), func(mqtt.Message) {}, filter); !errors.Is(err, mqtt.ErrInvalidTopic) {
			t.Errorf("subscribe to %q: got error %v", filter, err)
		}
	}
	if _, err := f.A.Subscribe(ctx(t), func(mqtt.Message) {}); err == nil {
		t.Error("subscribe without a filter: no error")
	}
}

func deny(t *testing.T, f Fixture) {
	if f.AllowsAll {
		t.Skip("nobody checks in process")
	}
	r, _ := subscribe(t, f.B, "suite/#")
	for _, retain := range []bool{false, true} {
		err := f.A.Publish(ctx(t), mqtt.Message{Topic: "other/x", Payload: []byte("x"), Retain: retain})
		if !errors.Is(err, mqtt.ErrNotAuthorized) {
			t.Errorf("publish retain=%v to a foreign topic: got error %v, want ErrNotAuthorized", retain, err)
		}
	}
	for _, filter := range []string{"other/x", "#", "+/x", "suit/#"} {
		if _, err := f.A.Subscribe(ctx(t), func(mqtt.Message) {}, filter); !errors.Is(err, mqtt.ErrNotAuthorized) {
			t.Errorf("subscribe to %q: got error %v, want ErrNotAuthorized", filter, err)
		}
	}
	publish(t, f.A, "suite/x", "still connected", false)
	r.AwaitPayload(t, "still connected")
}

func reconnect(t *testing.T, f Fixture) {
	if f.Cut == nil {
		t.Skip("no link to cut")
	}
	r, _ := subscribe(t, f.A, "suite/state", "suite/event")
	publish(t, f.B, "suite/state", "1", true)
	r.AwaitPayload(t, "1")
	f.Cut()
	publish(t, f.B, "suite/state", "2", true)
	f.Restore()
	if m := r.AwaitPayload(t, "2"); !m.Retain {
		t.Error("state published while away was not replayed")
	}
	publish(t, f.B, "suite/event", "live again", false)
	r.AwaitPayload(t, "live again")
}

func offline(t *testing.T, f Fixture) {
	if f.Cut == nil {
		t.Skip("no link to cut")
	}
	f.Cut()
	deadline := time.Now().Add(Patience)
	for {
		began := time.Now()
		err := f.A.Publish(ctx(t), mqtt.Message{Topic: "suite/x", Payload: []byte("x")})
		if errors.Is(err, mqtt.ErrOffline) {
			if d := time.Since(began); d > time.Second {
				t.Errorf("offline publish took %s", d)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("publish over a cut link: %v, want ErrOffline", err)
		}
	}
	r, _ := subscribe(t, f.A, "suite/later") // accepted, takes effect with the link
	publish(t, f.B, "suite/later", "kept", true)
	f.Restore()
	r.AwaitPayload(t, "kept")
}

// durable: what was acknowledged is there after the broker was killed.
func durable(t *testing.T, f Fixture) {
	if f.RestartBroker == nil {
		t.Skip("broker cannot be restarted here")
	}
	for i := range 20 {
		publish(t, f.A, fmt.Sprintf("suite/d/%d", i), strconv.Itoa(i), true)
	}
	publish(t, f.A, "suite/d/7", "", true)
	f = f.RestartBroker()
	r, _ := subscribe(t, f.B, "suite/d/+", "suite/mark")
	settle(t, f.A, r, "suite/mark")
	n := 0
	for _, m := range r.All() {
		if m.Topic == "suite/d/7" {
			t.Error("a cleared message came back")
		}
		if strings.HasPrefix(m.Topic, "suite/d/") {
			n++
		}
	}
	if n != 19 {
		t.Errorf("%d of 19 retained messages survived", n)
	}
}
