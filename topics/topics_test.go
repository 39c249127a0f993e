package topics

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const digest = "0123456789abcdef0123456789abcdef"

// names is every form a topic can have; docs/protocol.md has the same table.
var names = []struct {
	name  string
	topic Topic
}{
	{"shoal/v1/shop/cluster/paris-1/desired", Topic{Kind: Desired, Workspace: "shop", Cluster: "paris-1"}},
	{"shoal/v1/shop/cluster/paris-1/reported", Topic{Kind: Reported, Workspace: "shop", Cluster: "paris-1"}},
	{"shoal/v1/shop/cluster/paris-1/presence", Topic{Kind: Presence, Workspace: "shop", Cluster: "paris-1"}},
	{"shoal/v1/shop/cluster/paris-1/event", Topic{Kind: Event, Workspace: "shop", Cluster: "paris-1"}},
	{"shoal/v1/shop/cluster/paris-1/bundle/" + digest + "-0", Topic{Kind: Part, Workspace: "shop", Cluster: "paris-1", Digest: digest}},
	{"shoal/v1/shop/group/stores/bundle/" + digest + "-511", Topic{Kind: Part, Workspace: "shop", Group: "stores", Digest: digest, Part: 511}},
	{"shoal/v1/shop/group/_all/bundle/" + digest + "-1", Topic{Kind: Part, Workspace: "shop", Group: All, Digest: digest, Part: 1}},
	{"shoal/v1/shop/cluster/paris-1/request/bundle", Topic{Kind: Request, Workspace: "shop", Cluster: "paris-1", Verb: VerbBundle}},
	{"shoal/v1/shop/cluster/paris-1/request/facts", Topic{Kind: Request, Workspace: "shop", Cluster: "paris-1", Verb: VerbFacts}},
	{"shoal/v1/shop/cluster/paris-1/request/report", Topic{Kind: Request, Workspace: "shop", Cluster: "paris-1", Verb: VerbReport}},
	{"shoal/v1/shop/cluster/paris-1/response/facts", Topic{Kind: Response, Workspace: "shop", Cluster: "paris-1", Verb: VerbFacts}},
	{"shoal/v1/shop/trust", Topic{Kind: Trust, Workspace: "shop"}},
	{"shoal/v1/shop/enroll/stores/0f1e2d3c/request", Topic{Kind: EnrollRequest, Workspace: "shop", Token: "stores", Nonce: "0f1e2d3c"}},
	{"shoal/v1/shop/enroll/stores/0f1e2d3c/response", Topic{Kind: EnrollResponse, Workspace: "shop", Token: "stores", Nonce: "0f1e2d3c"}},
	{"shoal/v1/cluster/cluster/cluster/desired", Topic{Kind: Desired, Workspace: "cluster", Cluster: "cluster"}},
	{"shoal/v1/trust/trust", Topic{Kind: Trust, Workspace: "trust"}},
}

