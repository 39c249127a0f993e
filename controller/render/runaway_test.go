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

// TestNestedTemplates: a template of a few kilobytes, packed, in which a million blocks stand in each other, would end the hub.
func TestNestedTemplates(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{"of the chart": "", "of a subchart": "charts/sub/"} {
		files := []v1alpha1.BundleResource{
			{Name: "Chart.yaml", Content: "apiVersion: v2\nname: a\nversion: 1.0.0\n"},
			{Name: dir + "templates/a.yaml", Content: strings.Repeat("{{if 1}}", 1_000_000)},
		}
		if dir != "" {
			files = append(files, v1alpha1.BundleResource{Name: dir + "Chart.yaml", Content: "apiVersion: v2\nname: sub\nversion: 1.0.0\n"})
		}
		_, err := Render(Input{Name: "a", Resources: files})
		if err == nil || !strings.Contains(err.Error(), "1000000 actions, the limit is 100000") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	_, err := Render(Input{Name: "a", Resources: []v1alpha1.BundleResource{{Name: "templates/a.yaml", Content: strings.Repeat("{{if 1}}", 1_000_000)}}})
	if err == nil || !strings.Contains(err.Error(), "actions, the limit is") {
		t.Errorf("of plain YAML: got %v", err)
	}
}
