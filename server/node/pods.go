package node

import "net/netip"

// findPodLinks finds the links to pods, unless the configuration says which packets are pods'.
func (d *desiredState) findPodLinks() {
	if d.podsConfigured() {
		return
	}
	links, own, err := podLinks(d.addresses())
	if err != nil {
		d.log.Error("cannot find the links to pods", "error", err)
		return
	}
	d.podLinks, d.splice.links = links, own
}

// podsConfigured reports whether the configuration says which packets are pods', so that the agent need not find out.
func (d *desiredState) podsConfigured() bool {
	return len(d.config.PodCIDRs)+len(d.config.PodInterfaces) > 0
}

// pods returns the sources that count as pods: the Node's prefixes, as in kube-proxy's mode NodeCIDR, unless others are configured.
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
