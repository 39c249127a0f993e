package render_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/Masterminds/sprig/v3"
	"golang.org/x/crypto/bcrypt"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/render"
)

const everyFunction = `apiVersion: v1
kind: ConfigMap
metadata: {name: a}
data:
  alphaNum: {{ randAlphaNum 12 | quote }}
  again: {{ randAlphaNum 12 | quote }}
  piped: {{ 12 | randAlphaNum | quote }}
  alpha: {{ quote (randAlpha 12) }}
  numeric: {{ randNumeric 12 | quote }}
  ascii: {{ randAscii 12 | quote }}
  bytes: {{ randBytes 12 | quote }}
  int: {{ randInt 5 1000000 | quote }}
  shuffle: {{ shuffle "abcdefghijklmnop" | quote }}
  uuid: {{ quote uuidv4 }}
  now: {{ now | date "2006-01-02" | quote }}
  year: {{ now.Year | quote }}
  ago: {{ ago (now) | quote }}
  htpasswd: {{ htpasswd "user" "password" | quote }}
  bcrypt: {{ bcrypt "password" | quote }}
  aes: {{ encryptAES "secret" "some text" | quote }}
  plain: {{ encryptAES "secret" "some text" | decryptAES "secret" | quote }}
  ecdsa: {{ genPrivateKey "ecdsa" | quote }}
  ed25519: {{ genPrivateKey "ed25519" | quote }}
  tpl: {{ tpl "{{ randAlphaNum 12 }}" . | quote }}
  tplOfValue: {{ tpl .Values.text $ | quote }}
  tplOfCall: {{ tpl uuidv4 . | quote }}
  tplOfPipe: {{ tpl (.Values.map | toYaml) . | quote }}
  helper: {{ include "password" . | quote }}
  {{- $ca := genCA "ca" 365 }}
  ca: {{ $ca.Cert | quote }}
  {{- $cert := genSignedCertWithKey "web" (list "127.0.0.1") (list "web.example.com") 30 $ca (genPrivateKey "ecdsa") }}
  cert: {{ $cert.Cert | quote }}
  key: {{ $cert.Key | quote }}
  {{- $self := genSelfSignedCertWithKey "self" nil (list "self.example.com") 30 (genPrivateKey "ecdsa") }}
  self: {{ $self.Cert | quote }}
  selfKey: {{ $self.Key | quote }}
  again2: {{ (genCAWithKey "other" 1 (genPrivateKey "ed25519")).Cert | quote }}
  nothing: {{ if lookup "v1" "Secret" "" "" }}found{{ else }}nothing{{ end }}
`

func randomInput(files map[string]string, o v1alpha1.BundleOptions) render.Input {
	in := render.Input{Name: "web", Options: o}
	all := map[string]string{
		"Chart.yaml": "apiVersion: v2\nname: web\nversion: 1.0.0\n", "templates/a.yaml": everyFunction,
		"templates/_helpers.tpl": `{{ define "password" }}{{ randAlphaNum 16 }}{{ end }}`,
		"values.yaml":            "text: '{{ uuidv4 }}'\nmap: {a: '{{ randNumeric 4 }}'}\n",
	}
	for name, text := range files {
		all[name] = text
	}
	for name, text := range all {
		in.Resources = append(in.Resources, v1alpha1.NewResource(name, []byte(text)))
	}
	in.Random = render.RandomOf([32]byte{1}, "shop", "web", time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC))
	return in
}

