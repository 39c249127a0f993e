package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A MissingError says what this machine lacks for real nodes, one sentence each.
type MissingError struct{ What []string }

func (e *MissingError) Error() string {
	return "real nodes are impossible on this machine:\n  - " + strings.Join(e.What, "\n  - ")
}

// Preflight tells whether a cluster with real nodes can run here; if not, the
// error is a *MissingError.
func Preflight() error {
	var e MissingError
	missing := func(format string, args ...any) { e.What = append(e.What, fmt.Sprintf(format, args...)) }

	if os.Geteuid() != 0 {
		missing("needs root: containerd mounts file systems and makes namespaces")
	} else if err := tryNamespaces(); err != nil {
		missing("needs a root that may make PID and mount namespaces (a container must be privileged): %v", err)
	}
	var programs, packages []string
	need := func(found error, program, pkg string) {
		if found == nil {
			return
		}
		programs = append(programs, program)
		if !slices.Contains(packages, pkg) {
			packages = append(packages, pkg)
		}
	}
	for _, p := range []struct{ program, pkg string }{
		{"containerd", "containerd"}, {"containerd-shim-runc-v2", "containerd"}, {"ctr", "containerd"},
		{"runc", "runc"}, {"ip", "iproute2"},
	} {
		_, err := exec.LookPath(p.program)
		need(err, p.program, p.pkg)
	}
	_, err := cniDir()
	need(err, "the CNI plugins", "containernetworking-plugins")
	if len(programs) > 0 {
		missing("%s not found: apt-get install %s", strings.Join(programs, ", "), strings.Join(packages, " "))
	}
	if len(e.What) > 0 {
		return &e
	}
	return nil
}

// tryNamespaces starts a process in the namespaces that a node gets.
func tryNamespaces() error {
	exe, err := exec.LookPath("true")
	if err != nil {
		return err
	}
	cmd := exec.Command(exe)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: nodeNamespaces}
	return cmd.Run()
}

// cniDir finds the network plugins: where Debian puts them, or where everyone
// else does.
func cniDir() (string, error) {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		var errs error
		for _, plugin := range []string{"bridge", "host-local", "loopback"} {
			_, err := os.Stat(filepath.Join(dir, plugin))
			errs = errors.Join(errs, err)
		}
		if errs == nil {
			return dir, nil
		}
	}
	return "", errors.New("CNI plugins not found in /usr/lib/cni or /opt/cni/bin: apt-get install containernetworking-plugins")
}
