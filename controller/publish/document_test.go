package publish

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/rollout"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func digest(s string) bundlefmt.Digest { return bundlefmt.Sum([]byte(s)) }

func assigned(v string) Assignment { return Assignment{Release: rollout.Release{Digest: digest(v)}} }

func ordered(serial bundlefmt.Serial, ds ...bundlefmt.Deployment) *bundlefmt.Desired {
	return &bundlefmt.Desired{Serial: serial, Deployments: ds, StaleAfter: now.Add(time.Hour)}
}

func at(name, v string, serial bundlefmt.Serial) bundlefmt.Deployment {
	return bundlefmt.Deployment{Name: name, Serial: serial, Digest: digest(v), Parts: 1}
}

func reports(serial bundlefmt.Serial, names ...string) *bundlefmt.Reported {
	r := &bundlefmt.Reported{Serial: serial}
	for _, n := range names {
		r.Deployments = append(r.Deployments, bundlefmt.DeploymentReport{Name: n})
	}
	return r
}

// show is a document in one line: what runs, at which release serial, and what is to go.
func show(d *bundlefmt.Desired) string {
	s := ""
	for _, x := range d.Deployments {
		s += fmt.Sprintf("%s@%d ", x.Name, x.Serial)
	}
	for _, x := range d.Remove {
		s += fmt.Sprintf("-%s@%d ", x.Name, x.Serial)
	}
	return s
}

func TestDocument(t *testing.T) {
	gone := Assignment{Remove: true}
	for _, c := range []struct {
		name     string
		ordered  *bundlefmt.Desired
		reported *bundlefmt.Reported
		assigned map[string]Assignment
		want     string
		same     bool
	}{
		{"a new cluster gets a document even with nothing to run", nil, nil, nil, "", false},
		{"first release", nil, nil, map[string]Assignment{"a": assigned("1")}, "a@9 ", false},
		{"nothing changed: same serials, not published", ordered(5, at("a", "1", 3)), nil, map[string]Assignment{"a": assigned("1")}, "a@3 ", true},
		{"update: only that deployment gets the new serial", ordered(5, at("a", "1", 3), at("b", "1", 4)), nil, map[string]Assignment{"a": assigned("2"), "b": assigned("1")}, "a@9 b@4 ", false},
		{"rule 1: what nobody assigns stays", ordered(5, at("a", "1", 3)), nil, nil, "a@3 ", true},
		{"rule 1: what waits stays", ordered(5, at("a", "1", 3)), nil, map[string]Assignment{"a": {Wait: "paused"}}, "a@3 ", true},
		{"removal by name", ordered(5, at("a", "1", 3), at("b", "1", 4)), nil, map[string]Assignment{"a": gone}, "b@4 -a@9 ", false},
		{"a removal stays until it is reported", &bundlefmt.Desired{Serial: 6, Remove: []bundlefmt.Removal{{Name: "a", Serial: 6}}, StaleAfter: now.Add(time.Hour)}, reports(6, "a"), map[string]Assignment{"a": gone}, "-a@6 ", true},
		{"a report from before the order proves nothing", &bundlefmt.Desired{Serial: 6, Remove: []bundlefmt.Removal{{Name: "a", Serial: 6}}, StaleAfter: now.Add(time.Hour)}, reports(5), map[string]Assignment{"a": gone}, "-a@6 ", true},
		{"a removal that is done goes", &bundlefmt.Desired{Serial: 6, Remove: []bundlefmt.Removal{{Name: "a", Serial: 6}}, StaleAfter: now.Add(time.Hour)}, reports(6), map[string]Assignment{"a": gone}, "", false},
		{"a bundle that comes back is not removed", &bundlefmt.Desired{Serial: 6, Remove: []bundlefmt.Removal{{Name: "a", Serial: 6}}, StaleAfter: now.Add(time.Hour)}, reports(6, "a"), map[string]Assignment{"a": assigned("1")}, "a@9 ", false},
		{"broker lost everything, the cluster still has what is no longer targeted: removed by name", nil, reports(5, "a"), map[string]Assignment{"a": gone}, "-a@9 ", false},
		{"broker lost everything, the cluster has what nobody knows: left alone", nil, reports(5, "x"), nil, "", false},
		{"a removal that waits is not ordered", ordered(5, at("a", "1", 3)), nil, map[string]Assignment{"a": {Remove: true, Wait: "paused"}}, "a@3 ", true},
		{"a removal that waits after it was ordered is taken back", &bundlefmt.Desired{Serial: 6, Remove: []bundlefmt.Removal{{Name: "a", Serial: 6}}, StaleAfter: now.Add(time.Hour)}, reports(6, "a"), map[string]Assignment{"a": {Remove: true, Wait: "paused"}}, "", false},
		{"never there: nothing to remove", ordered(5), reports(5), map[string]Assignment{"a": gone}, "", true},
		{"not rendered here yet: nothing is ordered", ordered(5), nil, map[string]Assignment{"a": assigned("unsealed")}, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, news, left := Document(DocumentInput{
				Limits:  bundlefmt.DefaultLimits(),
				Ordered: c.ordered, Reported: c.reported, Assigned: c.assigned, Serial: 9, Now: now, TTL: time.Hour,
				InGroup: func(string) bool { return true },
				Sealed: func(d bundlefmt.Digest) (bundlefmt.Sealed, bool) {
					return bundlefmt.Sealed{Digest: d, Parts: make([][]byte, 1)}, d != digest("unsealed")
				},
			})
			if got := show(d); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if news == c.same {
				t.Errorf("news is %v", news)
			}
			if len(left) > 0 {
				t.Errorf("left out %v", left)
			}
		})
	}
}

