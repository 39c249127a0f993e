package reconcile

import (
	"testing"

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
	p := pass{Hub: &Hub{Client: c}, bundle: &v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Namespace: ns}}}
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
	p := pass{Hub: &Hub{Client: c}, bundle: &v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Namespace: "default"}}}
	for _, name := range []string{"", "a/b", "../secrets/x", "UPPER"} {
		_, problem, err := p.downstream(t.Context(), []v1alpha1.DownstreamResource{{Kind: "Secret", Name: name}})
		if err != nil || problem == nil {
			t.Errorf("%q: got %v, %v", name, problem, err)
		}
	}
}
