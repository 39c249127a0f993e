// Package decode turns messages on the topics into something a person can read: one line, or one JSON object, each. It acts on
// nothing and believes nothing: what it could not verify it says.
package decode

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/topics"
)

// Decoder remembers the trust documents and bundle headers it has seen, because what follows can only be verified with
// them. It is not safe for concurrent use.
type Decoder struct {
	prefix  topics.Prefix
	root    ed25519.PublicKey
	limits  bundlefmt.Limits
	trust   map[string]bundlefmt.Trust   // by workspace; verified
	headers map[string]*bundlefmt.Header // by topic of part 0; verified
}

// New makes a decoder. Without a root key it verifies nothing.
func New(prefix topics.Prefix, root ed25519.PublicKey) *Decoder {
	return &Decoder{prefix: prefix, root: root, limits: bundlefmt.DefaultLimits(), trust: map[string]bundlefmt.Trust{}, headers: map[string]*bundlefmt.Header{}}
}

// maxHeaders bounds what is remembered: a header holds up to one message.
const maxHeaders = 128

// Record is one message.
type Record struct {
	Time      time.Time `json:"time"` // of arrival
	Topic     string    `json:"topic"`
	Kind      string    `json:"kind,omitempty"` // see package topics; empty: not a topic of ours
	Workspace string    `json:"workspace,omitempty"`
	Cluster   string    `json:"cluster,omitempty"`
	Group     string    `json:"group,omitempty"`
	Retained  bool      `json:"retained,omitempty"` // replayed, not news
	Bytes     int       `json:"bytes"`
	// Verified: "yes", "no" with the reason in Problem, "unverified" when the key that would be needed is not known; empty for
	// what is not signed.
	Verified string `json:"verified,omitempty"`
	Key      string `json:"key,omitempty"` // id of the key that a signed message names
	Problem  string `json:"problem,omitempty"`
	Summary  string `json:"summary,omitempty"`
	Content  any    `json:"content,omitempty"`

	below string // the topic without the prefix
}

// Message reads one message that arrived at the given time.
func (d *Decoder) Message(now time.Time, topic string, payload []byte, retained bool) Record {
	r := Record{Time: now, Topic: topic, Retained: retained, Bytes: len(payload), below: strings.TrimPrefix(topic, string(d.prefix)+"/")}
	t, err := d.prefix.Parse(topic)
	if err != nil {
		r.Problem = "not a topic of shoal"
		return r
	}
	r.Kind, r.Workspace, r.Cluster, r.Group = string(t.Kind), t.Workspace, t.Cluster, t.Group
	if len(payload) == 0 && t.Kind != topics.Request {
		r.Summary = "cleared"
		return r
	}
	switch t.Kind {
	case topics.Desired:
		err = d.desired(&r, t, payload)
	case topics.Trust:
		err = d.trustDoc(&r, t, payload)
	case topics.Part:
		err = d.part(&r, t, payload)
	default:
		r.Content, r.Summary, err = d.text(t, payload)
	}
	if err != nil {
		r.Problem = err.Error()
	}
	return r
}

// signed reads a message of which the signature is looked at afterwards, so that a refused one can be shown too.
func (d *Decoder) signed(r *Record, payload []byte) (*bundlefmt.Inspection, error) {
	in, err := bundlefmt.Inspect(payload, d.limits)
	if err != nil {
		r.Verified = "no"
		return nil, err
	}
	r.Key, r.Verified = in.Key.String(), "unverified"
	return in, nil
}

func (d *Decoder) judge(r *Record, err error) error {
	if r.Verified = "yes"; err != nil {
		r.Verified = "no"
	}
	return err
}

// trusted says whether the workspace's keys are known; if not, the record says why.
func (d *Decoder) trusted(r *Record) (bundlefmt.Trust, bool) {
	t, ok := d.trust[r.Workspace]
	switch {
	case len(d.root) == 0:
		r.Problem = "unverified: no root key given"
	case !ok:
		r.Problem = "unverified: no trust document of workspace " + r.Workspace + " seen yet"
	}
	return t, ok
}

var errOtherKind = errors.New("a signed message of another kind")

func (d *Decoder) desired(r *Record, t topics.Topic, payload []byte) error {
	in, err := d.signed(r, payload)
	if err != nil {
		return err
	}
	if in.Desired == nil {
		return d.judge(r, errOtherKind)
	}
	r.Content, r.Summary = in.Desired, desiredLine(in.Desired)
	trust, ok := d.trusted(r)
	if !ok {
		return nil
	}
	_, err = bundlefmt.OpenDesired(payload, trust, bundlefmt.Audience{Workspace: t.Workspace, Cluster: t.Cluster}, d.limits)
	return d.judge(r, err)
}

