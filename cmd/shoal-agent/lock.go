package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"shoal.dev/shoal/edgeagent"
	"shoal.dev/shoal/edgeagent/plan"
	"shoal.dev/shoal/edgeagent/store"
)

// lock takes a lock, or renews it. The agent sees the file within seconds; it need not run.
func lock(c config, w io.Writer, now time.Time) error {
	switch {
	case c.lockReason == "":
		return fmt.Errorf("%w: lock: say why with --reason, so that others know", errUsage)
	case c.lockFor < 0 || c.lockFor > plan.MaxLock:
		return fmt.Errorf("%w: lock: --for %s: a lock lasts a week at most; renew it when that is not enough", errUsage, c.lockFor)
	}
	st, err := store.Read(c.dataDir)
	if err != nil {
		return fmt.Errorf("%w (is --data-dir %s right?)", err, c.dataDir)
	}
	l := store.Lock{Name: c.lockName, Holder: c.lockHolder, Reason: c.lockReason, Since: now}
	if c.lockFor > 0 {
		l.Until = now.Add(c.lockFor)
	}
	if err := st.PutLock(l); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "Locked until %s: no releases and no removals. Repairs go on.\nTake it off with: shoal-agent unlock --data-dir %s --name %s\n",
		plan.Lock(l).End().Local().Format(time.RFC3339), c.dataDir, l.Name)
	return err
}

func unlock(c config, w io.Writer, now time.Time) error {
	st, err := store.Read(c.dataDir)
	if err != nil {
		return fmt.Errorf("%w (is --data-dir %s right?)", err, c.dataDir)
	}
	if err := st.DeleteLock(c.lockName); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("there is no lock file %q; shoal-agent status shows what holds changes (a Lease is taken off with kubectl)", c.lockName)
		}
		return err
	}
	_, err = fmt.Fprintf(w, "Lock %s is off: %s.\n", c.lockName, afterUnlock(c, now))
	return err
}

// afterUnlock says what comes of what waited: the lock may not have been all that holds it.
func afterUnlock(c config, now time.Time) string {
	st, err := edgeagent.ReadStatus(c.dataDir)
	switch {
	case err != nil:
		return "what else may hold changes cannot be read: " + err.Error()
	case len(st.Locks) > 0:
		l := st.Locks[0]
		return fmt.Sprintf("changes still wait for lock %s, until %s", l.Name, l.Ends.Local().Format(time.RFC3339))
	case st.Closed.Holds(now):
		return "changes still wait: " + st.Closed.Why
	case !st.Running:
		return "what waited begins when the agent runs again"
	}
	return "what waited begins within seconds"
}
