package plan

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"shoal.dev/shoal/bundlefmt"
)

var update = flag.Bool("update", false, "rewrite the wanted outcomes in testdata")

// A scenario is a txtar archive: why it exists, and a script. The script says what is known, line by line, and after "next"
// stands what is to be done. Times are seconds since the start. Releases are SERIAL:BUNDLE.
//
//	now 100                            the clock
//	desired 7 web=7:b,drift -db        the document: its serial, entries with options, removals (-db, -db,keep)
//	desired none
//	stale-after 500
//	site web applied=5:a begun=6:b … what the site knows of a deployment; replaces what was said before
//	site web gone
//	disk a b                           bundles that are complete here
//	bad c reason …                     a bundle that is not acceptable
//	window apply 3600 ZONE|- 0 2 * * * a window of the document: for apply, download or both, seconds, schedule; "windows none" takes them off
//	lock NAME HOLDER|- SINCE UNTIL|- … a lock of the site and its reason; "locks none" takes all off
//	link up SINCE, link down SINCE     the link to the hub; a release may lose it for 60 s
//	issued TIME                        when the document was made
//	unread, read                       whether the cluster's own records are known
//
// A time may also be RFC 3339.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(ar.Files) != 1 || ar.Files[0].Name != "script" || len(bytes.TrimSpace(ar.Comment)) == 0 {
				t.Fatal("want a comment that says why, and one file called script")
			}
			got := play(t, string(ar.Files[0].Data))
			if *update {
				ar.Files[0].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(ar.Files[0].Data), got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// play answers each "next" of the script.
func play(t *testing.T, script string) string {
	t.Helper()
	s := State{Local: map[string]Local{}, OnDisk: map[bundlefmt.Digest]bool{}, Bad: map[bundlefmt.Digest]string{}}
	s.Pace = Pace{Recheck: 1000 * time.Second, NotReady: 10 * time.Second, Settle: time.Second}
	s.ReadyTimeout, s.LinkTimeout = 100*time.Second, 60*time.Second
	var windows []bundlefmt.Window
	now := at("0")
	var out strings.Builder
	skip := false
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		if skip {
			skip = line != ""
			if skip {
				continue
			}
		}
		fmt.Fprintln(&out, line)
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || strings.HasPrefix(line, "#"):
		case f[0] == "now":
			now = at(f[1])
		case f[0] == "desired":
			s.Desired = desired(t, f[1:])
		case f[0] == "stale-after":
			s.Desired.StaleAfter = at(f[1])
		case f[0] == "site" && len(f) > 2 && f[2] == "gone":
			delete(s.Local, f[1])
		case f[0] == "site":
			s.Local[f[1]] = local(t, f[2:])
		case f[0] == "disk":
			clear(s.OnDisk)
			for _, b := range f[1:] {
				s.OnDisk[bundlefmt.Sum([]byte(b))] = true
			}
		case line == "windows none":
			windows, s.Windows = nil, nil
		case f[0] == "window":
			w := bundlefmt.Window{Apply: f[1] != "download", Download: f[1] != "apply", Seconds: uint64(number(f[2])), Schedule: strings.Join(f[4:], " ")}
			if f[3] != "-" {
				w.TimeZone = f[3]
			}
			windows = append(windows, w)
			s.Windows = ReadWindows(windows, time.FixedZone("site", 2*3600), time.LoadLocation)
		case line == "locks none":
			s.Locks = nil
		case f[0] == "lock":
			l := Lock{Name: f[1], Holder: strings.Trim(f[2], "-"), Since: at(f[3]), Reason: strings.Join(f[5:], " ")}
			if f[4] != "-" {
				l.Until = at(f[4])
			}
			s.Locks = append(s.Locks, l)
		case f[0] == "link":
			s.Link = Link{Up: f[1] == "up", Since: at(f[2])}
		case f[0] == "issued":
			s.Desired.IssuedAt = at(f[1])
		case f[0] == "unread", f[0] == "read":
			s.Unread = f[0] == "unread"
		case f[0] == "bad":
			s.Bad[bundlefmt.Sum([]byte(f[1]))] = strings.Join(f[2:], " ")
		case f[0] == "next":
			fmt.Fprintln(&out, "----")
			for _, a := range Next(s, now) {
				fmt.Fprintln(&out, show(a))
			}
			if Stale(s.Desired, now) {
				fmt.Fprintln(&out, "stale")
			}
			skip = true
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	return out.String()
}

func at(s string) time.Time {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t
	}
	return time.Unix(1_000_000+int64(number(s)), 0).UTC()
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func release(t *testing.T, s string) *Release {
	t.Helper()
	opts := strings.Split(s, ",")
	serial, bundle, _ := strings.Cut(opts[0], ":")
	n, err := bundlefmt.ParseSerial(serial)
	if err != nil {
		t.Fatal(err)
	}
	r := &Release{Serial: n, Digest: bundlefmt.Sum([]byte(bundle)), Parts: 1}
	for _, o := range opts[1:] {
		switch k, v, _ := strings.Cut(o, "="); k {
		case "drift":
			r.Policy.CorrectDrift = true
		case "paused":
			r.Policy.Paused = true
		case "keep":
			r.Policy.KeepResources = true
		case "ns":
			r.Policy.Namespace = v
		case "rollback":
			r.Policy.Rollback = true
		case "timeout":
			r.Policy.ReadyTimeoutSecond = uint64(number(v))
		case "force":
			r.Policy.ForceSync = uint64(number(v))
		case "confirm":
			r.Policy.ConfirmPrune = true
		case "after": // NAME[/STATE…]
			p := strings.Split(v, "/")
			d := bundlefmt.Dependency{Name: p[0]}
			for _, st := range p[1:] {
				d.States = append(d.States, bundlefmt.State(st))
			}
			r.Policy.DependsOn = append(r.Policy.DependsOn, d)
		default:
			t.Fatalf("what is option %q?", o)
		}
	}
	return r
}

func desired(t *testing.T, f []string) *bundlefmt.Desired {
	t.Helper()
	if f[0] == "none" {
		return nil
	}
	n, err := bundlefmt.ParseSerial(f[0])
	if err != nil {
		t.Fatal(err)
	}
	d := &bundlefmt.Desired{Workspace: "shops", Cluster: "store-1", Serial: n}
	for _, e := range f[1:] {
		if name, ok := strings.CutPrefix(e, "-"); ok {
			name, opt, _ := strings.Cut(name, ",")
			d.Remove = append(d.Remove, bundlefmt.Removal{Name: name, Serial: n, Keep: opt == "keep", Confirmed: opt == "confirmed"})
			continue
		}
		name, rel, _ := strings.Cut(e, "=")
		r := release(t, rel)
		d.Deployments = append(d.Deployments, bundlefmt.Deployment{Name: name, Serial: r.Serial, Digest: r.Digest, Policy: r.Policy, Parts: 1})
	}
	return d
}

func local(t *testing.T, f []string) Local {
	t.Helper()
	var l Local
	for _, e := range f {
		k, v, _ := strings.Cut(e, "=")
		switch k {
		case "applied":
			l.Applied = release(t, v)
		case "begun":
			l.Begun = release(t, v)
		case "leaving":
			l.Leaving = true
		case "piled":
			l.Piled = at(v)
		case "busy":
			l.Busy = true
		case "doing":
			l.Busy, l.Doing = true, release(t, v)
		case "good":
			l.Good = true
		case "previous":
			l.Previous = release(t, v)
		case "waited":
			l.Trial.Waited = time.Duration(number(v)) * time.Second
		case "looked":
			l.Trial.Looked = at(v)
		case "rejected":
			r := release(t, v)
			l.Rejected = &Rejected{r.Serial, r.Digest, "it was bad"}
		case "pruning":
			l.Pruning = "held: too much would be deleted"
		case "linked":
			l.Linked = true
		case "last":
			l.Last = bundlefmt.State(v)
		case "changed":
			l.Changed = at(v)
		case "health": // AT[/modified=N][/notready=N/since=T]
			l.Health = &Health{}
			for i, p := range strings.Split(v, "/") {
				k, n, _ := strings.Cut(p, "=")
				switch {
				case i == 0:
					l.Health.At = at(k)
				case k == "modified":
					l.Health.Modified, _ = strconv.Atoi(n)
				case k == "notready":
					l.Health.NotReady, _ = strconv.Atoi(n)
				case k == "sitevalues":
					l.Health.SiteValues = number(n)
				case k == "failed":
					l.Health.Failed, l.Health.Message = true, "it said so"
				case k == "since":
					l.Health.Since = at(n)
				}
			}
		case "failed": // VERB/SERIAL:BUNDLE/UNTIL
			p := strings.Split(v, "/")
			r := release(t, p[1])
			l.Failed = &Failure{Verb: Verb(p[0]), Serial: r.Serial, Digest: r.Digest, Count: 1, Until: at(p[2]), Message: "it did not work"}
		case "repairs": // COUNT/LAST
			n, last, _ := strings.Cut(v, "/")
			l.Repairs.Count, _ = strconv.Atoi(n)
			l.Repairs.Last = at(last)
		default:
			t.Fatalf("what is %q?", e)
		}
	}
	return l
}

func show(a Action) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", a.Verb, a.Deployment)
	if a.Verb != Wait && a.Verb != Remove {
		i := slices.IndexFunc([]string{"a", "b", "c"}, func(s string) bool { return bundlefmt.Sum([]byte(s)) == a.Release.Digest })
		fmt.Fprintf(&b, " %d:%s", a.Release.Serial, []string{"?", "a", "b", "c"}[i+1])
	}
	if a.Keep {
		b.WriteString(" keep")
	}
	if a.Cancel {
		b.WriteString(" cancel")
	}
	switch until := a.Until.Unix() - 1_000_000; {
	case a.Until.IsZero():
	case until > 1_000_000_000:
		b.WriteString(" until " + a.Until.Format(time.RFC3339))
	default:
		fmt.Fprintf(&b, " until %d", until)
	}
	if a.State != "" {
		fmt.Fprintf(&b, " (%s", a.State)
		if a.Message != "" {
			fmt.Fprintf(&b, ": %s", a.Message)
		}
		b.WriteString(")")
	}
	return b.String()
}

