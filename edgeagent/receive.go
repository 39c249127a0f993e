package edgeagent

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/plan"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

// refusal marks an error as being about what arrived, not about this side.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

func isRefusal(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

// receive takes one message of the agent's own topics.
func (s *site) receive(m mqtt.Message) {
	p := s.o.Prefix
	switch m.Topic {
	case p.Desired(s.cluster), p.Trust(s.cluster.Workspace):
		if s.mirror.fresh && !s.mirror.read { // how far this site has come is not known yet
			s.waiting[m.Topic] = m.Payload
			return
		}
	}
	switch m.Topic {
	case p.Desired(s.cluster):
		s.document(m.Topic, m.Payload, s.acceptDesired)
	case p.Trust(s.cluster.Workspace):
		s.document(m.Topic, m.Payload, s.acceptTrust)
	case p.Request(s.cluster, topics.VerbFacts):
		s.say.askFacts = &m
		s.say.soon(time.Now(), 0)
	case p.Request(s.cluster, topics.VerbReport):
		s.say.askReport = &m
		s.say.soon(time.Now(), 0)
	}
}

// document accepts or refuses a signed document. One that cannot be used now but perhaps later is kept in memory: a desired
// document whose key the trust document, on its way behind it, will name; and any that the disk had no room for.
func (s *site) document(topic string, payload []byte, accept func([]byte) error) {
	delete(s.waiting, topic)
	before := s.floor
	err := accept(payload)
	if err == nil {
		s.mirror.older = s.mirror.older && topic != s.o.Prefix.Desired(s.cluster)
		s.forgive(topic, payload, s.floor != before)
		return
	}
	switch {
	case !isRefusal(err):
		s.waiting[topic] = payload
		s.retry = time.Now().Add(s.backoff(3))
	case errors.Is(err, bundlefmt.ErrUntrusted):
		s.waiting[topic] = payload
	}
	if !s.again { // it is the same message, refused once
		s.refuse(topic, err)
		s.say.refusedBytes = bundlefmt.Sum(payload)
	}
}

// forgive takes a refusal out of the report when what was refused is acted on after all (it had come before its key), or
// news of the same topic is. That the one in force came once more says nothing of the one that was refused.
func (s *site) forgive(topic string, payload []byte, news bool) {
	r := &s.say
	if r.refused != nil && r.refused.Topic == topic && (news || r.refusedBytes == bundlefmt.Sum(payload)) {
		r.refused = nil
		r.soon(time.Now(), 0)
	}
}

// reconsider looks again at documents that could not be used.
func (s *site) reconsider() {
	s.again = true
	defer func() { s.again = false }()
	for topic, payload := range maps.Clone(s.waiting) {
		s.receive(mqtt.Message{Topic: topic, Payload: payload})
	}
}

func (s *site) acceptDesired(payload []byte) error {
	sum := bundlefmt.Sum(payload)
	if s.desired != nil && sum == s.floor.Document {
		return nil // verified before
	}
	d, err := bundlefmt.OpenDesired(payload, s.keys().Trust(), s.audience(), s.limits)
	if err != nil {
		return &refusal{err}
	}
	news, err := plan.Accept(s.floor.Desired, s.floor.Document, d.Serial, sum)
	if err != nil {
		return &refusal{fmt.Errorf("desired document: %w", err)}
	}
	if !news && s.desired != nil {
		return nil
	}
	// The document first, then the floor, then anything else: after a power cut between the two the document on disk is
	// the newer one, and the floor follows from it.
	if err := s.store.PutDesired(payload); err != nil {
		return fmt.Errorf("desired document %d cannot be kept and is not acted on: %w", d.Serial, err)
	}
	floor := s.floor
	floor.Desired, floor.Document = d.Serial, sum
	if err := s.store.PutFloor(floor); err != nil {
		return fmt.Errorf("desired document %d cannot be kept and is not acted on: %w", d.Serial, err)
	}
	s.floor, s.desired = floor, d
	s.log.Info().Stringer("serial", d.Serial).Int("deployments", len(d.Deployments)).Int("remove", len(d.Remove)).Msg("desired document accepted")
	s.survey(false)
	s.say.soon(time.Now(), 0)
	return nil
}

func (s *site) acceptTrust(payload []byte) error {
	doc, err := bundlefmt.OpenTrust(payload, s.id.Root, s.id.Workspace, s.floor.Trust)
	if err != nil {
		return &refusal{err}
	}
	if doc.Serial == s.floor.Trust {
		if have, err := s.store.Trust(); err == nil {
			if string(have) != string(payload) {
				return &refusal{fmt.Errorf("trust document: %w: serial %d", plan.ErrSameSerial, doc.Serial)}
			}
			return nil
		}
	}
	if err := s.store.PutTrust(payload); err != nil {
		return fmt.Errorf("trust document %d cannot be kept and is not acted on: %w", doc.Serial, err)
	}
	floor := s.floor
	floor.Trust = doc.Serial
	if err := s.store.PutFloor(floor); err != nil {
		return fmt.Errorf("trust document %d cannot be kept and is not acted on: %w", doc.Serial, err)
	}
	s.floor, s.signers = floor, doc.Keys
	s.log.Info().Stringer("serial", doc.Serial).Int("keys", len(doc.Keys)).Msg("trust document accepted")
	s.say.soon(time.Now(), 0)
	// What was judged by the old keys is judged again.
	s.stopFetches(nil)
	clear(s.bad)
	if s.desired == nil {
		s.loadDesired()
	}
	s.survey(true)
	s.reconsider()
	return nil
}

// refuse counts, logs and reports what is not acted on. The log is thinned out: whoever can write to the broker must not be
// able to fill the disk.
func (s *site) refuse(topic string, err error) {
	now := time.Now()
	s.say.refusals++
	s.say.refused = &bundlefmt.Refusal{Topic: topic, Reason: err.Error(), At: now.UTC(), Count: s.say.refusals}
	s.a.metrics.refuse(err)
	if s.say.refusalLog.AllowN(now, 1) {
		s.log.Warn().Str("topic", topic).Str("why", err.Error()).Int("count", s.say.refusals).Msg("message refused")
	}
	s.event(bundlefmt.Event{At: now, Message: "refused " + topic + ": " + err.Error()})
	s.say.soon(now, 0)
}
