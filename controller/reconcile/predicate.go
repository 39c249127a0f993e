package reconcile

import (
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"
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

// statusEdited lets through updates by which somebody else has changed a status: it is the hub's to write, and an object that nothing
// else happens to would show it for ever. The hub's own write may come here before it is noted; then it is looked at once more.
func (h *Hub) statusEdited() predicate.Predicate {
	return predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool {
			return !h.written.is(e.ObjectNew) && !equality.Semantic.DeepEqual(status(e.ObjectOld), status(e.ObjectNew))
		},
		DeleteFunc: func(e event.DeleteEvent) bool {
			h.written.forget(e.Object)
			return true
		},
	}
}

func status(o client.Object) any {
	switch o := o.(type) {
	case *v1alpha1.Bundle:
		return o.Status
	case *v1alpha1.Cluster:
		return o.Status
	case *v1alpha1.ClusterGroup:
		return o.Status
	case *v1alpha1.ClusterRegistrationToken:
		return o.Status
	}
	return nil
}
