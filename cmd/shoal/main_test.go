package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"shoal.dev/shoal/internal/cases"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"shoal": main})
}

// TestScripts runs testdata/*.txtar: command lines that need no server.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       cases.Update(),
		Setup: func(e *testscript.Env) error {
			e.Setenv("KUBECONFIG", "")
			e.Setenv("HOME", e.WorkDir)
			return nil
		},
	})
}