func TestMissing(t *testing.T) {
	d := ordered(5, at("a", "1", 3), at("b", "1", 3))
	got := Missing(d, map[string]Assignment{"a": assigned("1"), "b": assigned("2"), "c": assigned("1"), "d": {Remove: true}, "e": {Wait: "paused"}}, nil)
	if !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("got %v", got)
	}
}

func TestDocumentRenewsBeforeItIsStale(t *testing.T) {
	in := DocumentInput{Limits: bundlefmt.DefaultLimits(), Ordered: ordered(5), Serial: 6, Now: now, TTL: time.Hour}
	in.Ordered.StaleAfter = now.Add(31 * time.Minute)
	if _, news, _ := Document(in); news {
		t.Error("renewed too early")
	}
	in.Ordered.StaleAfter = now.Add(29 * time.Minute)
	if d, news, _ := Document(in); !news || !d.StaleAfter.Equal(now.Add(time.Hour)) {
		t.Errorf("news %v, stale after %v", news, d.StaleAfter)
	}
}

// A cluster that left the group through whose topic it was to fetch a bundle is pointed to where it can.
func TestDocumentMovesAudience(t *testing.T) {
	old := at("a", "1", 3)
	old.Group = "north"
	a := assigned("1")
	a.Group = "all"
	for _, member := range []bool{true, false} {
		d, _, _ := Document(DocumentInput{
			Limits: bundlefmt.DefaultLimits(), Ordered: ordered(5, old), Assigned: map[string]Assignment{"a": a}, Serial: 6, Now: now,
			InGroup: func(string) bool { return member },
			Sealed: func(d bundlefmt.Digest) (bundlefmt.Sealed, bool) {
				return bundlefmt.Sealed{Parts: make([][]byte, 1)}, true
			},
		})
		want := map[bool]string{true: "north", false: "all"}[member]
		if d.Deployments[0].Group != want || d.Deployments[0].Serial != 3 {
			t.Errorf("member %v: %+v", member, d.Deployments[0])
		}
	}
}

func TestAudience(t *testing.T) {
	groups := map[string][]string{"all-stores": {"a", "b", "c", "d"}, "north": {"a", "b"}, "also-north": {"a", "b"}, "south": {"c", "d"}}
	for want, wanting := range map[string][]string{
		"":           {"a"},
		"also-north": {"a", "b"}, // smallest, then first by name
		"all-stores": {"a", "c"},
		"_all":       {"a", "x"},
	} {
		if got := Audience(slices.Clone(wanting), groups, "_all"); got != want {
			t.Errorf("%v: got %q, want %q", wanting, got, want)
		}
	}
}

// What was ordered by a bundle that is not there any more is neither ordered on nor removed.
func TestDocumentLeavesOrphansAlone(t *testing.T) {
	in := DocumentInput{
		Limits: bundlefmt.DefaultLimits(), Ordered: ordered(5, at("a", "1", 3), at("b", "1", 4), at("c", "1", 4)), Serial: 6, Now: now,
		Assigned: map[string]Assignment{"a": assigned("1")}, Exists: func(name string) bool { return name == "c" }, InGroup: func(string) bool { return true },
		Sealed: func(d bundlefmt.Digest) (bundlefmt.Sealed, bool) {
			return bundlefmt.Sealed{Parts: make([][]byte, 1)}, true
		},
	}
	if d, news, _ := Document(in); show(d) != "a@3 c@4 " || !news {
		t.Errorf("got %q, news %v", show(d), news)
	}
}

