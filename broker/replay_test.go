package broker_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/broker"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/internal/mqtt/mqtttest"
)

const manyRetained = 20_000

// A monitoring client that subscribes to everything receives everything, over a real client, while the fleet goes on. Stock
// mochi drops more than half.
func TestReplayIsComplete(t *testing.T) {
	b := start(t, nil)
	fill(t, b, manyRetained)
	c := dial(t, plain(b), "root", nil)
	seen := map[string]bool{}
	done := make(chan struct{})
	var once sync.Once
	stop, err := c.Subscribe(context.Background(), func(m mqtt.Message) {
		if seen[m.Topic] = true; len(seen) == manyRetained {
			once.Do(func() { close(done) })
		}
	}, "shoal/#")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for i := range 500 { // live messages on top, on topics that are replayed as well
		mustPublish(t, b, fmt.Sprintf("shoal/v1/ws/cluster/c%d/reported", i*7), "live", true)
	}
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Fatalf("%d of %d retained messages", len(seen), manyRetained)
	}
}

// The same for a reader that is slower than we are.
func TestReplayToSlowReader(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.MaxQueueBytes = 64 << 10 })
	const n = 3000
	payload := strings.Repeat("x", 4<<10)
	for i := range n { // 12 MB: far more than the queue may hold of live messages
		mustPublish(t, b, fmt.Sprintf("suite/%d", i), payload, true)
	}
	c := rawClient(t, b, "a", nil)
	c.subscribe(0, "suite/#")
	for i := range n {
		if _, err := c.read(); err != nil {
			t.Fatalf("after %d of %d: %v", i, n, err)
		}
	}
	c.alive()
}

// mosquitto finds a tool of Debian's mosquitto-clients. Continuous integration must have it.
func mosquitto(t *testing.T, tool string) string {
	path, err := exec.LookPath(tool)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing: install mosquitto-clients", tool)
		}
		t.Skipf("SKIPPED: %s is not installed (apt-get install mosquitto-clients)", tool)
	}
	return path
}

func TestMosquittoReplay(t *testing.T) {
	sub := mosquitto(t, "mosquitto_sub")
	b := start(t, nil)
	fill(t, b, manyRetained)
	host, port, _ := net.SplitHostPort(b.Addr().String())
	out, err := exec.CommandContext(t.Context(), sub, "-V", "5", "-h", host, "-p", port, "-i", "root-sub", "-u", "root", "-P", "secret",
		"-q", "1", "-t", "shoal/#", "-C", strconv.Itoa(manyRetained), "-W", "60", "-F", "%r %t").CombinedOutput()
	if err != nil {
		t.Fatalf("mosquitto_sub: %v: %.500s", err, out)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		flag, topic, _ := strings.Cut(strings.TrimSpace(line), " ")
		if flag != "1" {
			t.Fatalf("not a retained message: %q", line)
		}
		seen[topic] = true
	}
	if len(seen) != manyRetained {
		t.Errorf("%d of %d retained messages", len(seen), manyRetained)
	}
}

// A client of other people, over TLS with a client certificate: user properties, content type, Will and QoS 1 both ways.
func TestMosquittoTLS(t *testing.T) {
	pub, sub := mosquitto(t, "mosquitto_pub"), mosquitto(t, "mosquitto_sub")
	b := start(t, func(o *broker.Options) { o.TLS = serverTLS(t) })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, newCA().pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(b.Addr().String())
	base := []string{"-V", "5", "-h", host, "-p", port, "--cafile", ca, "-P", "secret", "-q", "1"}
	r := &mqtttest.Recorder{}
	if _, err := b.Subscribe(t.Context(), r.Add, "suite/m"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), pub, append(base, "-u", "a", "-i", "a", "-t", "suite/m", "-m", "hello", "-r",
		"-D", "publish", "user-property", "serial", "7", "-D", "publish", "content-type", "text/plain")...).CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_pub: %v: %s", err, out)
	}
	if m := r.AwaitPayload(t, "hello"); m.ContentType != "text/plain" || len(m.Properties) != 1 || m.Properties[0] != (mqtt.Property{Key: "serial", Value: "7"}) {
		t.Errorf("got %+v", m)
	}
	out, err := exec.CommandContext(t.Context(), sub, append(base, "-u", "b", "-i", "b", "-t", "suite/#", "-C", "1", "-W", "20", "-F", "%t %C %P %p")...).CombinedOutput()
	if want := "suite/m text/plain serial:7 hello"; err != nil || strings.TrimSpace(string(out)) != want {
		t.Errorf("mosquitto_sub: %v: got %q, want %q", err, out, want)
	}
	out, err = exec.CommandContext(t.Context(), pub, append(base, "-u", "a", "-i", "a", "-t", "other/x", "-m", "x")...).CombinedOutput()
	if !strings.Contains(string(out), "ot authorized") && err == nil {
		t.Errorf("publish to a foreign topic: %v: %q", err, out)
	}
}

