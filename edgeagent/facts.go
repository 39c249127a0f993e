package edgeagent

import (
	"context"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/plan"
)

// factsState is what is known of the cluster itself. The report names its hash; the hub asks once for a hash it does not know.
type factsState struct {
	value   *bundlefmt.Facts
	hash    string
	due     time.Time
	running bool
	tries   int
}

// lookAround describes the cluster anew when that is due, and looks whether the document's time has run out.
func (s *site) lookAround(now time.Time) time.Time {
	f := &s.facts
	if f.running || now.Before(f.due) {
		return f.due
	}
	f.running = true
	s.spawn(func() {
		ctx, cancel := context.WithTimeout(s.ctx, s.o.Timing.ActionLimit)
		defer cancel()
		v, err := s.a.applier.Facts(ctx)
		v.Agent = s.o.Version
		s.post(func() {
			now := time.Now()
			f.running = false
			if err != nil {
				if f.tries++; f.tries == 1 {
					s.log.Warn().Err(err).Msg("describe the cluster")
				}
				f.due = now.Add(s.backoff(f.tries))
				return
			}
			f.tries, f.due = 0, now.Add(s.o.Timing.Recheck)
			if h := v.Hash(); h != f.hash {
				f.value, f.hash = &v, h
				s.log.Info().Str("kubernetes", v.KubernetesVersion).Int("nodes", v.Nodes).Int("api_versions", len(v.APIVersions)).Msg("cluster described")
				s.say.soon(now, 0)
			}
		})
	})
	return time.Time{}
}

func (s *site) stale(now time.Time) bool { return plan.Stale(s.desired, now) }
