package parity

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/translate/kube"
)

// cluster is all that either program sees, and the node that it runs on.
type cluster struct {
	Node     string
	Services []*corev1.Service
	Slices   []*discoveryv1.EndpointSlice
	Nodes    []*corev1.Node
}

// families are the two families, as Kubernetes spells them.
var families = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

// copied returns a cluster that shares nothing with c.
func (c *cluster) copied() *cluster {
	d := &cluster{Node: c.Node}
	for _, s := range c.Services {
		d.Services = append(d.Services, s.DeepCopy())
	}
	for _, s := range c.Slices {
		d.Slices = append(d.Slices, s.DeepCopy())
	}
	for _, n := range c.Nodes {
		d.Nodes = append(d.Nodes, n.DeepCopy())
	}
	return d
}

// proxied returns the Services that kube-proxy asks the API server for.
func (c *cluster) proxied() []*corev1.Service {
	return slices.DeleteFunc(slices.Clone(c.Services), func(s *corev1.Service) bool {
		_, other := s.Labels[kube.LabelServiceProxyName]
		return other || s.Spec.ClusterIP == corev1.ClusterIPNone
	})
}

// withoutHeadless returns the EndpointSlices that kube-proxy asks the API server for.
func (c *cluster) withoutHeadless() []*discoveryv1.EndpointSlice {
	return slices.DeleteFunc(slices.Clone(c.Slices), func(s *discoveryv1.EndpointSlice) bool {
		_, headless := s.Labels[corev1.IsHeadlessService]
		return headless
	})
}

// labels returns the labels of the cluster's node; none if no object describes it.
func (c *cluster) labels() map[string]string {
	for _, n := range c.Nodes {
		if n.Name == c.Node {
			return n.Labels
		}
	}
	return nil
}

// nodeAddress is the address of the node that is looked at, in each family.
var nodeAddress = map[corev1.IPFamily]netip.Addr{
	corev1.IPv4Protocol: netip.MustParseAddr("172.30.0.1"),
	corev1.IPv6Protocol: netip.MustParseAddr("fd00:30::1"),
}

// address returns the address of the cluster's node.
func (c *cluster) address(family corev1.IPFamily) netip.Addr { return nodeAddress[family] }

// manifests returns the cluster as YAML.
func (c *cluster) manifests() string {
	var b strings.Builder
	put := func(o any) {
		b.WriteString("---\n")
		b.Write(must(yaml.Marshal(o)))
	}
	for _, n := range c.Nodes {
		put(n)
	}
	for _, s := range c.Services {
		put(s)
	}
	for _, s := range c.Slices {
		put(s)
	}
	return b.String()
}

// familyOf returns the family of an address.
func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Unmap().Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}
