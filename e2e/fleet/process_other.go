//go:build !linux

package fleet

import (
	"os/exec"
	"syscall"
)

// apart keeps an interrupt typed at the terminal from the child, which is stopped in order instead. Outside of Linux a child
// outlives a parent that is killed.
func apart(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
