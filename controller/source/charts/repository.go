package charts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/source"
	"shoal.dev/shoal/controller/source/charts/archive"
)

// Limits of an index. Large public ones have 20 MB.
const (
	maxIndex    = 64 << 20
	maxEntry    = 8 << 20   // the versions of one chart
	maxOddIndex = 8 << 20   // of one that must be parsed as a whole
	maxKept     = 128 << 20 // of all that a Client remembers
)

// entry is one version of a chart in an index.
type entry struct {
	Version string   `json:"version"`
	URLs    []string `json:"urls"`
	Digest  string   `json:"digest"`
}

// fromRepository gets a chart that an index.yaml lists.
func (c *Client) fromRepository(ctx context.Context, ref source.ChartRef) (source.Chart, error) {
	base, err := url.Parse(ref.Repo)
	if err != nil {
		return source.Chart{}, errors.New("repo is not a valid address")
	}
	index, err := c.index(ctx, base)
	if err != nil {
		return source.Chart{}, err
	}
	list, err := entries(index, ref.Chart)
	if err != nil {
		return source.Chart{}, fmt.Errorf("index.yaml: %w", err)
	}
	var versions []string
	byVersion := map[string]entry{}
	for _, e := range list {
		if _, ok := byVersion[e.Version]; !ok && len(e.URLs) > 0 {
			versions = append(versions, e.Version)
			byVersion[e.Version] = e
		}
	}
	if len(versions) == 0 {
		return source.Chart{}, fmt.Errorf("there is no chart %s in this repository: look in its index.yaml for the name", ref.Chart)
	}
	version, err := pick(versions, ref.Version)
	if err != nil {
		return source.Chart{}, err
	}
	return c.fromEntry(ctx, base, byVersion[version])
}

