package reconcile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

func TestWindows(t *testing.T) {
	w := func(schedule string, d time.Duration, zone string, what ...string) v1alpha1.Window {
		return v1alpha1.Window{Schedule: schedule, Duration: metav1.Duration{Duration: d}, TimeZone: zone, For: what}
	}
	group := func(name string, labels map[string]string, ws ...v1alpha1.Window) v1alpha1.ClusterGroup {
		return v1alpha1.ClusterGroup{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ClusterGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Windows: ws}}
	}
	night := w("0 2 * * *", 3*time.Hour, "")
	for _, c := range []struct {
		name   string
		own    []v1alpha1.Window
		groups []v1alpha1.ClusterGroup
		want   string // schedules, or the error
	}{
		{name: "none", want: ""},
		{name: "its own", own: []v1alpha1.Window{night}, want: "0 2 * * * for 10800 true true"},
		{name: "one activity", own: []v1alpha1.Window{w("0 2 * * *", time.Hour, "Europe/Berlin", "Apply")}, want: "0 2 * * *Europe/Berlin for 3600 false true"},
		{
			name: "its own and its groups', each once, sorted", own: []v1alpha1.Window{night},
			groups: []v1alpha1.ClusterGroup{group("eu", map[string]string{"region": "eu"}, night, w("0 1 * * 6", time.Hour, "")), group("us", map[string]string{"region": "us"}, w("9 9 * * *", time.Hour, "")), {Spec: v1alpha1.ClusterGroupSpec{Windows: []v1alpha1.Window{w("bad", 1, "")}}}},
			want:   "0 1 * * 6 for 3600 true true, 0 2 * * * for 10800 true true",
		},
		{
			name: "a group whose selector is broken: nobody knows whether its windows hold", own: []v1alpha1.Window{night},
			groups: []v1alpha1.ClusterGroup{{ObjectMeta: metav1.ObjectMeta{Name: "eu"}, Spec: v1alpha1.ClusterGroupSpec{
				Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "region", Operator: "Is", Values: []string{"eu"}}}}, Windows: []v1alpha1.Window{night},
			}}},
			want: `cluster group eu: spec.selector: "Is" is not a valid label selector operator`,
		},
		{name: "too few fields", own: []v1alpha1.Window{night, w("0 2 * *", time.Hour, "")}, want: `spec.windows[1]: schedule: "0 2 * *": want five fields`},
		{name: "a descriptor", own: []v1alpha1.Window{w("@daily", time.Hour, "")}, want: "want five fields"},
		{name: "a time zone in the schedule", own: []v1alpha1.Window{w("TZ=UTC 2 * * *", time.Hour, "")}, want: "want five fields"},
		{name: "no hour", own: []v1alpha1.Window{w("0 25 * * *", time.Hour, "")}, want: `spec.windows[0]: schedule: "0 25 * * *"`},
		{name: "no day", own: []v1alpha1.Window{w("0 2 30 2 *", time.Hour, "")}, want: "there is no such day"},
		{name: "no duration", own: []v1alpha1.Window{w("0 2 * * *", 0, "")}, want: "duration: 0s"},
		{name: "a duration below zero", own: []v1alpha1.Window{w("0 2 * * *", -time.Hour, "")}, want: "duration: -1h0m0s"},
		{name: "more than a week", own: []v1alpha1.Window{w("0 2 * * *", 8*24*time.Hour, "")}, want: "at most a week"},
		{name: "no time zone", own: []v1alpha1.Window{w("0 2 * * *", time.Hour, "Berlin")}, want: `timeZone: "Berlin"`},
		{name: "Local is another one everywhere", own: []v1alpha1.Window{w("0 2 * * *", time.Hour, "Local")}, want: `timeZone: "Local"`},
		{name: "in a group", groups: []v1alpha1.ClusterGroup{group("eu", nil, w("x", time.Hour, ""))}, want: "cluster group eu: spec.windows[0]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"region": "eu"}}, Spec: v1alpha1.ClusterSpec{Windows: c.own}}
			got, err := windows(cl, c.groups)
			if err != nil {
				if c.want == "" || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %q, want %q", err, c.want)
				}
				return
			}
			var lines []string
			for _, w := range got {
				lines = append(lines, fmt.Sprintf("%s%s for %d %v %v", w.Schedule, w.TimeZone, w.Seconds, w.Download, w.Apply))
			}
			if s := strings.Join(lines, ", "); s != c.want {
				t.Errorf("got %q, want %q", s, c.want)
			}
		})
	}
}
