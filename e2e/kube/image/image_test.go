package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	for ref, want := range map[string]string{
		"hello":               "docker.io/library/hello:latest",
		"hello:1":             "docker.io/library/hello:1",
		"shoal/agent:1":       "docker.io/shoal/agent:1",
		"shoal.dev/agent":     "shoal.dev/agent:latest",
		"localhost/agent:1":   "localhost/agent:1",
		"127.0.0.1:5000/a/b":  "127.0.0.1:5000/a/b:latest",
		"registry:5000/a/b:2": "registry:5000/a/b:2",
	} {
		if got := Name(ref); got != want {
			t.Errorf("Name(%q) = %q, want %q", ref, got, want)
		}
	}
}

func TestPack(t *testing.T) {
	binary := build(t, "../pause")
	archive, err := Pack("shoal.dev/hello:1", binary)
	if err != nil {
		t.Fatal(err)
	}
	files := untar(t, archive)
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if got := manifest[0].RepoTags[0]; got != "shoal.dev/hello:1" {
		t.Errorf("tag = %q", got)
	}
	var config struct {
		Config struct{ Entrypoint []string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(files[manifest[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	layer := files[manifest[0].Layers[0]]
	if got, want := config.RootFS.DiffIDs[0], "sha256:"+digest(layer); got != want {
		t.Errorf("diff id = %s, layer's digest = %s", got, want)
	}
	want, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	if got := untar(t, layer)[strings.TrimPrefix(config.Config.Entrypoint[0], "/")]; !bytes.Equal(got, want) {
		t.Errorf("the entrypoint %s is not the binary", config.Config.Entrypoint)
	}

	copied := filepath.Join(t.TempDir(), "other-name")
	if err := os.WriteFile(copied, want, 0o700); err != nil {
		t.Fatal(err)
	}
	again, err := Pack("shoal.dev/hello:1", copied)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(archive, again) {
		t.Error("the archive depends on more than name and content")
	}
}

func TestPackRefusesWhatCannotRun(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err) // every machine that runs these tests has one
	}
	if _, err := Pack("a", sh); !errors.Is(err, ErrDynamic) {
		t.Errorf("Pack(dynamic binary) = %v, want %v", err, ErrDynamic)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Pack("a", script); err == nil {
		t.Error("Pack(script) = nil, want an error")
	}
}

func build(t *testing.T, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "binary")
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, b)
	}
	return out
}

func untar(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}
