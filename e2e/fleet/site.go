package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/kubetest"
	"shoal.dev/shoal/internal/link"
)

// Site is a Kubernetes cluster at the edge, its agent, and its link to the hub.
type Site struct {
	Name    string
	f       *Fleet
	cluster *kubetest.Cluster
	link    *link.Link
	gateway string // this machine's address for Pods, where containers run
	metrics string
	process *process
}

// AddSite prepares a site; Enroll and StartAgent start its agent. The hub comes first: the site's link leads to it.
func (f *Fleet) AddSite(name string, c *kubetest.Cluster) (*Site, error) {
	if f.hub == nil {
		return nil, errors.New("a site needs a hub to link to: start the hub first")
	}
	if f.sites[name] != nil {
		return nil, fmt.Errorf("there is a site %q already", name)
	}
	s := &Site{Name: name, f: f, cluster: c}
	var err error
	if s.metrics, err = freeAddr(); err != nil {
		return nil, err
	}
	// On a site with real containers the agent may be one of them: it gets to this machine by the Pods' gateway.
	if s.gateway = c.HostIP(); s.gateway != "" && f.hub.Running() {
		return nil, errors.New("the hub's certificate has to name the address by which Pods reach it: prepare the hub, add the sites with real containers, and start it then")
	}
	if s.gateway != "" {
		if err := pin(s.gateway); err != nil {
			return nil, err
		}
	}
	if s.link, err = link.On(cmp.Or(s.gateway, "127.0.0.1"), f.hub.mqtt); err != nil {
		return nil, err
	}
	f.sites[name] = s
	return s, nil
}

// pin keeps the hardware address of the bridge on which Pods hang. Left alone it is that of one of them, and changes when that
// Pod goes: the others then send into the void until they ask anew, which takes them half a minute.
func pin(gateway string) error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.String() == gateway {
				out, err := exec.Command("ip", "link", "set", "dev", i.Name, "address", i.HardwareAddr.String()).CombinedOutput()
				if err != nil {
					return fmt.Errorf("pin the address of %s: %w: %s", i.Name, err, out)
				}
				return nil
			}
		}
	}
	return fmt.Errorf("no network interface has the address %s", gateway)
}

// Kubeconfig is the administrator's of the site.
func (s *Site) Kubeconfig() string { return s.cluster.Kubeconfig() }

// Cluster is the site's.
func (s *Site) Cluster() *kubetest.Cluster { return s.cluster }

// MetricsAddr serves the agent's /metrics and /healthz.
func (s *Site) MetricsAddr() string { return s.metrics }

func (s *Site) dataDir() string   { return s.f.path("agent-" + s.Name) }
func (s *Site) tokenFile() string { return s.f.path("token-" + s.Name) }

// GiveToken gives the site an enrolment token, as "shoal token create" printed it, for StartAgent. The address in it is changed
// to the site's own link, as a port forwarding in front of the site would; keys and secret stay.
func (s *Site) GiveToken(token string) error {
	t, err := bundlefmt.ParseTicket(token)
	if err == nil {
		u, err := url.Parse(t.URL)
		if err != nil {
			return fmt.Errorf("address in the token: %w", err)
		}
		if u.Host == s.f.hub.mqtt {
			u.Host = s.link.Addr()
		}
		t.URL = u.String()
		token = t.String()
	}
	// One that is no token is handed over as it is: the agent has to say what is wrong with it.
	return os.WriteFile(s.tokenFile(), []byte(token), 0o600)
}

func (s *Site) command() command {
	return command{
		name: "agent of " + s.Name, path: s.f.bin.Agent, log: s.f.path("logs", s.Name+".log"), ready: s.metrics + "/healthz",
		args: []string{
			"--kubeconfig", s.Kubeconfig(), "--data-dir", s.dataDir(), "--token-file", s.tokenFile(), "--cluster-name", s.Name,
			"--keep-alive", s.f.o.KeepAlive.String(), "--metrics-listen", s.metrics, "--log-level", "debug", "--log-format", "json",
			"--identity-secret", "shoal-agent-identity",
		},
	}
}

