package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// rest is how long nothing happens before memory is read.
const rest = 15 * time.Second

func (d *demo) number(what, format string, args ...any) {
	d.numbers = append(d.numbers, fmt.Sprintf("%-58s %s", what, fmt.Sprintf(format, args...)))
}

// measure prints the numbers.
func (d *demo) measure(ctx context.Context) error {
	d.title("Every step went as it should")
	d.say("%s of rest, then memory is read", rest)
	select {
	case <-time.After(rest):
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, b := range []struct{ name, path string }{{"shoal", d.bin.Shoal}, {"shoal-agent", d.bin.Agent}} {
		st, err := os.Stat(b.path)
		if err != nil {
			return err
		}
		d.number("size of "+b.name, "%.1f MB", float64(st.Size())/1e6)
	}
	memory := func(what string, bytes int64) {
		if bytes == 0 {
			d.number("memory of "+what+" at rest (RSS)", "cannot be read on this system")
			return
		}
		d.number("memory of "+what+" at rest (RSS)", "%.0f MB", float64(bytes)/1e6)
	}
	memory("the hub", d.fleet.Hub().RSS())
	for _, name := range d.fleet.SiteNames() {
		site, err := d.fleet.Site(name)
		if err != nil {
			return err
		}
		memory("the agent of "+name, site.RSS())
		d.number("bytes over the link of "+name+", all of the demo", "%d", site.LinkBytes())
	}
	for _, n := range d.numbers {
		d.say("%s", n)
	}
	return nil
}

// explain says how to look further.
func (d *demo) explain(ctx context.Context) error {
	mosquitto, err := d.shoal(ctx, "topics", "credentials", filepath.Join(d.dir, "reader"))
	if err != nil {
		return err
	}
	kubectl := d.bin.Kube + " kubectl"
	if _, err := exec.LookPath("kubectl"); err == nil {
		kubectl = "kubectl"
	}
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("In another terminal:")
	p("")
	p("    export PATH=%s:$PATH KUBECONFIG=%s", filepath.Dir(d.fleet.Binaries().Shoal), d.fleet.Hub().Kubeconfig())
	p("")
	p("The fleet, as the hub sees it:")
	p("    %s get bundles,clusters,clustergroups", kubectl)
	p("    shoal get deployments")
	p("    curl http://%s/metrics", d.fleet.Hub().MetricsAddr())
	p("")
	p("The sites themselves:")
	for _, name := range d.fleet.SiteNames() {
		site, err := d.fleet.Site(name)
		if err != nil {
			return err
		}
		p("    %s --kubeconfig %s -n shop get all,configmaps", kubectl, site.Kubeconfig())
	}
	p("")
	p("What goes over MQTT, decoded, as it happens; and the same with mosquitto_sub (what agents say is plain JSON):")
	p("    shoal topics watch")
	p("    %s", mosquitto)
	p("")
	p("Change something and deploy it:")
	p("    ${EDITOR:-vi} %s", filepath.Join(d.bundle, "fleet.yaml"))
	p("    shoal apply shop %s --wait", d.bundle)
	p("")
	p("Logs: %s", filepath.Join(d.fleet.Logs(), "*.log"))
	d.title("It stays up until Ctrl-C")
	d.raw(b.String())
	return nil
}
