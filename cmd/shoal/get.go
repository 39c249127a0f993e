package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/fleet"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/internal/watch"
	"shoal.dev/shoal/topics"
)

// getOptions are the flags that all forms of shoal get share.
type getOptions struct {
	allNamespaces bool
	output        string
	selector      string
}

func getCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get",
		Short: "Show clusters, bundles or deployments",
		Long: `Show where the fleet stands. Clusters and bundles are resources, so kubectl get shows them as well; deployments (one bundle on
one cluster) are not: they come from the topics, from what is ordered and what the clusters last reported.`,
		Example: `  shoal get clusters -l env=prod
  shoal get bundles -A
  shoal get deployments --cluster store-1
  shoal get deployments --bundle web -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		getListCommand(a, "clusters", &v1alpha1.ClusterList{}, clusterTable),
		getListCommand(a, "bundles", &v1alpha1.BundleList{}, bundleTable),
		getDeploymentsCommand(a),
	)
	return cmd
}

// table is what is printed: a header and rows; the first column is the workspace and only shown with -A.
type table struct {
	header []string
	rows   [][]string
}

func getListCommand[L client.ObjectList](a *app, plural string, list L, rows func(L, time.Time) table) *cobra.Command {
	var o getOptions
	var system string
	cmd := &cobra.Command{
		Use:     plural + " [NAME...]",
		Aliases: []string{strings.TrimSuffix(plural, "s")},
		Short:   "Show " + plural + ", all of the workspace or those named",
		Example: fmt.Sprintf("  shoal get %[1]s\n  shoal get %[1]s -A -o yaml\n  shoal get %[2]s NAME", plural, strings.TrimSuffix(plural, "s")),
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if len(names) > 0 && (o.allNamespaces || o.selector != "") {
				return usage{errors.New("names go neither with -A nor with -l: a name is of one workspace")}
			}
			kube, ns, err := a.hubClient()
			if err != nil {
				return err
			}
			opts := []client.ListOption{}
			if !o.allNamespaces {
				opts = append(opts, client.InNamespace(ns))
			}
			if o.selector != "" {
				sel, err := metav1.ParseToLabelSelector(o.selector)
				if err != nil {
					return usage{fmt.Errorf("--selector: %w", err)}
				}
				s, err := metav1.LabelSelectorAsSelector(sel)
				if err != nil {
					return usage{fmt.Errorf("--selector: %w", err)}
				}
				opts = append(opts, client.MatchingLabelsSelector{Selector: s})
			}
			if err := kube.List(cmd.Context(), list, opts...); err != nil {
				return fmt.Errorf("list %s: %w", plural, err)
			}
			if err := named(list, plural, ns, names); err != nil {
				return err
			}
			if gone := hubGone(cmd.Context(), kube, system, time.Now()); gone != "" {
				fmt.Fprintf(a.stderr, "shoal: note: %s: this is what it knew then\n", gone)
			}
			if meta.LenList(list) == 0 && !o.allNamespaces {
				defer a.elsewhere(cmd.Context(), kube, list, plural)
			}
			return o.print(a, list, rows(list, time.Now()), ns)
		},
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.completeNames(cmd, list, word)
	}
	cmd.Flags().StringVar(&system, "system-namespace", controller.DefaultNamespace, "namespace of the hub, where its Lease is")
	cmd.Flags().StringVarP(&o.selector, "selector", "l", "", "label selector, such as env=prod,region!=south")
	o.register(cmd)
	return cmd
}

// named leaves only the objects with these names in a list; without names all. One that is not there is an error.
func named(list client.ObjectList, plural, ns string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	items, err := meta.ExtractList(list)
	if err != nil {
		return err
	}
	var kept []runtime.Object
	for _, name := range names {
		i := slices.IndexFunc(items, func(o runtime.Object) bool { return o.(client.Object).GetName() == name })
		if i < 0 {
			return fmt.Errorf("there is no %s %s in workspace %s: see shoal get %s -A",
				strings.TrimSuffix(plural, "s"), name, ns, plural)
		}
		kept = append(kept, items[i])
	}
	return meta.SetList(list, kept)
}

// elsewhere says which workspaces do hold what was not found in this one, to whoever may see that.
func (a *app) elsewhere(ctx context.Context, kube client.Client, list client.ObjectList, plural string) {
	if kube.List(ctx, list) != nil {
		return
	}
	spaces := map[string]bool{}
	_ = meta.EachListItem(list, func(o runtime.Object) error {
		spaces[o.(client.Object).GetNamespace()] = true
		return nil
	})
	if len(spaces) > 0 {
		fmt.Fprintf(a.stderr, "there are %s in %s: name the workspace with -n, or all with -A\n",
			plural, strings.Join(slices.Sorted(maps.Keys(spaces)), ", "))
	}
}

// check refuses what print does not know before anything is asked.
func (o *getOptions) check() error { return oneOf("--output", o.output, "", "json", "yaml") }

func (o *getOptions) register(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "of all workspaces")
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "json or yaml; default: a table")
	completeValues(cmd, "output", "json", "yaml")
}

func (o getOptions) print(a *app, value any, t table, ns string) error {
	switch o.output {
	case "json":
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		return e.Encode(value)
	case "yaml":
		b, err := yaml.Marshal(value)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(b)
		return err
	}
	if len(t.rows) == 0 {
		where := "in workspace " + ns
		if o.allNamespaces {
			where = "in any workspace"
		}
		fmt.Fprintf(a.stderr, "nothing found %s\n", where)
		return nil
	}
	return t.write(a.stdout, o.allNamespaces)
}

// write aligns columns. Cells hold what agents wrote: nothing in them acts on a terminal or begins a line.
func (t table) write(w io.Writer, workspace bool) error {
	var aligned bytes.Buffer
	tw := tabwriter.NewWriter(&aligned, 0, 8, 3, ' ', 0)
	for _, row := range append([][]string{t.header}, t.rows...) {
		if !workspace {
			row = row[1:]
		}
		for _, cell := range row {
			fmt.Fprint(tw, oneLine(cell), "\t")
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(aligned.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// oneLine is text without line breaks and control characters.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\ufffd'
	}, strings.Join(strings.Fields(s), " "))
}

func clusterTable(l *v1alpha1.ClusterList, now time.Time) table {
	t := table{header: []string{"WORKSPACE", "NAME", "LINK", "LINK SINCE", "BUNDLES", "STATE", "SINCE", "MESSAGE"}}
	for _, c := range l.Items {
		s := c.Status
		t.rows = append(t.rows, []string{c.Namespace, c.Name, string(s.Presence), age(s.PresenceSince.Time, now), s.Display.ReadyBundles, string(s.Display.State), age(s.StateSince.Time, now), s.Display.Message})
	}
	return t
}

func bundleTable(l *v1alpha1.BundleList, now time.Time) table {
	t := table{header: []string{"WORKSPACE", "NAME", "READY", "STATE", "SINCE", "MESSAGE"}}
	for _, b := range l.Items {
		s := b.Status
		t.rows = append(t.rows, []string{b.Namespace, b.Name, s.Display.ReadyClusters, string(s.Display.State), age(s.StateSince.Time, now), s.Display.Message})
	}
	return t
}

func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return duration.HumanDuration(now.Sub(t))
}

// deployment is one bundle on one cluster.
type deployment struct {
	Workspace string `json:"workspace"`
	Cluster   string `json:"cluster"`
	bundlefmt.DeploymentReport
}

func getDeploymentsCommand(a *app) *cobra.Command {
	var o getOptions
	var f readerFlags
	var cluster, bundle string
	cmd := &cobra.Command{
		Use:     "deployments",
		Aliases: []string{"deployment"},
		Short:   "Show bundles on clusters: what is ordered and what the clusters last reported",
		Long: `Show every deployment: one bundle on one cluster. It reads orders and reports as the broker retains them, so a cluster without a
