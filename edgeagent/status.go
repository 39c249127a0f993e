package edgeagent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent/plan"
	"shoal.dev/shoal/edgeagent/store"
)

// Status is what a technician at the site wants to know, with or without a link.
type Status struct {
	At      time.Time `json:"at"` // when the agent wrote it
	Running bool      `json:"-"`  // whether an agent runs now
	Agent   string    `json:"agent"`

	Workspace string `json:"workspace,omitempty"` // empty: not enrolled
	Cluster   string `json:"cluster,omitempty"`
	Hub       string `json:"hub,omitempty"`

	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"` // of Connected
	Heard     time.Time `json:"heard,omitzero"` // last byte from the hub
	LinkError string    `json:"linkError,omitempty"`

	Locks  []LockStatus  `json:"locks,omitempty"`  // that hold changes now
	Closed *ClosedStatus `json:"closed,omitempty"` // no window is open

	Damaged int64 `json:"damaged,omitempty"` // files in the data directory
	bundlefmt.Reported
}

// ClosedStatus says why releases wait for a window.
type ClosedStatus struct {
	Why   string    `json:"why"`
	Opens time.Time `json:"opens,omitzero"` // zero: not known
}

// Holds reports whether the window is still closed at now, as far as the agent knew when it wrote that down.
func (c *ClosedStatus) Holds(now time.Time) bool {
	return c != nil && (c.Opens.IsZero() || now.Before(c.Opens))
}

func (s *site) status(now time.Time) Status {
	st := Status{
		At: now, Agent: s.o.Version, Workspace: s.id.Workspace, Cluster: s.id.Cluster, Hub: s.id.URL,
		Connected: s.link.up, Since: s.link.since, LinkError: s.link.err, Damaged: s.store.Damaged(), Reported: s.reported(now),
	}
	st.Locks = append(lockStatus(s.locks.files, false, now), lockStatus(s.locks.leases, true, now)...)
	if why, opens := plan.Closed(s.state(), now); why != "" {
		st.Closed = &ClosedStatus{Why: why, Opens: opens}
	}
	if s.link.client != nil {
		st.Heard = s.link.client.Heard()
	}
	return st
}

// writeStatus leaves on disk what ReadStatus reads.
func (s *site) writeStatus(now time.Time) {
	b, err := json.MarshalIndent(s.status(now), "", " ")
	if err == nil {
		err = s.store.PutStatus(b)
	}
	if err != nil && !s.say.statusFail {
		s.log.Warn().Err(err).Msg("keep status for \"shoal-agent status\"")
	}
	s.say.statusFail = err != nil
}

// ReadStatus looks into a data directory, whether an agent runs there or not. Without what the agent wrote last it shows
// what is on record.
func ReadStatus(dir string) (Status, error) {
	st, err := store.Read(dir)
	if err != nil {
		return Status{}, err
	}
	var out Status
	b, err := st.Status()
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		out = Status{}
		if out, err = recorded(st); err != nil {
			return Status{}, fmt.Errorf("read data directory: %w", err)
		}
	}
	now := time.Now()
	out.Locks = slices.DeleteFunc(out.Locks, func(l LockStatus) bool { return !l.Lease || !now.Before(l.Ends) })
	files, err := st.Locks() // what is true now, not when the agent looked last
	if err != nil {
		return Status{}, err
	}
	for _, f := range files {
		out.Locks = append(out.Locks, lockStatus([]plan.Lock{plan.Lock(f)}, false, now)...)
	}
	out.Running = st.Running()
	if !out.Running {
		out.Connected = false
	}
	return out, nil
}

func recorded(st *store.Store) (Status, error) {
	var out Status
	id, err := st.Identity()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return out, err
	}
	out.Workspace, out.Cluster, out.Hub = id.Workspace, id.Cluster, id.URL
	f, err := st.Floor()
	if err != nil {
		return out, err
	}
	out.Serial, out.Trust = f.Desired, f.Trust
	recs, err := st.Records()
	if err != nil {
		return out, err
	}
	for _, r := range recs {
		d := bundlefmt.DeploymentReport{Name: r.Name, State: r.State, Message: r.Message, Since: r.Since}
		if r.Applied != nil {
			d.Serial, d.Digest = r.Applied.Serial, r.Applied.Digest
		}
		out.Deployments = append(out.Deployments, d)
	}
	slices.SortFunc(out.Deployments, func(a, b bundlefmt.DeploymentReport) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out, nil
}
