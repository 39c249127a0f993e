package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	mochi "github.com/mochi-mqtt/server/v2/packets"

	"shoal.dev/shoal/broker"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/internal/mqtt/mqtttest"
)

// The tests in this file are the traps of mqtt.md, by number, and the rows without one.

func mustPublish(t testing.TB, c mqtt.Carrier, topic, payload string, retain bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), mqtttest.Patience)
	defer cancel()
	if err := c.Publish(ctx, mqtt.Message{Topic: topic, Payload: []byte(payload), Retain: retain}); err != nil {
		t.Fatal(err)
	}
}

// B1, B3: subscribers that ask for QoS 1 are granted QoS 0, get every message as QoS 0, and a small Receive Maximum holds
// nothing back. Stock mochi stops after twice the Receive Maximum, or for good.
func TestB1B3NothingAboveQoS0Leaves(t *testing.T) {
	b := start(t, nil)
	const readers, messages = 50, 4000
	var wg sync.WaitGroup
	for i := range readers {
		c := rawClient(t, b, fmt.Sprintf("user-%d", i), func(p *packets.Connect) {
			p.Username = "user"
			max := uint16(10)
			p.Properties.ReceiveMaximum = &max
		})
		if ack := c.subscribe(1, "suite/x"); ack.Reasons[0] != 0 {
			t.Fatalf("granted QoS %d", ack.Reasons[0])
		}
		wg.Go(func() {
			for n := range messages {
				p, err := c.read()
				m, ok := p.(*packets.Publish)
				if err != nil || !ok || m.QoS != 0 || string(m.Payload) != strconv.Itoa(n) {
					t.Errorf("reader %d message %d: %v %v", i, n, p, err)
					return
				}
			}
		})
	}
	for n := range messages {
		mustPublish(t, b, "suite/x", strconv.Itoa(n), false)
	}
	wg.Wait()
}

// B2: a reader that stops reading costs nobody anything, and is cut off.
func TestB2StalledReader(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.WriteTimeout, o.MaxQueueBytes = time.Hour, 1<<20 })
	stalled := rawClient(t, b, "a", nil)
	stalled.subscribe(1, "suite/#")
	good := &mqtttest.Recorder{}
	c := dial(t, plain(b), "b", nil)
	if _, err := c.Subscribe(context.Background(), good.Add, "suite/x"); err != nil {
		t.Fatal(err)
	}
	payload := strings.Repeat("x", 16<<10)
	var slowest time.Duration
	for range 2000 { // 32 MB, more than socket buffers and queue hold
		began := time.Now()
		mustPublish(t, b, "suite/stall", payload, false)
		slowest = max(slowest, time.Since(began))
	}
	if slowest > 5*time.Second { // B2 stands still until the socket dies
		t.Errorf("slowest publish took %s", slowest)
	}
	mustPublish(t, c, "suite/x", "done", false)
	good.AwaitPayload(t, "done")
	eventually(t, "the stalled reader to be cut off", func() bool { return b.Connections() == 1 })
	stalled.closed()
}

// B2, the other half: a reader that takes nothing at all is cut off by time even if little waits for it.
func TestB2WriteTimeout(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.WriteTimeout, o.MaxQueueBytes = 300*time.Millisecond, 1<<30 })
	stalled := rawClient(t, b, "a", nil)
	stalled.subscribe(0, "suite/#")
	payload := strings.Repeat("x", 40<<10)
	for range 400 { // 16 MB: more than the sockets hold
		mustPublish(t, b, "suite/stall", payload, false)
	}
	eventually(t, "the stalled reader to be cut off", func() bool { return b.Connections() == 0 })
}

// A slow reader of states gets the newest of each topic instead of being cut off.
func TestSlowReaderGetsNewestState(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.MaxQueueBytes = 4 << 20 })
	c := rawClient(t, b, "a", nil)
	c.subscribe(0, "suite/#")
	payload := strings.Repeat("x", 16<<10)
	const rounds, topics = 40, 50 // 32 MB in all, 0.8 MB of newest state
	for r := range rounds {
		for i := range topics {
			mustPublish(t, b, fmt.Sprintf("suite/%d", i), fmt.Sprintf("%d %s", r, payload), true)
		}
	}
	newest := map[string]bool{}
	for len(newest) < topics {
		m, ok := c.next().(*packets.Publish)
		if !ok {
			t.Fatal("cut off")
		}
		if bytes.HasPrefix(m.Payload, []byte(strconv.Itoa(rounds-1)+" ")) {
			newest[m.Topic] = true
		}
	}
	c.alive()
}