// Over the limit, what is new is kept out, with a reason; what is there is updated and removed, and then there is room again.
func TestDocumentFits(t *testing.T) {
	full := ordered(5)
	assign := map[string]Assignment{}
	for i := range bundlefmt.FewEntries {
		name := fmt.Sprintf("d%03d", i)
		full.Deployments = append(full.Deployments, at(name, "1", 5))
		assign[name] = assigned("1")
	}
	input := func(reads int) DocumentInput {
		return DocumentInput{
			Limits: bundlefmt.DefaultLimits(), Ordered: full, Reported: &bundlefmt.Reported{Serial: 5, Reads: reads}, Serial: 6, Now: now,
			Assigned: maps.Clone(assign), InGroup: func(string) bool { return true },
			Sealed: func(d bundlefmt.Digest) (bundlefmt.Sealed, bool) {
				return bundlefmt.Sealed{Parts: make([][]byte, 1)}, true
			},
		}
	}
	contains := func(d *bundlefmt.Desired, what string) bool { return strings.Contains(" "+show(d), " "+what+" ") }

	in := input(0)
	in.Assigned["a-new"], in.Assigned["z-new"], in.Assigned["d005"], in.Assigned["d006"] = assigned("1"), assigned("1"), assigned("2"), Assignment{Remove: true}
	d, news, left := Document(in)
	if !news || !contains(d, "d005@6") || !contains(d, "-d006@6") || contains(d, "a-new@6") || len(left) != 2 || !strings.Contains(left["a-new"], "upgrade its agent") {
		t.Errorf("an agent of version 2: got %s, left out %v", show(d), left)
	}

	in.Ordered, in.Reported = d, &bundlefmt.Reported{Serial: 6}
	in.Serial = 7
	if d, _, left = Document(in); !contains(d, "a-new@7") || contains(d, "z-new@7") || len(left) != 1 {
		t.Errorf("the removal is done: got %s, left out %v", show(d), left)
	}

	in = input(3)
	in.Assigned["a-new"] = assigned("1")
	if d, _, left = Document(in); !contains(d, "a-new@6") || len(left) != 0 {
		t.Errorf("an agent of version 3: got %s, left out %v", show(d), left)
	}
	in.Ordered, in.Reported = d, nil
	if d, _, left = Document(in); !contains(d, "a-new@6") || len(left) != 0 {
		t.Errorf("what was sent once can be read: got %s, left out %v", show(d), left)
	}

	in = input(3) // by bytes
	in.Limits.PartSize = slack + 2048 + 150*120
	for i := range 40 {
		in.Assigned[fmt.Sprintf("e%03d", i)] = assigned("1")
	}
	d, _, left = Document(in)
	if n := len(d.Deployments); n <= bundlefmt.FewEntries || len(left) != 168-n || d.Fits(in.Limits) != nil || left["e000"] != "" || left["e039"] == "" {
		t.Errorf("%d deployments, left out %v, %v", n, left, d.Fits(in.Limits))
	}
	in.Ordered, in.Serial = d, 7
	if _, news, again := Document(in); news || len(again) != len(left) {
		t.Errorf("a second look: news %v, left out %d, before %d", news, len(again), len(left))
	}
	in.Ordered, in.Assigned["d000"], in.Assigned["d001"] = d, assigned("2"), Assignment{Remove: true}
	if d, news, _ = Document(in); !news || !contains(d, "d000@7") || !contains(d, "-d001@7") {
		t.Errorf("update and removal: got %s", show(d))
	}
}

// An update that makes a full order too long waits, with a reason; the others go on.
func TestDocumentUpdateThatGrows(t *testing.T) {
	in := DocumentInput{
		Limits: bundlefmt.DefaultLimits(), Ordered: ordered(5, at("a", "1", 5), at("b", "1", 5)), Serial: 6, Now: now, InGroup: func(string) bool { return true },
		Assigned: map[string]Assignment{"a": assigned("1"), "b": assigned("2")},
		Sealed: func(d bundlefmt.Digest) (bundlefmt.Sealed, bool) {
			return bundlefmt.Sealed{Parts: make([][]byte, 1)}, true
		},
	}
	a := in.Assigned["a"]
	for i := range 40 {
		a.Release.Policy.DependsOn = append(a.Release.Policy.DependsOn, bundlefmt.Dependency{Name: fmt.Sprintf("dependency-%d", i)})
	}
	in.Assigned["a"], in.Limits.PartSize = a, 600
	d, news, left := Document(in)
	if !news || show(d) != "a@5 b@6 " || !strings.Contains(left["a"], "its update waits") {
		t.Errorf("got %q, left out %v", show(d), left)
	}
}
