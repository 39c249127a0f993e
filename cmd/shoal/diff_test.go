package main

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
)

func TestPaint(t *testing.T) {
	t.Parallel()
	got := string(paint([]byte("--- a\n+++ b\n@@ -1,1 +1,1 @@\n same\n-old\n+new\n")))
	want := "\x1b[1m--- a\x1b[0m\n\x1b[1m+++ b\x1b[0m\n\x1b[36m@@ -1,1 +1,1 @@\x1b[0m\n same\n\x1b[31m-old\x1b[0m\n\x1b[32m+new\x1b[0m\n"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestSecretsAreNeverShown: also where a Secret is not of the proper form, or only on one side.
func TestSecretsAreNeverShown(t *testing.T) {
	t.Parallel()
	const head = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: a\n"
	doc := func(s string) *document {
		return &document{ref: bundlefmt.Ref{Version: "v1", Kind: "Secret", Name: "a"}, text: s}
	}
	for name, tt := range map[string]struct {
		before, after *document
	}{
		"changed":    {doc("data:\n  k: c2VjcmV0\n" + head), doc("data:\n  k: b3RoZXI=\n" + head)},
		"new":        {nil, doc("stringData:\n  k: secret\n" + head)},
		"not a map":  {doc("data: secret\n" + head), doc("stringData: [secret]\n" + head)},
		"not a text": {doc("data:\n  k: {secret: secret}\n" + head), nil},
		"not YAML":   {doc("data: {secret"), nil},
	} {
		from, to := maskSecret(tt.before, tt.after)
		for _, s := range []string{from, to} {
			for _, secret := range []string{"secret", "c2VjcmV0", "b3RoZXI="} {
				if strings.Contains(strings.ReplaceAll(s, "kind: Secret", ""), secret) {
					t.Errorf("%s: shows %q in\n%s", name, secret, s)
				}
			}
		}
		if name == "changed" && from == to {
			t.Errorf("%s: the change cannot be seen:\n%s", name, from)
		}
	}
}

// TestStanding: what is said about a cluster that may not run what is compared with.
func TestStanding(t *testing.T) {
	t.Parallel()
	c := v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "paris"}}
	b := v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: "web", Generation: 2}, Status: v1alpha1.BundleStatus{ObservedGeneration: 2}}
	if got := standing(c, b); len(got) != 0 {
		t.Errorf("all is well: got %q", got)
	}
	b.Status.ObservedGeneration = 1
	c.Status.NotReady = []v1alpha1.NotReadyItem{{Name: "web", State: v1alpha1.StateModified, Message: "ConfigMap a: \x1b[2J"}}
	got := standing(c, b)
	if len(got) != 2 || got[0] != "the hub has not looked at the newest bundle web yet" || got[1] != "cluster paris: bundle web is Modified: ConfigMap a: \ufffd[2J" {
		t.Errorf("got %q", got)
	}
}