// childBroker is a broker in a process of its own, to be killed: SHOAL_TEST_BROKER is its store.
func childBroker() {
	b, err := broker.New(broker.Options{Listen: "127.0.0.1:0", Auth: users(), Store: os.Getenv("SHOAL_TEST_BROKER"), Log: zerolog.Nop(), PacketRate: 1e6, PacketBurst: 1e6})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(b.Addr())
	if err := b.Run(context.Background()); err != nil {
		os.Exit(1)
	}
}

// What was acknowledged over the network is there after kill -9, round after round.
func TestKillNine(t *testing.T) {
	store := filepath.Join(t.TempDir(), "retained")
	acked := map[string]string{}
	for round := range 4 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "SHOAL_TEST_BROKER="+store)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		addr, err := bufio.NewReader(out).ReadString('\n')
		if err != nil || strings.HasPrefix(addr, "error") {
			t.Fatalf("child: %v %s", err, addr)
		}
		c := client(t, "mqtt://"+strings.TrimSpace(addr), "a", nil)
		ctx, cancel := context.WithTimeout(context.Background(), mqtttest.Patience)
		if err := c.AwaitUp(ctx); err != nil {
			t.Fatal(err)
		}
		r := &mqtttest.Recorder{}
		if _, err := c.Subscribe(ctx, r.Add, "suite/#"); err != nil {
			t.Fatal(err)
		}
		r.Await(t, "what was acknowledged before the kill", func(ms []mqtt.Message) bool {
			got := map[string]string{}
			for _, m := range ms {
				got[m.Topic] = string(m.Payload)
			}
			for topic, want := range acked {
				if got[topic] < want { // one more may have been stored without its PUBACK
					return false
				}
			}
			return true
		})
		killed := make(chan struct{})
		time.AfterFunc(time.Duration(50+30*round)*time.Millisecond, func() {
			_ = child.Process.Kill()
			close(killed)
		})
		for i := 0; ; i++ {
			topic, payload := fmt.Sprintf("suite/%d", i%50), fmt.Sprintf("%d-%06d", round, i)
			if c.Publish(ctx, mqtt.Message{Topic: topic, Payload: []byte(payload), Retain: true}) != nil {
				break
			}
			acked[topic] = payload
		}
		<-killed
		_ = child.Wait()
		cancel()
	}
	if len(acked) < 10 {
		t.Errorf("only %d topics were acknowledged", len(acked))
	}
}

// A broker with clients that do not read, do not speak or are in the middle of something stops in time.
func TestCleanStop(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.Store = filepath.Join(t.TempDir(), "retained") })
	stalled := rawClient(t, b, "a", nil)
	stalled.subscribe(0, "suite/#")
	payload := strings.Repeat("x", 40<<10)
	for range 150 {
		mustPublish(t, b, "suite/x", payload, false)
	}
	rawDial(t, b) // silent
	_, _ = rawDial(t, b).Write([]byte("\x10\x20"))
	dial(t, plain(b), "b", nil)
	began := time.Now()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("stop took %s", d)
	}
	if err := b.Publish(context.Background(), mqtt.Message{Topic: "suite/x", Payload: []byte("x"), Retain: true}); err == nil {
		t.Error("publish after stop: no error")
	}
}
