package edgeagent

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/plan"
	"shoal.dev/shoal/edgeagent/store"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

// parallel is how many parts of one bundle are subscribed to at a time. site.slots bounds all bundles together: with the
// agent's own four subscriptions it stays within eight.
const parallel = 4

// fetch is one bundle on its way.
type fetch struct {
	cancel context.CancelFunc
	have   int
	total  int
	stuck  string // why it does not come, if so
}

// fetch begins to download a bundle unless that is under way. Subscribing is the download: each part is a retained message.
// Before there is a trust document (the disk was lost) every part would be refused, and said to be an attack.
func (s *site) fetch(a plan.Action) {
	d := a.Release.Digest
	if s.link.client == nil || len(s.signers) == 0 || s.fetches[d] != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	f := &fetch{cancel: cancel, total: a.Release.Parts}
	s.fetches[d] = f
	dl := &download{
		s: s, f: f, name: a.Deployment, cluster: s.cluster, rel: a.Release, keys: s.keys(), client: s.link.client,
		log: s.log.With().Str("deployment", a.Deployment).Str("digest", d.Short()).Logger(),
	}
	s.spawn(func() {
		err := dl.run(ctx)
		cancel()
		s.post(func() {
			if s.fetches[d] != f { // called off meanwhile
				return
			}
			delete(s.fetches, d)
			switch {
			case ctx.Err() != nil && err != nil:
			case err != nil:
				s.spoiled(a.Deployment, d, err)
			default:
				s.onDisk[d] = true
			}
			s.wake(time.Now())
		})
	})
}

// stopFetches calls off downloads that nobody wants any more.
func (s *site) stopFetches(wanted map[bundlefmt.Digest]bool) {
	for d, f := range s.fetches {
		if !wanted[d] {
			f.cancel()
			delete(s.fetches, d)
		}
	}
}

// progress says how far a deployment's download is.
func (s *site) progress(name string) string {
	o := s.orderOf(name)
	if o == nil {
		return ""
	}
	f := s.fetches[o.Digest]
	if f == nil {
		return "waits for a link to the hub"
	}
	msg := fmt.Sprintf("%d of %d parts", f.have, f.total)
	if f.stuck != "" {
		msg += ": " + f.stuck
	}
	if !s.link.up {
		msg += "; waits for a link to the hub"
	}
	return msg
}

// download gets one bundle, in a goroutine of its own.
type download struct {
	s       *site
	f       *fetch // owned by the loop
	name    string
	cluster topics.Cluster
	rel     plan.Release
	keys    store.Keys
	client  *mqtt.Client
	log     zlog
	mute    atomic.Bool // the broker does not replay parts: ask at once
}

