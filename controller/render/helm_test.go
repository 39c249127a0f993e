package render

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/releaseutil"
)

// TestKindOrder compares our order of kinds with Helm's: the same, but for namespaces and CRDs, which come first.
func TestKindOrder(t *testing.T) {
	var helm []string
	for _, k := range releaseutil.InstallOrder {
		if k != "Namespace" && k != "CustomResourceDefinition" && !strings.HasSuffix(k, "List") {
			helm = append(helm, k)
		}
	}
	if d := cmp.Diff(append([]string{"Namespace", "CustomResourceDefinition"}, helm...), kindOrder()); d != "" {
		t.Error(d)
	}
}

// FuzzSplitManifests compares our way to cut rendered templates with Helm's.
func FuzzSplitManifests(f *testing.F) {
	for _, s := range []string{"", "a", "---\na", "---\n\n---\na\n--- # x\nb\n", "a\n ---\nb\n\n  \n---b", "a---\n---\n", "-----\na"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		docs := releaseutil.SplitManifests(text)
		want := make([]string, 0, len(docs))
		for i := range len(docs) {
			if d := docs[fmt.Sprintf("manifest-%d", i)]; d != "" { // of white space that regular expressions do not know
				want = append(want, d)
			}
		}
		if d := cmp.Diff(want, append([]string{}, splitManifests(text)...)); d != "" {
			t.Errorf("%q (-helm +we)\n%s", text, d)
		}
	})
}

// FuzzDocuments: splitting neither panics nor loses bytes of content, and every piece is free of markers.
func FuzzDocuments(f *testing.F) {
	for _, s := range []string{"", "a: 1\n", "---\na: 1\n---\nb: 2\n", "--- # x\na: 1\n...\n---\n", "a: |\n  ---\n  x\n", "\xef\xbb\xbf---\r\na: 1\r\n---\r\nb: 2", "--- {a: 1}\n--- {b: 2}\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs := documents(data)
		if len(docs) == 0 {
			t.Fatal("no document at all")
		}
		size := 0
		for _, d := range docs {
			size += len(d)
			for i, line := range strings.SplitAfter(string(d), "\n") {
				if i > 0 && strings.TrimRight(line, " \t\r\n") == "---" {
					t.Fatalf("a marker is left in %q", d)
				}
			}
		}
		if size > len(data) {
			t.Fatalf("%d bytes became %d", len(data), size)
		}
		r := &rendering{memory: newMemory(0), notes: map[string]bool{}}
		_ = r.addYAML("fuzz", data, true)
	})
}

// FuzzOverlay: no patch may panic or grow a file without bounds.
func FuzzOverlay(f *testing.F) {
	cm := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: y}\n"
	f.Add([]byte(cm), []byte("data: {x: z}\n"))
	f.Add([]byte(cm), []byte("- {op: replace, path: /data/x, value: z}\n"))
	f.Add([]byte("apiVersion: x/v1\nkind: X\nmetadata: {name: a}\n"), []byte("spec: {a: null}\n"))
	f.Fuzz(func(t *testing.T, base, p []byte) {
		out, err := patch(base, p)
		if err == nil && len(out) > 64*(len(base)+len(p))+(2<<20) {
			t.Fatalf("%d bytes became %d", len(base)+len(p), len(out))
		}
	})
}
