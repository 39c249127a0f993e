package apply

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/kubetest"
)

const filled = `
apiVersion: v1
kind: Secret
metadata: {name: app}
stringData: {dsn: "db://app:TOKEN1@db"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: app}
data: {host: "TOKEN2", both: "TOKEN1 at TOKEN2"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: plain}
data: {v: "1"}`

func (s *site) filledDeployment() Deployment {
	d := s.deployment("app", filled)
	d.Handling.SiteValues = []bundlefmt.SiteValue{
		{Path: "db.password", Token: "TOKEN1", Default: "changeme"}, {Path: `db.host\.name`, Token: "TOKEN2", Default: "localhost"}, {Path: "replicas", Fixed: true, Default: "2"},
	}
	d.Handling.ValuesFrom = []bundlefmt.ValuesFrom{{Kind: "ConfigMap", Name: "site", Key: "values.yaml"}, {Kind: "Secret", Name: "site", Key: "values.yaml"}}
	return d
}

func (s *site) siteSecret(values string) {
	s.Helper()
	if s.get(secrets, "site") == nil {
		s.create(secrets, "apiVersion: v1\nkind: Secret\nmetadata: {name: site}")
	}
	s.edit(secrets, "site", fmt.Sprintf(`{"data":{"values.yaml":%q}}`, base64.StdEncoding.EncodeToString([]byte(values))))
}

func (s *site) secretData(name, key string) string {
	s.Helper()
	b, err := base64.StdEncoding.DecodeString(strings.Trim(value2(s.get(secrets, name), "data", key), `"`))
	if err != nil {
		s.Fatal(err)
	}
	return string(b)
}

func TestSiteValuesAreFilledInAndFollowed(t *testing.T) {
	s := newSite(t)
	var log bytes.Buffer
	a, err := New(s.cfg, Options{}, zerolog.New(&log))
	if err != nil {
		t.Fatal(err)
	}
	s.a = a
	d := s.filledDeployment()
	s.create(configMaps, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: site}\ndata: {values.yaml: \"db: {password: fromconfigmap, host.name: db.site}\"}")
	s.siteSecret("db:\n  password: s3cr3t0ne\n")
	res := s.apply(d, nil)
	if got := s.secretData("app", "dsn"); got != "db://app:s3cr3t0ne@db" {
		t.Errorf("the later document wins, in base64 too: %s", got)
	}
	if got := value2(s.get(configMaps, "app"), "data"); got != `{"both":"s3cr3t0ne at db.site","host":"db.site"}` {
		t.Errorf("got %s", got)
	}
	s.clean(d)

	// A new value is told, is no drift of somebody else, and shows no value.
	mark := s.deployment("mark", configMap("mark", "1"))
	s.apply(mark, nil)
	c := s.watch()
	s.told(c, "app", 0)
	s.clean(d)
	s.settled(c, mark)
	n := c.count("app")
	s.siteSecret("db: {password: s3cr3ttwo}")
	s.told(c, "app", n)
	st := s.check(d)
	if st.Modified.Count != 2 || st.SiteValues != 2 {
		t.Errorf("want two objects with new values, got %+v", st)
	}
	text := fmt.Sprint(st)
	s.apply(d, res.Inventory)
	if got := s.secretData("app", "dsn"); got != "db://app:s3cr3ttwo@db" {
		t.Errorf("got %s", got)
	}
	s.clean(d)
	// Somebody edits beside it: that is drift, and no new value.
	s.edit(configMaps, "plain", `{"data":{"v":"2"}}`)
	if st := s.check(d); st.Modified.Count != 1 || st.SiteValues != 0 {
		t.Errorf("got %+v", st)
	}
	// An object that is missing altogether is created with the values, and one whose list of keys differs shows none.
	s.edit(configMaps, "app", `{"data":null}`)
	text += fmt.Sprint(s.check(d))
	// A release that says it itself: the site's value is still there, and not shown.
	s.apply(d, res.Inventory)
	plain := s.deployment("app", strings.NewReplacer("TOKEN1", "x", "TOKEN2", "y").Replace(filled))
	text += fmt.Sprint(s.check(plain))
	s.apply(plain, res.Inventory)
	if both := text + log.String(); strings.Contains(both, "s3cr3t") || strings.Contains(both, "db.site") || strings.Contains(both, base64.StdEncoding.EncodeToString([]byte("db://app:s3cr"))[:12]) {
		t.Errorf("a value of the site is said:\n%s", both)
	}
}

