package node

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/node/splice"
	"github.com/fairlead/fairlead/translate/model"
)

// podLinks returns the links to pods of this node in the calling thread's network namespace, sorted: veths whose other end is in
// another namespace, and bridges that have such veths as ports. A link is not a pod's if it connects the node to other hosts: it
// has one of the node's addresses, a default route, or, being a veth, a subnet of its own. (The eth0 of a node that is itself a
// container is such a veth.) It also returns the pods' own links: those veths, and the bridges' veths.
func podLinks(nodeAddresses []netip.Addr) (names []string, own []splice.Link, err error) {
	links, err := envoyns.Undisturbed(netlink.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	uplinks, err := defaultRoutes()
	if err != nil {
		return nil, nil, err
	}
	ports := map[int][]splice.Link{} // Veths that are ports, by the index of their bridge.
	for _, l := range links {
		a := l.Attrs()
		if l.Type() != "veth" || a.NetNsID < 0 || envoyns.IsLink(a.Name) || uplinks[a.Index] {
			continue
		}
		if a.MasterIndex != 0 {
			ports[a.MasterIndex] = append(ports[a.MasterIndex], splice.Link{Index: a.Index, Route: a.MasterIndex})
			continue
		}
		ownSubnet := func(p netip.Prefix) bool { return !p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() }
		if leads, err := hasAddress(l, ownSubnet); err != nil {
			return nil, nil, err
		} else if !leads {
			names, own = append(names, a.Name), append(own, splice.Link{Index: a.Index, Route: a.Index})
		}
	}
	ofNode := func(p netip.Prefix) bool { return slices.Contains(nodeAddresses, p.Addr()) }
	for _, l := range links {
		if l.Type() != "bridge" || len(ports[l.Attrs().Index]) == 0 || uplinks[l.Attrs().Index] {
			continue
		}
		if leads, err := hasAddress(l, ofNode); err != nil {
			return nil, nil, err
		} else if !leads {
			names, own = append(names, l.Attrs().Name), append(own, ports[l.Attrs().Index]...)
		}
	}
	slices.Sort(names)
	return names, own, nil
}

// podProblem returns a problem if the node cannot distinguish traffic of its pods from that of outside, and else nil. It cannot if
// the Node object has no prefixes and no link is a pod's, as with pods on ipvlan, macvlan or hardware links.
func (d *desiredState) podProblem() *model.Problem {
	if d.self == nil || d.podsConfigured() || len(d.pods())+len(d.podLinks) > 0 {
		return nil
	}
	return &model.Problem{
		Object: "Node " + d.config.Node, Reason: model.UnknownPods,
		Message: "spec.podCIDRs is empty and the node has no link to a pod (the agent finds veths by itself), so traffic of pods counts as traffic" +
			" from outside: its source is masqueraded, and Local policies drop it; if pods run here, set --pod-cidr or --pod-interface",
	}
}

// hasAddress reports whether a link has an address for which is is true.
func hasAddress(l netlink.Link, is func(netip.Prefix) bool) (bool, error) {
	addresses, err := envoyns.Undisturbed(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return false, fmt.Errorf("addresses of %s: %w", l.Attrs().Name, err)
	}
	return slices.ContainsFunc(addresses, func(a netlink.Addr) bool {
		p, err := netip.ParsePrefix(a.IPNet.String())
		return err == nil && is(p)
	}), nil
}

// defaultRoutes returns the indexes of the links that have a default route in the main table.
func defaultRoutes() (map[int]bool, error) {
	routes, err := envoyns.Undisturbed(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	indexes := map[int]bool{}
	for _, r := range routes {
		if !isDefault(r.Dst) {
			continue
		}
		indexes[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			indexes[hop.LinkIndex] = true
		}
	}
	return indexes, nil
}

// isDefault reports whether a route's destination is everything.
func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}
