package bundlefmt

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Ref names one Kubernetes object. The version is how the object was written; two refs that differ only in it name
// the same object.
type Ref struct {
	Group     string `json:"group,omitempty"`
	Version   string `json:"version"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String is "Kind.group namespace/name", as people write it.
func (r Ref) String() string {
	var b strings.Builder
	b.WriteString(r.Kind)
	if r.Group != "" {
		b.WriteString("." + r.Group)
	}
	b.WriteByte(' ')
	if r.Namespace != "" {
		b.WriteString(r.Namespace + "/")
	}
	b.WriteString(r.Name)
	return b.String()
}

// identity is the same for all versions of one object.
func (r Ref) identity() Ref { r.Version = ""; return r }

// Object is one Kubernetes object in canonical JSON.
type Object struct {
	Ref
	JSON []byte
}

// NewObject reads an object's identity out of its JSON and puts it into canonical form.
func NewObject(data []byte) (Object, error) {
	if ref, ok := scan(data, DefaultLimits()); ok {
		return Object{Ref: ref, JSON: bytes.Clone(data)}, nil
	}
	canon, v, err := canonical(data, DefaultLimits())
	if err != nil {
		return Object{}, err
	}
	ref, err := refOf(v)
	if err != nil {
		return Object{}, err
	}
	return Object{Ref: ref, JSON: canon}, nil
}

// ObjectOf is NewObject for an object that is decoded already: maps, slices, strings, int64, booleans and nil.
func ObjectOf(v map[string]any) (Object, error) {
	canon, err := appendCanonical(nil, v)
	if err != nil {
		return Object{}, err
	}
	l := DefaultLimits()
	if err := atMost("object size", int64(len(canon)), l.Object); err != nil {
		return Object{}, err
	}
	if err := checkDepth(canon, l.Depth); err != nil {
		return Object{}, err
	}
	ref, err := refOf(v)
	if err != nil {
		return Object{}, err
	}
	return Object{Ref: ref, JSON: canon}, nil
}

// appendCanonical writes what encodeCanonical writes, without reflection.
func appendCanonical(b []byte, v any) ([]byte, error) {
	var err error
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case string:
		return appendString(b, v)
	case []any:
		b = append(b, '[')
		for i, e := range v {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendCanonical(b, e); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		b = append(b, '{')
		for i, k := range keys {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendString(b, k); err != nil {
				return nil, err
			}
			if b, err = appendCanonical(append(b, ':'), v[k]); err != nil {
				return nil, err
			}
		}
		return append(b, '}'), nil
	}
	return nil, fmt.Errorf("%w: object holds a %T", ErrMalformed, v)
}

func appendString(b []byte, s string) ([]byte, error) {
	start := len(b)
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c >= ' ' && c <= '~':
			b = append(b, c)
		default: // what is rare or more than a byte
			var buf bytes.Buffer
			enc := json.NewEncoder(&buf)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(s); err != nil {
				return nil, fmt.Errorf("encode object: %w", err)
			}
			return append(b[:start], bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...), nil
		}
	}
	return append(b, '"'), nil
}

func encodeCanonical(v map[string]any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// refOf looks keys up in a map and not through a struct, which would also match them in other cases: the API server reads
// "apiversion" as no field at all.
func refOf(o map[string]any) (Ref, error) {
	meta, _ := o["metadata"].(map[string]any)
	apiVersion, _ := o["apiVersion"].(string)
	kind, _ := o["kind"].(string)
	name, _ := meta["name"].(string)
	namespace, isString := meta["namespace"].(string)
	if s := notText(meta["name"]); s != "" {
		return Ref{}, fmt.Errorf("%w: %s: metadata.name is %s and no text: in YAML put it in quotes", ErrMalformed, cmp.Or(kind, "object"), s)
	}
	switch {
	case apiVersion == "":
		return Ref{}, fmt.Errorf("%w: object has no apiVersion", ErrMalformed)
	case kind == "":
		return Ref{}, fmt.Errorf("%w: object has no kind", ErrMalformed)
	case name == "":
		return Ref{}, fmt.Errorf("%w: %s has no metadata.name", ErrMalformed, kind)
	case !isString && meta["namespace"] != nil:
		return Ref{}, fmt.Errorf("%w: %s %s: metadata.namespace is not a string", ErrMalformed, kind, name)
	}
	r := Ref{Version: apiVersion, Kind: kind, Namespace: namespace, Name: name}
	if g, v, ok := strings.Cut(apiVersion, "/"); ok {
		if r.Group, r.Version = g, v; g == "" || v == "" {
			return Ref{}, fmt.Errorf("%w: %s %s: apiVersion %q", ErrMalformed, kind, name, apiVersion)
		}
	}
	for _, s := range []string{r.Group, r.Version, r.Kind, r.Namespace, r.Name} {
		if !pathSegment(s) {
			return Ref{}, fmt.Errorf("%w: %q cannot stand in the identity of an object", ErrMalformed, s)
		}
	}
	return r, nil
}

// notText is a number or a boolean where a text is expected, as YAML makes them of 12, n or on; empty: it is neither.
func notText(v any) string {
	switch v := v.(type) {
	case bool, json.Number, float64, int64, int:
		return fmt.Sprint(v)
	}
	return ""
}

// pathSegment holds the parts of an identity to what can be one segment of a path of the Kubernetes API: a name must
// never reach another resource.
func pathSegment(s string) bool {
	if len(s) > 253 || s == "." || s == ".." {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return strings.ContainsRune("/%?#", r) || r <= ' ' || r == 0x7f })
}

// Canonical rewrites JSON with sorted keys and no white space; numbers keep their digits. Of a key that stands twice in
// one object the last counts. Size and depth are checked first.
func Canonical(data []byte, l Limits) ([]byte, error) {
	canon, _, err := canonical(data, l)
	return canon, err
}

func canonical(data []byte, l Limits) ([]byte, map[string]any, error) {
	if err := atMost("object size", int64(len(data)), l.Object); err != nil {
		return nil, nil, err
	}
	if err := checkDepth(data, l.Depth); err != nil {
		return nil, nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		return nil, nil, fmt.Errorf("%w: object: %v", ErrMalformed, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, nil, fmt.Errorf("%w: bytes after the object", ErrMalformed)
	}
	canon, err := encodeCanonical(v)
	return canon, v, err
}

// checkDepth scans without building anything: depth must be known to be small before a decoder recurses.
func checkDepth(data []byte, limit int64) error {
	var depth int64
	inString, escaped := false, false
	for _, c := range data {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped, inString = c == '\\', c != '"'
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			if depth++; depth > limit {
				return &LimitError{What: "nesting depth", Limit: limit, Got: depth}
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// Bundle is a rendered bundle: the final objects for one set of options, in apply order. It is immutable.
type Bundle struct {
	objects  []Object
	handling Handling
	index    []byte
}

type entry struct {
	_         struct{} `cbor:",toarray"`
	Group     string
	Version   string
	Kind      string
	Namespace string
	Name      string
	Hash      []byte
	Size      uint64
}

type index struct {
	_       struct{} `cbor:",toarray"`
	Version uint64
	Entries []entry
}

// index2 is the index of a bundle with something to say beyond its objects. One without keeps the first form: it has one
// encoding and one digest, and agents that know only that form run it.
type index2 struct {
	_        struct{} `cbor:",toarray"`
	Version  uint64
	Entries  []entry
	Handling Handling
}

// New makes a bundle of objects in the given order, to be treated as h says. Objects must come from NewObject. Duplicates
// are refused: which one wins must never depend on order.
func New(objects []Object, h Handling, l Limits) (*Bundle, error) {
	if err := atMost("number of objects", int64(len(objects)), l.Objects); err != nil {
		return nil, err
	}
	if err := h.check(len(objects)); err != nil {
		return nil, err
	}
	entries := make([]entry, 0, len(objects))
	seen := make(map[Ref]bool, len(objects))
	var size int64
	for _, o := range objects {
		if err := atMost("size of "+o.Ref.String(), int64(len(o.JSON)), l.Object); err != nil {
			return nil, err
		}
		if id := o.Ref.identity(); seen[id] {
			return nil, fmt.Errorf("%s appears twice in the bundle", o.Ref)
		} else {
			seen[id] = true
		}
		size += int64(len(o.JSON))
		hash := Sum(o.JSON)
		entries = append(entries, entry{Group: o.Group, Version: o.Version, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Hash: hash[:], Size: uint64(len(o.JSON))})
	}
	var ix any = index{Version: 1, Entries: entries}
	if !h.IsZero() {
		ix = index2{Version: 2, Entries: entries, Handling: h}
	}
	b, err := encMode.Marshal(ix)
	if err != nil {
		return nil, fmt.Errorf("encode index: %w", err)
	}
	if err := atMost("bundle size", size+int64(len(b))+4, l.RawSize); err != nil {
		return nil, err
	}
	return &Bundle{objects: append([]Object(nil), objects...), handling: h, index: b}, nil
}

// Digest identifies the bundle: equal digests mean equal objects in equal order.
func (b *Bundle) Digest() Digest { return Sum(b.index) }

// Objects are in apply order. The caller must not change them.
func (b *Bundle) Objects() []Object { return b.objects }

// Handling is how a site is to treat the objects. The caller must not change it.
func (b *Bundle) Handling() Handling { return b.handling }

// Raw is the bundle for a disk of one's own: uncompressed and unsigned. ParseRaw reads it.
func (b *Bundle) Raw() []byte { return b.raw() }

// ParseRaw reads what Raw wrote. It holds it to the format and the limits; that nobody else wrote it, the caller must know.
func ParseRaw(raw []byte, l Limits) (*Bundle, error) {
	if err := atMost("bundle size", int64(len(raw)), l.RawSize); err != nil {
		return nil, err
	}
	if len(raw) < 4 || int64(binary.BigEndian.Uint32(raw)) > int64(len(raw)-4) {
		return nil, fmt.Errorf("%w: bundle is truncated", ErrMalformed)
	}
	return parse(raw, Sum(raw[4:4+binary.BigEndian.Uint32(raw)]), l)
}

// raw is the uncompressed form; see the package comment.
func (b *Bundle) raw() []byte {
	n := 4 + len(b.index)
	for _, o := range b.objects {
		n += len(o.JSON)
	}
	out := make([]byte, 0, n)
	out = binary.BigEndian.AppendUint32(out, uint32(len(b.index)))
	out = append(out, b.index...)
	for _, o := range b.objects {
		out = append(out, o.JSON...)
	}
	return out
}

// parse is the reverse of raw; every hash is checked.
func parse(raw []byte, want Digest, l Limits) (*Bundle, error) {
	if len(raw) < 4 {
		return nil, fmt.Errorf("%w: bundle is truncated", ErrMalformed)
	}
	n := int64(binary.BigEndian.Uint32(raw))
	rest := raw[4:]
	if n > int64(len(rest)) {
		return nil, fmt.Errorf("%w: bundle is truncated in its index", ErrMalformed)
	}
	b := &Bundle{index: rest[:n:n]}
	rest = rest[n:]
	if b.Digest() != want {
		return nil, fmt.Errorf("bundle index: %w", ErrDigest)
	}
	ix, err := parseIndex(b.index)
	if err != nil {
		return nil, fmt.Errorf("bundle index: %w", err)
	}
	if err := atMost("number of objects", int64(len(ix.Entries)), l.Objects); err != nil {
		return nil, err
	}
	if err := ix.Handling.check(len(ix.Entries)); err != nil {
		return nil, fmt.Errorf("bundle index: %w", err)
	}
	b.handling = ix.Handling
	b.objects = make([]Object, 0, len(ix.Entries))
	seen := make(map[Ref]bool, len(ix.Entries))
	for _, e := range ix.Entries {
		o := Object{Ref: Ref{Group: e.Group, Version: e.Version, Kind: e.Kind, Namespace: e.Namespace, Name: e.Name}}
		if err := atMost("size of "+o.Ref.String(), int64(e.Size), l.Object); err != nil {
			return nil, err
		}
		if e.Size > uint64(len(rest)) {
			return nil, fmt.Errorf("%w: bundle is truncated at %s", ErrMalformed, o.Ref)
		}
		o.JSON, rest = rest[:e.Size:e.Size], rest[e.Size:]
		if h := Sum(o.JSON); !bytes.Equal(h[:], e.Hash) {
			return nil, fmt.Errorf("%s: %w", o.Ref, ErrDigest)
		}
		if err := o.check(l); err != nil {
			return nil, err
		}
		if seen[o.Ref.identity()] {
			return nil, fmt.Errorf("%w: %s stands twice", ErrMalformed, o.Ref)
		}
		seen[o.Ref.identity()] = true
		b.objects = append(b.objects, o)
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last object", ErrMalformed, len(rest))
	}
	return b, nil
}

// check holds the bytes to canonical form, and to what the index says they are.
func (o Object) check(l Limits) error {
	if ref, ok := scan(o.JSON, l); ok && ref == o.Ref {
		return nil
	}
	canon, v, err := canonical(o.JSON, l)
	if err != nil {
		return fmt.Errorf("%s: %w", o.Ref, err)
	}
	if !bytes.Equal(canon, o.JSON) {
		return fmt.Errorf("%w: %s is not in canonical form", ErrMalformed, o.Ref)
	}
	if ref, err := refOf(v); err != nil || ref != o.Ref {
		return fmt.Errorf("%w: index says %s, the object says otherwise", ErrMalformed, o.Ref)
	}
	return nil
}

func parseIndex(b []byte) (index2, error) {
	var out index2
	if v, ok := payloadVersion(b); ok && v == 1 {
		var first index
		err := decode(b, &first, 1)
		return index2{Version: 1, Entries: first.Entries}, err
	}
	if err := decode(b, &out, 2); err != nil {
		return index2{}, err
	}
	if out.Handling.IsZero() {
		return index2{}, fmt.Errorf("%w: a bundle with nothing to say beyond its objects has the first form", ErrMalformed)
	}
	return out, nil
}
