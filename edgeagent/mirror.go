package edgeagent

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/apply"
	"shoal.dev/shoal/edgeagent/store"
	"shoal.dev/shoal/internal/mqtt"
)

// mirror is what the cluster itself has on record of the deployments, for the day on which the disk is lost: the objects of
// each, which release that is, and the way back. Without it a new disk would know of nothing that runs; nothing would be
// deleted by that, but nothing that is no longer wanted would be found either.
type mirror struct {
	read    bool                        // it was read once; before, nobody knows what runs that is not on disk
	fresh   bool                        // the disk did not know at the start how far this site had come: documents wait, since an old one would pass for new
	older   bool                        // the disk is an older copy: the cluster has records of newer releases. Nothing is begun until the hub has said what is to be
	has     map[string]bundlefmt.Digest // of what it holds, by deployment
	due     time.Time                   // when it is read again: somebody may have deleted from it
	retry   time.Time
	tries   int
	last    string // the record that was written last, or tried
	running bool
}

// mirrored is a record on the cluster.
type mirrored struct {
	Workspace string           `json:"workspace"`
	Cluster   string           `json:"cluster"`
	Trust     bundlefmt.Serial `json:"trust"` // of the trust document in force: an older one is refused by a new disk as well
	store.Record
}

// mirrorOf leaves out what changes often and means nothing to a new disk.
func (s *site) mirrorOf(r store.Record) ([]byte, error) {
	r.State, r.Since, r.Message, r.Waited, r.Linked = "", time.Time{}, "", 0, false
	return json.Marshal(mirrored{s.id.Workspace, s.id.Cluster, s.floor.Trust, r})
}

// keepRecords brings the cluster's records up to date, one request at a time. It says when it wants to be asked again.
func (s *site) keepRecords(now time.Time) time.Time {
	m := &s.mirror
	switch {
	case s.o.Namespace == "" || !s.id.Enrolled() || m.running:
		return time.Time{}
	case now.Before(m.retry):
		return m.retry
	case !m.read || !now.Before(m.due):
		s.mirrorAct(func(ctx context.Context) (func(time.Time), error) {
			have, err := s.a.applier.Records(ctx)
			return func(now time.Time) { s.mirrorRead(have, now) }, err
		})
		return time.Time{}
	}
	for _, name := range m.round(s.records) {
		r := s.records[name]
		if l := s.local[name]; r.Removing || l.Doing != nil { // it changes in a moment, or goes
			continue
		}
		b, err := s.mirrorOf(r)
		if err != nil || m.has[name] == bundlefmt.Sum(b) {
			continue
		}
		m.last = name
		s.mirrorAct(func(ctx context.Context) (func(time.Time), error) {
			err := s.a.applier.PutRecord(ctx, name, b)
			return func(time.Time) { m.has[name] = bundlefmt.Sum(b) }, err
		})
		return time.Time{}
	}
	for name := range m.has {
		if _, ok := s.records[name]; ok {
			continue
		}
		s.mirrorAct(func(ctx context.Context) (func(time.Time), error) {
			err := s.a.applier.DeleteRecord(ctx, name)
			return func(time.Time) { delete(m.has, name) }, err
		})
		return time.Time{}
	}
	return m.due
}

// round is the order in which records are looked at: one that the cluster does not take must not keep the others off it.
func (m *mirror) round(records map[string]store.Record) []string {
	names := slices.Sorted(maps.Keys(records))
	i, found := slices.BinarySearch(names, m.last)
	if found {
		i++
	}
	return slices.Concat(names[i:], names[:i])
}

