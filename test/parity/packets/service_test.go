package packets

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/fairlead/fairlead/translate/kube"
)

var families = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

// variant is how a Service's port is forwarded. What cannot be asked for is left out: Envoy forwards only TCP without affinity.
type variant struct {
	protocol corev1.Protocol
	direct   bool // Asked for by annotation.
	affinity bool
}

var variants = []variant{
	{corev1.ProtocolTCP, false, false},
	{corev1.ProtocolTCP, true, false},
	{corev1.ProtocolTCP, false, true},
	{corev1.ProtocolUDP, false, false},
	{corev1.ProtocolUDP, false, true},
	{corev1.ProtocolSCTP, false, false},
	{corev1.ProtocolSCTP, false, true},
}

func (v variant) String() string {
	text := string(v.protocol)
	switch {
	case v.affinity:
		return text + " affinity"
	case v.direct:
		return text + " direct"
	case v.protocol == corev1.ProtocolTCP:
		return text + " Envoy"
	}
	return text
}

// endpoint is a pod, or with hostNetwork a node itself, here or on the other node.
type endpoint struct {
	place      place
	conditions discoveryv1.EndpointConditions
}

// place is where an endpoint is. Its servers have that name.
type place string

// The places. Here is the node that is looked at.
const (
	here      place = "local"
	there     place = "remote"
	hereHost  place = "local-host"
	thereHost place = "remote-host"
)

var places = []place{here, there, hereHost, thereHost}

func (p place) hostNetwork() bool { return p == hereHost || p == thereHost }
func (p place) node() string {
	if p == here || p == hereHost {
		return nodeHere
	}
	return nodeThere
}

// state is which endpoints a Service has, and in which condition.
type state struct {
	name      string
	endpoints []endpoint
}

var states = []state{
	{"local and remote ready", []endpoint{{here, ready}, {there, ready}}},
	{"local ready", []endpoint{{here, ready}}},
	{"remote ready", []endpoint{{there, ready}}},
	{"local terminating, remote ready", []endpoint{{here, terminating}, {there, ready}}},
	{"both terminating", []endpoint{{here, terminating}, {there, terminating}}},
	{"remote terminating", []endpoint{{there, terminating}}},
	{"unready", []endpoint{{here, unready}, {there, unready}}},
	{"none", nil},
	{"hostNetwork, local and remote", []endpoint{{hereHost, ready}, {thereHost, ready}}},
	{"hostNetwork, local", []endpoint{{hereHost, ready}}},
}

// The conditions. Endpoints that terminate serve on.
var (
	ready       = discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)}
	terminating = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}
	unready     = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(false), Terminating: new(false)}
)

// service is a dual-stack Service of type LoadBalancer, which has every kind of frontend.
type service struct {
	number   int // Its name, addresses and ports follow from it.
	internal corev1.ServiceInternalTrafficPolicy
	external corev1.ServiceExternalTrafficPolicy
	state    state
	variant  variant
}

// allServices returns one for each combination.
func allServices() []*service {
	var all []*service
	for _, internal := range []corev1.ServiceInternalTrafficPolicy{"Cluster", "Local"} {
		for _, external := range []corev1.ServiceExternalTrafficPolicy{"Cluster", "Local"} {
			for _, s := range states {
				for _, v := range variants {
					all = append(all, &service{number: len(all), internal: internal, external: external, state: s, variant: v})
				}
			}
		}
	}
	return all
}

// withoutAffinity returns the Service that differs from s in nothing but that.
func (s *service) withoutAffinity(all []*service) *service {
	for _, t := range all {
		v := t.variant
		same := t.internal == s.internal && t.external == s.external && t.state.name == s.state.name && v.protocol == s.variant.protocol
		if same && !v.affinity && (v.direct || v.protocol != corev1.ProtocolTCP) {
			return t
		}
	}
	return nil
}

// name is a DNS label, as the API server demands.
func (s *service) name() string { return fmt.Sprintf("service-%d", s.number) }

// kind is one of the ways to a Service.
type kind string

// The kinds. A health check is asked by HTTP, whatever the Service's own protocol.
const (
	clusterIP    kind = "ClusterIP"
	nodePort     kind = "NodePort"
	loadBalancer kind = "LoadBalancer IP"
	externalIP   kind = "external IP"
	healthCheck  kind = "healthCheckNodePort"
)

var kinds = []kind{clusterIP, nodePort, loadBalancer, externalIP, healthCheck}

// Ports. A Service's own are numbered from these on.
const (
	servicePort      = 80
	firstNodePort    = 30000
	firstHealthCheck = 32000
)

// kinds returns the ways to the Service.
func (s *service) kinds() []kind {
	if s.external != corev1.ServiceExternalTrafficPolicyLocal {
		return kinds[:len(kinds)-1]
	}
	return kinds
}

