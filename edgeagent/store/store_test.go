package store

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rs/zerolog"

	"shoal.dev/shoal/bundlefmt"
)

const childEnv = "SHOAL_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

func open(t *testing.T, dir string) (*Store, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	s, err := Open(dir, zerolog.New(&log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, &log
}

func reopen(t *testing.T, s *Store) (*Store, *bytes.Buffer) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, s.dir)
}

func signer() bundlefmt.Signer {
	return bundlefmt.NewSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)))
}

func keys() Keys {
	return Keys{Public: []ed25519.PublicKey{signer().Public()}, Limits: small()}
}

// small limits make a bundle of a few kilobytes have several parts.
func small() bundlefmt.Limits {
	l := bundlefmt.DefaultLimits()
	l.PartSize = 1024
	return l
}

func sealed(t *testing.T, seed uint64, n int) bundlefmt.Sealed {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	var objects []bundlefmt.Object
	for i := range n {
		o, err := bundlefmt.NewObject(fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c%d"},"data":{"a":"%x%x%x%x"}}`, i, r.Uint64(), r.Uint64(), r.Uint64(), r.Uint64()))
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	b, err := bundlefmt.New(objects, bundlefmt.Handling{}, small())
	if err != nil {
		t.Fatal(err)
	}
	s, err := bundlefmt.Seal(b, signer(), small())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func putAll(t *testing.T, s *Store, b bundlefmt.Sealed) {
	t.Helper()
	for i, p := range b.Parts {
		if err := s.PutPart(b.Digest, i, p); err != nil {
			t.Fatal(err)
		}
	}
}

func identity() Identity {
	return Identity{Key: []byte("key"), Certificate: []byte("cert"), URL: "mqtts://h", CA: "ca", Root: signer().Public(), Workspace: "ws", Cluster: "c1"}
}

func record(name string, serial bundlefmt.Serial) Record {
	return Record{
		Name:    name,
		Applied: &Release{Serial: serial, Digest: bundlefmt.Sum([]byte(name)), Policy: bundlefmt.Policy{Namespace: "shop", CorrectDrift: true}, Parts: 2, Group: "eu"},
		Refs:    []bundlefmt.Ref{{Version: "v1", Kind: "ConfigMap", Namespace: "shop", Name: "a"}},
		State:   bundlefmt.Ready, Since: time.Unix(1000, 0).UTC(), Message: "m",
	}
}

// fill writes one of everything.
func fill(t *testing.T, s *Store) bundlefmt.Sealed {
	t.Helper()
	for _, err := range []error{
		s.PutIdentity(identity()),
		s.PutTrust([]byte("trust bytes")),
		s.PutDesired([]byte("desired bytes")),
		s.PutFloor(Floor{Desired: 7, Document: bundlefmt.Sum([]byte("desired bytes")), Trust: 2}),
		s.PutRecord(record("web", 5)),
		s.PutRecord(record("db", 6)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	b := sealed(t, 1, 100)
	if len(b.Parts) < 3 {
		t.Fatalf("want a bundle of several parts, got %d", len(b.Parts))
	}
	putAll(t, s, b)
	return b
}

func TestEverythingComesBack(t *testing.T) {
	s, _ := open(t, filepath.Join(t.TempDir(), "deep", "data"))
	b := fill(t, s)
	s, log := reopen(t, s)
	check(t, s, b)
	if log.Len() != 0 {
		t.Errorf("a whole store has nothing to say: %s", log)
	}
}

func check(t *testing.T, s *Store, b bundlefmt.Sealed) {
	t.Helper()
	id, err := s.Identity()
	if d := cmp.Diff(identity(), id); err != nil || d != "" {
		t.Errorf("identity: %v %s", err, d)
	}
	f, err := s.Floor()
	if want := (Floor{Desired: 7, Document: bundlefmt.Sum([]byte("desired bytes")), Trust: 2}); err != nil || f != want {
		t.Errorf("floor: %v %v", f, err)
	}
	if got, err := s.Desired(); err != nil || string(got) != "desired bytes" {
		t.Errorf("desired: %q %v", got, err)
	}
	if got, err := s.Trust(); err != nil || string(got) != "trust bytes" {
		t.Errorf("trust: %q %v", got, err)
	}
	recs, err := s.Records()
	if d := cmp.Diff(map[string]Record{"web": record("web", 5), "db": record("db", 6)}, recs, cmpopts.EquateApproxTime(0)); err != nil || d != "" {
		t.Errorf("records: %v %s", err, d)
	}
	got, err := s.Bundle(b.Digest, keys())
	if err != nil || got.Digest() != b.Digest || len(got.Objects()) != 100 {
		t.Errorf("bundle: %v", err)
	}
}

func TestPermissions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s, _ := open(t, dir)
	fill(t, s)
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if e.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", p, info.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// damages are what flash cells, half-written sectors and people do to a file.
var damages = map[string]func(t *testing.T, path string){
	"truncated": func(t *testing.T, p string) { size(t, p, 0.5) },
	"emptied":   func(t *testing.T, p string) { size(t, p, 0) },
	"cut short": func(t *testing.T, p string) { size(t, p, 0.99) },
	"flipped": func(t *testing.T, p string) {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-len(b)/3] ^= 4
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	},
	"garbage": func(t *testing.T, p string) {
		if err := os.WriteFile(p, bytes.Repeat([]byte{0xff}, 100), 0o600); err != nil {
			t.Fatal(err)
		}
	},
	"directory": func(t *testing.T, p string) {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(p, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	},
	"deleted": func(t *testing.T, p string) {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	},
}

func size(t *testing.T, p string, share float64) {
	t.Helper()
	info, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p, int64(float64(info.Size())*share)); err != nil {
		t.Fatal(err)
	}
}

// Damage to one of the two places of a checked file costs nothing.
func TestDamageToOnePlaceIsRepaired(t *testing.T) {
	for _, name := range []string{"identity", "trust", "desired", "floor", "records/web", "records/db"} {
		for _, suffix := range []string{"", copySuffix} {
			for what, damage := range damages {
				t.Run(name+suffix+" "+what, func(t *testing.T) {
					s, _ := open(t, t.TempDir())
					b := fill(t, s)
					damage(t, s.path(name+suffix))
					s, log := reopen(t, s)
					check(t, s, b)
					if suffix == "" && !strings.Contains(log.String(), "copy") {
						t.Errorf("nothing said about it: %s", log)
					}
					if suffix != "" { // noticed only when the copy is needed, and then written anew
						return
					}
					damage(t, s.path(name+copySuffix)) // healed: the primary must be whole again
					s, _ = reopen(t, s)
					check(t, s, b)
				})
			}
		}
	}
}

// Damage to both places loses that file, loudly, and nothing else.
func TestDamageToBothPlaces(t *testing.T) {
	for _, name := range []string{"identity", "trust", "desired", "floor", "records/web"} {
		for what, damage := range damages {
			t.Run(name+" "+what, func(t *testing.T) {
				s, _ := open(t, t.TempDir())
				b := fill(t, s)
				damage(t, s.path(name))
				damage(t, s.path(name+copySuffix))
				s, log := reopen(t, s)

				_, idErr := s.Identity()
				_, trustErr := s.Trust()
				_, desiredErr := s.Desired()
				floor, floorErr := s.Floor()
				recs, recErr := s.Records()
				_, bundleErr := s.Bundle(b.Digest, keys())
				for file, err := range map[string]error{"identity": idErr, "trust": trustErr, "desired": desiredErr} {
					if lost := errors.Is(err, fs.ErrNotExist); lost != (file == name) || err != nil && !lost {
						t.Errorf("%s after damage to %s: %v", file, name, err)
					}
				}
				if floorErr != nil || (floor == Floor{}) != (name == "floor") {
					t.Errorf("floor: %v %v", floor, floorErr)
				}
				if _, ok := recs["web"]; recErr != nil || ok == (name == "records/web") || recs["db"].Name != "db" {
					t.Errorf("records: %v %v", recs, recErr)
				}
				if bundleErr != nil {
					t.Errorf("bundle: %v", bundleErr)
				}
				if what != "deleted" {
					if s.Damaged() != 2 || !strings.Contains(log.String(), "moved aside") {
						t.Errorf("damaged=%d, log: %s", s.Damaged(), log)
					}
					if kept, _ := os.ReadDir(s.path(damagedDir)); len(kept) != 2 {
						t.Errorf("%d files kept for a person to look at, want 2", len(kept))
					}
				}
				// And it can be written again.
				fill(t, s)
				s, _ = reopen(t, s)
				check(t, s, b)
			})
		}
	}
}

func TestDamagedPartIsFetchedAgain(t *testing.T) {
	for what, damage := range damages {
		for n := range 3 {
			t.Run(fmt.Sprint(what, n), func(t *testing.T) {
				s, _ := open(t, t.TempDir())
				b := fill(t, s)
				damage(t, s.partPath(b.Digest, n))
				if _, err := s.Bundle(b.Digest, keys()); !errors.Is(err, ErrIncomplete) {
					t.Fatalf("got %v, want ErrIncomplete", err)
				}
				missing, _, err := s.Missing(b.Digest, keys())
				if err != nil || !cmp.Equal(missing, []int{n}) {
					t.Fatalf("missing %v %v, want only part %d", missing, err, n)
				}
				if err := s.PutPart(b.Digest, n, b.Parts[n]); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Bundle(b.Digest, keys()); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// A bundle that was verified once can be used after its key was rotated out; one that was not is refused.
func TestRotatedKeys(t *testing.T) {
	s, _ := open(t, t.TempDir())
	known, fresh := sealed(t, 1, 20), sealed(t, 2, 20)
	putAll(t, s, known)
	if err := s.Verified(known.Digest, keys()); err != nil {
		t.Fatal(err)
	}
	putAll(t, s, fresh)
	later := Keys{Public: []ed25519.PublicKey{ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)}, Limits: small()}
	if _, err := s.Bundle(known.Digest, later); err != nil {
		t.Errorf("what was verified: %v", err)
	}
	if _, err := s.Bundle(fresh.Digest, later); !errors.Is(err, ErrIncomplete) {
		t.Errorf("what was not: %v", err)
	}
	damages["flipped"](t, filepath.Join(s.bundleDir(known.Digest), keysFile))
	if _, err := s.Bundle(known.Digest, later); !errors.Is(err, ErrIncomplete) {
		t.Errorf("with damaged keys: %v", err)
	}
}

func TestDamagedFilesDoNotFillTheDisk(t *testing.T) {
	s, _ := open(t, t.TempDir())
	b := sealed(t, 1, 100)
	for range maxDamaged + 10 {
		if err := s.PutPart(b.Digest, 0, []byte("no")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Missing(b.Digest, keys()); err != nil {
			t.Fatal(err)
		}
	}
	if kept, _ := os.ReadDir(s.path(damagedDir)); len(kept) != maxDamaged {
		t.Errorf("%d files kept, want %d", len(kept), maxDamaged)
	}
}

func TestSecondAgentIsRefused(t *testing.T) {
	s, _ := open(t, t.TempDir())
	_, err := Open(s.dir, zerolog.Nop())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Fatalf("got %v, want ErrLocked naming process %d", err, os.Getpid())
	}
	r, err := Read(s.dir)
	if err != nil || !r.Running() {
		t.Errorf("a reader sees that an agent runs: %v", err)
	}
	s.Close()
	if r.Running() {
		t.Error("the agent is gone")
	}
	again, err := Open(s.dir, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestCollect(t *testing.T) {
	s, _ := open(t, t.TempDir())
	a, b, c := sealed(t, 1, 20), sealed(t, 2, 20), sealed(t, 3, 20)
	for _, x := range []bundlefmt.Sealed{a, b, c} {
		putAll(t, s, x)
	}
	n, err := s.Collect(map[bundlefmt.Digest]bool{a.Digest: true, c.Digest: true})
	if err != nil || n != 1 {
		t.Fatalf("removed %d, %v", n, err)
	}
	for _, x := range []bundlefmt.Sealed{a, c} {
		if _, err := s.Bundle(x.Digest, keys()); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Bundle(b.Digest, keys()); !errors.Is(err, ErrIncomplete) {
		t.Errorf("b: %v", err)
	}
}

// A reader changes nothing, whatever it finds.
func TestReaderOnlyLooks(t *testing.T) {
	s, _ := open(t, t.TempDir())
	fill(t, s)
	damages["flipped"](t, s.path("records/web"))
	before := tree(t, s.dir)
	r, err := Read(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	recs, err := r.Records()
	if err != nil || len(recs) != 2 {
		t.Errorf("records: %v %v", recs, err)
	}
	if d := cmp.Diff(before, tree(t, s.dir)); d != "" {
		t.Error(d)
	}
	if err := r.PutFloor(Floor{}); err == nil {
		t.Error("a reader wrote")
	}
}

func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		out[p] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mount a small file system: %v", err)
		}
		fmt.Fprintf(os.Stderr, "SKIPPED %s: mount a small file system: %v\n", t.Name(), err)
		t.Skip(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	s, _ := open(t, dir)
	b := fill(t, s)
	big := bytes.Repeat([]byte("x"), 1000)
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = s.PutPart(bundlefmt.Sum([]byte("big")), i, big)
	}
	for err := error(nil); err == nil; { // to the last byte
		f, ferr := os.OpenFile(filepath.Join(dir, bundlesDir, "ballast"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if ferr != nil {
			break
		}
		_, err = f.Write(big[:100])
		f.Close()
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want ENOSPC", err)
	}
	if err := s.PutDesired(bytes.Repeat([]byte("y"), 40<<10)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want ENOSPC", err)
	}
	check(t, s, b) // what was there stays
	if err := s.PutRecord(record("web", 6)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if err := s.PutRecord(record("web", 5)); err != nil {
		t.Errorf("writing what is there already needs no space: %v", err)
	}
	if n, err := s.Collect(map[bundlefmt.Digest]bool{b.Digest: true}); err != nil || n != 2 {
		t.Fatalf("collect on a full disk: %d %v", n, err)
	}
	if err := s.PutRecord(record("web", 8)); err != nil {
		t.Errorf("after making room: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
		t.Errorf("left half-written: %v", left)
	}
}

// child writes one generation after the other and says so, until it is killed.
func child(dir string) {
	s, err := Open(dir, zerolog.New(os.Stderr))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	f, err := s.Floor()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	for n := f.Desired + 1; ; n++ {
		doc := bytes.Repeat([]byte(n.String()+" "), 2000)
		for _, err := range []error{
			s.PutDesired(doc),
			s.PutFloor(Floor{Desired: n, Document: bundlefmt.Sum(doc)}),
			s.PutRecord(record("web", n)),
			s.PutPart(bundlefmt.Sum([]byte("bundle")), int(n%3), doc),
		} {
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(2)
			}
		}
		fmt.Println(n)
	}
}

// kill -9 at random instants: what was said to be written is there, everything is whole, nothing goes back.
func TestKilledAnywhere(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	for range rounds {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		var said bundlefmt.Serial
		for range 1 + r.IntN(4) {
			if !lines.Scan() {
				break
			}
			said, _ = bundlefmt.ParseSerial(lines.Text())
		}
		for range r.IntN(200_000) { // somewhere inside the next generation
			_ = r.Uint64()
		}
		_ = cmd.Process.Kill()
		for lines.Scan() {
			said, _ = bundlefmt.ParseSerial(lines.Text())
		}
		_ = cmd.Wait()
		if stderr.Len() > 0 {
			t.Fatalf("child: %s", &stderr)
		}

		s, log := open(t, dir)
		f, err := s.Floor()
		if err != nil || f.Desired < said {
			t.Fatalf("floor %d, %d was said to be written: %v", f.Desired, said, err)
		}
		doc, err := s.Desired()
		n, perr := bundlefmt.ParseSerial(string(bytes.Fields(doc)[0]))
		if err != nil || perr != nil || n < f.Desired || n > f.Desired+1 {
			t.Fatalf("desired %d with floor %d: the document is written first: %v %v", n, f.Desired, err, perr)
		}
		if n == f.Desired && bundlefmt.Sum(doc) != f.Document {
			t.Fatal("floor names another document")
		}
		recs, err := s.Records()
		if err != nil || recs["web"].Applied.Serial < said {
			t.Fatalf("record: %v %v", recs, err)
		}
		for p := range 3 {
			b, err := s.part(bundlefmt.Sum([]byte("bundle")), p, bundlefmt.DefaultLimits())
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if w := bytes.Fields(b); err == nil && (len(w) != 2000 || !bytes.Equal(w[0], w[1999])) {
				t.Fatalf("part %d is torn", p)
			}
		}
		if s.Damaged() != 0 || strings.Contains(log.String(), "error") {
			t.Fatalf("damage: %s", log)
		}
		left, _ := filepath.Glob(filepath.Join(dir, "*", ".*"))
		deep, _ := filepath.Glob(filepath.Join(dir, "*", "*", ".*"))
		if left = append(left, deep...); len(left) != 0 {
			t.Fatalf("left over: %v", left)
		}
		s.Close()
	}
}