func (d *Decoder) trustDoc(r *Record, t topics.Topic, payload []byte) error {
	in, err := d.signed(r, payload)
	if err != nil {
		return err
	}
	if in.Trust == nil {
		return d.judge(r, errOtherKind)
	}
	var keys []string
	for _, k := range in.Trust.Keys {
		keys = append(keys, bundlefmt.KeyIDOf(k).String())
	}
	r.Content = map[string]any{"serial": in.Trust.Serial, "workspace": in.Trust.Workspace, "issuedAt": in.Trust.IssuedAt, "keys": keys}
	r.Summary = fmt.Sprintf("serial %d, keys %s", in.Trust.Serial, strings.Join(keys, " "))
	if len(d.root) == 0 {
		r.Problem = "unverified: no root key given"
		return nil
	}
	doc, err := bundlefmt.OpenTrust(payload, d.root, t.Workspace, 0)
	if err == nil {
		d.trust[t.Workspace] = bundlefmt.NewTrust(doc.Keys...)
	}
	return d.judge(r, err)
}

func (d *Decoder) part(r *Record, t topics.Topic, payload []byte) error {
	first := t
	first.Part = 0
	name := d.prefix.Name(first)
	if t.Part > 0 {
		r.Summary = fmt.Sprintf("part %d of bundle %.8s", t.Part+1, t.Digest)
		r.Content = map[string]any{"digest": t.Digest, "part": t.Part}
		h := d.headers[name]
		if h == nil {
			r.Verified, r.Problem = "unverified", "unverified: no verified part 0 seen yet"
			return nil
		}
		r.Summary = fmt.Sprintf("part %d/%d of bundle %.8s", t.Part+1, h.Parts(), t.Digest)
		return d.judge(r, h.CheckPart(t.Part, payload))
	}
	in, err := d.signed(r, payload)
	if err != nil {
		return err
	}
	h := in.Header
	if h == nil {
		return d.judge(r, errOtherKind)
	}
	r.Summary = fmt.Sprintf("part 1/%d of bundle %.8s, %s, unpacked %s", h.Parts(), t.Digest, size(h.BodySize), size(h.RawSize))
	r.Content = map[string]any{"digest": h.Digest, "part": 0, "parts": h.Parts(), "bodySize": h.BodySize, "rawSize": h.RawSize}
	if h.Digest.Short() != t.Digest {
		return d.judge(r, fmt.Errorf("the header is of bundle %.8s: %w", h.Digest.String(), bundlefmt.ErrDigest))
	}
	trust, ok := d.trusted(r)
	if !ok {
		return nil
	}
	h, err = bundlefmt.OpenHeader(payload, h.Digest, trust, d.limits)
	if err == nil {
		if len(d.headers) >= maxHeaders {
			clear(d.headers)
		}
		d.headers[name] = h
	}
	return d.judge(r, err)
}

// String is the record on one line: time, "=" for a replayed and "+" for a live message, the topic below the prefix, and what
// it says. Nothing in it acts on a terminal.
func (r Record) String() string {
	var b strings.Builder
	sign := '+'
	if r.Retained {
		sign = '='
	}
	fmt.Fprintf(&b, "%s %c %-32s %s", r.Time.Format(time.TimeOnly), sign, r.below, r.Summary)
	if r.Verified == "yes" {
		b.WriteString(" [verified]")
	}
	if r.Problem != "" {
		b.WriteString(" [" + r.Problem + "]")
	}
	return strings.TrimRight(plain(b.String()), " ")
}

// plain takes out control characters: what an agent writes ends on an operator's terminal.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\ufffd'
	}, s)
}

// JSON is the record as one line of JSON, in which control characters are escaped.
func (r Record) JSON() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode message on %q: %w", r.Topic, err)
	}
	var out []byte
	for _, c := range string(b) {
		if c > unicode.MaxASCII && !unicode.IsPrint(c) && c <= 0xffff {
			out = fmt.Appendf(out, "\\u%04x", c)
			continue
		}
		out = append(out, string(c)...)
	}
	return out, nil
}

// size writes bytes as people do: 558 B, 17.2 kB, 3.1 MB.
func size(n int64) string {
	switch {
	case n < 1000:
		return strconv.FormatInt(n, 10) + " B"
	case n < 1000_000:
		return strconv.FormatFloat(float64(n)/1000, 'f', 1, 64) + " kB"
	}
	return strconv.FormatFloat(float64(n)/1000_000, 'f', 1, 64) + " MB"
}
