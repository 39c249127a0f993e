package reconcile

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
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
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/controller/render"
	"shoal.dev/shoal/controller/rollout"
	"shoal.dev/shoal/controller/target"
	"shoal.dev/shoal/topics"
)

// ConfirmRemoval, on a Bundle, confirms a held removal: its value is the number of clusters that the status names.
const ConfirmRemoval = "shoal.dev/confirm-removal"

// reconcileBundle decides for every cluster what it is to have of one bundle.
func (h *Hub) reconcileBundle(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var b v1alpha1.Bundle
	if err := h.Client.Get(ctx, req.NamespacedName, &b); err != nil {
		h.View.Looked(req.Namespace, req.Name)
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
	if err != nil {
		return ctrl.Result{}, err // not looked at: documents wait
	}
	h.View.Looked(req.Namespace, req.Name)
	if mistake != nil {
		p.fail(mistake)
	}
	if err := h.writeStatus(ctx, before, &b); err != nil {
		return ctrl.Result{}, err
	}
	if b.Annotations[ConfirmRemoval] != "" && p.losing == 0 {
		// Used up: it must not confirm the next removal that happens to hit as many.
		patch := client.MergeFrom(b.DeepCopy())
		delete(b.Annotations, ConfirmRemoval)
		return ctrl.Result{}, client.IgnoreNotFound(h.Client.Patch(ctx, &b, patch))
	}
	return ctrl.Result{}, nil
}

// pass is one look at one bundle.
type pass struct {
	*Hub
	bundle   *v1alpha1.Bundle
	clusters []v1alpha1.Cluster
	now      time.Time

	matches  []target.Match
	releases map[string]outcome // by cluster
	failures []string
	notes    []string
	files    [32]byte // see render.Input.ResourcesKey
	losing   int
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
			all = append(all, target.Cluster{Name: c.Name, Labels: c.Labels})
		}
	}
	if p.matches, err = target.Select(p.bundle.Spec, all, groups); err != nil {
		return err, nil
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
	p.assign(members)
	p.remove()
	p.status()
	return nil, nil
}

// renderAll renders once per distinct set of inputs.
func (p *pass) renderAll(ctx context.Context) error {
	p.releases = make(map[string]outcome, len(p.matches))
	byName := make(map[string]*v1alpha1.Cluster, len(p.clusters))
	for i := range p.clusters {
		byName[p.clusters[i].Name] = &p.clusters[i]
	}
	p.files = render.ResourcesKey(p.bundle.Spec.Resources)
	seen := map[string]outcome{}
	for _, m := range p.matches {
		cl := byName[m.Cluster]
		if cl.Status.KubernetesVersion == "" {
			p.releases[m.Cluster] = outcome{wait: "waits for the cluster to connect once: what it gets depends on its Kubernetes version"}
			continue
		}
		opts, err := json.Marshal(m.Options)
		if err != nil {
			return fmt.Errorf("encode options of %s: %w", m.Target, err)
		}
		key := cl.Status.KubernetesVersion + "\x00" + cl.Status.APIVersions + "\x00" + string(opts)
		out, ok := seen[key]
		if !ok {
			if out, err = p.render(ctx, m, cl); err != nil {
				return err
			}
			seen[key] = out
		}
		p.releases[m.Cluster] = out
	}
	return nil
}

// render makes and seals one release. Only errors that trying again may cure are returned; what is wrong with the bundle
// itself is the outcome.
func (p *pass) render(ctx context.Context, m target.Match, cl *v1alpha1.Cluster) (outcome, error) {
	apis, err := p.apiVersions(ctx, cl.Status.APIVersions)
	if err != nil {
		return outcome{}, err
	}
	in := render.Input{Name: p.bundle.Name, Resources: p.bundle.Spec.Resources, Options: m.Options, KubeVersion: cl.Status.KubernetesVersion, APIVersions: apis, ResourcesKey: p.files}
	rendered, err := p.Render.Render(in)
	if err == nil {
		_, err = p.Publisher.Seal(rendered.Bundle, p.now)
	}
	if err != nil {
		msg := fmt.Sprintf("target %s: %v", m.Target, err)
		if !slices.Contains(p.failures, msg) {
			p.failures = append(p.failures, msg)
		}
		return outcome{failed: true, wait: msg}, nil
	}
	p.notes = append(p.notes, rendered.Notes...)
	return outcome{release: rollout.Release{Digest: rendered.Bundle.Digest(), Policy: policy(m.Options)}}, nil
}

