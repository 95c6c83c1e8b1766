package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/translate/model"
)

// clusterIPs reads spec.clusterIPs, or spec.clusterIP alone, as an old client or a manifest by hand may have it.
func clusterIPs(svc *corev1.Service, rep *report) []netip.Addr {
	texts, field := svc.Spec.ClusterIPs, "spec.clusterIPs"
	if len(texts) == 0 {
		texts, field = []string{svc.Spec.ClusterIP}, "spec.clusterIP"
	}
	var all []netip.Addr
	for _, text := range texts {
		if text == "" {
			rep.add(model.InvalidAddress, "%s is empty, so there is nothing to forward; the API server fills it in, in a manifest write it yourself, or None for a headless Service", field)
			continue
		}
		a, ok := rep.address(field, text)
		if !ok || !rep.routable(field, a, true) {
			continue
		}
		if hasFamily(all, a) {
			rep.add(model.InvalidAddress, "%s: %s is a second %s address; a Service has one of each family", field, a, model.FamilyOf(a))
			continue
		}
		all = append(all, a)
	}
	return all
}

// hasFamily reports whether one of the addresses is of a's family.
func hasFamily(addresses []netip.Addr, a netip.Addr) bool {
	return slices.ContainsFunc(addresses, func(b netip.Addr) bool { return model.FamilyOf(a) == model.FamilyOf(b) })
}

// externalIPs reads spec.externalIPs. The API server refuses the same addresses, but not in Services older than its rule.
func externalIPs(svc *corev1.Service, clusterIPs []netip.Addr, rep *report) []netip.Addr {
	var all []netip.Addr
	for i, text := range svc.Spec.ExternalIPs {
		field := fmt.Sprintf("spec.externalIPs[%d]", i)
		a, ok := rep.address(field, text)
		if !ok || !rep.routable(field, a, false) {
			continue
		}
		if !hasFamily(clusterIPs, a) {
			rep.add(model.WrongFamily, "%s: %s is %s, but the Service has no cluster IP of that family; add the family to spec.ipFamilies, or remove the address", field, a, model.FamilyOf(a))
			continue
		}
		all = append(all, a)
	}
	return all
}

// loadBalancerIPs reads the addresses in status.loadBalancer that nodes answer for. Those of a family without a cluster
// IP are passed over: a load balancer may well turn connections of one family into the other's.
func loadBalancerIPs(svc *corev1.Service, clusterIPs []netip.Addr, rep *report) []netip.Addr {
	var all []netip.Addr
	for i, ingress := range svc.Status.LoadBalancer.Ingress {
		field := fmt.Sprintf("status.loadBalancer.ingress[%d]", i)
		if ingress.IP == "" || !answered(ingress, field, rep) {
			continue
		}
		a, ok := rep.address(field+".ip", ingress.IP)
		if ok && rep.routable(field+".ip", a, true) && hasFamily(clusterIPs, a) {
			all = append(all, a)
		}
	}
	return all
}

// answered reports whether connections come to the nodes with the load balancer's address as their destination (ipMode VIP).
func answered(ingress corev1.LoadBalancerIngress, field string, rep *report) bool {
	if ingress.IPMode == nil {
		return true
	}
	switch *ingress.IPMode {
	case corev1.LoadBalancerIPModeVIP:
		return true
	case corev1.LoadBalancerIPModeProxy:
		return false
	default:
		rep.add(model.InvalidValue, "%s.ipMode: %s is not a mode, so %s is not answered for; write VIP or Proxy", field, quote(string(*ingress.IPMode)), quote(ingress.IP))
		return false
	}
}
