package kubetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func TestMain(m *testing.M) { Main(m) }

// testLog passes a cluster's progress to the test's log.
type testLog struct{ tb testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.tb.Logf("%s", bytes.TrimSuffix(p, []byte("\n")))
	return len(p), nil
}

// within bounds one step of a test. The log of the cluster outlives no test.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func startCluster(t *testing.T, o Options) *Cluster {
	t.Helper()
	o.Log = testLog{t}
	c, err := Start(within(t, startTimeout), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return c
}

func client(t *testing.T, cfg *rest.Config) *kubernetes.Clientset {
	t.Helper()
	cs, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return cs
}

// pids returns the processes of a cluster, its supervisor among them.
func (c *Cluster) pids() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	pids := map[string]int{"shoal-kube": c.run.ready.PID}
	for name, pid := range c.run.ready.Children {
		pids[name] = pid
	}
	return pids
}

// gone fails while one of the processes is still running. A zombie that waits
// for its parent counts as gone.
func gone(pids map[string]int) error {
	var errs []error
	for name, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		if _, state, ok := strings.Cut(string(stat), ") "); ok && !strings.HasPrefix(state, "Z") {
			errs = append(errs, fmt.Errorf("%s (pid %d) is running", name, pid))
		}
	}
	return errors.Join(errs...)
}

func deployment(name string) *appsv1.Deployment {
	replicas := int32(2)
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.com/anything:1"}}},
			},
		},
	}
}

func waitDeployment(t *testing.T, cs *kubernetes.Clientset, ns, name string) {
	t.Helper()
	Wait(t, "deployment "+name, func(ctx context.Context) error {
		d, err := cs.AppsV1().Deployments(ns).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if d.Status.ReadyReplicas != *d.Spec.Replicas {
			return fmt.Errorf("%d of %d replicas are ready", d.Status.ReadyReplicas, *d.Spec.Replicas)
		}
		return nil
	})
}

func TestStopAndRestartKeepState(t *testing.T) {
	t.Parallel()
	c := startCluster(t, Options{Name: "restarted"})
	cfg, err := c.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	cs := client(t, cfg)
	ns := Namespace(t, cfg)
	if _, err := cs.AppsV1().Deployments(ns).Create(t.Context(), deployment("web"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitDeployment(t, cs, ns, "web")

	pids := c.pids()
	for _, name := range []string{"kine", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"} {
		if pids[name] == 0 {
			t.Errorf("%s is not among the processes %v", name, pids)
		}
	}
	begin := time.Now()
	if err := c.Halt(within(t, stopTimeout)); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped after %s", time.Since(begin))
	if err := gone(pids); err != nil {
		t.Fatalf("after Halt: %v", err)
	}
	if _, err := cs.Discovery().ServerVersion(); err == nil {
		t.Fatal("the API server answers after Halt")
	}

	if err := c.Restart(within(t, startTimeout)); err != nil {
		t.Fatal(err)
	}
	// The same client: address, CA and token are those of before.
	if _, err := cs.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{}); err != nil {
		t.Fatalf("after Restart: %v", err)
	}
	waitDeployment(t, cs, ns, "web")
	if _, err := cs.AppsV1().Deployments(ns).Create(t.Context(), deployment("later"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitDeployment(t, cs, ns, "later")
}

func TestKilledClusterLeavesNothingAndComesBack(t *testing.T) {
	t.Parallel()
	c := startCluster(t, Options{Name: "killed"})
	cfg, err := c.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	cs := client(t, cfg)
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}
	if _, err := cs.CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pids := c.pids()
	c.Kill()
	Wait(t, "the processes to end", func(context.Context) error { return gone(pids) })

	if err := c.Restart(within(t, startTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := cs.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestClusterEndsWithStdin(t *testing.T) {
	t.Parallel()
	c := startCluster(t, Options{Name: "orphan"})
	pids := c.pids()
	r := c.take()
	r.stdin.Close() // as when this process ends
	Wait(t, "the processes to end", func(context.Context) error { return gone(pids) })
	if <-r.done; r.err != nil {
		t.Errorf("shoal-kube ended with %v", r.err)
	}
}

func TestDeadComponentIsNamed(t *testing.T) {
	t.Parallel()
	c := startCluster(t, Options{Name: "broken"})
	if err := syscall.Kill(c.pids()["kube-apiserver"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pids := c.pids()
	<-c.run.done
	err := c.Stop(within(t, stopTimeout))
	if err == nil || !strings.Contains(err.Error(), "kube-apiserver ended: signal: killed") {
		t.Errorf("Stop after the API server died = %v, want an error that names it", err)
	}
	if err := gone(pids); err != nil {
		t.Error(err)
	}
}

func TestSecondStartInDirIsRefused(t *testing.T) {
	t.Parallel()
	c := startCluster(t, Options{Name: "taken"})
	_, err := Start(within(t, startTimeout), Options{Dir: c.Dir(), Name: "taken"})
	if err == nil || !strings.Contains(err.Error(), "a cluster is running in this directory") {
		t.Errorf("second Start in the directory = %v", err)
	}
}

func TestServiceAccountTokenAndRBAC(t *testing.T) {
	t.Parallel()
	cfg := Shared(t)
	ns := Namespace(t, cfg)
	cs := client(t, cfg)
	token, err := cs.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	saCfg := rest.AnonymousClientConfig(cfg)
	saCfg.BearerToken = token.Status.Token
	sa := client(t, saCfg)

	if _, err := sa.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Fatalf("list without a role = %v, want forbidden", err)
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "view"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: "default", Namespace: ns}},
	}
	if _, err := cs.RbacV1().RoleBindings(ns).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	Wait(t, "the role to count", func(ctx context.Context) error {
		_, err := sa.CoreV1().ConfigMaps(ns).List(ctx, metav1.ListOptions{})
		return err
	})
	if _, err := sa.CoreV1().Secrets(ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list secrets as viewer = %v, want forbidden", err)
	}
}

func TestSimulatedPodCanFail(t *testing.T) {
	t.Parallel()
	cfg := Shared(t)
	ns := Namespace(t, cfg)
	cs := client(t, cfg)
	d := deployment("web")
	d.Spec.Template.Annotations = map[string]string{"sim.shoal.dev/waiting": "ImagePullBackOff"}
	if _, err := cs.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	Wait(t, "the containers to wait", func(ctx context.Context) error {
		pods, err := cs.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		waiting := 0
		for _, p := range pods.Items {
			for _, s := range p.Status.ContainerStatuses {
				if s.State.Waiting != nil && s.State.Waiting.Reason == "ImagePullBackOff" {
					waiting++
				}
			}
		}
		if waiting != 2 {
			return fmt.Errorf("%d of 2 wait for their image", waiting)
		}
		return nil
	})
}

func TestVolumeClaimIsBound(t *testing.T) {
	t.Parallel()
	cfg := Shared(t)
	ns := Namespace(t, cfg)
	cs := client(t, cfg)
	replicas := int32(1)
	labels := map[string]string{"app": "db"}
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "db", Image: "db"}}},
			},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{
				ObjectMeta: metav1.ObjectMeta{Name: "data"},
				Spec: corev1.PersistentVolumeClaimSpec{
					AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}},
				},
			}},
		},
	}
	if _, err := cs.AppsV1().StatefulSets(ns).Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	Wait(t, "statefulset db", func(ctx context.Context) error {
		s, err := cs.AppsV1().StatefulSets(ns).Get(ctx, "db", metav1.GetOptions{})
		if err == nil && s.Status.ReadyReplicas != 1 {
			err = errors.New("no replica is ready")
		}
		return err
	})
}

