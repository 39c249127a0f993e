package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"shoal.dev/shoal/e2e/fleet"
	"shoal.dev/shoal/internal/kubetest"
)

var keep = flag.Bool("keep", false, "keep the directory with logs and data also when all stories pass")

// maxClusters is enough for two stories at a time.
const maxClusters = 6

// shop is what all stories share. It is made by the first one; a package variable, because only TestMain outlives them.
var shop struct {
	ctx  context.Context
	dir  string
	pool *fleet.Pool
	bin  fleet.Binaries
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	// Ctrl-C ends every wait, so that the stories fail and clean up.
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	dir, err := os.MkdirTemp("", "shoal-") // short: sockets lie below it
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() {
		if code != 0 || *keep {
			fmt.Fprintln(os.Stderr, "e2e: logs are in", filepath.Join(dir, "*", "logs"), "and", filepath.Join(dir, "k*", "logs"))
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
		}
	}()
	fleet.Quiet()
	shop.ctx, shop.dir = ctx, dir
	shop.pool = fleet.NewPool(dir, maxClusters, os.Stderr)
	defer func() {
		if err := shop.pool.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: clusters:", err)
			code = max(code, 1)
		}
	}()
	return m.Run()
}

// TestStories runs every story, as many at a time as -parallel says.
func TestStories(t *testing.T) {
	if testing.Short() {
		t.Skip("stories start Kubernetes clusters: not with -short")
	}
	var err error
	if shop.bin, err = fleet.Build(shop.ctx, os.Stderr); err != nil {
		t.Fatal(err)
	}
	if err := dependOnSources(".."); err != nil {
		t.Fatal(err)
	}
	examples, err := filepath.Abs("../deploy/examples")
	if err != nil {
		t.Fatal(err)
	}
	hello, err := filepath.Abs("../internal/kubetest/testdata/hello")
	if err != nil {
		t.Fatal(err)
	}
	agent, err := filepath.Abs("../cmd/shoal-agent")
	if err != nil {
		t.Fatal(err)
	}
	charts, err := filepath.Abs("../deploy/charts")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "stories",
		Setup: func(env *testscript.Env) error {
			env.Setenv("EXAMPLES", examples)
			env.Setenv("HELLO", hello)
			env.Setenv("AGENT", agent)
			env.Setenv("CHARTS", charts)
			return setup(env)
		},
		Cmds:               verbs,
		Condition:          condition,
		RequireUniqueNames: true,
	})
}

// dependOnSources reads every directory of the source tree. The go command sees what a test reads, but not what the programs are
// built from that it starts: without this, go test would call a story "(cached)" although the hub has changed.
func dependOnSources(root string) error {
	return filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		return err
	})
}

// condition knows [real]: real containers can run here. Where CI=true they must.
func condition(name string) (bool, error) {
	if name != "real" {
		return false, fmt.Errorf("unknown condition %q", name)
	}
	err := fleet.CanRunContainers(shop.ctx, shop.bin)
	if err != nil && os.Getenv("CI") == "true" {
		return false, err
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "SKIPPED, real containers:", err)
	}
	return err == nil, nil
}

// story is the state of one story.
type story struct {
	tb     testing.TB
	ctx    context.Context
	fleet  *fleet.Fleet
	leased []*kubetest.Cluster
}

type storyKey struct{}

func setup(env *testscript.Env) error {
	tb := env.T().(testing.TB)
	dir, err := os.MkdirTemp(shop.dir, strings.ReplaceAll(filepath.Base(tb.Name()), "_", "-")+"-")
	if err != nil {
		return err
	}
	f, err := fleet.New(fleet.Options{Dir: dir, Binaries: shop.bin})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(shop.ctx, 5*time.Minute)
	s := &story{tb: tb, ctx: ctx, fleet: f}
	env.Values[storyKey{}] = s
	env.Setenv("KUBECONFIG", filepath.Join(dir, "hub.kubeconfig"))
	env.Setenv("SITES", dir)
	env.Setenv("PATH", filepath.Dir(f.Binaries().Shoal)+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Setenv("GORACE", "exitcode=66")
	begin := time.Now()
	tb.Cleanup(func() {
		defer cancel()
		s.end(begin)
	})
	return nil
}

// end shows what is needed to understand a failure and stops everything; that must go in order too.
func (s *story) end(begin time.Time) {
	if s.tb.Failed() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		s.tb.Logf("the story failed after %s; the ends of the logs in %s:\n%s", time.Since(begin).Round(time.Second), s.fleet.Logs(), s.fleet.Tails(ctx, 25))
		cancel()
	}
	if err := s.fleet.Close(); err != nil {
		s.tb.Errorf("end of the story: %v", err)
	}
	for _, c := range s.leased {
		shop.pool.Put(c)
	}
}

func (s *story) lease() (*kubetest.Cluster, error) {
	c, err := shop.pool.Get(s.ctx)
	if err == nil {
		s.leased = append(s.leased, c)
	}
	return c, err
}
