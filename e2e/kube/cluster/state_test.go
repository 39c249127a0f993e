package cluster

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func options(t *testing.T) Options {
	t.Helper()
	return Options{Dir: t.TempDir(), Name: "edge1", Nodes: Simulated, Listen: "127.0.0.1"}
}

func TestStateStaysOverRestarts(t *testing.T) {
	o := options(t)
	first, moved, err := loadState(o)
	if err != nil || moved {
		t.Fatalf("new state: moved %v, error %v", moved, err)
	}
	second, moved, err := loadState(o)
	if err != nil || moved {
		t.Fatalf("second start: moved %v, error %v", moved, err)
	}
	if first.server() != second.server() {
		t.Errorf("server was %s, is %s", first.server(), second.server())
	}
	if first.Net != second.Net {
		t.Errorf("network was %d, is %d", first.Net, second.Net)
	}
	for user, token := range first.Tokens {
		if second.Tokens[user] != token {
			t.Errorf("the token of %s changed", user)
		}
	}
}

func TestStateOfAnotherClusterIsRefused(t *testing.T) {
	o := options(t)
	if _, _, err := loadState(o); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*Options){
		func(o *Options) { o.Name = "edge2" },
		func(o *Options) { o.Nodes = Real },
	} {
		other := o
		change(&other)
		if _, _, err := loadState(other); err == nil || !strings.Contains(err.Error(), "choose another --dir") {
			t.Errorf("start as %s with %s nodes = %v, want a refusal", other.Name, other.Nodes, err)
		}
	}
}

func TestTakenPortMoves(t *testing.T) {
	o := options(t)
	s, _, err := loadState(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(s.Listen, strconv.Itoa(s.Port)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	again, moved, err := loadState(o)
	if err != nil {
		t.Fatal(err)
	}
	if !moved || again.Port == s.Port {
		t.Errorf("port %d is taken, got %d, moved = %v", s.Port, again.Port, moved)
	}
}

func TestNetworks(t *testing.T) {
	for _, c := range []struct {
		n             int
		pods, service string
	}{
		{1, "10.128.1.0/24", "10.160.1.0/24"},
		{255, "10.128.255.0/24", "10.160.255.0/24"},
		{4095, "10.143.255.0/24", "10.175.255.0/24"},
	} {
		s := state{Net: c.n}
		if got := s.podNet().String(); got != c.pods {
			t.Errorf("Pods of %d: %s, want %s", c.n, got, c.pods)
		}
		if got := s.serviceNet().String(); got != c.service {
			t.Errorf("Services of %d: %s, want %s", c.n, got, c.service)
		}
		if got, want := nth(s.podNet(), 1).String(), strings.Replace(c.pods, ".0/24", ".1", 1); got != want {
			t.Errorf("first address of %d: %s, want %s", c.n, got, want)
		}
	}
}

func TestOneClusterADirectory(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir); err == nil || !strings.Contains(err.Error(), "is running in this directory") {
		t.Errorf("second lock = %v, want a refusal", err)
	}
	lock.Close()
	again, err := lockDir(dir)
	if err != nil {
		t.Fatalf("lock after release: %v", err)
	}
	again.Close()
}

func TestIdentitiesAreMadeOnce(t *testing.T) {
	o := options(t)
	s, _, err := loadState(o)
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"kubeconfig", "pki/ca.crt", "pki/sa.key", "pki/tokens.csv"}
	read := func() map[string]string {
		t.Helper()
		if err := writeIdentities(o.Dir, s); err != nil {
			t.Fatal(err)
		}
		content := map[string]string{}
		for _, f := range files {
			path := filepath.Join(o.Dir, f)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			content[f] = string(b)
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %v, error %v, want only the owner to read it", f, info.Mode(), err)
			}
		}
		return content
	}
	first, second := read(), read()
	for _, f := range files {
		if first[f] != second[f] {
			t.Errorf("%s changed at the second start", f)
		}
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var b strings.Builder
	for i := range 5000 {
		b.WriteString("line " + strconv.Itoa(i) + "\n")
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := tail(path, 2), "  line 4998\n  line 4999"; got != want {
		t.Errorf("tail = %q, want %q", got, want)
	}
}
