package decode

import (
	"fmt"
	"strings"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/topics"
)

func desiredLine(d *bundlefmt.Desired) string {
	var b strings.Builder
	fmt.Fprintf(&b, "serial %d:", d.Serial)
	for i, x := range d.Deployments {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, " %s@%d=%.8s", x.Name, x.Serial, x.Digest.String())
		if said := policyWords(x.Policy); len(said) > 0 {
			fmt.Fprintf(&b, " (%s)", strings.Join(said, "; "))
		}
	}
	if len(d.Deployments) == 0 {
		b.WriteString(" nothing to run")
	}
	for i, x := range d.Remove {
		if i == 0 {
			b.WriteString("; remove")
		}
		fmt.Fprintf(&b, " %s@%d", x.Name, x.Serial)
		if x.Keep {
			b.WriteString(" (keep objects)")
		}
		if x.Confirmed {
			b.WriteString(" (confirmed)")
		}
	}
	sep := "; windows "
	for _, w := range d.Windows {
		b.WriteString(sep + windowWords(w))
		sep = ", "
	}
	return b.String()
}

// policyWords are the parts of a policy that explain why a deployment waits, goes back or goes away; the JSON form has all of it.
func policyWords(p bundlefmt.Policy) []string {
	var out []string
	for _, x := range []struct {
		set  bool
		word string
	}{
		{p.Paused, "paused"},
		{p.Rollback, "rollback"},
		{p.ConfirmPrune, "may delete much"},
		{p.ForceSync > 0, fmt.Sprintf("force sync %d", p.ForceSync)},
	} {
		if x.set {
			out = append(out, x.word)
		}
	}
	var after []string
	for _, d := range p.DependsOn {
		sep, a := "=", d.Name
		for _, s := range d.States {
			a += sep + string(s)
			sep = "|"
		}
		after = append(after, a)
	}
	if len(after) > 0 {
		out = append(out, "after "+strings.Join(after, " "))
	}
	return out
}

// windowWords is when it opens and for how long, such as "0 2 * * * for 3h0m0s Europe/Berlin (apply)".
func windowWords(w bundlefmt.Window) string {
	s := fmt.Sprintf("%s for %v", w.Schedule, time.Duration(w.Seconds)*time.Second)
	if w.TimeZone != "" {
		s += " " + w.TimeZone
	}
	switch {
	case !w.Apply:
		s += " (download)"
	case !w.Download:
		s += " (apply)"
	}
	return s
}

// text reads what is not signed.
func (d *Decoder) text(t topics.Topic, payload []byte) (content any, line string, err error) {
	switch t.Kind {
	case topics.Reported:
		r, err := bundlefmt.ParseReported(payload, d.limits)
		if err != nil {
			return nil, "", err
		}
		return r, reportedLine(r), nil
	case topics.Presence:
		p, err := bundlefmt.ParsePresence(payload, d.limits)
		if err != nil {
			return nil, "", err
		}
		line = "offline"
		if p.Online {
			line = "online"
		}
		if p.Reason != "" {
			line += ": " + p.Reason
		}
		if p.Agent != "" {
			line += ", agent " + p.Agent
		}
		return p, fmt.Sprintf("%s, connection %.8s since %s", line, p.Nonce, clock(p.Since)), nil
	case topics.Event:
		e, err := bundlefmt.ParseEvent(payload, d.limits)
		if err != nil {
			return nil, "", err
		}
		if e.Deployment != "" {
			line = fmt.Sprintf("%s@%d %s", e.Deployment, e.Serial, e.State)
		}
		if e.Message != "" {
			line = strings.TrimPrefix(line+": "+e.Message, ": ")
		}
		return e, line, nil
	case topics.Request:
		return d.request(t, payload)
	case topics.Response:
		if t.Verb != topics.VerbFacts {
			return nil, string(t.Verb), nil
		}
		f, err := bundlefmt.ParseFacts(payload, d.limits)
		if err != nil {
			return nil, "", err
		}
		return f, fmt.Sprintf("facts: Kubernetes %s, %d nodes, %d API versions, agent %s", f.KubernetesVersion, f.Nodes, len(f.APIVersions), f.Agent), nil
	case topics.EnrollRequest:
		r, err := bundlefmt.ParseEnrollRequest(payload, d.limits)
		if err != nil {
			return nil, "", err
		}
		return r, fmt.Sprintf("cluster %s asks for an identity with token %s, agent %s", r.Cluster, t.Token, r.Agent), nil
	case topics.EnrollResponse:
		r, err := bundlefmt.ParseEnrollResponse(payload, d.limits)
		if err != nil {
			return nil, "", err
		}
		if r.Error != "" {
			return r, fmt.Sprintf("refused with token %s: %s", t.Token, r.Error), nil
		}
		return r, fmt.Sprintf("identity for cluster %s/%s", r.Workspace, r.Cluster), nil
	}
	return nil, "", nil
}

func (d *Decoder) request(t topics.Topic, payload []byte) (any, string, error) {
	if t.Verb != topics.VerbBundle {
		return nil, "the hub asks for " + string(t.Verb), nil
	}
	p, err := bundlefmt.ParsePartRequest(payload, d.limits)
	if err != nil {
		return nil, "", err
	}
	return p, fmt.Sprintf("the agent asks for parts %v of %s=%.8s", p.Parts, p.Deployment, p.Digest.String()), nil
}

func reportedLine(r *bundlefmt.Reported) string {
	var b strings.Builder
	ready := 0
	for _, d := range r.Deployments {
		if d.State == bundlefmt.Ready {
			ready++
		}
	}
	fmt.Fprintf(&b, "serial %d, %d/%d ready", r.Serial, ready, len(r.Deployments))
	if r.Stale {
		b.WriteString(", stale")
	}
	sep := ": "
	for _, d := range r.Deployments {
		fmt.Fprintf(&b, "%s%s@%d %s %d/%d", sep, d.Name, d.Serial, d.State, d.Ready, d.Total)
		if sep = ", "; d.State != bundlefmt.Ready && d.Message != "" {
			fmt.Fprintf(&b, " (%s)", d.Message)
		}
	}
	if r.Refused != nil {
		fmt.Fprintf(&b, "; refused %s: %s", r.Refused.Topic, r.Refused.Reason)
	}
	return b.String()
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }
