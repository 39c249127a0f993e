package render

import (
	"os"
	"strings"
	"testing"
	"time"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// TestSuspects: a bundle during whose rendering the hub ended three times is left alone for an hour, others are rendered; with
// other files it is tried at once.
func TestSuspects(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bundle := func(content string) Input {
		return Input{Name: "deadly", Resources: []v1alpha1.BundleResource{{Name: "a.yaml", Content: "# " + content}}}
	}
	bad := bundle("bad")
	bad.ResourcesKey = ResourcesKey(bad.Resources)
	start := func() *Cache {
		t.Helper()
		c, err := NewCache(CacheOptions{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for range maxBegun { // a process that ends while it renders has begun and never comes to the end
		if err := start().begun.begin(bad.ResourcesKey, bad.Name, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := start().Render(bad); err == nil || !strings.Contains(err.Error(), "the hub ended 3 times while it rendered bundle deadly") {
		t.Errorf("got %v", err)
	}
	if _, err := start().Render(bundle("good")); err != nil {
		t.Errorf("another bundle: %v", err)
	}
	file := start().begun.path(bad.ResourcesKey)
	old := time.Now().Add(-2 * suspectFor)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	if _, err := start().Render(bad); err != nil {
		t.Errorf("after an hour: %v", err)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("it came to an end and is remembered: %v", err)
	}
}

// TestSuspectsTogether: of two renderings of the same files the first that ends must not vouch for the other.
func TestSuspectsTogether(t *testing.T) {
	t.Parallel()
	s := suspects{dir: t.TempDir(), active: map[[32]byte]int{}}
	key := [32]byte{7}
	for range 2 {
		if err := s.begin(key, "a", time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	s.end(key)
	if n, _ := s.begun(key); n != 1 {
		t.Errorf("begun %d times, want 1", n)
	}
	s.end(key)
	if n, _ := s.begun(key); n != 0 {
		t.Errorf("begun %d times, want 0", n)
	}
}

// TestFailuresAreKept: a bundle that fails is not rendered again at every look, but is with other files.
func TestFailuresAreKept(t *testing.T) {
	t.Parallel()
	c, err := NewCache(CacheOptions{})
	if err != nil {
		t.Fatal(err)
	}
	in := Input{Name: "a", Resources: []v1alpha1.BundleResource{{Name: "a.yaml", Content: "kind: [}"}}}
	var first error
	for range 3 {
		if _, err := c.Render(in); err == nil || first != nil && err.Error() != first.Error() {
			t.Errorf("got %v, first %v", err, first)
		} else {
			first = err
		}
	}
	if c.Renders() != 1 {
		t.Errorf("%d renderings", c.Renders())
	}
	in.Resources[0].Content = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
	if _, err := c.Render(in); err != nil {
		t.Error(err)
	}
}
