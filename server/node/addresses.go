package node

import (
	"net"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/translate/model"
)

// families returns the address families of the node, as kube-proxy writes them.
func (d *desiredState) families() []string {
	var families []string
	for _, a := range d.addresses() {
		family := string(model.IPv4)
		if a.Is6() {
			family = string(model.IPv6)
		}
		if !slices.Contains(families, family) {
			families = append(families, family)
		}
	}
	return families
}

// addresses returns the addresses of the Node object, in its order.
func (d *desiredState) addresses() []netip.Addr {
	var addresses []netip.Addr
	for _, b := range d.self.GetAddresses() {
		if a, ok := netip.AddrFromSlice(b); ok {
			addresses = append(addresses, a)
		}
	}
	return addresses
}

// nodePortAddresses returns the addresses on which the node serves NodePorts: as in kube-proxy's nftables mode, its first
// of each family, unless prefixes are configured.
func (d *desiredState) nodePortAddresses() []netip.Addr {
	if len(d.config.NodePortAddresses) > 0 {
		return localAddresses(d.config.NodePortAddresses)
	}
	return d.firstAddresses()
}

// firstAddresses returns the first address of each family of the Node object.
func (d *desiredState) firstAddresses() []netip.Addr {
	var first []netip.Addr
	for _, a := range d.addresses() {
		if !slices.ContainsFunc(first, func(p netip.Addr) bool { return p.Is6() == a.Is6() }) {
			first = append(first, a)
		}
	}
	return first
}

// localAddresses returns the host's own addresses that lie in one of the prefixes.
func localAddresses(prefixes []netip.Prefix) []netip.Addr {
	assigned, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var found []netip.Addr
	for _, a := range assigned {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if slices.ContainsFunc(prefixes, func(in netip.Prefix) bool { return in.Contains(p.Addr()) }) {
			found = append(found, p.Addr())
		}
	}
	return found
}

// everything contains every address.
var everything = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
