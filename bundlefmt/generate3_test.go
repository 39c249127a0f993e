package bundlefmt

// third makes the vectors of what came with version 3.
func (m *maker) third() {
	doc := func(version int, policy pairs) pairs {
		return wireDoc(8, wireEntry("web", 8).with(9, policy)).with(1, version)
	}
	m.payload("3-ok-strict", "ok", "whatever was added on the site is drift", doc(3, pairs{{4, true}, {21, true}}))
	m.payload("3-strict-marked-2", "malformed: marked 2", "a version 3 policy in a document marked 2: an old agent would refuse what this one takes", doc(2, pairs{{4, true}, {21, true}}))
	m.payload("3-strict-false", "malformed: canonical", "what is not so is not said", doc(3, pairs{{4, true}, {21, false}}))
	m.payload("3-unknown-policy", "malformed: unknown field", "20 was never used", doc(3, pairs{{20, true}, {21, true}}))
}