func TestAccept(t *testing.T) {
	x, y := bundlefmt.Sum([]byte("x")), bundlefmt.Sum([]byte("y"))
	for _, c := range []struct {
		what    string
		have    bundlefmt.Serial
		content bundlefmt.Digest
		got     bundlefmt.Serial
		bytes   bundlefmt.Digest
		news    bool
		err     error
	}{
		{"the first ever", 0, bundlefmt.Digest{}, 1, x, true, nil},
		{"newer", 4, x, 5, y, true, nil},
		{"the same again", 4, x, 4, x, false, nil},
		{"older", 4, x, 3, y, false, bundlefmt.ErrStale},
		{"same serial, other content", 4, x, 4, y, false, ErrSameSerial},
		{"floor without content, as after damage", 4, bundlefmt.Digest{}, 4, y, true, nil},
	} {
		news, err := Accept(c.have, c.content, c.got, c.bytes)
		if news != c.news || !errors.Is(err, c.err) {
			t.Errorf("%s: got %v %v, want %v %v", c.what, news, err, c.news, c.err)
		}
	}
}

func TestBackoff(t *testing.T) {
	var got []time.Duration
	for n := range 6 {
		got = append(got, Backoff(n+1, 2*time.Second, 20*time.Second)/time.Second)
	}
	if d := cmp.Diff([]time.Duration{2, 4, 8, 16, 20, 20}, got); d != "" {
		t.Error(d)
	}
	if d := Backoff(1<<30, time.Second, time.Minute); d != time.Minute {
		t.Errorf("many failures: %s", d)
	}
}

// A repair that lasts is forgotten; one that does not is repeated ever more slowly.
func TestRepairsSlowDown(t *testing.T) {
	var r Repairs
	now := at("0")
	var gaps []time.Duration
	for range 8 {
		if a := r.after(); now.Before(a) {
			gaps = append(gaps, a.Sub(now)/time.Second)
			now = a
		}
		r = r.Made(now)
	}
	if d := cmp.Diff([]time.Duration{10, 20, 40, 80}, gaps); d != "" {
		t.Error(d)
	}
	if r = r.Made(now.Add(time.Hour)); r.Count != 1 {
		t.Errorf("an hour later the count is %d", r.Count)
	}
}
