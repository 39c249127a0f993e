package topics

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Role is what a client of the broker may publish and subscribe. Everything not said here is refused; the zero value may
// nothing.
type Role struct {
	publish   func(Topic) bool
	subscribe func(Topic) bool
	under     string // a reader: any filter below this prefix
	prefix    Prefix
}

// Agent may write where a cluster stands and read what it is to run. memberOf says whether the cluster is in a group; it
// is asked each time, because membership changes while agents stay connected. Agents subscribe to exact names, never by
// wildcard: of a group's bundles they can only fetch those whose digest their desired document told them. A cluster whose
// names are no DNS labels may do nothing.
func (p Prefix) Agent(c Cluster, memberOf func(group string) bool) Role {
	if !label(c.Workspace) || !label(c.Name) {
		return Role{} // an empty name would own the topics that have none
	}
	own := func(t Topic) bool { return t.ClusterID() == c }
	return Role{
		prefix: p,
		publish: func(t Topic) bool {
			switch t.Kind {
			case Reported, Presence, Event:
				return own(t)
			case Request:
				return own(t) && t.Verb.fromAgent()
			case Response:
				return own(t) && !t.Verb.fromAgent()
			}
			return false
		},
		subscribe: func(t Topic) bool {
			switch t.Kind {
			case Desired:
				return own(t)
			case Part:
				return own(t) || t.Cluster == "" && t.Workspace == c.Workspace && (t.Group == All || memberOf(t.Group))
			case Request:
				return own(t) && !t.Verb.fromAgent()
			case Response:
				return own(t) && t.Verb.fromAgent()
			case Trust:
				return t.Workspace == c.Workspace
			}
			return false
		},
	}
}

// Enrollee holds a token and nothing else: it may ask under that token and read the answer to its own nonce.
func (p Prefix) Enrollee(workspace, token string) Role {
	of := func(k Kind) func(Topic) bool {
		return func(t Topic) bool { return t.Kind == k && t.Workspace == workspace && t.Token == token }
	}
	return Role{prefix: p, publish: of(EnrollRequest), subscribe: of(EnrollResponse)}
}

// Reader may watch everything and write nothing. Enrolment traffic holds no secrets.
func (p Prefix) Reader() Role {
	return Role{prefix: p, under: string(p)}
}

// MayPublish says whether a message may be published to a topic name.
func (r Role) MayPublish(name string) bool {
	t, err := r.prefix.Parse(name)
	return err == nil && r.publish != nil && r.publish(t)
}

// MaySubscribe says whether a topic filter lies within what the role may read.
func (r Role) MaySubscribe(filter string) bool {
	if r.under != "" {
		// The filter's literal start decides: "shoal/v1/#" and "shoal/v1/+/trust" lie within, "#" and "+/v1/#" do not.
		return strings.HasPrefix(filter, r.under+"/") && validFilter(filter)
	}
	t, err := r.prefix.Parse(filter) // wildcards are no labels, so only exact names parse
	return err == nil && r.subscribe != nil && r.subscribe(t)
}

// validFilter refuses what MQTT 5 calls a malformed filter (clauses 4.7.1 and 4.7.3): brokers differ in what they make of
// one, and what it would match is nobody's to guess.
func validFilter(filter string) bool {
	if len(filter) > maxFilter || !utf8.ValidString(filter) || strings.ContainsFunc(filter, unicode.IsControl) {
		return false
	}
	levels := strings.Split(filter, "/")
	for i, l := range levels {
		if strings.Contains(l, "#") && (l != "#" || i != len(levels)-1) || strings.Contains(l, "+") && l != "+" {
			return false
		}
	}
	return true
}

// maxFilter is far above the longest topic of ours, in bytes.
const maxFilter = 1024
