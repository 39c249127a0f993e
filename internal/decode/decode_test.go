package decode

import (
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/topics"
)

var update = flag.Bool("update", false, "rewrite testdata")

var at = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)

func signer(b byte) bundlefmt.Signer {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = b
	return bundlefmt.NewSigner(ed25519.NewKeyFromSeed(seed))
}

type message struct {
	topic    string
	payload  []byte
	retained bool
}

// story is what goes over the topics while a site enrols and gets a bundle, good and bad.
func story(t *testing.T) []message {
	t.Helper()
	p, c, l := topics.Default, topics.Cluster{Workspace: "shop", Name: "paris-1"}, bundlefmt.DefaultLimits()
	root, hub, stranger := signer(1), signer(2), signer(3)
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	j := func(v any) []byte { return must(json.Marshal(v)) }
	trust := &bundlefmt.TrustDoc{Workspace: "shop", Serial: 1, IssuedAt: at, Keys: []ed25519.PublicKey{hub.Public()}}
	var objects []bundlefmt.Object
	for i := range 3 {
		o, err := bundlefmt.NewObject(fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c%d"},"data":{"x":"%x"}}`, i, bundlefmt.Sum([]byte{byte(i)})))
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	bundle, err := bundlefmt.New(objects, bundlefmt.Handling{}, l)
	if err != nil {
		t.Fatal(err)
	}
	small := l
	small.PartSize = 700
	sealed, err := bundlefmt.Seal(bundle, hub, small)
	if err != nil {
		t.Fatal(err)
	}
	if len(sealed.Parts) != 2 {
		t.Fatalf("%d parts", len(sealed.Parts))
	}
	desired := &bundlefmt.Desired{Workspace: "shop", Cluster: "paris-1", Serial: 2, IssuedAt: at, Deployments: []bundlefmt.Deployment{
		{Name: "web", Serial: 2, Digest: sealed.Digest, RawSize: sealed.RawSize, Size: sealed.Size, Parts: len(sealed.Parts), Group: "stores"},
	}, Remove: []bundlefmt.Removal{{Name: "cache", Serial: 1, Keep: true}}}
	held := &bundlefmt.Desired{Workspace: "shop", Cluster: "paris-1", Serial: 3, IssuedAt: at, Deployments: []bundlefmt.Deployment{{
		Name: "web", Serial: 3, Digest: sealed.Digest, RawSize: sealed.RawSize, Size: sealed.Size, Parts: len(sealed.Parts),
		Policy: bundlefmt.Policy{Paused: true, Rollback: true, ConfirmPrune: true, ForceSync: 4, DependsOn: []bundlefmt.Dependency{
			{Name: "db"}, {Name: "api", States: []bundlefmt.State{bundlefmt.Ready, bundlefmt.Modified}}}},
	}}, Remove: []bundlefmt.Removal{{Name: "cache", Serial: 1, Confirmed: true}}, Windows: []bundlefmt.Window{
		{Schedule: "0 2 * * *", Seconds: 3 * 3600, TimeZone: "Europe/Berlin", Apply: true}, {Schedule: "0 0 * * 6", Seconds: 3600, Download: true}, {Schedule: "0 5 1 * *", Seconds: 60, Download: true, Apply: true}}}
	digest := sealed.Digest.Short()
	report := bundlefmt.Reported{Serial: 2, At: at, Refused: &bundlefmt.Refusal{Topic: p.Desired(c), Reason: "not signed by a trusted key", At: at, Count: 1}, Deployments: []bundlefmt.DeploymentReport{
		{Name: "api", Serial: 1, Digest: sealed.Digest, State: bundlefmt.Ready, Message: "not shown", Ready: 2, Total: 2, Since: at},
		{Name: "web", Serial: 2, Digest: sealed.Digest, State: bundlefmt.NotReady, Message: "Deployment.apps web/web: 0 of 1 replicas", Ready: 2, Total: 3, Since: at},
	}}
	return []message{
		{p.Desired(c), must(desired.Sign(hub, l)), true},
		{p.Trust("shop"), must(trust.Sign(stranger)), true},
		{p.Trust("shop"), must(trust.Sign(root)), true},
		{p.Desired(c), must(desired.Sign(hub, l)), true},
		{p.Desired(c), must(held.Sign(hub, l)), false},
		{p.Desired(c), must(desired.Sign(stranger, l)), false},
		{p.Desired(topics.Cluster{Workspace: "shop", Name: "rome-1"}), must(desired.Sign(hub, l)), false},
		{p.Desired(c), must(trust.Sign(root)), false},
		{p.Desired(c), []byte("garbage"), false},
		{p.Desired(c), nil, false},
		{p.Part(c, "stores", digest, 1), sealed.Parts[1], true},
		{p.Part(c, "stores", digest, 0), sealed.Parts[0], true},
		{p.Part(c, "stores", digest, 1), sealed.Parts[1], true},
		{p.Part(c, "stores", digest, 1), []byte("garbage"), false},
		{p.Part(c, "", strings.Repeat("0", 32), 0), sealed.Parts[0], false},
		{p.Presence(c), j(bundlefmt.Presence{Online: true, Nonce: "0f1e2d3c4b5a6978", Since: at, Agent: "v0.1.0"}), true},
		{p.Presence(c), j(bundlefmt.Presence{Nonce: "0f1e2d3c4b5a6978", Since: at, Reason: "connection lost"}), false},
		{p.Reported(c), must(report.Encode(l)), true},
		{p.Event(c), j(bundlefmt.Event{At: at, Deployment: "web", Serial: 2, State: bundlefmt.Downloading, Message: "part 2 of 2"}), false},
		{p.Event(c), j(bundlefmt.Event{At: at, Message: "evil \x1b[2J\u009b\u202e\n\r text"}), false},
		{p.Request(c, topics.VerbFacts), nil, false},
		{p.Response(c, topics.VerbFacts), j(bundlefmt.Facts{KubernetesVersion: "v1.37.2", APIVersions: []string{"v1", "apps/v1"}, Nodes: 1, Agent: "v0.1.0"}), false},
		{p.Request(c, topics.VerbBundle), j(bundlefmt.PartRequest{Deployment: "web", Digest: sealed.Digest, Group: "stores", Parts: []int{1}}), false},
		{p.Name(topics.Topic{Kind: topics.EnrollRequest, Workspace: "shop", Token: "stores", Nonce: "0f1e"}), j(bundlefmt.EnrollRequest{Cluster: "paris-1", CSR: []byte{1}, Agent: "v0.1.0"}), false},
		{p.Name(topics.Topic{Kind: topics.EnrollResponse, Workspace: "shop", Token: "stores", Nonce: "0f1e"}), j(bundlefmt.EnrollResponse{Workspace: "shop", Cluster: "paris-1", Certificate: []byte{1}}), false},
		{p.Name(topics.Topic{Kind: topics.EnrollResponse, Workspace: "shop", Token: "stores", Nonce: "0f1f"}), j(bundlefmt.EnrollResponse{Error: "the name is taken", Final: true}), false},
		{"other/topic\x1b[0m", []byte("x"), false},
	}
}

func TestStory(t *testing.T) {
	t.Parallel()
	for name, root := range map[string]ed25519.PublicKey{"verified": signer(1).Public(), "without-root": nil} {
		d := New(topics.Default, root)
		var lines, objects strings.Builder
		for _, m := range story(t) {
			r := d.Message(at, m.topic, m.payload, m.retained)
			line := r.String()
			if strings.ContainsFunc(line, func(c rune) bool { return !unicode.IsPrint(c) }) {
				t.Errorf("%q would act on a terminal", line)
			}
			lines.WriteString(line + "\n")
			b, err := r.JSON()
			if err != nil {
				t.Fatal(err)
			}
			var back Record
			if err := json.Unmarshal(b, &back); err != nil || back.Topic != m.topic || strings.ContainsFunc(string(b), func(c rune) bool { return !unicode.IsPrint(c) }) {
				t.Errorf("%q: %v", b, err)
			}
			objects.Write(append(b, '\n'))
		}
		golden(t, name+".txt", lines.String())
		golden(t, name+".jsonl", objects.String())
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestHeadersAreForgottenAtSomePoint(t *testing.T) {
	t.Parallel()
	d := New(topics.Default, signer(1).Public())
	for range maxHeaders + 5 {
		d.headers[fmt.Sprint(len(d.headers))] = nil
	}
	for _, m := range story(t) {
		d.Message(at, m.topic, m.payload, m.retained)
	}
	if len(d.headers) != 1 {
		t.Errorf("%d headers are remembered", len(d.headers))
	}
}

func FuzzMessage(f *testing.F) {
	f.Add("shoal/v1/shop/cluster/paris-1/event", []byte(`{"at":"2026-11-22T03:00:00Z","message":"\u009b"}`))
	f.Fuzz(func(t *testing.T, topic string, payload []byte) {
		r := New(topics.Default, nil).Message(at, topic, payload, true)
		if strings.ContainsFunc(r.String(), func(c rune) bool { return !unicode.IsPrint(c) }) {
			t.Errorf("%q", r.String())
		}
		if _, err := r.JSON(); err != nil {
			t.Error(err)
		}
	})
}
