package parity

import (
	"fmt"
	"math/rand/v2"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/translate/kube"
)

// random makes clusters. Its vocabulary is small, so that objects meet: slices that hold one endpoint twice, Services that want
// one address. In every other cluster some values are such as the API server refuses: manifests may hold them, and objects
// older than a rule of the API server.
type random struct {
	*rand.Rand
	dirty bool
}

// newCluster returns the cluster of a seed.
func newCluster(seed uint64) *cluster {
	r := &random{Rand: rand.New(rand.NewPCG(seed, 0))}
	r.dirty = r.one(2)
	c := &cluster{Node: pick(r, "n1", "n1", "n1", "n1", "n4")} // No object describes n4.
	for i := range 3 {
		c.Nodes = append(c.Nodes, r.node(fmt.Sprintf("n%d", i+1)))
	}
	for i := range 20 + r.IntN(10) {
		s := r.service(fmt.Sprintf("s%d", i), i)
		c.Services = append(c.Services, s)
		for _, family := range families {
			for j := range r.IntN(4) {
				c.Slices = append(c.Slices, r.slice(s, fmt.Sprintf("%s-%c-%d", s.Name, family[3], j), family))
			}
		}
	}
	r.Shuffle(len(c.Services), func(i, j int) { c.Services[i], c.Services[j] = c.Services[j], c.Services[i] })
	r.Shuffle(len(c.Slices), func(i, j int) { c.Slices[i], c.Slices[j] = c.Slices[j], c.Slices[i] })
	return c
}

// one reports true once in n times.
func (r *random) one(n int) bool { return r.IntN(n) == 0 }

// pick returns one of the values.
func pick[T any](r *random, values ...T) T { return values[r.IntN(len(values))] }

// bad returns a value, but once in a while, if the cluster may hold such, one of those that are wrong.
func bad[T any](r *random, value T, wrong ...T) T {
	if r.dirty && r.one(20) {
		return pick(r, wrong...)
	}
	return value
}

// some returns up to n values.
func some[T any](r *random, n int, value func() T) []T {
	var all []T
	for range r.IntN(n + 1) {
		all = append(all, value())
	}
	return all
}

func (r *random) node(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	if !r.one(5) {
		n.Labels[corev1.LabelTopologyZone] = pick(r, "a", "b")
	}
	if name == "n1" {
		for _, family := range families {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: nodeAddress[family].String()})
		}
	}
	return n
}

func (r *random) service(name string, i int) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace:         pick(r, "default", "default", "default", "other"),
		Name:              bad(r, name, name+"_x"),
		CreationTimestamp: metav1.Unix(int64(r.IntN(4)), 0),
		Labels:            map[string]string{},
		Annotations:       map[string]string{},
	}}
	if r.one(25) {
		s.Labels[kube.LabelServiceProxyName] = pick(r, "", "other")
	}
	if r.one(5) {
		s.Annotations[kube.AnnotationForwarding] = kube.ForwardingDirect
	}
	s.Spec.Type = pick(r, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeLoadBalancer)
	s.Spec.Type = bad(r, s.Spec.Type, "Odd", "")
	if r.one(30) {
		s.Spec.Type = corev1.ServiceTypeExternalName
	}
	r.policies(s)
	r.clusterIPs(s, i)
	r.ports(s)
	r.outside(s)
	return s
}

func (r *random) policies(s *corev1.Service) {
	local := bad(r, pick(r, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal), "Odd", "")
	if !r.one(4) {
		s.Spec.InternalTrafficPolicy = &local
	}
	if s.Spec.Type != corev1.ServiceTypeClusterIP || r.one(4) {
		s.Spec.ExternalTrafficPolicy = pick(r, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
		s.Spec.ExternalTrafficPolicy = bad(r, s.Spec.ExternalTrafficPolicy, "Odd", "")
	}
	s.Spec.SessionAffinity = bad(r, pick(r, corev1.ServiceAffinityNone, corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP), "Odd", "")
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		seconds := bad(r, pick[int32](r, 1, 600, 10800, 86400), -1, 0, 86401)
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		s.Spec.SessionAffinityConfig = bad(r, s.Spec.SessionAffinityConfig, nil, &corev1.SessionAffinityConfig{})
	}
}