// B4, B11: nothing is kept for a client that is away, and the broker says so.
func TestB4NoSessions(t *testing.T) {
	b := start(t, nil)
	keep := func(p *packets.Connect) {
		p.CleanStart = false
		hour := uint32(3600)
		p.Properties.SessionExpiryInterval = &hour
	}
	c, ack := rawConnect(t, b, "a", keep)
	if e := ack.Properties.SessionExpiryInterval; e == nil || *e != 0 {
		t.Error("CONNACK does not say that the session ends with the connection")
	}
	c.subscribe(1, "suite/x")
	_ = c.Close()
	eventually(t, "the client to be gone", func() bool { return b.Connections() == 0 })
	mustPublish(t, b, "suite/x", "missed", false)
	c, ack = rawConnect(t, b, "a", keep)
	if ack.SessionPresent {
		t.Error("session present")
	}
	c.alive() // would show the message
}

// B5: however connections take each other over, the last word on a presence topic is the birth of the newest connection.
func TestB5TakeOverAndWill(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.Store = filepath.Join(t.TempDir(), "retained") })
	presence := &mqtttest.Recorder{}
	if _, err := b.Subscribe(context.Background(), presence.Add, "suite/presence"); err != nil {
		t.Fatal(err)
	}
	const n = 200
	var last *raw
	for i := range n {
		c := rawClient(t, b, "a", func(p *packets.Connect) {
			p.WillFlag, p.WillTopic, p.WillMessage, p.WillRetain = true, "suite/presence", fmt.Appendf(nil, "offline %d", i), true
			p.WillProperties = &packets.Properties{}
		})
		c.send(publishPacket("suite/presence", fmt.Sprintf("online %d", i), 1, func(p *packets.Publish) { p.Retain = true }))
		if _, ok := c.next().(*packets.Puback); !ok {
			t.Fatal("no PUBACK")
		}
		if last != nil && last.closed() != packets.DisconnectSessionTakenOver {
			t.Error("the older connection was not told")
		}
		last = c
	}
	late := &mqtttest.Recorder{}
	if _, err := b.Subscribe(context.Background(), late.Add, "suite/presence"); err != nil {
		t.Fatal(err)
	}
	if got, want := late.Payloads()[0], fmt.Sprintf("online %d", n-1); got != want {
		t.Errorf("presence is %q, want %q", got, want)
	}
	// Every message came in order: birth i, Will i, birth i+1.
	for i, p := range presence.Payloads() {
		want := fmt.Sprintf("online %d", i/2)
		if i%2 == 1 {
			want = fmt.Sprintf("offline %d", i/2)
		}
		if p != want {
			t.Fatalf("message %d is %q, want %q", i, p, want)
		}
	}
	last.alive()
}

// Take-overs that race leave exactly one connection.
func TestTakeOverRace(t *testing.T) {
	b := start(t, nil)
	var wg sync.WaitGroup
	for range 20 {
		c := rawDial(t, b)
		wg.Go(func() { c.send(connectPacket("a", nil)) })
	}
	wg.Wait()
	eventually(t, "one connection to be left", func() bool { return b.Connections() == 1 })
}

// B7: someone unknown can make us neither wait nor allocate.
func TestB7BeforeConnect(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.ConnectTimeout = 300 * time.Millisecond })
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 8 {
		c := rawDial(t, b)
		if _, err := c.Write([]byte{0x10, 0xff, 0xff, 0xff, 0x7f}); err != nil { // CONNECT of 256 MB
			t.Fatal(err)
		}
		c.closed()
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
		t.Errorf("8 connections of 5 bytes allocated %d bytes", grown)
	}
	for _, first := range []string{"", "\x10", "\x10\x20\x00\x04MQ"} { // silence, then slower silence
		c := rawDial(t, b)
		began := time.Now()
		_, _ = c.Write([]byte(first))
		c.closed()
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("after %q the connection stayed open for %s", first, d)
		}
	}
	c := rawDial(t, b)
	c.send(publishPacket("suite/x", "no CONNECT before", 0, nil))
	c.closed()
}