// index returns the index.yaml of a repository, read once by each Client.
func (c *Client) index(ctx context.Context, base *url.URL) ([]byte, error) {
	u := *base.JoinPath("index.yaml")
	c.mu.Lock()
	data, ok := c.indexes[u.String()]
	c.mu.Unlock()
	if ok {
		return data, nil
	}
	data, err := c.fetch(ctx, &u, maxIndex)
	var missing notFoundError
	if errors.As(err, &missing) {
		return nil, fmt.Errorf("%w: this is no chart repository", err)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.indexes[u.String()]; !ok && c.kept+len(data) <= maxKept {
		c.indexes[u.String()] = data
		c.kept += len(data)
	}
	return data, nil
}

func (c *Client) fromEntry(ctx context.Context, base *url.URL, e entry) (source.Chart, error) {
	digest := ""
	if e.Digest != "" {
		var err error
		if digest, err = parseDigest("index.yaml: digest", e.Digest); err != nil {
			return source.Chart{}, err
		}
	}
	u, err := url.Parse(e.URLs[0])
	if err != nil || u.User != nil {
		return source.Chart{}, fmt.Errorf("index.yaml: the address of version %s is not valid", e.Version)
	}
	if isOCI(e.URLs[0]) {
		ch, err := c.fromRegistry(ctx, e.URLs[0], e.Version)
		if err == nil && digest != "" && ch.Digest != "sha256:"+digest {
			err = fmt.Errorf("wrong digest: index.yaml says sha256:%s, the registry has %s", digest, ch.Digest)
		}
		if err != nil {
			return source.Chart{}, err
		}
		return ch, nil
	}
	if !u.IsAbs() {
		// As Helm does it: below the repository, with its query.
		dir := *base
		dir.Path, dir.RawPath = strings.TrimSuffix(base.Path, "/")+"/", ""
		u = dir.ResolveReference(u)
		u.RawQuery = base.RawQuery
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return source.Chart{}, fmt.Errorf("index.yaml: the address of version %s begins with %s://, which is not supported", e.Version, u.Scheme)
	case u.Scheme == "http" && base.Scheme == "https" && digest == "":
		return source.Chart{}, fmt.Errorf("index.yaml: version %s is at an address without TLS, and has no digest: nobody could tell whether it was replaced", e.Version)
	}
	data, err := c.cached(digest, func() ([]byte, error) { return c.fetch(ctx, u, archive.MaxPacked) })
	if err != nil {
		return source.Chart{}, err
	}
	return chartOf(data, "", "")
}

// entries returns the versions of one chart in an index. Only their part of the index is parsed: parsed as a whole, 20 MB
// of YAML take half a gigabyte.
func entries(index []byte, name string) ([]entry, error) {
	index = bytes.TrimPrefix(index, []byte("\xef\xbb\xbf"))
	if first := bytes.TrimLeft(index, " \t\r\n"); len(first) > 0 && first[0] == '{' {
		var all struct{ Entries map[string]json.RawMessage }
		if err := json.Unmarshal(first, &all); err == nil {
			return parseEntries(all.Entries[name])
		}
	}
	part, ok := section(index, name)
	if ok && part == nil {
		return nil, nil
	}
	if ok && len(part) <= maxEntry {
		if list, err := parseEntries(part); err == nil {
			return list, nil
		}
	}
	if len(index) > maxOddIndex {
		return nil, fmt.Errorf("its form is not that of `helm repo index`, and it has more than %d bytes", maxOddIndex)
	}
	var all struct {
		Entries map[string][]*entry `json:"entries"`
	}
	if err := yaml.Unmarshal(index, &all); err != nil {
		return nil, errors.New("it is not valid: is this a chart repository?")
	}
	if all.Entries == nil {
		return nil, errors.New("it has no entries: is this a chart repository?")
	}
	return values(all.Entries[name]), nil
}

func parseEntries(list []byte) ([]entry, error) {
	var out []*entry
	if err := yaml.Unmarshal(list, &out); err != nil {
		return nil, err
	}
	return values(out), nil
}

// values drops nulls: one broken entry must not hide the others, as with Helm.
func values(list []*entry) []entry {
	var out []entry
	for _, e := range list {
		if e != nil {
			out = append(out, *e)
		}
	}
	return out
}

// section returns the text below one key of entries in an index in block style, as Helm writes it; nil if there is no such
// key. False: the index has another form.
func section(index []byte, name string) (part []byte, ok bool) {
	indent, inside, start := -1, false, -1
	for pos := 0; pos < len(index); {
		end := pos + bytes.IndexByte(index[pos:], '\n') + 1
		if end == pos {
			end = len(index)
		}
		line := bytes.TrimRight(index[pos:end], " \r\n")
		text := bytes.TrimLeft(line, " ")
		depth := len(line) - len(text)
		at := pos
		pos = end
		if len(text) == 0 || text[0] == '#' {
			continue
		}
		switch {
		case text[0] == '\t':
			return nil, false
		case !inside:
			if depth == 0 && bytes.HasPrefix(text, []byte("entries")) {
				if key, rest, isKey := mapKey(text); isKey && key == "entries" {
					if rest != "" {
						return nil, false
					}
					inside = true
				}
			}
			continue
		case indent < 0:
			if depth == 0 {
				return nil, false
			}
			indent = depth
		}
		if depth > indent || depth == indent && (bytes.HasPrefix(text, []byte("- ")) || string(text) == "-") {
			continue
		}
		if start >= 0 {
			return index[start:at], true
		}
		if depth < indent {
			return nil, true
		}
		key, rest, isKey := mapKey(text)
		if !isKey {
			return nil, false
		}
		if key == name {
			if rest != "" {
				return nil, false
			}
			start = end
		}
	}
	switch {
	case start >= 0:
		return index[start:], true
	default:
		return nil, inside && indent >= 0
	}
}

// mapKey splits "key: rest"; comments behind it are dropped.
func mapKey(line []byte) (key, rest string, ok bool) {
	s := string(line)
	switch {
	case s[0] == '"' || s[0] == '\'':
		end := strings.IndexByte(s[1:], s[0])
		if end < 0 || strings.ContainsRune(s[1:1+end], '\\') {
			return "", "", false
		}
		key, rest = s[1:1+end], s[2+end:]
		if !strings.HasPrefix(rest, ":") {
			return "", "", false
		}
		rest = rest[1:]
	default:
		if strings.ContainsRune("?&*!|>%@`{[", rune(s[0])) {
			return "", "", false
		}
		if key, rest, ok = strings.Cut(s, ":"); !ok {
			return "", "", false
		}
		key = strings.TrimRight(key, " ")
	}
	if rest != "" && rest[0] != ' ' {
		return "", "", false
	}
	if rest = strings.TrimLeft(rest, " "); strings.HasPrefix(rest, "#") {
		rest = ""
	}
	return key, rest, true
}
