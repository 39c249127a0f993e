package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/e2e/fleet"
)

// verbs are the words of stories; stories/README.md describes them.
var verbs = map[string]func(*testscript.TestScript, bool, []string){
	"hub":          plain(hub),
	"site":         plain(site),
	"api":          plain(api),
	"consent":      plain(consent),
	"enroll":       plain(enroll),
	"give-token":   plain(giveToken),
	"agent":        plain(agent),
	"cut-link":     plain(onLink((*fleet.Site).Cut)),
	"break-link":   plain(onLink((*fleet.Site).Break)),
	"restore-link": plain(onLink((*fleet.Site).Restore)),
	"shoal":        program(shoal),
	"shoal-agent":  program(shoalAgent),
	"kube":         program(kube),
	"until":        plain(until),
	"inventory":    plain(inventory),
	"image":        plain(image),
}

// patience is how long until waits unless the story says otherwise. A story that is fine never waits so long.
const patience = 60 * time.Second

func storyOf(ts *testscript.TestScript) *story { return ts.Value(storyKey{}).(*story) }

// errUsage: the story uses a verb wrongly.
var errUsage = errors.New("see stories/README.md for how this verb is used")

// plain is a verb that succeeds or fails the story.
func plain(do func(*testscript.TestScript, *story, []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("this verb cannot be negated")
		}
		ts.Check(do(ts, storyOf(ts), args))
	}
}

// program is a verb that runs a program; its output is for the verbs stdout and stderr.
func program(make func(context.Context, *testscript.TestScript, *story, []string) (*exec.Cmd, error)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		s := storyOf(ts)
		ctx, cancel := context.WithTimeout(s.ctx, 2*patience)
		defer cancel()
		cmd, err := make(ctx, ts, s, args)
		ts.Check(err)
		cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
		err = cmd.Run()
		var exit *exec.ExitError
		switch {
		case err == nil && neg:
			ts.Fatalf("it succeeded, which it must not")
		case errors.As(err, &exit) && exit.ExitCode() > 3 || err != nil && !errors.As(err, &exit): // 66: a data race
			ts.Fatalf("it ended with %v", err)
		case err != nil && !neg:
			ts.Fatalf("%v", err)
		}
	}
}

func shoal(ctx context.Context, ts *testscript.TestScript, s *story, args []string) (*exec.Cmd, error) {
	return s.fleet.Shoal(ctx, ts.MkAbs("."), args...), nil
}

func shoalAgent(ctx context.Context, ts *testscript.TestScript, s *story, args []string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, s.fleet.Binaries().Agent, args...)
	cmd.Dir = ts.MkAbs(".")
	return cmd, nil
}

func kube(ctx context.Context, ts *testscript.TestScript, s *story, args []string) (*exec.Cmd, error) {
	if len(args) < 2 {
		return nil, errUsage
	}
	cmd, err := s.fleet.Kubectl(ctx, args[0], args[1:]...)
	if err == nil {
		cmd.Dir = ts.MkAbs(".")
	}
	return cmd, err
}

func hub(ts *testscript.TestScript, s *story, args []string) error {
	if len(args) != 1 && (len(args) != 2 || args[0] != "save" && args[0] != "load") {
		return errUsage
	}
	h := s.fleet.Hub()
	if h == nil {
		c, err := s.lease()
		if err != nil {
			return err
		}
		if h, err = s.fleet.AddHub(s.ctx, c); err != nil {
			return err
		}
	}
	switch args[0] {
	case "prepare":
		return nil
	case "start":
		ctx, cancel := context.WithTimeout(s.ctx, patience)
		defer cancel()
		return h.Start(ctx)
	case "stop":
		took, err := h.Stop()
		ts.Logf("the hub stopped in %s", took.Round(time.Millisecond))
		return err
	case "kill":
		h.Kill()
		return nil
	case "wipe-broker":
		return h.WipeBroker()
	case "save":
		return h.SaveStore(ts.MkAbs(args[1]))
	case "load":
		return h.LoadStore(ts.MkAbs(args[1]))
	}
	return errUsage
}

func site(_ *testscript.TestScript, s *story, args []string) error {
	if len(args) < 2 || args[0] != "start" || len(args) == 3 && args[2] != "real" || len(args) > 3 {
		return errUsage
	}
	if len(args) == 3 {
		c, err := shop.pool.Start(s.ctx, "real")
		if err != nil {
			return err
		}
		_, err = s.fleet.AddSite(args[1], c)
		return err
	}
	c, err := s.lease()
	if err != nil {
		return err
	}
	_, err = s.fleet.AddSite(args[1], c)
	return err
}

