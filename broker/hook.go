package broker

import (
	"errors"
	"fmt"
	"slices"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"shoal.dev/shoal/internal/mqtt"
)

// hook is the one and only mochi hook: with several, mochi lets the most generous one decide (B8). It answers for
// authentication, authorisation and validity, and takes every PUBLISH, SUBSCRIBE and Will away from mochi, which keeps what
// it is good at: packets, acknowledgements, protocol errors.
type hook struct {
	mochi.HookBase
	b *Broker
}

func (h *hook) ID() string { return "shoal" }

func (h *hook) Provides(b byte) bool {
	return slices.Contains([]byte{
		mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnPacketRead, mochi.OnPacketEncode,
		mochi.OnPacketProcessed, mochi.OnPublish, mochi.OnSubscribe, mochi.OnSubscribed, mochi.OnUnsubscribe,
	}, b)
}

func sessionOf(cl *mochi.Client) *session {
	if c, ok := cl.Net.Conn.(*conn); ok {
		return c.session
	}
	return nil
}

// OnConnect decides about a connection. mochi has decoded and validated the packet.
func (h *hook) OnConnect(cl *mochi.Client, pk packets.Packet) error {
	s := sessionOf(cl)
	s.cl, s.id = cl, cl.ID
	// The Will is ours: mochi would bypass the ACL, lose its content type and race with a take-over (B5).
	cl.Properties.Will = mochi.Will{}
	if code, err := h.admit(s, pk); code != nil {
		s.auth, s.will = nil, nil
		h.b.metrics.connects.WithLabelValues("refused").Inc()
		h.b.refusedConnect(s.conn, code.Reason, cl.ID, err)
		_ = h.b.server.SendConnack(cl, *code, false, nil)
		return *code
	}
	h.b.metrics.connects.WithLabelValues("accepted").Inc()
	h.b.log.Debug().Str("identity", s.identity).Str("client", s.id).Str("remote", s.conn.remote).Msg("client connected")
	return nil
}

func (h *hook) admit(s *session, pk packets.Packet) (*packets.Code, error) {
	c := pk.Connect
	if err := checkClientID(c.ClientIdentifier); err != nil {
		return &packets.ErrClientIdentifierNotValid, err
	}
	will, code, err := h.will(c)
	if code != nil {
		return code, err
	}
	auth, err := h.b.o.Auth.Authenticate(mqtt.Connect{
		ClientID: c.ClientIdentifier, Username: string(c.Username), Password: c.Password,
		Certificate: s.conn.certificate, RemoteAddr: s.conn.remote, WillTopic: c.WillTopic,
	})
	if err == nil && (auth == nil || auth.Identity() == "") {
		err = errors.New("authenticator named no identity")
	}
	if err != nil {
		return &packets.ErrNotAuthorized, err
	}
	s.auth, s.identity, s.will = auth, auth.Identity(), will
	if will != nil && !auth.Allowed(mqtt.Publish, will.topic) {
		return &packets.ErrNotAuthorized, fmt.Errorf("will on topic %q is not allowed", will.topic)
	}
	s.maxPacket = int(pk.Properties.MaximumPacketSize)
	s.keepAlive(c.Keepalive)
	if code := h.b.claim(s); code != nil {
		return code, fmt.Errorf("client id %q is in use", s.id)
	}
	return nil, nil
}

// will builds the message now, so that nothing can be wrong with it when it is needed.
func (h *hook) will(c packets.ConnectParams) (*message, *packets.Code, error) {
	if !c.WillFlag {
		return nil, nil, nil
	}
	if err := mqtt.CheckTopic(c.WillTopic); err != nil {
		return nil, &packets.ErrTopicNameInvalid, fmt.Errorf("will: %w", err)
	}
	if c.WillQos > 1 {
		return nil, &packets.ErrQosNotSupported, errors.New("will: QoS 2")
	}
	if len(c.WillPayload) > h.b.o.MaxPayload {
		return nil, &packets.ErrPacketTooLarge, errors.New("will: payload above the limit")
	}
	m, err := encode(c.WillTopic, c.WillPayload, c.WillRetain, c.WillProperties, time.Now())
	if err != nil {
		return nil, &packets.ErrMalformedWillProperties, err
	}
	if m.expires > 0 { // counts from when the Will is published, which nobody knows: it does not expire
		m.expires = 0
	}
	return m, nil, nil
}

