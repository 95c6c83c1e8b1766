package parity

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// firstOfSeveral: of endpoints with one address and port, none of which is terminating, the one in the first slice by name
// counts, and of one slice the first; of several that all are terminating too. Kube-proxy takes one of them. It still has to
// prefer those that are not terminating.
func firstOfSeveral(c *cluster) {
	var single []*discoveryv1.EndpointSlice
	for _, s := range c.withoutHeadless() {
		for i, p := range s.Ports {
			one := s.DeepCopy()
			one.Name, one.Ports = fmt.Sprintf("%s.p%d", s.Name, i), []discoveryv1.EndpointPort{p}
			single = append(single, one)
		}
	}
	slices.SortFunc(single, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	seen, some := map[string]bool{}, false
	for _, s := range single {
		p := s.Ports[0]
		if p.Name == nil || p.Port == nil {
			continue
		}
		s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool {
			if len(e.Addresses) == 0 {
				return true
			}
			address, _ := readable(e.Addresses[0])
			terminating := e.Conditions.Terminating != nil && *e.Conditions.Terminating
			key := fmt.Sprint(s.Namespace, s.Labels[discoveryv1.LabelServiceName], s.AddressType, *p.Name, *p.Protocol, address, *p.Port, terminating)
			again := seen[key]
			seen[key], some = true, some || again
			return again
		})
	}
	if some {
		c.Slices = single
	}
}

// claim is an address, port and protocol. A node port has no address, but a family.
type claim struct {
	address  netip.Addr
	family   corev1.IPFamily
	port     int32
	protocol corev1.Protocol
}

// claimant is who wants a claim, with what decides on it.
type claimant struct {
	service *corev1.Service
	right   int // The kind of frontend, in order of right.
}

const (
	byClusterIP = iota
	byLoadBalancer
	byExternalIP
	byNodePort
)

func (a claimant) compare(b claimant) int {
	return cmp.Or(cmp.Compare(a.right, b.right), a.service.CreationTimestamp.Compare(b.service.CreationTimestamp.Time),
		strings.Compare(a.service.Namespace, b.service.Namespace), strings.Compare(a.service.Name, b.service.Name))
}

// claims gives each address, port and protocol to one Service: by kind of frontend, then the older one, then by name. The
// others are left without, by Services of one port and family in their place, which have placeholders for what they lost.
func claims(c *cluster) {
	winners, losers := map[claim]claimant{}, map[*corev1.Service]bool{}
	for _, s := range c.forwarded() {
		for _, p := range s.Spec.Ports {
			wishes(s, p, func(wanted claim, right int) {
				by := claimant{s, right}
				winner, taken := winners[wanted]
				switch {
				case !taken:
					winners[wanted] = by
				case by == winner:
				case by.compare(winner) < 0:
					winners[wanted], losers[winner.service] = by, true
				default:
					losers[s] = true
				}
			})
		}
	}
	for s := range losers {
		c.Services = slices.DeleteFunc(c.Services, func(o *corev1.Service) bool { return o == s })
		for i := range s.Spec.Ports {
			for _, family := range families {
				c.addPart(s, i, family, winners)
			}
		}
	}
}

// forwarded returns the Services that have frontends.
func (c *cluster) forwarded() []*corev1.Service {
	return slices.DeleteFunc(c.proxied(), func(s *corev1.Service) bool {
		return s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == ""
	})
}

// clusterIPOf returns a Service's cluster IP of a family; the zero Addr if it has none.
func clusterIPOf(s *corev1.Service, family corev1.IPFamily) netip.Addr {
	for _, text := range append(slices.Clone(s.Spec.ClusterIPs), s.Spec.ClusterIP) {
		if a, ok := readable(text); ok && familyOf(a) == family {
			return a
		}
	}
	return netip.Addr{}
}

// wishes calls want with each claim that a port of a Service makes, in the families of which the Service has a cluster IP.
func wishes(s *corev1.Service, p corev1.ServicePort, want func(claim, int)) {
	for _, family := range families {
		clusterIP := clusterIPOf(s, family)
		if !clusterIP.IsValid() {
			continue
		}
		want(claim{clusterIP, family, p.Port, p.Protocol}, byClusterIP)
		for _, in := range s.Status.LoadBalancer.Ingress {
			vip := in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP
			if a, ok := readable(in.IP); ok && vip && familyOf(a) == family {
				want(claim{a, family, p.Port, p.Protocol}, byLoadBalancer)
			}
		}
		for _, text := range s.Spec.ExternalIPs {
			if a, ok := readable(text); ok && familyOf(a) == family {
				want(claim{a, family, p.Port, p.Protocol}, byExternalIP)
			}
		}
		if p.NodePort != 0 {
			want(claim{netip.Addr{}, family, p.NodePort, p.Protocol}, byNodePort)
		}
	}
}

// addPart adds a Service that is one port of s in one family, with what it won.
func (c *cluster) addPart(s *corev1.Service, i int, family corev1.IPFamily, winners map[claim]claimant) {
	clusterIP := clusterIPOf(s, family)
	if !clusterIP.IsValid() {
		return
	}
	part, p := s.DeepCopy(), s.Spec.Ports[i]
	part.Name = fmt.Sprintf("%s-p%d-%s", s.Name, i, strings.ToLower(string(family)))
	spare := placeholderOf(family)
	won := func(a netip.Addr, port int32, right int) bool {
		w := winners[claim{a, family, port, p.Protocol}]
		return w.service == s && w.right == right
	}
	if !won(clusterIP, p.Port, byClusterIP) {
		clusterIP = spare()
	}
	if p.NodePort != 0 && !won(netip.Addr{}, p.NodePort, byNodePort) {
		p.NodePort = 0
	}
	part.Spec.Ports = []corev1.ServicePort{p}
	part.Spec.ClusterIP, part.Spec.ClusterIPs, part.Spec.IPFamilies = clusterIP.String(), []string{clusterIP.String()}, []corev1.IPFamily{family}
	for j, text := range part.Spec.ExternalIPs {
		a, ok := readable(text)
		// An address that is the load balancer's as well is one frontend.
		if ok && familyOf(a) == family && !won(a, p.Port, byExternalIP) && !won(a, p.Port, byLoadBalancer) {
			part.Spec.ExternalIPs[j] = spare().String()
		}
	}
	for j, in := range part.Status.LoadBalancer.Ingress {
		a, ok := readable(in.IP)
		if ok && familyOf(a) == family && !won(a, p.Port, byLoadBalancer) {
			part.Status.LoadBalancer.Ingress[j].IP = spare().String()
		}
	}
	c.Services = append(c.Services, part)
	for _, slice := range c.Slices {
		if slice.Namespace == s.Namespace && slice.Labels[discoveryv1.LabelServiceName] == s.Name && slice.AddressType == discoveryv1.AddressType(family) {
			copied := slice.DeepCopy()
			copied.Name, copied.Labels[discoveryv1.LabelServiceName] = part.Name+"."+slice.Name, part.Name
			c.Slices = append(c.Slices, copied)
		}
	}
}

// placeholderOf returns a source of placeholders of a family.
func placeholderOf(family corev1.IPFamily) func() netip.Addr {
	next := netip.MustParseAddr(placeholders[slices.Index(families, family)])
	return func() netip.Addr {
		next = next.Next()
		return next
	}
}
