package rollout

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/intstr"

	"shoal.dev/shoal/bundlefmt"
)

func TestNext(t *testing.T) {
	data, err := os.ReadFile("testdata/next.txt")
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	for _, block := range strings.Split(string(data), "\n# ")[1:] {
		title, rest, _ := strings.Cut(block, "\n")
		in, want, ok := strings.Cut(rest, "----\n")
		if !ok {
			continue // the head of the file
		}
		cases++
		t.Run(title, func(t *testing.T) {
			s, members := parseCase(t, in)
			var got strings.Builder
			for _, step := range Next(s, members) {
				if step.Move {
					fmt.Fprintf(&got, "%s moves\n", step.Cluster)
				} else {
					fmt.Fprintf(&got, "%s waits: %s\n", step.Cluster, step.Reason)
				}
			}
			if got, want := strings.TrimSpace(got.String()), strings.TrimSpace(want); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
	if cases < 10 {
		t.Errorf("only %d cases found: is the file read right?", cases)
	}
}

func parseCase(t *testing.T, in string) (Strategy, []Member) {
	t.Helper()
	var s Strategy
	var members []Member
	for _, line := range strings.Split(strings.TrimSpace(in), "\n") {
		f := strings.Fields(line)
		m := Member{Cluster: f[0]}
		for _, word := range f[1:] {
			key, value, _ := strings.Cut(word, "=")
			switch key {
			case "maxUnavailable":
				v := intstr.Parse(value)
				s.MaxUnavailable = &v
			case "wanted":
				m.Wanted = release(value)
			case "ordered":
				m.Ordered = release(value)
			case "available":
				m.Available = true
			case "paused":
				s.Paused, m.Paused = true, true
			default:
				t.Fatalf("unknown word %q in %q", word, line)
			}
		}
		if f[0] == "strategy" {
			continue
		}
		s.Paused = s.Paused && !m.Paused
		members = append(members, m)
	}
	return s, members
}

func release(n string) Release {
	if n == "-" {
		return Release{}
	}
	return Release{Digest: bundlefmt.Sum([]byte(n))}
}

var update = flag.Bool("update", false, "rewrite what is wanted in testdata/scripts.txt")

// TestScripts runs testdata/scripts.txt: a fleet, and what happens to it.
func TestScripts(t *testing.T) {
	data, err := os.ReadFile("testdata/scripts.txt")
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	var rewritten strings.Builder
	head, rest, _ := strings.Cut(string(data), "\n\n# ")
	rewritten.WriteString(head + "\n\n")
	for _, block := range strings.Split(rest, "\n\n# ") {
		title, rest, _ := strings.Cut(block, "\n")
		cases++
		rewritten.WriteString("# " + title + "\n")
		t.Run(title, func(t *testing.T) {
			w := world{t: t, members: map[string]*Member{}}
			for _, part := range strings.Split(strings.TrimSpace(rest), "\n\n") {
				in, want, _ := strings.Cut(part+"\n", "----\n")
				for _, line := range strings.Split(strings.TrimSpace(in), "\n") {
					w.do(strings.Fields(line))
				}
				got, want := strings.TrimSpace(w.next()), strings.TrimSpace(want)
				rewritten.WriteString(strings.TrimSpace(in) + "\n----\n" + strings.TrimSpace(got+"\n") + "\n\n")
				if got != want && !*update {
					t.Errorf("after\n%s\ngot\n%s\nwant\n%s", in, got, want)
				}
			}
		})
	}
	if cases < 10 {
		t.Errorf("only %d cases found: is the file read right?", cases)
	}
	if *update {
		if err := os.WriteFile("testdata/scripts.txt", []byte(strings.TrimSpace(rewritten.String())+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// world is a fleet in a script.
type world struct {
	t       *testing.T
	s       Strategy
	members map[string]*Member
}

func (w *world) do(f []string) {
	switch f[0] {
	case "clusters": // clusters a b c | clusters c*230 [new]
		for _, name := range f[1:] {
			if name == "new" {
				continue
			}
			n := 1
			prefix, count, many := strings.Cut(name, "*")
			if many {
				fmt.Sscan(count, &n)
			}
			for i := range n {
				c := prefix
				if many {
					c = fmt.Sprintf("%s%03d", prefix, i)
				}
				w.members[c] = &Member{Cluster: c, Wanted: release("1"), Ordered: release("1"), Available: true}
				if f[len(f)-1] == "new" {
					w.members[c] = &Member{Cluster: c, Wanted: release("1")}
				}
			}
		}
	case "strategy", "partition":
		var p Partition
		for _, word := range f[1:] {
			key, value, _ := strings.Cut(word, "=")
			v := intstr.Parse(value)
			n := int32(v.IntVal)
			switch {
			case f[0] == "partition" && key == "clusters":
				p.Clusters = strings.Split(value, ",")
			case f[0] == "partition" && key == "maxUnavailable":
				p.MaxUnavailable = &v
			case f[0] == "partition" && key == "maxNotReady":
				p.MaxNotReady = &v
			case f[0] == "partition":
				p.Name = key
			case key == "maxUnavailable":
				w.s.MaxUnavailable = &v
			case key == "maxNotReady":
				w.s.MaxNotReady = &v
			case key == "maxUnavailablePartitions":
				w.s.MaxUnavailablePartitions = &v
			case key == "autoPartitionSize":
				w.s.AutoPartitionSize = &v
			case key == "autoPartitionThreshold":
				w.s.AutoPartitionThreshold = &n
			case key == "maxNew":
				w.s.MaxNew = &n
			case key == "paused":
				w.s.Paused = value != "no"
			default:
				w.t.Fatalf("unknown word %q", word)
			}
		}
		if f[0] == "partition" {
			w.s.Partitions = append(w.s.Partitions, p)
		}
	case "want":
		for _, m := range w.members {
			m.Wanted = release(f[1])
		}
	case "ready", "not-ready", "rolled-back", "paused", "resumed", "offline", "online", "unknown":
		for _, name := range f[1:] {
			m := w.members[name]
			if m == nil {
				w.t.Fatalf("no cluster %s", name)
			}
			switch f[0] {
			case "paused", "resumed":
				m.Paused = f[0] == "paused"
			case "offline", "online":
				m.Away = f[0] == "offline"
			case "unknown":
				m.Wanted = Release{}
			default:
				m.Available = f[0] == "ready"
			}
		}
	case "all-ready":
		for _, m := range w.members {
			m.Available = !m.Ordered.IsZero() && !m.Away
		}
	case "next":
	default:
		w.t.Fatalf("unknown command %q", f[0])
	}
}

// next carries out what Next says, and prints it: neighbours with the same lot share a line.
func (w *world) next() string {
	if err := w.s.Check(); err != nil {
		w.t.Fatal(err)
	}
	var ms []Member
	for _, m := range w.members {
		ms = append(ms, *m)
	}
	var lines []string
	var first, last, lot string
	n := 0
	flush := func() {
		switch {
		case n == 1:
			lines = append(lines, first+" "+lot)
		case n > 1:
			lines = append(lines, fmt.Sprintf("%s to %s (%d) %s", first, last, n, lot))
		}
	}
	for _, step := range Next(w.s, ms) {
		does := "moves"
		if m := w.members[step.Cluster]; step.Move {
			m.Ordered, m.Available = m.Wanted, false
		} else {
			does = "waits: " + step.Reason
		}
		if does != lot {
			flush()
			first, lot, n = step.Cluster, does, 0
		}
		last = step.Cluster
		n++
	}
	flush()
	return strings.Join(lines, "\n")
}

func TestLimit(t *testing.T) {
	for _, c := range []struct {
		n    int
		v    string
		want int
	}{
		{0, "", 1}, {7, "", 7}, {7, "3", 3}, {7, "9", 7}, {10, "25%", 2}, {10, "1%", 1}, {10, "0%", 1}, {10, "200%", 10},
	} {
		var v *intstr.IntOrString
		if c.v != "" {
			p := intstr.Parse(c.v)
			v = &p
		}
		if got := Limit(c.n, v); got != c.want {
			t.Errorf("Limit(%d, %q) = %d, want %d", c.n, c.v, got, c.want)
		}
	}
}

func TestHoldDeletion(t *testing.T) {
	for _, c := range []struct {
		have, lose int
		want       bool
	}{{1, 1, false}, {2, 1, false}, {2, 2, true}, {4, 2, false}, {4, 3, true}, {100, 10, false}, {100, 11, true}} {
		if got := HoldDeletion(c.have, c.lose); got != c.want {
			t.Errorf("HoldDeletion(%d, %d) = %v", c.have, c.lose, got)
		}
	}
}

func TestHoldRemoval(t *testing.T) {
	for _, c := range []struct {
		have, lose int
		want       bool
	}{{2, 2, false}, {10, 10, false}, {20, 11, true}, {22, 11, false}, {1000, 500, false}, {1000, 501, true}} {
		if got := HoldRemoval(c.have, c.lose); got != c.want {
			t.Errorf("HoldRemoval(%d, %d) = %v", c.have, c.lose, got)
		}
	}
}

func TestCheck(t *testing.T) {
	v := func(s string) *intstr.IntOrString { p := intstr.Parse(s); return &p }
	n := int32(0)
	for _, c := range []struct {
		s    Strategy
		want string
	}{
		{Strategy{}, ""},
		{Strategy{MaxUnavailable: v("1"), MaxNotReady: v("0"), MaxUnavailablePartitions: v("0"), AutoPartitionSize: v("0"), Partitions: []Partition{{MaxNotReady: v("5%")}}}, ""},
		{Strategy{MaxUnavailable: v("0")}, `maxUnavailable: 0 lets no cluster move, ever: use 1 or more, or paused: true to hold updates back`},
		{Strategy{MaxUnavailable: v("0%")}, `maxUnavailable: 0% lets no cluster move, ever: use 1 or more, or paused: true to hold updates back`},
		{Strategy{MaxUnavailable: v("-1")}, `maxUnavailable: -1 is too small: use 1 or more`},
		{Strategy{MaxUnavailable: v("many")}, `maxUnavailable: "many" must be a whole number or a percentage such as "10%"`},
		{Strategy{MaxNotReady: v("-1%")}, `maxNotReady: -1% is too small: use 0 or more`},
		{Strategy{Partitions: []Partition{{}, {MaxUnavailable: v("0")}}}, `partitions[1].maxUnavailable: 0 lets no cluster move, ever: use 1 or more, or paused: true to hold updates back`},
		{Strategy{Partitions: []Partition{{MaxNotReady: v("x")}}}, `partitions[0].maxNotReady: "x" must be a whole number or a percentage such as "10%"`},
		{Strategy{MaxNew: &n}, `maxNew: 0 lets no cluster get the bundle, ever: use 1 or more`},
	} {
		got := ""
		if err := c.s.Check(); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// TestBadRelease: whatever the strategy, and in whatever order clusters answer, a release that no cluster gets ready with never
// leaves the first partition that holds clusters, and at most so many of them are unavailable by it as the budgets allow.
func TestBadRelease(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		w, first := randomWorld(t, r)
		for range 2 + r.IntN(8) {
			w.next()
			for _, m := range w.members {
				if m.Ordered.Equal(release("2")) {
					m.Available = false // not ready, or back at the release before
				} else if r.IntN(20) == 0 {
					m.Away = !m.Away
				}
			}
		}
		for name, m := range w.members {
			if m.Ordered.Equal(release("2")) && !first[name] {
				t.Fatalf("seed %d: the release got to %s, which is not in the first partition (%v); strategy %+v", seed, name, first, w.s)
			}
		}
	}
}

// TestGoodRelease: a release that every cluster gets ready with arrives everywhere, with never more clusters unavailable than the
// budget of the bundle allows.
func TestGoodRelease(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 2))
		w, _ := randomWorld(t, r)
		budget := Limit(len(w.members), w.s.MaxUnavailable)
		for step := 0; ; step++ {
			w.next()
			unavailable, done := 0, 0
			for _, m := range w.members {
				m.Paused, m.Away = false, false // they come back in the end
				if m.unavailable() {
					unavailable++
				}
				if m.done() {
					done++
				}
			}
			if unavailable > budget {
				t.Fatalf("seed %d: %d unavailable, %d may be", seed, unavailable, budget)
			}
			if done == len(w.members) {
				break
			}
			if step > 10*len(w.members) {
				t.Fatalf("seed %d: stuck with %d of %d: %+v\n%s", seed, done, len(w.members), w.s, w.next())
			}
			for _, m := range w.members {
				if r.IntN(3) > 0 && !m.Ordered.IsZero() {
					m.Available = true
				}
			}
		}
	}
}

// randomWorld is a healthy fleet with any strategy and release 2 wanted everywhere. first is who is in its first partition.
func randomWorld(t *testing.T, r *rand.Rand) (w *world, first map[string]bool) {
	w = &world{t: t, members: map[string]*Member{}}
	n := 1 + r.IntN(40)
	fresh := r.IntN(2) == 0
	var names []string
	for i := range n {
		name := fmt.Sprintf("c%02d", i)
		names = append(names, name)
		m := &Member{Cluster: name, Wanted: release("2"), Paused: r.IntN(20) == 0, Away: r.IntN(10) == 0}
		if !fresh {
			m.Ordered, m.Available = release("1"), true
		}
		w.members[name] = m
	}
	if r.IntN(2) == 0 {
		v := intstr.FromInt32(int32(1 + r.IntN(n)))
		w.s.MaxUnavailable = &v
	}
	first = map[string]bool{}
	if r.IntN(3) == 0 {
		size, threshold := intstr.FromInt32(int32(1+r.IntN(n))), int32(1)
		w.s.AutoPartitionSize, w.s.AutoPartitionThreshold = &size, &threshold
		for _, name := range names[:size.IntVal] {
			first[name] = true
		}
		return w, first
	}
	for range 1 + r.IntN(4) {
		p := Partition{}
		for _, name := range names {
			if r.IntN(4) == 0 {
				p.Clusters = append(p.Clusters, name)
			}
		}
		if r.IntN(2) == 0 {
			v := intstr.FromInt32(int32(1 + r.IntN(n)))
			p.MaxUnavailable = &v
		}
		w.s.Partitions = append(w.s.Partitions, p)
		if len(first) == 0 {
			for _, name := range p.Clusters {
				first[name] = true
			}
		}
	}
	if len(first) == 0 { // all are in the last one
		for _, name := range names {
			first[name] = true
		}
	}
	return w, first
}
