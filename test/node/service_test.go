package node

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/translate/kube"
)

// Address plan of Services, beside the lab's. A Service of number N has 10.96.x.y, 198.18.x.y and 198.19.x.y (the range
// for benchmarks), where x and y follow from N, and addresses like them in IPv6.
const (
	servicePort   = 80
	firstNodePort = 30000
	markers       = 10000 // Numbers from here on are those of markers.
)

// kind is one of the ways to a Service.
type kind int

const (
	clusterIP kind = iota
	nodePort
	loadBalancer
	externalIP
)

func (k kind) String() string {
	return [...]string{"ClusterIP", "NodePort", "LoadBalancer", "externalIP"}[k]
}

// prefixes of the addresses of the kinds that have their own, in both families.
var prefixes = map[kind][2]string{
	clusterIP:    {"10.96.%d.%d", "fd00:96::%x:%x"},
	loadBalancer: {"198.18.%d.%d", "2001:db8:18::%x:%x"},
	externalIP:   {"198.19.%d.%d", "2001:db8:19::%x:%x"},
}

// servicePrefixes hold all addresses of Services.
var servicePrefixes = []netip.Prefix{
	netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/96"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("2001:db8::/32"),
}

var families = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

// endpoint is one that a Service is served by: a pod, or with hostNetwork the node itself.
type endpoint struct {
	host        *lab.Host
	node        *lab.Node
	hostNetwork bool
	conditions  discoveryv1.EndpointConditions // The zero value is ready.
}

// service is a dual-stack Service of type LoadBalancer, which has all kinds of addresses, and its EndpointSlices.
type service struct {
	name      string
	number    int // Unique; the addresses follow from it.
	protocol  corev1.Protocol
	internal  corev1.ServiceInternalTrafficPolicy // Empty is Cluster.
	external  corev1.ServiceExternalTrafficPolicy // Empty is Cluster.
	endpoints []endpoint
	ranges    []string // loadBalancerSourceRanges.
	direct    bool     // Forwarded by the kernel alone.
	affinity  int32    // timeoutSeconds of sessionAffinity ClientIP; 0: none.
}

// address returns the Service's address of a kind that has its own.
func (s *service) address(k kind, family corev1.IPFamily) netip.Addr {
	format := prefixes[k][0]
	if family == corev1.IPv6Protocol {
		format = prefixes[k][1]
	}
	return netip.MustParseAddr(fmt.Sprintf(format, s.number/250, s.number%250+1))
}

func (s *service) nodePort() uint16 { return uint16(firstNodePort + s.number%2767) }

// target returns what a client dials. NodePorts are dialled at a node.
func (s *service) target(k kind, family corev1.IPFamily, at *lab.Node) netip.AddrPort {
	if k != nodePort {
		return netip.AddrPortFrom(s.address(k, family), servicePort)
	}
	return netip.AddrPortFrom(addressOf(at.Host, family), s.nodePort())
}

func addressOf(h *lab.Host, family corev1.IPFamily) netip.Addr {
	if family == corev1.IPv6Protocol {
		return h.IPv6
	}
	return h.IPv4
}

// objects returns the Service and its EndpointSlices, as the API server would.
func (s *service) objects() []runtime.Object {
	all := []runtime.Object{s.object()}
	for _, family := range families {
		for _, hostNetwork := range []bool{false, true} {
			if slice := s.slice(family, hostNetwork); len(slice.Endpoints) > 0 {
				all = append(all, slice)
			}
		}
	}
	return all
}

func (s *service) object() *corev1.Service {
	o := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: s.name},
		Spec: corev1.ServiceSpec{
			Type:           corev1.ServiceTypeLoadBalancer,
			IPFamilies:     families,
			IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack),
			Ports: []corev1.ServicePort{{
				Name: "main", Protocol: s.protocol, Port: servicePort, NodePort: int32(s.nodePort()),
				TargetPort: intstr.FromString("main"), // It resolves to different numbers for pods of different kinds.
			}},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
			InternalTrafficPolicy: new(corev1.ServiceInternalTrafficPolicyCluster),

			LoadBalancerSourceRanges: s.ranges,
		},
	}
	if s.external != "" {
		o.Spec.ExternalTrafficPolicy = s.external
	}
	if s.direct {
		o.Annotations = map[string]string{kube.AnnotationForwarding: kube.ForwardingDirect}
	}
	if s.affinity != 0 {
		o.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		o.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &s.affinity}}
	}
	if s.internal != "" {
		o.Spec.InternalTrafficPolicy = &s.internal
	}
	for _, family := range families {
		o.Spec.ClusterIPs = append(o.Spec.ClusterIPs, s.address(clusterIP, family).String())
		o.Spec.ExternalIPs = append(o.Spec.ExternalIPs, s.address(externalIP, family).String())
		o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{
			IP: s.address(loadBalancer, family).String(), IPMode: new(corev1.LoadBalancerIPModeVIP),
		})
	}
	o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
	return o
}

// slice returns the endpoints of one family and, since a slice has one port for all, of one kind.
func (s *service) slice(family corev1.IPFamily, hostNetwork bool) *discoveryv1.EndpointSlice {
	port := map[corev1.Protocol]int32{corev1.ProtocolTCP: podTCP, corev1.ProtocolUDP: podUDP}
	suffix := "pods"
	if hostNetwork {
		port = map[corev1.Protocol]int32{corev1.ProtocolTCP: hostTCP, corev1.ProtocolUDP: hostUDP}
		suffix = "hosts"
	}
	o := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprintf("%s-%s-%s", s.name, suffix, map[corev1.IPFamily]string{"IPv4": "v4", "IPv6": "v6"}[family]),
			Labels: map[string]string{discoveryv1.LabelServiceName: s.name},
		},
		AddressType: discoveryv1.AddressType(family),
		Ports:       []discoveryv1.EndpointPort{{Name: new("main"), Protocol: &s.protocol, Port: new(port[s.protocol])}},
	}
	for _, e := range s.endpoints {
		if e.hostNetwork == hostNetwork {
			o.Endpoints = append(o.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{addressOf(e.host, family).String()}, NodeName: &e.node.Name, Conditions: e.conditions,
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: e.host.Name},
			})
		}
	}
	return o
}

// nodeObjects returns the Node objects of the cluster's nodes. The second of each pair does not name its pods' addresses,
// as where a cloud or the CNI itself gives them out: its agent has to find out who is a pod.
func (c *cluster) nodeObjects() []runtime.Object {
	var all []runtime.Object
	for i, n := range c.nodes {
		o := &corev1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: n.Name},
		}
		if i%2 == 0 {
			o.Spec = corev1.NodeSpec{PodCIDR: n.PodCIDR4.String(), PodCIDRs: []string{n.PodCIDR4.String(), n.PodCIDR6.String()}}
		}
		for _, family := range families {
			o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: addressOf(n.Host, family).String()})
		}
		all = append(all, o)
	}
	return all
}