// What a site got wrong is said with the path, never with the value, and nothing is written.
func TestSiteValuesThatAreWrong(t *testing.T) {
	s := newSite(t)
	s.create(configMaps, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: site}\ndata: {values.yaml: \"\"}")
	d := s.filledDeployment()
	refused := func(want ...string) {
		t.Helper()
		res := s.try(d, nil)
		if len(res.Errors) != 1 || res.Errors[0].Reason != NoSiteValues || s.get(configMaps, "plain") != nil {
			t.Fatalf("got %v", res.Errors)
		}
		contains(t, res.Errors[0].Ref.String()+": "+res.Errors[0].Message, want...)
		if strings.Contains(res.Errors[0].Message, "s3cr3t") {
			t.Errorf("a value in %q", res.Errors[0].Message)
		}
	}
	refused("Secret "+s.ns+"/site", "does not exist", `create it, with the key "values.yaml"`)
	s.create(secrets, "apiVersion: v1\nkind: Secret\nmetadata: {name: site}\nstringData: {other: x}")
	refused(`has no key "values.yaml"`)
	s.siteSecret("db: {pasword: s3cr3t}")
	refused("sets db.pasword, which the bundle does not read from the site")
	s.siteSecret("replicas: 77531")
	refused("sets replicas, which the chart computes with")
	s.siteSecret(`db: {password: ""}`)
	refused("sets db.password, to an empty text, where the chart was rendered as if it had one")
	s.siteSecret("db: {password: [s3cr3t]}")
	refused("sets db.password, and not to a text")
	s.siteSecret("s3cr3t")
	refused("is no YAML map of values")
	s.siteSecret("a: 1\n b: s3cr3t: x")
	refused("is no YAML map of values")

	// Defaults stand in for what is not set; numbers are as Helm reads them.
	s.siteSecret("db: {password: 12345, host.name: null}")
	res := s.apply(d, nil)
	if got := s.secretData("app", "dsn"); got != "db://app:12345@db" {
		t.Errorf("got %s", got)
	}
	if got := value2(s.get(configMaps, "app"), "data", "host"); got != `"localhost"` {
		t.Errorf("got %s", got)
	}
	// The source goes: what runs goes on, and that it cannot be compared is said.
	s.delete(secrets, "site")
	st := s.check(d)
	if st.Ready != 3 || st.Modified.Count != 0 || st.Unverified.Count != 2 {
		t.Errorf("got %+v", st)
	}
	contains(t, st.Unverified.First[0].Message, "does not exist")
	res = s.try(d, res.Inventory)
	if len(res.Inventory) != 3 || len(res.Pruned) != 0 {
		t.Errorf("inventory %v, pruned %v", res.Inventory, res.Pruned)
	}
}

// The API server quotes what it does not like.
func TestSiteValuesAreNotQuotedByErrors(t *testing.T) {
	s := newSite(t)
	s.siteSecret("db: {password: S3cr3t_}")
	d := s.deployment("x", "apiVersion: v1\nkind: Service\nmetadata: {name: svc}\nspec: {ports: [{port: 80}], externalName: TOKEN1, type: ExternalName}")
	d.Handling.SiteValues = []bundlefmt.SiteValue{{Path: "db.password", Token: "TOKEN1"}}
	d.Handling.ValuesFrom = []bundlefmt.ValuesFrom{{Kind: "Secret", Name: "site", Key: "values.yaml"}}
	f := s.errorOf(s.try(d, nil), "svc")
	contains(t, f.Message, "spec.externalName", "withheld")
	if strings.Contains(f.Message, "S3cr3t") {
		t.Errorf("a value in %q", f.Message)
	}
}

// With an account, the values are read with its rights: a bundle must not see what its tenant may not.
func TestSiteValuesAreReadWithTheAccountsRights(t *testing.T) {
	s := newSite(t)
	s.living()
	s.account("tenant")
	s.siteSecret("db: {password: x}")
	s.create(configMaps, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: site}\ndata: {values.yaml: \"\"}")
	d := s.filledDeployment()
	d.Policy.ServiceAccount = "tenant"
	kubetest.Wait(t, "the role to work", func(context.Context) error {
		res := s.try(d, nil)
		if f := res.Errors[0]; f.Ref.Kind != "Secret" || !strings.Contains(f.Message, `tenant" cannot get resource "secrets"`) {
			return fmt.Errorf("got %v", res.Errors)
		}
		return nil
	})
}
