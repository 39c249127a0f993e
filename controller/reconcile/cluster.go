package reconcile

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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
	"shoal.dev/shoal/controller/enroll"
	"shoal.dev/shoal/controller/fleet"
	"shoal.dev/shoal/controller/publish"
	"shoal.dev/shoal/topics"
)

// Resume, on a Cluster, is the consent that ends a conflict: what the hub wants is ordered, whatever the site follows. Its value is
// the number that the status names.
const Resume = "shoal.dev/resume"

// SerialInvalid is the reason while the number that the API has on record cannot be one.
const SerialInvalid = "SerialInvalid"

const (
	// again is how long a cluster with a link may leave a document unconfirmed before it is published once more.
	again = 30 * time.Second
	// apiVersionsKey is the key in ConfigMaps that hold API versions, one a line.
	apiVersionsKey = "apiVersions"
)

// reconcileCluster publishes what was decided for one cluster and writes down where it stands.
func (h *Hub) reconcileCluster(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	id := topics.Cluster{Workspace: req.Namespace, Name: req.Name}
	var cl v1alpha1.Cluster
	if err := h.Client.Get(ctx, req.NamespacedName, &cl); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err) // see Finalizer: absence alone clears nothing
	}
	if cl.DeletionTimestamp != nil {
		return ctrl.Result{}, h.deleteCluster(ctx, id, &cl)
	}
	if controllerutil.AddFinalizer(&cl, Finalizer) {
		if err := h.Client.Update(ctx, &cl); err != nil {
			return ctrl.Result{}, ignoreConflict(err)
		}
	}
	h.revoke(id, cl.Spec.AgentKeys)
	before := cl.DeepCopy()
	m := h.View.Get(id)
	if err := h.learn(ctx, id, m, &cl); err != nil {
		return ctrl.Result{}, err
	}
	open, wrong, err := h.windows(ctx, &cl)
	if err != nil {
		return ctrl.Result{}, err
	}
	blocked, failure := h.order(ctx, id, &cl, open, wrong)
	h.View.Block(id, blocked)
	m = h.View.Get(id)
	now := time.Now()
	linkStatus(&cl, m)
	if blocked.Reason != reasonStarting { // else all that was known stands until it is known again
		if blocked.Message == "" && wrong != nil {
			blocked = fleet.Problem{Reason: reasonWindow, Message: wrong.Error() + "; until that is corrected the windows from before hold"}
		}
		clusterStatus(&cl, m, blocked, now)
	}
	if err := errors.Join(failure, h.writeStatus(ctx, before, &cl)); err != nil {
		return ctrl.Result{}, err
	}
	if err := h.settleRemoval(ctx, &cl, m); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: h.next(m, &cl)}, nil
}

// next is when to look again without news.
func (h *Hub) next(m fleet.Member, cl *v1alpha1.Cluster) time.Duration {
	switch {
	case m.Problem.Reason == reasonNotSealed:
		return 2 * coalesce // the bundle is looked at meanwhile
	case m.Problem.Reason != "":
		return again
	case m.Link == fleet.Online && (unconfirmed(m) || unlearned(m, cl)):
		return again
	case h.StaleAfter > 0:
		return h.StaleAfter / 4
	}
	return 0
}

func unconfirmed(m fleet.Member) bool {
	return m.Ordered != nil && (m.Reported == nil || m.Reported.Serial < m.Ordered.Serial)
}

// Reasons why nothing is ordered for a cluster, for its Ready condition.
const (
	reasonStarting  = "HubStarting"
	reasonUnlooked  = "BundleNotLookedAt"
	reasonWindow    = "InvalidWindow"
	reasonReserve   = "SerialNotWritten"
	reasonTooLarge  = "DocumentTooLarge"
	reasonPublish   = "NotPublished"
	reasonNotSealed = "NotRendered"
)