// api stops and starts a Kubernetes cluster, and puts it back to a copy of its database made before.
func api(ts *testscript.TestScript, s *story, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	c, err := s.fleet.Cluster(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	switch {
	case args[1] == "stop" && len(args) == 2:
		return c.Halt(ctx)
	case args[1] == "start" && len(args) == 2:
		return c.Restart(ctx)
	case args[1] == "save" && len(args) == 3:
		return c.Save(ts.MkAbs(args[2]))
	case args[1] == "load" && len(args) == 3:
		return c.Load(ctx, ts.MkAbs(args[2]))
	}
	return errUsage
}

// consent runs the command with which the message of a Cluster ends.
func consent(_ *testscript.TestScript, s *story, args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	c, err := s.fleet.Hub().ClusterObject(ctx, args[0])
	if err != nil {
		return err
	}
	_, command, ok := strings.Cut(c.Status.Display.Message, "kubectl ")
	if !ok {
		return fmt.Errorf("no command in %q", c.Status.Display.Message)
	}
	words := strings.Fields(command)
	for i := range words {
		words[i] = strings.Trim(words[i], "'")
	}
	cmd, err := s.fleet.Kubectl(ctx, "hub", words...)
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", command, err, out)
	}
	return nil
}

// enroll is the short form of: token create, give-token, agent start, until cluster Online.
func enroll(ts *testscript.TestScript, s *story, args []string) error {
	if len(args) < 1 {
		return errUsage
	}
	at, err := s.fleet.Site(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	create := []string{"token", "create", "for-" + at.Name}
	for _, label := range args[1:] {
		create = append(create, "--label", label)
	}
	var stdout, stderr bytes.Buffer
	cmd := s.fleet.Shoal(ctx, ts.MkAbs("."), create...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("shoal %s: %w\n%s", strings.Join(create, " "), err, stderr.Bytes())
	}
	if err := at.GiveToken(stdout.String()); err != nil {
		return err
	}
	if err := at.StartAgent(ctx); err != nil {
		return err
	}
	return untilCluster(ctx, s, at.Name, "Online")
}

func giveToken(ts *testscript.TestScript, s *story, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	at, err := s.fleet.Site(args[0])
	if err != nil {
		return err
	}
	return at.GiveToken(ts.ReadFile(args[1]))
}

func agent(ts *testscript.TestScript, s *story, args []string) error {
	if len(args) != 2 && (len(args) != 3 || args[1] != "save-disk" && args[1] != "load-disk") {
		return errUsage
	}
	at, err := s.fleet.Site(args[0])
	if err != nil {
		return err
	}
	switch args[1] {
	case "start":
		ctx, cancel := context.WithTimeout(s.ctx, patience)
		defer cancel()
		return at.StartAgent(ctx)
	case "try":
		return at.SpawnAgent()
	case "stop":
		took, err := at.StopAgent()
		ts.Logf("the agent stopped in %s", took.Round(time.Millisecond))
		return err
	case "lose-disk":
		return at.LoseDisk()
	case "save-disk":
		return at.SaveDisk(ts.MkAbs(args[2]))
	case "load-disk":
		return at.LoadDisk(ts.MkAbs(args[2]))
	case "kill":
		at.KillAgent()
		return nil
	case "freeze":
		return at.FreezeAgent()
	case "thaw":
		return at.ThawAgent()
	}
	return errUsage
}

func onLink(do func(*fleet.Site)) func(*testscript.TestScript, *story, []string) error {
	return func(_ *testscript.TestScript, s *story, args []string) error {
		if len(args) != 1 {
			return errUsage
		}
		at, err := s.fleet.Site(args[0])
		if err == nil {
			do(at)
		}
		return err
	}
}

// until waits for one of several kinds of conditions.
func until(ts *testscript.TestScript, s *story, args []string) error {
	limit := patience
	if len(args) > 2 && args[0] == "-within" {
		var err error
		if limit, err = time.ParseDuration(args[1]); err != nil {
			return err
		}
		args = args[2:]
	}
	if len(args) < 2 {
		return errUsage
	}
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	begin := time.Now()
	var err error
	switch what := args[0]; {
	case what == "bundle" && len(args) >= 3:
		err = untilBundle(ctx, s, args[1], args[2:])
	case what == "cluster" && len(args) >= 3:
		err = untilCluster(ctx, s, args[1], args[2:]...)
	case what == "confirmed":
		err = untilConfirmed(ctx, s, args[1:])
	case what == "log" && len(args) == 3:
		err = untilLog(ctx, s, args[1], args[2])
	case what == "stdout" && len(args) >= 3:
		err = untilStdout(ctx, ts, s, args[1], args[2:])
	default:
		return errUsage
	}
	if err == nil {
		ts.Logf("after %s", time.Since(begin).Round(10*time.Millisecond))
	}
	return err
}

// untilBundle waits until a bundle's status is about its present spec and shows all the given words, as kubectl get does.
func untilBundle(ctx context.Context, s *story, name string, want []string) error {
	return fleet.Until(ctx, func(ctx context.Context) error {
		b, err := s.fleet.Hub().Bundle(ctx, name)
		if err != nil {
			return err
		}
		if b.Status.ObservedGeneration != b.Generation {
			return fmt.Errorf("bundle %s: its status is about generation %d, it is at %d", name, b.Status.ObservedGeneration, b.Generation)
		}
		d := b.Status.Display
		return shows("bundle "+name, want, string(d.State), d.ReadyClusters, d.Message)
	})
}

func untilCluster(ctx context.Context, s *story, name string, want ...string) error {
	return fleet.Until(ctx, func(ctx context.Context) error {
		c, err := s.fleet.Hub().ClusterObject(ctx, name)
		if err != nil {
			return err
		}
		d := c.Status.Display
		return shows("cluster "+name, want, string(c.Status.Presence), string(d.State), d.ReadyBundles, d.Message)
	})
}

// shows tells whether each wanted word is one of the columns, or matches the last one, the message.
func shows(what string, want []string, columns ...string) error {
	message := columns[len(columns)-1]
	for _, w := range want {
		if slices.Contains(columns[:len(columns)-1], w) {
			continue
		}
		re, err := regexp.Compile(w)
		if err != nil {
			return fleet.Stop(err)
		}
		if message == "" || !re.MatchString(message) {
			return fmt.Errorf("%s shows %q, want %q", what, columns, w)
		}
	}
	return nil
}

// untilConfirmed waits until each site has a link and follows the newest document, by the word of its agent and of the hub.
func untilConfirmed(ctx context.Context, s *story, sites []string) error {
	for _, name := range sites {
		at, err := s.fleet.Site(name)
		if err != nil {
			return err
		}
		err = fleet.Until(ctx, func(ctx context.Context) error {
			serial, connected, err := at.Follows(ctx)
			if err != nil {
				return err
			}
			c, err := s.fleet.Hub().ClusterObject(ctx, name)
			if err != nil {
				return err
			}
			st := c.Status
			switch {
			case !connected:
				return fmt.Errorf("the agent of %s has no link", name)
			case st.Presence != v1alpha1.PresenceOnline:
				return fmt.Errorf("cluster %s is %s", name, st.Presence)
			case st.DesiredSerial == 0 || st.ReportedSerial != st.DesiredSerial || serial != st.DesiredSerial:
				return fmt.Errorf("cluster %s is at document %d and has reported %d, the newest is %d", name, serial, st.ReportedSerial, st.DesiredSerial)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// untilLog waits for a line in the log that the hub or a site's agent writes since its last start.
func untilLog(ctx context.Context, s *story, who, pattern string) error {
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return err
	}
	output := func() []byte { return nil }
	if who == "hub" {
		output = s.fleet.Hub().Output
	} else {
		at, err := s.fleet.Site(who)
		if err != nil {
			return err
		}
		output = at.Output
	}
	return fleet.Until(ctx, func(context.Context) error {
		if !re.Match(output()) {
			return fmt.Errorf("the log of %s has no line that matches %q", who, pattern)
		}
		return nil
	})
}

// untilStdout runs a program until it succeeds and its output matches.
func untilStdout(ctx context.Context, ts *testscript.TestScript, s *story, pattern string, command []string) error {
	pattern, absent := strings.CutPrefix(pattern, "!")
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return err
	}
	return fleet.Until(ctx, func(ctx context.Context) error {
		var cmd *exec.Cmd
		var err error
		switch command[0] {
		case "kube":
			cmd, err = kube(ctx, ts, s, command[1:])
		case "shoal":
			cmd, err = shoal(ctx, ts, s, command[1:])
		case "shoal-agent":
			cmd, err = shoalAgent(ctx, ts, s, command[1:])
		default:
			err = errUsage
		}
		if err != nil {
			return fleet.Stop(err)
		}
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err = cmd.Run()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, stderr.Bytes())
		case absent && re.Match(stdout.Bytes()):
			return fmt.Errorf("%s still matches %q:\n%s", strings.Join(command, " "), pattern, stdout.Bytes())
		case !absent && !re.Match(stdout.Bytes()):
			return fmt.Errorf("%s does not match %q:\n%s", strings.Join(command, " "), pattern, stdout.Bytes())
		}
		return nil
	})
}

// inventory writes down every deployed object of a site. It waits until two looks in a row are the same: controllers of the
// site may still be writing status.
func inventory(ts *testscript.TestScript, s *story, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	at, err := s.fleet.Site(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	var last string
	err = fleet.Until(ctx, func(ctx context.Context) error {
		now, err := fleet.Inventory(ctx, at.Cluster())
		if err != nil {
			return err
		}
		if now == "" {
			return fmt.Errorf("nothing is deployed on %s", at.Name)
		}
		if before := last; now != before {
			last = now
			return errors.New("objects are still changing")
		}
		return nil
	})
	if err != nil {
		return err
	}
	return os.WriteFile(ts.MkAbs(args[1]), []byte(last), 0o644)
}

// image gives a site with real containers an image of a static program.
func image(_ *testscript.TestScript, s *story, args []string) error {
	if len(args) != 3 {
		return errUsage
	}
	at, err := s.fleet.Site(args[0])
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(args[2])
	if err != nil {
		return err
	}
	return fleet.LoadProgram(s.ctx, at.Cluster(), args[1], dir)
}