// B7 with TLS: a handshake that never comes.
func TestB7HalfOpenTLS(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.ConnectTimeout, o.TLS = 300*time.Millisecond, serverTLS(t) })
	for _, first := range []string{"", "\x16\x03\x01", "GET / HTTP/1.1\r\n"} {
		c := rawDial(t, b)
		_, _ = c.Write([]byte(first))
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		buf := make([]byte, 64)
		var err error
		for err == nil {
			_, err = c.Read(buf)
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			t.Errorf("after %q the connection stays open", first)
		}
	}
}

// B8: a permission is exactly what it says, and there is none by default.
func TestB8ExactPermissions(t *testing.T) {
	auth := users()
	auth.Users["exact"] = mqtttest.User{Password: "secret", Allow: []string{"a/b"}}
	b := start(t, func(o *broker.Options) { o.Auth = auth })
	c := rawClient(t, b, "exact", nil)
	for filter, want := range map[string]byte{"a/b": 0, "a/b/c": 0x87, "a": 0x87, "a/+": 0x87, "a/b/#": 0x87, "#": 0x87} {
		if got := c.subscribe(0, filter).Reasons[0]; got != want {
			t.Errorf("subscribe %s: 0x%02x, want 0x%02x", filter, got, want)
		}
	}
	for topic, want := range map[string]byte{"a/b": 0, "a/b/c": 0x87, "a": 0x87} {
		c.send(publishPacket(topic, "x", 1, nil))
		for {
			if ack, ok := c.next().(*packets.Puback); ok {
				if ack.ReasonCode != want {
					t.Errorf("publish %s: 0x%02x, want 0x%02x", topic, ack.ReasonCode, want)
				}
				break
			}
		}
	}
	nobody := rawClient(t, b, "none", nil)
	if got := nobody.subscribe(0, "a/b").Reasons[0]; got != 0x87 {
		t.Errorf("a user without permissions: 0x%02x", got)
	}
}

