package imports

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "shoal.dev/shoal"

// top are the directories at the top of the tree, as the design fixes them.
var top = []string{"broker", "bundlefmt", "cmd", "controller", "deploy", "docs", "e2e", "edgeagent", "internal", "topics"}

// listed are directories of which each, once it holds Go files, must be among the packages that the rules look at: a
// rule that silently checks nothing is worse than none.
var listed = []string{
	"broker", "bundlefmt", "cmd/shoal", "cmd/shoal-agent", "controller", "controller/api/v1alpha1", "controller/enroll", "controller/fleet", "controller/lease", "controller/publish",
	"controller/reconcile", "controller/render", "controller/rollout", "controller/source", "controller/target", "deploy",
	"edgeagent", "edgeagent/apply", "edgeagent/plan", "edgeagent/store", "internal/mqtt", "topics",
}

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string // direct
	Deps       []string // all, without the standard library's own packages being told apart
}

// rule forbids imports. Patterns end in "/..." for a package and everything below it; without a dot in the first element
// they are of this module. The standard library is "std".
type rule struct {
	name     string
	packages []string
	except   []string // packages the rule is not for
	never    []string // not even by way of others
	direct   []string // not by themselves
	only     []string // of what is imported directly, nothing else than this
}

var (
	kubernetes = []string{"k8s.io/...", "sigs.k8s.io/..."}
	heavy      = []string{"helm.sh/...", "sigs.k8s.io/kustomize/...", "github.com/go-git/...", "github.com/mochi-mqtt/..."}
	loggers    = []string{"github.com/rs/zerolog/...", "std:log", "std:log/slog", "github.com/go-logr/...", "k8s.io/klog/..."}
	clients    = []string{"k8s.io/client-go/...", "sigs.k8s.io/controller-runtime/...", "std:net", "std:net/http", "std:os", "internal/mqtt/..."}
)

var rules = []rule{
	{name: "topics knows neither bundlefmt nor Kubernetes", packages: []string{"topics/..."}, never: append([]string{"bundlefmt/..."}, kubernetes...)},
	{name: "bundlefmt knows neither topics nor Kubernetes", packages: []string{"bundlefmt/..."}, never: append([]string{"topics/..."}, kubernetes...)},
	{name: "the controller knows neither agent nor broker", packages: []string{"controller/..."}, never: []string{"edgeagent/...", "broker/..."}},
	{name: "the agent knows neither controller nor broker", packages: []string{"edgeagent/...", "cmd/shoal-agent/..."}, never: []string{"controller/...", "broker/..."}},
	{name: "the agent stays small", packages: []string{"edgeagent/...", "cmd/shoal-agent/..."}, never: heavy},
	{name: "pure packages take no client, clock, context or logger", packages: []string{"controller/target", "controller/rollout", "edgeagent/plan"}, direct: slices.Concat([]string{"std:context"}, loggers, clients)},
	{name: "the broker knows neither side", packages: []string{"broker/..."}, never: []string{"controller/...", "edgeagent/...", "bundlefmt/..."}},
	{name: "internal/mqtt is paho, zerolog and the standard library", packages: []string{"internal/mqtt/..."}, except: []string{"internal/mqtt/mqtttest"}, only: []string{"std", "github.com/eclipse/paho.golang/...", "github.com/rs/zerolog/...", "internal/mqtt/..."}},
	{name: "Helm is one package's affair", packages: []string{"..."}, except: []string{"controller/render"}, direct: []string{"helm.sh/..."}},
}

func TestRules(t *testing.T) {
	t.Parallel()
	packages := list(t)
	for _, r := range rules {
		t.Run(strings.ReplaceAll(r.name, " ", "-"), func(t *testing.T) {
			checked, broken := r.check(packages)
			t.Logf("checked %s", strings.Join(checked, " "))
			for _, b := range broken {
				t.Errorf("%s: %s", r.name, b)
			}
		})
	}
}

// TestNothingIsOverlooked: every directory that should be checked is, once it exists; and there are no others at the top.
func TestNothingIsOverlooked(t *testing.T) {
	t.Parallel()
	packages := list(t)
	root := root(t)
	for _, dir := range listed {
		files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(dir), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
		if len(files) > 0 && !slices.ContainsFunc(packages, func(p pkg) bool { return p.ImportPath == module+"/"+dir }) {
			t.Errorf("%s holds Go files, but go list does not know it", dir)
		}
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && e.Name() != "bin" && !slices.Contains(top, e.Name()) {
			t.Errorf("directory %s at the top of the tree: the design has no place for it", e.Name())
		}
	}
}

// TestPureCodeAsksNoClock: now is a value. An import rule cannot say this, because pure code may calculate with times.
func TestPureCodeAsksNoClock(t *testing.T) {
	t.Parallel()
	root := root(t)
	for _, dir := range []string{"bundlefmt", "topics", "controller/target", "controller/rollout", "edgeagent/plan"} {
		files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(dir), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			src, err := os.ReadFile(f)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			found, err := clocks(string(src))
			if err != nil {
				t.Errorf("%s: %v", filepath.Base(f), err)
			}
			for _, c := range found {
				t.Errorf("%s/%s: %s", dir, filepath.Base(f), c)
			}
		}
	}
}

