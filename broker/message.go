package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"shoal.dev/shoal/internal/mqtt"
)

// message is one PUBLISH as it goes to subscribers: QoS 0, retain flag clear, every forwarded property. It is encoded once,
// shared by the retained store, the log on disk and every queue, and never changed.
type message struct {
	topic   string
	wire    []byte
	payload int  // offset in wire
	retain  bool // the newest state of its topic, rather than an event
	// expires is the unix second after which the message is not delivered any more, 0 for never. The wire form does not
	// hold it: the interval that is left depends on when it is sent.
	expires int64
}

const retainFlag = 0x01 // MQTT 5 §3.3.1

func (m *message) clears() bool { return m.payload == len(m.wire) }

func (m *message) size() int { return len(m.wire) + len(m.topic) }

// encode builds the wire form. Topic aliases and subscription identifiers belong to one connection and are left out.
func encode(topic string, payload []byte, retain bool, p packets.Properties, now time.Time) (*message, error) {
	var expires int64
	if p.MessageExpiryInterval > 0 {
		expires = now.Unix() + int64(p.MessageExpiryInterval)
	}
	pk := packets.Packet{
		ProtocolVersion: 5,
		FixedHeader:     packets.FixedHeader{Type: packets.Publish},
		TopicName:       topic,
		Payload:         payload,
		Properties: packets.Properties{
			PayloadFormat: p.PayloadFormat, PayloadFormatFlag: p.PayloadFormatFlag,
			ContentType: p.ContentType, ResponseTopic: p.ResponseTopic, CorrelationData: p.CorrelationData, User: p.User,
		},
		Mods: packets.Mods{AllowResponseInfo: true},
	}
	var buf bytes.Buffer
	buf.Grow(len(payload) + len(topic) + 64)
	if err := pk.PublishEncode(&buf); err != nil {
		return nil, err
	}
	return &message{
		topic: strings.Clone(topic), wire: bytes.Clone(buf.Bytes()), payload: buf.Len() - len(payload),
		retain: retain, expires: expires,
	}, nil
}

func encodeMessage(m mqtt.Message, now time.Time) (*message, error) {
	p := packets.Properties{ContentType: m.ContentType, ResponseTopic: m.ResponseTopic, CorrelationData: m.CorrelationData}
	for _, up := range m.Properties {
		p.User = append(p.User, packets.UserProperty{Key: up.Key, Val: up.Value})
	}
	return encode(m.Topic, m.Payload, m.Retain, p, now)
}

var errWire = errors.New("not a PUBLISH packet")

// parse is the inverse of the wire form; it keeps wire.
func parse(wire []byte, expires int64) (*message, error) {
	if len(wire) < 2 || wire[0] != packets.Publish<<4 {
		return nil, errWire
	}
	length, n := binary.Uvarint(wire[1:])
	if n <= 0 || int(length) != len(wire)-1-n {
		return nil, errWire
	}
	at := 1 + n
	if len(wire) < at+2 {
		return nil, errWire
	}
	topic := int(binary.BigEndian.Uint16(wire[at:]))
	at += 2 + topic
	if len(wire) < at {
		return nil, errWire
	}
	props, n := binary.Uvarint(wire[at:])
	if n <= 0 || props > uint64(len(wire)-at-n) {
		return nil, errWire
	}
	return &message{topic: string(wire[at-topic : at]), wire: wire, payload: at + n + int(props), expires: expires}, nil
}

// packet decodes the wire form.
func (m *message) packet() (packets.Packet, error) {
	pk := packets.Packet{ProtocolVersion: 5, FixedHeader: packets.FixedHeader{Type: packets.Publish}}
	_, n := binary.Uvarint(m.wire[1:])
	if err := pk.PublishDecode(m.wire[1+n:]); err != nil {
		return pk, fmt.Errorf("decode stored message %s: %w", m.topic, err)
	}
	return pk, nil
}

// deliver is the message for an in-process subscriber, who gets bytes of its own.
func (m *message) deliver(retained bool) (mqtt.Message, error) {
	c := *m
	c.wire = bytes.Clone(m.wire)
	pk, err := c.packet()
	if err != nil {
		return mqtt.Message{}, err
	}
	out := mqtt.Message{
		Topic: m.topic, Payload: c.wire[m.payload:], Retain: retained,
		ContentType: pk.Properties.ContentType, ResponseTopic: pk.Properties.ResponseTopic,
		CorrelationData: pk.Properties.CorrelationData,
	}
	for _, up := range pk.Properties.User {
		out.Properties = append(out.Properties, mqtt.Property{Key: up.Key, Value: up.Val})
	}
	return out, nil
}

// appendTo appends the bytes to send. It reports false if the message has expired.
func (m *message) appendTo(b []byte, retained bool, now time.Time) ([]byte, bool) {
	wire := m.wire
	if m.expires > 0 {
		left := m.expires - now.Unix()
		if left <= 0 {
			return b, false
		}
		pk, err := m.packet()
		if err != nil {
			return b, false
		}
		pk.Properties.MessageExpiryInterval = uint32(left)
		pk.Mods.AllowResponseInfo = true
		var buf bytes.Buffer
		if err := pk.PublishEncode(&buf); err != nil {
			return b, false
		}
		wire = buf.Bytes()
	}
	at := len(b)
	b = append(b, wire...)
	if retained {
		b[at] |= retainFlag
	}
	return b, true
}

func (m *message) expired(now time.Time) bool { return m.expires > 0 && m.expires <= now.Unix() }
