package topics

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestACL plays every line of testdata/acl.txt.
func TestACL(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/acl.txt")
	if err != nil {
		t.Fatal(err)
	}
	member := func(g string) bool { return g == "stores" || g == "europe" }
	roles := map[string][]Role{
		"agent":    {Default.Agent(Cluster{"shop", "paris-1"}, member)},
		"enrollee": {Default.Enrollee("shop", "stores")},
		"reader":   {Default.Reader()},
		"nobody":   {{}, Default.Agent(Cluster{}, member), Default.Agent(Cluster{Workspace: "shop"}, member), Default.Agent(Cluster{Name: "paris-1"}, member), Default.Agent(Cluster{"+", "#"}, member), Default.Enrollee("", "")},
	}
	lines := 0
	for i, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if len(f) != 4 || roles[f[0]] == nil {
			t.Fatalf("acl.txt:%d: %q: want role, verb, topic, yes or no", i+1, line)
		}
		topic := strings.ReplaceAll(f[2], "<d>", digest)
		if topic == `""` {
			topic = ""
		}
		if s, err := strconv.Unquote(`"` + topic + `"`); err == nil {
			topic = s
		}
		for _, r := range roles[f[0]] {
			got := map[string]func(string) bool{"publish": r.MayPublish, "subscribe": r.MaySubscribe}[f[1]](topic)
			if want := f[3] == "yes"; got != want || f[3] != "yes" && f[3] != "no" {
				t.Errorf("acl.txt:%d: %s: got %v", i+1, line, got)
			}
		}
		lines++
	}
	if lines < 100 {
		t.Errorf("only %d lines", lines)
	}
}

func TestMembershipIsAskedEachTime(t *testing.T) {
	t.Parallel()
	in := true
	r := Default.Agent(Cluster{"shop", "paris-1"}, func(string) bool { return in })
	name := Default.Part(Cluster{"shop", "paris-1"}, "stores", digest, 0)
	if !r.MaySubscribe(name) {
		t.Error("a member may not read its group's bundles")
	}
	in = false
	if r.MaySubscribe(name) {
		t.Error("a cluster that left the group still reads")
	}
}

// An agent subscribes what ToAgent says, and what it publishes is what the hub listens to.
func TestBothSidesAgree(t *testing.T) {
	t.Parallel()
	c := Cluster{"shop", "paris-1"}
	r := Default.Agent(c, func(string) bool { return false })
	if n := len(Default.ToAgent(c)); n+4 > 8 {
		t.Errorf("%d subscriptions and 4 parts at a time are more than 8", n)
	}
	for _, f := range Default.ToAgent(c) {
		if !r.MaySubscribe(f) {
			t.Errorf("an agent may not subscribe %s", f)
		}
	}
	for _, x := range names {
		heard := false
		for _, f := range append(Default.FromAgents(), Default.FromHub()...) {
			heard = heard || matches(f, x.name)
		}
		fromAgent := Default.Agent(x.topic.ClusterID(), nil).MayPublish(x.name) || Default.Enrollee(x.topic.Workspace, x.topic.Token).MayPublish(x.name)
		if fromAgent && !heard {
			t.Errorf("an agent may publish to %s, but the hub does not listen", x.name)
		}
	}
}

// matches is MQTT 5 §4.7, for filters without "#".
func matches(filter, name string) bool {
	f, n := strings.Split(filter, "/"), strings.Split(name, "/")
	if len(f) != len(n) {
		return false
	}
	for i := range f {
		if f[i] != "+" && f[i] != n[i] {
			return false
		}
	}
	return true
}
