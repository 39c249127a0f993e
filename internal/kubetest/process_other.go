//go:build !unix

package kubetest

import (
	"context"
	"errors"
	"io"
	"os/exec"
)

func lockFile(context.Context, string, io.Writer) (func(), error) {
	return nil, errors.New("test clusters need Linux")
}

func ownGroup(*exec.Cmd) {}
