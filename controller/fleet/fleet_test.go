package fleet

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/rollout"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

type fixture struct {
	*View
	t       *testing.T
	c       topics.Cluster
	changes int
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, c: topics.Cluster{Workspace: "ws", Name: "c"}}
	f.View = New(Options{Prefix: topics.Default, Log: zerolog.Nop(), Changed: func(topics.Cluster) { f.changes++ }})
	return f
}

func (f *fixture) say(name string, v any, replayed bool, at time.Time) {
	f.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		f.t.Fatal(err)
	}
	t, err := topics.Default.Parse(name)
	if err != nil {
		f.t.Fatal(err)
	}
	f.Hear(t, mqtt.Message{Topic: name, Payload: b, Retain: replayed}, at)
}

func (f *fixture) presence(online bool, nonce string, replayed bool, at time.Time) {
	f.t.Helper()
	f.say(topics.Default.Presence(f.c), bundlefmt.Presence{Online: online, Nonce: nonce, Since: at, Agent: "v1"}, replayed, at)
}

func (f *fixture) link(want Link) {
	f.t.Helper()
	if got := f.Get(f.c).Link; got != want {
		f.t.Errorf("link is %s, want %s", got, want)
	}
}

func TestPresence(t *testing.T) {
	f := newFixture(t)
	f.link(Unknown)
	f.presence(true, "aa", false, start)
	f.link(Online)
	f.presence(false, "bb", false, start.Add(time.Second)) // late: of an older connection
	f.link(Online)
	f.presence(false, "aa", false, start.Add(2*time.Second))
	f.link(Offline)
	if got := f.Get(f.c).LinkSince; !got.Equal(start.Add(2 * time.Second)) {
		t.Errorf("offline since %v", got)
	}
	f.say(topics.Default.Reported(f.c), bundlefmt.Reported{Version: 1}, false, start.Add(3*time.Second)) // it speaks, so it is there
	f.link(Online)
}

// A hub that was killed finds Online on the broker although nobody may be there: it asks, then gives up.
func TestOnlineFromBefore(t *testing.T) {
	f := newFixture(t)
	f.presence(true, "aa", true, start)
	f.say(topics.Default.Reported(f.c), bundlefmt.Reported{Version: 1}, true, start)
	f.link(Unknown)
	if ask := f.Tick(start, start.Add(time.Second)); len(ask) != 0 {
		t.Errorf("asked at once: %v", ask)
	}
	if ask := f.Tick(start, start.Add(askAfter+time.Second)); len(ask) != 1 || ask[0] != f.c {
		t.Errorf("asked %v", ask)
	}
	if ask := f.Tick(start, start.Add(askAfter+2*time.Second)); len(ask) != 0 {
		t.Errorf("asked twice: %v", ask)
	}
	f.Tick(start, start.Add(giveUp+time.Second))
	f.link(Offline)
	f.say(topics.Default.Reported(f.c), bundlefmt.Reported{Version: 1}, false, start.Add(giveUp+2*time.Second))
	f.link(Online)
}

func TestBadMessagesChangeNothing(t *testing.T) {
	f := newFixture(t)
	f.presence(true, "aa", false, start)
	was := f.changes
	for _, payload := range []string{"", "{", `{"version":99}`, `{"deployments":[{"name":"../x","state":"Ready"}]}`, `{"deployments":[{"name":"x","state":"Splendid"}]}`, strings.Repeat("[", 100000)} {
		topic, err := topics.Default.Parse(topics.Default.Reported(f.c))
		if err != nil {
			t.Fatal(err)
		}
		f.Hear(topic, mqtt.Message{Payload: []byte(payload)}, start)
	}
	if f.Get(f.c).Reported != nil || f.changes != was {
		t.Errorf("a bad report was taken in: %+v, %d changes", f.Get(f.c).Reported, f.changes-was)
	}
}

// No document is written before every bundle there was at start was looked at.
func TestComplete(t *testing.T) {
	f := newFixture(t)
	f.presence(true, "aa", false, start)
	f.Expect("ws", "a")
	f.Expect("ws", "b")
	f.Looked("ws", "a")
	f.Looked("ws", "a")
	if f.Complete("ws") {
		t.Error("complete without b")
	}
	was := f.changes
	f.Looked("ws", "b")
	if !f.Complete("ws") || f.changes != was+1 {
		t.Errorf("complete %v, %d changes", f.Complete("ws"), f.changes-was)
	}
	if !f.Complete("another") {
		t.Error("a workspace without bundles is complete")
	}
}

func TestAssignTellsOnlyNews(t *testing.T) {
	f := newFixture(t)
	f.Assign(f.c, "a", publish.Assignment{Revision: "1"})
	f.Assign(f.c, "a", publish.Assignment{Revision: "1"})
	f.Assign(f.c, "a", publish.Assignment{Revision: "2"})
	if f.changes != 2 {
		t.Errorf("%d changes, want 2", f.changes)
	}
	f.Assign(f.c, "a", publish.Assignment{Remove: true})
	f.Sent(f.c, &bundlefmt.Desired{Remove: []bundlefmt.Removal{{Name: "a"}}}, nil, start)
	if _, ok := f.Get(f.c).Assigned["a"]; !ok {
		t.Error("a removal that is under way was forgotten")
	}
	f.Sent(f.c, &bundlefmt.Desired{}, nil, start)
	if _, ok := f.Get(f.c).Assigned["a"]; ok {
		t.Error("a removal that is done is still kept")
	}
}

func TestMetrics(t *testing.T) {
	f := newFixture(t)
	f.presence(true, "aa", false, start)
	order := func(name, of string) bundlefmt.Deployment {
		return bundlefmt.Deployment{Name: name, Serial: 3, Digest: bundlefmt.Sum([]byte(of))}
	}
	report := func(name, of string, st bundlefmt.State) bundlefmt.DeploymentReport {
		return bundlefmt.DeploymentReport{Name: name, Serial: 3, Digest: bundlefmt.Sum([]byte(of)), State: st}
	}
	f.Sent(f.c, &bundlefmt.Desired{Serial: 3, Deployments: []bundlefmt.Deployment{order("a", "1"), order("b", "1"), order("c", "1")}}, nil, start)
	f.Assign(f.c, "b", publish.Assignment{Release: rollout.Release{Digest: bundlefmt.Sum([]byte("2"))}}) // not ordered yet
	f.say(topics.Default.Reported(f.c), bundlefmt.Reported{Version: 1, Serial: 3, Deployments: []bundlefmt.DeploymentReport{
		report("a", "1", bundlefmt.Ready), report("b", "1", bundlefmt.Ready), report("c", "1", bundlefmt.ErrApplied), report("d", "1", bundlefmt.Ready),
	}}, false, start)
	want := `
# HELP shoal_clusters Clusters by link.
# TYPE shoal_clusters gauge
shoal_clusters{link="Offline"} 0
shoal_clusters{link="Online"} 1
shoal_clusters{link="Unknown"} 0
# HELP shoal_deployments Deployments (a bundle on a cluster) by state, as in the status of Bundles and Clusters.
# TYPE shoal_deployments gauge
shoal_deployments{state="ErrApplied"} 1
shoal_deployments{state="Orphaned"} 1
shoal_deployments{state="OutOfSync"} 1
shoal_deployments{state="Ready"} 1
`
	if err := testutil.CollectAndCompare(f.Metrics(), strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
