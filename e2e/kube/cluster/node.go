package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// RunNode is the first process in the namespaces of a real node: it starts
// containerd and the kubelet of the cluster in dir and serves until ctx ends. Up
// starts it; it is of no use by itself.
func RunNode(ctx context.Context, dir string) error {
	runtime.LockOSThread() // see start
	if os.Getpid() != 1 {
		return errors.New(`this command is for "up --nodes real", which runs it in namespaces of its own`)
	}
	var s state
	b, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if err := isolateMounts(); err != nil {
		return err
	}
	if err := writeNodeConfig(dir, s); err != nil {
		return err
	}
	var own []*process
	defer func() {
		for _, p := range own {
			p.stop(time.Second)
		}
	}()

	logs := filepath.Join(dir, "logs")
	containerd, err := start(logs, spec{
		name: "containerd", exe: "containerd", env: goEnv(96),
		args: []string{"--config", filepath.Join(dir, "node/containerd.toml")},
	})
	if err != nil {
		return err
	}
	own = append(own, containerd)
	err = poll(ctx, "containerd", own, func() error {
		_, err := ctr(ctx, dir, "version")
		return err
	})
	if err != nil {
		return err
	}
	if _, err := ctr(ctx, dir, "images", "import", "--all-platforms", filepath.Join(dir, "node/pause.tar")); err != nil {
		return err
	}
	kubelet, err := start(logs, spec{
		name: "kubelet", env: goEnv(128),
		args: []string{
			"--config=" + filepath.Join(dir, "node/kubelet.json"),
			"--kubeconfig=" + filepath.Join(dir, "pki/kubelet.kubeconfig"),
			"--hostname-override=" + s.Name,
			"--node-ip=" + nth(s.podNet(), 1).String(),
			"--root-dir=" + filepath.Join(dir, "node/kubelet"),
			"--cert-dir=" + filepath.Join(dir, "node/kubelet/pki"),
		},
	})
	if err != nil {
		return err
	}
	// The kubelet first: it must not see containerd go.
	own = []*process{kubelet, containerd}

	go reap(ctx, own)
	select {
	case <-ctx.Done():
		return nil
	case <-kubelet.done:
		return kubelet.ended()
	case <-containerd.done:
		return containerd.ended()
	}
}

// isolateMounts gives the node its own /proc, and empty directories where
// containerd and the kubelet use fixed paths: this machine's own containerd or
// kubelet, if it has them, are not touched.
func isolateMounts() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range []string{"/run/containerd", "/run/netns", "/var/lib/kubelet", "/var/log/containers"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	return nil
}

func writeNodeConfig(dir string, s state) error {
	for _, d := range []string{"node/cni", "node/kubelet", "node/containerd", "logs/pods"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	cni, err := cniDir()
	if err != nil {
		return err
	}
	network, err := json.Marshal(networkConfig(dir, s))
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "node/cni/10-shoal.conflist"), network); err != nil {
		return err
	}
	kubelet, err := json.MarshalIndent(kubeletConfig(dir, s), "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "node/kubelet.json"), kubelet); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "node/containerd.toml"), []byte(containerdConfig(dir, cni)))
}

func containerdConfig(dir, cni string) string {
	snapshotter := "native" // copies; always works
	if b, err := os.ReadFile("/proc/filesystems"); err == nil && strings.Contains(string(b), "\toverlay\n") {
		snapshotter = "overlayfs"
	}
	q := strconv.Quote
	return fmt.Sprintf(`version = 2
root = %s
state = %s
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]

[grpc]
address = %s

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = %s
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = %s
conf_dir = %s

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = %s
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
`, q(filepath.Join(dir, "node/containerd")), q("/run/containerd/state"), q(filepath.Join(dir, "run/containerd.sock")),
		q(sandboxName), q(cni), q(filepath.Join(dir, "node/cni")), q(snapshotter))
}

func networkConfig(dir string, s state) map[string]any {
	type object = map[string]any
	return object{
		"cniVersion": "0.4.0",
		"name":       "shoal",
		"plugins": []object{{
			"type":      "bridge",
			"bridge":    s.bridge(),
			"isGateway": true,
			// No masquerading: Pods talk to each other and to this machine, and
			// it takes no iptables then.
			"ipMasq":      false,
			"hairpinMode": true,
			"ipam": object{
				"type":    "host-local",
				"dataDir": filepath.Join(dir, "node/ipam"),
				"ranges":  [][]object{{{"subnet": s.podNet().String(), "gateway": nth(s.podNet(), 1).String()}}},
				"routes":  []object{{"dst": "0.0.0.0/0"}},
			},
		}},
	}
}

// kubeletConfig turns off what needs control over the machine's memory, disks
// and firewall, which a test has no business with.
func kubeletConfig(dir string, s state) map[string]any {
	type object = map[string]any
	return object{
		"apiVersion":                    "kubelet.config.k8s.io/v1beta1",
		"kind":                          "KubeletConfiguration",
		"address":                       nth(s.podNet(), 1).String(),
		"port":                          10250,
		"healthzPort":                   0,
		"authentication":                object{"anonymous": object{"enabled": false}, "webhook": object{"enabled": false}, "x509": object{"clientCAFile": filepath.Join(dir, "pki/ca.crt")}},
		"authorization":                 object{"mode": "AlwaysAllow"},
		"containerRuntimeEndpoint":      "unix://" + filepath.Join(dir, "run/containerd.sock"),
		"podLogsDir":                    filepath.Join(dir, "logs/pods"),
		"volumePluginDir":               filepath.Join(dir, "node/volume-plugins"),
		"failCgroupV1":                  false,
		"failSwapOn":                    false,
		"cgroupDriver":                  "cgroupfs",
		"cgroupsPerQOS":                 false,
		"enforceNodeAllocatable":        []string{},
		"oomScoreAdj":                   0,
		"localStorageCapacityIsolation": false,
		"makeIPTablesUtilChains":        false,
		"evictionHard":                  object{"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
		"imageGCHighThresholdPercent":   100,
		"nodeStatusUpdateFrequency":     "2s",
		"kubeAPIQPS":                    100,
		"kubeAPIBurst":                  200,
	}
}

// reap collects the containers' shims, which end up as children of the first
// process, without taking the exit status of own children from their owners.
func reap(ctx context.Context, own []*process) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	defer signal.Stop(signals)
	for {
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
		entries, err := os.ReadDir("/proc")
		if err != nil {
			continue
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == own[0].cmd.Process.Pid || pid == own[1].cmd.Process.Pid {
				continue
			}
			syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // refuses what is no child
		}
	}
}
