package deploy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/reconcile"
	"shoal.dev/shoal/e2e/fleet"
	"shoal.dev/shoal/internal/kubetest"
)

// TestRightsSuffice runs the built hub and agent as their charts describe them, arguments included, with the rights of the
// charts' ServiceAccounts and no others, and takes a bundle through its life: enrolment, deployment, update, removal.
func TestRightsSuffice(t *testing.T) {
	t.Parallel()
	cfg := kubetest.Shared(t)
	kube := newClient(t, cfg)
	system, workspace := kubetest.Namespace(t, cfg), kubetest.Namespace(t, cfg)
	bin, err := fleet.Build(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}

	broker := freeAddr(t)
	hub := install(t, cfg, kube, "charts/shoal", "shoal", system, hubValues(map[string]any{
		"mqtt": map[string]any{"url": "mqtts://" + broker},
		"rbac": map[string]any{"tokenSecretNamespaces": []any{workspace}},
	}))
	hub.rewrite(":8883", broker)
	hub.start(t, bin.Shoal)

	// The hub has installed the kinds; it makes the secret of this token, as for people who only have kubectl.
	token := &v1alpha1.ClusterRegistrationToken{
		ObjectMeta: metav1.ObjectMeta{Namespace: workspace, Name: "first"},
		Spec:       v1alpha1.ClusterRegistrationTokenSpec{Labels: map[string]string{"env": "prod"}},
	}
	create(t, kube, token)
	var secret corev1.Secret
	kubetest.Wait(t, "the token's secret", func(ctx context.Context) error {
		if err := kube.Get(ctx, client.ObjectKeyFromObject(token), &secret); err != nil {
			return err
		}
		if err := kube.Get(ctx, client.ObjectKeyFromObject(token), token); err != nil {
			return err
		}
		return want(token.Spec.SecretHash != "" && token.Status.Endpoint != nil, "token is not complete: %+v", token)
	})

	agent := install(t, cfg, kube, "charts/shoal-agent", "shoal-agent", system, agentValues(map[string]any{
		"token": map[string]any{"value": string(secret.Data[reconcile.TokenKey])},
		"rbac": map[string]any{"clusterAdmin": false, "rules": []any{map[string]any{
			"apiGroups": []any{"", "apps"}, "resources": []any{"configmaps", "deployments"}, "verbs": []any{"get", "list", "watch", "create", "patch", "delete"},
		}}},
	}))
	agent.start(t, bin.Agent)

	// The bundle is written with the rights of an account, which the agent borrows; its own do for what it reads.
	writer := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "writer"}}
	create(t, kube, writer)
	rights := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "writer-" + system},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: system, Name: writer.Name}},
	}
	create(t, kube, rights)
	t.Cleanup(func() { _ = kube.Delete(context.Background(), rights) })

	bundle := &v1alpha1.Bundle{
		ObjectMeta: metav1.ObjectMeta{Namespace: workspace, Name: "web"},
		Spec: v1alpha1.BundleSpec{
			BundleOptions: v1alpha1.BundleOptions{DefaultNamespace: "web-" + workspace, ServiceAccount: writer.Name},
			Resources:     []v1alpha1.BundleResource{v1alpha1.NewResource("a.yaml", []byte(manifests))},
			Targets:       []v1alpha1.BundleTarget{{ClusterMatch: v1alpha1.ClusterMatch{ClusterSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "prod"}}}}},
		},
	}
	create(t, kube, bundle)
	t.Cleanup(func() {
		_ = kube.Delete(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "web-" + workspace}})
	})
	ready := func(ctx context.Context) error {
		if err := kube.Get(ctx, client.ObjectKeyFromObject(bundle), bundle); err != nil {
			return err
		}
		s := bundle.Status
		return want(s.ObservedGeneration == bundle.Generation && s.Display.State == v1alpha1.StateReady && s.Display.ReadyClusters == "1/1", "%+v", s)
	}
	kubetest.Wait(t, "the bundle to be ready", ready)

	// An update, and an annotation that the hub takes away again.
	change(t, kube, bundle, func() {
		bundle.Spec.Resources = []v1alpha1.BundleResource{v1alpha1.NewResource("a.yaml", []byte(strings.ReplaceAll(manifests, "hello", "hello again")))}
		metav1.SetMetaDataAnnotation(&bundle.ObjectMeta, reconcile.ConfirmRemoval, "1")
	})
	key := client.ObjectKey{Namespace: "web-" + workspace, Name: "web"}
	kubetest.Wait(t, "the update to arrive", func(ctx context.Context) error {
		var cm corev1.ConfigMap
		if err := kube.Get(ctx, key, &cm); err != nil {
			return err
		}
		if err := ready(ctx); err != nil {
			return err
		}
		return want(cm.Data["say"] == "hello again" && bundle.Annotations[reconcile.ConfirmRemoval] == "", "configmap says %q, bundle has annotations %v", cm.Data["say"], bundle.Annotations)
	})

	// A group, whose status the hub writes.
	group := &v1alpha1.ClusterGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: workspace, Name: "prod"},
		Spec:       v1alpha1.ClusterGroupSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "prod"}}},
	}
	create(t, kube, group)
	kubetest.Wait(t, "the group to count its cluster", func(ctx context.Context) error {
		err := kube.Get(ctx, client.ObjectKeyFromObject(group), group)
		return errors.Join(err, want(group.Status.ClusterCount == 1, "%+v", group.Status))
	})

	// Removal, of the bundle and then of the cluster.
	remove(t, kube, bundle)
	gone(t, kube, bundle)
	gone(t, kube, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}})
	cluster := &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Namespace: workspace, Name: "site-1"}}
	if err := kube.Get(t.Context(), client.ObjectKeyFromObject(cluster), cluster); err != nil {
		t.Fatal(err)
	}
	remove(t, kube, cluster)
	gone(t, kube, cluster)

	agent.stop(t)
	hub.stop(t)
	for name, p := range map[string]*program{"hub": hub, "agent": agent} {
		for line := range strings.Lines(p.log.String()) {
			if strings.Contains(line, "forbidden") {
				t.Errorf("%s lacks a right: %s", name, line)
			}
		}
	}
}

