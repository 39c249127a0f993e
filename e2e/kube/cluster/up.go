package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// Options says which cluster Up starts.
type Options struct {
	// Dir holds everything of the cluster. Up makes it; a directory that a
	// stopped cluster left behind brings that cluster back.
	Dir string
	// Name names the cluster in its kubeconfig and is the name of its node.
	Name string
	// Nodes says whether Pods run.
	Nodes Nodes
	// Listen is the address of the API server.
	Listen string
	// Pause is the static binary of the sandbox container, for real nodes.
	// Empty means shoal-pause beside this binary.
	Pause string
	// Log gets a line for each step.
	Log io.Writer
}

// Ready is what Up tells when the cluster can be used.
type Ready struct {
	Ready      bool           `json:"ready"`
	Name       string         `json:"name"`
	Nodes      Nodes          `json:"nodes"`
	Kubeconfig string         `json:"kubeconfig"`
	Server     string         `json:"server"`
	HostIP     string         `json:"hostIP,omitempty"` // with real nodes: where Pods reach this machine
	PID        int            `json:"pid"`              // of the process that runs Up: SIGTERM stops the cluster
	Children   map[string]int `json:"children"`         // process ids by name
	Seconds    float64        `json:"seconds"`          // from start to ready
}

// startTimeout is generous: on a busy two-core machine with other clusters
// starting, a start that takes 7 s alone has been seen to take a minute.
const startTimeout = 4 * time.Minute

// Up starts the cluster, calls ready once and serves until ctx ends, which is
// no error. It returns after every process it started has ended.
//
// Call it once in a process, from main: the children die with the thread that
// runs Up, so that not even SIGKILL leaves them behind.
func Up(ctx context.Context, o Options, ready func(Ready)) (err error) {
	runtime.LockOSThread()

	begin := time.Now()
	c := &run{o: o}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	c.o.Dir = o.Dir
	if o.Nodes == Real {
		if err := Preflight(); err != nil {
			return err
		}
		if len(o.Dir) > maxRealDir {
			return fmt.Errorf("--dir %s has %d characters, at most %d are possible with real nodes (unix sockets lie below it): choose a shorter one",
				o.Dir, len(o.Dir), maxRealDir)
		}
	}
	for _, d := range []string{"logs", "run", "kine"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, d), 0o700); err != nil {
			return err
		}
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()

	defer func() {
		if len(c.cleanups) > 0 {
			c.logf("stopping")
		}
		for i := len(c.cleanups) - 1; i >= 0; i-- {
			c.cleanups[i]()
		}
	}()
	startCtx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not ready after %s; logs are in %s", startTimeout, c.path("logs")))
	defer cancel()
	if err := c.start(startCtx, begin); err != nil {
		if ctx.Err() != nil {
			return nil // stopped while starting
		}
		return err
	}
	c.logf("ready after %.1f s", time.Since(begin).Seconds())
	ready(c.ready(time.Since(begin)))
	return c.serve(ctx)
}

// run is one run of a cluster.
type run struct {
	o        Options
	s        state
	procs    []*process
	cleanups []func() // run last to first
}

func (c *run) path(name string) string { return filepath.Join(c.o.Dir, name) }

func (c *run) logf(format string, args ...any) {
	fmt.Fprintf(c.o.Log, "%s: "+format+"\n", append([]any{c.o.Name}, args...)...)
}

func (c *run) start(ctx context.Context, begin time.Time) error {
	var moved bool
	var err error
	if c.s, moved, err = loadState(c.o); err != nil {
		return err
	}
	if moved {
		c.logf("the port of the last run is taken, so %s is new: read it again", c.path("kubeconfig"))
	}
	if err := writeIdentities(c.o.Dir, c.s); err != nil {
		return err
	}
	socket, err := c.kineSocket()
	if err != nil {
		return err
	}
	a, err := newAPI(c.o.Dir, c.s)
	if err != nil {
		return err
	}

	if c.s.Nodes == Real {
		if err := c.network(); err != nil {
			return err
		}
	}
	// The datastore stops last and the API server before it: what the others
	// still write while they stop then finds its way to the disk.
	if err := c.startChild(kine(c.o, socket), 2*time.Second); err != nil {
		return err
	}
	if err := poll(ctx, "kine", c.procs, func() error { _, err := os.Stat(socket); return err }); err != nil {
		return err
	}
	if err := c.startChild(apiServer(c.o, c.s, socket), 2*time.Second); err != nil {
		return err
	}
	c.logf("waiting for the API server at %s", c.s.server())
	if err := poll(ctx, "the API server", c.procs, func() error { return a.ready(ctx) }); err != nil {
		return err
	}
	return c.startRest(ctx, a, begin)
}