// mirrorAct does one thing beside the loop and takes its outcome over.
func (s *site) mirrorAct(f func(context.Context) (func(time.Time), error)) {
	m := &s.mirror
	m.running = true
	s.spawn(func() {
		ctx, cancel := context.WithTimeout(s.ctx, s.o.Timing.ActionLimit)
		defer cancel()
		done, err := f(ctx)
		s.post(func() {
			now := time.Now()
			m.running = false
			if err == nil {
				m.tries, m.retry = 0, time.Time{}
				done(now)
				return
			}
			if s.ctx.Err() != nil {
				return
			}
			if m.tries++; m.tries == 1 {
				s.log.Warn().Err(err).Msg("keep records on the cluster; they are needed only when this disk is lost")
			}
			m.retry = now.Add(s.backoff(m.tries))
			if !m.read && !errors.Is(err, apply.ErrUnavailable) { // an agent that may not read them must do without
				m.read, m.has, m.due = true, map[string]bundlefmt.Digest{}, now.Add(s.o.Timing.Recheck)
				s.hear()
			}
		})
	})
}

// mirrorRead takes over what the cluster has on record: at the start, whatever the disk lacks; later nothing, because the disk
// knows better. What another member of the fleet has left there is nobody's business here.
func (s *site) mirrorRead(have map[string][]byte, now time.Time) {
	m := &s.mirror
	first := !m.read
	disk := s.floor.Desired
	m.read, m.due, m.has = true, now.Add(s.o.Timing.Recheck), map[string]bundlefmt.Digest{}
	for name, b := range have {
		log := s.log.With().Str("deployment", name).Logger()
		_, known := s.records[name]
		var r mirrored
		err := json.Unmarshal(b, &r)
		switch {
		case err != nil || r.Name != name || !bundlefmt.ValidName(name):
			log.Warn().AnErr("why", err).Msg("record on the cluster cannot be read and is left out")
		case r.Workspace != s.id.Workspace || r.Cluster != s.id.Cluster:
			if first {
				log.Warn().Str("of", r.Workspace+"/"+r.Cluster).Msg("the cluster has a record of another member of the fleet: its objects are left alone")
			}
			continue
		case first:
			if m.fresh { // a disk that knows needs no telling, and whoever can write here could stop the site for ever
				s.floor.Trust = max(s.floor.Trust, r.Trust)
				s.floor.Desired = max(s.floor.Desired, newest(r.Record))
			}
			m.older = m.older || !m.fresh && newest(r.Record) > disk
			if !known || newest(r.Record) > disk {
				s.restore(r.Record)
			}
		}
		m.has[name] = bundlefmt.Sum(b)
	}
	if m.older {
		s.log.Warn().Stringer("serial", disk).Msg("the disk is older than what the cluster has on record (restored from a backup?): nothing is changed until the hub has said what is to run")
	}
	if first {
		s.hear()
	}
}

const older = "the agent's disk is older than what this cluster has on record: nothing is changed until the hub has said what is to run"

// hear takes the documents that came before the records were known, the keys first.
func (s *site) hear() {
	held := s.waiting
	s.waiting = map[string][]byte{}
	for _, topic := range []string{s.o.Prefix.Trust(s.cluster.Workspace), s.o.Prefix.Desired(s.cluster)} {
		if b, ok := held[topic]; ok {
			s.receive(mqtt.Message{Topic: topic, Payload: b})
		}
	}
}

func newest(r store.Record) bundlefmt.Serial {
	if r.Applied == nil {
		return 0
	}
	return r.Applied.Serial
}

// restore makes a record on disk of one on the cluster. Nobody has signed that: what allows to delete more than the objects it
// names counts only when the hub says it again.
func (s *site) restore(r store.Record) {
	r.Removing = false // such a one is never written there
	for _, rel := range []*store.Release{r.Applied, r.Applying, r.Previous} {
		if rel != nil {
			p := &rel.Policy
			p.ConfirmPrune, p.DeleteNamespace, p.DeleteCRDs, p.DeleteVolumes = false, false, false, false
		}
	}
	s.note(r, "keep record")
	s.localFor(r.Name).Last = ""
	s.log.Warn().Str("deployment", r.Name).Int("objects", len(r.Refs)).
		Msg("record was not on this disk and is taken over from the cluster: nothing is changed by that")
	s.survey(false)
	s.say.soon(time.Now(), 0)
}
