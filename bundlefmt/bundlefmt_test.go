package bundlefmt

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// random makes bundles that differ in number, size and compressibility of their objects.
func random(t testing.TB, seed uint64, objects, size int) *Bundle {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	var out []Object
	for i := range objects {
		var b strings.Builder
		for b.Len() < size {
			fmt.Fprintf(&b, "%x ", r.Uint64())
		}
		o, err := NewObject(fmt.Appendf(nil, `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"namespace":"web","name":"c%d"},"data":{"x":%q}}`, i, b.String()))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	b, err := New(out, Handling{}, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sameObject(a, b Object) bool { return a.Ref == b.Ref && bytes.Equal(a.JSON, b.JSON) }

func TestOpenIsTheReverseOfSeal(t *testing.T) {
	t.Parallel()
	trust := NewTrust(public("hub"))
	r := rand.New(rand.NewPCG(7, 7))
	for i := range 60 {
		l := DefaultLimits()
		l.PartSize = 800 + r.Int64N(4000)
		b := random(t, uint64(i), r.IntN(30), r.IntN(3000))
		s, err := Seal(b, NewSigner(testKey("hub")), l)
		if limit := new(LimitError); errors.As(err, &limit) {
			continue // small messages cannot carry it, and Seal says so
		}
		if err != nil {
			t.Fatal(err)
		}
		var total int64
		for i, p := range s.Parts {
			if int64(len(p)) > l.PartSize || len(p) == 0 {
				t.Fatalf("part %d has %d bytes, the limit is %d", i, len(p), l.PartSize)
			}
			total += int64(len(p))
		}
		if total != s.Size || int64(len(b.raw())) != s.RawSize || s.Digest != b.Digest() {
			t.Fatalf("sealed says %d bytes, %d raw, %s", s.Size, s.RawSize, s.Digest)
		}
		got, err := Open(s.Parts, b.Digest(), trust, l)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(b.Objects(), got.Objects(), sameObject) || got.Digest() != b.Digest() {
			t.Fatalf("bundle %d opened to something else", i)
		}
	}
}

// Every number of parts up to the limit has to leave room for the header that lists them.
func TestSealFitsAtEveryNumberOfParts(t *testing.T) {
	t.Parallel()
	l := DefaultLimits()
	body := make([]byte, l.Parts*l.PartSize)
	for n := int64(1); n <= l.Parts; n++ {
		full := (l.PartSize - headerOverhead - headerPerPart*n) + (n-1)*l.PartSize
		for _, size := range []int64{full - 1, full} {
			chunks, err := split(body[:size], l)
			if err != nil {
				t.Fatal(err)
			}
			if int64(len(chunks)) != n || len(chunks[n-1]) == 0 {
				t.Fatalf("%d bytes: %d parts, want %d", size, len(chunks), n)
			}
			var total int64
			for _, c := range chunks {
				total += int64(len(c))
			}
			if total != size {
				t.Fatalf("%d bytes: the parts have %d", size, total)
			}
		}
	}
	h := header{Version: 1, Digest: make([]byte, 32), RawSize: uint64(l.RawSize), BodySize: uint64(l.BodySize), Parts: slices.Repeat([][]byte{make([]byte, 32)}, int(l.Parts))}
	signed, err := sign(NewSigner(testKey("hub")), TypeBundle, h)
	if err != nil {
		t.Fatal(err)
	}
	if room := headerOverhead + headerPerPart*int(l.Parts); 4+len(signed) > room {
		t.Errorf("a header of %d bytes has %d bytes of room", len(signed), room)
	}
}

func TestLargestBundle(t *testing.T) {
	t.Parallel()
	l := DefaultLimits()
	var objects []Object
	for i := range 31 { // 31 MiB that compress well: window and limits at their ends
		o, err := NewObject(fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c%d"},"data":{"x":%q}}`, i, strings.Repeat(fmt.Sprint("line ", i, " "), 1<<20/10-100)))
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	b, err := New(objects, Handling{}, l)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Seal(b, NewSigner(testKey("hub")), l)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.Parts, s.Digest, NewTrust(public("hub")), l); err != nil {
		t.Error(err)
	}
	t.Logf("%d bytes raw, %d sealed", s.RawSize, s.Size)
}

func TestSameBundleAndKeyGiveTheSameBytes(t *testing.T) {
	t.Parallel()
	signer := NewSigner(testKey("hub"))
	a := random(t, 1, 50, 4000)
	first, err := Seal(a, signer, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 { // other bundles in between: the shared encoder must carry nothing over
		if _, err := Seal(random(t, uint64(i+2), 10, 2000), signer, DefaultLimits()); err != nil {
			t.Fatal(err)
		}
		again, err := Seal(random(t, 1, 50, 4000), signer, DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		if first.Digest != again.Digest || !slices.EqualFunc(first.Parts, again.Parts, bytes.Equal) {
			t.Fatal("sealed differently")
		}
	}
	d := &Desired{Workspace: "shop", Cluster: "paris-1", Serial: 8, IssuedAt: issued, Deployments: fiveDeployments()}
	one, err := d.Sign(signer, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	two, err := d.Sign(signer, DefaultLimits())
	if err != nil || !bytes.Equal(one, two) {
		t.Errorf("signed differently: %v", err)
	}
}

func fiveDeployments() []Deployment {
	var out []Deployment
	for i, name := range []string{"web", "api", "cache", "log-shipper", "node-exporter"} {
		out = append(out, Deployment{
			Name: name, Serial: Serial(i + 1), Digest: Sum([]byte(name)), RawSize: 238_000, Size: 17_000, Parts: 1, Group: "stores",
			Policy: Policy{Namespace: name, CorrectDrift: true},
		})
	}
	return out
}

// The vectors of accepted messages prove that we read them; these sizes, that what we write stays small.
func TestSizes(t *testing.T) {
	t.Parallel()
	d := &Desired{Workspace: "shop", Cluster: "paris-1", Serial: 8, IssuedAt: issued, StaleAfter: issued.Add(72 * time.Hour), Deployments: fiveDeployments()}
	msg, err := d.Sign(NewSigner(testKey("hub")), DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("desired document of five deployments: %d bytes", len(msg))
	if len(msg) > 700 {
		t.Errorf("a desired document of five deployments has %d bytes, want a few hundred", len(msg))
	}
	s, err := Seal(random(t, 1, 1, 10), NewSigner(testKey("hub")), DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("bundle of one small object: %d bytes raw, %d sealed", s.RawSize, s.Size)
}

// A cluster with as many deployments as every version can carry, and everything else at its limit, must still be ordered and heard.
func TestDocumentsAtTheLimitsFitAMessage(t *testing.T) {
	t.Parallel()
	l := DefaultLimits()
	long := func(i int) string { return strings.Repeat("n", 60) + fmt.Sprintf("%03d", i) }
	d := &Desired{Workspace: long(0), Cluster: long(0), Serial: MaxSerial, IssuedAt: issued, StaleAfter: issued}
	r := Reported{Serial: MaxSerial, Trust: MaxSerial, At: issued, Stale: true, Facts: strings.Repeat("f", 32), Refused: &Refusal{Topic: strings.Repeat("t", 250), Reason: strings.Repeat("r", MaxMessage), At: issued, Count: 1 << 30}}
	for i := range FewEntries {
		d.Deployments = append(d.Deployments, Deployment{
			Name: long(i), Serial: MaxSerial, Digest: Sum(nil), RawSize: l.RawSize, Size: l.BodySize, Parts: int(l.Parts), Group: long(i), Revision: strings.Repeat("r", MaxRevision),
			Policy: Policy{Namespace: long(i), ForceNamespace: true, NoCreateNamespace: true, CorrectDrift: true, CorrectDriftForce: true, KeepResources: true, Paused: true, ReadyTimeoutSecond: maxReadyTimeout},
		})
		findings := slices.Repeat([]Finding{{Ref: Ref{Group: "apps", Version: "v1", Kind: "Deployment", Namespace: long(0), Name: long(0)}, Reason: strings.Repeat("ä", 2000)}}, 40)
		r.Deployments = append(r.Deployments, DeploymentReport{
			Name: long(i), Serial: MaxSerial, Digest: Sum(nil), State: Downloading, Message: strings.Repeat("ü", 3000), Ready: int(l.Objects), Total: int(l.Objects), Since: time.Now(),
			NotReady: findings, Modified: findings, NotReadyCount: 40, ModifiedCount: int(l.Objects),
		})
	}
	msg, err := d.Sign(NewSigner(testKey("hub")), l)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenDesired(msg, NewTrust(public("hub")), Audience{Workspace: long(0), Cluster: long(0)}, l)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, got); diff != "" {
		t.Error(diff)
	}
	before := r.Deployments[0]
	b, err := r.Encode(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("at the limits: desired %d bytes, report %d bytes", len(msg), len(b))
	back, err := ParseReported(b, l)
	if err != nil {
		t.Fatal(err)
	}
	if len(back.Deployments) != len(r.Deployments) || back.Deployments[5].ModifiedCount != int(l.Objects) {
		t.Error("the report lost a deployment or a count")
	}
	if diff := cmp.Diff(before, r.Deployments[0]); diff != "" {
		t.Errorf("Encode changed its receiver: %s", diff)
	}
}

func TestReportLosesFindingsFirst(t *testing.T) {
	t.Parallel()
	finding := Finding{Ref: Ref{Version: "v1", Kind: "Pod", Namespace: "web", Name: "web"}, Reason: "pending"}
	r := Reported{Serial: 8, At: time.Now(), Deployments: []DeploymentReport{{
		Name: "web", Serial: 8, Digest: Sum(nil), State: NotReady, Message: "12 of 20 objects are not ready", Ready: 8, Total: 20, Since: time.Now(), NotReady: slices.Repeat([]Finding{finding}, 12),
	}}}
	for _, c := range []struct {
		size     int64
		findings int
		message  bool
	}{{48 << 10, 10, true}, {600, 1, true}, {350, 0, true}, {300, 0, false}} {
		l := DefaultLimits()
		l.PartSize = c.size
		b, err := r.Encode(l)
		if err != nil {
			t.Fatalf("%d: %v", c.size, err)
		}
		got, err := ParseReported(b, l)
		if err != nil {
			t.Fatal(err)
		}
		d := got.Deployments[0]
		if len(d.NotReady) != c.findings || d.NotReadyCount != 12 || (d.Message != "") != c.message || int64(len(b)) > c.size {
			t.Errorf("%d bytes: %d findings of %d, message %q", c.size, len(d.NotReady), d.NotReadyCount, d.Message)
		}
	}
	l := DefaultLimits()
	l.PartSize = 100
	limit := new(LimitError)
	if _, err := r.Encode(l); !errors.As(err, &limit) || limit.Limit != 100 {
		t.Errorf("no room at all: %v", err)
	}
}

// What OpenDesired refuses is not signed in the first place.
func TestSignRefusesWhatNobodyWouldOpen(t *testing.T) {
	t.Parallel()
	signer := NewSigner(testKey("hub"))
	good := func() *Desired {
		return &Desired{Workspace: "shop", Cluster: "paris-1", Serial: 8, IssuedAt: issued, Deployments: fiveDeployments()[:1]}
	}
	for name, spoil := range map[string]func(*Desired){
		"no serial":              func(d *Desired) { d.Serial = 0 },
		"cluster":                func(d *Desired) { d.Cluster = "Paris" },
		"workspace":              func(d *Desired) { d.Workspace = "" },
		"release above document": func(d *Desired) { d.Deployments[0].Serial = 9 },
		"twice":                  func(d *Desired) { d.Deployments = append(d.Deployments, d.Deployments[0]) },
		"run and remove":         func(d *Desired) { d.Remove = []Removal{{Name: "web", Serial: 1}} },
		"no parts":               func(d *Desired) { d.Deployments[0].Parts = 0 },
		"negative size":          func(d *Desired) { d.Deployments[0].RawSize = -1 },
		"group":                  func(d *Desired) { d.Deployments[0].Group = "+" },
		"before 1970":            func(d *Desired) { d.IssuedAt = time.Unix(-1, 0) },
	} {
		d := good()
		spoil(d)
		if _, err := d.Sign(signer, DefaultLimits()); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := good().Sign(signer, DefaultLimits()); err != nil {
		t.Error(err)
	}
	if _, err := (&TrustDoc{Workspace: "shop", Serial: 1}).Sign(signer); err == nil {
		t.Error("a trust document without keys was signed")
	}
}

func TestNewObject(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{`{ "kind":"Pod", "apiVersion":"v1", "metadata":{"name":"a"}, "n": 1.50, "h":"<&>" }`, `{"apiVersion":"v1","h":"<&>","kind":"Pod","metadata":{"name":"a"},"n":1.50}`},
		{`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"system:x","namespace":null}}`, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"system:x","namespace":null}}`},
		{`{"kind":"Pod","metadata":{"name":"a"}}`, ""},
		{`{"apiVersion":"v1","metadata":{"name":"a"}}`, ""},
		{`{"apiVersion":"v1","kind":"Pod","metadata":{}}`, ""},
		{`{"apiVersion":"v1","kind":"Pod","metadata":{"name":7}}`, ""},
		{`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":7}}`, ""},
		{`{"apiVersion":"/v1","kind":"Pod","metadata":{"name":"a"}}`, ""},
		{`{"apiVersion":"apps/","kind":"Pod","metadata":{"name":"a"}}`, ""},
		{`{"apiVersion":"apps/v1/x","kind":"Pod","metadata":{"name":"a"}}`, ""},
		{`{"apiVersion":"v1","kind":"Pod","metadata":{"name":".."}}`, ""},
		{`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a?b"}}`, ""},
		{`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a\nb"}}`, ""},
		{`{"APIVERSION":"v1","Kind":"Pod","Metadata":{"Name":"a"}}`, ""},
		{`null`, ""},
		{`{} {}`, ""},
		{``, ""},
	} {
		o, err := NewObject([]byte(c.in))
		if (err == nil) != (c.want != "") || string(o.JSON) != c.want {
			t.Errorf("%s: got %s, %v; want %s", c.in, o.JSON, err, c.want)
		}
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v has no reason", c.in, err)
		}
	}
}

func TestInspectReadsWithoutVerifying(t *testing.T) {
	t.Parallel()
	stranger := NewSigner(testKey("stranger"))
	d := &Desired{Workspace: "shop", Cluster: "paris-1", Serial: 8, IssuedAt: issued, Deployments: fiveDeployments()}
	msg, err := d.Sign(stranger, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	got, err := Inspect(msg, DefaultLimits())
	if err != nil || got.Key != KeyIDOf(public("stranger")) {
		t.Fatal(got, err)
	}
	if diff := cmp.Diff(d, got.Desired); diff != "" {
		t.Error(diff)
	}
	s, err := Seal(random(t, 1, 40, 4000), stranger, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	got, err = Inspect(s.Parts[0], DefaultLimits())
	if err != nil || got.Header.Digest != s.Digest || got.Header.Parts() != len(s.Parts) {
		t.Fatal(got, err)
	}
	doc := &TrustDoc{Workspace: "shop", Serial: 3, IssuedAt: issued, Keys: []ed25519.PublicKey{public("hub"), public("hub-next")}}
	if msg, err = doc.Sign(stranger); err != nil {
		t.Fatal(err)
	}
	got, err = Inspect(msg, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(doc, got.Trust); diff != "" {
		t.Error(diff)
	}
	for _, bad := range [][]byte{nil, {0}, []byte("{}"), msg[:40], s.Parts[0][:60]} {
		if got, err := Inspect(bad, DefaultLimits()); err == nil {
			t.Errorf("%x: %v", bad, got)
		}
	}
}

func TestDigestAndSerialHaveOneForm(t *testing.T) {
	t.Parallel()
	d := Sum([]byte("x"))
	if got, err := ParseDigest(d.String()); err != nil || got != d {
		t.Error(got, err)
	}
	for _, s := range []string{"", d.Short(), strings.ToUpper(d.String()), d.String() + "00", strings.Repeat("g", 64)} {
		if _, err := ParseDigest(s); !errors.Is(err, ErrMalformed) {
			t.Errorf("digest %q: %v", s, err)
		}
	}
	if got, err := ParseSerial(MaxSerial.String()); err != nil || got != MaxSerial {
		t.Error(got, err)
	}
	for _, s := range []string{"", "-1", "+1", "01", "1.0", "9007199254740992", "99999999999999999999"} {
		if _, err := ParseSerial(s); !errors.Is(err, ErrMalformed) {
			t.Errorf("serial %q: %v", s, err)
		}
	}
}

func TestTicketErrorsDoNotRepeatTheTicket(t *testing.T) {
	t.Parallel()
	ticket := Ticket{URL: "mqtts://hub:8883", Root: public("root"), Workspace: "shop", Token: "stores", Secret: "hunter2hunter2"}.String()
	for i := range len(ticket) {
		if _, err := ParseTicket(ticket[:i]); err == nil || strings.Contains(err.Error(), ticket[len(ticketPrefix):len(ticketPrefix)+10]) || strings.Contains(err.Error(), "hunter2") {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := ParseTicket(strings.Repeat(ticket, 1000)); err == nil {
		t.Error("an endless ticket was read")
	}
}

func TestClip(t *testing.T) {
	t.Parallel()
	for n := range 40 {
		s := strings.Repeat("aä€😀", 10)
		clip(&s, n+3)
		if len(s) > n+3 || !utf8.ValidString(s) || !strings.HasSuffix(s, "…") {
			t.Fatalf("%d: %q", n+3, s)
		}
	}
}

func TestFactsHashIsThatOfTheirBytes(t *testing.T) {
	t.Parallel()
	f := Facts{KubernetesVersion: "v1.37.2", APIVersions: []string{"apps/v1", "v1"}, Nodes: 1, Agent: "v0.1.0"}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if f.Hash() != Sum(b).Short() {
		t.Error("another agent could not compute this hash")
	}
}

func TestWorst(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		states []State
		want   State
	}{
		{nil, Ready},
		{[]State{Ready, NotReady, Ready}, NotReady},
		{[]State{Modified, ErrApplied, NotReady}, ErrApplied},
		{[]State{"Splendid"}, Ready},
	} {
		if got := Worst(c.states...); got != c.want {
			t.Errorf("%v: %s, want %s", c.states, got, c.want)
		}
	}
}

// TestObjectOf: an object that is decoded already becomes the same as from JSON.
func TestObjectOf(t *testing.T) {
	const text = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","labels":{"b":null,"a":"<&>\u2028é\t\"\\\n\u0001","":"\u007f"}},"n":[-9223372036854775808,0,true,false,[],{}]}`
	want, err := NewObject([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	v["n"].([]any)[0], v["n"].([]any)[1] = int64(-9223372036854775808), int64(0)
	got, err := ObjectOf(v)
	if err != nil || got.Ref != want.Ref || string(got.JSON) != string(want.JSON) {
		t.Errorf("got  %s %v\nwant %s", got.JSON, err, want.JSON)
	}
	v["n"] = 1.5
	if _, err := ObjectOf(v); !errors.Is(err, ErrMalformed) {
		t.Errorf("a float: %v", err)
	}
	delete(v, "n")
	delete(v, "kind")
	if _, err := ObjectOf(v); !errors.Is(err, ErrMalformed) {
		t.Errorf("no kind: %v", err)
	}
}

// many is an order of n deployments of ordinary size, and the report about them when all is well.
func many(n, nameLength int) (*Desired, Reported) {
	d := &Desired{Workspace: "stores", Cluster: "store-4711", Serial: 12345, IssuedAt: issued, StaleAfter: issued}
	r := Reported{Serial: d.Serial, Document: Sum(nil), Reads: NewestDesired, Trust: 3, At: issued, Facts: strings.Repeat("f", 32)}
	for i := range n {
		name := fmt.Sprintf("%0*d", nameLength, i)
		d.Deployments = append(d.Deployments, Deployment{
			Name: name, Serial: 12000, Digest: Sum([]byte(name)), RawSize: 20_000, Size: 4_000, Parts: 1, Group: "stores", Revision: "generation-12",
			Policy: Policy{Namespace: name, CorrectDrift: true, TakeOwnership: true},
		})
		r.Deployments = append(r.Deployments, DeploymentReport{
			Name: name, Serial: 12000, Digest: Sum([]byte(name)), State: Ready, Ready: 12, Total: 12, Since: issued, AsOrdered: true,
		})
	}
	return d, r
}

// 300 deployments are ordered and reported in one message each, with nothing lost; what does not fit is said by Fits before it is
// signed, and what fits can be signed and reported at its worst.
func TestManyDeployments(t *testing.T) {
	t.Parallel()
	l := DefaultLimits()
	d, r := many(300, 20)
	if err := d.Fits(l); err != nil {
		t.Fatal(err)
	}
	msg, err := d.Sign(NewSigner(testKey("hub")), l)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenDesired(msg, NewTrust(public("hub")), Audience{Workspace: "stores", Cluster: "store-4711"}, l); err != nil || cmp.Diff(d, got) != "" {
		t.Errorf("opened to something else: %v", err)
	}
	b, err := r.Encode(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("300 deployments: desired %d bytes, report %d bytes", len(msg), len(b))
	back, err := ParseReported(b, l)
	if err != nil {
		t.Fatal(err)
	}
	if len(back.Deployments) != 300 || !back.Deployments[7].Digest.IsZero() || back.Deployments[7].Since.IsZero() || back.Deployments[7].Ready != 12 {
		t.Errorf("got %+v", back.Deployments[7])
	}
	for _, length := range []int{4, 20, 40, 63} {
		most := FewEntries
		for ; ; most++ {
			if d, _ := many(most+1, length); d.Fits(l) != nil {
				break
			}
		}
		d, r := many(most, length)
		if _, err := d.Sign(NewSigner(testKey("hub")), l); err != nil {
			t.Fatalf("%d names of %d bytes fit, but: %v", most, length, err)
		}
		for i := range r.Deployments { // all of them in trouble
			x := &r.Deployments[i]
			x.Digest, x.AsOrdered, x.State, x.Message = Sum(nil), false, Downloading, strings.Repeat("m", MaxMessage)
			x.Ready, x.Total, x.NotReadyCount, x.ModifiedCount = 9999, 10000, 10000, 10000
		}
		r.Refused = &Refusal{Topic: strings.Repeat("t", 250), Reason: strings.Repeat("\x01", MaxMessage), At: issued, Count: 1 << 30}
		if _, err := r.Encode(l); err != nil {
			t.Fatalf("%d names of %d bytes fit, but: %v", most, length, err)
		}
		t.Logf("names of %d bytes: %d deployments fit", length, most)
	}
}

// What has to go from a report goes in the order of its use: the digests that the hub knows and the findings before messages.
func TestReportOfManyLosesLittle(t *testing.T) {
	t.Parallel()
	_, r := many(300, 20)
	for i := range 40 {
		r.Deployments[i].State, r.Deployments[i].Message = ErrApplied, "apply Deployment web/web: admission webhook denied the request"
		r.Deployments[i].NotReady = slices.Repeat([]Finding{{Ref: Ref{Version: "v1", Kind: "Pod", Name: "web"}, Reason: strings.Repeat("r", 500)}}, 10)
	}
	b, err := r.Encode(DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseReported(b, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	if x := back.Deployments[3]; x.Message != r.Deployments[3].Message || x.NotReadyCount != 10 || len(x.NotReady) > 1 {
		t.Errorf("got %+v", x)
	}
}
