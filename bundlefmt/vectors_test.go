package bundlefmt

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the vectors that are missing; a vector that exists is never changed")

const vectorDir = "testdata/vectors"

// vector is one file of testdata/vectors: see the README.md there.
type vector struct {
	open      string
	expect    string
	says      string
	workspace string
	cluster   string
	floor     Serial
	keys      []ed25519.PublicKey
	digest    Digest
	limits    Limits
	message   []byte
	parts     [][]byte
	want      string
}

// TestVectors opens every message in testdata/vectors and expects what the file says. Old files stay for ever: they are
// the compatibility test.
func TestVectors(t *testing.T) {
	t.Parallel()
	made := generated(t)
	for _, name := range slices.Sorted(maps.Keys(made)) {
		path := filepath.Join(vectorDir, name+".txtar")
		_, err := os.Stat(path)
		if err == nil {
			continue
		}
		if !*update {
			t.Errorf("%s is missing: run the test with -update", path)
			continue
		}
		if err := os.WriteFile(path, made[name], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(vectorDir, "*.txtar"))
	if err != nil || len(files) < 100 {
		t.Fatalf("%d vectors, %v: where are the others?", len(files), err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			v, err := parseVector(data)
			if err != nil {
				t.Fatal(err)
			}
			got, err := v.run()
			if superseded(path, v) {
				if err == nil {
					t.Error("opened, but no version ever wrote this")
				}
				return
			}
			if reason := reasonOf(err); reason != v.expect {
				t.Fatalf("got %s (%v), want %s", reason, err, v.expect)
			}
			if err != nil && !strings.Contains(err.Error(), v.says) {
				t.Errorf("refused for another reason: %v; want one that says %q", err, v.says)
			}
			if err == nil {
				if diff := cmp.Diff(strings.TrimSpace(v.want), strings.TrimSpace(got)); diff != "" {
					t.Errorf("opened to something else (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// superseded: the vector is about a reader that meets a version which did not exist yet. Since it exists the message is not too
// new any more; it is refused all the same, since nothing of that form is written.
func superseded(path string, v *vector) bool {
	name := filepath.Base(path)
	return v.expect == "version" && slices.ContainsFunc([]string{"desired-version-2", "desired-2-version-3", "bundle-index-version-2", "reported-version-2"}, func(p string) bool {
		return strings.HasPrefix(name, p)
	})
}

// reasonOf is the word for an error that vectors use.
func reasonOf(err error) string {
	var limit *LimitError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &limit):
		return "limit"
	case errors.Is(err, ErrUntrusted):
		return "untrusted"
	case errors.Is(err, ErrAudience):
		return "audience"
	case errors.Is(err, ErrStale):
		return "stale"
	case errors.Is(err, ErrVersion):
		return "version"
	case errors.Is(err, ErrDigest):
		return "digest"
	case errors.Is(err, ErrEmpty):
		return "empty"
	case errors.Is(err, ErrMalformed):
		return "malformed"
	}
	return "an error without a reason"
}

// run opens the message; what an accepted one opens to is returned as JSON.
func (v *vector) run() (string, error) {
	t := NewTrust(v.keys...)
	var out any
	var err error
	switch v.open {
	case "desired":
		out, err = OpenDesired(v.message, t, Audience{Workspace: v.workspace, Cluster: v.cluster, Floor: v.floor}, v.limits)
	case "trust":
		var root ed25519.PublicKey
		if len(v.keys) > 0 {
			root = v.keys[0]
		}
		out, err = OpenTrust(v.message, root, v.workspace, v.floor)
	case "bundle":
		var b *Bundle
		if b, err = Open(v.parts, v.digest, t, v.limits); err != nil {
			return "", err
		}
		var lines []string
		for _, o := range b.Objects() {
			lines = append(lines, string(o.JSON))
		}
		if h := b.Handling(); !h.IsZero() {
			out, err := json.MarshalIndent(h, "", "  ")
			if err != nil {
				return "", err
			}
			lines = append(lines, string(out))
		}
		return strings.Join(lines, "\n"), nil
	case "reported":
		out, err = ParseReported(v.message, v.limits)
	case "presence":
		out, err = ParsePresence(v.message, v.limits)
	case "event":
		out, err = ParseEvent(v.message, v.limits)
	case "facts":
		out, err = ParseFacts(v.message, v.limits)
	case "part-request":
		out, err = ParsePartRequest(v.message, v.limits)
	case "enroll-request":
		out, err = ParseEnrollRequest(v.message, v.limits)
	case "enroll-response":
		out, err = ParseEnrollResponse(v.message, v.limits)
	case "ticket":
		out, err = ParseTicket(string(v.message))
	default:
		return "", fmt.Errorf("vector: open: %q is unknown", v.open)
	}
	if err != nil {
		return "", err
	}
	b, err := json.MarshalIndent(out, "", "  ")
	return string(b), err
}

func parseVector(data []byte) (*vector, error) {
	a := txtar.Parse(data)
	v := &vector{limits: DefaultLimits()}
	for line := range strings.Lines(string(a.Comment)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if err := v.set(key, strings.TrimSpace(value)); err != nil {
			return nil, fmt.Errorf("vector: %s: %w", key, err)
		}
	}
	for _, f := range a.Files {
		switch {
		case f.Name == "message.hex":
			b, err := unhex(f.Data)
			if err != nil {
				return nil, err
			}
			v.message = b
		case f.Name == "message.txt":
			v.message = bytes.TrimSuffix(f.Data, []byte("\n"))
		case strings.HasPrefix(f.Name, "part-"):
			b, err := unhex(f.Data)
			if err != nil {
				return nil, err
			}
			v.parts = append(v.parts, b)
		case f.Name == "want":
			v.want = string(f.Data)
		case f.Name == "payload.diag": // for people
		default:
			return nil, fmt.Errorf("vector: file %q is unknown", f.Name)
		}
	}
	return v, nil
}

func (v *vector) set(key, value string) (err error) {
	switch key {
	case "open":
		v.open = value
	case "expect":
		v.expect = value
	case "says":
		v.says = value
	case "workspace":
		v.workspace = value
	case "cluster":
		v.cluster = value
	case "floor":
		v.floor, err = ParseSerial(value)
	case "key":
		var b []byte
		if b, err = hex.DecodeString(value); err == nil {
			v.keys = append(v.keys, b)
		}
	case "digest":
		v.digest, err = ParseDigest(value)
	case "limit":
		name, number, _ := strings.Cut(value, " ")
		limit, ok := map[string]*int64{
			"part-size": &v.limits.PartSize, "parts": &v.limits.Parts, "body-size": &v.limits.BodySize, "raw-size": &v.limits.RawSize,
			"objects": &v.limits.Objects, "object": &v.limits.Object, "depth": &v.limits.Depth, "entries": &v.limits.Entries,
		}[name]
		if !ok {
			return fmt.Errorf("no limit is called %q", name)
		}
		*limit, err = strconv.ParseInt(number, 10, 64)
	default:
		return errors.New("unknown key")
	}
	return err
}

// format is the reverse of parseVector.
func (v *vector) format(why, diag string) []byte {
	var c strings.Builder
	fmt.Fprintf(&c, "# %s\n", why)
	fmt.Fprintf(&c, "open: %s\n", v.open)
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&c, "%s: %s\n", key, value)
		}
	}
	line("workspace", v.workspace)
	line("cluster", v.cluster)
	if v.floor > 0 {
		line("floor", v.floor.String())
	}
	for _, k := range v.keys {
		line("key", hex.EncodeToString(k))
	}
	if !v.digest.IsZero() {
		line("digest", v.digest.String())
	}
	d := DefaultLimits()
	for _, x := range []struct {
		name     string
		got, def int64
	}{
		{"part-size", v.limits.PartSize, d.PartSize}, {"parts", v.limits.Parts, d.Parts}, {"body-size", v.limits.BodySize, d.BodySize},
		{"raw-size", v.limits.RawSize, d.RawSize}, {"objects", v.limits.Objects, d.Objects}, {"object", v.limits.Object, d.Object},
		{"depth", v.limits.Depth, d.Depth}, {"entries", v.limits.Entries, d.Entries},
	} {
		if x.got != x.def {
			line("limit", fmt.Sprintf("%s %d", x.name, x.got))
		}
	}
	line("expect", v.expect)
	line("says", v.says)
	a := txtar.Archive{Comment: []byte(c.String())}
	add := func(name, data string) { a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(data + "\n")}) }
	switch {
	case v.open == "bundle":
		for i, p := range v.parts {
			add(fmt.Sprintf("part-%d.hex", i), wrapHex(p))
		}
	case slices.Contains([]string{"desired", "trust"}, v.open):
		add("message.hex", wrapHex(v.message))
	default:
		add("message.txt", string(v.message))
	}
	if diag != "" {
		add("payload.diag", diag)
	}
	if v.want != "" {
		add("want", v.want)
	}
	return txtar.Format(&a)
}

func wrapHex(b []byte) string {
	var out []string
	for c := range slices.Chunk([]byte(hex.EncodeToString(b)), 96) {
		out = append(out, string(c))
	}
	return strings.Join(out, "\n")
}

func unhex(b []byte) ([]byte, error) {
	return hex.DecodeString(strings.Join(strings.Fields(string(b)), ""))
}