// keepAlive imposes the limits: 0 would mean a connection that is never missed.
func (s *session) keepAlive(wanted uint16) {
	d := time.Duration(wanted) * time.Second
	if wanted == 0 || d > s.b.o.MaxKeepAlive {
		d = s.b.o.MaxKeepAlive
	}
	d = max(d, s.b.o.MinKeepAlive)
	s.cl.State.Keepalive = uint16(d / time.Second)
	s.cl.State.ServerKeepalive = s.cl.State.Keepalive != wanted // [MQTT-3.1.2-21]
	s.conn.keepAlive.Store(int64(d * 3 / 2))
}

func checkClientID(id string) error {
	if len(id) > 128 {
		return fmt.Errorf("client id of %d bytes, limit 128", len(id))
	}
	for _, r := range id {
		if r <= ' ' || r == 0x7f || r == 0xfffd {
			return errors.New("client id holds a blank or control character")
		}
	}
	return nil
}

// OnConnectAuthenticate denies by default: only OnConnect sets auth.
func (h *hook) OnConnectAuthenticate(cl *mochi.Client, _ packets.Packet) bool {
	s := sessionOf(cl)
	return s != nil && s.auth != nil
}

func (h *hook) OnACLCheck(cl *mochi.Client, topic string, write bool) bool {
	s := sessionOf(cl)
	if s == nil || s.auth == nil {
		return false
	}
	a := mqtt.Subscribe
	if write {
		a = mqtt.Publish
	}
	if !s.auth.Allowed(a, topic) {
		s.refuse("not-authorized", a.String(), topic, nil)
		return false
	}
	return true
}

// refuse counts and logs. One client cannot flood the log.
func (s *session) refuse(reason, action, topic string, err error) {
	s.b.metrics.refused.WithLabelValues(reason).Inc()
	s.refusals++
	ev := s.b.log.Debug()
	if s.refusals <= 10 {
		ev = s.b.log.Warn()
	}
	if len(topic) > 100 {
		topic = topic[:100] + "…"
	}
	ev.Err(err).Str("identity", s.identity).Str("client", s.id).Str("action", action).Str("topic", topic).
		Str("reason", reason).Msg("refused")
}

// OnPacketRead sees every packet before mochi acts on it. mochi ends the connection on ErrRejectPacket only, and says nothing
// to the client: that is done here.
func (h *hook) OnPacketRead(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	s := sessionOf(cl)
	if pk.FixedHeader.Type == packets.Connect {
		return pk, nil
	}
	reject := func(code packets.Code, reason, topic string, err error) (packets.Packet, error) {
		s.refuse(reason, packets.PacketNames[pk.FixedHeader.Type], topic, err)
		_ = h.b.server.DisconnectClient(cl, code)
		return pk, packets.ErrRejectPacket
	}
	if err := s.rate.Wait(s.ctx); err != nil {
		return pk, packets.ErrRejectPacket
	}
	switch pk.FixedHeader.Type {
	case packets.Publish:
		h.b.metrics.messagesIn.Inc()
		switch {
		case pk.FixedHeader.Qos > 1:
			return reject(packets.ErrQosNotSupported, "qos-2", pk.TopicName, nil)
		case pk.Properties.TopicAliasFlag: // mochi asks the ACL before it resolves the alias
			return reject(packets.ErrTopicAliasInvalid, "topic-alias", pk.TopicName, nil)
		case pk.FixedHeader.Qos > 0 && pk.PacketID == 0:
			return reject(packets.ErrProtocolViolationNoPacketID, "malformed", pk.TopicName, nil)
		}
		if err := mqtt.CheckTopic(pk.TopicName); err != nil {
			return reject(packets.ErrTopicNameInvalid, "invalid-topic", pk.TopicName, err)
		}
		if rt := pk.Properties.ResponseTopic; rt != "" {
			if err := mqtt.CheckTopic(rt); err != nil {
				return reject(packets.ErrTopicNameInvalid, "invalid-topic", rt, err)
			}
		}
	case packets.Subscribe:
		if len(pk.Properties.SubscriptionIdentifier) > 0 {
			return reject(packets.ErrSubscriptionIdentifiersNotSupported, "subscription-identifier", "", nil)
		}
	case packets.Disconnect:
		s.graceful = pk.ReasonCode == packets.CodeDisconnect.Code
	case packets.Unsubscribe, packets.Pingreq:
	default: // nothing is sent to clients that these could answer
		return reject(packets.ErrProtocolViolation, "unexpected-packet", "", nil)
	}
	return pk, nil
}