// clusterIPs gives a Service one or two addresses, its own but for once in a while.
func (r *random) clusterIPs(s *corev1.Service, i int) {
	if r.one(20) {
		i = r.IntN(4)
	}
	v4, v6 := fmt.Sprintf("10.96.0.%d", 10+i), fmt.Sprintf("fd00:96::%x", 10+i)
	both := pick(r, []string{v4}, []string{v6}, []string{v4, v6}, []string{v6, v4})
	both = bad(r, both, []string{"10.96.0.010"}, []string{"127.0.0.1", v6}, []string{v4, "10.96.0.77"}, []string{"odd"}, []string{v4, "ff02::1"})
	if r.one(30) {
		both = []string{corev1.ClusterIPNone}
	}
	s.Spec.ClusterIP, s.Spec.ClusterIPs = both[0], both
	if r.one(8) {
		s.Spec.ClusterIPs = nil // As a client older than dual-stack writes it.
	}
	s.Spec.IPFamilies = familiesOf(s)
}

// ports gives a Service ports. Some of its ports have no node port, or have one though its type allows none.
func (r *random) ports(s *corev1.Service) {
	names := []string{"http", "grpc", "dns"}
	for i := range 1 + r.IntN(3) {
		p := corev1.ServicePort{
			Name:     bad(r, names[i], "Odd_Name", "http"),
			Protocol: bad(r, pick(r, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP), "tcp", ""),
			Port:     bad(r, pick[int32](r, 53, 80, 443)+int32(i)*1000, 0, -1, 70000, 80),
		}
		if s.Spec.Type != corev1.ServiceTypeClusterIP && !r.one(5) || r.one(20) {
			p.NodePort = bad(r, 30000+r.Int32N(200), 70000)
		}
		s.Spec.Ports = append(s.Spec.Ports, p)
	}
	if len(s.Spec.Ports) == 1 && r.one(2) {
		s.Spec.Ports[0].Name = ""
	}
}

// outside gives a Service what it is reached by from outside.
func (r *random) outside(s *corev1.Service) {
	if r.one(3) {
		s.Spec.ExternalIPs = some(r, 2, func() string {
			good := pick(r, fmt.Sprintf("192.0.2.%d", r.IntN(30)), fmt.Sprintf("2001:db8::%x", r.IntN(30)),
				fmt.Sprintf("203.0.113.%d", r.IntN(40)), fmt.Sprintf("2001:db8:1::%x", r.IntN(40)), // As load balancers have.
				nodeAddress[pick(r, families...)].String(), "10.96.0.11")
			return bad(r, good, "169.254.169.254", "127.0.0.1", "0.0.0.0", "192.0.2.010", "odd", "", "fe80::1", "::ffff:192.0.2.9")
		})
	}
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	s.Status.LoadBalancer.Ingress = some(r, 3, func() corev1.LoadBalancerIngress {
		good := pick(r, fmt.Sprintf("203.0.113.%d", r.IntN(40)), fmt.Sprintf("2001:db8:1::%x", r.IntN(40)))
		in := corev1.LoadBalancerIngress{IP: bad(r, good, "", "203.0.113.010", "127.0.0.1", "224.0.0.1", "odd", "192.0.2.1")}
		if r.one(3) {
			in.IPMode = new(bad(r, pick(r, corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy), "Odd"))
		}
		return in
	})
	if r.one(2) {
		s.Spec.LoadBalancerSourceRanges = some(r, 4, func() string {
			good := pick(r, "10.244.0.0/16", "172.30.0.0/24", "198.51.100.0/24", "198.51.100.128/25", "198.51.100.7/8", " 198.51.100.7/32 ",
				"2001:db8:9::/48", "fd00::/8", "0.0.0.0/0", "::/0")
			return bad(r, good, "odd", "", "198.51.100.7", "010.0.0.0/8")
		})
	}
	if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal || r.one(10) {
		s.Spec.HealthCheckNodePort = bad(r, 31000+r.Int32N(1000), 0, 70000)
	}
}

