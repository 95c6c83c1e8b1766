package realnode

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fairlead/fairlead/server/lab"
)

// Addresses that clusters have by custom.
const (
	apiServerPort      = 6443
	kubernetesService  = "10.96.0.1"
	kubernetesService6 = "fd00:96::1"
	dnsService         = "10.96.0.10"
	dnsService6        = "fd00:96::a"
	podCIDRs           = "10.244.0.0/16"
	podCIDRs6          = "fd00:10:244::/48"
	serviceCIDR        = "10.96.0.0/16"
	serviceCIDR6       = "fd00:96::/112"
)

// controlPlane is etcd, kube-apiserver, kube-controller-manager and kube-scheduler on a host of their own.
type controlPlane struct {
	cluster *cluster
	host    *lab.Host
	keys    *pki
	config  *rest.Config // For the tests, which dial from the host.
	client  *kubernetes.Clientset
}

// startControlPlane returns when the API server is ready.
func (c *cluster) startControlPlane(ctx context.Context) error {
	host, err := c.lab.AddOutside("control-plane")
	if err != nil {
		return err
	}
	k := &controlPlane{cluster: c, host: host}
	c.kube = k
	if err := k.writeKeys(); err != nil {
		return err
	}
	if err := k.run("etcd", "--data-dir", filepath.Join(c.dir, "etcd"), "--log-level", "warn", "--unsafe-no-fsync"); err != nil {
		return err
	}
	if err := k.startAPIServer(); err != nil {
		return err
	}
	if k.config, err = clientcmd.BuildConfigFromFlags("", k.keys.path("admin.kubeconfig")); err != nil {
		return err
	}
	k.config.Dial, k.config.QPS = host.DialContext, -1
	if k.client, err = kubernetes.NewForConfig(k.config); err != nil {
		return err
	}
	err = eventually(ctx, func() error { return k.client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error() })
	if err != nil {
		return fmt.Errorf("kube-apiserver is not ready: %w; its log is in %s", err, c.dir)
	}
	key := k.keys.path
	return errors.Join(
		k.run("kube-controller-manager", "--kubeconfig", key("controller-manager.kubeconfig"), "--leader-elect=false", "--use-service-account-credentials",
			"--service-account-private-key-file", key("service-account.key"), "--root-ca-file", key("ca.crt"),
			"--cluster-signing-cert-file", key("ca.crt"), "--cluster-signing-key-file", key("ca.key"), "--cert-dir", k.keys.dir,
			"--service-cluster-ip-range", c.network.services()),
		k.run("kube-scheduler", "--kubeconfig", key("scheduler.kubeconfig"), "--leader-elect=false", "--cert-dir", k.keys.dir))
}

func (k *controlPlane) startAPIServer() error {
	key := k.keys.path
	return k.run("kube-apiserver",
		"--etcd-servers", "http://127.0.0.1:2379", "--advertise-address", k.address(), "--bind-address", "::", "--secure-port", fmt.Sprint(apiServerPort),
		"--service-cluster-ip-range", k.cluster.network.services(),
		"--tls-cert-file", key("apiserver.crt"), "--tls-private-key-file", key("apiserver.key"), "--client-ca-file", key("ca.crt"),
		"--kubelet-client-certificate", key("apiserver.crt"), "--kubelet-client-key", key("apiserver.key"), "--kubelet-certificate-authority", key("ca.crt"),
		"--kubelet-preferred-address-types", "InternalIP",
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file", key("service-account.key"), "--service-account-signing-key-file", key("service-account.key"),
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--allow-privileged")
}

// address is the host's in the cluster's first family.
func (k *controlPlane) address() string {
	return first(k.cluster.network.families, k.host.IPv4, k.host.IPv6).String()
}

func (k *controlPlane) writeKeys() (err error) {
	host := k.address()
	k.keys, err = newPKI(filepath.Join(k.cluster.dir, "pki"), "https://"+net.JoinHostPort(host, fmt.Sprint(apiServerPort)))
	if err != nil {
		return err
	}
	const admins = "system:masters"
	return errors.Join(
		k.keys.issue("apiserver", pkix.Name{CommonName: "kube-apiserver", Organization: []string{admins}}, host, kubernetesService, kubernetesService6, "127.0.0.1",
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
		k.keys.user("admin", "admin", admins),
		k.keys.user("controller-manager", "system:kube-controller-manager"),
		k.keys.user("scheduler", "system:kube-scheduler"))
}

// run starts one of the programs that ./build has built, on the control plane's host.
func (k *controlPlane) run(name string, args ...string) error {
	_, err := k.host.Run(name, k.cluster.log(name), exec.Command(k.cluster.program(name), args...))
	return err
}

// command runs a program beside the API server, as an administrator does, and returns what it printed.
func (k *controlPlane) command(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = k.cluster.root
	home := filepath.Join(k.cluster.dir, "home")
	cmd.Env = []string{"HOME=" + home, "KUBECONFIG=" + k.keys.path("admin.kubeconfig"), "PATH=" + k.cluster.programs + ":" + os.Getenv("PATH")}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := k.host.Do(cmd.Run); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()+stdout.String()))
	}
	return stdout.String(), nil
}

func (k *controlPlane) kubectl(ctx context.Context, args ...string) (string, error) {
	return k.command(ctx, "", k.cluster.program("kubectl"), args...)
}

// apply applies manifests.
func (k *controlPlane) apply(ctx context.Context, manifests string) error {
	_, err := k.command(ctx, manifests, k.cluster.program("kubectl"), "apply", "-f", "-")
	return err
}