// startRest starts what needs an API server.
func (c *run) startRest(ctx context.Context, a *api, begin time.Time) error {
	config, err := schedulerConfig(c.o)
	if err != nil {
		return err
	}
	if err := writeFile(c.path("pki/kube-scheduler.json"), config); err != nil {
		return err
	}
	for _, s := range []spec{controllerManager(c.o), scheduler(c.o)} {
		if err := c.startChild(s, time.Second); err != nil {
			return err
		}
	}
	if err := a.create(ctx, "/apis/storage.k8s.io/v1/storageclasses", storageClass); err != nil {
		return fmt.Errorf("create storage class: %w", err)
	}
	// Before a kubelet starts, too: without its Node it cannot make its lease,
	// and it tries again only ten seconds later.
	if err := a.create(ctx, "/api/v1/nodes", nodeObject(c.s.Name)); err != nil {
		return fmt.Errorf("create node %s: %w", c.s.Name, err)
	}
	if c.s.Nodes == Real {
		err = c.startRealNode()
	} else {
		err = c.startSimulatedNode(ctx, a)
	}
	if err != nil {
		return err
	}
	c.logf("waiting for node %s and the default ServiceAccount", c.s.Name)
	return poll(ctx, "node "+c.s.Name, c.procs, func() error {
		if err := a.nodeReady(ctx, c.s.Name, begin); err != nil {
			return err
		}
		if err := a.exists(ctx, "/api/v1/namespaces/default/configmaps/kube-root-ca.crt"); err != nil {
			return err
		}
		return a.exists(ctx, "/api/v1/namespaces/default/serviceaccounts/default")
	})
}

func (c *run) startSimulatedNode(ctx context.Context, a *api) error {
	if err := writeFile(c.path("pki/kwok.yaml"), stages); err != nil {
		return err
	}
	// The leases of the last run belong to its kwok; the next would wait for
	// them to expire.
	if err := a.do(ctx, http.MethodDelete, nodeLeases, nil, nil); err != nil {
		return fmt.Errorf("delete node leases: %w", err)
	}
	return c.startChild(kwok(c.o, c.s), time.Second)
}

// startChild starts a process and has it stopped at the end.
func (c *run) startChild(s spec, grace time.Duration) error {
	p, err := start(c.path("logs"), s)
	if err != nil {
		return err
	}
	c.logf("started %s (pid %d)", s.name, p.cmd.Process.Pid)
	c.procs = append(c.procs, p)
	c.cleanups = append(c.cleanups, func() { p.stop(grace) })
	return nil
}

// maxSocket is what fits in a sockaddr_un, less its final zero.
const maxSocket = 107

// kineSocket returns a path for the datastore's socket: in the directory, or in
// a temporary one if that is too deep for a socket.
func (c *run) kineSocket() (string, error) {
	socket := c.path("run/kine.sock")
	if len(socket) > maxSocket {
		tmp, err := os.MkdirTemp("", "shoal-kube-")
		if err != nil {
			return "", err
		}
		c.cleanups = append(c.cleanups, func() { os.RemoveAll(tmp) })
		socket = filepath.Join(tmp, "kine.sock")
	}
	// Left behind when the last run was killed.
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return socket, nil
}

func (c *run) ready(took time.Duration) Ready {
	r := Ready{
		Ready: true, Name: c.s.Name, Nodes: c.s.Nodes, Kubeconfig: c.path("kubeconfig"), Server: c.s.server(),
		PID: os.Getpid(), Children: map[string]int{}, Seconds: took.Round(100 * time.Millisecond).Seconds(),
	}
	if c.s.Nodes == Real {
		r.HostIP = nth(c.s.podNet(), 1).String()
	}
	for _, p := range c.procs {
		r.Children[p.name] = p.cmd.Process.Pid
	}
	return r
}

// serve waits for the end of ctx, or for a child to die.
func (c *run) serve(ctx context.Context) error {
	dead := make(chan *process, len(c.procs))
	for _, p := range c.procs {
		go func() {
			<-p.done
			dead <- p
		}()
	}
	select {
	case <-ctx.Done():
		return nil
	case p := <-dead:
		return p.ended()
	}
}

// nodeObject is the node every cluster starts with. A test of a cluster with
// simulated nodes may create more: kwok plays all of them.
func nodeObject(name string) map[string]any {
	return map[string]any{
		"apiVersion": "v1",
		"kind":       "Node",
		"metadata": map[string]any{
			"name": name,
			"labels": map[string]string{
				"kubernetes.io/hostname": name,
				"kubernetes.io/os":       runtime.GOOS,
				"kubernetes.io/arch":     runtime.GOARCH,
			},
		},
	}
}
