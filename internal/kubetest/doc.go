// Package kubetest gives tests and the demo real Kubernetes clusters.
//
// A cluster is the binary shoal-kube (module e2e/kube): the API server,
// controller manager, scheduler and kine of a K3s site, built from Go modules
// and run without root or network. Its node is simulated, so Pods of any image
// become Ready in a moment, or, with Options.Nodes "real", a kubelet on
// containerd that runs containers.
//
// The first use on a machine builds the binary, which takes ten minutes on two
// cores and longer than the default timeout of go test. Do it beforehand:
//
//	go run ./internal/kubetest/prebuild
//
// A package whose tests share one API server:
//
//	func TestMain(m *testing.M) { kubetest.Main(m) }
//
//	func TestApply(t *testing.T) {
//		cfg := kubetest.Shared(t)
//		ns := kubetest.Namespace(t, cfg)
//		…
//	}
package kubetest