// values are the data of the ConfigMap a.
func values(t *testing.T, in render.Input) map[string]string {
	t.Helper()
	b, err := render.Render(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range b.Objects() {
		var cm struct{ Data map[string]string }
		if err := yaml.Unmarshal(o.JSON, &cm); err != nil {
			t.Fatal(err)
		}
		if o.Name == "a" {
			return cm.Data
		}
	}
	t.Fatal("there is no ConfigMap a")
	return nil
}

// TestRandomStays: what is unrelated to a random value does not change it: another rendering, the version of Kubernetes, kinds that a
// site has, values, other templates, another version of the chart.
func TestRandomStays(t *testing.T) {
	t.Parallel()
	first := values(t, randomInput(nil, v1alpha1.BundleOptions{}))
	for name, change := range map[string]func(*render.Input){
		"again":           func(*render.Input) {},
		"Kubernetes":      func(in *render.Input) { in.KubeVersion = "v1.31.0" },
		"a CRD":           func(in *render.Input) { in.APIVersions = append(render.DefaultAPIVersions(), "example.com/v1") },
		"values":          func(in *render.Input) { in.Options.Helm = &v1alpha1.HelmOptions{Values: v1alpha1.Values{"other": "x"}} },
		"another release": func(in *render.Input) { in.Options.ForceSyncGeneration = 7 },
		"chart version": func(in *render.Input) {
			*in = randomInput(map[string]string{"Chart.yaml": "apiVersion: v2\nname: web\nversion: 2.0.0\n"}, v1alpha1.BundleOptions{})
		},
		"another template": func(in *render.Input) {
			*in = randomInput(map[string]string{"templates/0.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {x: {{ include \"password\" . }}, y: {{ randAlphaNum 12 }}}\n"}, v1alpha1.BundleOptions{})
		},
	} {
		in := randomInput(nil, v1alpha1.BundleOptions{})
		change(&in)
		now := values(t, in)
		for k, v := range first {
			if now[k] != v {
				t.Errorf("%s: %s was %q, is %q", name, k, v, now[k])
			}
		}
	}
}

// TestRandomDiffers: other values where they must be others: for another hub, workspace, bundle or seed, and at each place of a chart.
func TestRandomDiffers(t *testing.T) {
	t.Parallel()
	first := values(t, randomInput(nil, v1alpha1.BundleOptions{}))
	for name, change := range map[string]func(*render.Input){
		"hub":       func(in *render.Input) { in.Random = render.RandomOf([32]byte{2}, "shop", "web", in.Random.Since) },
		"workspace": func(in *render.Input) { in.Random = render.RandomOf([32]byte{1}, "other", "web", in.Random.Since) },
		"bundle":    func(in *render.Input) { in.Random = render.RandomOf([32]byte{1}, "shop", "other", in.Random.Since) },
		"seed":      func(in *render.Input) { in.Options.Helm = &v1alpha1.HelmOptions{RandomSeed: "2027-01-02"} },
	} {
		in := randomInput(nil, v1alpha1.BundleOptions{})
		change(&in)
		now := values(t, in)
		for k, v := range first {
			same := k == "plain" || k == "nothing" || k == "ago" || name != "seed" && (k == "now" || k == "year")
			if (now[k] == v) != same {
				t.Errorf("%s: %s was %q, is %q", name, k, v, now[k])
			}
		}
		if name == "seed" && (now["now"] != "2027-01-02" || now["year"] != "2027") {
			t.Errorf("now is %s, want the date that the seed is", now["now"])
		}
	}
	seen := map[string]string{}
	for k, v := range first {
		if other, ok := seen[v]; ok && len(v) > 8 {
			t.Errorf("%s and %s are both %q", k, other, v)
		}
		seen[v] = k
	}
}

// TestRandomValues: they are what the functions promise.
func TestRandomValues(t *testing.T) {
	t.Parallel()
	v := values(t, randomInput(nil, v1alpha1.BundleOptions{}))
	for k, form := range map[string]string{
		"alphaNum": `^[A-Za-z0-9]{12}$`, "piped": `^[A-Za-z0-9]{12}$`, "alpha": `^[A-Za-z]{12}$`, "numeric": `^[0-9]{12}$`, "ascii": `^[ -~]{12}$`,
		"bytes": `^[A-Za-z0-9+/]{16}$`, "int": `^[0-9]+$`, "uuid": `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`,
		"now": `^2026-11-27$`, "year": `^2026$`, "ago": `^0s$`, "tpl": `^[A-Za-z0-9]{12}$`, "tplOfValue": `^[0-9a-f-]{36}$`, "tplOfCall": `^[0-9a-f-]{36}$`, "tplOfPipe": `^a: '?[0-9]{4}'?$`,
		"helper": `^[A-Za-z0-9]{16}$`, "plain": `^some text$`, "nothing": `^nothing$`,
	} {
		if !regexp.MustCompile(form).MatchString(v[k]) {
			t.Errorf("%s is %q, want %s", k, v[k], form)
		}
	}
	if err := bcrypt.CompareHashAndPassword([]byte(v["bcrypt"]), []byte("password")); err != nil {
		t.Errorf("bcrypt %s: %v", v["bcrypt"], err)
	}
	user, hash, _ := strings.Cut(v["htpasswd"], ":")
	if err := bcrypt.CompareHashAndPassword([]byte(hash), []byte("password")); err != nil || user != "user" {
		t.Errorf("htpasswd %s: %v", v["htpasswd"], err)
	}
	for _, k := range []string{"ecdsa", "ed25519"} {
		if block, _ := pem.Decode([]byte(v[k])); block == nil {
			t.Errorf("%s is no PEM: %s", k, v[k])
		}
	}
	for _, pair := range [][2]string{{"cert", "key"}, {"self", "selfKey"}} {
		if _, err := tls.X509KeyPair([]byte(v[pair[0]]), []byte(v[pair[1]])); err != nil {
			t.Errorf("%s: %v", pair[0], err)
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(v["ca"]))
	block, _ := pem.Decode([]byte(v["cert"]))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"web.example.com", "127.0.0.1"} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)}); err != nil {
			t.Errorf("certificate for %s: %v", name, err)
		}
	}
	if want := time.Date(2026, 12, 27, 10, 0, 0, 0, time.UTC); !cert.NotAfter.Equal(want) {
		t.Errorf("valid until %v, want %v", cert.NotAfter, want)
	}
}

