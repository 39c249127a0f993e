package bundlefmt

import (
	"bytes"
	"unicode/utf8"
)

// scan recognises an object in canonical form in one pass and without building it: opening a bundle is nearly all
// recognising, since nobody else writes bundles. What it does not recognise is for canonical to judge, and to name the mistake.
func scan(data []byte, l Limits) (Ref, bool) {
	if int64(len(data)) > l.Object {
		return Ref{}, false
	}
	s := scanner{rest: data, depth: l.Depth}
	var apiVersion, kind, name, namespace string
	ok := s.object(func(key []byte) bool {
		switch string(key) {
		case "apiVersion":
			return s.text(&apiVersion)
		case "kind":
			return s.text(&kind)
		case "metadata":
			return s.object(func(key []byte) bool {
				switch string(key) {
				case "name":
					return s.text(&name)
				case "namespace":
					return s.text(&namespace)
				}
				return s.value()
			})
		}
		return s.value()
	})
	if !ok || len(s.rest) > 0 {
		return Ref{}, false
	}
	meta := map[string]any{"name": name}
	if namespace != "" {
		meta["namespace"] = namespace
	}
	ref, err := refOf(map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": meta})
	return ref, err == nil
}

type scanner struct {
	rest  []byte
	depth int64 // levels that are left
}

func (s *scanner) is(c byte) bool {
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// object calls member behind each key; keys must ascend.
func (s *scanner) object(member func(key []byte) bool) bool {
	if s.depth--; s.depth < 0 || !s.is('{') {
		return false
	}
	var last []byte
	for first := true; !s.is('}'); first = false {
		if !first && !s.is(',') {
			return false
		}
		key, plain, ok := s.str()
		// Escaped characters sort elsewhere than their escapes: such keys are rare, and canonical's.
		if !ok || !plain || !first && bytes.Compare(last, key) >= 0 || !s.is(':') || !member(key) {
			return false
		}
		last = key
	}
	s.depth++
	return true
}

func (s *scanner) array() bool {
	if s.depth--; s.depth < 0 || !s.is('[') {
		return false
	}
	for first := true; !s.is(']'); first = false {
		if !first && !s.is(',') || !s.value() {
			return false
		}
	}
	s.depth++
	return true
}

func (s *scanner) value() bool {
	if len(s.rest) == 0 {
		return false
	}
	switch s.rest[0] {
	case '{':
		return s.object(func([]byte) bool { return s.value() })
	case '[':
		return s.array()
	case '"':
		_, _, ok := s.str()
		return ok
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	}
	return s.number()
}

func (s *scanner) word(w string) bool {
	if !bytes.HasPrefix(s.rest, []byte(w)) {
		return false
	}
	s.rest = s.rest[len(w):]
	return true
}

// text reads a string that has no escapes.
func (s *scanner) text(to *string) bool {
	b, plain, ok := s.str()
	*to = string(b)
	return ok && plain
}

// str reads a string in the one way to write it; plain says that it holds no escapes.
func (s *scanner) str() (b []byte, plain, ok bool) {
	if !s.is('"') {
		return nil, false, false
	}
	plain = true
	for i := 0; i < len(s.rest); {
		switch c := s.rest[i]; {
		case c == '"':
			b, s.rest = s.rest[:i], s.rest[i+1:]
			return b, plain, true
		case c == '\\':
			n := escape(s.rest[i:])
			if n == 0 {
				return nil, false, false
			}
			plain = false
			i += n
		case c < ' ':
			return nil, false, false
		case c < utf8.RuneSelf:
			i++
		default:
			r, n := utf8.DecodeRune(s.rest[i:])
			if r == utf8.RuneError && n == 1 || r == '\u2028' || r == '\u2029' {
				return nil, false, false
			}
			i += n
		}
	}
	return nil, false, false
}

// escape is the length of an escape that is written only so; 0: it is none.
func escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(b) < 6 {
			return 0
		}
		switch hex := string(b[2:6]); {
		case hex == "2028", hex == "2029":
			return 6
		case hex[:2] != "00" || hex[2] != '0' && hex[2] != '1' || !bytes.ContainsRune([]byte("0123456789abcdef"), rune(hex[3])):
			return 0
		case hex == "0008", hex == "0009", hex == "000a", hex == "000c", hex == "000d": // these have a short form
			return 0
		}
		return 6
	}
	return 0
}

// number: RFC 8259 §6.
func (s *scanner) number() bool {
	b := s.rest
	digits := func() bool {
		n := 0
		for n < len(b) && b[n] >= '0' && b[n] <= '9' {
			n++
		}
		b = b[n:]
		return n > 0
	}
	if len(b) > 0 && b[0] == '-' {
		b = b[1:]
	}
	if len(b) > 1 && b[0] == '0' && b[1] >= '0' && b[1] <= '9' || !digits() {
		return false
	}
	if len(b) > 0 && b[0] == '.' {
		if b = b[1:]; !digits() {
			return false
		}
	}
	if len(b) > 0 && (b[0] == 'e' || b[0] == 'E') {
		if b = b[1:]; len(b) > 0 && (b[0] == '+' || b[0] == '-') {
			b = b[1:]
		}
		if !digits() {
			return false
		}
	}
	s.rest = b
	return true
}
