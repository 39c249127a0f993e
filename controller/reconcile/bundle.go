package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/fleet"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/render"
	"shoal.dev/shoal/controller/rollout"
	"shoal.dev/shoal/controller/target"
	"shoal.dev/shoal/topics"
)

// ConfirmRemoval confirms a held removal. On a Bundle its value is the number of clusters that the status names, on a Cluster the
// number of deployments that its agent names.
const ConfirmRemoval = "shoal.dev/confirm-removal"

// reconcileBundle decides for every cluster what it is to have of one bundle.
func (h *Hub) reconcileBundle(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var b v1alpha1.Bundle
	if err := h.Client.Get(ctx, req.NamespacedName, &b); err != nil {
		if apierrors.IsNotFound(err) {
			h.View.Gone(req.Namespace, req.Name)
		}
		// Gone without a farewell (its finalizer was taken off, or this is another cluster's API): absence removes nothing.
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	var clusters v1alpha1.ClusterList
	if err := h.Client.List(ctx, &clusters, client.InNamespace(req.Namespace)); err != nil {
		return ctrl.Result{}, fmt.Errorf("list clusters: %w", err)
	}
	if b.DeletionTimestamp != nil {
		defer h.View.Looked(req.Namespace, req.Name)
		return h.deleteBundle(ctx, &b, clusters.Items)
	}
	if controllerutil.AddFinalizer(&b, Finalizer) {
		if err := h.Client.Update(ctx, &b); err != nil {
			return ctrl.Result{}, ignoreConflict(err)
		}
	}
	before := b.DeepCopy()
	p := pass{Hub: h, bundle: &b, clusters: clusters.Items, now: time.Now()}
	mistake, err := p.run(ctx)
	if err != nil { // not looked at: documents wait
		h.View.Unlooked(req.Namespace, req.Name, err.Error())
		p.headline(v1alpha1.StatePending, clip("the hub could not look at it and tries again: "+err.Error()), b.Status.Display.ReadyClusters)
		return ctrl.Result{}, errors.Join(err, h.writeStatus(ctx, before, &b))
	}
	h.View.Looked(req.Namespace, req.Name)
	if mistake != nil {
		p.fail(mistake)
	}
	if err := h.writeStatus(ctx, before, &b); err != nil {
		return ctrl.Result{}, err
	}
	if err := h.settlePrune(ctx, &b); err != nil {
		return ctrl.Result{}, err
	}
	if b.Annotations[ConfirmRemoval] != "" && p.losing == 0 {
		// Used up: it must not confirm the next removal that happens to hit as many.
		patch := client.MergeFrom(b.DeepCopy())
		delete(b.Annotations, ConfirmRemoval)
		return ctrl.Result{}, client.IgnoreNotFound(h.Client.Patch(ctx, &b, patch))
	}
	if len(p.extras) > 0 {
		return ctrl.Result{RequeueAfter: downstreamEvery}, nil
	}
	return ctrl.Result{}, nil
}

// Made, on a Bundle that a backup was put back from, is when it was made first, in RFC 3339: what charts make of the time must not
// change because the object is a new one.
const Made = "shoal.dev/made"

// made is when a bundle was made: what charts read as now.
func made(b *v1alpha1.Bundle) time.Time {
	if t, err := time.Parse(time.RFC3339, b.Annotations[Made]); err == nil {
		return t
	}
	return b.CreationTimestamp.Time
}

// pass is one look at one bundle.
type pass struct {
	*Hub
	bundle   *v1alpha1.Bundle
	clusters []v1alpha1.Cluster
	now      time.Time

	matches    []target.Match
	partitions []rollout.Partition
	depends    dependencies
	releases   map[string]outcome // by cluster
	extras     map[v1alpha1.DownstreamResource]extra
	failures   map[string]bool
	notes      map[string]bool
	files      [32]byte // see render.Input.ResourcesKey
	vacant     []string // groups of its targets that hold no cluster
	losing     int
}

// outcome is what one cluster should run.
type outcome struct {
	release rollout.Release
	wait    string // why it is not known yet
	failed  bool
}

// run returns what is wrong with the bundle as a whole, which only a change of it cures, apart from errors that trying again
// may cure.
func (p *pass) run(ctx context.Context) (mistake, err error) {
	groups, err := p.groups(ctx, p.bundle.Namespace)
	if err != nil {
		return nil, err
	}
	all := make([]target.Cluster, 0, len(p.clusters))
	for _, c := range p.clusters {
		if c.DeletionTimestamp == nil {
			all = append(all, target.Cluster{Name: c.Name, Namespace: c.Namespace, Labels: c.Labels, Annotations: c.Annotations, Values: c.Spec.TemplateValues})
		}
	}
	if err := target.CheckGroups(p.bundle.Spec, groups); err != nil {
		return err, nil
	}
	p.vacant = target.Vacant(p.bundle.Spec, all, groups)
	if p.matches, err = target.Select(p.bundle.Spec, all, groups); err != nil {
		return err, nil
	}
	if p.partitions, err = partitions(p.bundle.Spec.RolloutStrategy, all, groups); err != nil {
		return err, nil
	}
	if err := p.strategy().Check(); err != nil {
		return fmt.Errorf("rolloutStrategy.%w; clusters keep what they have", err), nil
	}
	if len(p.bundle.Spec.DependsOn) > 0 {
		var list v1alpha1.BundleList
		if err := p.Client.List(ctx, &list, client.InNamespace(p.bundle.Namespace)); err != nil {
			return nil, fmt.Errorf("list bundles: %w", err)
		}
		if p.depends, err = dependsOn(p.bundle, list.Items, all, groups); err != nil {
			return err, nil
		}
	}
	if err := p.renderAll(ctx); err != nil {
		return nil, err
	}
	members := map[string][]string{}
	for _, c := range all {
		for _, g := range target.Groups(c, groups) {
			members[g] = append(members[g], c.Name)
		}
	}
	p.emptyPartitions()
	p.assign(members)
	p.remove()
	p.status()
	return nil, nil
}

// renderAll renders once per distinct set of inputs.
func (p *pass) renderAll(ctx context.Context) error {
	p.releases = make(map[string]outcome, len(p.matches))
	p.failures, p.notes = map[string]bool{}, map[string]bool{}
	byName := make(map[string]*v1alpha1.Cluster, len(p.clusters))
	for i := range p.clusters {
		byName[p.clusters[i].Name] = &p.clusters[i]
	}
	p.files = render.ResourcesKey(p.bundle.Spec.Resources)
	type inputs struct {
		kube, apis string
		distinct   int
	}
	seen := map[inputs]outcome{}
	for _, m := range p.matches {
		cl := byName[m.Cluster]
		if m.Err != nil {
			p.releases[m.Cluster] = p.failed(m.Err)
			continue
		}
		for _, n := range m.Notes {
			p.notes[fmt.Sprintf("target %s: %s", m.Target, n)] = true
		}
		if cl.Status.KubernetesVersion == "" {
			p.releases[m.Cluster] = outcome{wait: "waits for the cluster to connect once: what it gets depends on its Kubernetes version"}
			continue
		}
		key := inputs{cl.Status.KubernetesVersion, cl.Status.APIVersions, m.Distinct}
		out, ok := seen[key]
		if !ok {
			var err error
			if out, err = p.render(ctx, m, cl); err != nil {
				return err
			}
			seen[key] = out
		}
		p.releases[m.Cluster] = p.after(out, m.Cluster)
	}
	return nil
}

// after adds what comes first on a cluster.
func (p *pass) after(out outcome, cluster string) outcome {
	if out.failed {
		return out
	}
	first, err := p.depends.of(cluster)
	if err != nil {
		return p.failed(err)
	}
	if why := p.awaits(first, cluster); why != "" {
		return outcome{wait: why}
	}
	out.release.Policy.DependsOn = first
	return out
}

// awaits says which dependency holds this bundle on a cluster at the hub; empty: none. What the cluster says of a dependency is about
// the release that it has; only the hub knows that a newer one is wanted there and cannot be ordered.
func (p *pass) awaits(first []bundlefmt.Dependency, cluster string) string {
	member := p.View.Get(p.id(cluster))
	for _, d := range first {
		a, ok := member.Assigned[d.Name]
		if !ok || !a.Failed && a.Wait == "" && member.Problem.Message == "" {
			continue // it is decided and goes out before this one, or with it
		}
		s, accepted := member.Status(d.Name), d.States
		if len(accepted) == 0 {
			accepted = []bundlefmt.State{bundlefmt.Ready}
		}
		if !slices.Contains(accepted, bundlefmt.State(s.State)) {
			return fmt.Sprintf("waits for bundle %s (%s): %s", d.Name, s.State, s.Message)
		}
	}
	return ""
}

// failed is the outcome for a cluster that keeps what it has until a mistake is corrected.
func (p *pass) failed(err error) outcome {
	p.failures[err.Error()] = true
	return outcome{failed: true, wait: err.Error()}
}

// render makes and seals one release. Only errors that trying again may cure are returned; what is wrong with the bundle
// itself is the outcome.
func (p *pass) render(ctx context.Context, m target.Match, cl *v1alpha1.Cluster) (outcome, error) {
	apis, err := p.apiVersions(ctx, cl.Status.APIVersions)
	switch {
	case apierrors.IsNotFound(err): // somebody deleted it: the cluster tells once more
		return outcome{wait: "waits for the cluster to tell its API versions again: " + err.Error()}, p.unlearn(ctx, cl)
	case err != nil:
		return outcome{}, err
	}
	extras, problem, err := p.downstream(ctx, m.Options.DownstreamResources)
	switch {
	case err != nil:
		return outcome{}, err
	case problem != nil:
		return p.failed(fmt.Errorf("target %s: %w", m.Target, problem)), nil
	}
	spec := p.bundle.Spec
	in := render.Input{
		Name: p.bundle.Name, Resources: spec.Resources, Options: m.Options, Vars: m.Vars, Ignore: spec.Ignore, Health: spec.Health, Extra: extras,
		KubeVersion: cl.Status.KubernetesVersion, APIVersions: apis, ResourcesKey: p.files,
		Random: render.RandomOf(p.Keys.Random(), p.bundle.Namespace, p.bundle.Name, made(p.bundle)),
	}
	rendered, err := p.Render.Render(in)
	if err == nil {
		_, err = p.Publisher.Seal(rendered.Bundle, p.now)
	}
	if err != nil {
		return p.failed(fmt.Errorf("target %s: %w", m.Target, err)), nil
	}
	for _, n := range rendered.Notes {
		p.notes[n] = true
	}
	return outcome{release: rollout.Release{Digest: rendered.Bundle.Digest(), Policy: policy(spec, m.Options, p.DefaultRollback)}}, nil
}

// partitions are the clusters of each part of a rollout.
func partitions(s *v1alpha1.RolloutStrategy, clusters []target.Cluster, groups []target.Group) ([]rollout.Partition, error) {
	if s == nil {
		return nil, nil
	}
	var out []rollout.Partition
	for i, p := range s.Partitions {
		names, err := target.Matching(p.ClusterMatch, clusters, groups)
		if err != nil {
			return nil, fmt.Errorf("rolloutStrategy.partitions[%d]: %w", i, err)
		}
		out = append(out, rollout.Partition{Name: p.Name, Clusters: names, MaxUnavailable: p.MaxUnavailable, MaxNotReady: p.MaxNotReady})
	}
	return out, nil
}

// emptyPartitions notes the partitions that gate nothing, because they hold no cluster of the bundle: a typing error, often.
func (p *pass) emptyPartitions() {
	for i, q := range p.partitions {
		if !slices.ContainsFunc(p.matches, func(m target.Match) bool { return slices.Contains(q.Clusters, m.Cluster) }) {
			where := fmt.Sprintf("rolloutStrategy.partitions[%d]", i)
			if q.Name != "" {
				where += fmt.Sprintf(" (%s)", q.Name)
			}
			p.notes[where+": holds no cluster of this bundle, so no other waits for it"] = true
		}
	}
}

// assign lets the rollout decide who moves now. groups lists the members of each group.
func (p *pass) assign(groups map[string][]string) {
	var members []rollout.Member
	confirms := confirmsPrune(p.bundle)
	wanting := map[bundlefmt.Digest][]string{}
	byName := map[string]*v1alpha1.Cluster{}
	for i := range p.clusters {
		byName[p.clusters[i].Name] = &p.clusters[i]
	}
	for _, m := range p.matches {
		out := p.releases[m.Cluster]
		member := p.View.Get(p.id(m.Cluster))
		if !out.release.IsZero() {
			out.release = confirmed(out.release, member, p.bundle.Name, confirms)
			p.releases[m.Cluster] = out
			wanting[out.release.Digest] = append(wanting[out.release.Digest], m.Cluster)
		}
		members = append(members, rollout.Member{
			Cluster: m.Cluster, Wanted: out.release, Ordered: member.Release(p.bundle.Name), Available: member.Available(p.bundle.Name),
			Paused: byName[m.Cluster].Spec.Paused, Away: member.Away(p.bundle.Name, out.release),
		})
	}
	held := map[string]string{}
	for _, s := range rollout.Next(p.strategy(), members) {
		if !s.Move {
			held[s.Cluster] = s.Reason
		}
	}
	audience := map[bundlefmt.Digest]string{}
	for d, names := range wanting {
		audience[d] = publish.Audience(names, groups, topics.All)
	}
	for _, m := range p.matches {
		out, id := p.releases[m.Cluster], p.id(m.Cluster)
		a := publish.Assignment{
			Release: out.release, Revision: "generation-" + strconv.FormatInt(p.bundle.Generation, 10), Group: audience[out.release.Digest],
			Wait: out.wait, Failed: out.failed, Generation: byName[m.Cluster].Generation,
		}
		if reason, wait := held[m.Cluster]; wait || a.Release.IsZero() {
			// It stays at what it was told, also if that could not be published yet.
			old := p.View.Get(id).Assigned[p.bundle.Name]
			if !old.Remove {
				a.Release, a.Group, a.Revision = old.Release, old.Group, old.Revision
			} else {
				a.Release = rollout.Release{}
			}
			if wait {
				a.Wait = reason
			}
		}
		p.View.Assign(id, p.bundle.Name, a)
	}
}

func (p *pass) strategy() rollout.Strategy {
	out := rollout.Strategy{Paused: p.bundle.Spec.Paused, Partitions: p.partitions}
	if s := p.bundle.Spec.RolloutStrategy; s != nil {
		out.MaxUnavailable, out.MaxNotReady, out.MaxUnavailablePartitions = s.MaxUnavailable, s.MaxNotReady, s.MaxUnavailablePartitions
		out.AutoPartitionSize, out.AutoPartitionThreshold, out.MaxNew = s.AutoPartitionSize, s.AutoPartitionThreshold, s.MaxNew
	}
	return out
}

// remove orders the bundle away from clusters that it no longer targets. More of them than usual wait for a confirmation, and nothing
// goes while the cluster or the bundle is paused.
func (p *pass) remove() {
	was := p.bundle.Status.RemovalHeld
	p.bundle.Status.RemovalHeld = nil
	having := p.View.Having(p.bundle.Namespace, p.bundle.Name)
	var lose []string
	for _, name := range p.targetsNot(having) {
		switch why := p.keeps(name); {
		case why != "":
			p.View.Assign(p.id(name), p.bundle.Name, p.removal(name, why))
		case !p.leaves(name):
			lose = append(lose, name)
		}
	}
	p.losing = len(lose)
	empty := ""
	if len(p.vacant) > 0 && len(lose) > 0 { // rather a mistake in a selector than the end of every member
		empty = strings.Join(p.vacant, ", ") + " holds no cluster now; "
	}
	held := ""
	if (empty != "" || rollout.HoldRemoval(len(having), len(lose))) && p.bundle.Annotations[ConfirmRemoval] != strconv.Itoa(len(lose)) {
		held = fmt.Sprintf("%sits targets no longer match %d of the %d clusters that have it; nothing is removed until you confirm: "+
			"kubectl -n %s annotate --overwrite bundles.shoal.dev %s %s=%d",
			empty, len(lose), len(having), p.bundle.Namespace, p.bundle.Name, ConfirmRemoval, len(lose))
		if n := p.bundle.Annotations[ConfirmRemoval]; n != "" {
			held = fmt.Sprintf("%s=%s confirms nothing: %s", ConfirmRemoval, clip(n), held)
		}
		p.bundle.Status.RemovalHeld = &v1alpha1.RemovalHeld{Clusters: int32(len(lose)), Message: held, Since: metav1.NewTime(p.now.Truncate(time.Second))}
		if was != nil {
			p.bundle.Status.RemovalHeld.Since = was.Since
		}
	}
	for _, name := range lose {
		p.View.Assign(p.id(name), p.bundle.Name, p.removal(name, held))
	}
}

// keeps says why nothing of the bundle may leave a cluster now; empty: it may.
func (p *pass) keeps(cluster string) string {
	const how = "it stays until that ends: kubectl -n %s patch %s.shoal.dev %s --type merge -p '{\"spec\":{\"paused\":false}}'"
	if p.bundle.Spec.Paused {
		return fmt.Sprintf("the bundle is to be removed, but it is paused; "+how, p.bundle.Namespace, "bundles", p.bundle.Name)
	}
	if slices.ContainsFunc(p.clusters, func(c v1alpha1.Cluster) bool { return c.Name == cluster && c.Spec.Paused }) {
		return fmt.Sprintf("the bundle is to be removed, but the cluster is paused; "+how, p.bundle.Namespace, "clusters", cluster)
	}
	return ""
}

// leaves says whether the removal from a cluster was decided before: nobody has to confirm it once more.
func (p *pass) leaves(cluster string) bool {
	m := p.View.Get(p.id(cluster))
	a := m.Assigned[p.bundle.Name]
	return a.Remove && a.Wait == "" || !a.Remove && a.Release.IsZero() && m.Removes(p.bundle.Name)
}

// removal takes the bundle away, unless wait says why not yet; whether objects stay is what the site was last told.
func (p *pass) removal(cluster, wait string) publish.Assignment {
	m := p.View.Get(p.id(cluster))
	out := publish.Assignment{Remove: true, Release: m.Release(p.bundle.Name), Wait: wait}
	if old := m.Assigned[p.bundle.Name]; old.Remove && out.Release.IsZero() {
		out.Release = old.Release
	}
	return out
}

// targetsNot returns the clusters among having that exist and are not targeted.
func (p *pass) targetsNot(having []string) []string {
	keep := map[string]bool{}
	for _, c := range p.clusters {
		keep[c.Name] = c.DeletionTimestamp != nil
	}
	for _, m := range p.matches {
		keep[m.Cluster] = true
	}
	return slices.DeleteFunc(slices.Clone(having), func(name string) bool {
		k, exists := keep[name]
		return k || !exists
	})
}

// unmatched are the clusters that are not targeted.
func (p *pass) unmatched() []string {
	matched := make(map[string]bool, len(p.matches))
	for _, m := range p.matches {
		matched[m.Cluster] = true
	}
	var names []string
	for _, c := range p.clusters {
		if !matched[c.Name] {
			names = append(names, c.Name)
		}
	}
	return names
}

func (p *pass) id(cluster string) topics.Cluster {
	return topics.Cluster{Workspace: p.bundle.Namespace, Name: cluster}
}

// status sums up where the bundle is on all its clusters.
func (p *pass) status() {
	var t tally
	for _, m := range p.matches {
		member := p.View.Get(p.id(m.Cluster))
		t.add(m.Cluster, member.Status(p.bundle.Name), member.Link == fleet.Offline)
	}
	for _, name := range p.unmatched() {
		if s, ok := p.View.Get(p.id(name)).Removal(p.bundle.Name); ok {
			t.leaving(name, s)
		}
	}
	message := t.message()
	state := t.worst
	switch {
	case p.bundle.Status.RemovalHeld != nil:
		state, message = cmp.Or(state, v1alpha1.StateOutOfSync), p.bundle.Status.RemovalHeld.Message
	case len(p.matches) == 0 && state == "":
		state = v1alpha1.StatePending
		message = fmt.Sprintf("no cluster matches its targets (of %d in namespace %s)", len(p.clusters), p.bundle.Namespace)
		if len(p.bundle.Spec.Targets) == 0 {
			message = fmt.Sprintf("it has no targets, so it is for the cluster group %q, which holds no cluster", target.DefaultGroup)
		}
	}
	p.show(state, message, &t)
	rendered := metav1.Condition{Type: v1alpha1.ConditionRendered, Status: metav1.ConditionTrue, Reason: "Rendered", ObservedGeneration: p.bundle.Generation}
	rendered.Message = some(p.notes)
	if len(p.failures) > 0 {
		rendered.Status, rendered.Reason, rendered.Message = metav1.ConditionFalse, "RenderFailed", some(p.failures)
	}
	meta.SetStatusCondition(&p.bundle.Status.Conditions, rendered)
}

// some is sentences for a status.
func some(set map[string]bool) string { return clip(joinLines(slices.Sorted(maps.Keys(set)))) }

// fail shows an error that keeps the whole bundle from being looked at; clusters keep what they have.
func (p *pass) fail(err error) {
	s := &p.bundle.Status // the counts stay what they were
	p.headline(v1alpha1.StateErrRendered, clip(err.Error()), s.Display.ReadyClusters)
	meta.SetStatusCondition(&p.bundle.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionRendered, Status: metav1.ConditionFalse, Reason: "Invalid", Message: clip(err.Error()), ObservedGeneration: p.bundle.Generation,
	})
}