// order publishes the cluster's next document if there is one. Whatever keeps it from that is returned as a problem, which the
// cluster and every bundle that waits because of it show; an error is worth trying again as well.
func (h *Hub) order(ctx context.Context, id topics.Cluster, cl *v1alpha1.Cluster, open []bundlefmt.Window, wrong error) (fleet.Problem, error) {
	if why := h.View.Incomplete(id.Workspace); why != "" {
		return fleet.Problem{Reason: reasonUnlooked, Message: "nothing is ordered: since it started the hub could not look at every bundle of the workspace: " + clip(why)}, nil
	}
	if !h.View.Complete(id.Workspace) { // Looked wakes us
		return fleet.Problem{Reason: reasonStarting, Message: "the hub has just started and has not looked at every bundle of the workspace yet"}, nil
	}
	if err := h.trust(ctx, id.Workspace); err != nil {
		return failing(reasonPublish, err)
	}
	m := h.View.Get(id)
	ground, blocked, err := h.ground(ctx, id, cl, m)
	if err != nil || blocked.Reason != "" {
		return blocked, err
	}
	if wrong != nil {
		if ground.Base == nil {
			return fleet.Problem{Reason: reasonWindow, Message: wrong.Error() + "; until that is corrected nothing is ordered: the cluster must not be changed outside of its windows"}, nil
		}
		open = ground.Base.Windows
	}
	now := time.Now()
	doc, news, left := publish.Document(publish.DocumentInput{
		Windows: open, Confirm: confirmedRemovals(cl, m),
		Ordered: ground.Base, Reported: m.Reported, Assigned: m.Assigned, Sealed: h.Publisher.Sealed, Serial: ground.Serial, Now: now, TTL: h.StaleAfter,
		InGroup: func(g string) bool { return g == topics.All || h.InGroup(id, g) },
		Exists:  func(bundle string) bool { return h.bundleExists(ctx, id.Workspace, bundle) },
		Limits:  bundlefmt.DefaultLimits(),
	})
	doc.Workspace, doc.Cluster = id.Workspace, id.Name
	h.View.LeaveOut(id, left)
	news = news || ground.Resumed
	if news {
		if blocked, err := h.publish(ctx, id, cl, doc); err != nil || blocked.Reason != "" {
			return blocked, err
		}
	}
	if missing := publish.Missing(doc, m.Assigned, left); len(missing) > 0 {
		for _, name := range missing {
			h.bundles.add(id.Workspace, name, coalesce)
		}
		return fleet.Problem{Reason: reasonNotSealed, Message: fmt.Sprintf("nothing newer is ordered of %s: it is being rendered again", strings.Join(missing, ", "))}, nil
	}
	if news {
		return fleet.Problem{}, nil
	}
	if m.Link == fleet.Online && unconfirmed(m) && now.Sub(m.SentAt) >= again {
		if err := h.Publisher.Document(ctx, id, m.Ordered.Serial, m.Message); err != nil {
			return failing(reasonPublish, err)
		}
		h.View.Sent(id, m.Ordered, m.Message, now)
	}
	return fleet.Problem{}, nil
}

// publish makes doc the document in force.
func (h *Hub) publish(ctx context.Context, id topics.Cluster, cl *v1alpha1.Cluster, doc *bundlefmt.Desired) (fleet.Problem, error) {
	// The number is written down before it is used: a broker that loses everything must not make it go back. Without it in the API a
	// later hub would take the document for one of a newer API: see publish.Records.
	if err := h.reserve(ctx, id, cl, doc.Serial); err != nil {
		return failing(reasonReserve, err)
	}
	now := time.Now()
	msg, err := h.Publisher.Desired(ctx, id, doc)
	if limit := (*bundlefmt.LimitError)(nil); errors.As(err, &limit) {
		return fleet.Problem{Reason: reasonTooLarge, Message: fmt.Sprintf("what is to be ordered does not fit one message, the cluster keeps what it has: %v; give it fewer bundles, dependencies or windows", limit)}, nil
	}
	if err != nil {
		return failing(reasonPublish, err)
	}
	h.floors.publish(id)
	h.View.Sent(id, doc, msg, now)
	h.Log.Info().Str("cluster", id.String()).Uint64("serial", uint64(doc.Serial)).Int("deployments", len(doc.Deployments)).Int("remove", len(doc.Remove)).Int("bytes", len(msg)).Msg("desired document published")
	h.Changed(id)
	return fleet.Problem{}, nil
}

// failing is a problem that is tried again.
func failing(reason string, err error) (fleet.Problem, error) {
	return fleet.Problem{Reason: reason, Message: "nothing is ordered, the hub tries again: " + clip(err.Error())}, err
}

func (h *Hub) trust(ctx context.Context, workspace string) error {
	doc, err := h.Keys.TrustDocument(workspace)
	if err != nil {
		return err
	}
	return h.Publisher.Trust(ctx, workspace, doc)
}

