package edgeagent

import (
	"context"
	"slices"
	"time"

	"shoal.dev/shoal/edgeagent/apply"
	"shoal.dev/shoal/edgeagent/plan"
)

// locks are the site's own say: files in the data directory, and Leases in the agent's namespace.
type locks struct {
	files  []plan.Lock
	leases []plan.Lock
	ahead  map[string]time.Time // when those from the future were seen first
	failed bool
}

func (l *locks) all() []plan.Lock { return slices.Concat(l.files, l.leases) }

// past gives locks that begin in the future (a clock was set since, or is another one) the time at which they were seen first: else
// such a lock would outlast its week, or never end.
func (l *locks) past(list []plan.Lock, now time.Time) []plan.Lock {
	for i, k := range list {
		if !k.Since.After(now) {
			continue
		}
		key := k.Name + k.Since.Format(time.RFC3339Nano)
		if first, ok := l.ahead[key]; !ok || first.After(now) {
			if l.ahead == nil || len(l.ahead) >= maxAhead {
				l.ahead = map[string]time.Time{}
			}
			l.ahead[key] = now
		}
		list[i].Since = l.ahead[key]
	}
	return list
}

const maxAhead = 256

// lookForLocks reads the lock files before every decision: who has taken a lock is sure that nothing begins any more. It says when
// to look again by itself. With files that cannot be listed the last ones known hold.
func (s *site) lookForLocks(now time.Time) (again time.Time) {
	l := &s.locks
	again = now.Add(s.o.Timing.Locks)
	list, err := s.store.Locks()
	if err != nil {
		if !l.failed {
			s.log.Error().Err(err).Msg("look for lock files")
		}
		l.failed = true
		return again
	}
	l.failed = false
	files := make([]plan.Lock, 0, len(list))
	for _, f := range list {
		files = append(files, plan.Lock(f))
	}
	files = l.past(files, now)
	s.saySoonIf(!slices.EqualFunc(files, l.files, func(a, b plan.Lock) bool { return a.Name == b.Name && a.Reason == b.Reason && a.End().Equal(b.End()) }))
	l.files = files
	return again
}

func (s *site) saySoonIf(changed bool) {
	if changed {
		s.say.soon(time.Now(), 0)
	}
}

// watchLocks tells the site of Leases until ctx ends.
func (a *Agent) watchLocks(ctx context.Context, s *site) {
	if a.o.Namespace == "" {
		return
	}
	for n := 1; ctx.Err() == nil; n++ {
		began := time.Now()
		err := a.applier.WatchLocks(ctx, func(list []apply.Lock) {
			leases := make([]plan.Lock, 0, len(list))
			for _, l := range list {
				leases = append(leases, plan.Lock(l))
			}
			s.post(func() {
				s.locks.leases = s.locks.past(leases, time.Now())
				s.say.soon(time.Now(), 0)
			})
		})
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			n = 1
		}
		if n > 1 { // once is the ordinary end of a watch
			a.log.Warn().Err(err).Msg("locks on the cluster are not seen, trying again")
		}
		if !pause(ctx, s.backoff(n)) {
			return
		}
	}
}

// LockStatus is a lock as "shoal-agent status" shows it.
type LockStatus struct {
	Name   string    `json:"name"`
	Holder string    `json:"holder,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Ends   time.Time `json:"ends"`
	Lease  bool      `json:"lease,omitempty"` // a Lease on the cluster; else a file
}

func lockStatus(list []plan.Lock, lease bool, now time.Time) []LockStatus {
	var out []LockStatus
	for _, l := range list {
		if l.Held(now) {
			out = append(out, LockStatus{Name: l.Name, Holder: l.Holder, Reason: l.Reason, Ends: l.End(), Lease: lease})
		}
	}
	return out
}