// addresses of the kinds that have their own, in both families.
var addresses = map[kind]map[corev1.IPFamily]netip.Addr{
	clusterIP:    {corev1.IPv4Protocol: netip.MustParseAddr("10.96.1.0"), corev1.IPv6Protocol: netip.MustParseAddr("fd00:96::100")},
	loadBalancer: {corev1.IPv4Protocol: netip.MustParseAddr("198.18.1.0"), corev1.IPv6Protocol: netip.MustParseAddr("2001:db8:18::100")},
	externalIP:   {corev1.IPv4Protocol: netip.MustParseAddr("198.19.1.0"), corev1.IPv6Protocol: netip.MustParseAddr("2001:db8:19::100")},
}

// servicePrefixes hold all addresses of Services.
var servicePrefixes = []netip.Prefix{
	netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("2001:db8::/32"),
}

// address returns the Service's address of a kind that has its own.
func (s *service) address(k kind, family corev1.IPFamily) netip.Addr {
	b := addresses[k][family].AsSlice()
	b[len(b)-2] += byte(s.number / 256)
	b[len(b)-1] = byte(s.number)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// target returns what a client dials. Node ports are dialled at an address of the node that is looked at.
func (s *service) target(k kind, family corev1.IPFamily, node netip.Addr) netip.AddrPort {
	switch k {
	case nodePort:
		return netip.AddrPortFrom(node, uint16(firstNodePort+s.number))
	case healthCheck:
		return netip.AddrPortFrom(node, uint16(firstHealthCheck+s.number))
	default:
		return netip.AddrPortFrom(s.address(k, family), servicePort)
	}
}

func (s *service) object() *corev1.Service {
	o := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: s.name()},
		Spec: corev1.ServiceSpec{
			Type:                  corev1.ServiceTypeLoadBalancer,
			IPFamilies:            families,
			IPFamilyPolicy:        new(corev1.IPFamilyPolicyRequireDualStack),
			ExternalTrafficPolicy: s.external,
			InternalTrafficPolicy: &s.internal,
			Ports: []corev1.ServicePort{{
				Name: portName, Protocol: s.variant.protocol, Port: servicePort, NodePort: int32(firstNodePort + s.number),
				TargetPort: intstr.FromString(portName), // It resolves to different numbers for pods of different kinds.
			}},
		},
	}
	for _, family := range families {
		o.Spec.ClusterIPs = append(o.Spec.ClusterIPs, s.address(clusterIP, family).String())
		o.Spec.ExternalIPs = append(o.Spec.ExternalIPs, s.address(externalIP, family).String())
	}
	o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
	if s.external == corev1.ServiceExternalTrafficPolicyLocal {
		o.Spec.HealthCheckNodePort = int32(firstHealthCheck + s.number)
	}
	if s.variant.direct {
		o.Annotations = map[string]string{kube.AnnotationForwarding: kube.ForwardingDirect}
	}
	if s.variant.affinity {
		o.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	return o
}

const portName = "main"

// ingress is the load balancer's part of the status.
func (s *service) ingress() []corev1.LoadBalancerIngress {
	var all []corev1.LoadBalancerIngress
	for _, family := range families {
		all = append(all, corev1.LoadBalancerIngress{IP: s.address(loadBalancer, family).String(), IPMode: new(corev1.LoadBalancerIPModeVIP)})
	}
	return all
}

// slices returns the endpoints, by family and, since a slice has one port for all, by network.
func (s *service) slices(addressOf func(place, corev1.IPFamily) netip.Addr) []*discoveryv1.EndpointSlice {
	var all []*discoveryv1.EndpointSlice
	for f, family := range families {
		for h, hostNetwork := range []bool{false, true} {
			o := &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: metav1.NamespaceDefault, Name: fmt.Sprintf("%s-%d%d", s.name(), f, h),
					Labels: map[string]string{discoveryv1.LabelServiceName: s.name()},
				},
				AddressType: discoveryv1.AddressType(family),
				Ports: []discoveryv1.EndpointPort{{
					Name: new(portName), Protocol: &s.variant.protocol, Port: new(int32(targetPort(s.variant.protocol, hostNetwork))),
				}},
			}
			for _, e := range s.state.endpoints {
				if e.place.hostNetwork() == hostNetwork {
					o.Endpoints = append(o.Endpoints, discoveryv1.Endpoint{
						Addresses: []string{addressOf(e.place, family).String()}, NodeName: new(e.place.node()), Conditions: e.conditions,
					})
				}
			}
			if len(o.Endpoints) > 0 {
				all = append(all, o)
			}
		}
	}
	return all
}

// targetPort is where the servers are. Those in a node's network have others, since a node has one set of ports for all.
func targetPort(p corev1.Protocol, hostNetwork bool) uint16 {
	port := map[corev1.Protocol]uint16{corev1.ProtocolTCP: 9000, corev1.ProtocolUDP: 9053, corev1.ProtocolSCTP: 9132}[p]
	if hostNetwork {
		port += 100
	}
	return port
}