// No anonymous access, no wrong password, and the client learns no more than "not authorized".
func TestAuthentication(t *testing.T) {
	b := start(t, nil)
	for name, change := range map[string]func(*packets.Connect){
		"anonymous":       func(p *packets.Connect) { p.UsernameFlag, p.PasswordFlag = false, false },
		"unknown":         func(p *packets.Connect) { p.Username = "nobody" },
		"wrong password":  func(p *packets.Connect) { p.Password = []byte("guess") },
		"no password":     func(p *packets.Connect) { p.PasswordFlag = false },
		"other client id": func(p *packets.Connect) { p.ClientID = "b" },
	} {
		c, ack := rawConnect(t, b, "a", change)
		if ack.ReasonCode != packets.ConnackNotAuthorized || strings.Contains(ack.Properties.ReasonString, "password") {
			t.Errorf("%s: CONNACK 0x%02x %q", name, ack.ReasonCode, ack.Properties.ReasonString)
		}
		c.closed()
	}
	if n := b.Connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// MQTT 3.1.1 is refused in its own words.
func TestOldProtocol(t *testing.T) {
	b := start(t, nil)
	c := rawDial(t, b)
	_, _ = c.Write([]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a"))
	buf := make([]byte, 4)
	_ = c.SetReadDeadline(time.Now().Add(mqtttest.Patience))
	if n, err := c.Read(buf); err != nil || n != 4 || buf[0] != 0x20 || buf[3] != 1 {
		t.Errorf("got % x, %v; want CONNACK with return code 1", buf[:n], err)
	}
}

// B9, B11: filters that MQTT does not allow, and shared subscriptions, are refused; the connection goes on.
func TestB9InvalidFilters(t *testing.T) {
	auth := users()
	b := start(t, func(o *broker.Options) { o.Auth = auth })
	c := rawClient(t, b, "root", nil)
	for _, f := range []string{"a+/b", "a#", "a/#/b", "+a", "$share//x", "$share/g/x", "$SHARE/g/x", "$share/g", "$SYS/#", ""} {
		if got := c.subscribe(0, f, "fine/x"); got.Reasons[0] != 0x8f || got.Reasons[1] != 0 {
			t.Errorf("%q: % x, want 8f 00", f, got.Reasons)
		}
	}
	for _, f := range []string{"a\x00b", "a\xffb", "a\xed\xa0\x80b"} { // malformed: MQTT 5 §1.5.4
		c := rawClient(t, b, "root", nil)
		p := packets.NewControlPacket(packets.SUBSCRIBE).Content.(*packets.Subscribe)
		p.PacketID, p.Subscriptions = 1, []packets.SubOptions{{Topic: f}}
		c.send(p)
		if got, err := c.read(); err == nil {
			if ack, ok := got.(*packets.Suback); ok && ack.Reasons[0] < 0x80 {
				t.Errorf("%q granted", f)
			}
		}
	}
}

// Topic names with wildcards, NUL or bad UTF-8, and topics of the broker, are no topics.
func TestInvalidTopics(t *testing.T) {
	b := start(t, nil)
	all := &mqtttest.Recorder{}
	if _, err := b.Subscribe(context.Background(), all.Add, "#"); err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{"a/+", "a/#", "#", "a\x00b", "a\xffb", "$SYS/x", "$share/g/x", ""} {
		for qos := range byte(2) {
			c := rawClient(t, b, "root", nil)
			c.send(publishPacket(topic, "x", qos, func(p *packets.Publish) { p.Retain = true }))
			if code := c.closed(); code != 0 && code < 0x80 {
				t.Errorf("%q: closed with 0x%02x", topic, code)
			}
		}
	}
	if got := all.All(); len(got) != 0 {
		t.Errorf("delivered %v", got)
	}
}

// B10: acknowledgements do not echo user properties.
func TestB10NoEcho(t *testing.T) {
	b := start(t, nil)
	c := rawClient(t, b, "a", nil)
	user := []packets.User{{Key: "secret", Value: "x"}}
	c.send(publishPacket("suite/x", "x", 1, func(p *packets.Publish) { p.Properties.User = user }))
	if ack := c.next().(*packets.Puback); len(ack.Properties.User) > 0 {
		t.Error("PUBACK echoes user properties")
	}
	sub := packets.NewControlPacket(packets.SUBSCRIBE).Content.(*packets.Subscribe)
	sub.PacketID, sub.Subscriptions, sub.Properties.User = 1, []packets.SubOptions{{Topic: "suite/x"}}, user
	c.send(sub)
	if ack := c.next().(*packets.Suback); len(ack.Properties.User) > 0 {
		t.Error("SUBACK echoes user properties")
	}
	unsub := packets.NewControlPacket(packets.UNSUBSCRIBE).Content.(*packets.Unsubscribe)
	unsub.PacketID, unsub.Topics, unsub.Properties.User = 1, []string{"suite/x"}, user
	c.send(unsub)
	if ack := c.next().(*packets.Unsuback); len(ack.Properties.User) > 0 {
		t.Error("UNSUBACK echoes user properties")
	}
}

// B12: a client id in use cannot be taken by another identity, even if the Authenticator would let it.
func TestB12ClientIDOfAnother(t *testing.T) {
	auth := &mqtttest.Auth{Users: map[string]mqtttest.User{
		"a": {Password: "secret"}, "ab": {Password: "secret"}, // "ab-1" starts with both names
	}}
	b := start(t, func(o *broker.Options) { o.Auth = auth })
	first := rawClient(t, b, "ab", func(p *packets.Connect) { p.ClientID = "ab-1" })
	_, ack := rawConnect(t, b, "a", func(p *packets.Connect) { p.ClientID = "ab-1" })
	if ack.ReasonCode != packets.ConnackInvalidClientID {
		t.Errorf("CONNACK 0x%02x, want 0x85", ack.ReasonCode)
	}
	first.alive()
}

// Wills are checked at CONNECT like any publish, and keep their properties.
func TestWill(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.MaxPayload = 1 << 10 })
	will := func(topic, payload string, qos byte) func(*packets.Connect) {
		return func(p *packets.Connect) {
			p.WillFlag, p.WillTopic, p.WillMessage, p.WillQOS, p.WillRetain = true, topic, []byte(payload), qos, true
			p.WillProperties = &packets.Properties{}
		}
	}
	for name, c := range map[string]struct {
		topic, payload string
		qos            byte
		want           byte
	}{
		"foreign topic": {"other/x", "x", 0, 0x87},
		"wildcard":      {"suite/+", "x", 0, 0x90},
		"big":           {"suite/x", strings.Repeat("x", 2<<10), 0, 0x95},
		"QoS 2":         {"suite/x", "x", 2, 0x9b},
	} {
		if _, ack := rawConnect(t, b, "a", will(c.topic, c.payload, c.qos)); ack.ReasonCode != c.want {
			t.Errorf("%s: CONNACK 0x%02x, want 0x%02x", name, ack.ReasonCode, c.want)
		}
	}
	r := &mqtttest.Recorder{}
	if _, err := b.Subscribe(context.Background(), r.Add, "#"); err != nil {
		t.Fatal(err)
	}
	good := rawClient(t, b, "a", will("suite/w", "said goodbye", 1))
	good.send(&packets.Disconnect{Properties: &packets.Properties{}})
	good.closed()
	asked := rawClient(t, b, "a", will("suite/w", "asked for it", 1))
	asked.send(&packets.Disconnect{ReasonCode: packets.DisconnectDisconnectWithWillMessage, Properties: &packets.Properties{}})
	r.AwaitPayload(t, "asked for it")
	lost := rawDial(t, b)
	lost.send(richWill(t, "suite/w", "lost"))
	lost.next()
	_ = lost.Close()
	m := r.AwaitPayload(t, "lost")
	if m.ContentType != "application/json" || len(m.Properties) != 1 || m.Properties[0].Value != "v" {
		t.Errorf("will lost its properties: %+v", m)
	}
	if got := r.Payloads(); got[0] != "asked for it" {
		t.Errorf("got %q: a normal disconnect has no Will", got)
	}
}

