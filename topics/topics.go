// Package topics holds every MQTT topic name of Shoal: building, parsing, and who may use which. Nothing else
// in the tree spells a topic.
//
//	<prefix>/<workspace>/cluster/<cluster>/desired             retained  hub → agent   signed desired document
//	<prefix>/<workspace>/cluster/<cluster>/reported            retained  agent → hub   JSON, where each deployment stands
//	<prefix>/<workspace>/cluster/<cluster>/presence            retained  agent → hub   JSON, also the Will
//	<prefix>/<workspace>/cluster/<cluster>/event               –         agent → hub   JSON, one transition
//	<prefix>/<workspace>/cluster/<cluster>/bundle/<digest>-<n> retained  hub → agent   part of a bundle for this cluster alone
//	<prefix>/<workspace>/group/<group>/bundle/<digest>-<n>     retained  hub → agents  part of a bundle that a group shares
//	<prefix>/<workspace>/cluster/<cluster>/request/<verb>      –         asker → asked see Verb
//	<prefix>/<workspace>/cluster/<cluster>/response/<verb>     –         asked → asker
//	<prefix>/<workspace>/trust                                 retained  hub → agents  signed set of signing keys
//	<prefix>/<workspace>/enroll/<token>/<nonce>/request        –         site → hub    before a cluster has an identity
//	<prefix>/<workspace>/enroll/<token>/<nonce>/response       –         hub → site
//
// With the default prefix no topic has more than 7 levels; names are DNS labels; <digest> is 32 hexadecimal digits. The group
// [All] holds every cluster of a workspace.
package topics

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Prefix starts every topic. The zero value is unusable; see Default.
type Prefix string

// Default is the prefix unless configured otherwise.
const Default Prefix = "shoal/v1"

// All is the name of the group that holds every cluster of a workspace. It is no DNS label, so no ClusterGroup can
// be called that.
const All = "_all"

// ParsePrefix refuses what could not stand at the start of a topic, or would make topics deeper than hosted brokers take.
func ParsePrefix(s string) (Prefix, error) {
	levels := strings.Split(s, "/")
	if len(levels) > 2 {
		return "", fmt.Errorf("topic prefix %q: want one or two levels, such as %q", s, Default)
	}
	for _, l := range levels {
		if !label(l) {
			return "", fmt.Errorf("topic prefix %q: level %q: want a-z, 0-9 and dashes", s, l)
		}
	}
	return Prefix(s), nil
}

// Kind is what a topic is for.
type Kind string

// Kinds of topics.
const (
	Desired        Kind = "desired"
	Reported       Kind = "reported"
	Presence       Kind = "presence"
	Event          Kind = "event"
	Part           Kind = "bundle"
	Request        Kind = "request"
	Response       Kind = "response"
	Trust          Kind = "trust"
	EnrollRequest  Kind = "enroll-request"
	EnrollResponse Kind = "enroll-response"
)

// Verb is what a request asks for.
type Verb string

// Verbs. Each has one direction.
const (
	VerbBundle Verb = "bundle" // agent asks hub: publish these parts again
	VerbFacts  Verb = "facts"  // hub asks agent: describe your cluster
	VerbReport Verb = "report" // hub asks agent: publish the reported document again; the answer is that document
)

func (v Verb) fromAgent() bool { return v == VerbBundle }
func (v Verb) known() bool     { return v == VerbBundle || v == VerbFacts || v == VerbReport }

// Cluster is a member of the fleet: unique within its workspace.
type Cluster struct{ Workspace, Name string }

// String is "workspace/name".
func (c Cluster) String() string { return c.Workspace + "/" + c.Name }

// ParseCluster reads the form that String writes.
func ParseCluster(s string) (Cluster, error) {
	ws, name, ok := strings.Cut(s, "/")
	if !ok || !label(ws) || !label(name) {
		return Cluster{}, fmt.Errorf("cluster %q: want workspace/name", s)
	}
	return Cluster{ws, name}, nil
}

// Topic is a topic name taken apart. Fields that its Kind does not use are empty.
type Topic struct {
	Kind      Kind
	Workspace string
	Cluster   string // of cluster topics
	Group     string // of group topics: Kind Part with an empty Cluster
	Digest    string // Part: 32 hexadecimal digits
	Part      int    // Part
	Verb      Verb   // Request, Response
	Token     string // Enroll…
	Nonce     string // Enroll…
}

// ErrNotOurs is returned by Parse for topics of somebody else.
var ErrNotOurs = errors.New("not a topic of shoal")

// Name is the topic's name.
func (p Prefix) Name(t Topic) string {
	switch t.Kind {
	case Trust:
		return p.join(t.Workspace, "trust")
	case EnrollRequest:
		return p.join(t.Workspace, "enroll", t.Token, t.Nonce, "request")
	case EnrollResponse:
		return p.join(t.Workspace, "enroll", t.Token, t.Nonce, "response")
	case Part:
		part := t.Digest + "-" + strconv.Itoa(t.Part)
		if t.Cluster == "" {
			return p.join(t.Workspace, "group", t.Group, "bundle", part)
		}
		return p.join(t.Workspace, "cluster", t.Cluster, "bundle", part)
	case Request, Response:
		return p.join(t.Workspace, "cluster", t.Cluster, string(t.Kind), string(t.Verb))
	default:
		return p.join(t.Workspace, "cluster", t.Cluster, string(t.Kind))
	}
}