link shows what it said last (see LINK in shoal get clusters): Ready is what is ordered and reported to be so, WaitApplied what is ordered and
not confirmed, Removing what is ordered away and not gone. A release that the hub has not ordered yet shows in shoal get bundles.

MESSAGE says why a deployment is not Ready: of RolledBack which release failed and why (it is not tried again until a newer one comes), of
Held what holds it and until when: a window, a pause, a lock on the site, or a removal that somebody has to confirm.`,
		Example: `  # all that is wrong on one cluster
  shoal get deployments --cluster paris

  # one bundle on all clusters of all workspaces
  shoal get deployments --bundle web -A`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			ns, err := a.kubernetes.Namespace()
			if err != nil {
				return err
			}
			w := watch.Options{Cluster: cluster, Once: true, Log: zerolog.Nop()}
			if !o.allNamespaces {
				w.Workspace = ns
			}
			if w.Prefix, err = topics.ParsePrefix(f.prefix); err != nil {
				return fmt.Errorf("--topic-prefix: %w", err)
			}
			if w.Credential, err = f.credential(cmd.Context(), a); err != nil {
				return err
			}
			list, err := deployments(cmd.Context(), w, bundle)
			if err != nil {
				return a.withoutHub(cmd.Context(), err, f.systemNamespace)
			}
			return o.print(a, list, deploymentTable(list, time.Now()), ns)
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "only of this cluster")
	cmd.Flags().StringVar(&bundle, "bundle", "", "only of this bundle")
	_ = cmd.RegisterFlagCompletionFunc("cluster", a.completeClusters)
	_ = cmd.RegisterFlagCompletionFunc("bundle", a.completeBundles)
	o.register(cmd)
	f.register(cmd)
	return cmd
}

// withoutHub adds to an error of the broker that there is no hub, if that is known: the broker is in it.
func (a *app) withoutHub(ctx context.Context, err error, system string) error {
	kube, _, kerr := a.hubClient()
	if kerr != nil {
		return err
	}
	if gone := hubGone(ctx, kube, system, time.Now()); gone != "" {
		return fmt.Errorf("%w: %s; shoal get bundles and clusters show what it knew then", err, gone)
	}
	return err
}

// deployments collects what clusters are ordered and what they report.
func deployments(ctx context.Context, w watch.Options, bundle string) ([]deployment, error) {
	members := map[topics.Cluster]fleet.Member{}
	var bad error
	w.Kinds = []topics.Kind{topics.Desired, topics.Reported}
	w.Handle = func(t topics.Topic, m mqtt.Message) {
		x := members[t.ClusterID()]
		var err error
		if t.Kind == topics.Reported {
			x.Reported, err = bundlefmt.ParseReported(m.Payload, bundlefmt.DefaultLimits())
		} else if len(m.Payload) > 0 {
			var i *bundlefmt.Inspection // it is only shown
			if i, err = bundlefmt.Inspect(m.Payload, bundlefmt.DefaultLimits()); err == nil {
				x.Ordered = i.Desired
			}
		}
		if err != nil {
			bad = errors.Join(bad, fmt.Errorf("cluster %s: %w", t.ClusterID(), err))
			return
		}
		members[t.ClusterID()] = x
	}
	if err := watch.Run(ctx, w, io.Discard); err != nil {
		return nil, err
	}
	list := []deployment{}
	for c, m := range members {
		for _, d := range standings(m) {
			if bundle == "" || d.Name == bundle {
				list = append(list, deployment{c.Workspace, c.Name, d})
			}
		}
	}
	slices.SortFunc(list, func(a, b deployment) int {
		return cmp.Or(strings.Compare(a.Workspace, b.Workspace), strings.Compare(a.Cluster, b.Cluster), strings.Compare(a.Name, b.Name))
	})
	return list, bad
}

// standings are the reports of a cluster, each with the state that it has beside what is ordered, and what is ordered and not reported.
func standings(m fleet.Member) []bundlefmt.DeploymentReport {
	var out []bundlefmt.DeploymentReport
	known := append(m.Deployments(), m.Leaving()...)
	if m.Reported != nil {
		for _, d := range m.Reported.Deployments {
			if slices.Contains(known, d.Name) {
				s := m.Status(d.Name)
				d.State, d.Message = bundlefmt.State(s.State), s.Message
			}
			out = append(out, d)
		}
	}
	for _, name := range known {
		if _, ok := m.Report(name); !ok {
			s := m.Status(name)
			e, _ := m.Entry(name)
			out = append(out, bundlefmt.DeploymentReport{Name: name, Serial: e.Serial, Digest: e.Digest, State: bundlefmt.State(s.State), Message: s.Message})
		}
	}
	return out
}

func deploymentTable(list []deployment, now time.Time) table {
	t := table{header: []string{"WORKSPACE", "CLUSTER", "BUNDLE", "STATE", "OBJECTS", "RELEASE", "SINCE", "MESSAGE"}}
	for _, d := range list {
		release := d.Serial.String()
		if !d.Digest.IsZero() {
			release += "@" + d.Digest.Short()[:12]
		}
		t.rows = append(t.rows, []string{d.Workspace, d.Cluster, d.Name, string(d.State), strconv.Itoa(d.Ready) + "/" + strconv.Itoa(d.Total), release, age(d.Since, now), firstFinding(d.DeploymentReport)})
	}
	return t
}

// firstFinding is the message, or else the first object that is not as it should be and how many more there are.
func firstFinding(d bundlefmt.DeploymentReport) string {
	if d.Message != "" {
		return d.Message
	}
	found := append(slices.Clone(d.Modified), d.NotReady...)
	if len(found) == 0 {
		return ""
	}
	s := found[0].Ref.String() + ": " + found[0].Reason
	if more := max(d.ModifiedCount+d.NotReadyCount, len(found)) - 1; more > 0 {
		s += fmt.Sprintf(" (and %d more)", more)
	}
	return s
}
