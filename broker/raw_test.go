package broker_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"shoal.dev/shoal/broker"
	"shoal.dev/shoal/internal/mqtt/mqtttest"
)

// raw is a client that does exactly what a test says, rules or no rules.
type raw struct {
	net.Conn
	in *bufio.Reader
	t  testing.TB
}

func rawDial(t testing.TB, b *broker.Broker) *raw {
	t.Helper()
	c, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &raw{c, bufio.NewReaderSize(c, 64<<10), t}
}

func connectPacket(user string, change func(*packets.Connect)) *packets.Connect {
	p := packets.NewControlPacket(packets.CONNECT).Content.(*packets.Connect)
	p.ClientID, p.Username, p.UsernameFlag, p.Password, p.PasswordFlag = user, user, true, []byte("secret"), true
	p.CleanStart, p.KeepAlive = true, 60
	if change != nil {
		change(p)
	}
	return p
}

// rawClient connects as user and expects to be accepted.
func rawClient(t testing.TB, b *broker.Broker, user string, change func(*packets.Connect)) *raw {
	t.Helper()
	c, ack := rawConnect(t, b, user, change)
	if ack.ReasonCode != 0 {
		t.Fatalf("CONNACK 0x%02x", ack.ReasonCode)
	}
	return c
}

func rawConnect(t testing.TB, b *broker.Broker, user string, change func(*packets.Connect)) (*raw, *packets.Connack) {
	t.Helper()
	c := rawDial(t, b)
	c.send(connectPacket(user, change))
	ack, ok := c.next().(*packets.Connack)
	if !ok {
		t.Fatal("no CONNACK")
	}
	return c, ack
}

func (c *raw) send(p io.WriterTo) {
	c.t.Helper()
	if _, err := p.WriteTo(c); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

func (c *raw) read() (packets.Packet, error) {
	_ = c.SetReadDeadline(time.Now().Add(mqtttest.Patience))
	p, err := packets.ReadPacket(c.in)
	if err != nil {
		return nil, err
	}
	return p.Content, nil
}

func (c *raw) next() packets.Packet {
	c.t.Helper()
	p, err := c.read()
	if err != nil {
		c.t.Fatalf("read packet: %v", err)
	}
	return p
}

func (c *raw) subscribe(qos byte, filters ...string) *packets.Suback {
	c.t.Helper()
	p := packets.NewControlPacket(packets.SUBSCRIBE).Content.(*packets.Subscribe)
	p.PacketID = 1
	for _, f := range filters {
		p.Subscriptions = append(p.Subscriptions, packets.SubOptions{Topic: f, QoS: qos})
	}
	c.send(p)
	ack, ok := c.next().(*packets.Suback)
	if !ok {
		c.t.Fatal("no SUBACK")
	}
	return ack
}

func publishPacket(topic, payload string, qos byte, change func(*packets.Publish)) *packets.Publish {
	p := packets.NewControlPacket(packets.PUBLISH).Content.(*packets.Publish)
	p.Topic, p.Payload, p.QoS = topic, []byte(payload), qos
	if qos > 0 {
		p.PacketID = 7
	}
	if change != nil {
		change(p)
	}
	return p
}

// closed reads until the broker closes the connection and returns the reason code of its DISCONNECT, 0 without one.
func (c *raw) closed() (code byte) {
	c.t.Helper()
	for {
		p, err := c.read()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				c.t.Fatal("connection still open")
			}
			return code
		}
		if d, ok := p.(*packets.Disconnect); ok {
			code = d.ReasonCode
		}
	}
}

// alive proves that the connection still works.
func (c *raw) alive() {
	c.t.Helper()
	c.send(&packets.Pingreq{})
	for {
		if _, ok := c.next().(*packets.Pingresp); ok {
			return
		}
	}
}
