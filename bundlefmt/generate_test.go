package bundlefmt

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/zstd"
)

// This file makes the vectors. It builds messages by hand, not with the code under test, wherever it can.

func testKey(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("shoal test key " + name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(name string) ed25519.PublicKey { return testKey(name).Public().(ed25519.PublicKey) }

func kid(name string) []byte { id := KeyIDOf(public(name)); return id[:] }

// pair is an entry of a map whose order and keys the test decides.
type pair struct{ k, v any }

type pairs []pair

func (p pairs) with(k, v any) pairs {
	out := slices.Clone(p)
	for i := range out {
		if out[i].k == k {
			out[i].v = v
			return out
		}
	}
	return append(out, pair{k, v})
}

func (p pairs) without(k any) pairs {
	return slices.DeleteFunc(slices.Clone(p), func(x pair) bool { return x.k == k })
}

// head writes the shortest head of a CBOR item (RFC 8949 §3).
func head(major byte, n int) []byte {
	switch {
	case n < 24:
		return []byte{major<<5 | byte(n)}
	case n < 1<<8:
		return []byte{major<<5 | 24, byte(n)}
	case n < 1<<16:
		return []byte{major<<5 | 25, byte(n >> 8), byte(n)}
	}
	return binary.BigEndian.AppendUint32([]byte{major<<5 | 26}, uint32(n))
}

func enc(v any) []byte {
	// By hand, because the library refuses to write what is wrong.
	switch v := v.(type) {
	case string:
		return append(head(3, len(v)), v...)
	case rawCBOR:
		return v
	case pairs: // in the order given, right or wrong
		out := head(5, len(v))
		for _, x := range v {
			out = append(append(out, enc(x.k)...), enc(x.v)...)
		}
		return out
	case []any:
		out := head(4, len(v))
		for _, x := range v {
			out = append(out, enc(x)...)
		}
		return out
	}
	b, err := cbor.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

type rawCBOR []byte

// envelopeOf is a COSE_Sign1 message under construction.
type envelopeOf struct {
	signer      string // name of the key that signs
	protected   any
	unprotected []byte
	payload     []byte
	tag         []byte
	detached    bool
}

func newEnvelope(contentType string, payload any) envelopeOf {
	return envelopeOf{signer: "hub", protected: header3(contentType, -8, kid("hub")), unprotected: []byte{0xa0}, payload: enc(payload), tag: []byte{0xd2}}
}

func header3(contentType string, alg int, kid []byte) pairs {
	return pairs{{1, alg}, {3, contentType}, {4, kid}}
}

func (e envelopeOf) by(signer string) envelopeOf {
	e.signer = signer
	p := e.protected.(pairs)
	e.protected = p.with(4, kid(signer))
	return e
}

// bytes signs as RFC 9052 §4.4 says and puts the message together.
func (e envelopeOf) bytes() []byte {
	protected := enc(e.protected)
	toSign := append(head(4, 4), enc("Signature1")...)
	toSign = append(toSign, enc(protected)...)
	toSign = append(toSign, enc([]byte{})...)
	toSign = append(toSign, enc(e.payload)...)
	sig := ed25519.Sign(testKey(e.signer), toSign)
	out := append(slices.Clone(e.tag), head(4, 4)...)
	out = append(out, enc(protected)...)
	out = append(out, e.unprotected...)
	if e.detached {
		out = append(out, 0xf6)
	} else {
		out = append(out, enc(e.payload)...)
	}
	return append(out, enc(sig)...)
}

var issued = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)

func wireEntry(name string, serial int) pairs {
	sum := Sum([]byte(name))
	return pairs{{1, name}, {2, serial}, {3, sum[:]}, {4, 2048}, {5, 700}, {6, 1}, {9, pairs{}}}
}

func wireDoc(serial int, entries ...any) pairs {
	p := pairs{{1, 1}, {2, "shop"}, {3, "paris-1"}, {4, serial}, {5, issued.Unix()}}
	if len(entries) > 0 {
		p = append(p, pair{7, entries})
	}
	return p
}

type maker struct {
	t    *testing.T
	out  map[string][]byte
	seen map[string]bool
}

func (m *maker) add(name, why string, v *vector, payload []byte) {
	m.t.Helper()
	if m.seen[name] {
		m.t.Fatalf("two vectors are called %s", name)
	}
	m.seen[name] = true
	diag, err := cbor.Diagnose(payload)
	if err != nil {
		diag = ""
	}
	if v.expect == "ok" {
		got, err := v.run()
		if err != nil {
			m.t.Errorf("%s: %v", name, err)
		}
		v.want = got
	}
	m.out[name] = v.format(why, diag)
}

func expect(s string) (reason, says string) {
	reason, says, _ = strings.Cut(s, ": ")
	return reason, says
}

// desired adds a document that a reader shop/paris-1 at serial 7 opens.
func (m *maker) desired(name, want, why string, msg []byte, change ...func(*vector)) {
	m.t.Helper()
	v := &vector{open: "desired", workspace: "shop", cluster: "paris-1", floor: 7, keys: []ed25519.PublicKey{public("hub")}, limits: DefaultLimits(), message: msg}
	v.expect, v.says = expect(want)
	for _, c := range change {
		c(v)
	}
	var payload []byte
	if e, _, err := envelope(msg); err == nil {
		payload = e.Payload
	}
	m.add("desired-"+name, why, v, payload)
}

func (m *maker) payload(name, want, why string, payload any, change ...func(*vector)) {
	m.t.Helper()
	m.desired(name, want, why, newEnvelope(TypeDesired, payload).bytes(), change...)
}

// generated makes every vector that this version knows of.
func generated(t *testing.T) map[string][]byte {
	m := &maker{t: t, out: map[string][]byte{}, seen: map[string]bool{}}
	m.envelopes()
	m.documents()
	m.trusts()
	m.bundles()
	m.texts()
	m.second()
	m.third()
	return m.out
}

func (m *maker) envelopes() {
	good := newEnvelope(TypeDesired, wireDoc(8, wireEntry("web", 8)))
	msg := good.bytes()

	m.desired("ok-one", "ok", "the smallest document that orders something", msg)
	m.desired("ok-second-key", "ok", "signed by the second of two trusted keys, as while keys are changed", good.by("hub-next").bytes(),
		func(v *vector) { v.keys = append(v.keys, public("hub-next")) })

	m.desired("untrusted-key", "untrusted: is unknown here", "a well-made document by somebody else's key", good.by("stranger").bytes())
	forged := good
	forged.signer = "stranger"
	m.desired("kid-mismatch", "untrusted: does not hold", "the key id is a trusted one, the signature another's", forged.bytes())
	m.desired("no-trust", "untrusted", "a reader that trusts no key takes nothing", msg, func(v *vector) { v.keys = nil })
	m.desired("root-is-no-signer", "untrusted", "the root key signs trust documents, not desired ones", good.by("root").bytes())

	p := good
	p.protected = header3(TypeDesired, -8, kid("hub")).without(4)
	m.desired("kid-missing", "untrusted: no key id", "without a key id nothing says which key to try", p.bytes())
	p.protected = header3(TypeDesired, -8, kid("hub")[:7])
	m.desired("kid-short", "untrusted: no key id", "a key id has 8 bytes", p.bytes())
	p = good
	p.protected = pairs{{1, -8}, {3, TypeDesired}}
	p.unprotected = enc(pairs{{4, kid("hub")}})
	m.desired("kid-unprotected", "untrusted: no key id", "a key id outside the signed header does not count", p.bytes())

	flipped := bytes.Clone(msg)
	flipped[len(flipped)-1] ^= 1
	m.desired("signature-changed", "untrusted: does not hold", "one bit of the signature", flipped)
	flipped = bytes.Replace(msg, []byte("paris-1"), []byte("paris-2"), 1)
	m.desired("payload-changed", "untrusted: does not hold", "the cluster was changed after signing", flipped, func(v *vector) { v.cluster = "paris-2" })
	high := bytes.Clone(msg)
	high[len(high)-1] |= 0x80
	m.desired("signature-malleable", "untrusted: does not hold", "S out of range: a second signature for the same bytes", high)

	m.desired("empty", "empty", "an empty retained message clears a topic; it never means that nothing is to run", nil)
	m.desired("truncated", "malformed: not a COSE_Sign1", "cut in the middle", msg[:len(msg)/2])
	m.desired("truncated-by-one", "malformed: not a COSE_Sign1", "the last byte is missing", msg[:len(msg)-1])
	m.desired("trailing-byte", "malformed", "one byte after the message", append(bytes.Clone(msg), 0))
	m.desired("twice", "malformed", "the message, and again the message", append(bytes.Clone(msg), msg...))
	m.desired("json", "malformed: not a COSE_Sign1", "a person's try", []byte(`{"workspace":"shop","cluster":"paris-1"}`))
	untagged := good
	untagged.tag = nil
	m.desired("untagged", "malformed: not a COSE_Sign1", "COSE_Sign1 without its tag 18", untagged.bytes())
	untagged.tag = []byte{0xd8, 98}
	m.desired("other-tag", "malformed: not a COSE_Sign1", "tagged as COSE_Sign (98)", untagged.bytes())
	untagged.tag = []byte{0xd8, 18}
	m.desired("long-tag", "malformed", "tag 18 in two bytes", untagged.bytes())

	p = good
	p.unprotected = enc(pairs{{4, kid("hub")}})
	m.desired("unprotected-header", "malformed: canonical", "nothing may stand outside the signature", p.bytes())
	p.unprotected = enc(pairs{{-70000, bytes.Repeat([]byte("x"), 100)}})
	m.desired("unprotected-unknown", "malformed: canonical", "a private label with freight", p.bytes())
	p = good
	p.protected = header3(TypeDesired, -7, kid("hub"))
	m.desired("other-algorithm", "malformed: canonical", "ES256 in the header, an Ed25519 signature behind it", p.bytes())
	p.protected = header3(TypeDesired, -8, kid("hub")).without(1)
	m.desired("no-algorithm", "malformed: canonical", "the algorithm is said, never guessed", p.bytes())
	p.protected = header3(TypeDesired, -8, kid("hub")).with(2, []any{1})
	m.desired("critical-header", "malformed: canonical", "a fourth header: crit", p.bytes())
	p.protected = pairs{{3, TypeDesired}, {1, -8}, {4, kid("hub")}}
	m.desired("header-order", "malformed", "header keys out of order", p.bytes())
	p.protected = pairs{{1, -8}, {1, -8}, {3, TypeDesired}, {4, kid("hub")}}
	m.desired("header-duplicate", "malformed", "a header that stands twice", p.bytes())
	p.protected = header3(TypeBundle, -8, kid("hub"))
	m.desired("content-type-bundle", "malformed: canonical", "content type of a bundle header over the payload of a desired document", p.bytes())
	p.protected = header3(TypeDesired, -8, kid("hub")).without(3)
	m.desired("content-type-missing", "malformed: canonical", "without a content type a message could be replayed as another kind", p.bytes())
	bundleHeader := newEnvelope(TypeBundle, pairs{{1, 1}, {2, kid("hub")}, {3, 1}, {4, 1}, {5, []any{kid("hub")}}})
	m.desired("bundle-header-replayed", "malformed: canonical", "a genuine bundle header put on the desired topic", bundleHeader.bytes())
	trust := newEnvelope(TypeTrust, pairs{{1, 1}, {2, "shop"}, {3, 9}, {4, issued.Unix()}, {5, []any{[]byte(public("hub"))}}})
	m.desired("trust-replayed", "malformed: canonical", "a trust document put on the desired topic", trust.bytes())
	p = good
	p.detached = true
	m.desired("detached", "untrusted", "the payload is nil: signed elsewhere", p.bytes())

	m.desired("too-large", "limit: desired document", "longer than a message may be: refused unread", msg, func(v *vector) { v.limits.PartSize = 200 })
}

func (m *maker) documents() {
	e := wireEntry("web", 8)
	m.payload("ok-empty", "ok", "a cluster that is to run nothing yet: removes nothing", wireDoc(8))
	m.payload("ok-equal-serial", "ok", "the document that is in force opens again, as after a restart", wireDoc(7, wireEntry("web", 7)))
	m.payload("ok-old-release", "ok", "deployments keep the serial of their last change", wireDoc(900, wireEntry("api", 8), wireEntry("web", 900)))
	m.payload("ok-removals", "ok", "two go, one of them keeps its objects", append(wireDoc(9, wireEntry("web", 8)), pair{8, []any{pairs{{1, "cache"}, {2, 9}}, pairs{{1, "shop-old"}, {2, 9}, {3, true}}}}))
	policy := pairs{{1, "web"}, {2, true}, {3, true}, {4, true}, {5, true}, {6, true}, {7, true}, {8, 600}}
	full := pairs{{1, "web"}, {2, 8}, {3, Sum([]byte("web")).bytes()}, {4, 1 << 20}, {5, 70000}, {6, 2}, {7, "stores"}, {8, "main@4f2a91c"}, {9, policy}}
	fullDoc := pairs{{1, 1}, {2, "shop"}, {3, "paris-1"}, {4, 8}, {5, issued.Unix()}, {6, issued.Add(72 * time.Hour).Unix()}, {7, []any{full}}}
	m.payload("ok-all-fields", "ok", "every field has a value", fullDoc)
	m.payload("ok-group-all", "ok", "parts shared by the whole workspace", wireDoc(8, e.with(7, "_all").without(9).with(9, pairs{})))
	m.payload("ok-five", "ok", "five deployments: a few hundred bytes", wireDoc(8, wireEntry("web", 8), wireEntry("api", 8), wireEntry("cache", 8), wireEntry("log-shipper", 8), wireEntry("node-exporter", 8)))

	m.payload("other-cluster", "audience: shop/rome-1", "a document for another cluster, replayed here", wireDoc(8, e).with(3, "rome-1"))
	m.payload("other-workspace", "audience: bank/paris-1", "a cluster of the same name in another workspace", wireDoc(8, e).with(2, "bank"))
	m.payload("stale", "stale: serial 6, already at 7", "an older document, replayed", wireDoc(6, wireEntry("web", 6)))
	m.payload("stale-before-content", "stale", "the serial is looked at before the entries", wireDoc(6, wireEntry("Web", 6)))

	m.payload("version-2", "version: format 2", "written by a newer hub", wireDoc(8, e).with(1, 2))
	m.payload("version-2-new-field", "version: format 2", "a newer hub's new field is told apart from a broken document", wireDoc(8, e).with(1, 2).with(99, "new"))
	m.payload("version-2-new-form", "version: format 2", "a newer hub may change the form of what we know", wireDoc(8).with(1, 2).with(7, "all of them"))
	m.payload("version-0", "malformed: no format version", "versions start at 1", wireDoc(8, e).with(1, 0))
	m.payload("version-missing", "malformed: no format version", "no version at all", wireDoc(8, e).without(1))
	m.payload("unknown-field", "malformed: unknown field", "a field that version 1 does not have", wireDoc(8, e).with(99, "new"))
	m.payload("unknown-policy", "malformed: unknown field", "a policy that this side would silently not follow", wireDoc(8, e.with(9, pairs{{200, true}})))

	m.payload("not-a-map", "malformed", "an array where a map belongs", []any{1, "shop", "paris-1", 8})
	m.payload("keys-out-of-order", "malformed: canonical form", "map keys are sorted", wireDoc(8).without(5).with(5, issued.Unix()).without(4).with(4, 8))
	m.payload("duplicate-key", "malformed", "the cluster stands twice", append(pairs{{1, 1}, {2, "shop"}, {3, "rome-1"}}, wireDoc(8, e)[2:]...))
	m.payload("long-integer", "malformed: canonical form", "serial 8 in two bytes", wireDoc(8, e).with(4, rawCBOR{0x18, 8}))
	m.payload("indefinite-length", "malformed", "a list of indefinite length", wireDoc(8).with(7, rawCBOR(append(append([]byte{0x9f}, enc(e)...), 0xff))))
	m.payload("default-written", "malformed: canonical form", "an empty group is left out, not written", wireDoc(8, pairs{e[0], e[1], e[2], e[3], e[4], e[5], {7, ""}, e[6]}))
	m.payload("null-list", "malformed: canonical form", "an empty list is left out, not null", wireDoc(8).with(7, nil))
	m.payload("float-serial", "malformed", "8.0 is no integer", wireDoc(8, e).with(4, 8.0))
	m.payload("negative-serial", "malformed", "-8", wireDoc(8, e).with(4, -8))
	m.payload("text-digest", "malformed", "a digest is bytes, not text", wireDoc(8, e.with(3, strings.Repeat("a", 32))))
	m.payload("array-digest", "malformed", "a digest is bytes, not a list of numbers", wireDoc(8, e.with(3, slices.Repeat([]any{7}, 32))))
	m.payload("tagged", "malformed", "no tags inside a payload", wireDoc(8, e).with(5, rawCBOR(append([]byte{0xc1}, enc(issued.Unix())...))))
	m.payload("bad-utf8", "malformed", "text is UTF-8", wireDoc(8, e.with(8, "\xff\xfe").without(9).with(9, pairs{})))
	deep := []byte{}
	for range 40 {
		deep = append(deep, 0x81)
	}
	m.payload("deep", "malformed", "40 lists inside each other", wireDoc(8).with(7, rawCBOR(append(deep, 0))))
	m.payload("lying-length", "malformed", "a list that claims 2^32-1 elements and holds none", rawCBOR(append(enc(pairs{{1, 1}, {2, "shop"}})[:1], 0x07, 0x9a, 0xff, 0xff, 0xff, 0xff)))

	m.payload("serial-zero", "malformed: serial 0", "serials start at 1", wireDoc(0), func(v *vector) { v.floor = 0 })
	m.payload("serial-too-large", "malformed", "no correction could ever follow", wireDoc(8, e).with(4, uint64(1)<<53))
	m.payload("serial-largest", "malformed", "2^64-1", wireDoc(8, e).with(4, ^uint64(0)))
	m.payload("time-negative", "malformed", "issued before 1970", wireDoc(8, e).with(5, -1))
	m.payload("time-too-large", "malformed", "a year that cannot be written", wireDoc(8, e).with(5, int64(1)<<60))

	m.payload("run-twice", "malformed: stands twice", "a deployment that stands twice", wireDoc(8, e, e))
	remove := func(names ...string) pairs {
		var list []any
		for _, n := range names {
			list = append(list, pairs{{1, n}, {2, 8}})
		}
		return append(wireDoc(8, e), pair{8, list})
	}
	m.payload("run-and-remove", "malformed: to be removed", "to run and to be removed", remove("web"))
	m.payload("remove-twice", "malformed: to be removed", "a removal that stands twice", remove("cache", "cache"))
	m.payload("remove-bad-name", "malformed: DNS label", "names become topics, labels and files", remove("../etc"))
	m.payload("release-above-document", "malformed: in document 8", "a release newer than its document", wireDoc(8, wireEntry("web", 9)))
	m.payload("release-zero", "malformed: serial 0", "a release without number", wireDoc(8, wireEntry("web", 0)))
	m.payload("removal-above-document", "malformed: in document 8", "a removal newer than its document", append(wireDoc(8), pair{8, []any{pairs{{1, "cache"}, {2, 9}}}}))
	m.payload("name-upper-case", "malformed: DNS label", "names are DNS labels", wireDoc(8, wireEntry("Web", 8)))
	m.payload("name-too-long", "malformed: DNS label", "64 characters", wireDoc(8, wireEntry(strings.Repeat("a", 64), 8)))
	m.payload("name-path", "malformed: DNS label", "a name that would be a path on the agent's disk", wireDoc(8, wireEntry("../../etc", 8)))
	m.payload("group-wildcard", "malformed: group", "a group that would make a filter of a topic", wireDoc(8, pairs{e[0], e[1], e[2], e[3], e[4], e[5], {7, "#"}, e[6]}))
	m.payload("group-levels", "malformed: group", "a group that would reach another cluster's topics", wireDoc(8, pairs{e[0], e[1], e[2], e[3], e[4], e[5], {7, "g/../../cluster/rome-1"}, e[6]}))
	m.payload("namespace-path", "malformed: namespace", "a namespace that would reach another path of the API", wireDoc(8, e.with(9, pairs{{1, "a/b"}})))
	m.payload("revision-long", "limit: revision", "the revision is for people, and short", wireDoc(8, pairs{e[0], e[1], e[2], e[3], e[4], e[5], {8, strings.Repeat("r", 65)}, e[6]}))
	m.payload("timeout-overflow", "limit: timeout", "a timeout that would overflow a duration", wireDoc(8, e.with(9, pairs{{8, ^uint64(0)}})))
	m.payload("digest-short", "malformed: digest", "31 bytes", wireDoc(8, e.with(3, kid("hub"))))
	m.payload("raw-size", "limit: bundle size", "a bundle of a gibibyte", wireDoc(8, e.with(4, 1<<30)))
	m.payload("raw-size-negative", "limit: bundle size", "2^64-1 would be negative as a signed number", wireDoc(8, e.with(4, ^uint64(0))))
	m.payload("body-size", "limit: compressed bundle size", "more on the wire than is allowed", wireDoc(8, e.with(5, 1<<30)))
	m.payload("no-parts", "malformed: no parts", "a bundle has at least one part", wireDoc(8, e.with(6, 0)))
	m.payload("too-many-parts", "limit: number of parts", "513 parts", wireDoc(8, e.with(6, 513)))
	m.payload("too-many-deployments", "limit: number of deployments", "one more than the limit", wireDoc(8, wireEntry("a", 8), wireEntry("b", 8), wireEntry("c", 8)), func(v *vector) { v.limits.Entries = 2 })
	m.payload("too-many-removals", "limit: number of deployments and removals", "one more than the limit", remove("a", "b", "c"), func(v *vector) { v.limits.Entries = 2 })
}

func (d Digest) bytes() []byte { return d[:] }

func (m *maker) trusts() {
	doc := pairs{{1, 1}, {2, "shop"}, {3, 4}, {4, issued.Unix()}, {5, []any{[]byte(public("hub")), []byte(public("hub-next"))}}}
	add := func(name, want, why string, msg []byte, change ...func(*vector)) {
		v := &vector{open: "trust", workspace: "shop", floor: 4, keys: []ed25519.PublicKey{public("root")}, limits: DefaultLimits(), message: msg}
		v.expect, v.says = expect(want)
		for _, c := range change {
			c(v)
		}
		m.add("trust-"+name, why, v, nil)
	}
	signed := func(p any) envelopeOf { return newEnvelope(TypeTrust, p).by("root") }
	add("ok", "ok", "two keys, while one replaces the other", signed(doc).bytes())
	add("by-hub", "untrusted", "signed by a key that it names itself: only the root key makes keys", newEnvelope(TypeTrust, doc).bytes())
	add("by-stranger", "untrusted", "signed by somebody else", signed(doc).by("stranger").bytes())
	add("no-root", "untrusted", "a reader without a root key takes nothing", signed(doc).bytes(), func(v *vector) { v.keys = nil })
	add("other-workspace", "audience", "the keys of another workspace", signed(doc.with(2, "bank")).bytes())
	add("stale", "stale: serial 3, already at 4", "an older set, to bring back a key that was taken out", signed(doc.with(3, 3)).bytes())
	add("no-keys", "malformed: no keys", "with no key the agent could never be told anything again", signed(doc.with(5, []any{})).bytes())
	add("null-keys", "malformed", "null is not an empty list", signed(doc.with(5, nil)).bytes())
	add("short-key", "malformed: key of 31 bytes", "an Ed25519 key has 32 bytes", signed(doc.with(5, []any{[]byte(public("hub"))[:31]})).bytes())
	add("too-many-keys", "limit: number of keys", "65 keys", signed(doc.with(5, slices.Repeat([]any{[]byte(public("hub"))}, 65))).bytes())
	add("serial-zero", "malformed: serial 0", "serials start at 1", signed(doc.with(3, 0)).bytes(), func(v *vector) { v.floor = 0 })
	add("desired-replayed", "malformed", "a desired document of the root key on the trust topic", newEnvelope(TypeDesired, wireDoc(8)).by("root").bytes())
	add("version-2", "version", "written by a newer hub", signed(doc.with(1, 2)).bytes())
	add("empty", "empty", "an empty retained message takes no key away", nil)
}

// lie is a bundle under construction; the zero value of each field is the truth.
type lie struct {
	objects  []Object
	entries  func([]any) []any
	index    func([]byte) []byte
	raw      func([]byte) []byte
	body     func([]byte) []byte
	header   func(pairs) pairs
	signer   string
	type_    string
	partSize int // body bytes a part; 0: all in one
	digest   Digest
}

// squeeze is shared: an encoder is expensive to make.
var squeeze = sync.OnceValue(func() *zstd.Encoder {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(128<<10))
	if err != nil {
		panic(err)
	}
	return z
})

func object(kind, name string) Object {
	o, err := NewObject(fmt.Appendf(nil, `{"apiVersion":"v1","kind":%q,"metadata":{"name":%q,"namespace":"web"},"data":{"greeting":"hello"}}`, kind, name))
	if err != nil {
		panic(err)
	}
	return o
}

// plain is an object with whatever bytes.
func plain(ref Ref, data string) Object { return Object{Ref: ref, JSON: []byte(data)} }

func (x lie) build() (parts [][]byte, digest Digest) {
	if x.objects == nil {
		x.objects = []Object{object("ConfigMap", "web"), object("Secret", "web")}
	}
	var entries []any
	var content []byte
	for _, o := range x.objects {
		sum := Sum(o.JSON)
		entries = append(entries, []any{o.Group, o.Version, o.Kind, o.Namespace, o.Name, sum[:], len(o.JSON)})
		content = append(content, o.JSON...)
	}
	if x.entries != nil {
		entries = x.entries(entries)
	}
	if entries == nil {
		entries = []any{}
	}
	index := enc([]any{1, entries})
	if x.index != nil {
		index = x.index(index)
	}
	digest = Sum(index)
	if !x.digest.IsZero() {
		digest = x.digest
	}
	raw := append(append(binary.BigEndian.AppendUint32(nil, uint32(len(index))), index...), content...)
	if x.raw != nil {
		raw = x.raw(raw)
	}
	body := squeeze().EncodeAll(raw, nil)
	if x.body != nil {
		body = x.body(body)
	}
	chunks := [][]byte{body}
	if x.partSize > 0 {
		chunks = slices.Collect(slices.Chunk(body, x.partSize))
	}
	var hashes []any
	for _, c := range chunks {
		sum := Sum(c)
		hashes = append(hashes, sum[:])
	}
	h := pairs{{1, 1}, {2, digest.bytes()}, {3, len(raw)}, {4, len(body)}, {5, hashes}}
	if x.header != nil {
		h = x.header(h)
	}
	contentType, signer := TypeBundle, "hub"
	if x.type_ != "" {
		contentType = x.type_
	}
	if x.signer != "" {
		signer = x.signer
	}
	signed := newEnvelope(contentType, h).by(signer).bytes()
	first := append(binary.BigEndian.AppendUint32(nil, uint32(len(signed))), signed...)
	return append([][]byte{append(first, chunks[0]...)}, chunks[1:]...), digest
}

func (m *maker) bundles() {
	add := func(name, want, why string, x lie, change ...func(*vector)) {
		m.t.Helper()
		parts, digest := x.build()
		v := &vector{open: "bundle", digest: digest, keys: []ed25519.PublicKey{public("hub")}, limits: DefaultLimits(), parts: parts}
		v.expect, v.says = expect(want)
		for _, c := range change {
			c(v)
		}
		m.add("bundle-"+name, why, v, nil)
	}
	mapHeader := func(f func(pairs) pairs) lie { return lie{header: f} }

	add("ok", "ok", "two objects in one part", lie{})
	add("ok-parts", "ok", "the same in parts of 60 bytes", lie{partSize: 60})
	add("ok-empty", "ok", "a bundle that rendered to nothing", lie{objects: []Object{}})
	crd := `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"ships.example.com"},"spec":{"float":1.50,"html":"<a & b>","line":"\u2028","unicode":"größe"}}`
	add("ok-canonical", "ok", "numbers as written, no escapes but the needed ones", lie{objects: []Object{plain(Ref{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition", Name: "ships.example.com"}, crd)}})

	add("untrusted", "untrusted", "a bundle of somebody else", lie{signer: "stranger"})
	add("other-digest", "digest: bundle header", "a genuine bundle, but not the one that was ordered", lie{}, func(v *vector) { v.digest = Sum([]byte("other")) })
	add("desired-replayed", "malformed", "content type of a desired document", lie{type_: TypeDesired})
	add("version-2", "version", "a newer header", mapHeader(func(p pairs) pairs { return p.with(1, 2) }))
	add("unknown-field", "malformed: unknown field", "a header field that version 1 does not have", mapHeader(func(p pairs) pairs { return p.with(9, 1) }))
	add("no-message", "empty", "no part at all", lie{}, func(v *vector) { v.parts = nil })
	add("empty-part", "empty", "part 0 was cleared", lie{}, func(v *vector) { v.parts[0] = nil })
	add("three-bytes", "malformed: truncated", "shorter than the length in front", lie{}, func(v *vector) { v.parts[0] = v.parts[0][:3] })
	add("header-length", "malformed: truncated", "the header claims to be 4 GiB long", lie{}, func(v *vector) { copy(v.parts[0], "\xff\xff\xff\xff") })
	add("part-truncated", "digest: part 0", "the last byte of the body is missing", lie{}, func(v *vector) { v.parts[0] = v.parts[0][:len(v.parts[0])-1] })
	add("part-longer", "digest: part 0", "a byte after the body", lie{}, func(v *vector) { v.parts[0] = append(v.parts[0], 0) })
	add("part-changed", "digest: part 1", "one bit of part 1", lie{partSize: 60}, func(v *vector) { v.parts[1] = bytes.Clone(v.parts[1]); v.parts[1][5] ^= 1 })
	add("parts-swapped", "digest: part 1", "parts 1 and 2 changed places", lie{partSize: 60}, func(v *vector) { v.parts[1], v.parts[2] = v.parts[2], v.parts[1] })
	add("part-missing", "malformed: parts, the header names", "the last part did not come", lie{partSize: 60}, func(v *vector) { v.parts = v.parts[:len(v.parts)-1] })
	add("part-too-many", "malformed: parts, the header names", "a part that the header does not name", lie{partSize: 60}, func(v *vector) { v.parts = append(v.parts, []byte("more")) })
	other, _ := lie{objects: []Object{object("ConfigMap", "web-2"), object("Secret", "web-2")}, partSize: 60}.build()
	add("parts-of-two-releases", "digest: part 1", "header of one release, parts of another", lie{partSize: 60}, func(v *vector) { copy(v.parts[1:], other[1:]) })
	add("part-size", "limit: part 0", "a part that is larger than a message may be", lie{}, func(v *vector) { v.limits.PartSize = 300 })
	add("too-many-parts", "limit: number of parts", "more parts than allowed", lie{partSize: 60}, func(v *vector) { v.limits.Parts = 2 })
	add("part-hash-short", "malformed: part hash", "a hash of 8 bytes", mapHeader(func(p pairs) pairs { return p.with(5, []any{kid("hub")}) }))
	add("no-part-hashes", "digest", "a header that names no parts", mapHeader(func(p pairs) pairs { return p.with(5, []any{}) }))
	add("body-size-small", "malformed: longer than the header says", "the body is longer than signed", mapHeader(func(p pairs) pairs { return p.with(4, 10) }))
	add("body-size-large", "malformed: shorter than the header says", "the body is shorter than signed", mapHeader(func(p pairs) pairs { return p.with(4, 100000) }))
	add("body-size-limit", "limit: compressed bundle size", "more than may be downloaded", mapHeader(func(p pairs) pairs { return p.with(4, 1<<40) }))
	add("raw-size-limit", "limit: bundle size", "more than may be unpacked", mapHeader(func(p pairs) pairs { return p.with(3, 1<<40) }))
	add("raw-size-overflow", "limit: bundle size", "2^64-1 would be negative as a signed number", mapHeader(func(p pairs) pairs { return p.with(3, ^uint64(0)) }))
	add("raw-size-large", "malformed: the header says", "fewer bytes than signed come out", mapHeader(func(p pairs) pairs { return p.with(3, 100000) }))
	add("zip-bomb", "malformed: decompress", "64 MiB of zeros, signed as 400 bytes", lie{raw: func(b []byte) []byte { return append(b, make([]byte, 64<<20)...) }, header: func(p pairs) pairs { return p.with(3, 400) }})
	add("raw-size-zero", "malformed: decompress", "signed as nothing at all", mapHeader(func(p pairs) pairs { return p.with(3, 0) }))
	add("not-zstd", "malformed: decompress", "the body is no zstd frame", lie{body: func(b []byte) []byte { return []byte("PK\x03\x04 and so on") }})
	add("zstd-checksum", "malformed: decompress", "the frame's own checksum does not hold", lie{body: func(b []byte) []byte { b[len(b)-1] ^= 1; return b }})
	add("raw-short", "malformed", "two bytes come out", lie{raw: func(b []byte) []byte { return b[:2] }})
	add("index-length", "malformed: truncated in its index", "the index claims to be 4 GiB long", lie{raw: func(b []byte) []byte { copy(b, "\xff\xff\xff\xff"); return b }})
	add("index-digest", "digest: bundle index", "another index than the signed digest names", lie{digest: Sum([]byte("other"))})
	add("index-version-2", "version", "a newer index", lie{index: func(b []byte) []byte { b[1] = 2; return b }})
	add("index-trailing", "malformed", "bytes after the index", lie{index: func(b []byte) []byte { return append(b, 0) }})
	add("index-long-integer", "malformed: canonical form", "the version in two bytes", lie{index: func(b []byte) []byte { return append([]byte{0x82, 0x18, 1}, b[2:]...) }})
	add("index-null", "malformed: canonical form", "null is not an empty list", lie{objects: []Object{}, index: func([]byte) []byte { return []byte{0x82, 1, 0xf6} }})
	add("trailing-bytes", "malformed: after the last object", "bytes after the last object", lie{raw: func(b []byte) []byte { return append(b, "{}"...) }})
	add("object-missing", "malformed: truncated at", "the last object is missing", lie{raw: func(b []byte) []byte { return b[:len(b)-100] }})
	add("object-changed", "digest: Secret web/web", "one byte of an object", lie{raw: func(b []byte) []byte { b[len(b)-3] ^= 1; return b }})
	add("object-size-overflow", "limit: size of", "an object of 2^64-1 bytes", lie{entries: func(e []any) []any { e[1].([]any)[6] = ^uint64(0); return e }})
	add("object-too-large", "limit: size of", "an object above the limit", lie{}, func(v *vector) { v.limits.Object = 50 })
	add("too-many-objects", "limit: number of objects", "two objects where one is allowed", lie{}, func(v *vector) { v.limits.Objects = 1 })
	add("object-twice", "malformed: stands twice", "which one wins must not depend on order", lie{objects: []Object{object("ConfigMap", "web"), object("ConfigMap", "web")}})
	two := object("ConfigMap", "web")
	v2, err := NewObject(bytes.Replace(two.JSON, []byte(`"v1"`), []byte(`"v2"`), 1))
	if err != nil {
		m.t.Fatal(err)
	}
	add("object-twice-versions", "malformed: stands twice", "the same object in two API versions", lie{objects: []Object{two, v2}})
	ref := Ref{Version: "v1", Kind: "ConfigMap", Namespace: "web", Name: "web"}
	bad := func(data string) lie { return lie{objects: []Object{plain(ref, data)}} }
	add("object-other-name", "malformed: the object says otherwise", "the index names web, the object is called web-2", bad(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web-2","namespace":"web"}}`))
	add("object-other-case", "malformed: the object says otherwise", "keys are case-sensitive: apiversion is no apiVersion", bad(`{"apiVersion":"apps/v1","apiversion":"v1","kind":"ConfigMap","metadata":{"name":"web","namespace":"web"}}`))
	add("object-white-space", "malformed: not in canonical form", "white space", bad(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web", "namespace":"web"}}`))
	add("object-unsorted", "malformed: not in canonical form", "keys are sorted", bad(`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"web","namespace":"web"}}`))
	add("object-duplicate-key", "malformed: not in canonical form", "readers differ in which of two equal keys counts", bad(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web","name":"web","namespace":"web"}}`))
	add("object-not-json", "malformed", "YAML", bad("apiVersion: v1"))
	add("object-array", "malformed", "an object is a JSON object", bad(`["v1"]`))
	nested := strings.Repeat(`{"a":`, 70) + "1" + strings.Repeat("}", 70)
	add("object-deep", "limit: nesting depth", "70 objects inside each other", bad(`{"apiVersion":"v1","data":`+nested+`,"kind":"ConfigMap","metadata":{"name":"web","namespace":"web"}}`))
	path := Ref{Version: "v1", Kind: "ConfigMap", Namespace: "web", Name: "../../secrets/x"}
	add("object-name-path", "malformed", "a name that would be another path of the API", lie{objects: []Object{plain(path, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"../../secrets/x","namespace":"web"}}`)}})
}

func (m *maker) texts() {
	add := func(open, name, want, why, text string) {
		m.t.Helper()
		v := &vector{open: open, limits: DefaultLimits(), message: []byte(text)}
		v.expect, v.says = expect(want)
		m.add(open+"-"+name, why, v, nil)
	}
	digest := Sum([]byte("web")).String()
	report := func(deployments string) string {
		return `{"version":1,"serial":8,"at":"2026-11-22T03:00:00Z","deployments":[` + deployments + `]}`
	}
	one := `{"name":"web","serial":8,"digest":"` + digest + `","state":"Ready","ready":3,"total":3,"since":"2026-11-22T03:00:00Z"}`
	with := func(old, new string) string { return strings.Replace(one, old, new, 1) }
	add("reported", "ok", "ok", "one deployment, all well", report(one))
	add("reported", "ok-none", "ok", "a cluster that was told nothing yet", `{"version":1,"serial":0,"at":"2026-11-22T03:00:00Z"}`)
	add("reported", "ok-findings", "ok", "not ready, modified, something refused", `{"version":1,"serial":8,"trust":2,"at":"2026-11-22T03:00:00Z","stale":true,"facts":"0123456789abcdef0123456789abcdef","refused":{"topic":"shoal/v1/shop/cluster/paris-1/desired","reason":"not signed by a trusted key","at":"2026-11-22T02:59:00Z","count":2},"deployments":[{"name":"web","serial":8,"digest":"`+digest+`","state":"NotReady","message":"1 of 3 objects is not ready","ready":2,"total":3,"since":"2026-11-22T03:00:00Z","notReady":[{"group":"apps","version":"v1","kind":"Deployment","namespace":"web","name":"web","reason":"0 of 1 replicas available"}],"modified":[{"version":"v1","kind":"ConfigMap","namespace":"web","name":"web","reason":"data.greeting: hello → bye"}],"notReadyCount":1,"modifiedCount":1}]}`)
	add("reported", "ok-new-field", "ok", "JSON documents may grow: a field that a reader does not know is skipped", `{"version":1,"serial":8,"at":"2026-11-22T03:00:00Z","weather":"fine"}`)
	add("reported", "empty", "empty", "a cleared topic is no report", "")
	add("reported", "version-2", "version", "a newer agent", `{"version":2,"serial":8,"at":"2026-11-22T03:00:00Z"}`)
	add("reported", "version-2-new-form", "version", "a newer agent whose documents have another form", `{"version":2,"serial":{"document":8}}`)
	add("reported", "version-missing", "malformed: no format version", "something else's JSON", `{}`)
	add("reported", "truncated", "malformed", "cut in the middle", report(one)[:60])
	add("reported", "two-documents", "malformed", "bytes after the document", report(one)+report(one))
	add("reported", "twice", "malformed: stands twice", "a deployment that stands twice", report(one+","+one))
	add("reported", "name", "malformed: name", "names are DNS labels", report(with(`"web"`, `"../web"`)))
	add("reported", "state", "malformed: state", "a state that nobody knows", report(with("Ready", "Splendid")))
	add("reported", "digest", "malformed", "a digest in upper case", report(with(digest, strings.ToUpper(digest))))
	add("reported", "negative", "limit: ready", "minus three objects are ready", report(with(`"ready":3`, `"ready":-3`)))
	add("reported", "enormous", "limit: total", "sums over a fleet must not overflow", report(with(`"total":3`, `"total":4611686018427387904`)))
	add("reported", "more-ready-than-total", "malformed: objects ready", "4 of 3", report(with(`"ready":3`, `"ready":4`)))
	add("reported", "serial", "malformed: serial above", "2^53", report(with(`"serial":8`, `"serial":9007199254740992`)))
	finding := `{"version":"v1","kind":"Pod","name":"web","reason":"pending"}`
	add("reported", "findings", "limit: notReady", "eleven findings; ten are the limit, the count says how many there are", report(with(`"since"`, `"notReady":[`+strings.Repeat(finding+",", 10)+finding+`],"since"`)))
	add("reported", "deep", "limit: nesting depth", "20 lists inside each other", `{"version":1,"serial":8,"x":`+strings.Repeat("[", 20)+strings.Repeat("]", 20)+`}`)
	many := report(strings.TrimSuffix(strings.Repeat("{},", 200), ","))
	add("reported", "too-many", "limit: number of deployments", "200 deployments", many)
	add("reported", "too-large", "limit: report", "more than a message may hold", report(one)+strings.Repeat(" ", 48<<10))

	add("presence", "ok-birth", "ok", "the agent is there", `{"online":true,"nonce":"0f1e2d3c4b5a69788796a5b4c3d2e1f0","since":"2026-11-22T03:00:00Z","agent":"v0.1.0"}`)
	add("presence", "ok-will", "ok", "the broker lost the agent", `{"online":false,"nonce":"0f1e2d3c4b5a69788796a5b4c3d2e1f0","since":"2026-11-22T03:00:00Z","reason":"connection lost"}`)
	add("presence", "no-nonce", "malformed: nonce", "without a nonce a late Will cannot be told from a current one", `{"online":true,"since":"2026-11-22T03:00:00Z"}`)
	add("presence", "nonce", "malformed: nonce", "a nonce is a DNS label", `{"online":true,"nonce":"../../x","since":"2026-11-22T03:00:00Z"}`)
	add("presence", "empty", "empty", "a cleared topic", "")
	add("event", "ok", "ok", "one transition", `{"at":"2026-11-22T03:00:00Z","deployment":"web","serial":8,"state":"Downloading","message":"part 2 of 5"}`)
	add("event", "state", "malformed: state", "a state that nobody knows", `{"at":"2026-11-22T03:00:00Z","state":"Splendid"}`)
	add("event", "name", "malformed: name", "names are DNS labels", `{"at":"2026-11-22T03:00:00Z","deployment":"web/x"}`)
	add("facts", "ok", "ok", "what a cluster is", `{"kubernetesVersion":"v1.37.2","apiVersions":["apps/v1","v1"],"nodes":1,"agent":"v0.1.0"}`)
	add("part-request", "ok", "ok", "parts 0 and 3 did not come in time", `{"deployment":"web","digest":"`+digest+`","group":"stores","parts":[0,3]}`)
	add("part-request", "negative", "limit: part", "part -1", `{"deployment":"web","digest":"`+digest+`","parts":[-1]}`)
	add("part-request", "too-high", "limit: part", "part 512", `{"deployment":"web","digest":"`+digest+`","parts":[512]}`)
	add("part-request", "none", "malformed: no part", "nothing is asked for", `{"deployment":"web","digest":"`+digest+`","parts":[]}`)
	add("part-request", "group", "malformed: group", "a group that would be a filter", `{"deployment":"web","digest":"`+digest+`","group":"+","parts":[0]}`)
	add("part-request", "name", "malformed: name", "names are DNS labels", `{"deployment":"","digest":"`+digest+`","parts":[0]}`)
	add("part-request", "too-many", "limit: number of parts", "513 parts", `{"deployment":"web","digest":"`+digest+`","parts":[`+strings.TrimSuffix(strings.Repeat("0,", 513), ",")+`]}`)
	add("enroll-request", "ok", "ok", "a site asks for an identity", `{"cluster":"paris-1","csr":"MIIB","agent":"v0.1.0"}`)
	add("enroll-request", "name", "malformed: cluster name", "names are DNS labels", `{"cluster":"Paris 1","csr":"MIIB","agent":"v0.1.0"}`)
	add("enroll-response", "ok-refused", "ok", "the name is taken", `{"error":"cluster paris-1 exists and belongs to another key","final":true}`)

	ticket := Ticket{URL: "mqtts://hub.example.com:8883", CA: "-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n", Root: public("root"), Workspace: "shop", Token: "stores", Secret: "not-a-secret"}
	add("ticket", "ok", "ok", "what a site is handed", ticket.String())
	add("ticket", "ok-white-space", "ok", "copied with a space and a newline around it", " "+ticket.String()+"\n")
	add("ticket", "prefix", "malformed: it starts with", "something else was copied", "eyJ1cmwiOiJtcXR0czovL2h1YiJ9")
	add("ticket", "cut", "malformed: copy it whole", "the end is missing", ticket.String()[:len(ticket.String())-9])
	short := ticket
	short.Root = short.Root[:31]
	add("ticket", "root", "malformed: lacks a field", "an Ed25519 key has 32 bytes", short.String())
	path := ticket
	path.Token = "a/#"
	add("ticket", "token", "malformed: lacks a field", "the token's name becomes a topic level", path.String())
}
