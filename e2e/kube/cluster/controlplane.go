package cluster

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
)

// goEnv keeps the heaps small: several clusters share one small machine, and
// what a test cluster stores fits in a fraction of the defaults.
func goEnv(limitMiB int) []string {
	return []string{"GOGC=50", fmt.Sprintf("GOMEMLIMIT=%dMiB", limitMiB), "GOMAXPROCS=2", "GODEBUG="}
}

func kine(o Options, socket string) spec {
	return spec{
		name: "kine",
		env:  goEnv(96),
		args: []string{
			"--listen-address=unix://" + socket,
			// Synchronous NORMAL survives any end of the process; only a power
			// cut could lose the last writes of a test cluster.
			"--endpoint=sqlite://" + filepath.Join(o.Dir, "kine/state.db") +
				"?_journal_mode=WAL&_busy_timeout=30000&_synchronous=NORMAL&_txlock=immediate&_stmt_cache_size=20&cache=shared",
			"--metrics-bind-address=0",
			"--compact-interval=5m",
		},
	}
}

func apiServer(o Options, s state, socket string) spec {
	pki := filepath.Join(o.Dir, "pki")
	args := []string{
		"--etcd-servers=unix://" + socket,
		"--etcd-compaction-interval=0", // kine does it
		"--bind-address=" + s.Listen,
		"--secure-port=" + strconv.Itoa(s.Port),
		"--tls-cert-file=" + pki + "/apiserver.crt",
		"--tls-private-key-file=" + pki + "/apiserver.key",
		"--token-auth-file=" + pki + "/tokens.csv",
		"--authorization-mode=Node,RBAC",
		"--service-account-key-file=" + pki + "/sa.key",
		"--service-account-signing-key-file=" + pki + "/sa.key",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-cluster-ip-range=" + s.serviceNet().String(),
		"--allow-privileged=true",
		"--anonymous-auth=false",
		"--profiling=false",
		// Fairness between clients costs a controller and several dozen
		// objects; a test cluster needs neither.
		"--enable-priority-and-fairness=false",
		"--advertise-address=" + nth(s.podNet(), 1).String(),
	}
	if s.Nodes == Simulated {
		// Nothing can reach the API server through its Service here.
		args = append(args, "--endpoint-reconciler-type=none")
	} else {
		args = append(args,
			"--kubelet-client-certificate="+pki+"/kubelet-client.crt",
			"--kubelet-client-key="+pki+"/kubelet-client.key",
			"--kubelet-preferred-address-types=InternalIP",
		)
	}
	return spec{name: "kube-apiserver", env: goEnv(400), args: args}
}

func controllerManager(o Options) spec {
	pki := filepath.Join(o.Dir, "pki")
	return spec{
		name: "kube-controller-manager",
		env:  goEnv(160),
		args: []string{
			"--kubeconfig=" + pki + "/kube-controller-manager.kubeconfig",
			"--secure-port=0",
			"--leader-elect=false",
			"--profiling=false",
			"--service-account-private-key-file=" + pki + "/sa.key",
			"--root-ca-file=" + pki + "/ca.crt",
			"--kube-api-qps=200",
			"--kube-api-burst=400",
			// A PersistentVolumeClaim is bound to a directory of this machine.
			"--enable-hostpath-provisioner=true",
			// Off: what needs a cloud, metrics or certificates for kubelets.
			"--controllers=*,-cloud-node-lifecycle-controller,-service-lb-controller,-node-route-controller," +
				"-node-ipam-controller,-horizontal-pod-autoscaler-controller," +
				"-certificatesigningrequest-signing-controller,-certificatesigningrequest-approving-controller," +
				"-certificatesigningrequest-cleaner-controller,-bootstrap-signer-controller,-token-cleaner-controller",
		},
	}
}

func schedulerConfig(o Options) ([]byte, error) {
	type object = map[string]any
	return json.Marshal(object{
		"apiVersion":       "kubescheduler.config.k8s.io/v1",
		"kind":             "KubeSchedulerConfiguration",
		"clientConnection": object{"kubeconfig": filepath.Join(o.Dir, "pki/kube-scheduler.kubeconfig"), "qps": 200, "burst": 400},
		"leaderElection":   object{"leaderElect": false},
		"enableProfiling":  false,
		// A Pod that found no node is tried again soon: the node may only have
		// been restarting.
		"podInitialBackoffSeconds": 1,
		"podMaxBackoffSeconds":     2,
	})
}

func scheduler(o Options) spec {
	return spec{
		name: "kube-scheduler",
		env:  goEnv(96),
		args: []string{"--config=" + filepath.Join(o.Dir, "pki/kube-scheduler.json"), "--secure-port=0"},
	}
}

// storageClass is the default class, so that a StatefulSet with volume claims
// starts here as it does on K3s.
var storageClass = map[string]any{
	"apiVersion": "storage.k8s.io/v1",
	"kind":       "StorageClass",
	"metadata": map[string]any{
		"name":        "local-path",
		"annotations": map[string]string{"storageclass.kubernetes.io/is-default-class": "true"},
	},
	"provisioner":       "kubernetes.io/host-path",
	"reclaimPolicy":     "Delete",
	"volumeBindingMode": "Immediate",
}
