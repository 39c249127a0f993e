package bundlefmt

import (
	"crypto/ed25519"
	"strings"
)

// second makes the vectors of what came with version 2.
func (m *maker) second() {
	doc := func(policy pairs) pairs { return wireDoc(8, wireEntry("web", 8).with(9, policy)).with(1, 2) }
	window := pairs{{1, "0 2 * * *"}, {2, 10800}, {3, "Europe/Berlin"}, {4, true}, {5, true}}
	full := pairs{{1, "web"}, {8, 600}, {9, true}, {10, true}, {11, true}, {12, true}, {13, "deployer"}, {14, true}, {15, true}, {16, true}, {17, 7}, {18, true},
		{19, []any{pairs{{1, "db"}, {2, []any{"Ready", "Modified"}}}, pairs{{1, "certs"}}}}}
	m.payload("2-ok-all-fields", "ok", "every field that version 2 brought has a value",
		append(doc(full), pair{8, []any{pairs{{1, "old"}, {2, 8}, {4, true}}}}, pair{9, []any{window, pairs{{1, "30 12 * * 1-5"}, {2, 60}, {5, true}}}}))
	m.payload("2-ok-rollback", "ok", "one new policy field makes it version 2", doc(pairs{{11, true}}))

	m.payload("2-marked-1", "malformed: marked 1", "a version 2 policy in a document marked 1: an old agent would refuse what this one takes", doc(full).with(1, 1))
	m.payload("2-marked-1-windows", "malformed: marked 1", "windows in a document marked 1", append(wireDoc(8), pair{9, []any{window}}))
	m.payload("2-nothing-new", "malformed: marked 2", "a document is marked with the oldest version that can carry it: one document, one encoding", wireDoc(8, wireEntry("web", 8)).with(1, 2))
	m.payload("2-version-3", "version: format 3", "written by a newer hub", doc(full).with(1, 3))
	m.payload("2-version-3-new-field", "version: format 3", "a newer hub's new field is told apart from a broken document", doc(full).with(1, 3).with(99, "new"))
	m.payload("2-unknown-policy", "malformed: unknown field", "a policy that this side would silently not follow", doc(full.with(20, true)))
	m.payload("2-service-account-path", "malformed: service account", "a name that would be another path of the API", doc(full.with(13, "../x")))
	m.payload("2-dependency-name", "malformed: dependency", "dependencies are names of deployments", doc(pairs{{19, []any{pairs{{1, "Web"}}}}}))
	m.payload("2-dependency-state", "malformed: state", "a state nobody can be in", doc(pairs{{19, []any{pairs{{1, "db"}, {2, []any{"Splendid"}}}}}}))
	var many []any
	for range 65 {
		many = append(many, pairs{{1, "db"}})
	}
	m.payload("2-dependencies-many", "limit: number of dependencies", "more than 64", doc(pairs{{19, many}}))
	m.payload("2-window-endless", "limit: length of a window", "longer than a week", append(wireDoc(8).with(1, 2), pair{9, []any{window.with(2, 700000)}}))
	m.payload("2-window-overflow", "limit: length of a window", "2^64-1 seconds", append(wireDoc(8).with(1, 2), pair{9, []any{window.with(2, ^uint64(0))}}))
	m.payload("2-window-for-nothing", "malformed: window", "a window that is for no activity", append(wireDoc(8).with(1, 2), pair{9, []any{window.without(4).without(5)}}))
	m.payload("2-window-zero", "malformed: window", "a window of no length", append(wireDoc(8).with(1, 2), pair{9, []any{window.with(2, 0)}}))
	var windows []any
	for range 33 {
		windows = append(windows, window)
	}
	m.payload("2-windows-many", "limit: number of windows", "more than 32", append(wireDoc(8).with(1, 2), pair{9, windows}))

	add := func(name, want, why string, handling any) {
		m.t.Helper()
		x := lie{index: func(b []byte) []byte { // [1, entries] becomes [2, entries, handling]
			out := append([]byte{0x83, 2}, b[2:]...)
			return append(out, enc(handling)...)
		}}
		parts, digest := x.build()
		v := &vector{open: "bundle", digest: digest, keys: []ed25519.PublicKey{public("hub")}, limits: DefaultLimits(), parts: parts}
		v.expect, v.says = expect(want)
		m.add("bundle-2-"+name, why, v, nil)
	}
	hook := pairs{{1, 1}, {2, []any{"pre-install", "pre-upgrade"}}, {3, -5}, {4, []any{"hook-succeeded"}}}
	add("ok-all-fields", "ok", "everything a bundle can say beyond its objects", pairs{
		{1, []any{hook}},
		{2, []any{pairs{{1, "db.password"}, {2, "shoalsitevalue0123456789"}, {3, "none"}}, pairs{{1, "db.host"}, {4, true}}}},
		{3, []any{pairs{{1, "Secret"}, {2, "web"}, {3, "site"}, {4, "values.yaml"}}}},
		{4, []any{pairs{{1, "apps/v1"}, {2, "Deployment"}, {3, "web"}, {4, "web"}, {5, []any{"/spec/replicas"}}, {6, []any{pairs{{1, "replace"}, {2, "/spec/paused"}, {3, "true"}}}}}}},
		{5, []any{pairs{{"type", "Degraded"}, {"status", "False"}}.sorted()}},
		{6, []any{pairs{{1, "example.com"}, {2, "Ship"}, {3, "self.status.phase == 'Afloat'"}, {4, "self.status.phase == 'Sunk'"}, {5, "self.status.why"}}}},
		{7, pairs{{"team", "web"}}},
		{8, pairs{{"contact", "web@example.com"}}},
	})
	add("ok-hook", "ok", "one object is a hook", pairs{{1, []any{hook}}})
	add("nothing-said", "malformed: first form", "with nothing to say the index has its first form: one bundle, one digest", pairs{})
	add("unknown-field", "malformed: unknown field", "handling that this side would silently not follow", pairs{{1, []any{hook}}, {99, true}})
	add("hook-of-nothing", "malformed: hook is object 2 of 2", "there is no such object", pairs{{1, []any{hook.with(1, 2)}}})
	add("hook-twice", "malformed: a hook twice", "one object, two hooks", pairs{{1, []any{hook, hook}}})
	add("hook-event", "malformed: hook events", "an event nobody knows: it would never run", pairs{{1, []any{hook.with(2, []any{"on-sunday"})}}})
	add("hook-no-event", "malformed: without an event", "a hook that never runs", pairs{{1, []any{hook.with(2, []any{})}}})
	add("hook-delete", "malformed: delete policies", "a policy nobody knows", pairs{{1, []any{hook.with(4, []any{"never"})}}})
	add("site-value-no-token", "malformed: site value", "neither a token nor fixed", pairs{{2, []any{pairs{{1, "a"}}}}})
	add("values-from-kind", "malformed: valuesFrom", "values come from a Secret or a ConfigMap", pairs{{3, []any{pairs{{1, "Pod"}, {3, "a"}, {4, "b"}}}}})
	add("values-from-path", "malformed: valuesFrom", "a name that would be another path of the API", pairs{{3, []any{pairs{{1, "Secret"}, {3, "../x"}, {4, "b"}}}}})
	add("health-empty", "malformed: health rule", "a rule that says nothing", pairs{{6, []any{pairs{{2, "Ship"}}}}})
	add("health-long", "limit: health rule", "an expression above 16 KiB", pairs{{6, []any{pairs{{2, "Ship"}, {3, strings.Repeat("a", 17000)}}}}})
}

// sorted puts text keys into the order of deterministic CBOR: by length, then bytes.
func (p pairs) sorted() pairs {
	out := append(pairs{}, p...)
	for i := range out {
		for j := i + 1; j < len(out); j++ {
			a, b := out[i].k.(string), out[j].k.(string)
			if len(b) < len(a) || len(b) == len(a) && b < a {
				out[i], out[j] = out[j], out[i]
			}
		}
	}
	return out
}