func TestRealContainerAnswersAndSurvivesRestart(t *testing.T) {
	RequireReal(t)
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "hello")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", binary, "./testdata/hello")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	c := startCluster(t, Options{Name: "real", Nodes: "real"})
	cfg, err := c.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	cs := client(t, cfg)
	if err := c.LoadBinary(t.Context(), "shoal.dev/hello:1", binary); err != nil {
		t.Fatal(err)
	}
	d := deployment("hello")
	d.Spec.Template.Spec.Containers[0].Image = "shoal.dev/hello:1"
	d.Spec.Template.Spec.Containers[0].ImagePullPolicy = corev1.PullNever
	if _, err := cs.AppsV1().Deployments("default").Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	answers := func() {
		t.Helper()
		waitDeployment(t, cs, "default", "hello")
		Wait(t, "every container to answer", func(ctx context.Context) error {
			pods, err := cs.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=hello"})
			if err != nil {
				return err
			}
			for _, p := range pods.Items {
				if err := hello(ctx, p.Status.PodIP, p.Name); err != nil {
					return fmt.Errorf("pod %s: %w", p.Name, err)
				}
			}
			return nil
		})
	}
	answers()

	pods, err := cs.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=hello"})
	if err != nil {
		t.Fatal(err)
	}
	log, err := cs.CoreV1().Pods("default").GetLogs(pods.Items[0].Name, &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil {
		t.Fatalf("read log: %v", err)
	}
	// The program writes this after it has called the API server from inside,
	// with its ServiceAccount.
	if !strings.Contains(string(log), "API server says: system:serviceaccount:default:default") {
		t.Errorf("log = %q", log)
	}

	pids := c.pids()
	if err := c.Halt(within(t, stopTimeout)); err != nil {
		t.Fatal(err)
	}
	if err := gone(pids); err != nil {
		t.Fatal(err)
	}
	if err := hello(t.Context(), pods.Items[0].Status.PodIP, pods.Items[0].Name); err == nil {
		t.Fatal("a container answers after Halt")
	}
	if err := c.Restart(within(t, startTimeout)); err != nil {
		t.Fatal(err)
	}
	answers()
}

// hello asks the program in testdata/hello for its host name.
func hello(ctx context.Context, ip, want string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ip+":8080/", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if got := string(b); got != want {
		return fmt.Errorf("answers %q, want %q", got, want)
	}
	return nil
}
