package edgeagent

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

// reporting is what is to be said and when.
type reporting struct {
	due     time.Time // of the next report; zero: nothing has changed
	last    time.Time // when one was made
	refresh time.Time // when one is made although nothing changed
	force   bool      // publish although it says the same as the last
	said    bundlefmt.Digest

	refused      *bundlefmt.Refusal
	refusedBytes bundlefmt.Digest // of the document it is about
	refusals     int
	refusalLog   *rate.Limiter

	askFacts, askReport *mqtt.Message

	events     chan bundlefmt.Event
	eventRate  *rate.Limiter
	wasStale   bool
	statusFail bool
}

func (r *reporting) init() {
	r.refusalLog = rate.NewLimiter(rate.Every(10*time.Second), 10)
	r.eventRate = rate.NewLimiter(rate.Every(200*time.Millisecond), 50)
	r.events = make(chan bundlefmt.Event, 64)
}

// soon has a report made after delay at the latest.
func (r *reporting) soon(now time.Time, delay time.Duration) {
	if at := now.Add(delay); r.due.IsZero() || at.Before(r.due) {
		r.due = at
	}
}

// event tells of a transition at once. Events are for eyes: with no link, or too many of them, they are dropped; the report
// says where things stand.
func (s *site) event(e bundlefmt.Event) {
	if !s.link.up || !s.say.eventRate.Allow() {
		return
	}
	e.At = e.At.UTC()
	select {
	case s.say.events <- e:
	default:
	}
}

// sendEvents publishes events one after the other, beside the loop.
func (s *site) sendEvents(ctx context.Context, c *mqtt.Client) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-s.say.events:
			b, err := json.Marshal(e)
			if err != nil || int64(len(b)) > s.limits.PartSize {
				continue
			}
			pctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			err = c.Publish(pctx, mqtt.Message{Topic: s.o.Prefix.Event(s.cluster), ContentType: bundlefmt.TypeEvent, Payload: b})
			cancel()
			if err != nil && ctx.Err() == nil {
				s.log.Debug().Err(err).Msg("event is not sent")
			}
		}
	}
}

// report publishes where everything stands, when that has changed or has not been said for long. It says when it wants to be
// asked again.
func (s *site) report(now time.Time) time.Time {
	r := &s.say
	if stale := s.stale(now); stale != r.wasStale {
		r.wasStale = stale
		s.log.Warn().Bool("stale", stale).Msg("desired document: time until which it should have been renewed")
		r.soon(now, 0)
	}
	if r.refresh.IsZero() || !now.Before(r.refresh) {
		first := r.refresh.IsZero()
		every := s.o.Timing.Refresh
		r.refresh = now.Add(every*3/4 + rand.N(every/2)) //nolint:gosec // spreads load, keeps no secret
		r.force = r.force || !first
		r.soon(now, 0)
	}
	if r.due.IsZero() {
		return r.refresh
	}
	at := r.due
	if least := r.last.Add(s.o.Timing.Report); at.Before(least) {
		at = least
	}
	if linger := s.began.Add(maxLinger); now.Before(linger) && at.Before(linger) && s.unseen() {
		at = linger
	}
	if now.Before(at) {
		return at
	}
	r.due, r.last = time.Time{}, now
	s.a.metrics.observe(s, now)
	s.writeStatus(now)
	if s.link.up {
		s.publish(now)
	}
	return r.refresh
}

// unseen: something that is applied has not been looked at since the start.
func (s *site) unseen() bool {
	for name, r := range s.records {
		if l := s.local[name]; r.Applied != nil && l.Health == nil && l.Failed == nil && s.onDisk[r.Applied.Digest] {
			return true
		}
	}
	return false
}

func (s *site) publish(now time.Time) {
	r := &s.say
	p := s.o.Prefix
	rep := s.reported(now)
	rep.At = time.Time{}
	same, err := rep.Encode(s.limits)
	if err != nil {
		s.log.Error().Err(err).Msg("make report")
		return
	}
	sum := bundlefmt.Sum(same)
	rep.At = now.UTC()
	body, err := rep.Encode(s.limits)
	if err != nil {
		s.log.Error().Err(err).Msg("make report")
		return
	}
	if sum != r.said || r.force {
		s.link.client.Enqueue(mqtt.Message{Topic: p.Reported(s.cluster), Retain: true, ContentType: bundlefmt.TypeReported, Payload: body})
		r.said, r.force = sum, false
	}
	if m := r.askReport; m != nil {
		r.askReport = nil
		s.link.client.Enqueue(mqtt.Message{Topic: p.Response(s.cluster, topics.VerbReport), ContentType: bundlefmt.TypeReported, CorrelationData: m.CorrelationData, Payload: body})
		s.link.client.Enqueue(mqtt.Message{Topic: p.Reported(s.cluster), Retain: true, ContentType: bundlefmt.TypeReported, Payload: body})
	}
	if m := r.askFacts; m != nil && s.facts.value != nil {
		r.askFacts = nil
		if b, err := json.Marshal(s.facts.value); err == nil {
			s.link.client.Enqueue(mqtt.Message{Topic: p.Response(s.cluster, topics.VerbFacts), ContentType: bundlefmt.TypeFacts, CorrelationData: m.CorrelationData, Payload: b})
		}
	}
}

// reported is where everything stands.
func (s *site) reported(now time.Time) bundlefmt.Reported {
	rep := bundlefmt.Reported{
		Serial: s.floor.Desired, Document: s.floor.Document, Reads: bundlefmt.NewestDesired, Trust: s.floor.Trust, At: now.UTC(), Stale: s.stale(now), Facts: s.facts.hash, Refused: s.say.refused,
	}
	ordered := map[string]bundlefmt.Deployment{}
	if s.desired != nil {
		for _, d := range s.desired.Deployments {
			ordered[d.Name] = d
		}
	}
	for name, l := range s.local {
		rec, recorded := s.records[name]
		if !recorded && !s.ordered(name) && s.mirror.read || l.standing.state == "" {
			continue
		}
		d := bundlefmt.DeploymentReport{Name: name, State: l.standing.state, Message: l.standing.message, Since: l.standing.since}
		if rec.Applied != nil {
			d.Serial, d.Digest = rec.Applied.Serial, rec.Applied.Digest
			d.AsOrdered = ordered[name].Serial == d.Serial && ordered[name].Digest == d.Digest
		}
		if st := l.status; st != nil {
			d.Total, d.Ready = st.Total, st.Ready
			d.NotReady, d.NotReadyCount = st.NotReady.Report(), st.NotReady.Count
			d.Modified, d.ModifiedCount = st.Modified.Report(), st.Modified.Count
		}
		if n := len(l.errors); n > 0 {
			d.NotReady, d.NotReadyCount = nil, n
			for _, f := range l.errors[:min(n, bundlefmt.MaxFindings)] {
				d.NotReady = append(d.NotReady, f.Report())
			}
		}
		rep.Deployments = append(rep.Deployments, d)
	}
	slices.SortFunc(rep.Deployments, func(a, b bundlefmt.DeploymentReport) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return rep
}
