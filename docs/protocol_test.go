// Package docs_test holds the documentation to the code: examples are parsed and verified, tables are compared.
package docs_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/txtar"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/topics"
)

var limits = bundlefmt.DefaultLimits()

// page is docs/protocol.md taken apart.
type page struct {
	text  string
	fence map[string][]string // "json reported" → contents
	rows  [][]string          // of all tables
}

func protocol(t *testing.T) page {
	t.Helper()
	data, err := os.ReadFile("protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	p := page{text: string(data), fence: map[string][]string{}}
	kind, body := "", []string(nil)
	for line := range strings.Lines(p.text) {
		line = strings.TrimSuffix(line, "\n")
		switch fence, isFence := strings.CutPrefix(line, "```"); {
		case isFence && kind == "":
			kind, body = fence, nil
		case isFence:
			p.fence[kind] = append(p.fence[kind], strings.Join(body, "\n"))
			kind = ""
		case kind != "":
			body = append(body, line)
		case strings.HasPrefix(line, "| "):
			var cells []string
			for _, c := range strings.Split(strings.Trim(line, "|"), " | ") {
				cells = append(cells, strings.TrimSpace(c))
			}
			p.rows = append(p.rows, cells)
		}
	}
	return p
}

func (p page) one(t *testing.T, kind string) string {
	t.Helper()
	if len(p.fence[kind]) == 0 {
		t.Fatalf("protocol.md has no example %q", kind)
	}
	return p.fence[kind][0]
}

func (p page) hex(t *testing.T, kind string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(p.one(t, kind)), ""))
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	return b
}

func TestSignedExamplesVerify(t *testing.T) {
	t.Parallel()
	p := protocol(t)
	root, hub := ed25519.PublicKey(p.hex(t, "hex root-key")), ed25519.PublicKey(p.hex(t, "hex hub-key"))
	if id := bundlefmt.KeyIDOf(hub).String(); !strings.Contains(p.text, "`"+id+"`") {
		t.Errorf("the key id of the example is %s", id)
	}
	doc, err := bundlefmt.OpenTrust(p.hex(t, "hex trust"), root, "shop", 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(doc.Keys) != 1 || !doc.Keys[0].Equal(hub) {
		t.Error("the trust document of the example is about other keys")
	}
	trust := bundlefmt.NewTrust(doc.Keys...)
	msg := p.hex(t, "hex desired")
	d, err := bundlefmt.OpenDesired(msg, trust, bundlefmt.Audience{Workspace: "shop", Cluster: "paris-1", Floor: 8}, limits)
	if err != nil {
		t.Fatal(err)
	}
	payload := payloadOf(t, msg)
	diag, err := cbor.Diagnose(payload)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.one(t, "text diag"), diag); diff != "" {
		t.Errorf("diagnostic notation: %s", diff)
	}
	part := p.hex(t, "hex part-0")
	b, err := bundlefmt.Open([][]byte{part}, d.Deployments[0].Digest, trust, limits)
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Objects()) != 1 || d.Deployments[0].Size != int64(len(part)) {
		t.Error("the bundle of the example is not the one that is ordered")
	}
}

func payloadOf(t *testing.T, msg []byte) []byte {
	t.Helper()
	var m struct {
		_           struct{} `cbor:",toarray"`
		Protected   []byte
		Unprotected map[int]any
		Payload     []byte
		Signature   []byte
	}
	if _, err := cbor.UnmarshalFirst(msg[1:], &m); err != nil { // after the tag; a body may follow
		t.Fatal(err)
	}
	return m.Payload
}

func TestEnrolmentExample(t *testing.T) {
	t.Parallel()
	p := protocol(t)
	ticket, err := bundlefmt.ParseTicket(p.one(t, "text ticket"))
	if err != nil {
		t.Fatal(err)
	}
	var same bundlefmt.Ticket
	strict(t, p.one(t, "json ticket"), &same)
	if diff := cmp.Diff(ticket, same); diff != "" {
		t.Errorf("the two forms of the ticket differ: %s", diff)
	}
	if !ticket.Root.Equal(ed25519.PublicKey(p.hex(t, "hex root-key"))) {
		t.Error("the ticket's root key is not the one of the other examples")
	}
	r, err := bundlefmt.ParseEnrollRequest([]byte(p.one(t, "json enroll-request")), limits)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil || csr.Subject.CommonName != r.Cluster {
		t.Errorf("request for %s: %v", csr.Subject, err)
	}
	answer, err := bundlefmt.ParseEnrollResponse([]byte(p.one(t, "json enroll-response")), limits)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(answer.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(ticket.CA))
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		t.Error(err)
	}
	if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !key.Equal(csr.PublicKey) {
		t.Error("the certificate is for another key than the request")
	}
	if s := cert.Subject; !slices.Equal(s.Organization, []string{"shoal:agent"}) || !slices.Equal(s.OrganizationalUnit, []string{ticket.Workspace}) || s.CommonName != r.Cluster {
		t.Errorf("certificate of %s", s)
	}
	if _, err := bundlefmt.OpenTrust(answer.Trust, ticket.Root, ticket.Workspace, 0); err != nil {
		t.Error(err)
	}
	refused, err := bundlefmt.ParseEnrollResponse([]byte(p.fence["json enroll-response"][1]), limits)
	if err != nil || !refused.Final || refused.Error == "" {
		t.Errorf("%+v, %v", refused, err)
	}
}

