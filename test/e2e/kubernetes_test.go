package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/test/e2e/apiserver"
)

// controllers are those that turn Deployments and DaemonSets into Pods and Pods into EndpointSlices, and what these need. Nodes'
// lifecycle is not among them: no kubelet reports here, and it would take every Pod out of service.
const controllers = "daemonset-controller,deployment-controller,replicaset-controller,endpoints-controller,endpointslice-controller," +
	"endpointslice-mirroring-controller,namespace-controller,serviceaccount-controller,garbage-collector-controller,disruption-controller"

// controlPlane is etcd, an API server and a controller manager on a host of their own.
type controlPlane struct {
	*apiserver.Server
	cluster *cluster
	host    *lab.Host
	dir     string // Certificates, keys, kubeconfigs and etcd's data.

	controllerManager *lab.Process
}

// startControlPlane returns when the API server is ready. It returns what it started also when it fails.
func (c *cluster) startControlPlane(ctx context.Context, host *lab.Host) (k *controlPlane, err error) {
	k = &controlPlane{cluster: c, host: host, dir: filepath.Join(c.dir, "kubernetes")}
	k.Server, err = apiserver.Start(ctx, apiserver.Config{Host: host, Programs: filepath.Dir(c.binary("etcd")), Dir: k.dir, Logs: c.dir})
	if err != nil {
		return k, err
	}
	k.controllerManager, err = host.Run("kube-controller-manager", c.log("kube-controller-manager"), exec.Command(c.binary("kube-controller-manager"),
		"--kubeconfig", k.AdminKubeconfig(), "--leader-elect=false", "--use-service-account-credentials", "--controllers", controllers,
		"--service-account-private-key-file", k.ServiceAccountKey(), "--cert-dir", k.dir))
	return k, err
}

// stop ends what was started, last first.
func (k *controlPlane) stop() {
	if k.controllerManager != nil {
		k.controllerManager.Kill()
	}
	k.Stop()
}

// kubectl runs kubectl beside the API server and returns what it printed. A manifest may be handed to its standard input.
func (k *controlPlane) kubectl(manifest string, args ...string) (string, error) {
	cmd := exec.Command(k.cluster.binary("kubectl"), append([]string{
		"--kubeconfig", k.AdminKubeconfig(), "--cache-dir", filepath.Join(k.dir, "kubectl"),
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
	token, err := k.Client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("token of service account %s: %w", name, err)
	}
	return k.Kubeconfig(path, address, token.Status.Token)
}
