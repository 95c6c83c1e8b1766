package realnode

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// networks are the pod networks that Fairlead is tried on beside those of TestLifecycle, and the oldest Kubernetes.
var networks = []network{
	flannel("vxlan", true, onlyIPv4),
	flannel("vxlan", false, dualStack),
	flannel("vxlan", true, onlyIPv6),
	flannel("host-gw", true, dualStack),
	flannel("host-gw", false, onlyIPv4),
	kubeRouter(true, onlyIPv4),
	kubeRouter(false, dualStack),
	bridgeMasquerading.with(onlyIPv6),
	pointToPoint.with(onlyIPv6),
	bridgePlain.with(dualStack).on("oldest"),
}

// on returns the network in a cluster of the Kubernetes whose programs are in that folder.
func (n network) on(kubernetes string) network {
	n.kubernetes = kubernetes
	n.name += ", Kubernetes: " + kubernetes
	return n
}

// TestNetworks installs Fairlead in kube-proxy's place on two nodes for each network, and asks a Service with pods on both
// from everywhere.
func TestNetworks(t *testing.T) {
	if !*allNetworks {
		t.Skip("make networks runs it: it takes about two minutes a network, and needs more programs")
	}
	for _, n := range networks {
		t.Run(n.name, func(t *testing.T) {
			c := newCluster(t, 2, n)
			c.startProxy(t, "fairlead")
			if err := c.startDNS(t.Context()); err != nil {
				t.Fatalf("%v; logs are in %s", err, c.dir)
			}
			w := c.deploy(t, "web", 2)
			if err := c.startClients(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := w.exposeAll()
			for _, step := range []struct {
				name string
				run  func(service)
			}{
				{"pods", service.fromPods},
				{"nodes", service.fromNodes},
				{"outside", service.fromOutside},
				{"hairpin", service.hairpin},
				{"names", service.byName},
				{"large", service.large},
				{"policy", service.policy},
			} {
				t.Run(step.name, func(t *testing.T) { step.run(s.in(t)) })
			}
			if t.Failed() {
				t.Logf("logs are in %s", c.dir)
			}
		})
	}
}

// service is a Service of every family of the cluster over TCP and UDP, in front of the workload's pods.
type service struct {
	workload
	addresses []netip.Addr
	nodePorts map[lab.Network]uint16
	pods      map[string]corev1.Pod // By name; one on each node.
}

func (s service) in(t *testing.T) service { s.workload = s.workload.in(t); return s }

// exposeAll makes the Service, and waits until it has an address of each family.
func (w workload) exposeAll() service {
	w.t.Helper()
	s := service{workload: w, nodePorts: map[lab.Network]uint16{}, pods: map[string]corev1.Pod{}}
	s.name = w.name + "-all"
	manifest := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: %s}
  ports:
  - {name: tcp, port: 80, targetPort: 8080}
  - {name: udp, port: 80, targetPort: 8080, protocol: UDP}
`, s.name, w.name)
	if err := w.cluster.kube.apply(w.t.Context(), manifest); err != nil {
		w.t.Fatal(err)
	}
	object, err := w.cluster.kube.client.CoreV1().Services("default").Get(w.t.Context(), s.name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, ip := range object.Spec.ClusterIPs {
		s.addresses = append(s.addresses, netip.MustParseAddr(ip))
	}
	if want := len(each(w.cluster.network.families, 4, 6)); len(s.addresses) != want {
		w.t.Fatalf("the Service has the addresses %s, want %d", s.addresses, want)
	}
	s.nodePorts[lab.HTTP], s.nodePorts[lab.UDP] = uint16(object.Spec.Ports[0].NodePort), uint16(object.Spec.Ports[1].NodePort)
	pods, err := w.cluster.kube.client.CoreV1().Pods("default").List(w.t.Context(), metav1.ListOptions{LabelSelector: "app=" + w.name})
	if err != nil {
		w.t.Fatal(err)
	}
	nodes := map[string]bool{}
	for _, p := range pods.Items {
		s.pods[p.Name] = p
		nodes[p.Spec.NodeName] = true
	}
	if len(nodes) != len(w.cluster.nodes) {
		w.t.Fatalf("the pods are on %d nodes, want %d", len(nodes), len(w.cluster.nodes))
	}
	return s
}