// richWill is a CONNECT whose Will has properties. paho's packets package would leave the content type out.
func richWill(t *testing.T, topic, payload string) *bytes.Buffer {
	pk := mochi.Packet{
		FixedHeader: mochi.FixedHeader{Type: mochi.Connect}, ProtocolVersion: 5,
		Connect: mochi.ConnectParams{
			ProtocolName: []byte("MQTT"), ClientIdentifier: "a", Clean: true, Keepalive: 60,
			UsernameFlag: true, Username: []byte("a"), PasswordFlag: true, Password: []byte("secret"),
			WillFlag: true, WillTopic: topic, WillPayload: []byte(payload), WillQos: 1, WillRetain: true,
			WillProperties: mochi.Properties{ContentType: "application/json", User: []mochi.UserProperty{{Key: "k", Val: "v"}}},
		},
	}
	var buf bytes.Buffer
	if err := pk.ConnectEncode(&buf); err != nil {
		t.Fatal(err)
	}
	return &buf
}

// A silent client is missed after one and a half keep-alives, whatever keep-alive it asked for.
func TestKeepAlive(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.MinKeepAlive, o.MaxKeepAlive = time.Second, 2*time.Second })
	for asked, want := range map[uint16]uint16{0: 2, 1: 1, 2: 2, 60: 2, 65535: 2} {
		_, ack := rawConnect(t, b, "a", func(p *packets.Connect) { p.KeepAlive = asked })
		got := asked
		if ack.Properties.ServerKeepAlive != nil {
			got = *ack.Properties.ServerKeepAlive
		}
		if got != want {
			t.Errorf("asked for %d: %d, want %d", asked, got, want)
		}
	}
	r := &mqtttest.Recorder{}
	if _, err := b.Subscribe(context.Background(), r.Add, "suite/w"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c := rawClient(t, b, "a", func(p *packets.Connect) {
		p.KeepAlive, p.WillFlag, p.WillTopic, p.WillMessage = 1, true, "suite/w", []byte("offline")
		p.WillProperties = &packets.Properties{}
	})
	r.AwaitPayload(t, "offline")
	if d := time.Since(began); d < 1300*time.Millisecond || d > 2500*time.Millisecond {
		t.Errorf("missed after %s, want 1.5 s", d)
	}
	c.closed()
}