// StartAgent starts the agent and waits until it serves /healthz, which says nothing about its link.
func (s *Site) StartAgent(ctx context.Context) error {
	if s.Running() {
		return fmt.Errorf("the agent of %s runs already", s.Name)
	}
	var err error
	s.process, err = start(ctx, s.command())
	return err
}

// SpawnAgent starts an agent that may well end at once.
func (s *Site) SpawnAgent() error {
	if s.Running() {
		return fmt.Errorf("the agent of %s runs already", s.Name)
	}
	var err error
	s.process, err = spawn(s.command())
	return err
}

// Running tells whether the agent is there.
func (s *Site) Running() bool { return s.process != nil && s.process.running() }

// StopAgent stops the agent in order and says how long that took. More than StopLimit is an error.
func (s *Site) StopAgent() (time.Duration, error) {
	if s.process == nil {
		return 0, nil
	}
	p := s.process
	s.process = nil
	return p.terminate()
}

// KillAgent is a power cut for the agent's process.
func (s *Site) KillAgent() {
	if s.process != nil {
		s.process.kill()
		s.process = nil
	}
}

// FreezeAgent stops the agent where it is: it does nothing and says nothing, and its connections stay.
func (s *Site) FreezeAgent() error { return s.signal(syscall.SIGSTOP) }

// ThawAgent lets a frozen agent go on.
func (s *Site) ThawAgent() error { return s.signal(syscall.SIGCONT) }

func (s *Site) signal(sig syscall.Signal) error {
	if !s.Running() {
		return fmt.Errorf("the agent of %s does not run", s.Name)
	}
	return s.process.signal(sig)
}

// LoseDisk deletes everything that the stopped agent has on disk.
func (s *Site) LoseDisk() error {
	if s.Running() {
		return fmt.Errorf("the agent of %s runs", s.Name)
	}
	return os.RemoveAll(s.dataDir())
}

// SaveDisk copies everything that the stopped agent has on disk.
func (s *Site) SaveDisk(dir string) error {
	if s.Running() {
		return fmt.Errorf("the agent of %s runs", s.Name)
	}
	return os.CopyFS(dir, os.DirFS(s.dataDir()))
}

// LoadDisk puts a copy that SaveDisk made in the place of the stopped agent's disk.
func (s *Site) LoadDisk(dir string) error {
	if err := s.LoseDisk(); err != nil {
		return err
	}
	return os.CopyFS(s.dataDir(), os.DirFS(dir))
}

// Output is what the agent has logged since it was last started.
func (s *Site) Output() []byte {
	if s.process == nil {
		return nil
	}
	return s.process.output()
}

// RSS is the agent's resident memory in bytes; 0 where that cannot be told.
func (s *Site) RSS() int64 { return s.process.rss() }

// Follows asks the agent which document it follows, and whether it has a link.
func (s *Site) Follows(ctx context.Context) (serial int64, connected bool, err error) {
	page, err := Get(ctx, s.metrics, "/metrics")
	if err != nil {
		return 0, false, fmt.Errorf("metrics of the agent of %s: %w", s.Name, err)
	}
	for line := range strings.Lines(string(page)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch name {
		case "shoal_agent_desired_serial":
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, false, fmt.Errorf("metrics of the agent of %s: %w", s.Name, err)
			}
			serial = int64(f)
		case "shoal_agent_connected":
			connected = value == "1"
		}
	}
	return serial, connected, nil
}

// never is longer than any story.
const never = 1000 * time.Hour

// Cut pulls the cable: nothing passes any more, and nobody is told. Only silence shows that the link is gone.
func (s *Site) Cut() { s.link.SetDelay(never) }

// Break resets the connections and refuses new ones, as a router does that lost its uplink.
func (s *Site) Break() { s.link.Cut() }

// Restore ends Cut and Break.
func (s *Site) Restore() {
	s.link.SetDelay(0)
	s.link.Restore()
}

// LinkBytes is how many bytes have passed the link so far.
func (s *Site) LinkBytes() int64 { return s.link.Bytes() }
