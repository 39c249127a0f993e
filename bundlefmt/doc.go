// Package bundlefmt is everything that travels between hub and agent: bytes to values and back, signing, verifying,
// compressing. It knows no network and no Kubernetes, and together with package topics it is all another
// implementation of either side needs.
//
// # Signed messages
//
// Every binary message is a COSE_Sign1 structure (RFC 9052 §4.2), tagged, signed with Ed25519 (RFC 9053 §2.2, alg -8).
// The protected header holds exactly alg, kid (the 8-byte [KeyID]) and the content type that separates the
// message kinds, so that a bundle header can never be replayed as a desired document. The payload is
// deterministically encoded CBOR (RFC 8949 §4.2.1) with small integer keys. A payload that does not encode back to the
// same bytes is refused: one value has one encoding.
//
// # Rendered bundle
//
// A rendered bundle is an index followed by the objects:
//
//	raw    = uint32(len(index)) ‖ index ‖ object ‖ object …      (big endian)
//	index  = CBOR [1, [[group, version, kind, namespace, name, SHA-256, size] …]]           in apply order
//	       | CBOR [2, [[group, version, kind, namespace, name, SHA-256, size] …], handling] with something to say beyond: [Handling]
//	object = canonical JSON: keys sorted, no white space, numbers as written
//	digest = SHA-256(index)
//
// Sealed for the wire it becomes one or more parts of at most [Limits.PartSize] bytes, each a retained message:
//
//	part 0 = uint32(len(header)) ‖ header ‖ start of body        header = signed {digest, raw size, body size, SHA-256 of every part's body bytes}
//	part n = more of the body                                    body   = one zstd frame of raw
//
// [OpenHeader] verifies the header, [Header.CheckPart] each part as it arrives, and [Open] decompresses only bytes whose
// hashes the signed header names: an unsigned byte never reaches zstd or a parser.
//
// # Desired document
//
// One message per cluster names everything it is to run ([Desired]). [OpenDesired] checks signature, audience and
// serial before it returns anything. A deployment is removed only when [Desired.Remove] names it; a deployment in neither
// list is left alone.
//
// # From the agent
//
// [Reported], [Presence], [Event] and [Facts] are plain JSON, so that every MQTT tool reads them.
//
// # Versions
//
// [Version] is the one format version. A reader accepts its own and older ones and refuses newer ones with [ErrVersion]. A
// writer marks a message with the oldest version that can carry it, and no other: what asks for nothing new is understood
// by older agents, and has the digest it always had.
//
//	1  2026-11-22  first form
//	2  2026-11-22  index: handling (hooks, site values, compare patches, conditions, health rules, labels of the namespace);
//	               desired: windows, confirmed removals, policy fields 9 to 19
//	3  2026-11-27  desired: policy field 21 (20 was never used), more than 128 deployments and removals; reported: more than 128 deployments
package bundlefmt

// Version is the format version that this package writes; its history is in the package comment.
const Version = 3

// NewestDesired is the last version that changed desired documents. An agent reports it: see [Reported.Reads].
const NewestDesired = 3

// Content types, carried in the signed header of binary messages and as the MQTT content type of all.
const (
	TypeDesired  = "application/vnd.shoal.desired+cose"
	TypeBundle   = "application/vnd.shoal.bundle+cose"
	TypeTrust    = "application/vnd.shoal.trust+cose"
	TypeReported = "application/vnd.shoal.reported+json"
	TypePresence = "application/vnd.shoal.presence+json"
	TypeEvent    = "application/vnd.shoal.event+json"
	TypeFacts    = "application/vnd.shoal.facts+json"
	TypeRequest  = "application/vnd.shoal.request+json"
	TypeEnroll   = "application/vnd.shoal.enroll+json"
)