// What we do not offer ends the connection with the reason, and is not delivered.
func TestUnsupported(t *testing.T) {
	b := start(t, nil)
	all := &mqtttest.Recorder{}
	if _, err := b.Subscribe(context.Background(), all.Add, "#"); err != nil {
		t.Fatal(err)
	}
	alias := uint16(1)
	id := 5
	for name, c := range map[string]struct {
		p    packets.Packet
		want byte
	}{
		"QoS 2":                   {publishPacket("suite/x", "x", 2, nil), 0x9b},
		"topic alias":             {publishPacket("suite/x", "x", 0, func(p *packets.Publish) { p.Properties.TopicAlias = &alias }), 0x94},
		"alias without topic":     {publishPacket("", "x", 0, func(p *packets.Publish) { p.Properties.TopicAlias = &alias }), 0x94},
		"packet too large":        {publishPacket("suite/x", strings.Repeat("x", 129<<10), 0, nil), 0},
		"PUBACK for nothing":      {&packets.Puback{PacketID: 1, Properties: &packets.Properties{}}, 0x82},
		"PUBREL for nothing":      {&packets.Pubrel{PacketID: 1, Properties: &packets.Properties{}}, 0x82},
		"PUBCOMP for nothing":     {&packets.Pubcomp{PacketID: 1, Properties: &packets.Properties{}}, 0x82},
		"second CONNECT":          {connectPacket("a", nil), 0x82},
		"subscription identifier": {&packets.Subscribe{PacketID: 1, Properties: &packets.Properties{SubscriptionIdentifier: &id}, Subscriptions: []packets.SubOptions{{Topic: "suite/x"}}}, 0xa1},
	} {
		conn := rawClient(t, b, "a", nil)
		_, _ = c.p.WriteTo(conn) // a large one may be cut off under way
		if got := conn.closed(); got != c.want && c.want != 0 {
			t.Errorf("%s: closed with 0x%02x, want 0x%02x", name, got, c.want)
		}
	}
	if got := all.All(); len(got) != 0 {
		t.Errorf("delivered %d messages", len(got))
	}
}

// Limits of size and number are answered with a reason code, for QoS 0 with silence, and never delivered.
func TestLimits(t *testing.T) {
	b := start(t, func(o *broker.Options) {
		o.MaxRetained, o.MaxRetainedBytes, o.MaxSubscriptions = 10, 4<<10, 5
	})
	c := rawClient(t, b, "a", nil)
	put := func(topic string, size int, retain bool) byte {
		t.Helper()
		c.send(publishPacket(topic, strings.Repeat("x", size), 1, func(p *packets.Publish) { p.Retain = retain }))
		return c.next().(*packets.Puback).ReasonCode
	}
	if got := put("suite/big", 48<<10+1, false); got != 0x95 {
		t.Errorf("payload of 48 KiB + 1: 0x%02x", got)
	}
	if got := put("suite/bytes", 5<<10, true); got != 0x97 {
		t.Errorf("retained bytes: 0x%02x", got)
	}
	for i := range 10 {
		if got := put(fmt.Sprintf("suite/%d", i), 10, true); got != 0 {
			t.Errorf("retained %d: 0x%02x", i, got)
		}
	}
	if got := put("suite/10", 10, true); got != 0x97 {
		t.Errorf("one retained topic too many: 0x%02x", got)
	}
	if got := put("suite/3", 20, true); got != 0 {
		t.Errorf("replacing at the limit: 0x%02x", got)
	}
	if got := put("suite/3", 0, true); got != 0 {
		t.Errorf("clearing at the limit: 0x%02x", got)
	}
	if got := put("suite/10", 10, true); got != 0 {
		t.Errorf("after clearing: 0x%02x", got)
	}
	if err := b.Publish(context.Background(), mqtt.Message{Topic: "suite/11", Payload: []byte("x"), Retain: true}); !errors.Is(err, broker.ErrQuota) {
		t.Errorf("in process: %v", err)
	}
	if got := c.subscribe(0, "suite/1", "suite/2", "suite/3", "suite/4", "suite/5", "suite/6").Reasons; got[4] != 0 || got[5] != 0x8f {
		t.Errorf("subscriptions: % x", got)
	}
}

