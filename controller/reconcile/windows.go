package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // the hub's image has no time zones of its own

	"github.com/robfig/cron/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
)

const (
	maxWindows = 32 // that an order can carry
	maxWindow  = 7 * 24 * time.Hour
)

// windows are when a cluster may be changed: its own and those of its groups. An error is for people.
func windows(cl *v1alpha1.Cluster, groups []v1alpha1.ClusterGroup) ([]bundlefmt.Window, error) {
	var out []bundlefmt.Window
	add := func(whose string, ws []v1alpha1.Window) error {
		for i, w := range ws {
			d, err := window(w)
			if err != nil {
				return fmt.Errorf("%sspec.windows[%d]: %w", whose, i, err)
			}
			out = append(out, d)
		}
		return nil
	}
	if err := add("", cl.Spec.Windows); err != nil {
		return nil, err
	}
	for _, g := range groups {
		if len(g.Spec.Windows) == 0 || g.Spec.Selector == nil {
			continue
		}
		s, err := metav1.LabelSelectorAsSelector(g.Spec.Selector)
		if err != nil { // the cluster may be in it: without its windows it could be changed at any time
			return nil, fmt.Errorf("cluster group %s: spec.selector: %w", g.Name, err)
		}
		if !s.Matches(labels.Set(cl.Labels)) {
			continue
		}
		if err := add("cluster group "+g.Name+": ", g.Spec.Windows); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b bundlefmt.Window) int {
		return cmp.Or(cmp.Compare(a.Schedule, b.Schedule), cmp.Compare(a.Seconds, b.Seconds), cmp.Compare(a.TimeZone, b.TimeZone), cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	})
	out = slices.Compact(out)
	if len(out) > maxWindows {
		return nil, fmt.Errorf("spec.windows: with those of its groups the cluster has %d windows, an order can carry %d", len(out), maxWindows)
	}
	return out, nil
}

// fields of a schedule. What the library understands beyond them (descriptors, time zones) the agents do not.
var fields = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

// window checks one as the agents will.
func window(w v1alpha1.Window) (bundlefmt.Window, error) {
	out := bundlefmt.Window{Schedule: w.Schedule, Seconds: uint64(max(0, w.Duration.Duration/time.Second)), TimeZone: w.TimeZone}
	if len(strings.Fields(w.Schedule)) != 5 || strings.ContainsAny(w.Schedule, "=@") {
		return out, fmt.Errorf("schedule: %q: want five fields, as in cron: minute, hour, day of month, month, day of week", w.Schedule)
	}
	s, err := fields.Parse(w.Schedule)
	if err != nil {
		return out, fmt.Errorf("schedule: %q: %w", w.Schedule, err)
	}
	if s.Next(time.Unix(0, 0).UTC()).IsZero() {
		return out, fmt.Errorf("schedule: %q: there is no such day", w.Schedule)
	}
	if w.Duration.Duration < time.Second || w.Duration.Duration > maxWindow {
		return out, fmt.Errorf("duration: %s: use at least a second and at most a week (168h)", w.Duration.Duration)
	}
	if w.TimeZone != "" {
		if _, err := time.LoadLocation(w.TimeZone); err != nil || w.TimeZone == "Local" {
			return out, fmt.Errorf("timeZone: %q is not known: use a name such as Europe/Berlin, or leave it out for the site's own", w.TimeZone)
		}
	}
	out.Download = len(w.For) == 0 || slices.Contains(w.For, "Download")
	out.Apply = len(w.For) == 0 || slices.Contains(w.For, "Apply")
	if !out.Download && !out.Apply {
		return out, fmt.Errorf("for: %q: use Download, Apply, or both", w.For)
	}
	return out, nil
}

func (h *Hub) windows(ctx context.Context, cl *v1alpha1.Cluster) (out []bundlefmt.Window, problem, err error) {
	var groups v1alpha1.ClusterGroupList
	if err := h.Client.List(ctx, &groups, client.InNamespace(cl.Namespace)); err != nil {
		return nil, nil, fmt.Errorf("list cluster groups: %w", err)
	}
	out, problem = windows(cl, groups.Items)
	return out, problem, nil
}

// windowsChanged lets through what changes when the clusters of a group may be changed.
func windowsChanged() predicate.Predicate {
	has := func(o client.Object) bool {
		g, ok := o.(*v1alpha1.ClusterGroup)
		return ok && len(g.Spec.Windows) > 0
	}
	return predicate.Funcs{
		CreateFunc: func(e event.CreateEvent) bool { return has(e.Object) },
		DeleteFunc: func(e event.DeleteEvent) bool { return has(e.Object) },
		UpdateFunc: func(e event.UpdateEvent) bool {
			return e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() && (has(e.ObjectOld) || has(e.ObjectNew))
		},
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
}
