// Package fleet is the hub's view of the fleet, in memory: what each cluster was ordered, what it reported, whether it has
// a link, and what the rollout has decided for it. It is built from retained topics when the hub starts and from live messages
// after that; nothing here is stored.
package fleet

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

// Link says whether a cluster's agent is connected.
type Link string

// Links. Unknown: nothing was heard of the cluster since this hub started.
const (
	Online  Link = "Online"
	Offline Link = "Offline"
	Unknown Link = "Unknown"
)

// Member is what the hub knows of one cluster. The pointers are shared and never written to after they were set.
type Member struct {
	Ordered  *bundlefmt.Desired // nil: nothing was ordered, or the broker lost it
	Message  []byte             // Ordered as it was signed
	SentAt   time.Time          // when Message was last published by this hub; zero: not since it started
	Reported *bundlefmt.Reported
	Heard    bool // the cluster itself has reported since the hub started: Reported is no message of before
	Facts    *bundlefmt.Facts
	Assigned map[string]publish.Assignment
	Problem  Problem           // why nothing can be ordered for it
	LeftOut  map[string]string // why deployments are not ordered as they are assigned, although others are

	Link      Link
	LinkSince time.Time
	Agent     string // version
	nonce     string
	drafts    []draft   // documents that Ordered has replaced under its own number
	heard     time.Time // last live message
	asked     time.Time // last time a report was asked for
}

// draft is a document that was published while its cluster was silent, and replaced under the same number.
type draft struct {
	ordered *bundlefmt.Desired
	message []byte
}

// Records are what is known of the cluster's documents, apart from what the API has on record.
func (m Member) Records() publish.Records {
	r := publish.Records{Ordered: m.Ordered, Reported: m.Reported, Heard: m.Heard, Online: m.Link == Online}
	if m.Ordered != nil {
		r.Message = bundlefmt.Sum(m.Message)
	}
	return r
}

// Entry finds a deployment in the document in force.
func (m Member) Entry(name string) (bundlefmt.Deployment, bool) {
	if m.Ordered == nil {
		return bundlefmt.Deployment{}, false
	}
	i := slices.IndexFunc(m.Ordered.Deployments, func(d bundlefmt.Deployment) bool { return d.Name == name })
	if i < 0 {
		return bundlefmt.Deployment{}, false
	}
	return m.Ordered.Deployments[i], true
}

// Report finds a deployment in the newest report.
func (m Member) Report(name string) (bundlefmt.DeploymentReport, bool) {
	if m.Reported == nil {
		return bundlefmt.DeploymentReport{}, false
	}
	i := slices.IndexFunc(m.Reported.Deployments, func(d bundlefmt.DeploymentReport) bool { return d.Name == name })
	if i < 0 {
		return bundlefmt.DeploymentReport{}, false
	}
	r := m.Reported.Deployments[i]
	if e, ok := m.Entry(name); ok && r.Digest.IsZero() && r.Serial == e.Serial {
		r.Digest = e.Digest // left out because we know it
	}
	return r, true
}

// Options of a View.
type Options struct {
	Prefix topics.Prefix
	Trust  bundlefmt.Trust // the hub's own signing keys: a desired document on the broker counts only with one of them
	Log    zerolog.Logger
	// Changed is told of every cluster about which something new is known. It must not block.
	Changed func(topics.Cluster)
}

// View is safe for concurrent use.
type View struct {
	o      Options
	limits bundlefmt.Limits

	mu      sync.Mutex
	members map[topics.Cluster]*Member
	// pending: workspace → bundles that have not been looked at since the hub started, with what kept the hub from it, if anything.
	pending map[string]map[string]string
}

// New makes an empty view.
func New(o Options) *View {
	return &View{o: o, limits: bundlefmt.DefaultLimits(), members: map[topics.Cluster]*Member{}, pending: map[string]map[string]string{}}
}

func (v *View) member(c topics.Cluster) *Member {
	m := v.members[c]
	if m == nil {
		m = &Member{Link: Unknown, Assigned: map[string]publish.Assignment{}}
		v.members[c] = m
	}
	return m
}

// Get copies what is known of a cluster; an unheard-of one is empty.
func (v *View) Get(c topics.Cluster) Member {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.members[c]
	if m == nil {
		return Member{Link: Unknown}
	}
	out := *m
	out.Assigned = maps.Clone(m.Assigned)
	return out
}

// all copies what is known of every cluster.
func (v *View) all() []Member {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]Member, 0, len(v.members))
	for _, m := range v.members {
		c := *m
		c.Assigned = maps.Clone(m.Assigned)
		out = append(out, c)
	}
	return out
}

// Forget drops a cluster that was deleted.
func (v *View) Forget(c topics.Cluster) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.members, c)
}

