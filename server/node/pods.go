package node

import (
	"net/netip"
	"slices"
)

// findPodLinks looks which links lead to pods, unless it is configured who is one.
func (d *desiredState) findPodLinks() {
	if d.podsConfigured() {
		return
	}
	links, err := podLinks(d.addresses())
	if err != nil {
		d.log.Error("cannot see which links lead to pods", "error", err)
		return
	}
	routes, err := routesBy(links)
	if err != nil {
		d.log.Error("cannot see where the pods' links lead to", "error", err)
		return
	}
	d.podLinks = links
	known := d.pods()
	routes = slices.DeleteFunc(routes, func(r netip.Prefix) bool {
		return slices.ContainsFunc(known, func(p netip.Prefix) bool { return p.Bits() <= r.Bits() && p.Contains(r.Addr()) })
	})
	if !slices.Equal(routes, d.podRoutes) {
		d.podRoutes, d.outdated = routes, true
	}
}

// podsConfigured reports whether the agent is told who is a pod, rather than having to find out.
func (d *desiredState) podsConfigured() bool {
	return len(d.config.PodCIDRs)+len(d.config.PodInterfaces) > 0
}

// pods returns the sources that count as pods: kube-proxy's mode NodeCIDR, unless another is configured.
func (d *desiredState) pods() []netip.Prefix {
	if d.podsConfigured() {
		return d.config.PodCIDRs
	}
	var prefixes []netip.Prefix
	for _, s := range d.self.GetPodCidrs() {
		if p, err := netip.ParsePrefix(s); err == nil {
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes
}
