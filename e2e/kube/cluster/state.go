package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Nodes says who runs the Pods.
type Nodes string

const (
	// Simulated nodes exist only in the API; their Pods become Ready without
	// running. Any image name will do and nothing needs root.
	Simulated Nodes = "sim"
	// Real is one kubelet on a private containerd. It needs root.
	Real Nodes = "real"
)

// ParseNodes reads the value of the --nodes flag.
func ParseNodes(s string) (Nodes, error) {
	switch n := Nodes(s); n {
	case Simulated, Real:
		return n, nil
	}
	return "", fmt.Errorf("nodes %q: want %q or %q", s, Simulated, Real)
}

// state is cluster.json: what must stay the same over restarts so that
// kubeconfigs and ServiceAccount tokens given out earlier stay valid.
type state struct {
	Name   string            `json:"name"`
	Nodes  Nodes             `json:"nodes"`
	Listen string            `json:"listen"`
	Port   int               `json:"port"`
	Tokens map[string]string `json:"tokens"`
	// Net is the N in the cluster's networks: Pods 10.(128+N/256).(N%256).0/24.
	Net int `json:"net"`
}

// lockDir keeps a second Up away from dir. The lock ends with the process,
// however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: a cluster is running in this directory: stop it or choose another --dir", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// loadState reads cluster.json, or makes the state of a new cluster. The port
// is kept when it is still free; moved reports that it was not.
func loadState(o Options) (s state, moved bool, err error) {
	path := filepath.Join(o.Dir, "cluster.json")
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s = state{Name: o.Name, Nodes: o.Nodes, Tokens: map[string]string{}}
	case err != nil:
		return s, false, err
	default:
		if err := json.Unmarshal(b, &s); err != nil {
			return s, false, fmt.Errorf("read %s: %w (remove the directory to start afresh)", path, err)
		}
		if s.Nodes != o.Nodes || s.Name != o.Name {
			return s, false, fmt.Errorf("%s holds the cluster %q with --nodes=%s, not %q with --nodes=%s: choose another --dir",
				o.Dir, s.Name, s.Nodes, o.Name, o.Nodes)
		}
	}
	s.Listen = o.Listen
	if s.Net == 0 {
		s.Net = 1 + mathrand.IntN(1<<12-1)
	}
	if s.Port == 0 || !portBecomesFree(s.Listen, s.Port) {
		moved = s.Port != 0
		if s.Port, err = freePort(s.Listen); err != nil {
			return s, false, err
		}
	}
	for _, id := range identities {
		if s.Tokens[id.user] == "" {
			s.Tokens[id.user] = randomToken()
		}
	}
	b, err = json.MarshalIndent(s, "", "  ")
	if err != nil {
		return s, false, err
	}
	return s, moved, writeFile(path, b)
}

// freePort looks below the range from which kernels take the ports of outgoing
// connections: there, nobody takes a stopped cluster's port by accident.
func freePort(host string) (int, error) {
	const low, high = 16000, 32000
	for range 200 {
		if p := low + mathrand.IntN(high-low); portFree(host, p) {
			return p, nil
		}
	}
	return 0, fmt.Errorf("no free TCP port on %s between %d and %d", host, low, high)
}

// portBecomesFree waits a little: after a kill, the last run's API server may
// still be going down.
func portBecomesFree(host string, port int) bool {
	for range 20 {
		if portFree(host, port) {
			return true
		}
		time.Sleep(100 * time.Millisecond)
	}
	return false
}

func portFree(host string, port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

func randomToken() string {
	b := make([]byte, 24)
	rand.Read(b) // never fails; the process crashes instead
	return hex.EncodeToString(b)
}

// writeFile replaces path in one step, readable by its owner only.
func writeFile(path string, b []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// podNet is the cluster's Pod network. Networks differ between clusters so that
// several with real nodes can share one host.
func (s state) podNet() *net.IPNet {
	return &net.IPNet{IP: net.IPv4(10, byte(128+s.Net>>8), byte(s.Net), 0).To4(), Mask: net.CIDRMask(24, 32)}
}

// serviceNet is the range of ClusterIPs.
func (s state) serviceNet() *net.IPNet {
	return &net.IPNet{IP: net.IPv4(10, byte(160+s.Net>>8), byte(s.Net), 0).To4(), Mask: net.CIDRMask(24, 32)}
}

// nth returns the address n after the network's own.
func nth(n *net.IPNet, i byte) net.IP {
	ip := append(net.IP(nil), n.IP...)
	ip[3] += i
	return ip
}
