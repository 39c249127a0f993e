package bundlefmt

import (
	"encoding/json"
	"fmt"
	"testing"
)

// likeApps is a bundle of the size and repetitiveness of an ordinary chart: 100 Deployments, about 240 kB.
func likeApps(b *testing.B) *Bundle {
	var objects []Object
	for i := range 100 {
		env := ""
		for j := range 20 {
			env += fmt.Sprintf(`{"name":"SETTING_%d","value":"value %d of %d"},`, j, j*i, i)
		}
		o, err := NewObject(fmt.Appendf(nil, `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"app-%[1]d","namespace":"web","labels":{"app.kubernetes.io/name":"app-%[1]d","app.kubernetes.io/part-of":"shop"}},"spec":{"replicas":%[1]d,"selector":{"matchLabels":{"app.kubernetes.io/name":"app-%[1]d"}},"template":{"metadata":{"labels":{"app.kubernetes.io/name":"app-%[1]d"}},"spec":{"containers":[{"name":"main","image":"registry.example.com/app-%[1]d:1.%[1]d.0","env":[%[2]s{"name":"LAST","value":"1"}],"resources":{"requests":{"cpu":"100m","memory":"128Mi"},"limits":{"memory":"256Mi"}},"livenessProbe":{"httpGet":{"path":"/healthz","port":8080},"periodSeconds":10}}]}}}}`, i, env))
		if err != nil {
			b.Fatal(err)
		}
		objects = append(objects, o)
	}
	out, err := New(objects, Handling{}, DefaultLimits())
	if err != nil {
		b.Fatal(err)
	}
	return out
}

func BenchmarkSeal(b *testing.B) {
	bundle, s := likeApps(b), NewSigner(testKey("hub"))
	b.SetBytes(int64(len(bundle.raw())))
	for b.Loop() {
		sealed, err := Seal(bundle, s, DefaultLimits())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(sealed.Size), "sealed-bytes")
	}
}

func BenchmarkOpen(b *testing.B) {
	sealed, err := Seal(likeApps(b), NewSigner(testKey("hub")), DefaultLimits())
	if err != nil {
		b.Fatal(err)
	}
	trust := NewTrust(public("hub"))
	b.SetBytes(sealed.RawSize)
	for b.Loop() {
		if _, err := Open(sealed.Parts, sealed.Digest, trust, DefaultLimits()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenFloor is what Open costs at least: decompressing and hashing.
func BenchmarkOpenFloor(b *testing.B) {
	sealed, err := Seal(likeApps(b), NewSigner(testKey("hub")), DefaultLimits())
	if err != nil {
		b.Fatal(err)
	}
	h, err := OpenHeader(sealed.Parts[0], sealed.Digest, NewTrust(public("hub")), DefaultLimits())
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(sealed.RawSize)
	for b.Loop() {
		raw, err := decompress(h.start, h.RawSize)
		if err != nil {
			b.Fatal(err)
		}
		Sum(raw)
	}
}

func BenchmarkSign(b *testing.B) {
	d := &Desired{Workspace: "shop", Cluster: "paris-1", Serial: 8, IssuedAt: issued, Deployments: fiveDeployments()}
	s := NewSigner(testKey("hub"))
	for b.Loop() {
		if _, err := d.Sign(s, DefaultLimits()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenDesired(b *testing.B) {
	d := &Desired{Workspace: "shop", Cluster: "paris-1", Serial: 8, IssuedAt: issued, Deployments: fiveDeployments()}
	msg, err := d.Sign(NewSigner(testKey("hub")), DefaultLimits())
	if err != nil {
		b.Fatal(err)
	}
	trust, who := NewTrust(public("hub")), Audience{Workspace: "shop", Cluster: "paris-1"}
	for b.Loop() {
		if _, err := OpenDesired(msg, trust, who, DefaultLimits()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseReported(b *testing.B) {
	r := Reported{Serial: 8, At: issued}
	for _, d := range fiveDeployments() {
		r.Deployments = append(r.Deployments, DeploymentReport{Name: d.Name, Serial: d.Serial, Digest: d.Digest, State: Ready, Ready: 20, Total: 20, Since: issued})
	}
	msg, err := r.Encode(DefaultLimits())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			if _, err := ParseReported(msg, DefaultLimits()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("json alone", func(b *testing.B) {
		for b.Loop() {
			var r Reported
			if err := json.Unmarshal(msg, &r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