// slice makes a slice of a Service's endpoints of a family.
func (r *random) slice(of *corev1.Service, name string, family corev1.IPFamily) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: of.Namespace,
		Name:      bad(r, name, name+"_x"),
		Labels:    map[string]string{discoveryv1.LabelServiceName: of.Name},
	}}
	switch {
	case r.one(40):
		s.Labels[corev1.IsHeadlessService] = ""
	case r.one(40):
		delete(s.Labels, discoveryv1.LabelServiceName)
	}
	s.AddressType = bad(r, discoveryv1.AddressType(family), discoveryv1.AddressTypeFQDN, "Odd")
	for _, p := range of.Spec.Ports {
		if r.one(12) {
			continue
		}
		// A target port may have another number in each slice.
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{
			Name:     bad(r, new(p.Name), nil, new("Odd_Name")),
			Protocol: bad(r, new(p.Protocol), nil),
			Port:     bad(r, new(8000+r.Int32N(3)), nil, new(int32(0)), new(int32(-1)), new(int32(70000))),
		})
	}
	hints := r.IntN(4) // Whether endpoints have hints: for nodes, for zones, for both.
	for range r.IntN(6) {
		s.Endpoints = append(s.Endpoints, r.endpoint(family, hints))
	}
	return s
}

func (r *random) endpoint(family corev1.IPFamily, hints int) discoveryv1.Endpoint {
	address := fmt.Sprintf("10.244.%d.%d", r.IntN(3)+1, r.IntN(12)+20)
	wrong := []string{"127.0.0.1", "169.254.0.1", "10.244.1.010", "odd", "fd00:10:244:1::30", "255.255.255.255", "::ffff:10.244.1.9"}
	if family == corev1.IPv6Protocol {
		address = fmt.Sprintf("fd00:10:244:%d::%x", r.IntN(3)+1, r.IntN(12)+20)
		wrong = []string{"::1", "fe80::1", "ff02::1", "odd", "10.244.1.30", "::", "::ffff:10.244.1.9"}
	}
	e := discoveryv1.Endpoint{Addresses: []string{bad(r, address, wrong...)}}
	if r.one(10) {
		e.Addresses = append(e.Addresses, "10.244.9.9")
	}
	e.Addresses = bad(r, e.Addresses, nil)
	e.NodeName = pick(r, new("n1"), new("n1"), new("n2"), new("n3"), nil)
	e.Conditions = pick(r,
		discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
		discoveryv1.EndpointConditions{},
		discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)},
		discoveryv1.EndpointConditions{Ready: r.flag(), Serving: r.flag(), Terminating: r.flag()},
	)
	if e.Hints = new(discoveryv1.EndpointHints); hints == 0 || r.one(15) {
		e.Hints = nil
		return e
	}
	if hints != 1 {
		e.Hints.ForZones = some(r, 2, func() discoveryv1.ForZone { return discoveryv1.ForZone{Name: bad(r, pick(r, "a", "b"), "")} })
	}
	if hints != 2 {
		e.Hints.ForNodes = some(r, 2, func() discoveryv1.ForNode { return discoveryv1.ForNode{Name: bad(r, pick(r, "n1", "n2"), "")} })
	}
	return e
}

func (r *random) flag() *bool { return pick(r, nil, new(true), new(false)) }

// familiesOf returns what the API server makes spec.ipFamilies of a Service's cluster IPs.
func familiesOf(s *corev1.Service) []corev1.IPFamily {
	var all []corev1.IPFamily
	for _, text := range s.Spec.ClusterIPs {
		if a, ok := readable(text); ok && !slices.Contains(all, familyOf(a)) {
			all = append(all, familyOf(a))
		}
	}
	return all
}
