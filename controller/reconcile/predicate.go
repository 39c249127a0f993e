package reconcile

import (
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// factsChanged lets through updates of a Cluster by which charts would render differently. It is for use beside predicates that
// let through what else matters: other events pass those already.
func factsChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		was, ok := e.ObjectOld.(*v1alpha1.Cluster)
		is, ok2 := e.ObjectNew.(*v1alpha1.Cluster)
		return ok && ok2 && (was.Status.KubernetesVersion != is.Status.KubernetesVersion || was.Status.APIVersions != is.Status.APIVersions)
	}}
}