// heldRemovals lists what the cluster was told to remove and holds, because nobody has seen yet how much that is.
func heldRemovals(m fleet.Member) (names []string, message string) {
	if m.Ordered == nil {
		return nil, ""
	}
	for _, r := range m.Ordered.Remove {
		if d, ok := m.Report(r.Name); ok && !r.Confirmed && !r.Keep && d.State == bundlefmt.Held && strings.HasPrefix(d.Message, bundlefmt.RemovalsHeld) {
			names, message = append(names, r.Name), d.Message
		}
	}
	return names, message
}

// confirmedRemovals are the held ones, if somebody has confirmed just as many.
func confirmedRemovals(cl *v1alpha1.Cluster, m fleet.Member) []string {
	names, _ := heldRemovals(m)
	if len(names) == 0 || cl.Annotations[ConfirmRemoval] != strconv.Itoa(len(names)) {
		return nil
	}
	return names
}

// settleRemoval takes a confirmation away that is used up: it must not confirm the next removal that happens to be as large.
func (h *Hub) settleRemoval(ctx context.Context, cl *v1alpha1.Cluster, m fleet.Member) error {
	if cl.Annotations[ConfirmRemoval] == "" || m.Reported == nil || !h.View.Complete(cl.Namespace) {
		return nil
	}
	if names, _ := heldRemovals(m); len(names) > 0 {
		return nil
	}
	patch := client.MergeFrom(cl.DeepCopy())
	delete(cl.Annotations, ConfirmRemoval)
	if err := h.Client.Patch(ctx, cl, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("take annotation %s away: %w", ConfirmRemoval, err)
	}
	return nil
}

// ground compares what API, broker and cluster say of its documents. The problem is why nothing may be ordered.
func (h *Hub) ground(ctx context.Context, id topics.Cluster, cl *v1alpha1.Cluster, m fleet.Member) (publish.Ground, fleet.Problem, error) {
	r := m.Records()
	var ordered, reported bundlefmt.Serial
	if r.Ordered != nil {
		ordered = r.Ordered.Serial
	}
	if r.Reported != nil {
		reported = r.Reported.Serial
	}
	serial := cl.Status.DesiredSerial
	if serial >= 0 && h.floors.get(id, bundlefmt.Serial(serial)) < ordered {
		// Nothing was written down by this process yet, and the cache may be behind: such a thing is not said before it was read.
		var now v1alpha1.Cluster
		if err := h.Direct.Get(ctx, client.ObjectKeyFromObject(cl), &now); err != nil {
			blocked, err := failing(reasonReserve, fmt.Errorf("read the serial written down last: %w", err))
			return publish.Ground{}, blocked, err
		}
		serial = now.Status.DesiredSerial
	}
	if serial < 0 || serial >= int64(bundlefmt.MaxSerial) {
		return publish.Ground{}, fleet.Problem{Reason: SerialInvalid, Message: fmt.Sprintf(
			"status.desiredSerial is %d, which is no number of a document that another can follow; nothing is ordered until you correct it: kubectl -n %s patch clusters.shoal.dev %s --subresource=status --type=merge -p '{\"status\":{\"desiredSerial\":%d}}'",
			serial, id.Workspace, id.Name, max(h.floors.get(id, 0), ordered, reported))}, nil
	}
	r.API, r.Resume, r.Unused = h.floors.get(id, bundlefmt.Serial(serial)), cl.Annotations[Resume], h.floors.unused(id)
	ground, conflict := r.Agree()
	if conflict == nil {
		return *ground, fleet.Problem{}, nil
	}
	p := fleet.Problem{Reason: conflict.Reason, Message: conflict.Message, Conflict: conflict.Resume > 0}
	if p.Conflict {
		until := "nothing is changed until you resume"
		if conflict.Reason == publish.StoreOlder {
			until = "to order without that"
		}
		p.Message += fmt.Sprintf("; %s: kubectl -n %s annotate --overwrite clusters.shoal.dev %s %s=%d", until, id.Workspace, id.Name, Resume, conflict.Resume)
	}
	return publish.Ground{}, p, nil
}

// bundleExists asks the API itself before it says no.
func (h *Hub) bundleExists(ctx context.Context, ns, name string) bool {
	var b v1alpha1.Bundle
	key := types.NamespacedName{Namespace: ns, Name: name}
	return !apierrors.IsNotFound(h.Client.Get(ctx, key, &b)) || !apierrors.IsNotFound(h.Direct.Get(ctx, key, &b))
}