// Hear takes in a message of a cluster. Bad ones are logged and change nothing.
func (v *View) Hear(t topics.Topic, m mqtt.Message, now time.Time) {
	c := t.ClusterID()
	changed, err := v.hear(c, t, m, now)
	if err != nil {
		v.o.Log.Warn().Err(err).Str("cluster", c.String()).Str("topic", m.Topic).Msg("message of a cluster refused")
	}
	if changed {
		v.o.Changed(c)
	}
}

func (v *View) hear(c topics.Cluster, t topics.Topic, m mqtt.Message, now time.Time) (bool, error) {
	if len(m.Payload) == 0 {
		return false, nil // cleared, by us
	}
	switch t.Kind {
	case topics.Presence:
		p, err := bundlefmt.ParsePresence(m.Payload, v.limits)
		if err != nil {
			return false, err
		}
		return v.presence(c, p, m.Retain, now), nil
	case topics.Reported:
		r, err := bundlefmt.ParseReported(m.Payload, v.limits)
		if err != nil {
			return false, err
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		x := v.member(c)
		x.Reported = r
		x.Heard = x.Heard || !m.Retain
		x.settleDraft()
		v.alive(c, m.Retain, now)
		return true, nil
	case topics.Event:
		e, err := bundlefmt.ParseEvent(m.Payload, v.limits)
		if err != nil {
			return false, err
		}
		v.o.Log.Debug().Str("cluster", c.String()).Str("deployment", e.Deployment).Str("state", string(e.State)).Str("message", e.Message).Msg("event")
		return false, nil // the report that follows within seconds says it all
	case topics.Response:
		f, err := bundlefmt.ParseFacts(m.Payload, v.limits)
		if err != nil {
			return false, err
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		v.member(c).Facts = f
		v.alive(c, m.Retain, now)
		return true, nil
	}
	return false, nil
}

// settleDraft: the document in force is the one that the cluster has got, of those that were published under its number.
func (m *Member) settleDraft() {
	if m.Ordered == nil || m.Reported.Serial != m.Ordered.Serial {
		return
	}
	for _, d := range m.drafts {
		if bundlefmt.Sum(d.message) == m.Reported.Document {
			m.Ordered, m.Message = d.ordered, d.message
		}
	}
	m.drafts = nil
}

// presence takes in a birth or a Will. A Will of a connection that is not the current one is late: ignored.
func (v *View) presence(c topics.Cluster, p *bundlefmt.Presence, replayed bool, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	x := v.member(c)
	switch {
	case p.Online && replayed:
		// The broker may have died before the Will could be sent; Tick finds out.
		x.nonce, x.Agent = p.Nonce, p.Agent
	case p.Online:
		x.nonce, x.Agent, x.heard = p.Nonce, p.Agent, now
		x.setLink(Online, now)
	case x.nonce != "" && p.Nonce != x.nonce:
		return false
	default:
		since := now
		if replayed && p.Since.Before(now) {
			since = p.Since
		}
		x.setLink(Offline, since)
	}
	return true
}

// alive: a cluster that just spoke has a link, whatever a Will said. The caller holds mu.
func (v *View) alive(c topics.Cluster, replayed bool, now time.Time) {
	if replayed {
		return
	}
	x := v.member(c)
	x.heard = now
	if x.Link != Online {
		x.setLink(Online, now)
	}
}

func (m *Member) setLink(l Link, since time.Time) {
	if m.Link != l {
		m.Link, m.LinkSince = l, since
	}
}

// Adopt takes in a desired document found on the broker at start. One that this hub did not sign, or that is older than
// what is known, is refused: somebody else wrote it.
func (v *View) Adopt(c topics.Cluster, msg []byte) (*bundlefmt.Desired, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.member(c)
	who := bundlefmt.Audience{Workspace: c.Workspace, Cluster: c.Name}
	if m.Ordered != nil {
		who.Floor = m.Ordered.Serial
	}
	d, err := bundlefmt.OpenDesired(msg, v.o.Trust, who, v.limits)
	if err != nil {
		return nil, err
	}
	m.Ordered, m.Message = d, msg
	return d, nil
}

// Sent takes note of a document that was published just now.
func (v *View) Sent(c topics.Cluster, d *bundlefmt.Desired, msg []byte, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.member(c)
	if m.Ordered == nil || m.Ordered.Serial != d.Serial {
		m.drafts = nil
	} else if m.Ordered != d {
		m.drafts = append(m.drafts, draft{m.Ordered, m.Message})
	}
	m.Ordered, m.Message, m.SentAt = d, msg, now
	for name, a := range m.Assigned {
		gone := !slices.ContainsFunc(d.Remove, func(r bundlefmt.Removal) bool { return r.Name == name })
		if a.Remove && a.Wait == "" && gone {
			delete(m.Assigned, name)
		}
	}
}

// Assign records what the rollout decided for a bundle on a cluster and tells about it if it is new.
func (v *View) Assign(c topics.Cluster, bundle string, a publish.Assignment) {
	v.mu.Lock()
	m := v.member(c)
	old, ok := m.Assigned[bundle]
	m.Assigned[bundle] = a
	v.mu.Unlock()
	if !ok || !old.Equal(a) {
		v.o.Changed(c)
	}
}

// Block records why nothing can be ordered for a cluster, and that something can again, and tells about it if it is new.
func (v *View) Block(c topics.Cluster, p Problem) {
	v.mu.Lock()
	m := v.member(c)
	changed := m.Problem != p
	m.Problem = p
	v.mu.Unlock()
	if changed {
		v.o.Changed(c)
	}
}

// LeaveOut records for which deployments a cluster has no room, and tells about it if that is new. The map is kept.
func (v *View) LeaveOut(c topics.Cluster, why map[string]string) {
	v.mu.Lock()
	m := v.member(c)
	changed := !maps.Equal(m.LeftOut, why)
	m.LeftOut = why
	v.mu.Unlock()
	if changed {
		v.o.Changed(c)
	}
}

// Having lists the clusters of a workspace that were ordered to run a bundle, or say they do.
func (v *View) Having(workspace, bundle string) []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var names []string
	for c, m := range v.members {
		if c.Workspace != workspace {
			continue
		}
		_, ordered := m.Entry(bundle)
		_, reported := m.Report(bundle)
		if ordered || reported {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Expect says which bundles exist when the hub starts. Until each was looked at once (see Looked) a workspace's documents
// are not written: a hub that has not read all of its intent yet must not publish half of it.
func (v *View) Expect(workspace, bundle string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.pending[workspace] == nil {
		v.pending[workspace] = map[string]string{}
	}
	v.pending[workspace][bundle] = ""
}

// Unlooked notes why a bundle could not be looked at. It matters only until it was looked at once.
func (v *View) Unlooked(workspace, bundle, why string) {
	v.mu.Lock()
	old, pending := v.pending[workspace][bundle]
	if pending {
		v.pending[workspace][bundle] = why
	}
	v.mu.Unlock()
	if pending && old != why {
		v.tellAll(workspace)
	}
}

// Looked marks a bundle as looked at.
func (v *View) Looked(workspace, bundle string) {
	v.mu.Lock()
	delete(v.pending[workspace], bundle)
	done := v.pending[workspace] != nil && len(v.pending[workspace]) == 0
	if done {
		delete(v.pending, workspace)
	}
	v.mu.Unlock()
	if done {
		v.tellAll(workspace)
	}
}

// Gone drops what was decided for a bundle that does not exist any more. What was ordered stays.
func (v *View) Gone(workspace, bundle string) {
	var had []topics.Cluster
	v.mu.Lock()
	for c, m := range v.members {
		if a, ok := m.Assigned[bundle]; ok && c.Workspace == workspace && (!a.Remove || a.Wait != "") {
			delete(m.Assigned, bundle)
			had = append(had, c)
		}
	}
	v.mu.Unlock()
	for _, c := range had {
		v.o.Changed(c)
	}
	v.Looked(workspace, bundle)
}

// tellAll tells that something is new about every cluster of a workspace.
func (v *View) tellAll(workspace string) {
	var all []topics.Cluster
	v.mu.Lock()
	for c := range v.members {
		if c.Workspace == workspace {
			all = append(all, c)
		}
	}
	v.mu.Unlock()
	for _, c := range all {
		v.o.Changed(c)
	}
}

// Complete says whether every bundle of a workspace was looked at since the hub started.
func (v *View) Complete(workspace string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.pending[workspace]) == 0
}

// Incomplete says why a workspace is not complete: the first bundle, in the order of their names, that the hub could not look at. It
// is empty if the hub has just not come to all of them yet.
func (v *View) Incomplete(workspace string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, b := range slices.Sorted(maps.Keys(v.pending[workspace])) {
		if why := v.pending[workspace][b]; why != "" {
			return fmt.Sprintf("bundle %s: %s", b, why)
		}
	}
	return ""
}

const (
	// askAfter is how long a cluster that was online before the hub restarted may be silent before it is asked to speak;
	// giveUp is when it counts as offline.
	askAfter = 20 * time.Second
	giveUp   = 90 * time.Second
)

// Tick finds clusters that were online when the hub last ran and have not been heard since. It returns those to ask.
func (v *View) Tick(started, now time.Time) (ask []topics.Cluster) {
	var offline []topics.Cluster
	v.mu.Lock()
	for c, m := range v.members {
		if m.Link != Unknown || m.nonce == "" {
			continue
		}
		switch {
		case now.Sub(started) > giveUp:
			m.setLink(Offline, started)
			offline = append(offline, c)
		case now.Sub(started) > askAfter && m.asked.IsZero():
			m.asked = now
			ask = append(ask, c)
		}
	}
	v.mu.Unlock()
	for _, c := range offline {
		v.o.Changed(c)
	}
	return ask
}
