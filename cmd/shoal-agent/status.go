package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/edgeagent"
)

// status prints what a technician at the site asks first: is it running, does it know its hub, what runs, is it well.
func status(c config, w io.Writer, now time.Time) error {
	st, err := edgeagent.ReadStatus(c.dataDir)
	if err != nil {
		return fmt.Errorf("%w (is --data-dir %s right?)", err, c.dataDir)
	}
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", what+":", fmt.Sprintf(format, args...))
	}
	switch {
	case st.Running:
		line("Agent", "running, %s", st.Agent)
	default:
		line("Agent", "NOT RUNNING with %s; what follows is what it left there", c.dataDir)
	}
	if st.Workspace == "" {
		line("Cluster", "not enrolled")
	} else {
		line("Cluster", "%s/%s", st.Workspace, st.Cluster)
	}
	line("Hub", "%s", link(st, now))
	if st.Serial == 0 {
		line("Orders", "none yet")
	} else {
		stale := ""
		if st.Stale {
			stale = ", STALE: the hub should have renewed it"
		}
		line("Orders", "desired document %d%s", st.Serial, stale)
	}
	if r := st.Refused; r != nil {
		line("Refused", "%d messages; last %s: %s: %s", r.Count, ago(now, r.At), r.Topic, r.Reason)
	}
	for _, l := range st.Locks {
		what := "file"
		if l.Lease {
			what = "lease"
		}
		why := l.Reason
		if l.Holder != "" {
			why += fmt.Sprintf(" (%s)", l.Holder)
		}
		line("Locked", "until %s by %s %s: %s", l.Ends.Local().Format(time.RFC3339), what, l.Name, strings.TrimSpace(why))
	}
	if st.Closed.Holds(now) {
		line("Window", "closed: %s", st.Closed.Why)
	}
	if st.Damaged > 0 {
		line("Disk", "%d damaged files were moved to %s/damaged", st.Damaged, c.dataDir)
	}
	if !st.At.IsZero() {
		line("As of", "%s", ago(now, st.At))
	}
	b.WriteString("\n")
	if len(st.Deployments) == 0 {
		b.WriteString("No deployments.\n")
	} else {
		t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
		fmt.Fprintln(t, "DEPLOYMENT\tSTATE\tREADY\tRELEASE\tSINCE\tMESSAGE")
		for _, d := range st.Deployments {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", d.Name, d.State, counts(d), release(d), ago(now, d.Since), d.Message)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	_, err = io.WriteString(w, b.String())
	return err
}

func link(st edgeagent.Status, now time.Time) string {
	heard := ""
	if !st.Heard.IsZero() {
		heard = ", last heard " + ago(now, st.Heard)
	}
	switch {
	case st.Hub == "" && st.LinkError == "":
		return "unknown until this site has enrolled"
	case st.Connected:
		return fmt.Sprintf("%s, connected since %s%s", st.Hub, ago(now, st.Since), heard)
	case st.LinkError != "":
		return fmt.Sprintf("%s no link%s: %s", st.Hub, heard, st.LinkError)
	}
	return st.Hub + ", no link" + heard
}

func counts(d bundlefmt.DeploymentReport) string {
	if d.Total == 0 {
		return "-"
	}
	return fmt.Sprintf("%d/%d", d.Ready, d.Total)
}

func release(d bundlefmt.DeploymentReport) string {
	if d.Serial == 0 {
		return "-"
	}
	return fmt.Sprintf("%d (%.8s)", d.Serial, d.Digest)
}

func ago(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := now.Sub(t)
	switch {
	case d < 0:
		return "in the future (check the clock)"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return fmt.Sprintf("%dd ago", int(d.Hours()/24))
}
