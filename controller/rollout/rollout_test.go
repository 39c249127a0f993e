package rollout

import (
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
