package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/translate/model"
)

// toBeDeleted is the taint by which the cluster autoscaler marks a node that it is about to remove. A node that is merely
// cordoned is still eligible.
const toBeDeleted = "ToBeDeletedByClusterAutoscaler"

// node reads a Node.
func node(n *corev1.Node) model.Object {
	key := model.ObjectKey{Kind: model.KindNode, Name: n.Name}
	o := model.Object{Key: key}
	rep := newReport(key)
	if rep.subdomain("metadata.name", n.Name) {
		o.Node = &model.Node{
			Name:      n.Name,
			Zone:      n.Labels[corev1.LabelTopologyZone],
			Addresses: nodeAddresses(n, rep),
			PodCIDRs:  podCIDRs(n, rep),
			Ineligible: !n.DeletionTimestamp.IsZero() ||
				slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == toBeDeleted }),
			Version: versionOf(key, n),
		}
	}
	o.Problems = rep.list()
	return o
}

// nodeAddresses reads the node's internal addresses, then its external ones. Names are not addresses.
func nodeAddresses(n *corev1.Node, rep *report) []netip.Addr {
	var all []netip.Addr
	for _, sort := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for i, address := range n.Status.Addresses {
			if address.Type != sort {
				continue
			}
			field := fmt.Sprintf("status.addresses[%d]", i)
			if a, ok := rep.address(field, address.Address); ok && rep.routable(field, a, true) {
				all = append(all, a)
			}
		}
	}
	return all
}

// podCIDRs reads spec.podCIDRs, or spec.podCIDR alone.
func podCIDRs(n *corev1.Node, rep *report) []netip.Prefix {
	texts, field := n.Spec.PodCIDRs, "spec.podCIDRs"
	if len(texts) == 0 && n.Spec.PodCIDR != "" {
		texts, field = []string{n.Spec.PodCIDR}, "spec.podCIDR"
	}
	var all []netip.Prefix
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			rep.add(model.InvalidAddress, "%s: %s is not a range of addresses; write it like 10.244.1.0/24", field, quote(text))
			continue
		}
		all = append(all, prefix.Masked())
	}
	return all
}
