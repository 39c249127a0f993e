package render

import (
	"cmp"
	"strings"

	"shoal.dev/shoal/bundlefmt"
)

// kindOrder is Helm's order of installation, with namespaces and CRDs in front: what others need comes first. A test
// compares it with Helm's own. Kinds that are not here come last (webhooks and custom resources are among them).
func kindOrder() []string {
	return []string{
		"Namespace", "CustomResourceDefinition",
		"PriorityClass", "NetworkPolicy", "ResourceQuota", "LimitRange", "PodSecurityPolicy", "PodDisruptionBudget",
		"ServiceAccount", "Secret", "ConfigMap", "StorageClass", "PersistentVolume", "PersistentVolumeClaim",
		"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Service",
		"DaemonSet", "Pod", "ReplicationController", "ReplicaSet", "Deployment", "HorizontalPodAutoscaler", "StatefulSet",
		"Job", "CronJob", "IngressClass", "Ingress", "APIService",
	}
}

func ranks() map[string]int {
	m := map[string]int{}
	for i, k := range kindOrder() {
		m[k] = i + 1
	}
	return m
}

func compare(rank map[string]int, a, b bundlefmt.Ref) int {
	of := func(r bundlefmt.Ref) int {
		if n := rank[r.Kind]; n > 0 {
			return n
		}
		return len(rank) + 1
	}
	return cmp.Or(
		cmp.Compare(of(a), of(b)),
		strings.Compare(a.Group, b.Group),
		strings.Compare(a.Kind, b.Kind),
		strings.Compare(a.Namespace, b.Namespace),
		strings.Compare(a.Name, b.Name),
		strings.Compare(a.Version, b.Version),
	)
}

// clusterScoped are Kubernetes' own kinds (group, kind) that belong to no namespace.
func clusterScoped() [][2]string {
	return [][2]string{
		{"", "Namespace"}, {"", "Node"}, {"", "PersistentVolume"},
		{"admissionregistration.k8s.io", "MutatingWebhookConfiguration"},
		{"admissionregistration.k8s.io", "ValidatingWebhookConfiguration"},
		{"admissionregistration.k8s.io", "ValidatingAdmissionPolicy"},
		{"admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"},
		{"admissionregistration.k8s.io", "MutatingAdmissionPolicy"},
		{"admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"},
		{"apiextensions.k8s.io", "CustomResourceDefinition"},
		{"apiregistration.k8s.io", "APIService"},
		{"authentication.k8s.io", "TokenReview"}, {"authentication.k8s.io", "SelfSubjectReview"},
		{"authorization.k8s.io", "SelfSubjectAccessReview"}, {"authorization.k8s.io", "SelfSubjectRulesReview"}, {"authorization.k8s.io", "SubjectAccessReview"},
		{"certificates.k8s.io", "CertificateSigningRequest"}, {"certificates.k8s.io", "ClusterTrustBundle"},
		{"flowcontrol.apiserver.k8s.io", "FlowSchema"},
		{"flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"},
		{"networking.k8s.io", "IngressClass"}, {"networking.k8s.io", "IPAddress"}, {"networking.k8s.io", "ServiceCIDR"},
		{"node.k8s.io", "RuntimeClass"},
		{"rbac.authorization.k8s.io", "ClusterRole"},
		{"rbac.authorization.k8s.io", "ClusterRoleBinding"},
		{"resource.k8s.io", "DeviceClass"}, {"resource.k8s.io", "DeviceTaintRule"}, {"resource.k8s.io", "ResourceSlice"},
		{"scheduling.k8s.io", "PriorityClass"},
		{"storage.k8s.io", "CSIDriver"}, {"storage.k8s.io", "CSINode"}, {"storage.k8s.io", "StorageClass"},
		{"storage.k8s.io", "VolumeAttachment"}, {"storage.k8s.io", "VolumeAttributesClass"},
		{"storagemigration.k8s.io", "StorageVersionMigration"}, {"", "ComponentStatus"},
	}
}