// Connections: rates and numbers are bounded, and who is inside stays inside.
func TestConnectionLimits(t *testing.T) {
	t.Run("source", func(t *testing.T) {
		b := start(t, func(o *broker.Options) { o.SourceRate, o.SourceBurst = 0.001, 3 })
		inside := rawClient(t, b, "a", nil)
		for range 10 {
			c := rawDial(t, b)
			if _, err := connectPacket("b", nil).WriteTo(c); err != nil {
				continue
			}
		}
		if n := b.Connections(); n > 3 {
			t.Errorf("%d connections", n)
		}
		inside.alive()
	})
	t.Run("number", func(t *testing.T) {
		b := start(t, func(o *broker.Options) { o.MaxConnections = 2 })
		one, two := rawClient(t, b, "a", nil), rawClient(t, b, "b", nil)
		rawDial(t, b).closed()
		_ = two.Close()
		eventually(t, "room", func() bool { return b.Connections() == 1 })
		rawClient(t, b, "b", nil).alive()
		one.alive()
	})
	t.Run("handshakes", func(t *testing.T) {
		b := start(t, func(o *broker.Options) { o.SourceBurst, o.ConnectTimeout = 5, time.Hour })
		for range 5 {
			rawDial(t, b) // says nothing
		}
		eventually(t, "the sixth to be refused", func() bool {
			c := rawDial(t, b)
			_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			_, err := c.Read(make([]byte, 1))
			var ne net.Error
			return err != nil && !(errors.As(err, &ne) && ne.Timeout())
		})
	})
}

// A client that publishes at full speed is slowed down, not cut off, and the others keep their latency.
func TestFloodIsPaced(t *testing.T) {
	b := start(t, func(o *broker.Options) { o.PacketRate, o.PacketBurst = 100, 10 })
	flood := rawClient(t, b, "a", nil)
	go func() {
		p := publishPacket("suite/flood", "x", 0, nil)
		for {
			if _, err := p.WriteTo(flood); err != nil {
				return
			}
		}
	}()
	var n int
	r := &mqtttest.Recorder{}
	if _, err := b.Subscribe(context.Background(), func(m mqtt.Message) { r.Add(m) }, "suite/flood"); err != nil {
		t.Fatal(err)
	}
	c := dial(t, plain(b), "b", nil)
	began := time.Now()
	for time.Since(began) < 500*time.Millisecond {
		ping := time.Now()
		if err := c.Publish(context.Background(), mqtt.Message{Topic: "suite/x", Payload: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(ping); d > 300*time.Millisecond {
			t.Errorf("a publish beside the flood took %s", d)
		}
		n++
	}
	if got := len(r.All()); got > 200 {
		t.Errorf("the flood got %d messages through in %s", got, time.Since(began))
	}
	_ = flood.Close()
}

// Revocation ends the connection at once and only the one that is meant.
func TestDisconnect(t *testing.T) {
	auth := users()
	b := start(t, func(o *broker.Options) { o.Auth = auth })
	a, other := rawClient(t, b, "a", nil), rawClient(t, b, "b", nil)
	auth.Remove("a")
	if n := b.Disconnect(func(id string) bool { return id == "a" }); n != 1 {
		t.Errorf("disconnected %d", n)
	}
	if code := a.closed(); code != packets.DisconnectAdministrativeAction {
		t.Errorf("closed with 0x%02x", code)
	}
	if _, ack := rawConnect(t, b, "a", nil); ack.ReasonCode != packets.ConnackNotAuthorized {
		t.Errorf("back with 0x%02x", ack.ReasonCode)
	}
	other.alive()
}

func fill(t testing.TB, b *broker.Broker, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := w; i < n; i += 32 {
				err := b.Publish(context.Background(), mqtt.Message{
					Topic: fmt.Sprintf("shoal/v1/ws/cluster/c%d/reported", i), Retain: true,
					Payload: fmt.Appendf(nil, `{"cluster":"c%d","serial":%d}`, i, i), ContentType: "application/json",
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
