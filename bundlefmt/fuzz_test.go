package bundlefmt

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// seeds are the messages of the vectors that a target opens.
func seeds(f *testing.F, open string) []*vector {
	files, err := filepath.Glob(filepath.Join(vectorDir, open+"-*.txtar"))
	if err != nil || len(files) == 0 {
		f.Fatal("no vectors", err)
	}
	var out []*vector
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		v, err := parseVector(data)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// bounded fails when f allocates more than limit bytes.
func bounded(t *testing.T, limit uint64, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > limit {
		t.Errorf("allocated %d bytes, the limit is %d", got, limit)
	}
}

// resign puts the fuzzer's payload under a good signature: otherwise it would never get past the signature.
func resign(contentType, signer string, payload []byte) []byte {
	e := newEnvelope(contentType, rawCBOR(payload)).by(signer)
	return e.bytes()
}

func FuzzOpenDesired(f *testing.F) {
	for _, v := range seeds(f, "desired") {
		f.Add(v.message, false)
		if m, _, err := envelope(v.message); err == nil {
			f.Add(m.Payload, true)
		}
	}
	trust, who, l := NewTrust(public("hub")), Audience{Workspace: "shop", Cluster: "paris-1", Floor: 1}, DefaultLimits()
	f.Fuzz(func(t *testing.T, msg []byte, signed bool) {
		if signed {
			msg = resign(TypeDesired, "hub", msg)
		}
		var d *Desired
		var err error
		bounded(t, 16<<20, func() { d, err = OpenDesired(msg, trust, who, l) })
		if err != nil {
			checkReason(t, err)
			return
		}
		again, err := d.Sign(NewSigner(testKey("hub")), l)
		if err != nil || string(again) != string(msg) {
			t.Errorf("opened a message that is not what Sign writes: %v", err)
		}
	})
}

func checkReason(t *testing.T, err error) {
	t.Helper()
	if r := reasonOf(err); strings.HasPrefix(r, "an error") {
		t.Errorf("%s: %v", r, err)
	}
}

func FuzzOpenTrust(f *testing.F) {
	for _, v := range seeds(f, "trust") {
		f.Add(v.message, false)
		if m, _, err := envelope(v.message); err == nil {
			f.Add(m.Payload, true)
		}
	}
	f.Fuzz(func(t *testing.T, msg []byte, signed bool) {
		if signed {
			msg = resign(TypeTrust, "root", msg)
		}
		var d *TrustDoc
		var err error
		bounded(t, 16<<20, func() { d, err = OpenTrust(msg, public("root"), "shop", 1) })
		if err != nil {
			checkReason(t, err)
			return
		}
		again, err := d.Sign(NewSigner(testKey("root")))
		if err != nil || string(again) != string(msg) {
			t.Errorf("opened a message that is not what Sign writes: %v", err)
		}
	})
}

// FuzzOpen lets the fuzzer play the broker (bytes as they come) and a hub that signs whatever it is given: raw bundles
// first, then bodies.
func FuzzOpen(f *testing.F) {
	for _, v := range seeds(f, "bundle") {
		if len(v.parts) == 1 {
			f.Add(v.parts[0], uint8(0))
		}
	}
	parts, _ := lie{}.build()
	h, err := Inspect(parts[0], DefaultLimits())
	if err != nil {
		f.Fatal(err)
	}
	raw, err := decompress(h.Header.start, h.Header.RawSize)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, uint8(1))
	f.Add(h.Header.start, uint8(2))
	l := DefaultLimits()
	l.RawSize, l.Object, l.Objects = 1<<20, 1<<16, 100
	trust := NewTrust(public("hub"))
	f.Fuzz(func(t *testing.T, data []byte, how uint8) {
		parts, want := [][]byte{data}, h.Header.Digest
		switch how % 3 {
		case 1: // an index of any content is what its digest says
			x := lie{raw: func([]byte) []byte { return slices.Clone(data) }}
			if len(data) > 4 {
				if n := int(data[0])<<24 | int(data[1])<<16 | int(data[2])<<8 | int(data[3]); n <= len(data)-4 {
					x.digest = Sum(data[4 : 4+n])
				}
			}
			parts, want = x.build()
		case 2:
			x := lie{body: func([]byte) []byte { return slices.Clone(data) }, header: func(p pairs) pairs { return p.with(3, 1<<16) }}
			parts, want = x.build()
		}
		var b *Bundle
		var err error
		bounded(t, 128<<20, func() { b, err = Open(parts, want, trust, l) })
		if err != nil {
			checkReason(t, err)
			return
		}
		if b.Digest() != want {
			t.Error("opened another bundle than was asked for")
		}
		again, err := New(b.Objects(), b.Handling(), l)
		if err != nil || again.Digest() != want {
			t.Errorf("opened a bundle that New would not make: %v", err)
		}
	})
}

