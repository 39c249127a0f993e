// Package mqtt holds the words both ends of a link share (Message, Carrier, Session, Authenticator) and Client, the
// MQTT 5 client of agents and tools.
//
// A Carrier is anything that carries messages: the embedded broker in process, or a Client over the network. Both
// obey one contract, written down as the test-suite mqtttest.TestCarrier.
//
// Client drives paho.golang's paho package directly and not its autopaho: autopaho owns the reconnect loop, dials
// attempt 0 without a back-off, keeps an unbounded queue in first-in order and does not replay subscriptions, so every
// part of it would have to be worked around. What remains of a connection manager is the loop in run.go, where each
// attempt gets fresh credentials, a fresh Will and the birth messages that belong to it.
//
// What the design asks of correctness is not asked of this package: a message may arrive twice, a PUBACK may be lost
// after the broker stored the message, and order holds per topic only. Documents carry serials and digests for that.
package mqtt

import (
	"context"
	"crypto/x509"
)

// Property is one MQTT 5 user property. They are for people and tools: nothing is ever authorised by them.
type Property struct{ Key, Value string }

// Message is one application message.
type Message struct {
	Topic   string
	Payload []byte // an empty payload with Retain clears the retained message of Topic

	// Retain asks the broker to keep the message as the topic's last value. On a received message it says that the
	// message was replayed from the retained store and is not news.
	Retain bool

	ContentType     string
	ResponseTopic   string
	CorrelationData []byte
	Properties      []Property

	QoS byte // as received; ignored by Publish, which always asks for an acknowledgement
}

// Action is what a Session is asked to allow.
type Action int

const (
	// Publish is a PUBLISH, retained or not, or a Will; the string asked about is a topic name.
	Publish Action = iota
	// Subscribe is one filter of a SUBSCRIBE; the string asked about is a topic filter, which may hold wildcards:
	// allow it only if every topic it can match is allowed.
	Subscribe
)

func (a Action) String() string {
	if a == Subscribe {
		return "subscribe"
	}
	return "publish"
}

// Connect is what a client says of itself, before any of it is believed. If Certificate is set then TLS has proved
// possession of its key and its chain to the broker's client CAs; nothing else here is proved.
type Connect struct {
	ClientID   string // empty if the client left the choice to the broker
	Username   string
	Password   []byte
	RemoteAddr string
	WillTopic  string // empty if there is no Will; Session.Allowed is asked about it as well

	Certificate *x509.Certificate // the leaf; nil if the client presented none
}

// Session is an authenticated client. Allowed is asked on every PUBLISH, each filter of each SUBSCRIBE and the Will, from
// the client's own goroutine: it must be quick and safe for concurrent use.
type Session interface {
	// Identity names who this is, for logs, for Broker.Disconnect, and for take-overs: a client id that is in use can be
	// taken over only by the same identity.
	Identity() string
	Allowed(a Action, topicOrFilter string) bool
}

// Authenticator turns a CONNECT into a Session. It must bind the client id to the identity it returns: an identity that
// may use any client id could take the place of its own other connections. The text of an error goes to the broker's
// log, never to the client, who is told "not authorized".
type Authenticator interface {
	Authenticate(Connect) (Session, error)
}

// Carrier carries messages. *broker.Broker carries them in process, *Client over a network.
type Carrier interface {
	// Publish returns nil once the broker has the message; for a retained message that means durable: it survives the
	// broker's death. An error does not mean that the message was not published.
	Publish(ctx context.Context, m Message) error

	// Subscribe replays the retained messages of filters to h, then passes live ones. h is called from one goroutine,
	// in order, and may itself publish. In process the replay is complete when Subscribe returns; over a network it
	// is not, and everything is replayed again after each reconnect. After stop returns h is not called again,
	// except that a call under way is not waited for, so that h may call stop.
	Subscribe(ctx context.Context, h func(Message), filters ...string) (stop func(), err error)
}
