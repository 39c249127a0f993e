package reconcile

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/internal/kubetest"
)

func TestMain(m *testing.M) { kubetest.Main(m) }

// Where the hub may not read Secrets the bundle says which value of the chart lets it.
func TestDownstreamForbidden(t *testing.T) {
	cfg := kubetest.Shared(t)
	ns := kubetest.Namespace(t, cfg)
	nobody := rest.CopyConfig(cfg)
	nobody.Impersonate = rest.ImpersonationConfig{UserName: "nobody"}
	c, err := client.New(nobody, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := pass{Hub: &Hub{Client: c, DownstreamNamespaces: []string{"*"}}, bundle: &v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Namespace: ns}}}
	for kind, plural := range map[string]string{"Secret": "secrets", "ConfigMap": "configmaps"} {
		_, problem, err := p.downstream(t.Context(), []v1alpha1.DownstreamResource{{Kind: kind, Name: "pull"}})
		want := "downstreamResources: " + kind + " pull: the hub may not read " + plural + " in namespace " + ns + ": add the namespace to rbac.downstreamNamespaces of the hub's chart"
		if err != nil || problem == nil || problem.Error() != want {
			t.Errorf("got %v, %v\nwant %s", problem, err, want)
		}
	}
}

// A name that cannot be is said, not asked for again and again.
func TestDownstreamNames(t *testing.T) {
	c, err := client.New(kubetest.Shared(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := pass{Hub: &Hub{Client: c, DownstreamNamespaces: []string{"default"}}, bundle: &v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Namespace: "default"}}}
	for _, name := range []string{"", "a/b", "../secrets/x", "UPPER"} {
		_, problem, err := p.downstream(t.Context(), []v1alpha1.DownstreamResource{{Kind: "Secret", Name: name}})
		if err != nil || problem == nil {
			t.Errorf("%q: got %v, %v", name, problem, err)
		}
	}
}

// That the hub may read a Secret (for tokens it may read them everywhere) is no reason to send it: only what the operator has
// named is, and "*" does not name the hub's own keys.
func TestDownstreamNamespaces(t *testing.T) {
	cfg := kubetest.Shared(t)
	ns := kubetest.Namespace(t, cfg)
	c, err := client.New(cfg, client.Options{}) // may read everything
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "pull"}}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		named []string
		own   string
		sent  bool
	}{
		{nil, "", false}, {[]string{"other"}, "", false}, {[]string{ns}, "", true}, {[]string{"*"}, "", true}, {[]string{"*"}, ns, false}, {[]string{ns}, ns, true},
	} {
		p := pass{Hub: &Hub{Client: c, Namespace: tt.own, DownstreamNamespaces: tt.named}, bundle: &v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Namespace: ns}}}
		objects, problem, err := p.downstream(t.Context(), []v1alpha1.DownstreamResource{{Kind: "Secret", Name: "pull"}})
		if err != nil || (problem == nil) != tt.sent || len(objects) > 0 != tt.sent {
			t.Errorf("%q, the hub in %q: %d objects, %v, %v", tt.named, tt.own, len(objects), problem, err)
		}
	}
}