func (p *pass) show(state v1alpha1.State, message string, t *tally) {
	p.bundle.Status.Summary = t.summary
	p.bundle.Status.NotReady = t.causesFirst()
	p.headline(state, message, t.ready())
}

func (p *pass) headline(state v1alpha1.State, message, counts string) {
	s := &p.bundle.Status
	s.ObservedGeneration = p.bundle.Generation
	s.StateSince = since(s.Display.State, state, s.StateSince, p.now)
	s.Display = v1alpha1.BundleDisplay{ReadyClusters: counts, State: state, Message: message}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: string(state), Message: message, ObservedGeneration: p.bundle.Generation}
	if state == v1alpha1.StateReady {
		ready.Status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&s.Conditions, ready)
}

// apiVersions reads the list that a Cluster's status names.
func (h *Hub) apiVersions(ctx context.Context, name string) ([]string, error) {
	if name == "" {
		return nil, nil
	}
	var cm corev1.ConfigMap
	if err := h.Client.Get(ctx, types.NamespacedName{Namespace: h.Namespace, Name: name}, &cm); err != nil {
		return nil, fmt.Errorf("read API versions: %w", err)
	}
	return lines(cm.Data[apiVersionsKey]), nil
}

// unlearn forgets which facts of a cluster the hub has, so that they are taken in again.
func (h *Hub) unlearn(ctx context.Context, cl *v1alpha1.Cluster) error {
	after := cl.DeepCopy()
	after.Status.Facts = ""
	if err := h.writeStatus(ctx, cl, after); err != nil {
		return err
	}
	h.Changed(topics.Cluster{Workspace: cl.Namespace, Name: cl.Name})
	return nil
}

// ignoreConflict: somebody else wrote first; their change brings us here again.
func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}
