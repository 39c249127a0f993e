package bundlefmt

import (
	"fmt"
	"strings"
)

// third makes the vectors of what came with version 3.
func (m *maker) third() {
	m.strict()
	m.many()
}

func (m *maker) many() {
	doc := func(version, deployments, removals int) pairs {
		var run, remove []any
		for i := range deployments {
			run = append(run, wireEntry(fmt.Sprintf("d%03d", i), 8))
		}
		for i := range removals {
			remove = append(remove, pairs{{1, fmt.Sprintf("r%03d", i)}, {2, 8}})
		}
		d := pairs{{1, version}, {2, "shop"}, {3, "paris-1"}, {4, 8}, {5, issued.Unix()}}
		if len(run) > 0 {
			d = append(d, pair{7, run})
		}
		if len(remove) > 0 {
			d = append(d, pair{8, remove})
		}
		return d
	}
	m.payload("3-ok-many", "ok", "129 deployments: more than version 1 and 2 carry", doc(3, 129, 0))
	m.payload("3-ok-together", "ok", "100 deployments and 29 removals", doc(3, 100, 29))
	m.payload("3-marked-1", "malformed: marked 1", "129 deployments in a document marked 1: an old agent would refuse what this one takes", doc(1, 129, 0))
	m.payload("3-marked-2", "malformed: marked 2", "129 deployments in a document marked 2", doc(2, 129, 0))
	m.payload("3-few", "malformed: marked 3", "a document is marked with the oldest version that can carry it", doc(3, 128, 0))
	m.payload("3-version-4", "version: format 4", "written by a newer hub", doc(4, 129, 0))
	m.payload("3-too-many", "limit: number of deployments", "513 deployments", doc(3, 513, 0))

	add := func(name, want, why, text string) {
		m.t.Helper()
		v := &vector{open: "reported", limits: DefaultLimits(), message: []byte(text)}
		v.expect, v.says = expect(want)
		m.add("reported-"+name, why, v, nil)
	}
	digest := Sum([]byte("web")).String()
	report := func(version, n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf(`{"name":"d%03d","serial":8,"state":"Ready","ready":3,"total":3}`, i))
		}
		return fmt.Sprintf(`{"version":%d,"serial":8,"document":"%s","reads":3,"at":"2026-11-22T03:00:00Z","deployments":[%s]}`, version, digest, strings.Join(list, ","))
	}
	add("3-ok-many", "ok", "129 deployments, each the release that was ordered under its serial", report(3, 129))
	add("3-few", "malformed: marked 3", "a report about few deployments has the first form, which every hub reads", report(3, 128))
	add("3-marked-1", "limit: number of deployments", "the first form is for 128 at most", report(1, 129))
	add("3-version-4", "version", "a newer agent", report(4, 129))
	add("3-too-many", "limit: number of deployments", "513 deployments", report(3, 513))
	add("3-ok-document", "ok", "a report names the document that the site follows, and what the agent reads",
		`{"version":1,"serial":8,"document":"`+digest+`","reads":3,"at":"2026-11-22T03:00:00Z"}`)
	add("3-document", "malformed", "a digest that is none", `{"version":1,"serial":8,"document":"8","at":"2026-11-22T03:00:00Z"}`)
}

func (m *maker) strict() {
	doc := func(version int, policy pairs) pairs {
		return wireDoc(8, wireEntry("web", 8).with(9, policy)).with(1, version)
	}
	m.payload("3-ok-strict", "ok", "whatever was added on the site is drift", doc(3, pairs{{4, true}, {21, true}}))
	m.payload("3-strict-marked-2", "malformed: marked 2", "a version 3 policy in a document marked 2: an old agent would refuse what this one takes", doc(2, pairs{{4, true}, {21, true}}))
	m.payload("3-strict-false", "malformed: canonical", "what is not so is not said", doc(3, pairs{{4, true}, {21, false}}))
	m.payload("3-unknown-policy", "malformed: unknown field", "20 was never used", doc(3, pairs{{20, true}, {21, true}}))
}