// clocks are the calls in a file that ask for the time or wait for it.
func clocks(src string) ([]string, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "", src, 0)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	name := ""
	for _, i := range file.Imports {
		if path, _ := strconv.Unquote(i.Path.Value); path == "time" {
			if name = "time"; i.Name != nil {
				name = i.Name.Name
			}
		}
	}
	var found []string
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && name != "" {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == name && slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}, s.Sel.Name) {
				found = append(found, fmt.Sprintf("line %d: time.%s", fset.Position(s.Pos()).Line, s.Sel.Name))
			}
		}
		return true
	})
	return found, nil
}

// TestRulesCanFail breaks each rule once in a made-up tree.
func TestRulesCanFail(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ rule, pkg, imported, deep string }{
		{rules[0].name, "topics", module + "/bundlefmt", ""},
		{rules[0].name, "topics", "", "k8s.io/apimachinery/pkg/labels"},
		{rules[1].name, "bundlefmt", module + "/topics", ""},
		{rules[1].name, "bundlefmt", "", "sigs.k8s.io/yaml"},
		{rules[2].name, "controller/publish", module + "/broker", ""},
		{rules[2].name, "controller/api/v1alpha1", "", module + "/edgeagent/plan"},
		{rules[3].name, "edgeagent", module + "/controller/api/v1alpha1", ""},
		{rules[3].name, "cmd/shoal-agent", "", module + "/broker"},
		{rules[4].name, "edgeagent/apply", "", "helm.sh/helm/v3/pkg/action"},
		{rules[4].name, "cmd/shoal-agent", "", "github.com/mochi-mqtt/server/v2"},
		{rules[4].name, "edgeagent", "", "sigs.k8s.io/kustomize/api/krusty"},
		{rules[4].name, "edgeagent", "", "github.com/go-git/go-git/v5"},
		{rules[5].name, "controller/target", "context", ""},
		{rules[5].name, "controller/rollout", "github.com/rs/zerolog", ""},
		{rules[5].name, "edgeagent/plan", "k8s.io/client-go/rest", ""},
		{rules[6].name, "broker", "", module + "/bundlefmt"},
		{rules[7].name, "internal/mqtt", module + "/topics", ""},
		{rules[7].name, "internal/mqtt", "k8s.io/klog/v2", ""},
		{rules[8].name, "controller/source", "helm.sh/helm/v3/pkg/chart", ""},
	} {
		p := pkg{ImportPath: module + "/" + c.pkg, Imports: []string{"strings"}, Deps: []string{"strings"}}
		if c.imported != "" {
			p.Imports = append(p.Imports, c.imported)
		}
		p.Deps = append(p.Deps, c.imported+c.deep)
		for _, r := range rules {
			if r.name != c.rule {
				continue
			}
			if _, broken := r.check([]pkg{p}); len(broken) == 0 {
				t.Errorf("%s: %s imports %s%s and nobody minds", c.rule, c.pkg, c.imported, c.deep)
			}
			p.Imports, p.Deps = []string{"strings"}, []string{"strings"}
			if checked, broken := r.check([]pkg{p}); len(broken) != 0 || len(checked) != 1 {
				t.Errorf("%s: %s is blamed for nothing: %v (checked %v)", c.rule, c.pkg, broken, checked)
			}
		}
	}
	found, err := clocks("package p\nimport clock \"time\"\nvar a = clock.Now()\nfunc f() { clock.Sleep(1) }\nvar b clock.Duration")
	if err != nil || len(found) != 2 {
		t.Errorf("clocks: %v, %v", found, err)
	}
}

// check names the packages the rule is for and what breaks it.
func (r rule) check(packages []pkg) (checked, broken []string) {
	for _, p := range packages {
		if !match(r.packages, p.ImportPath) || match(r.except, p.ImportPath) {
			continue
		}
		checked = append(checked, strings.TrimPrefix(p.ImportPath, module+"/"))
		for _, d := range p.Deps {
			if match(r.never, d) {
				broken = append(broken, fmt.Sprintf("%s reaches %s", p.ImportPath, d))
			}
		}
		for _, d := range p.Imports {
			if match(r.direct, d) || len(r.only) > 0 && !match(r.only, d) {
				broken = append(broken, fmt.Sprintf("%s imports %s", p.ImportPath, d))
			}
		}
	}
	return checked, broken
}

func match(patterns []string, path string) bool {
	first, _, _ := strings.Cut(path, "/")
	standard := !strings.Contains(first, ".")
	return slices.ContainsFunc(patterns, func(p string) bool {
		if std, ok := strings.CutPrefix(p, "std:"); ok {
			return path == std
		}
		if p == "std" {
			return standard
		}
		if first, _, _ := strings.Cut(p, "/"); !strings.Contains(strings.TrimSuffix(first, "..."), ".") {
			p = module + "/" + p
		}
		if below, ok := strings.CutSuffix(p, "/..."); ok {
			return path == below || strings.HasPrefix(path, below+"/")
		}
		return path == p
	})
}

func root(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// touch looks at every Go file of the module, so that go test does not show a cached result after one changed: it does not
// see what go list reads.
func touch(t *testing.T) {
	t.Helper()
	root := root(t)
	for _, dir := range top {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") {
				_, err = os.Stat(path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // not built yet
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// list asks once: listing parses imports and compiles nothing.
var listOnce = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,GoFiles,Imports,Deps", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var packages []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		packages = append(packages, p)
	}
})

func list(t *testing.T) []pkg {
	t.Helper()
	touch(t)
	packages, err := listOnce()
	if err != nil {
		t.Fatal(err)
	}
	return packages
}
