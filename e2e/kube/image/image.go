// Package image packs one static binary as a container image.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// ErrDynamic means that the binary needs a dynamic linker, which the image does
// not have.
var ErrDynamic = errors.New("binary is not static: build it with CGO_ENABLED=0")

// Name completes a reference the way container runtimes do: hello:1 is
// docker.io/library/hello:1, and without a tag it is latest.
func Name(ref string) string {
	first, _, hasSlash := strings.Cut(ref, "/")
	switch {
	case !hasSlash:
		ref = "docker.io/library/" + ref
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		ref = "docker.io/" + ref
	}
	if i := strings.LastIndex(ref, ":"); i < strings.LastIndex(ref, "/") {
		ref += ":latest"
	}
	return ref
}

// Pack returns an archive in the format of "docker save" with one image, called
// ref, that consists of the binary as /app and runs it. The bytes depend on ref
// and the binary alone.
func Pack(ref, binary string) ([]byte, error) {
	arch, err := architecture(binary)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", binary, err)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	layer, err := archive(
		file{"tmp/", nil, 0o1777},
		file{"app", program, 0o755},
	)
	if err != nil {
		return nil, err
	}
	type object = map[string]any
	config, err := json.Marshal(object{
		"architecture": arch,
		"os":           "linux",
		"created":      time.Unix(0, 0).UTC(),
		"config":       object{"Entrypoint": []string{"/app"}, "Env": []string{"PATH=/"}, "WorkingDir": "/"},
		"rootfs":       object{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
		"history":      []object{{"created": time.Unix(0, 0).UTC(), "created_by": "shoal-kube image"}},
	})
	if err != nil {
		return nil, err
	}
	configName := digest(config) + ".json"
	manifest, err := json.Marshal([]object{{
		"Config": configName, "RepoTags": []string{Name(ref)}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return nil, err
	}
	return archive(
		file{"manifest.json", manifest, 0o644},
		file{configName, config, 0o644},
		file{"layer.tar", layer, 0o644},
	)
}

// architecture names the processor a static ELF binary is for.
func architecture(binary string) (string, error) {
	f, err := elf.Open(binary)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", ErrDynamic
		}
	}
	switch f.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("architecture %s: want x86-64 or arm64", f.Machine)
}

type file struct {
	name string // ends with / for a directory
	data []byte
	mode int64
}

func archive(files ...file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{
			Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: time.Unix(0, 0),
			Typeflag: tar.TypeReg, Format: tar.FormatUSTAR,
		}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