func (p Prefix) join(levels ...string) string { return string(p) + "/" + strings.Join(levels, "/") }

// Desired, and the methods after it, name the topics of one cluster.
func (p Prefix) Desired(c Cluster) string  { return p.of(c, Desired) }
func (p Prefix) Reported(c Cluster) string { return p.of(c, Reported) }
func (p Prefix) Presence(c Cluster) string { return p.of(c, Presence) }
func (p Prefix) Event(c Cluster) string    { return p.of(c, Event) }

func (p Prefix) of(c Cluster, k Kind) string {
	return p.Name(Topic{Kind: k, Workspace: c.Workspace, Cluster: c.Name})
}

// Request and Response name the topics of a verb.
func (p Prefix) Request(c Cluster, v Verb) string {
	return p.Name(Topic{Kind: Request, Workspace: c.Workspace, Cluster: c.Name, Verb: v})
}
func (p Prefix) Response(c Cluster, v Verb) string {
	return p.Name(Topic{Kind: Response, Workspace: c.Workspace, Cluster: c.Name, Verb: v})
}

// Trust names the topic of a workspace's trust document.
func (p Prefix) Trust(workspace string) string {
	return p.Name(Topic{Kind: Trust, Workspace: workspace})
}

// Part names a bundle part for the given cluster; with a group it is the group's topic.
func (p Prefix) Part(c Cluster, group, digest string, part int) string {
	t := Topic{Kind: Part, Workspace: c.Workspace, Cluster: c.Name, Digest: digest, Part: part}
	if group != "" {
		t.Cluster, t.Group = "", group
	}
	return p.Name(t)
}

// Everything matches all topics under the prefix: for the hub and for people who watch.
func (p Prefix) Everything() string { return string(p) + "/#" }

// FromAgents are the filters by which the hub hears every cluster and every site that enrols.
func (p Prefix) FromAgents() []string {
	return []string{
		p.join("+", "cluster", "+", "reported"), p.join("+", "cluster", "+", "presence"), p.join("+", "cluster", "+", "event"),
		p.join("+", "cluster", "+", "request", string(VerbBundle)), p.join("+", "cluster", "+", "response", string(VerbFacts)),
		p.join("+", "enroll", "+", "+", "request"),
	}
}

// FromHub are the filters by which the hub finds again what it published.
func (p Prefix) FromHub() []string {
	return []string{p.join("+", "cluster", "+", "desired"), p.join("+", "cluster", "+", "bundle", "+"), p.join("+", "group", "+", "bundle", "+"), p.join("+", "trust")}
}

// ToAgent are the filters an agent keeps subscribed; parts of bundles come and go beside them.
func (p Prefix) ToAgent(c Cluster) []string {
	return []string{p.Desired(c), p.Trust(c.Workspace), p.Request(c, VerbFacts), p.Request(c, VerbReport)}
}

// Parse takes a topic name apart. It accepts exactly what Name can produce.
func (p Prefix) Parse(name string) (Topic, error) {
	rest, ok := strings.CutPrefix(name, string(p)+"/")
	if !ok {
		return Topic{}, fmt.Errorf("%w: %.80q", ErrNotOurs, name)
	}
	t, ok := parse(strings.Split(rest, "/"))
	if !ok {
		return Topic{}, fmt.Errorf("%w: %.80q", ErrNotOurs, name)
	}
	return t, nil
}

func parse(l []string) (Topic, bool) {
	if len(l) < 2 || !label(l[0]) {
		return Topic{}, false
	}
	t := Topic{Workspace: l[0]}
	switch {
	case len(l) == 2 && l[1] == "trust":
		t.Kind = Trust
		return t, true
	case len(l) == 5 && l[1] == "enroll" && label(l[2]) && label(l[3]):
		t.Token, t.Nonce = l[2], l[3]
		switch l[4] {
		case "request":
			t.Kind = EnrollRequest
		case "response":
			t.Kind = EnrollResponse
		}
		return t, t.Kind != ""
	case len(l) == 5 && l[1] == "group" && (label(l[2]) || l[2] == All) && l[3] == "bundle":
		t.Group = l[2]
		return t.withPart(l[4])
	case len(l) < 4 || l[1] != "cluster" || !label(l[2]):
		return Topic{}, false
	}
	t.Cluster = l[2]
	switch k := Kind(l[3]); {
	case len(l) == 4 && (k == Desired || k == Reported || k == Presence || k == Event):
		t.Kind = k
		return t, true
	case len(l) == 5 && k == Part:
		return t.withPart(l[4])
	case len(l) == 5 && (k == Request || k == Response):
		t.Kind, t.Verb = k, Verb(l[4])
		return t, t.Verb.known()
	}
	return Topic{}, false
}

func (t Topic) withPart(s string) (Topic, bool) {
	digest, n, ok := strings.Cut(s, "-")
	if !ok || len(digest) != 32 || strings.Trim(digest, "0123456789abcdef") != "" {
		return Topic{}, false
	}
	part, err := strconv.ParseUint(n, 10, 16)
	if err != nil || n != strconv.FormatUint(part, 10) {
		return Topic{}, false
	}
	t.Kind, t.Digest, t.Part = Part, digest, int(part)
	return t, true
}

// ClusterID of a cluster topic.
func (t Topic) ClusterID() Cluster { return Cluster{t.Workspace, t.Cluster} }

// label reports whether s is a DNS label (RFC 1123 §2.1).
func label(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
