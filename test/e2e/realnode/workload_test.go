package realnode

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// workload is a Deployment of web servers and the Service in front of it.
type workload struct {
	t       *testing.T
	cluster *cluster
	name    string
}

func (w workload) in(t *testing.T) workload { w.t = t; return w }

// deploy starts a Deployment and exposes it as people do, by kubectl.
func (c *cluster) deploy(t *testing.T, name string, replicas int) workload {
	t.Helper()
	w := workload{t: t, cluster: c, name: name}
	manifest := fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 30
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: %[1]s}}}
      containers:
      - name: web
        image: registry.test/web:1
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`, name, replicas)
	if err := c.kube.apply(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	w.kubectl("expose", "deployment", name, "--port", "80", "--target-port", "8080", "--type", "NodePort")
	w.rolledOut()
	return w
}

func (w workload) kubectl(args ...string) string {
	w.t.Helper()
	out, err := w.cluster.kube.kubectl(w.t.Context(), args...)
	if err != nil {
		w.t.Fatalf("%v; logs are in %s", err, w.cluster.dir)
	}
	return out
}

func (w workload) rolledOut() {
	w.t.Helper()
	w.kubectl("rollout", "status", "deployment/"+w.name, "--timeout", patience.String())
}

// address returns where the Service is, for pods and nodes.
func (w workload) address() netip.AddrPort {
	w.t.Helper()
	s, err := w.cluster.kube.client.CoreV1().Services("default").Get(w.t.Context(), w.name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(s.Spec.ClusterIP), 80)
}

// nodePort returns where the Service is from outside, through a node.
func (w workload) nodePort(n *node) netip.AddrPort {
	w.t.Helper()
	s, err := w.cluster.kube.client.CoreV1().Services("default").Get(w.t.Context(), w.name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return netip.AddrPortFrom(first(w.cluster.network.families, n.IPv4, n.IPv6), uint16(s.Spec.Ports[0].NodePort))
}

// startClients runs a pod on each node for the tests to dial from.
func (c *cluster) startClients(ctx context.Context) error {
	for _, n := range c.nodes {
		manifest := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: client-%[1]s, labels: {app: client-%[1]s}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: "registry.test/web:1", args: [-linger=0s]}]
`, n.Name)
		if err := c.kube.apply(ctx, manifest); err != nil {
			return err
		}
	}
	return nil
}

// client returns the network of the node's client pod.
func (n *node) client(ctx context.Context) (*lab.Host, error) {
	var host *lab.Host
	err := eventually(ctx, func() error {
		p, err := n.cluster.kube.client.CoreV1().Pods("default").Get(ctx, "client-"+n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		host, err = n.pod(p)
		return err
	})
	return host, err
}

// answered asks until somebody answers, and returns what the server said.
func answered(ctx context.Context, from *lab.Host, to netip.AddrPort) (lab.Answer, error) {
	var a lab.Answer
	err := eventually(ctx, func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		a, err = from.Ask(ctx, lab.Request{Network: lab.HTTP, To: to})
		return err
	})
	return a, err
}
