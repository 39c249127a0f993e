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

func freeze(int) error { return errors.ErrUnsupported }
func thaw(int) error   { return errors.ErrUnsupported }
