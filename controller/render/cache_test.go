package render_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/render"
)

func newCache(t *testing.T, o render.CacheOptions) *render.Cache {
	t.Helper()
	o.Warn = func(err error) { t.Error(err) }
	c, err := render.NewCache(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// random gives other bytes for another n.
func random(n int) render.Input {
	in := siteChart("", "  random: {{ randAlphaNum 16 }}\n")
	in.Options.Helm = &v1alpha1.HelmOptions{ValuesFrom: nil, Values: v1alpha1.Values{"n": int64(n)}, RandomSeed: strconv.Itoa(n)}
	return in
}

// TestDiskCache: after a restart nothing is rendered again, and a random function gives no new release.
func TestDiskCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rendered")
	first := newCache(t, render.CacheOptions{Dir: dir})
	a, err := first.Render(random(1))
	if err != nil {
		t.Fatal(err)
	}
	again := newCache(t, render.CacheOptions{Dir: dir})
	b, err := again.Render(random(1))
	if err != nil {
		t.Fatal(err)
	}
	if b.Bundle.Digest() != a.Bundle.Digest() || again.Renders() != 0 {
		t.Errorf("another result after a restart, in %d renderings", again.Renders())
	}
	if d := cmp.Diff(a.Notes, b.Notes); d != "" || len(b.Notes) == 0 {
		t.Errorf("notes (-before +after)\n%s", d)
	}
	if c, err := again.Render(random(2)); err != nil || c.Bundle.Digest() == a.Bundle.Digest() || again.Renders() != 1 {
		t.Errorf("another input is the same result: %v", err)
	}
	for _, f := range files(t, dir) {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, but it may hold Secrets: %v", f, info.Mode(), err)
		}
	}
}

// TestDiskCacheKeepsHandling: what stands in the index comes back too.
func TestDiskCacheKeepsHandling(t *testing.T) {
	dir := t.TempDir()
	in := siteChart("host: a\n", "  host: {{ .Values.host }}\n")
	a, err := newCache(t, render.CacheOptions{Dir: dir}).Render(in)
	if err != nil {
		t.Fatal(err)
	}
	again := newCache(t, render.CacheOptions{Dir: dir})
	b, err := again.Render(in)
	if err != nil || again.Renders() != 0 {
		t.Fatalf("%d renderings, %v", again.Renders(), err)
	}
	if d := cmp.Diff(a.Bundle.Handling(), b.Bundle.Handling()); d != "" || b.Bundle.Handling().IsZero() {
		t.Errorf("(-before +after)\n%s", d)
	}
}

// TestDamagedDiskCache: a file that was cut, changed or emptied is rendered again and replaced.
func TestDamagedDiskCache(t *testing.T) {
	dir := t.TempDir()
	if _, err := newCache(t, render.CacheOptions{Dir: dir}).Render(random(1)); err != nil {
		t.Fatal(err)
	}
	file := files(t, dir)[0]
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(whole)
	changed[len(changed)-20] ^= 1
	for name, damage := range map[string][]byte{
		"empty": nil, "cut": whole[:len(whole)-1], "magic only": whole[:17], "changed": changed,
		"other version": bytes.Replace(whole, []byte("rendered 1"), []byte("rendered 2"), 1), "longer": append(bytes.Clone(whole), 0),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(file, damage, 0o600); err != nil {
				t.Fatal(err)
			}
			c := newCache(t, render.CacheOptions{Dir: dir})
			r, err := c.Render(random(1))
			if err != nil || c.Renders() != 1 {
				t.Fatalf("%d renderings, %v", c.Renders(), err)
			}
			if again, err := newCache(t, render.CacheOptions{Dir: dir}).Render(random(1)); err != nil || again.Bundle.Digest() != r.Bundle.Digest() {
				t.Errorf("the file was not replaced: %v", err)
			}
		})
	}
}

// TestDiskCacheIsBounded: what was used longest ago goes first, when it opens too; half-written files go.
func TestDiskCacheIsBounded(t *testing.T) {
	dir := t.TempDir()
	c := newCache(t, render.CacheOptions{Dir: dir})
	for i := range 8 {
		before := files(t, dir)
		if _, err := c.Render(random(i)); err != nil {
			t.Fatal(err)
		}
		for _, f := range files(t, dir) {
			if !slices.Contains(before, f) {
				old := time.Date(2026, 1, 1, i, 0, 0, 0, time.UTC)
				if err := os.Chtimes(f, old, old); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	info, err := os.Stat(files(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tmp-123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	small := newCache(t, render.CacheOptions{Dir: dir, DiskSize: 5 * info.Size()})
	if n := len(files(t, dir)); n != 4 {
		t.Errorf("%d files are left of 8, want 4: nine tenths of what fits 5", n)
	}
	for _, i := range []int{7, 4, 0} {
		if _, err := small.Render(random(i)); err != nil {
			t.Fatal(err)
		}
	}
	if small.Renders() != 1 {
		t.Errorf("%d renderings: 4 to 7 were used last and are still there, 0 is not", small.Renders())
	}
	for i := 10; i < 20; i++ {
		if _, err := small.Render(random(i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(files(t, dir)); n > 5 {
		t.Errorf("%d files, but 5 fit", n)
	}
}

// TestDiskCacheFails: a full or vanished disk costs the cache, not the rendering.
func TestDiskCacheFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rendered")
	var warned error
	c, err := render.NewCache(render.CacheOptions{Dir: dir, Warn: func(err error) { warned = err }})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Render(random(1)); err != nil {
		t.Errorf("got %v", err)
	}
	if !errors.Is(warned, os.ErrNotExist) {
		t.Errorf("warned %v", warned)
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}