// strict refuses fields that the code does not have.
func strict(t *testing.T, text string, v any) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Errorf("%s: %v", text, err)
	}
}

func TestJSONExamples(t *testing.T) {
	t.Parallel()
	p := protocol(t)
	for kind, parse := range map[string]func([]byte) (any, error){
		"reported":        func(b []byte) (any, error) { return bundlefmt.ParseReported(b, limits) },
		"presence":        func(b []byte) (any, error) { return bundlefmt.ParsePresence(b, limits) },
		"event":           func(b []byte) (any, error) { return bundlefmt.ParseEvent(b, limits) },
		"facts":           func(b []byte) (any, error) { return bundlefmt.ParseFacts(b, limits) },
		"part-request":    func(b []byte) (any, error) { return bundlefmt.ParsePartRequest(b, limits) },
		"enroll-request":  func(b []byte) (any, error) { return bundlefmt.ParseEnrollRequest(b, limits) },
		"enroll-response": func(b []byte) (any, error) { return bundlefmt.ParseEnrollResponse(b, limits) },
	} {
		p.one(t, "json "+kind)
		var shown string
		var typ reflect.Type
		for _, text := range p.fence["json "+kind] {
			v, err := parse([]byte(text))
			if err != nil {
				t.Errorf("%s: %v", kind, err)
				continue
			}
			typ = reflect.TypeOf(v).Elem()
			strict(t, text, reflect.New(typ).Interface())
			shown += text
		}
		for _, name := range fields(typ) {
			if !strings.Contains(shown, `"`+name+`"`) && !strings.Contains(p.text, "`"+name+"`") {
				t.Errorf("protocol.md says nothing of %q in %s", name, kind)
			}
		}
	}
	for kind := range p.fence {
		if strings.HasPrefix(kind, "json ") && kind != "json ticket" && !slices.Contains([]string{"reported", "presence", "event", "facts", "part-request", "enroll-request", "enroll-response"}, kind[5:]) {
			t.Errorf("example %q is checked by nobody", kind)
		}
	}
}

// fields are the JSON names in a type and below it.
func fields(t reflect.Type) (names []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.PkgPath() != reflect.TypeFor[bundlefmt.Reported]().PkgPath() {
		return nil
	}
	for f := range t.Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			names = append(names, name)
		}
		names = append(names, fields(f.Type)...)
	}
	return names
}

