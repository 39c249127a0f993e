// Package cluster starts and stops one Kubernetes cluster whose whole state is
// one directory.
//
// The processes are this same binary under its other names (see package
// component): kine on SQLite as the datastore, kube-apiserver,
// kube-controller-manager and kube-scheduler, and then either kwok, which plays
// the kubelet of nodes that exist only in the API, or a kubelet on a private
// containerd. They are children of the process that calls Up and never outlive
// it.
//
// The directory:
//
//	lock              held while the cluster runs
//	cluster.json      what a second start must not change: name, ports, tokens
//	kubeconfig        for the administrator (system:masters)
//	pki/              certificates, keys, tokens, the components' kubeconfigs
//	kine/state.db     every API object
//	logs/NAME.log     output of each process, appended over restarts
//	run/              sockets, empty while stopped
//	node/             containerd and kubelet, only with real nodes
package cluster
