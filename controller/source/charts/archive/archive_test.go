package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const meta = "apiVersion: v2\nname: web\nversion: 1.2.3+b4\n"

// pack makes an archive; a header's Size is that of the text.
func pack(t testing.TB, entries ...any) []byte {
	t.Helper()
	var buf bytes.Buffer
	zw, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	tw := tar.NewWriter(zw)
	for i := 0; i < len(entries); i += 2 {
		h, ok := entries[i].(tar.Header)
		if !ok {
			h = tar.Header{Name: entries[i].(string), Typeflag: tar.TypeReg, Mode: 0o644}
		}
		body := entries[i+1].(string)
		h.Size = int64(len(body))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	for name, data := range map[string][]byte{
		"as helm packs": pack(t, "web/Chart.yaml", meta, "web/templates/a.yaml", "a: 1\n"),
		"as tar packs":  pack(t, tar.Header{Name: "./web/", Typeflag: tar.TypeDir}, "", "./web/templates/a.yaml", "a: 1\n", "./web/Chart.yaml", meta),
		"from Windows":  pack(t, `web\Chart.yaml`, meta, `web\templates\a.yaml`, "a: 1\n"),
		"as git packs":  pack(t, tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, "", "web/Chart.yaml", meta, "web/templates/a.yaml", "a: 1\n"),
	} {
		c, err := Unpack(data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := Chart{Name: "web", Version: "1.2.3+b4", Files: map[string][]byte{"Chart.yaml": []byte(meta), "templates/a.yaml": []byte("a: 1\n")}}
		if d := cmp.Diff(want, c); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	good := pack(t, "web/Chart.yaml", meta, "web/values.yaml", strings.Repeat("a: 1\n", 100))
	flipped := slices.Clone(good)
	flipped[len(flipped)/2] ^= 0x40
	many := make([]any, 0, 2*(MaxFiles+1))
	for i := range MaxFiles + 1 {
		many = append(many, fmt.Sprintf("web/f%d", i), "")
	}
	zeros := strings.Repeat("\x00", 7<<20)
	long := strings.Repeat("d/", maxPath/2) + "f"
	pax := make([]any, 0, 90)
	for i := range 45 { // hidden bulk: not in files, but in headers
		pax = append(pax, tar.Header{Name: fmt.Sprintf("web/%d", i), Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SHOAL.x": zeros[:1000<<10]}}, "")
	}
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"nothing", nil, "not a .tgz file"},
		{"HTML", []byte("<html>sign in</html>"), "not a .tgz file"},
		{"cut", good[:len(good)-20], "damaged or incomplete"},
		{"cut before the checksum", good[:len(good)-8], "damaged or incomplete"},
		{"flipped bit", flipped, "damaged or incomplete"},
		{"traversal", pack(t, "web/Chart.yaml", meta, "web/../../etc/passwd", "x"), "leads out of the chart"},
		{"traversal that stays inside", pack(t, "web/Chart.yaml", meta, "web/a/../b", "x"), "leads out of the chart"},
		{"traversal of Windows", pack(t, "web/Chart.yaml", meta, `web\..\..\x`, "x"), "leads out of the chart"},
		{"absolute", pack(t, "/web/Chart.yaml", meta), "leads out of the chart"},
		{"drive", pack(t, `C:\web\Chart.yaml`, meta), "leads out of the chart"},
		{"link", pack(t, "web/Chart.yaml", meta, tar.Header{Name: "web/values.yaml", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, ""), "is a link"},
		{"hard link", pack(t, "web/Chart.yaml", meta, tar.Header{Name: "web/values.yaml", Typeflag: tar.TypeLink, Linkname: "web/Chart.yaml"}, ""), "is a link"},
		{"device", pack(t, tar.Header{Name: "web/null", Typeflag: tar.TypeChar}, ""), "neither a file nor a directory"},
		{"control character", pack(t, "web/a\nb", meta), "not allowed"},
		{"long path", pack(t, long, ""), "the limit is 1024"},
		{"twice", pack(t, "web/Chart.yaml", meta, "web/Chart.yaml", meta), "appears twice"},
		{"twice, by another name", pack(t, "web/Chart.yaml", meta, "./web/Chart.yaml", meta), "appears twice"},
		{"file and directory", pack(t, "web/Chart.yaml", meta, "web/a", "", "web/a/b", ""), "is a file and a directory"},
		{"many files", pack(t, many...), "more than 4000 files"},
		{"large file", pack(t, "web/Chart.yaml", meta, "web/x", zeros+zeros), "the limit is 8388608"},
		{"bomb", pack(t, "web/1", zeros, "web/2", zeros, "web/3", zeros, "web/4", zeros), "more than 25165824 bytes in all"},
		{"bomb of headers", pack(t, pax...), "it unpacks to more than"},
		{"bomb behind the end", append(pack(t, "web/Chart.yaml", meta), zip(t, 44<<20)...), "it unpacks to more than"},
		{"large archive", slices.Concat(good, make([]byte, MaxPacked)), "the limit is 16777216"},
		{"no directory", pack(t, "Chart.yaml", meta), "Chart.yaml is not in a directory"},
		{"no chart", pack(t, "web/values.yaml", ""), "there is no Chart.yaml"},
		{"two charts", pack(t, "web/Chart.yaml", meta, "other/values.yaml", ""), "has the directories web and other"},
		{"name", pack(t, "web/Chart.yaml", "name: ../x\nversion: 1.0.0\n"), `name "../x"`},
		{"version", pack(t, "web/Chart.yaml", "name: x\nversion: latest\n"), `version "latest"`},
		{"no YAML", pack(t, "web/Chart.yaml", "{"), "Chart.yaml: "},
	} {
		_, err := Unpack(tt.data)
		switch {
		case err == nil:
			t.Errorf("%s: accepted", tt.name)
		case !strings.Contains(err.Error(), tt.want):
			t.Errorf("%s: got %q, want %q in it", tt.name, err, tt.want)
		case strings.Contains(err.Error(), "\n"):
			t.Errorf("%s: more than one line: %q", tt.name, err)
		}
	}
}

// zip is n zero bytes.
func zip(t testing.TB, n int64) []byte {
	var buf bytes.Buffer
	zw, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if _, err := zw.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// FuzzUnpack: whatever the bytes, only plain paths inside the chart come out, within the limits.
func FuzzUnpack(f *testing.F) {
	f.Add(pack(f, "web/Chart.yaml", meta, "web/templates/a.yaml", "a: 1\n"), false)
	f.Add(pack(f, "web/Chart.yaml", meta, tar.Header{Name: "web/x", Typeflag: tar.TypeSymlink, Linkname: ".."}, ""), false)
	f.Add([]byte("\x1f\x8b"), false)
	raw := new(bytes.Buffer)
	tw := tar.NewWriter(raw)
	_ = tw.WriteHeader(&tar.Header{Name: "web/Chart.yaml", Typeflag: tar.TypeReg, Size: int64(len(meta))})
	_, _ = tw.Write([]byte(meta))
	_ = tw.Close()
	f.Add(raw.Bytes(), true) // so that changes reach the tar and not only gzip's checksum
	f.Fuzz(func(t *testing.T, data []byte, isTar bool) {
		if isTar {
			var buf bytes.Buffer
			zw, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
			_, _ = zw.Write(data)
			_ = zw.Close()
			data = buf.Bytes()
		}
		c, err := Unpack(data)
		if err != nil {
			return
		}
		total := 0
		for _, name := range slices.Sorted(maps.Keys(c.Files)) {
			total += len(c.Files[name])
			if strings.HasPrefix(name, "/") || strings.Contains("/"+name+"/", "/../") || strings.ContainsAny(name, "\x00\\") || name == "" {
				t.Fatalf("path %q", name)
			}
		}
		if total > MaxUnpacked || len(c.Files) > MaxFiles {
			t.Fatalf("%d files with %d bytes", len(c.Files), total)
		}
		if !ValidName(c.Name) {
			t.Fatalf("name %q", c.Name)
		}
	})
}