func FuzzInspect(f *testing.F) {
	for _, kind := range []string{"desired", "trust"} {
		for _, v := range seeds(f, kind) {
			f.Add(v.message)
		}
	}
	for _, v := range seeds(f, "bundle") {
		if len(v.parts) > 0 {
			f.Add(v.parts[0])
		}
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		bounded(t, 16<<20, func() {
			if got, err := Inspect(msg, DefaultLimits()); err == nil && got.Desired == nil && got.Trust == nil && got.Header == nil {
				t.Error("neither a value nor an error")
			} else if err != nil {
				checkReason(t, err)
			}
		})
	})
}

func FuzzParseReported(f *testing.F) {
	for _, v := range seeds(f, "reported") {
		f.Add(v.message)
	}
	l := DefaultLimits()
	f.Fuzz(func(t *testing.T, msg []byte) {
		var r *Reported
		var err error
		bounded(t, 64<<20, func() { r, err = ParseReported(msg, l) })
		if err != nil {
			checkReason(t, err)
			return
		}
		b, err := r.Encode(l)
		if err != nil {
			return // may be longer than it was: escapes, times
		}
		if _, err := ParseReported(b, l); err != nil {
			t.Errorf("does not read what it wrote: %v", err)
		}
	})
}

// FuzzParseJSON feeds every small JSON parser the same bytes.
func FuzzParseJSON(f *testing.F) {
	for _, open := range []string{"presence", "event", "facts", "part-request", "enroll-request", "enroll-response"} {
		for _, v := range seeds(f, open) {
			f.Add(v.message)
		}
	}
	l := DefaultLimits()
	f.Fuzz(func(t *testing.T, msg []byte) {
		bounded(t, 64<<20, func() {
			_, err1 := ParsePresence(msg, l)
			_, err2 := ParseEvent(msg, l)
			_, err3 := ParseFacts(msg, l)
			p, err4 := ParsePartRequest(msg, l)
			_, err5 := ParseEnrollRequest(msg, l)
			_, err6 := ParseEnrollResponse(msg, l)
			for _, err := range []error{err1, err2, err3, err4, err5, err6} {
				checkReason(t, err)
			}
			if err4 == nil && (slices.Min(p.Parts) < 0 || int64(slices.Max(p.Parts)) >= l.Parts) {
				t.Errorf("parts %v", p.Parts)
			}
		})
	})
}

func FuzzParseTicket(f *testing.F) {
	for _, v := range seeds(f, "ticket") {
		f.Add(string(v.message))
	}
	f.Fuzz(func(t *testing.T, s string) {
		var ticket Ticket
		var err error
		bounded(t, 16<<20, func() { ticket, err = ParseTicket(s) })
		if err != nil {
			checkReason(t, err)
			return
		}
		again, err := ParseTicket(ticket.String())
		if err != nil || again.String() != ticket.String() || len(again.Root) != ed25519.PublicKeySize {
			t.Errorf("does not read what it wrote: %v", err)
		}
	})
}

func FuzzCanonical(f *testing.F) {
	f.Add([]byte(`{"b":[1.50,{"x":"\u2028<&>ä"}],"a":null}`))
	f.Add([]byte(`{"a":"\ud800","a":1e400}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := DefaultLimits()
		canon, err := Canonical(data, l)
		if err != nil {
			checkReason(t, err)
			return
		}
		l.Object *= 6 // an escape is at most six times its character
		again, err := Canonical(canon, l)
		if err != nil || string(again) != string(canon) || !json.Valid(canon) {
			t.Errorf("canonical form is not stable: %q, %q, %v", canon, again, err)
		}
	})
}

// FuzzScan: what the quick look recognises, the thorough one does as well.
func FuzzScan(f *testing.F) {
	for _, o := range []string{
		`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"web"},"spec":{"a":[1.50,-0,1e9,true,false,null,"\u2028<&>ä\n\u001f"],"b":{}}}`,
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web"}}`, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web"}} `,
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web","name":"web"}}`, `{"apiVersion":"v1","kind":"ConfigMap","kinD":"","metadata":{"name":"web"},"x":01}`,
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"web"},"x":"\u000a\/\ud800"}`,
	} {
		f.Add([]byte(o))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l := DefaultLimits()
		canon, v, err := canonical(data, l)
		want := Ref{}
		if err == nil {
			want, err = refOf(v)
		}
		is := err == nil && string(canon) == string(data)
		got, ok := scan(data, l)
		if ok && (!is || got != want) {
			t.Errorf("recognised as %v; thoroughly: %v, %v, %s", got, want, err, canon)
		}
		if is && !ok && !bytes.Contains(data, []byte(`\`)) {
			t.Error("not recognised")
		}
	})
}
