package main

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/lease"
)

// hubGone says since when no hub works, to whoever may read the hub's Lease; empty: one does, or it cannot be told. What the
// resources say is then what the last hub knew.
func hubGone(ctx context.Context, kube client.Client, namespace string, now time.Time) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var l coordinationv1.Lease
	if kube.Get(ctx, client.ObjectKey{Namespace: namespace, Name: lease.Name}, &l) != nil {
		return ""
	}
	since := lease.Absent(&l, now)
	if since.IsZero() {
		return ""
	}
	return fmt.Sprintf("no hub has worked for %s", duration.HumanDuration(now.Sub(since)))
}
