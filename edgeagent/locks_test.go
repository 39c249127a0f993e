package edgeagent

import (
	"testing"
	"time"

	"shoal.dev/shoal/edgeagent/plan"
)

// A lock that was taken while the clock was ahead ends a week after it was seen, and not never; set right again, the clock counts.
func TestLockFromTheFuture(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	taken := now.AddDate(20, 0, 0)
	var l locks
	held := func(at time.Time) bool {
		return l.past([]plan.Lock{{Name: "a", Since: taken, Until: taken.Add(time.Hour)}}, at)[0].Held(at)
	}
	for _, c := range []struct {
		at   time.Time
		held bool
	}{
		{now, true}, {now.Add(plan.MaxLock - time.Second), true}, {now.Add(plan.MaxLock), false}, {taken.Add(time.Minute), true}, {taken.Add(time.Hour), false},
	} {
		if got := held(c.at); got != c.held {
			t.Errorf("at %s: held %t", c.at, got)
		}
	}
}
