package fleet

import (
	"os/exec"
	"syscall"
)

// apart keeps an interrupt typed at the terminal from the child, which is stopped in order instead, and ends it when the thread
// that started it does: even SIGKILL leaves nothing behind.
func apart(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