func TestTopicTable(t *testing.T) {
	t.Parallel()
	p := protocol(t)
	for _, name := range strings.Fields(p.one(t, "text topics")) {
		if _, err := topics.Default.Parse(name); err != nil {
			t.Error(err)
		}
	}
	cluster := topics.Cluster{Workspace: "shop", Name: "paris-1"}
	agent := topics.Default.Agent(cluster, func(string) bool { return true })
	enrollee := topics.Default.Enrollee("shop", "stores")
	types := map[topics.Kind]string{
		topics.Desired: bundlefmt.TypeDesired, topics.Trust: bundlefmt.TypeTrust, topics.Part: bundlefmt.TypeBundle, topics.Reported: bundlefmt.TypeReported, topics.Presence: bundlefmt.TypePresence,
		topics.Event: bundlefmt.TypeEvent, topics.EnrollRequest: bundlefmt.TypeEnroll, topics.EnrollResponse: bundlefmt.TypeEnroll,
	}
	verbs := map[string]string{"request/bundle": bundlefmt.TypeRequest, "response/facts": bundlefmt.TypeFacts, "response/report": bundlefmt.TypeReported, "request/facts": "–", "request/report": "–"}
	retained := []topics.Kind{topics.Desired, topics.Trust, topics.Part, topics.Reported, topics.Presence}
	seen := map[string]bool{}
	var kept []string
	for _, row := range p.rows {
		if len(row) != 6 || !strings.HasPrefix(row[0], "`<prefix>/") {
			continue
		}
		name := strings.NewReplacer("`", "", "<prefix>", "shoal/v1", "<workspace>", "shop", "<cluster>", "paris-1", "<group>", "stores", "<token>", "stores", "<nonce>", "0f1e", "<digest>", strings.Repeat("0a", 16), "<part>", "3").Replace(row[0])
		topic, err := topics.Default.Parse(name)
		if err != nil {
			t.Error(err)
			continue
		}
		kind := string(topic.Kind)
		if topic.Verb != "" {
			kind += "/" + string(topic.Verb)
		}
		seen[kind] = true
		want := types[topic.Kind]
		if want == "" {
			want = verbs[kind]
		}
		if got := strings.Trim(strings.TrimSuffix(row[4], " (empty payload)"), "`"); got != want {
			t.Errorf("%s: content type %s, want %s", name, got, want)
		}
		if got := row[1] == "yes"; got != slices.Contains(retained, topic.Kind) {
			t.Errorf("%s: retained %v", name, got)
		}
		fromHub := strings.HasPrefix(row[2], "hub")
		if may := agent.MayPublish(name) || enrollee.MayPublish(name); may == fromHub {
			t.Errorf("%s is from %s, but the site may publish it: %v", name, row[2], may)
		}
		if may := agent.MaySubscribe(name) || enrollee.MaySubscribe(name); may != fromHub {
			t.Errorf("%s is from %s, but the site may subscribe it: %v", name, row[2], may)
		}
		if row[5] == "yes" {
			kept = append(kept, name)
		}
	}
	if diff := cmp.Diff(topics.Default.ToAgent(cluster), kept); diff != "" {
		t.Errorf("what an agent keeps subscribed: %s", diff)
	}
	for kind := range types {
		if !seen[string(kind)] {
			t.Errorf("no row about %s", kind)
		}
	}
	for kind := range verbs {
		if !seen[kind] {
			t.Errorf("no row about %s", kind)
		}
	}
}

func TestLimitTable(t *testing.T) {
	t.Parallel()
	p := protocol(t)
	v := reflect.ValueOf(limits)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		want := strconv.FormatInt(v.Field(i).Int(), 10)
		if !slices.ContainsFunc(p.rows, func(r []string) bool { return len(r) == 3 && r[0] == "`"+name+"`" && r[1] == want }) {
			t.Errorf("the table of limits has no row %s = %s", name, want)
		}
	}
	for what, text := range map[string]string{
		"MaxSerial": fmt.Sprintf("serial = 1..%d", bundlefmt.MaxSerial), "MaxRevision": fmt.Sprintf("tstr .size (1..%d)", bundlefmt.MaxRevision), "MaxMessage": fmt.Sprintf("longer than %d bytes", bundlefmt.MaxMessage),
		"MaxFindings": fmt.Sprintf("at most %d objects each", bundlefmt.MaxFindings), "Version": fmt.Sprintf("| %d | 2", bundlefmt.Version), "AllGroup": "`" + bundlefmt.AllGroup + "`", "All": "`" + topics.All + "`",
	} {
		if !strings.Contains(p.text, text) {
			t.Errorf("%s: protocol.md lacks %q", what, text)
		}
	}
}

func TestEveryStateIsExplained(t *testing.T) {
	t.Parallel()
	p := protocol(t)
	states := []bundlefmt.State{
		bundlefmt.Ready, bundlefmt.NotReady, bundlefmt.Pending, bundlefmt.OutOfSync, bundlefmt.Modified, bundlefmt.WaitApplied, bundlefmt.Downloading, bundlefmt.Held, bundlefmt.Orphaned, bundlefmt.RolledBack,
		bundlefmt.Refused, bundlefmt.ErrApplied,
	}
	for _, s := range states {
		if !slices.ContainsFunc(p.rows, func(r []string) bool { return len(r) == 2 && r[0] == "`"+string(s)+"`" }) {
			t.Errorf("no row about %s", s)
		}
	}
}

