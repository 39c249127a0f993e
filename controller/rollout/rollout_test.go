package rollout

import (
	"flag"
	"fmt"
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
				for _, m := range w.members {
					m.Ordered, m.Available = Release{}, false
				}
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
			case f[0] == "partition":
				p.Name = key
			case key == "maxUnavailable":
				w.s.MaxUnavailable = &v
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
	case "ready", "not-ready", "rolled-back", "paused":
		for _, name := range f[1:] {
			m := w.members[name]
			if m == nil {
				w.t.Fatalf("no cluster %s", name)
			}
			if f[0] == "paused" {
				m.Paused = true
			} else {
				m.Available = f[0] == "ready"
			}
		}
	case "all-ready":
		for _, m := range w.members {
			m.Available = !m.Ordered.IsZero()
		}
	case "next":
	default:
		w.t.Fatalf("unknown command %q", f[0])
	}
}

// next carries out what Next says, and prints it: neighbours with the same lot share a line.
func (w *world) next() string {
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
		{0, "", 1}, {7, "", 7}, {7, "3", 3}, {7, "9", 7}, {7, "-1", 0}, {7, "0", 0}, {10, "25%", 2}, {10, "1%", 1}, {10, "0%", 1}, {10, "200%", 10},
		{10, "-5%", 1}, {10, "many", 10}, {10, "x%", 10},
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