func TestNamesAndBack(t *testing.T) {
	t.Parallel()
	for _, c := range names {
		if got := Default.Name(c.topic); got != c.name {
			t.Errorf("got %s, want %s", got, c.name)
		}
		got, err := Default.Parse(c.name)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(c.topic, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		if strings.Count(c.name, "/") > 6 || len(c.name) >= 128 {
			t.Errorf("%s does not fit every broker", c.name)
		}
	}
	c := Cluster{"shop", "paris-1"}
	for got, want := range map[string]string{
		Default.Desired(c):                         names[0].name,
		Default.Reported(c):                        names[1].name,
		Default.Presence(c):                        names[2].name,
		Default.Event(c):                           names[3].name,
		Default.Part(c, "", digest, 0):             names[4].name,
		Default.Part(c, "stores", digest, 511):     names[5].name,
		Default.Request(c, VerbFacts):              names[8].name,
		Default.Response(c, VerbFacts):             names[10].name,
		Default.Trust("shop"):                      names[11].name,
		Prefix("fleet").Trust("shop"):              "fleet/shop/trust",
		strings.Join(Default.ToAgent(c), " "):      names[0].name + " " + names[11].name + " " + names[8].name + " " + names[9].name,
		strings.Join(Default.FromHub(), " "):       "shoal/v1/+/cluster/+/desired shoal/v1/+/cluster/+/bundle/+ shoal/v1/+/group/+/bundle/+ shoal/v1/+/trust",
		Default.FromAgents()[5]:                    "shoal/v1/+/enroll/+/+/request",
		Default.Everything():                       "shoal/v1/#",
		Topic{Workspace: "a"}.ClusterID().String(): "a/",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestLongestTopicFitsAWSIoT(t *testing.T) {
	t.Parallel()
	l := strings.Repeat("n", 63)
	for _, topic := range []Topic{
		{Kind: Part, Workspace: l, Cluster: l, Digest: digest, Part: 65535}, {Kind: EnrollResponse, Workspace: l, Token: l, Nonce: l},
	} {
		if name := Default.Name(topic); len(name) > 256 {
			t.Errorf("%d bytes: %s", len(name), name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "/", "shoal", "shoal/v1", "shoal/v1/", "shoal/v1//trust", "shoal/v1/shop", "shoal/v1/shop/", "shoal/v1/shop/trust/", "/shoal/v1/shop/trust",
		"shoal/v2/shop/trust", "Shoal/v1/shop/trust", "shoal/v10/shop/trust", "other/shop/trust", "$SYS/broker/uptime", "$share/g/shoal/v1/shop/trust",
		"shoal/v1/Shop/trust", "shoal/v1/+/trust", "shoal/v1/#", "shoal/v1/shop/+", "shoal/v1/-shop/trust", "shoal/v1/shop-/trust", "shoal/v1/shop.eu/trust", "shoal/v1/sh\x00op/trust", "shoal/v1/şhop/trust",
		"shoal/v1/" + strings.Repeat("a", 64) + "/trust",
		"shoal/v1/_all/trust", "shoal/v1/shop/cluster/_all/desired",
		"shoal/v1/shop/cluster", "shoal/v1/shop/cluster/paris-1", "shoal/v1/shop/cluster/paris-1/", "shoal/v1/shop/cluster/paris-1/other", "shoal/v1/shop/cluster//desired", "shoal/v1/shop/cluster/paris-1/desired/",
		"shoal/v1/shop/cluster/paris-1/desired/x", "shoal/v1/shop/cluster/paris-1/trust", "shoal/v1/shop/cluster/paris-1/enroll-request",
		"shoal/v1/shop/cluster/paris-1/request", "shoal/v1/shop/cluster/paris-1/request/", "shoal/v1/shop/cluster/paris-1/request/other", "shoal/v1/shop/cluster/paris-1/request/facts/x",
		"shoal/v1/shop/cluster/paris-1/bundle", "shoal/v1/shop/cluster/paris-1/bundle/" + digest, "shoal/v1/shop/cluster/paris-1/bundle/" + digest + "-", "shoal/v1/shop/cluster/paris-1/bundle/" + digest + "-01",
		"shoal/v1/shop/cluster/paris-1/bundle/" + digest + "-+1", "shoal/v1/shop/cluster/paris-1/bundle/" + digest + "--1", "shoal/v1/shop/cluster/paris-1/bundle/" + digest + "-65536", "shoal/v1/shop/cluster/paris-1/bundle/" + digest + "-1-1",
		"shoal/v1/shop/cluster/paris-1/bundle/" + digest[1:] + "-0", "shoal/v1/shop/cluster/paris-1/bundle/" + strings.ToUpper(digest) + "-0", "shoal/v1/shop/cluster/paris-1/bundle/+", "shoal/v1/shop/cluster/paris-1/bundle/" + digest + "-0/x",
		"shoal/v1/shop/group/stores", "shoal/v1/shop/group/stores/desired", "shoal/v1/shop/group/_other/bundle/" + digest + "-0", "shoal/v1/shop/group/+/bundle/" + digest + "-0", "shoal/v1/shop/group/stores/desired/" + digest + "-0",
		"shoal/v1/shop/enroll/stores/request", "shoal/v1/shop/enroll/stores/n/other", "shoal/v1/shop/enroll/stores/+/response", "shoal/v1/shop/enroll/stores/n/request/x", "shoal/v1/shop/enroll/a.b/n/request",
	} {
		if got, err := Default.Parse(name); !errors.Is(err, ErrNotOurs) {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"shoal/v1", "fleet", "a/b"} {
		if p, err := ParsePrefix(s); err != nil || string(p) != s {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "/", "a/", "/a", "a/b/c", "$share/a", "+", "#", "A", "a b"} {
		if _, err := ParsePrefix(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestParseCluster(t *testing.T) {
	t.Parallel()
	if c, err := ParseCluster("shop/paris-1"); err != nil || c != (Cluster{"shop", "paris-1"}) {
		t.Error(c, err)
	}
	for _, s := range []string{"", "shop", "/", "shop/", "/paris-1", "shop/paris/1", "Shop/paris-1", "+/+"} {
		if _, err := ParseCluster(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range names {
		f.Add(c.name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		topic, err := Default.Parse(name)
		if err != nil {
			return
		}
		if got := Default.Name(topic); got != name {
			t.Errorf("%q parses to %+v, which is called %q", name, topic, got)
		}
		if strings.ContainsAny(name, "+#\x00$") || strings.Count(name, "/") > 6 || len(name) > 256 {
			t.Errorf("%q", name)
		}
	})
}

func FuzzMaySubscribe(f *testing.F) {
	for _, c := range names {
		f.Add(c.name)
	}
	for _, s := range []string{"#", "+/#", "shoal/v1/#", "$share/g/shoal/v1/#", "shoal/v1/shop/cluster/+/desired", "shoal/v1/+/trust", "shoal/v1/a+/#"} {
		f.Add(s)
	}
	c := Cluster{"shop", "paris-1"}
	agent := Default.Agent(c, func(g string) bool { return g == "stores" })
	enrollee := Default.Enrollee("shop", "stores")
	reader := Default.Reader()
	f.Fuzz(func(t *testing.T, s string) {
		if agent.MaySubscribe(s) || agent.MayPublish(s) {
			topic, err := Default.Parse(s)
			if err != nil || topic.Workspace != c.Workspace || topic.Cluster != c.Name && topic.Group != "stores" && topic.Group != All && topic.Kind != Trust {
				t.Errorf("the agent may use %q", s)
			}
		}
		if enrollee.MaySubscribe(s) || enrollee.MayPublish(s) {
			topic, err := Default.Parse(s)
			if err != nil || topic.Workspace != "shop" || topic.Token != "stores" {
				t.Errorf("the enrollee may use %q", s)
			}
		}
		if reader.MayPublish(s) {
			t.Errorf("the reader may publish to %q", s)
		}
		if reader.MaySubscribe(s) && !strings.HasPrefix(s, "shoal/v1/") {
			t.Errorf("the reader may subscribe %q", s)
		}
		if agent.MayPublish(s) && agent.MaySubscribe(s) {
			t.Errorf("%q has two directions", s)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	name := names[4].name
	b.Run("parse", func(b *testing.B) {
		for b.Loop() {
			if _, err := Default.Parse(name); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("split alone", func(b *testing.B) {
		for b.Loop() {
			if len(strings.Split(name, "/")) != 7 {
				b.Fatal()
			}
		}
	})
	b.Run("may subscribe", func(b *testing.B) {
		role := Default.Agent(Cluster{"shop", "paris-1"}, func(string) bool { return true })
		for b.Loop() {
			if !role.MaySubscribe(name) {
				b.Fatal()
			}
		}
	})
}
