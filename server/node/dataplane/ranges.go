package dataplane

import (
	"fmt"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// ranged is the name of the maps from a frontend and a source range to the verdict of clients in that range, and of the chain
// that looks a source up in them. The maps hold no frontend that every source may dial.
const ranged = "ranged"

// limitedName returns the name of the chain, and of the maps without their family, for the packets of a lookup.
func limitedName(lookup string) string {
	if lookup == own {
		return "node-" + ranged
	}
	return ranged
}

// addRangeMaps adds the maps of source ranges.
func addRangeMaps(tx *knftables.Transaction) {
	for _, lookup := range []string{incoming, own} {
		for _, ipv6 := range []bool{false, true} {
			m := &knftables.Map{
				Name:   mapName(limitedName(lookup), false, ipv6),
				TypeOf: fmt.Sprintf("%s daddr . meta l4proto . th dport . %s saddr : verdict", ip(ipv6), ip(ipv6)),
				Flags:  []knftables.SetFlag{knftables.IntervalFlag},
			}
			tx.Add(m)
			tx.Flush(m)
		}
	}
}

// rangeChain returns the chain that looks a source up, before any NAT, so that it is the client's own. A packet from a source in
// no range is dropped without an answer, as kube-proxy does: anyone can dial a load balancer's address, and an answer would
// disclose that it is in use.
func rangeChain(lookup string) chain {
	c := chain{name: limitedName(lookup)}
	for _, ipv6 := range []bool{false, true} {
		c.rules = append(c.rules, fmt.Sprintf("%s daddr . meta l4proto . th dport . %s saddr vmap @%s", ip(ipv6), ip(ipv6), mapName(c.name, false, ipv6)))
	}
	c.rules = append(c.rules, count(counterOutside)+" drop")
	return c
}

// rangeElements turns the elements of a frontend's two lookups, with the verdicts of clients that may dial, into elements that
// jump to the check of the source, and one element for each source range.
func rangeElements(elements []element, f *frontendpb.Frontend, node Node) []element {
	var all []element
	for i, lookup := range []string{incoming, own} {
		first := elements[i]
		name := limitedName(lookup)
		for _, prefix := range rangesOf(f.GetLimited(), node) {
			all = append(all, element{table: mapName(name, false, f.GetIpv6()), key: first.key + " . " + prefix, value: first.value})
		}
		first.value = goTo(name)
		all = append(all, first)
	}
	return all
}

// rangesOf returns the sources that may dial. A node that has the load balancer's address assigned dials with that address as
// its source, so the ranges that contain the node's own address also allow the load balancer's.
func rangesOf(l *frontendpb.Limited, node Node) []string {
	all := slices.Clone(l.GetRanges())
	var prefixes []netip.Prefix
	for _, text := range l.GetRanges() {
		if p, err := netip.ParsePrefix(text); err == nil {
			prefixes = append(prefixes, p)
		}
	}
	within := func(a netip.Addr) bool {
		return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if !slices.ContainsFunc(node.First, within) {
		return all
	}
	for _, b := range l.GetAddresses() {
		if a, ok := netip.AddrFromSlice(b); ok && !within(a) {
			all = append(all, a.String())
		}
	}
	return all
}