// OnPacketEncode completes the CONNACK with what we do not offer.
func (h *hook) OnPacketEncode(_ *mochi.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type == packets.Connack && pk.ReasonCode == packets.CodeSuccess.Code {
		p := &pk.Properties
		p.MaximumPacketSize = uint32(h.b.o.MaxPacket)
		p.SharedSubAvailable, p.SharedSubAvailableFlag = 0, true
		p.SubIDAvailable, p.SubIDAvailableFlag = 0, true
	}
	return pk
}

// OnPublish stores and distributes the message before mochi acknowledges it. CodeSuccessIgnore makes mochi do nothing but
// acknowledge; any other Code becomes the reason code of the PUBACK, for QoS 0 the message is dropped.
func (h *hook) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	s := sessionOf(cl)
	refuse := func(code packets.Code, reason string, err error) (packets.Packet, error) {
		s.refuse(reason, "publish", pk.TopicName, err)
		if pk.FixedHeader.Qos == 0 {
			return pk, packets.ErrRejectPacket
		}
		return pk, code
	}
	if len(pk.Payload) > h.b.o.MaxPayload {
		return refuse(packets.ErrPacketTooLarge, "payload-too-large", nil)
	}
	m, err := encode(pk.TopicName, pk.Payload, pk.FixedHeader.Retain, pk.Properties, time.Now())
	if err != nil {
		return refuse(packets.ErrMalformedPacket, "malformed", err)
	}
	h.b.awaitRelief(s)
	switch err := h.b.publish(m, s); {
	case errors.Is(err, ErrQuota):
		return refuse(packets.ErrQuotaExceeded, "retained-quota", err)
	case errors.Is(err, ErrClosed):
		return refuse(packets.ErrServerShuttingDown, "shutting-down", err)
	case err != nil:
		return refuse(packets.ErrImplementationSpecificError, "store", err)
	}
	return pk, packets.CodeSuccessIgnore
}

// OnSubscribe prepares what mochi then checks and answers: QoS 0 is all that is granted (B1), and a filter we refuse as
// invalid (B9, shared subscriptions included: B11) becomes one that mochi refuses as well.
func (h *hook) OnSubscribe(cl *mochi.Client, pk packets.Packet) packets.Packet {
	s := sessionOf(cl)
	pk.Properties.User = nil // mochi would echo them
	pk.Filters = slices.Clone(pk.Filters)
	for i := range pk.Filters {
		f := &pk.Filters[i]
		f.Qos = 0
		err := mqtt.CheckFilter(f.Filter)
		if _, known := s.filters[f.Filter]; err == nil && !known && len(s.filters)+i >= h.b.o.MaxSubscriptions {
			err = fmt.Errorf("limit of %d subscriptions", h.b.o.MaxSubscriptions)
		}
		if err != nil {
			s.refuse("invalid-filter", "subscribe", f.Filter, err)
			f.Filter = ""
		}
	}
	return pk
}

// OnSubscribed makes the granted subscriptions effective. That is before the SUBACK is out, or a message published by
// someone who saw the SUBACK could be missed; what is delivered meanwhile waits for it.
func (h *hook) OnSubscribed(cl *mochi.Client, pk packets.Packet, codes []byte) {
	s := sessionOf(cl)
	s.hold(true)
	for i, f := range pk.Filters {
		if i >= len(codes) || codes[i] >= packets.ErrUnspecifiedError.Code {
			continue
		}
		s.filters[f.Filter] = struct{}{}
		opt := subscription{noLocal: f.NoLocal, retainAsPublished: f.RetainAsPublished}
		h.b.subscribe(s, f.Filter, opt, retainHandling(f.RetainHandling), func(m *message) {
			s.put(outgoing{m: m, retained: true, replay: true})
		})
	}
}

// OnPacketProcessed follows the SUBACK. The replay goes as fast as the client reads; nothing of it is dropped.
func (h *hook) OnPacketProcessed(cl *mochi.Client, pk packets.Packet, _ error) {
	if pk.FixedHeader.Type == packets.Subscribe {
		sessionOf(cl).hold(false)
	}
}

func (h *hook) OnUnsubscribe(cl *mochi.Client, pk packets.Packet) packets.Packet {
	s := sessionOf(cl)
	pk.Properties.User = nil
	for _, f := range pk.Filters {
		if _, ok := s.filters[f.Filter]; ok {
			delete(s.filters, f.Filter)
			h.b.unsubscribe(s, f.Filter)
		}
	}
	return pk
}
