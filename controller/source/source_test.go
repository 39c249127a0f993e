package source_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/source"
	"shoal.dev/shoal/internal/cases"
)

// TestDir runs testdata/*.txtar: the files of a directory; want is the Bundle as YAML (its files by name only), or the
// problems.
func TestDir(t *testing.T) {
	cases.Run(t, "testdata/*.txtar", func(t *testing.T, files []txtar.File) string { return read(t, unpack(t, files)) })
}

// TestFields runs testdata/fields/*.txtar, a file for every field: accepted, in a target, refused. What is below elsewhere/ is the
// chart that every address leads to; without it nothing is fetched.
func TestFields(t *testing.T) {
	cases.Run(t, "testdata/fields/*.txtar", func(t *testing.T, files []txtar.File) string {
		var s shelf
		dir := unpack(t, slices.DeleteFunc(slices.Clone(files), func(f txtar.File) bool {
			name, ok := strings.CutPrefix(f.Name, "elsewhere/")
			if ok {
				if s.files == nil {
					s.files = map[string][]byte{}
				}
				s.files[name] = f.Data
			}
			return ok
		}))
		if s.files == nil {
			return read(t, dir)
		}
		b, err := source.Dir(t.Context(), dir, source.Options{Charts: &s})
		if err != nil {
			return message(err, dir)
		}
		return text(t, b)
	})
}

// Test2020 runs testdata/2020/*.txtar: directories with a bundle.yaml.
func Test2020(t *testing.T) {
	cases.Run(t, "testdata/2020/*.txtar", func(t *testing.T, files []txtar.File) string { return read(t, unpack(t, files)) })
}

// TestTree runs testdata/tree/*.txtar: want is every Bundle in the tree, and the problems.
func TestTree(t *testing.T) {
	cases.Run(t, "testdata/tree/*.txtar", func(t *testing.T, files []txtar.File) string {
		dir := unpack(t, files)
		return readTree(t, dir, source.Options{Base: "repo"})
	})
}

// TestPaths runs testdata/paths/*.txtar: as TestTree, with the paths in the file PATHS.
func TestPaths(t *testing.T) {
	cases.Run(t, "testdata/paths/*.txtar", func(t *testing.T, files []txtar.File) string {
		o := source.Options{Base: "repo"}
		for _, f := range files {
			if f.Name == "PATHS" {
				o.Paths = strings.Fields(string(f.Data))
			}
		}
		return readTree(t, unpack(t, files), o)
	})
}

func readTree(t *testing.T, dir string, o source.Options) string {
	found, ps, err := source.Tree(t.Context(), dir, o)
	var out strings.Builder
	if err != nil {
		return message(err, dir)
	}
	for _, p := range ps {
		if p.Warning {
			out.WriteString(p.Error() + "\n")
		} else {
			out.WriteString(message(p, dir))
		}
	}
	for _, f := range found {
		out.WriteString("---\n" + text(t, f.Bundle))
	}
	return out.String()
}

// unpack writes files into a new directory.
func unpack(t *testing.T, files []txtar.File) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "My_App")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		write(t, dir, f.Name, f.Data)
	}
	return dir
}

func read(t *testing.T, dir string) string {
	t.Helper()
	found, ps, err := source.Tree(t.Context(), dir, source.Options{})
	if err == nil {
		err = ps.Err()
	}
	if err != nil {
		return message(err, dir)
	}
	var out strings.Builder
	for _, p := range ps {
		out.WriteString(p.Error() + "\n")
	}
	if len(found) != 1 {
		t.Fatalf("%d bundles", len(found))
	}
	return out.String() + text(t, found[0].Bundle)
}

// message is an error with one problem a line.
func message(err error, dir string) string {
	return "error: " + strings.ReplaceAll(strings.ReplaceAll(err.Error(), dir, "DIR"), "\n", "\nerror: ") + "\n"
}

func text(t *testing.T, b *v1alpha1.Bundle) string {
	t.Helper()
	var names []string
	for _, r := range b.Spec.Resources {
		names = append(names, r.Name)
	}
	b.Spec.Resources = nil
	out, err := yaml.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(out) + "# files: " + strings.Join(names, " ") + "\n"
}

func write(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	p := filepath.Join(dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"

func wantError(t *testing.T, dir string, parts ...string) {
	t.Helper()
	_, err := source.Dir(t.Context(), dir, source.Options{Name: "web"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

func TestSymlinks(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, "secret.yaml", []byte(configMap))
	t.Run("inside is followed", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "real/a.yaml", []byte(configMap))
		if err := os.Symlink("real/a.yaml", filepath.Join(dir, "b.yaml")); err != nil {
			t.Fatal(err)
		}
		b, err := source.Dir(t.Context(), dir, source.Options{Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		if len(b.Spec.Resources) != 2 || b.Spec.Resources[0].Name != "b.yaml" || b.Spec.Resources[0].Content != configMap {
			t.Errorf("got %+v", b.Spec.Resources)
		}
	})
	for name, to := range map[string]string{
		"absolute":  filepath.Join(outside, "secret.yaml"),
		"directory": outside,
		"dangling":  "nowhere.yaml",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "a.yaml", []byte(configMap))
			if err := os.Symlink(to, filepath.Join(dir, "link.yaml")); err != nil {
				t.Fatal(err)
			}
			wantError(t, dir, "link.yaml: symbolic link", to)
		})
	}
	t.Run("relative out", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "in/a.yaml", []byte(configMap))
		write(t, dir, "out.yaml", []byte(configMap))
		if err := os.Symlink("../out.yaml", filepath.Join(dir, "in", "link.yaml")); err != nil {
			t.Fatal(err)
		}
		wantError(t, filepath.Join(dir, "in"), "link.yaml: symbolic link", "../out.yaml")
	})
	t.Run("circle", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "a.yaml", []byte(configMap))
		if err := os.Symlink(".", filepath.Join(dir, "again")); err != nil {
			t.Fatal(err)
		}
		wantError(t, dir, "circles")
	})
}