// policy is how the agents are to treat the release.
func policy(o v1alpha1.BundleOptions) bundlefmt.Policy {
	p := bundlefmt.Policy{Namespace: o.DefaultNamespace, KeepResources: o.KeepResources}
	if o.Namespace != "" {
		p.Namespace, p.ForceNamespace = o.Namespace, true
	}
	if o.CreateNamespace != nil {
		p.NoCreateNamespace = !*o.CreateNamespace
	}
	if o.CorrectDrift != nil {
		p.CorrectDrift, p.CorrectDriftForce = o.CorrectDrift.Enabled, o.CorrectDrift.Force
	}
	return p
}

// assign lets the rollout decide who moves now. groups lists the members of each group.
func (p *pass) assign(groups map[string][]string) {
	var members []rollout.Member
	wanting := map[bundlefmt.Digest][]string{}
	paused := map[string]bool{}
	for _, c := range p.clusters {
		paused[c.Name] = c.Spec.Paused
	}
	for _, m := range p.matches {
		out := p.releases[m.Cluster]
		if out.release.IsZero() {
			continue
		}
		member := p.View.Get(p.id(m.Cluster))
		members = append(members, rollout.Member{
			Cluster: m.Cluster, Wanted: out.release, Ordered: current(member, p.bundle.Name), Available: available(member, p.bundle.Name), Paused: paused[m.Cluster],
		})
		wanting[out.release.Digest] = append(wanting[out.release.Digest], m.Cluster)
	}
	held := map[string]string{}
	for _, s := range rollout.Next(rollout.Strategy{MaxUnavailable: p.maxUnavailable(), Paused: p.bundle.Spec.Paused}, members) {
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
		a := publish.Assignment{Release: out.release, Revision: "generation-" + strconv.FormatInt(p.bundle.Generation, 10), Group: audience[out.release.Digest], Wait: out.wait, Failed: out.failed}
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

func (p *pass) maxUnavailable() *intOrString {
	if p.bundle.Spec.RolloutStrategy == nil {
		return nil
	}
	return p.bundle.Spec.RolloutStrategy.MaxUnavailable
}

// remove orders the bundle away from clusters that it no longer targets. More of them than usual wait for a confirmation.
func (p *pass) remove() {
	was := p.bundle.Status.RemovalHeld
	p.bundle.Status.RemovalHeld = nil
	having := p.View.Having(p.bundle.Namespace, p.bundle.Name)
	lose := slices.DeleteFunc(p.targetsNot(having), func(name string) bool { // a paused cluster keeps what it has
		return slices.ContainsFunc(p.clusters, func(c v1alpha1.Cluster) bool { return c.Name == name && c.Spec.Paused })
	})
	p.losing = len(lose)
	if rollout.HoldRemoval(len(having), len(lose)) && p.bundle.Annotations[ConfirmRemoval] != strconv.Itoa(len(lose)) {
		p.bundle.Status.RemovalHeld = &v1alpha1.RemovalHeld{
			Clusters: int32(len(lose)),
			Message: fmt.Sprintf("its targets no longer match %d of the %d clusters that have it; nothing is removed until you confirm: kubectl -n %s annotate bundles.shoal.dev %s %s=%d",
				len(lose), len(having), p.bundle.Namespace, p.bundle.Name, ConfirmRemoval, len(lose)),
			Since: metav1.NewTime(p.now.Truncate(time.Second)),
		}
		if was != nil {
			p.bundle.Status.RemovalHeld.Since = was.Since
		}
		return
	}
	for _, name := range lose {
		p.View.Assign(p.id(name), p.bundle.Name, p.removal(name))
	}
}

// removal takes the bundle away; whether objects stay is what the site was last told.
func (p *pass) removal(cluster string) publish.Assignment {
	return publish.Assignment{Remove: true, Release: current(p.View.Get(p.id(cluster)), p.bundle.Name)}
}

// targetsNot returns the clusters among having that exist and are not targeted.
func (p *pass) targetsNot(having []string) []string {
	return slices.DeleteFunc(slices.Clone(having), func(name string) bool {
		exists := slices.ContainsFunc(p.clusters, func(c v1alpha1.Cluster) bool { return c.Name == name && c.DeletionTimestamp == nil })
		return !exists || slices.ContainsFunc(p.matches, func(m target.Match) bool { return m.Cluster == name })
	})
}

func (p *pass) id(cluster string) topics.Cluster {
	return topics.Cluster{Workspace: p.bundle.Namespace, Name: cluster}
}

// status sums up where the bundle is on all its clusters.
func (p *pass) status() {
	var t tally
	for _, m := range p.matches {
		member := p.View.Get(p.id(m.Cluster))
		t.add(m.Cluster, stand(member, p.bundle.Name), member.Link == "Offline")
	}
	message := t.message()
	state := t.worst
	switch {
	case p.bundle.Status.RemovalHeld != nil:
		state, message = cmp.Or(state, v1alpha1.StateOutOfSync), p.bundle.Status.RemovalHeld.Message
	case len(p.matches) == 0:
		state = v1alpha1.StatePending
		message = fmt.Sprintf("no cluster matches its targets (of %d in namespace %s)", len(p.clusters), p.bundle.Namespace)
		if len(p.bundle.Spec.Targets) == 0 {
			message = fmt.Sprintf("it has no targets, so it is for the cluster group %q, which holds no cluster", target.DefaultGroup)
		}
	}
	p.show(state, message, &t)
	rendered := metav1.Condition{Type: v1alpha1.ConditionRendered, Status: metav1.ConditionTrue, Reason: "Rendered", ObservedGeneration: p.bundle.Generation}
	slices.Sort(p.notes)
	rendered.Message = clip(joinLines(slices.Compact(p.notes)))
	if len(p.failures) > 0 {
		slices.Sort(p.failures)
		rendered.Status, rendered.Reason, rendered.Message = metav1.ConditionFalse, "RenderFailed", clip(joinLines(p.failures))
	}
	meta.SetStatusCondition(&p.bundle.Status.Conditions, rendered)
}

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
	p.bundle.Status.NotReady = t.worstFirst()
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

// deleteBundle orders the bundle away everywhere and lets it go once every document in force says so: from then on the order
// stands on the broker, and waits there for clusters without a link.
func (h *Hub) deleteBundle(ctx context.Context, b *v1alpha1.Bundle, clusters []v1alpha1.Cluster) (ctrl.Result, error) {
	if !controllerutil.ContainsFinalizer(b, Finalizer) {
		return ctrl.Result{}, nil
	}
	p := pass{Hub: h, bundle: b, clusters: clusters}
	left := 0
	for _, name := range p.targetsNot(h.View.Having(b.Namespace, b.Name)) {
		if a := h.View.Get(p.id(name)).Assigned[b.Name]; !a.Remove {
			h.View.Assign(p.id(name), b.Name, p.removal(name))
		}
		if _, ordered := h.View.Get(p.id(name)).Entry(b.Name); ordered {
			left++
		}
	}
	for _, c := range clusters { // those that were only promised it so far
		if a, ok := h.View.Get(p.id(c.Name)).Assigned[b.Name]; ok && !a.Remove {
			h.View.Assign(p.id(c.Name), b.Name, publish.Assignment{Remove: true})
		}
	}
	if left > 0 {
		return ctrl.Result{RequeueAfter: time.Second}, nil
	}
	controllerutil.RemoveFinalizer(b, Finalizer)
	if err := h.Client.Update(ctx, b); err != nil {
		return ctrl.Result{}, ignoreConflict(client.IgnoreNotFound(err))
	}
	h.Log.Info().Str("bundle", b.Namespace+"/"+b.Name).Msg("bundle deleted")
	return ctrl.Result{}, nil
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

// ignoreConflict: somebody else wrote first; their change brings us here again.
func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}
