package render

import (
	"strconv"
	"strings"
)

// Reading YAML is most of what rendering costs when values differ. What templates give is nearly always written in a small
// part of YAML, and quickYAML reads that: block maps and lists, literal blocks, and plain, quoted and short flow values on one
// line, in ASCII. It gives up at all else, and at all that could be anything but what it seems; then the YAML library reads
// the document. Whatever it reads, it must read as the library does: FuzzQuickYAML compares.
func quickYAML(doc string) (v map[string]any, ok bool) {
	q := quick{ok: true, lines: make([]quickLine, 0, strings.Count(doc, "\n")+1)}
	for len(doc) > 0 {
		line, rest, more := strings.Cut(doc, "\n")
		doc = rest
		for i := range len(line) {
			if line[i] < ' ' || line[i] > '~' {
				return nil, false
			}
		}
		text := strings.TrimLeft(line, " ")
		indent := len(line) - len(text)
		if indent == 0 && (strings.HasPrefix(text, "---") || strings.HasPrefix(text, "...") || strings.HasPrefix(text, "%")) {
			return nil, false
		}
		q.lines = append(q.lines, quickLine{indent: indent, text: strings.TrimRight(text, " "), raw: line})
		q.open = !more
	}
	if l := q.peek(); l == nil || l.indent != 0 || isItem(l.text) {
		return nil, false
	}
	v = q.mapping(0, 0)
	return v, q.ok && q.peek() == nil
}

// quick reads the lines of a document. After ok is false nothing it returned means anything.
type quick struct {
	lines []quickLine
	at    int
	ok    bool
	open  bool // the last line has no end
}

type quickLine struct {
	indent int
	text   string // without the white space around it
	raw    string
}

const quickDepth = 40

// peek returns the next line that is neither empty nor a comment.
func (q *quick) peek() *quickLine {
	for q.at < len(q.lines) {
		if l := &q.lines[q.at]; l.text != "" && l.text[0] != '#' {
			return l
		}
		q.at++
	}
	return nil
}

func (q *quick) fail() any { q.ok = false; return nil }

func isItem(text string) bool { return text == "-" || strings.HasPrefix(text, "- ") }

func (q *quick) mapping(indent, depth int) map[string]any {
	m := map[string]any{}
	for q.ok {
		l := q.peek()
		if l == nil || l.indent < indent {
			return m
		}
		key, rest, isKey := quickKey(l.text)
		if _, twice := m[key]; l.indent > indent || !isKey || twice || depth > quickDepth {
			q.fail()
			return nil
		}
		q.at++
		if rest != "" {
			m[key] = q.value(rest, indent)
			continue
		}
		switch next := q.peek(); {
		case next == nil || next.indent < indent || next.indent == indent && !isItem(next.text):
			m[key] = nil
		case isItem(next.text):
			m[key] = q.list(next.indent, depth+1)
		default:
			m[key] = q.block(next.indent, depth+1)
		}
	}
	return nil
}

// block reads what begins at the next line, which is further in than what is around it.
func (q *quick) block(indent, depth int) any {
	switch l := q.peek(); {
	case isItem(l.text):
		return q.list(indent, depth)
	default:
		if _, _, isKey := quickKey(l.text); !isKey {
			return q.fail() // a value on a line of its own
		}
		return q.mapping(indent, depth)
	}
}

func (q *quick) list(indent, depth int) any {
	out := []any{}
	for q.ok {
		l := q.peek()
		if l == nil || l.indent < indent || l.indent == indent && !isItem(l.text) {
			return out
		}
		if l.indent > indent || depth > quickDepth {
			return q.fail()
		}
		rest := strings.TrimLeft(l.text[1:], " ")
		if rest == "" || rest[0] == '#' {
			q.at++
			if next := q.peek(); next != nil && next.indent > indent {
				out = append(out, q.block(next.indent, depth+1))
			} else {
				out = append(out, nil)
			}
			continue
		}
		if _, _, isKey := quickKey(rest); isKey || isItem(rest) { // a map or list that begins on this line
			l.indent += len(l.text) - len(rest)
			l.text = rest
			out = append(out, q.block(l.indent, depth+1))
			continue
		}
		q.at++
		out = append(out, q.value(rest, indent))
	}
	return nil
}