func TestSizes(t *testing.T) {
	t.Run("large text is compressed", func(t *testing.T) {
		dir := t.TempDir()
		big := strings.Repeat("# the same line again and again\n", 60_000) // 1.9 MB
		write(t, dir, "a.yaml", []byte(configMap+big))
		b, err := source.Dir(t.Context(), dir, source.Options{Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		r := b.Spec.Resources[0]
		if r.Encoding != "base64+gz" || len(r.Content) > 100_000 {
			t.Errorf("encoding %q, %d bytes", r.Encoding, len(r.Content))
		}
		if data, err := r.Decode(4 << 20); err != nil || string(data) != configMap+big {
			t.Errorf("does not decode to what it was: %v", err)
		}
		if _, err := r.Decode(1000); err == nil {
			t.Error("decoded more than allowed")
		}
	})
	t.Run("binary", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "logo.png", []byte{0x89, 'P', 'N', 'G', 0, 1, 2})
		write(t, dir, "a.yaml", []byte(configMap))
		b, err := source.Dir(t.Context(), dir, source.Options{Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		if data, err := b.Spec.Resources[1].Decode(100); err != nil || len(data) != 7 {
			t.Errorf("got %q, %v", data, err)
		}
	})
	t.Run("bundle over the limit", func(t *testing.T) {
		dir := t.TempDir()
		noise := make([]byte, 900<<10)
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range noise {
			noise[i] = byte(rng.UintN(256))
		}
		write(t, dir, "charts/huge.tgz", noise)
		write(t, dir, "a.yaml", []byte(configMap))
		wantError(t, dir, "the limit is 1048576", "charts/huge.tgz", "split the directory")
	})
	t.Run("file over the limit", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "core.dump", make([]byte, source.MaxFile+1))
		wantError(t, dir, "core.dump: file has 8388609 bytes")
	})
	t.Run("too many files", func(t *testing.T) {
		dir := t.TempDir()
		for i := range source.MaxFiles + 1 {
			write(t, dir, fmt.Sprintf("f%d.yaml", i), nil)
		}
		wantError(t, dir, "more than 4000 files")
	})
	t.Run("alias bomb", func(t *testing.T) {
		dir := t.TempDir()
		var b strings.Builder
		b.WriteString("helm:\n  values:\n    a0: &a0 [x]\n")
		for i := range 30 {
			fmt.Fprintf(&b, "    a%d: &a%d [*a%d, *a%d]\n", i+1, i+1, i, i)
		}
		write(t, dir, "fleet.yaml", []byte(b.String()))
		write(t, dir, "a.yaml", []byte(configMap))
		wantError(t, dir, "fleet.yaml: holds more than 100000 values")
	})
	t.Run("deep nesting", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "fleet.yaml", []byte("helm: {values: "+strings.Repeat("{a: ", 100)+"1"+strings.Repeat("}", 100)+"}"))
		write(t, dir, "a.yaml", []byte(configMap))
		wantError(t, dir, "fleet.yaml:1: nested deeper than 64")
	})
}

// TestFleetNames: dependsOn of other bundles holds the names that Fleet gave.
func TestFleetNames(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"driven2/kustomize/fleetDev.yaml", "driven2/kustomize/fleetProd.yaml", "driven_fleet_yaml_subfolder/helm/test/fleet.yaml"} {
		write(t, dir, f, nil)
	}
	for _, c := range []struct{ dir, options, want string }{
		{"driven2/kustomize", "fleetDev.yaml", "assets-driven2-kustomize-fleetdev-2946f474"},
		{"driven2/kustomize", "fleetProd.yaml", "assets-driven2-kustomize-fleetprod-99f597b0"},
		{"driven_fleet_yaml_subfolder/helm", "test/fleet.yaml", "assets-driven-fleet-yaml-subfolder-helm-test-fl-b676f"},
		{"driven_fleet_yaml_subfolder/helm", "", "assets-driven-fleet-yaml-subfolder-helm-f49dc35c"},
	} {
		write(t, dir, c.dir+"/a.yaml", []byte(configMap))
		b, err := source.Driven(t.Context(), dir, c.dir, c.options, source.Options{Base: "assets"})
		if err != nil || b.Name != c.want {
			t.Errorf("%s: %v, %v", c.want, b, err)
		}
	}
}

func TestName(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "fleet.yaml", []byte("name: from-file\n"))
	write(t, dir, "a.yaml", []byte(configMap))
	for given, want := range map[string]string{"": "from-file", "given": "given"} {
		if b, err := source.Dir(t.Context(), dir, source.Options{Name: given}); err != nil || b.Name != want {
			t.Errorf("%q: got %v, %v", given, b, err)
		}
	}
	if _, err := source.Dir(t.Context(), dir, source.Options{Name: "Not_A_Name"}); err == nil {
		t.Error("bad name accepted")
	}
	if _, err := source.Dir(t.Context(), filepath.Join(dir, "missing"), source.Options{Name: "x"}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
}
