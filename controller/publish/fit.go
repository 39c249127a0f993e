package publish

import (
	"fmt"
	"slices"
	"sort"

	"shoal.dev/shoal/bundlefmt"
)

// slack is how much of a message what is new leaves free, so that what is there can still be updated and renewed.
const slack = 1024

// fit takes out of a document what its cluster has no room for, and says for each deployment why: what is new is kept out, what is
// there stays and is updated, and what is to be removed is removed. An update is left out only where it makes the document grow
// beyond the limit although nothing is new in it. What then does not fit is for the writer to refuse.
func (in DocumentInput) fit(next *bundlefmt.Desired) (left map[string]string) {
	full := in.Limits
	if !in.readsMany() {
		full.Entries = min(full.Entries, bundlefmt.FewEntries)
	}
	before := map[string]bundlefmt.Deployment{}
	if in.Ordered != nil {
		for _, d := range in.Ordered.Deployments {
			before[d.Name] = d
		}
	}
	var fresh, grown []string
	for _, d := range next.Deployments {
		old, ordered := before[d.Name]
		switch {
		case !ordered && !has(in.Reported, d.Name):
			fresh = append(fresh, d.Name)
		case ordered && !old.Policy.Equal(d.Policy):
			grown = append(grown, d.Name)
		}
	}
	room := full
	if len(fresh) > 0 {
		room.PartSize -= slack
	}
	others := in.others(next)
	if next.Fits(room, others...) == nil {
		return nil
	}
	whole := slices.Clone(next.Deployments)
	for i := range next.Deployments { // it is for people, who can do without
		next.Deployments[i].Revision = ""
	}
	why := next.Fits(room, others...)
	if why == nil {
		return nil
	}
	if int64(len(next.Deployments)+len(next.Remove)) > room.Entries {
		next.Deployments = whole // they are too many, not too long
	}
	left = map[string]string{}
	some := func(names []string, l bundlefmt.Limits, without func(bundlefmt.Deployment) (bundlefmt.Deployment, bool), message string) {
		all := next.Deployments
		with := func(n int) (out []bundlefmt.Deployment) { // the first n of names take part
			for _, d := range all {
				if i, ok := slices.BinarySearch(names, d.Name); ok && i >= n {
					if d, ok = without(d); !ok {
						continue
					}
				}
				out = append(out, d)
			}
			return out
		}
		n := sort.Search(len(names), func(n int) bool {
			next.Deployments = with(n + 1)
			return next.Fits(l, others...) != nil
		})
		next.Deployments = with(n)
		for _, name := range names[n:] {
			left[name] = message
		}
	}
	message := fmt.Sprintf("kept out, the order for this cluster has no room: %v; take bundles off the cluster", why)
	if full.Entries < in.Limits.Entries {
		message += ", or upgrade its agent, which is too old for more"
	}
	some(fresh, room, func(d bundlefmt.Deployment) (bundlefmt.Deployment, bool) { return d, false }, message)
	if why = next.Fits(full, others...); why != nil {
		some(grown, full, func(d bundlefmt.Deployment) (bundlefmt.Deployment, bool) { return before[d.Name], true },
			fmt.Sprintf("its update waits, the order for this cluster has no room: %v; take bundles, dependencies or windows off the cluster", why))
	}
	return left
}

// readsMany: the agent has said so, or has been sent as many already.
func (in DocumentInput) readsMany() bool {
	if in.Reported != nil && in.Reported.Reads >= 3 {
		return true
	}
	return in.Ordered != nil && len(in.Ordered.Deployments)+len(in.Ordered.Remove) > bundlefmt.FewEntries
}

// others are the deployments that the cluster reports although the document does not name them.
func (in DocumentInput) others(next *bundlefmt.Desired) []string {
	if in.Reported == nil {
		return nil
	}
	named := make(map[string]bool, len(next.Deployments)+len(next.Remove))
	for _, d := range next.Deployments {
		named[d.Name] = true
	}
	for _, r := range next.Remove {
		named[r.Name] = true
	}
	var names []string
	for _, d := range in.Reported.Deployments {
		if !named[d.Name] {
			names = append(names, d.Name)
		}
	}
	return names
}