// TestCDDLHasEveryKey compares the keys in the CDDL with those in the vectors of accepted messages.
func TestCDDLHasEveryKey(t *testing.T) {
	t.Parallel()
	p := protocol(t)
	cddl := strings.Join(p.fence["cddl"], "\n")
	used := map[string]map[int]bool{}
	use := func(rule string, m map[int]cbor.RawMessage) {
		if used[rule] == nil {
			used[rule] = map[int]bool{}
		}
		for k := range m {
			used[rule][k] = true
		}
	}
	documents := slices.Concat(vectors(t, "desired-ok-", "message.hex"), vectors(t, "desired-2-ok-", "message.hex"), vectors(t, "desired-3-ok-", "message.hex"))
	for _, msg := range documents {
		var d map[int]cbor.RawMessage
		decode(t, payloadOf(t, msg), &d)
		use("desired", d)
		for key, rule := range map[int]string{7: "deployment", 8: "removal", 9: "window"} {
			var list []map[int]cbor.RawMessage
			if d[key] != nil {
				decode(t, d[key], &list)
			}
			for _, x := range list {
				use(rule, x)
				if rule == "deployment" {
					var policy map[int]cbor.RawMessage
					decode(t, x[9], &policy)
					use("policy", policy)
					if policy[19] != nil {
						var dependencies []map[int]cbor.RawMessage
						decode(t, policy[19], &dependencies)
						for _, d := range dependencies {
							use("dependency", d)
						}
					}
				}
			}
		}
	}
	for _, msg := range vectors(t, "trust-ok", "message.hex") {
		var d map[int]cbor.RawMessage
		decode(t, payloadOf(t, msg), &d)
		use("trust", d)
	}
	for _, msg := range vectors(t, "bundle-ok", "part-0.hex") {
		var d map[int]cbor.RawMessage
		decode(t, payloadOf(t, msg[4:]), &d)
		use("header", d)
	}
	for _, in := range indexes(t) {
		var ix []cbor.RawMessage
		decode(t, in, &ix)
		var handling map[int]cbor.RawMessage
		decode(t, ix[2], &handling)
		use("handling", handling)
		for key, rule := range map[int]string{1: "hook", 2: "site-value", 3: "values-from", 4: "compare-patch", 6: "health-rule"} {
			var list []map[int]cbor.RawMessage
			if handling[key] != nil {
				decode(t, handling[key], &list)
			}
			for _, x := range list {
				use(rule, x)
				if rule == "compare-patch" && x[6] != nil {
					var ops []map[int]cbor.RawMessage
					decode(t, x[6], &ops)
					for _, o := range ops {
						use("patch-operation", o)
					}
				}
			}
		}
	}
	line := regexp.MustCompile(`(?m)^  (?:\? )?(\d+) =>`)
	for rule, keys := range used {
		_, body, ok := strings.Cut(cddl, "\n"+rule+" = {")
		if !ok {
			t.Errorf("no CDDL rule %s", rule)
			continue
		}
		body, _, _ = strings.Cut(body, "\n}")
		said := map[int]bool{}
		for _, m := range line.FindAllStringSubmatch(body, -1) {
			n, _ := strconv.Atoi(m[1])
			said[n] = true
		}
		if diff := cmp.Diff(keys, said); diff != "" {
			t.Errorf("keys of %s (-vectors +CDDL): %s", rule, diff)
		}
	}
}

// indexes are those of the accepted bundles of version 2 that are in one part.
func indexes(t *testing.T) (out [][]byte) {
	t.Helper()
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, part := range vectors(t, "bundle-2-ok-", "part-0.hex") {
		raw, err := d.DecodeAll(part[4+binary.BigEndian.Uint32(part):], nil)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, raw[4:4+binary.BigEndian.Uint32(raw)])
	}
	return out
}

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := cbor.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func vectors(t *testing.T, start, file string) (messages [][]byte) {
	t.Helper()
	paths, err := filepath.Glob("../bundlefmt/testdata/vectors/" + start + "*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no vectors %s: %v", start, err)
	}
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			if f.Name == file {
				b, err := hex.DecodeString(strings.Join(strings.Fields(string(f.Data)), ""))
				if err != nil {
					t.Fatal(err)
				}
				messages = append(messages, b)
			}
		}
	}
	return messages
}

// TestLinks: what protocol.md points at is there.
func TestLinks(t *testing.T) {
	t.Parallel()
	prose := regexp.MustCompile("(?ms)^```.*?^```").ReplaceAllString(protocol(t).text, "")
	for _, m := range regexp.MustCompile(`\]\(([^)#]+)\)`).FindAllStringSubmatch(prose, -1) {
		if strings.Contains(m[1], "://") {
			continue
		}
		if _, err := os.Stat(m[1]); err != nil {
			t.Error(err)
		}
	}
}
