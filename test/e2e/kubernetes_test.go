package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/fairlead/fairlead/server/lab"
)

const apiServerPort = 6443

// Ranges that Services get their addresses from, and the address that the first of them always has.
const (
	serviceCIDRs      = "10.96.0.0/16,fd00:96::/112"
	kubernetesService = "10.96.0.1"
)

// controllers are those that turn Deployments and DaemonSets into Pods and Pods into EndpointSlices, and what these need. Nodes'
// lifecycle is not among them: no kubelet reports here, and it would take every Pod out of service.
const controllers = "daemonset-controller,deployment-controller,replicaset-controller,endpoints-controller,endpointslice-controller," +
	"endpointslice-mirroring-controller,namespace-controller,serviceaccount-controller,garbage-collector-controller,disruption-controller"

// controlPlane is etcd, an API server and a controller manager on a host of their own.
type controlPlane struct {
	cluster *cluster
	host    *lab.Host
	dir     string // Certificates, keys, kubeconfigs and etcd's data.
	token   string // Of a member of system:masters.

	etcd, apiServer, controllerManager *lab.Process

	config *rest.Config // For the tests, which are not on the control plane's host but dial from it.
	client *kubernetes.Clientset
}

// startControlPlane returns when the API server is ready.
func (c *cluster) startControlPlane(ctx context.Context, host *lab.Host) (*controlPlane, error) {
	k := &controlPlane{cluster: c, host: host, dir: filepath.Join(c.dir, "kubernetes"), token: newToken()}
	if err := k.writeSecrets(); err != nil {
		return nil, err
	}
	var err error
	k.etcd, err = host.Run("etcd", c.log("etcd"), exec.Command(c.binary("etcd"), "--data-dir", filepath.Join(k.dir, "etcd"), "--log-level", "warn"))
	if err != nil {
		return nil, err
	}
	if err := k.startAPIServer(); err != nil {
		return nil, err
	}
	if err := k.connect(ctx); err != nil {
		return nil, err
	}
	admin := filepath.Join(k.dir, "admin.kubeconfig")
	if err := k.writeKubeconfig(admin, k.address(), k.token); err != nil {
		return nil, err
	}
	k.controllerManager, err = host.Run("kube-controller-manager", c.log("kube-controller-manager"), exec.Command(c.binary("kube-controller-manager"),
		"--kubeconfig", admin, "--leader-elect=false", "--use-service-account-credentials", "--controllers", controllers,
		"--service-account-private-key-file", filepath.Join(k.dir, "service-account.key"), "--cert-dir", k.dir))
	return k, err
}

// address is where the API server listens.
func (k *controlPlane) address() string {
	return netip.AddrPortFrom(k.host.IPv4, apiServerPort).String()
}

// startAPIServer starts the API server, or starts it again after it was killed.
func (k *controlPlane) startAPIServer() (err error) {
	k.apiServer, err = k.host.Run("kube-apiserver", k.cluster.log("kube-apiserver"), exec.Command(k.cluster.binary("kube-apiserver"),
		"--etcd-servers", "http://127.0.0.1:2379",
		"--bind-address", "0.0.0.0", "--secure-port", fmt.Sprint(apiServerPort), "--advertise-address", k.host.IPv4.String(),
		"--cert-dir", k.dir,
		"--service-cluster-ip-range", serviceCIDRs,
		"--authorization-mode", "RBAC", "--token-auth-file", filepath.Join(k.dir, "tokens.csv"),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file", filepath.Join(k.dir, "service-account.key"),
		"--service-account-signing-key-file", filepath.Join(k.dir, "service-account.key"),
		"--allow-privileged",                             // Whether Pods may ask for it, as on any cluster that kube-proxy runs on.
		"--disable-admission-plugins", "ServiceAccount")) // Nobody mounts tokens into these pods.
	return err
}

// connect waits for the API server and makes the tests' client.
func (k *controlPlane) connect(ctx context.Context) error {
	ca := filepath.Join(k.dir, "apiserver.crt") // The API server writes it as it starts, its authority's certificate included.
	err := eventually(ctx, func() error {
		if err := errors.Join(k.etcd.Ended(), k.apiServer.Ended()); err != nil {
			return err
		}
		_, err := os.Stat(ca)
		return err
	})
	if err != nil {
		return fmt.Errorf("kube-apiserver's certificate: %w", err)
	}
	k.config = &rest.Config{
		Host:            k.address(),
		BearerToken:     k.token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: ca},
		Dial:            k.host.DialContext,
		QPS:             -1, // No limit: the tests play every kubelet.
	}
	if k.client, err = kubernetes.NewForConfig(k.config); err != nil {
		return err
	}
	return k.ready(ctx)
}

// ready waits until the API server says that it is.
func (k *controlPlane) ready(ctx context.Context) error {
	err := eventually(ctx, func() error {
		if err := k.apiServer.Ended(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return k.client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	if err != nil {
		return fmt.Errorf("kube-apiserver is not ready: %w", err)
	}
	return nil
}

// stop ends what was started, last first.
func (k *controlPlane) stop() {
	for _, p := range []*lab.Process{k.controllerManager, k.apiServer, k.etcd} {
		if p != nil {
			p.Kill()
		}
	}
}

// kubectl runs kubectl beside the API server and returns what it printed. A manifest may be handed to its standard input.
func (k *controlPlane) kubectl(manifest string, args ...string) (string, error) {
	cmd := exec.Command(k.cluster.binary("kubectl"), append([]string{
		"--kubeconfig", filepath.Join(k.dir, "admin.kubeconfig"), "--cache-dir", filepath.Join(k.dir, "kubectl"),
	}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(manifest), &stdout, &stderr
	if err := k.host.Do(cmd.Run); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// serviceAccountConfig writes a kubeconfig with a fresh token of a service account of kube-system, for the API server at address.
func (k *controlPlane) serviceAccountConfig(ctx context.Context, path, name, address string) error {
	request := &authenticationv1.TokenRequest{}
	token, err := k.client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("token of service account %s: %w", name, err)
	}
	return k.writeKubeconfig(path, address, token.Status.Token)
}

func (k *controlPlane) writeKubeconfig(path, address, token string) error {
	const name = "e2e"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: "https://" + address, CertificateAuthority: filepath.Join(k.dir, "apiserver.crt")}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return clientcmd.WriteToFile(*config, path)
}

// writeSecrets writes the administrator's token and the key that signs service accounts' tokens.
func (k *controlPlane) writeSecrets() error {
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	tokens := k.token + ",admin,admin,system:masters\n"
	return errors.Join(
		os.WriteFile(filepath.Join(k.dir, "service-account.key"), pemKey, 0o600),
		os.WriteFile(filepath.Join(k.dir, "tokens.csv"), []byte(tokens), 0o600))
}

func newToken() string {
	b := make([]byte, 16)
	rand.Read(b) // Never fails: crypto/rand ends the program instead.
	return hex.EncodeToString(b)
}
