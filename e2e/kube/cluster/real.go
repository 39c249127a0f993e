package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"shoal.dev/shoal/e2e/kube/image"
)

// maxRealDir leaves room for the sockets that the kubelet makes below Dir.
const maxRealDir = 70

// nodeNamespaces hold the kubelet, containerd and all containers. When the first
// process of the PID namespace ends, the kernel kills the rest, and the mounts
// go with the last of them: whatever happens, nothing is left running.
const nodeNamespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS

// bridge names the network interface that the cluster's Pods hang on.
func (s state) bridge() string { return "shoal" + strconv.Itoa(s.Net) }

// network makes the bridge before anything needs it, and the address under
// which Pods know the API server. There is no kube-proxy: the ClusterIP of the
// Service "kubernetes" is an address of the bridge and forwards to the server,
// other ClusterIPs lead nowhere.
func (c *run) network() error {
	bridge, gateway, service := c.s.bridge(), nth(c.s.podNet(), 1), nth(c.s.serviceNet(), 1)
	exec.Command("ip", "link", "del", bridge).Run() // left by a run that was killed
	for _, args := range [][]string{
		{"link", "add", bridge, "type", "bridge"},
		{"addr", "add", gateway.String() + "/24", "dev", bridge},
		{"addr", "add", service.String() + "/32", "dev", bridge},
		{"link", "set", bridge, "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
		if args[1] == "add" && args[0] == "link" {
			c.cleanups = append(c.cleanups, func() { exec.Command("ip", "link", "del", bridge).Run() })
		}
	}
	target := net.JoinHostPort(c.s.Listen, strconv.Itoa(c.s.Port))
	for _, addr := range []string{
		net.JoinHostPort(service.String(), "443"),
		net.JoinHostPort(gateway.String(), strconv.Itoa(c.s.Port)),
	} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("give Pods the API server: %w", err)
		}
		c.cleanups = append(c.cleanups, func() { l.Close() })
		go forward(l, target)
	}
	return nil
}

// forward copies connections to target until l is closed.
func forward(l net.Listener, target string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := net.Dial("tcp", target)
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				io.Copy(out, in)
				out.(*net.TCPConn).CloseWrite()
			}()
			io.Copy(in, out)
		}()
	}
}

// startRealNode starts the process that becomes the node (RunNode).
func (c *run) startRealNode() error {
	if err := c.sandboxImage(); err != nil {
		return err
	}
	removeCgroups(c.o.Dir) // of a run that was killed
	c.cleanups = append(c.cleanups, func() { removeCgroups(c.o.Dir) })
	return c.startChild(spec{
		name: "node",
		args: []string{"node", "--dir", c.o.Dir},
		attr: func(a *syscall.SysProcAttr) { a.Cloneflags = nodeNamespaces },
	}, 5*time.Second)
}

// sandboxName is the image of the container that holds a Pod's namespaces.
const sandboxName = "shoal.dev/pause:1"

func (c *run) sandboxImage() error {
	pause := c.o.Pause
	if pause == "" {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		pause = filepath.Join(filepath.Dir(exe), "shoal-pause")
	}
	archive, err := image.Pack(sandboxName, pause)
	if err != nil {
		return fmt.Errorf("sandbox image: %w (build it: CGO_ENABLED=0 go build -o %s ./pause)", err, pause)
	}
	if err := os.MkdirAll(c.path("node"), 0o700); err != nil {
		return err
	}
	return writeFile(c.path("node/pause.tar"), archive)
}

// removeCgroups removes the empty control groups that killed containers leave
// behind. containerd names them after its containers: k8s.io/ID, in version 2's
// hierarchy or in each of version 1.
func removeCgroups(dir string) {
	ids, _ := filepath.Glob(filepath.Join(dir, "node/containerd/io.containerd.grpc.v1.cri/*/*"))
	parents, _ := filepath.Glob("/sys/fs/cgroup/*/k8s.io")
	for _, parent := range append(parents, "/sys/fs/cgroup/k8s.io") {
		for _, id := range ids {
			removeEmptyDirs(filepath.Join(parent, filepath.Base(id)))
		}
		syscall.Rmdir(parent) // refused while it is another cluster's, too
	}
}

// removeEmptyDirs removes a tree of control groups: their files do not count.
func removeEmptyDirs(root string) {
	var dirs []string
	filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		syscall.Rmdir(dir)
	}
}

// ctr runs containerd's client on the cluster's containerd.
func ctr(ctx context.Context, dir string, args ...string) ([]byte, error) {
	args = append([]string{"--address", filepath.Join(dir, "run/containerd.sock"), "--namespace", "k8s.io"}, args...)
	out, err := exec.CommandContext(ctx, "ctr", args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("ctr %s: %w: %s", strings.Join(args[4:], " "), err, strings.TrimSpace(string(out)))
	}
	return out, nil
}

// Load imports an image archive, as made by package image or by "docker save",
// into the running cluster in dir.
func Load(ctx context.Context, dir, file string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "run/containerd.sock")); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s: no containerd is running here: start the cluster with shoal-kube up --nodes real --dir %s", dir, dir)
	}
	out, err := ctr(ctx, dir, "images", "import", "--all-platforms", file)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(out)), nil
}