// quickKey cuts "key: rest". It knows only keys that are strings.
func quickKey(s string) (key, rest string, ok bool) {
	end := 0
	if s[0] == '"' || s[0] == '\'' {
		end = strings.IndexByte(s[1:], s[0]) + 2
		if end < 3 || end >= len(s) || end > 200 {
			return "", "", false
		}
		key = s[1 : end-1]
		if s[0] == '"' && strings.Contains(key, `\`) {
			return "", "", false
		}
	} else {
		for end < len(s) && end < 200 && (isAlnum(s[end]) || strings.IndexByte("_./-", s[end]) >= 0) {
			end++
		}
		if end == 0 || end >= len(s) {
			return "", "", false
		}
		key = s[:end]
		if v, ok := quickPlain(key); !ok {
			return "", "", false
		} else if _, isString := v.(string); !isString {
			return "", "", false
		}
	}
	if s[end] != ':' {
		return "", "", false
	}
	rest = s[end+1:]
	if rest != "" && rest[0] != ' ' {
		return "", "", false
	}
	rest = strings.TrimLeft(rest, " ")
	if rest != "" && rest[0] == '#' {
		rest = ""
	}
	return key, rest, true
}

// value reads a value that begins in the line of its key or item, which indent is that of.
func (q *quick) value(s string, indent int) any {
	if s[0] == '|' {
		return q.literal(s, indent)
	}
	if next := q.peek(); next != nil && next.indent > indent {
		return q.fail() // it goes on
	}
	v, rest, ok := quickScalar(s)
	if rest = strings.TrimLeft(rest, " "); !ok || rest != "" && rest[0] != '#' {
		return q.fail()
	}
	return v
}

// literal reads the lines of a block that begins with | or |-.
func (q *quick) literal(head string, indent int) any {
	if head != "|" && head != "|-" {
		return q.fail()
	}
	var lines []string
	inner := 0
	for ; q.at < len(q.lines); q.at++ {
		l := q.lines[q.at]
		if l.text == "" {
			if inner == 0 && len(l.raw) > 0 || inner > 0 && len(l.raw) > inner {
				return q.fail() // white space that may count
			}
			lines = append(lines, "")
			continue
		}
		if l.indent <= indent {
			break
		}
		if inner == 0 {
			inner = l.indent
		}
		if l.indent < inner {
			return q.fail()
		}
		lines = append(lines, l.raw[inner:])
	}
	if inner == 0 || q.at == len(q.lines) && q.open {
		return q.fail()
	}
	text := strings.TrimRight(strings.Join(lines, "\n"), "\n")
	if head == "|" {
		text += "\n"
	}
	return text
}

// quickScalar reads a value of a block map or list; rest is what follows it.
func quickScalar(s string) (v any, rest string, ok bool) {
	switch s[0] {
	case '"', '\'':
		return quickQuoted(s)
	case '[', '{':
		return quickFlow(s, 0)
	}
	if i := strings.Index(s, " #"); i >= 0 {
		s = strings.TrimRight(s[:i], " ")
	}
	if strings.Contains(s, ": ") || strings.HasSuffix(s, ":") {
		return nil, "", false
	}
	v, ok = quickPlain(s)
	return v, "", ok
}

func quickQuoted(s string) (v any, rest string, ok bool) {
	end := strings.IndexByte(s[1:], s[0]) + 1
	if end == 0 || s[0] == '"' && strings.Contains(s[:end], `\`) || s[0] == '\'' && end+1 < len(s) && s[end+1] == '\'' {
		return nil, "", false
	}
	return s[1:end], s[end+1:], true
}

// quickFlow reads [a, b] and {a: b} of simple values.
func quickFlow(s string, depth int) (v any, rest string, ok bool) {
	switch {
	case s == "" || depth > quickDepth:
		return nil, "", false
	case s[0] == '"' || s[0] == '\'':
		return quickQuoted(s)
	case s[0] == '[':
		out := []any{}
		for s = strings.TrimLeft(s[1:], " "); ; s = strings.TrimLeft(s[1:], " ") {
			if len(out) == 0 && s != "" && s[0] == ']' {
				return out, s[1:], true
			}
			e, after, ok := quickFlow(s, depth+1)
			if s = strings.TrimLeft(after, " "); !ok || s == "" {
				return nil, "", false
			}
			out = append(out, e)
			if s[0] == ']' {
				return out, s[1:], true
			}
			if s[0] != ',' {
				return nil, "", false
			}
		}
	case s[0] == '{':
		out := map[string]any{}
		for s = strings.TrimLeft(s[1:], " "); ; s = strings.TrimLeft(s[1:], " ") {
			if len(out) == 0 && s != "" && s[0] == '}' {
				return out, s[1:], true
			}
			k, after, ok := quickFlow(s, depth+1)
			key, isString := k.(string)
			if _, twice := out[key]; !ok || !isString || twice || len(key) > 200 || !strings.HasPrefix(after, ": ") {
				return nil, "", false
			}
			e, after, ok := quickFlow(strings.TrimLeft(after[2:], " "), depth+1)
			if s = strings.TrimLeft(after, " "); !ok || s == "" {
				return nil, "", false
			}
			out[key] = e
			if s[0] == '}' {
				return out, s[1:], true
			}
			if s[0] != ',' {
				return nil, "", false
			}
		}
	}
	end := 0
	for end < len(s) && (isAlnum(s[end]) || strings.IndexByte("_./-", s[end]) >= 0) {
		end++
	}
	if end == 0 {
		return nil, "", false
	}
	v, ok = quickPlain(s[:end])
	return v, s[end:], ok
}

// quickPlain says what a plain value is, when that is beyond doubt.
func quickPlain(s string) (any, bool) {
	if s == "" {
		return nil, false
	}
	switch c := s[0]; {
	case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
		if len(s) > 5 {
			return s, true
		}
		switch s {
		case "true":
			return true, true
		case "false":
			return false, true
		case "null":
			return nil, true
		}
		switch strings.ToLower(s) {
		case "y", "yes", "true", "on", "n", "no", "false", "off", "null":
			return nil, false
		}
		return s, true
	case c == '/' || c == '_' || c == '$' || c == '(':
		return s, true
	case c >= '0' && c <= '9':
		return quickNumber(s)
	case c == '-' && len(s) > 1 && s[1] >= '1' && s[1] <= '9':
		v, ok := quickNumber(s[1:])
		n, isInt := v.(int64)
		return -n, ok && isInt
	}
	return nil, false
}

// quickNumber reads whole numbers, and tells what only begins as a number: 100m, 1.2.3.
func quickNumber(s string) (any, bool) {
	dots, digits := 0, true
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
		case c == '.':
			dots++
			digits = false
		case strings.IndexByte("ghijklmnpqrsuvwGHIJKLMNPQRSUVW", c) >= 0: // in no number, and in no time
			return s, true
		default:
			return nil, false
		}
	}
	if digits && len(s) <= 15 && (s[0] != '0' || len(s) == 1) {
		n, err := strconv.ParseInt(s, 10, 64)
		return n, err == nil
	}
	return s, dots >= 2
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
