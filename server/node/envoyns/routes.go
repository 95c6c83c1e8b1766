package envoyns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// routeTo configures the host's end of a class's veth and routes packets with the class's mark over it. It reports whether
// something of that was missing.
func routeTo(c Config, id ID, class frontendpb.Class, ipv6 bool) (missing bool, err error) {
	name := LinkName(id, class)
	link, err := netlink.LinkByName(name)
	if err != nil {
		return false, err
	}
	if err := setSysctls(hostSysctls(name, ipv6)); err != nil {
		return false, err
	}
	missing = link.Attrs().RawFlags&unix.IFF_UP == 0
	if err := netlink.LinkSetUp(link); err != nil {
		return false, err
	}
	v4, v6 := addresses(id, class)
	ends := []pair{v4}
	if ipv6 {
		ends = append(ends, v6)
	}
	for i, end := range ends {
		unconnected, err := connect(link, end.host, end.proxy, hardwareAddr(id, class, proxyEnd))
		if err != nil {
			return false, err
		}
		unrouted, err := addPolicy(c, id, class, i, link, end.proxy)
		if err != nil {
			return false, err
		}
		missing = missing || unconnected || unrouted
	}
	return missing, nil
}

// connect gives a link its address, and a route and a permanent neighbour entry for the address at its other end: the first
// packet need not wait for neighbour discovery. It reports whether the route was missing, as it is without the address.
func connect(link netlink.Link, own, other netip.Addr, otherHardware net.HardwareAddr) (missing bool, err error) {
	addr := &netlink.Addr{IPNet: single(own), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return false, fmt.Errorf("address %s: %w", own, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: single(other), Scope: netlink.SCOPE_LINK}
	if own.Is6() {
		route.Scope = netlink.SCOPE_UNIVERSE
	}
	if missing, err = putRoute(route); err != nil {
		return false, fmt.Errorf("route to %s: %w", other, err)
	}
	neighbour := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: other.AsSlice(), HardwareAddr: otherHardware, State: netlink.NUD_PERMANENT}
	if err := netlink.NeighSet(neighbour); err != nil {
		return false, fmt.Errorf("neighbour %s: %w", other, err)
	}
	return missing, nil
}

// addPolicy routes packets with a class's mark to the far end of its veth, and reports whether a route or the rule was missing.
// When the veth is deleted, the kernel deletes its routes; the unreachable route stays, so that marked packets do not take the
// default route.
func addPolicy(c Config, id ID, class frontendpb.Class, family int, link netlink.Link, via netip.Addr) (missing bool, err error) {
	table := c.table(id, class)
	routes := []*netlink.Route{
		{LinkIndex: link.Attrs().Index, Dst: families[family].all, Gw: via.AsSlice(), Table: table, Flags: int(netlink.FLAG_ONLINK)},
		{Dst: families[family].all, Table: table, Type: unix.RTN_UNREACHABLE, Priority: 1 << 20},
	}
	for _, r := range routes {
		r.Family = families[family].family
		added, err := putRoute(r)
		if err != nil {
			return false, fmt.Errorf("table %d: %w", table, err)
		}
		missing = missing || added
	}
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table = families[family].family, c.RulePriority, table
	rule.Mark, rule.Mask = c.Mark(id, class), &c.Mask
	err = netlink.RuleAdd(rule)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("rule for mark %#x: %w", rule.Mark, err)
	}
	return missing || err == nil, nil
}

// putRoute adds a route, or replaces another to the same destination. It reports whether there was none.
func putRoute(r *netlink.Route) (added bool, err error) {
	if err := netlink.RouteAdd(r); !errors.Is(err, unix.EEXIST) {
		return err == nil, err
	}
	return false, netlink.RouteReplace(r)
}

// removePolicies deletes an Envoy instance's rules and routing tables of one family.
func removePolicies(c Config, id ID, family int) error {
	rules, err := netlink.RuleList(family)
	if err != nil {
		return err
	}
	var errs []error
	for _, class := range frontendpb.Classes {
		table := c.table(id, class)
		for i := range rules {
			if rules[i].Table == table && rules[i].Priority == c.RulePriority {
				rules[i].Family = family
				errs = append(errs, ignoreGone(netlink.RuleDel(&rules[i])))
			}
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
		if err != nil {
			errs = append(errs, err)
		}
		for i := range routes {
			errs = append(errs, ignoreGone(netlink.RouteDel(&routes[i])))
		}
	}
	return errors.Join(errs...)
}

// single returns the prefix that holds one address.
func single(a netip.Addr) *net.IPNet {
	return prefix(netip.PrefixFrom(a, a.BitLen()))
}

// prefix returns p as a net.IPNet, for netlink.
func prefix(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
