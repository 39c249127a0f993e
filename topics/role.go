package topics

import "strings"

// Role is what a client of the broker may publish and subscribe. Everything not said here is refused.
type Role struct {
	publish   func(Topic) bool
	subscribe func(Topic) bool
	under     string // a reader: any filter below this prefix
	prefix    Prefix
}

// Agent may write where a cluster stands and read what it is to run. memberOf says whether the cluster is in a group; it
// is asked each time, because membership changes while agents stay connected. Agents subscribe to exact names, never by
// wildcard: of a group's bundles they can only fetch those whose digest their desired document told them.
func (p Prefix) Agent(c Cluster, memberOf func(group string) bool) Role {
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
	none := func(Topic) bool { return false }
	return Role{prefix: p, publish: none, subscribe: none, under: string(p)}
}

// MayPublish says whether a message may be published to a topic name.
func (r Role) MayPublish(name string) bool {
	t, err := r.prefix.Parse(name)
	return err == nil && r.publish(t)
}

// MaySubscribe says whether a topic filter lies within what the role may read.
func (r Role) MaySubscribe(filter string) bool {
	if r.under != "" {
		// The filter's literal start decides: "shoal/v1/#" and "shoal/v1/+/trust" lie within, "#" and "+/v1/#" do not.
		return strings.HasPrefix(filter, r.under+"/")
	}
	t, err := r.prefix.Parse(filter) // wildcards are no labels, so only exact names parse
	return err == nil && r.subscribe(t)
}
