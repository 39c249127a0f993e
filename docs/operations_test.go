package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// TestTroubleshootingIsReal: every message that operations.md explains is in the source, and every metric.
func TestTroubleshootingIsReal(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("operations.md")
	if err != nil {
		t.Fatal(err)
	}
	source := sources(t)
	_, messages, ok := strings.Cut(string(page), "\n## Troubleshooting\n")
	if !ok {
		t.Fatal("operations.md has no section about trouble")
	}
	_, metrics, ok := strings.Cut(string(page), "\n## Metrics\n")
	if !ok {
		t.Fatal("operations.md has no section about metrics")
	}
	metrics, _, _ = strings.Cut(metrics, "\n## ")
	for _, m := range firstCells(messages) {
		if !strings.Contains(source, m) {
			t.Errorf("nothing says %q", m)
		}
	}
	for _, m := range firstCells(metrics) {
		name := strings.TrimPrefix(m, "shoal_broker_") // whose source has the prefix once
		if !strings.Contains(source, `"`+name+`"`) {
			t.Errorf("there is no metric %s", m)
		}
	}
}

// TestSiteIsReal: in the section about the site every flag is the agent's or the hub's, every message and every name of ours is in
// the source, and what is given to kubectl patch is a resource of the hub.
func TestSiteIsReal(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("operations.md")
	if err != nil {
		t.Fatal(err)
	}
	source := sources(t)
	_, site, ok := strings.Cut(string(page), "\n## The site\n")
	if !ok {
		t.Fatal("operations.md has no section about the site")
	}
	site, _, _ = strings.Cut(site, "\n## ")
	var found []string
	look := func(pattern string, in func(string) bool) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(site, -1) {
			found = append(found, m[1])
			if !in(m[1]) {
				t.Errorf("nothing knows %s", m[0])
			}
		}
	}
	look("`--([a-z-]+)`", func(f string) bool { return strings.Contains(source, `"`+f+`"`) })
	look(`shoal-agent lock .*--(reason)`, func(f string) bool { return strings.Contains(source, `"`+f+`"`) })
	look(`(shoal\.dev/[a-z-]+)[ =:]`, func(n string) bool { return strings.Contains(source, `"`+n) })
	for _, m := range firstCells(site) {
		if !strings.HasPrefix(m, "--") && !strings.Contains(source, m) {
			t.Errorf("nothing says %q", m)
		}
	}
	for _, m := range regexp.MustCompile(`patch (\w+)\.shoal\.dev .*-p '(.*)'`).FindAllStringSubmatch(site, -1) {
		found = append(found, m[1])
		var into any = &v1alpha1.Cluster{}
		if m[1] == "clustergroups" {
			into = &v1alpha1.ClusterGroup{}
		}
		if err := yaml.UnmarshalStrict([]byte(m[2]), into); err != nil {
			t.Errorf("%s: %v", m[0], err)
		}
	}
	if len(found) < 20 {
		t.Errorf("looked at no more than %v", found)
	}
}

var code = regexp.MustCompile("`([^`]+)`")

// firstCells returns what stands in backticks in the first column of tables.
func firstCells(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		cell, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		if !strings.HasPrefix(line, "| ") || !ok {
			continue
		}
		for _, m := range code.FindAllStringSubmatch(cell, -1) {
			out = append(out, m[1])
		}
	}
	return out
}

// sources is all Go code that is no test.
func sources(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, dir := range []string{"broker", "bundlefmt", "cmd", "controller", "edgeagent", "internal"} {
		err := filepath.WalkDir(filepath.Join("..", dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			b.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}