const manifests = `
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {say: hello}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: web}
`

// program is a chart's container, run as a process of this machine.
type program struct {
	args  []string
	env   []string
	probe string // URL
	grace time.Duration
	cmd   *exec.Cmd
	log   buffer
	ended chan error
}

// install applies a chart's accounts and rights and prepares its container: mounted directories become temporary ones,
// a Secret's are filled, and the way to the API server is the ServiceAccount's token.
func install(t *testing.T, cfg *rest.Config, kube client.Client, dir, name, namespace string, values map[string]any) *program {
	t.Helper()
	objects, err := chart(dir, name, namespace, values)
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]map[string]string{}
	for _, o := range objects {
		switch o.GetKind() {
		case "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding":
			if err := apply(t.Context(), kube, o.DeepCopy()); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(o.GetKind(), "Cluster") {
				t.Cleanup(func() { _ = kube.Delete(context.Background(), o) })
			}
		case "Secret":
			secrets[o.GetName()], _, _ = unstructured.NestedStringMap(o.Object, "stringData")
			if secrets[o.GetName()] == nil { // to be filled
				if err := apply(t.Context(), kube, o.DeepCopy()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	pod := of[appsv1.Deployment](t, objects, "Deployment").Spec.Template.Spec
	c := pod.Containers[0]
	p := &program{args: c.Args, grace: time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second, ended: make(chan error, 1)}
	for _, m := range c.VolumeMounts {
		local := t.TempDir()
		for _, v := range pod.Volumes {
			if v.Name != m.Name || v.Secret == nil {
				continue
			}
			for key, value := range secrets[v.Secret.SecretName] {
				if err := os.WriteFile(filepath.Join(local, key), []byte(value), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if m.MountPath == "/tmp" {
			p.env = append(p.env, "TMPDIR="+local)
			continue // and do not touch what lies below it here
		}
		p.rewrite("="+m.MountPath, "="+local)
	}
	metrics := freeAddr(t)
	for _, port := range c.Ports {
		if c.ReadinessProbe.HTTPGet.Port.StrVal == port.Name {
			p.rewrite(fmt.Sprintf("--metrics-listen=:%d", port.ContainerPort), "--metrics-listen="+metrics)
		}
	}
	p.probe = "http://" + metrics + c.ReadinessProbe.HTTPGet.Path
	p.args = append(p.args, "--kubeconfig="+kubeconfig(t, cfg, kube, namespace, pod.ServiceAccountName))
	return p
}

// rewrite changes arguments of the container for this machine.
func (p *program) rewrite(old, new string) {
	for i := range p.args {
		p.args[i] = strings.Replace(p.args[i], old, new, 1)
	}
}

// kubeconfig is a file with which a program is the ServiceAccount.
func kubeconfig(t *testing.T, cfg *rest.Config, kube client.Client, namespace, account string) string {
	t.Helper()
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	hour := int64(3600)
	token := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hour}}
	if err := kube.SubResource("token").Create(t.Context(), sa, token); err != nil {
		t.Fatalf("token of service account %s: %v", account, err)
	}
	if err := rest.LoadTLSFiles(cfg); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: cfg.Host, CertificateAuthorityData: cfg.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: token.Status.Token}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u", Namespace: namespace}},
		CurrentContext: "x",
	}, file)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// start runs the program and waits until its readiness probe succeeds.
func (p *program) start(t *testing.T, binary string) {
	t.Helper()
	p.cmd = exec.Command(binary, p.args...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.ended <- p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("%s %s:\n%s", filepath.Base(binary), strings.Join(p.args, " "), p.log.String())
		}
	})
	kubetest.Wait(t, filepath.Base(binary)+" to be ready", func(ctx context.Context) error {
		select {
		case err := <-p.ended:
			t.Fatalf("%s ended: %v", filepath.Base(binary), err)
		default:
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.probe, nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return errors.Join(err, want(res.StatusCode == http.StatusOK, "%s: %s", res.Status, body))
	})
}

// stop ends the program as a kubelet does.
func (p *program) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("%s: %v", p.cmd.Path, err)
		}
	case <-time.After(p.grace):
		t.Errorf("%s: still running after the grace period of %s", p.cmd.Path, p.grace)
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func want(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

func create(t *testing.T, kube client.Client, o client.Object) {
	t.Helper()
	if err := kube.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

func change(t *testing.T, kube client.Client, o client.Object, f func()) {
	t.Helper()
	before := o.DeepCopyObject().(client.Object)
	f()
	if err := kube.Patch(t.Context(), o, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, kube client.Client, o client.Object) {
	t.Helper()
	if err := kube.Delete(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// gone waits until an object is not there any more. One of the same name that was made since is another: an agent whose Cluster is
// deleted enrols again while its token may.
func gone(t *testing.T, kube client.Client, o client.Object) {
	t.Helper()
	uid := o.GetUID()
	kubetest.Wait(t, o.GetName()+" to be gone", func(ctx context.Context) error {
		err := kube.Get(ctx, client.ObjectKeyFromObject(o), o)
		if apierrors.IsNotFound(err) || err == nil && uid != "" && o.GetUID() != uid {
			return nil
		}
		return errors.Join(err, fmt.Errorf("it is still there, finalizers %v", o.GetFinalizers()))
	})
}

// buffer is what a process has written so far.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
