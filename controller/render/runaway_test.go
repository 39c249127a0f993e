package render

import (
	"strings"
	"testing"
	"time"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// TestRunaway: a rendering that does not end is given up, its bundle is not tried again before it ends, others are rendered;
// several such stop all that is new, but nothing that is known.
func TestRunaway(t *testing.T) {
	c, err := NewCache(CacheOptions{Timeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	end := map[string]chan struct{}{}
	for _, name := range []string{"endless-a", "endless-b", "endless-c", "endless-d"} {
		end[name] = make(chan struct{})
	}
	c.run = func(in Input, m *memory) (Result, error) {
		if wait := end[in.Name]; wait != nil {
			<-wait
		}
		return render(in, m)
	}
	bundle := func(name string) Input {
		return Input{Name: name, Resources: []v1alpha1.BundleResource{{Name: "a.yaml", Content: "# " + name}}}
	}
	do := func(name, want string) {
		t.Helper()
		limit := c.o.Timeout
		if want == "" {
			c.o.Timeout = time.Hour
		}
		_, err := c.Render(bundle(name))
		c.o.Timeout = limit
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	do("known", "")
	do("endless-a", "takes more than 1ms and was given up")
	do("endless-a", "is still at it")
	do("other", "")
	for _, name := range []string{"endless-b", "endless-c", "endless-d"} {
		do(name, "was given up")
	}
	do("third", "nothing new is rendered while 4 bundles (endless-a among them)")
	do("known", "")

	close(end["endless-a"])
	for c.held(bundle("third")) != nil {
		time.Sleep(time.Millisecond)
	}
	do("third", "")
	do("endless-a", "")
	for _, name := range []string{"endless-b", "endless-c", "endless-d"} {
		close(end[name])
	}
}