func (h *Hub) reserve(ctx context.Context, id topics.Cluster, cl *v1alpha1.Cluster, s bundlefmt.Serial) error {
	if h.floors.get(id, bundlefmt.Serial(cl.Status.DesiredSerial)) >= s {
		return nil // the document replaces one that bears the same number
	}
	reserved := cl.DeepCopy() // the answer must not overwrite what this pass has learned
	reserved.Status.DesiredSerial = int64(s)
	if err := h.Client.Status().Patch(ctx, reserved, client.MergeFrom(cl)); err != nil {
		return fmt.Errorf("reserve serial %d: %w", s, err)
	}
	h.written.set(reserved)
	cl.Status.DesiredSerial = int64(s)
	h.floors.set(id, s)
	return nil
}

// unlearned: the cluster has named facts that its status does not hold yet, or not any more.
func unlearned(m fleet.Member, cl *v1alpha1.Cluster) bool {
	if m.Reported == nil || m.Reported.Facts == "" {
		return false
	}
	s := cl.Status
	return m.Reported.Facts != s.Facts ||
		m.Facts != nil && m.Facts.Hash() == s.Facts && (m.Facts.KubernetesVersion != s.KubernetesVersion || apisName(m.Facts.APIVersions) != s.APIVersions || int32(m.Facts.Nodes) != s.Nodes)
}

// learn takes over the cluster's facts, and asks for those it has only named.
func (h *Hub) learn(ctx context.Context, id topics.Cluster, m fleet.Member, cl *v1alpha1.Cluster) error {
	if !unlearned(m, cl) {
		return nil
	}
	if m.Facts == nil || m.Facts.Hash() != m.Reported.Facts {
		if m.Link != fleet.Online {
			return nil
		}
		return h.Publisher.Ask(ctx, id, topics.VerbFacts)
	}
	name, err := h.saveAPIVersions(ctx, m.Facts.APIVersions)
	if err != nil {
		return err
	}
	cl.Status.Facts, cl.Status.KubernetesVersion, cl.Status.APIVersions, cl.Status.Nodes = m.Reported.Facts, m.Facts.KubernetesVersion, name, int32(m.Facts.Nodes)
	h.Changed(id) // bundles may have waited for them, also if they say the same as before
	return nil
}

// apisText is a list of API versions, one a line.
func apisText(versions []string) string {
	return joinLines(slices.Sorted(slices.Values(versions)))
}

// apisName names the ConfigMap that holds a list.
func apisName(versions []string) string {
	sum := sha256.Sum256([]byte(apisText(versions)))
	return "shoal-apis-" + hex.EncodeToString(sum[:8])
}

// saveAPIVersions keeps a list of API versions where clusters with the same list find it.
func (h *Hub) saveAPIVersions(ctx context.Context, versions []string) (string, error) {
	name, text := apisName(versions), apisText(versions)
	err := h.Client.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: h.Namespace, Name: name}, Data: map[string]string{apiVersionsKey: text}})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("write API versions: %w", err)
	}
	return name, nil
}

// revoke ends the cluster's connections when a key was taken from it. Those that may still connect come back at once.
func (h *Hub) revoke(id topics.Cluster, keys []string) {
	old := h.keys.swap(id, keys)
	gone := slices.ContainsFunc(old, func(k string) bool { return !slices.Contains(keys, k) })
	if gone && h.Disconnect != nil {
		h.Disconnect(enroll.AgentIdentity(id))
		h.Log.Info().Str("cluster", id.String()).Msg("credential revoked")
	}
}

// deleteCluster takes a cluster out of the fleet: its credential and its topics go, what runs on the site stays.
func (h *Hub) deleteCluster(ctx context.Context, id topics.Cluster, cl *v1alpha1.Cluster) error {
	if !controllerutil.ContainsFinalizer(cl, Finalizer) {
		return nil
	}
	if h.Disconnect != nil {
		h.Disconnect(enroll.AgentIdentity(id)) // first: it must not see its topics being cleared
	}
	if err := h.Publisher.Forget(ctx, id); err != nil {
		return err
	}
	h.View.Forget(id)
	h.floors.forget(id)
	h.keys.forget(id)
	controllerutil.RemoveFinalizer(cl, Finalizer)
	if err := h.Client.Update(ctx, cl); err != nil {
		return ignoreConflict(client.IgnoreNotFound(err))
	}
	h.Log.Info().Str("cluster", id.String()).Msg("cluster deleted")
	return nil
}