// TestRandomMistakes: what is wrong in a call names the function, not what it was rewritten to.
func TestRandomMistakes(t *testing.T) {
	t.Parallel()
	for call, want := range map[string]string{
		"randAlphaNum":                       "one is missing",
		"randAlphaNum 1 2":                   "too many",
		`randAlphaNum "x"`:                   "expected int",
		"randAlphaNum -1":                    "use 0 to",
		"randAlphaNum 99999999":              "use 0 to",
		"randInt 5 5":                        "the second number must be larger",
		`genPrivateKey "dsa"`:                "known are rsa, ecdsa and ed25519",
		`genSignedCert "a" nil nil 1 (dict)`: "a certificate",
	} {
		in := randomInput(map[string]string{"templates/a.yaml": "a: {{ " + call + " }}\n"}, v1alpha1.BundleOptions{})
		_, err := render.Render(in)
		name, _, _ := strings.Cut(call, " ")
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "shoal.dev/random") {
			t.Errorf("%s: got %v, want %q", call, err, want)
		}
	}
}

// TestRandomFunctions: every function of sprig that gives something else each time is among those that are made of the secret.
func TestRandomFunctions(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	n := 0
	for name := range sprig.GenericFuncMap() {
		if regexp.MustCompile(`^(rand|gen|now|ago|uuid|shuffle|bcrypt|htpasswd|encrypt)`).MatchString(name) {
			n++
			fmt.Fprintf(&text, "%s\n", name)
		}
	}
	for name := range strings.Lines(text.String()) {
		name = strings.TrimSpace(name)
		in := randomInput(map[string]string{"templates/a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n# {{ if false }}{{ " + name + " }}{{ end }}\n"}, v1alpha1.BundleOptions{})
		r, err := render.WithNotes(in)
		if err != nil || len(r.Notes) < 1 || !strings.Contains(strings.Join(r.Notes, "\n"), "uses "+name+":") {
			t.Errorf("%s: %v, notes %q", name, err, r.Notes)
		}
	}
	if n != 20 {
		t.Errorf("sprig has %d such functions, this test knows 20", n)
	}
}