// run returns nil once the bundle is complete and acceptable, an error when it is complete and not acceptable, or when ctx ends.
func (d *download) run(ctx context.Context) error {
	began := time.Now()
	for n := 1; ; n++ {
		missing, header, err := d.s.store.Missing(d.rel.Digest, d.keys)
		if err == nil && len(missing) == 0 {
			if _, err = d.s.store.Bundle(d.rel.Digest, d.keys); err == nil {
				if err := d.s.store.Verified(d.rel.Digest, d.keys); err != nil {
					d.log.Warn().Err(err).Msg("keep the keys of a bundle")
				}
				d.log.Info().Stringer("took", time.Since(began).Round(time.Millisecond)).Int("parts", header.Parts()).Msg("bundle is complete")
				return nil
			}
			return err
		}
		total := d.rel.Parts
		if header != nil {
			total = header.Parts()
		}
		if err == nil {
			have := 0
			if header != nil {
				have = total - len(missing)
			}
			d.tell(have, total)
			if err = d.parts(ctx, header, missing); err == nil {
				n = 0
				continue
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.log.Warn().Err(err).Msg("download is interrupted")
		d.stuck(err.Error())
		if !pause(ctx, d.s.backoff(n)) {
			return ctx.Err()
		}
	}
}

func (d *download) tell(have, total int) {
	d.s.post(func() { d.f.have, d.f.total, d.f.stuck = have, total, "" })
}

func (d *download) stuck(why string) { d.s.post(func() { d.f.stuck = why }) }

// parts gets the missing parts, a few at a time. Every one that arrives is on disk before it returns, also on an error.
func (d *download) parts(ctx context.Context, h *bundlefmt.Header, missing []int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	todo := make(chan int)
	var wg sync.WaitGroup
	for range min(parallel, len(missing)) {
		wg.Go(func() {
			for n := range todo {
				if err := d.part(ctx, h, n); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, n := range missing {
		select {
		case todo <- n:
		case <-ctx.Done():
		}
	}
	close(todo)
	wg.Wait()
	return context.Cause(ctx)
}

// part gets one part: subscribe, take the retained message, check it, store it, unsubscribe. What does not come is asked for.
func (d *download) part(ctx context.Context, h *bundlefmt.Header, n int) error {
	select {
	case d.s.slots <- struct{}{}:
		defer func() { <-d.s.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	topic := d.s.o.Prefix.Part(d.cluster, d.rel.Group, d.rel.Digest.Short(), n)
	arrived := make(chan []byte, 2) // more than that is a flood: what is dropped is asked for
	stop, err := d.client.Subscribe(ctx, func(m mqtt.Message) {
		select {
		case arrived <- m.Payload:
		default:
		}
	}, topic)
	if err != nil {
		return fmt.Errorf("subscribe to part %d: %w", n, err)
	}
	defer stop()
	w := patience{d: d, began: time.Now(), limit: d.s.o.Timing.PartTimeout}
	timer := time.NewTimer(w.first())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case b := <-arrived:
			err := d.take(h, n, b)
			if err == nil {
				return nil
			}
			if !isRefusal(err) {
				return err
			}
			d.s.post(func() { d.s.refuse(topic, err) })
			if w.mayAsk() {
				d.ask(ctx, n)
			}
		case <-timer.C:
			again, ask := w.next()
			if ask {
				d.mute.Store(true)
				d.ask(ctx, n)
			}
			timer.Reset(again)
		}
	}
}

// take checks a part and keeps it. Nothing of it is looked at before its hash, or its signature, holds.
func (d *download) take(h *bundlefmt.Header, n int, b []byte) error {
	var err error
	switch {
	case len(b) == 0:
		err = bundlefmt.ErrEmpty
	case n == 0:
		_, err = bundlefmt.OpenHeader(b, d.rel.Digest, d.keys.Trust(), d.keys.Limits)
	default:
		err = h.CheckPart(n, b)
	}
	if err != nil {
		return &refusal{err}
	}
	if err := d.s.store.PutPart(d.rel.Digest, n, b); err != nil {
		return err
	}
	d.s.post(func() { d.f.have++; d.f.stuck = "" })
	return nil
}

// ask has the hub publish a part again. The answer comes on the part's own topic.
func (d *download) ask(ctx context.Context, n int) {
	body, err := json.Marshal(bundlefmt.PartRequest{Deployment: d.name, Digest: d.rel.Digest, Group: d.rel.Group, Parts: []int{n}})
	if err != nil {
		return // strings and ints always encode
	}
	ctx, cancel := context.WithTimeout(ctx, d.s.o.Timing.PartTimeout)
	defer cancel()
	err = d.client.Publish(ctx, mqtt.Message{
		Topic: d.s.o.Prefix.Request(d.cluster, topics.VerbBundle), ContentType: bundlefmt.TypeRequest, Payload: body,
	})
	d.log.Debug().Int("part", n).AnErr("err", err).Msg("asked for part")
}

// patience decides when a part is asked for: not while bytes keep coming (on a slow link a part takes minutes, and asking for it
// would send it twice), not while there is no link, ever more rarely, and at once when the broker has shown that it replays nothing.
type patience struct {
	d     *download
	began time.Time
	limit time.Duration
	asked int
	last  time.Time
}

func (w *patience) first() time.Duration {
	if w.d.mute.Load() {
		return 0
	}
	return w.limit
}

func (w *patience) next() (again time.Duration, ask bool) {
	now := time.Now()
	if !w.d.client.Up() {
		w.began = now
		return w.limit, false
	}
	if quiet := now.Sub(w.d.client.Heard()); w.first() > 0 && w.asked == 0 && quiet < w.limit && now.Sub(w.began) < 30*w.limit {
		return w.limit - quiet + time.Millisecond, false
	}
	w.asked++
	w.last = now
	return plan.Backoff(w.asked, w.limit, max(w.limit, 10*time.Minute)), true
}

// mayAsk is for a part that arrived and was refused: somebody planted it, and the real one has to be published over it.
func (w *patience) mayAsk() bool {
	now := time.Now()
	if now.Sub(w.last) < w.limit {
		return false
	}
	w.asked++
	w.last = now
	return true
}