// linkStatus writes down what does not depend on any bundle.
func linkStatus(cl *v1alpha1.Cluster, m fleet.Member) {
	s := &cl.Status
	s.Presence, s.PresenceSince = v1alpha1.Presence(m.Link), metav1.NewTime(m.LinkSince.Truncate(time.Second))
	if m.Link == fleet.Unknown {
		s.PresenceSince = metav1.Time{}
	}
	s.AgentVersion = cmp.Or(m.Agent, s.AgentVersion)
	if m.Reported != nil {
		s.ReportedSerial = int64(m.Reported.Serial)
	}
}

// clusterStatus sums up where all bundles of the cluster are. wrong is what a person must do.
func clusterStatus(cl *v1alpha1.Cluster, m fleet.Member, wrong fleet.Problem, now time.Time) {
	s := &cl.Status
	var t tally
	for _, name := range m.Deployments() {
		t.add(name, m.Status(name), m.Link == fleet.Offline)
	}
	for _, name := range m.Leaving() {
		t.leaving(name, m.Status(name))
	}
	orphaned(&t, m)
	state, message := cmp.Or(t.worst, v1alpha1.StateReady), t.message()
	held, why := heldRemovals(m)
	switch {
	case wrong.Message != "":
		message = wrong.Message
		if state == v1alpha1.StateReady {
			state = v1alpha1.StateOutOfSync
		}
	case len(cl.Spec.AgentKeys) == 0:
		state, message = v1alpha1.StatePending, "no agent has enrolled as this cluster yet"
	case len(held) > 0:
		message = why
		if n := cl.Annotations[ConfirmRemoval]; n != "" && n != strconv.Itoa(len(held)) {
			message = fmt.Sprintf("%s=%s confirms nothing, %d removals wait: %s: %s", ConfirmRemoval, clip(n), len(held), strings.Join(held, ", "), why)
		}
	case m.Reported != nil && m.Reported.Stale && state == v1alpha1.StateReady:
		state, message = v1alpha1.StateStale, "its newest order is older than it should be"
	case m.Reported != nil && m.Reported.Refused != nil && message == "":
		message = "refused a message: " + clip(m.Reported.Refused.Reason)
	}
	if !m.Unseen(cl.Generation) { // else this is about the generation before
		s.ObservedGeneration = cl.Generation
		s.KnownKeys = knownKeys(s.KnownKeys, cl.Spec.AgentKeys)
	}
	s.StateSince = since(s.Display.State, state, s.StateSince, now)
	s.Display = v1alpha1.ClusterDisplay{ReadyBundles: t.ready(), State: state, Message: message}
	s.Summary, s.NotReady = t.summary, t.causesFirst()
	clusterConditions(cl, state, message, wrong)
}

// known is how many keys are remembered; see the definition.
const known = 64

// knownKeys adds keys to those known before, oldest first. The oldest go first.
func knownKeys(before, keys []string) []string {
	out := slices.Clone(before)
	for _, k := range keys {
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out[max(0, len(out)-known):]
}

func clusterConditions(cl *v1alpha1.Cluster, state v1alpha1.State, message string, wrong fleet.Problem) {
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: string(state), Message: message, ObservedGeneration: cl.Status.ObservedGeneration}
	switch {
	case wrong.Reason != "":
		ready.Reason = wrong.Reason
	case state == v1alpha1.StateReady:
		ready.Status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&cl.Status.Conditions, ready)
	enrolled := metav1.Condition{Type: v1alpha1.ConditionEnrolled, Status: metav1.ConditionTrue, Reason: "Enrolled", Message: strconv.Itoa(len(cl.Spec.AgentKeys)) + " credential(s)", ObservedGeneration: cl.Generation}
	if len(cl.Spec.AgentKeys) == 0 {
		enrolled.Status, enrolled.Reason, enrolled.Message = metav1.ConditionFalse, "NoCredential", "no agent may connect as this cluster"
	}
	meta.SetStatusCondition(&cl.Status.Conditions, enrolled)
}

// orphaned adds what the cluster has although nobody orders or removes it.
func orphaned(t *tally, m fleet.Member) {
	if m.Reported == nil {
		return
	}
	for _, d := range m.Reported.Deployments {
		if d.State == bundlefmt.Orphaned && !slices.Contains(m.Deployments(), d.Name) && !slices.Contains(m.Leaving(), d.Name) {
			t.add(d.Name, fleet.Status{State: v1alpha1.StateOrphaned, Message: "on the cluster, but no bundle orders or removes it", Since: d.Since}, m.Link == fleet.Offline)
		}
	}
}
