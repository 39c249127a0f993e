package publish

import (
	"maps"
	"slices"
	"strings"
	"time"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/rollout"
)

// Assignment is what the rollout decided for one bundle on one cluster.
type Assignment struct {
	Release  rollout.Release // zero: nothing (more) is to be ordered now
	Group    string          // audience of the parts; empty: the cluster alone
	Revision string
	Remove   bool // take it away, unless Wait says why not yet; Release then only says, by its policy, whether objects stay
	// Confirmed: somebody has seen how much goes with this removal, and the site need not ask once more.
	Confirmed bool
	Failed    bool   // what is wanted could not be rendered; Wait says why
	Wait      string // why what is wanted is not ordered yet
	// Generation of the Cluster for which it was decided.
	Generation int64
}

// Equal reports whether two assignments say the same.
func (a Assignment) Equal(b Assignment) bool {
	return a.Release.Equal(b.Release) && a.Group == b.Group && a.Revision == b.Revision && a.Remove == b.Remove && a.Failed == b.Failed && a.Wait == b.Wait &&
		a.Confirmed == b.Confirmed && a.Generation == b.Generation
}

// DocumentInput is all that a cluster's next desired document depends on.
type DocumentInput struct {
	Ordered  *bundlefmt.Desired  // the document in force; nil: none known. See Records.Agree
	Reported *bundlefmt.Reported // the newest report; nil: none known
	Assigned map[string]Assignment
	Windows  []bundlefmt.Window
	Confirm  []string                // removals of which somebody has seen how much goes
	InGroup  func(group string) bool // whether the cluster is still in a group
	Sealed   func(bundlefmt.Digest) (bundlefmt.Sealed, bool)
	Exists   func(bundle string) bool // nil: all do
	Limits   bundlefmt.Limits
	Serial   bundlefmt.Serial // of the next document
	Now      time.Time
	TTL      time.Duration // how long until the site calls the document stale; 0: never
}

// Document makes the next desired document and says whether it differs from the one in force. What is not assigned stays as
// it was ordered: a hub that does not know (yet) changes nothing. What was ordered by a bundle that does not exist (any more) is left
// out, which removes nothing: the cluster reports it as Orphaned. An entry keeps its serial while release and policy stay,
// so that a document with a new serial restarts nothing. left says why deployments are not in it as they should be: see fit.
func Document(in DocumentInput) (next *bundlefmt.Desired, news bool, left map[string]string) {
	deployments := map[string]bundlefmt.Deployment{}
	removals := map[string]bundlefmt.Removal{}
	if in.Ordered != nil {
		for _, d := range in.Ordered.Deployments {
			if _, ok := in.Assigned[d.Name]; ok || in.Exists == nil || in.Exists(d.Name) {
				deployments[d.Name] = d
			}
		}
		for _, r := range in.Ordered.Remove {
			if !removed(r.Name, r.Serial, in.Reported) {
				removals[r.Name] = r
			}
		}
	}
	for name, a := range in.Assigned {
		if a.Remove && a.Wait != "" {
			delete(removals, name) // an order to remove it is taken back: in neither list the cluster leaves it alone
			continue
		}
		if a.Remove {
			if _, ok := deployments[name]; ok || has(in.Reported, name) && removals[name].Serial == 0 {
				removals[name] = bundlefmt.Removal{Name: name, Serial: in.Serial, Keep: a.Release.Policy.KeepResources, Confirmed: a.Confirmed}
			}
			delete(deployments, name)
			continue
		}
		if a.Release.IsZero() {
			continue
		}
		delete(removals, name)
		if d, ok := in.entry(name, a, deployments[name]); ok {
			deployments[name] = d
		}
	}
	next = &bundlefmt.Desired{Windows: in.Windows, Serial: in.Serial, IssuedAt: in.Now}
	if in.TTL > 0 {
		next.StaleAfter = in.Now.Add(in.TTL)
	}
	byName := func(a, b string) int { return strings.Compare(a, b) }
	for _, n := range slices.SortedFunc(maps.Keys(deployments), byName) {
		next.Deployments = append(next.Deployments, deployments[n])
	}
	for _, n := range slices.SortedFunc(maps.Keys(removals), byName) {
		r := removals[n]
		r.Confirmed = r.Confirmed || slices.Contains(in.Confirm, n)
		next.Remove = append(next.Remove, r)
	}
	left = in.fit(next)
	if in.Ordered == nil {
		return next, true, left
	}
	same := slices.EqualFunc(next.Deployments, in.Ordered.Deployments, bundlefmt.Deployment.Equal) && slices.Equal(next.Windows, in.Ordered.Windows) && slices.Equal(next.Remove, in.Ordered.Remove)
	renew := in.TTL > 0 && (in.Ordered.StaleAfter.IsZero() || in.Now.After(in.Ordered.StaleAfter.Add(-in.TTL/2)))
	return next, !same || renew, left
}

// entry is the assignment as a deployment; old is the one in force, if any.
func (in DocumentInput) entry(name string, a Assignment, old bundlefmt.Deployment) (bundlefmt.Deployment, bool) {
	sealed, ok := in.Sealed(a.Release.Digest)
	if !ok {
		return old, old.Name != ""
	}
	d := bundlefmt.Deployment{
		Name: name, Serial: in.Serial, Digest: a.Release.Digest, RawSize: sealed.RawSize, Size: sealed.Size, Parts: len(sealed.Parts),
		Group: a.Group, Revision: a.Revision, Policy: a.Release.Policy,
	}
	if old.Digest == d.Digest && old.Policy.Equal(d.Policy) {
		d.Serial, d.Revision = old.Serial, old.Revision
		if old.Group == "" || in.InGroup(old.Group) { // the parts stay where they were announced
			d.Group = old.Group
		}
	}
	return d, true
}

// Missing names assigned releases that the document does not hold, because they are not sealed any more; those for which there was no
// room are not among them.
func Missing(d *bundlefmt.Desired, assigned map[string]Assignment, left map[string]string) []string {
	var names []string
	for name, a := range assigned {
		there := slices.ContainsFunc(d.Deployments, func(x bundlefmt.Deployment) bool {
			return x.Name == name && a.Release.Equal(rollout.Release{Digest: x.Digest, Policy: x.Policy})
		})
		if !a.Remove && !a.Release.IsZero() && !there && left[name] == "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// removed says whether the cluster saw the order to remove and no longer has the deployment.
func removed(name string, order bundlefmt.Serial, r *bundlefmt.Reported) bool {
	return r != nil && r.Serial >= order && !has(r, name)
}

func has(r *bundlefmt.Reported, name string) bool {
	return r != nil && slices.ContainsFunc(r.Deployments, func(d bundlefmt.DeploymentReport) bool { return d.Name == name })
}

// Audience picks whose topic carries the parts of a bundle: the one cluster's own, else that of the smallest group that holds
// every cluster that wants it, else the group of all. groups lists the members of each group.
func Audience(wanting []string, groups map[string][]string, all string) string {
	if len(wanting) <= 1 {
		return ""
	}
	best := all
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		members := groups[name]
		if len(members) < len(wanting) || best != all && len(members) >= len(groups[best]) {
			continue
		}
		in := make(map[string]bool, len(members))
		for _, m := range members {
			in[m] = true
		}
		if !slices.ContainsFunc(wanting, func(c string) bool { return !in[c] }) {
			best = name
		}
	}
	return best
}
