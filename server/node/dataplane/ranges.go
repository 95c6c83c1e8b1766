package dataplane

import (
	"fmt"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// ranged names the maps from a frontend and a source range to the verdict of those who may dial, and the chain that looks
// a source up in them. A frontend that everyone may dial is in none.
const ranged = "ranged"

// limitedName returns the name of the chain, and of the maps but for their family, for the packets of a lookup.
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

// rangeChain looks a source up: before any rewriting, so that it is the client's own. Who is in no range hears nothing, as
// with kube-proxy: a load balancer's address is dialled from anywhere, and an answer would tell that it is in use.
func rangeChain(lookup string) chain {
	c := chain{name: limitedName(lookup)}
	for _, ipv6 := range []bool{false, true} {
		c.rules = append(c.rules, fmt.Sprintf("%s daddr . meta l4proto . th dport . %s saddr vmap @%s", ip(ipv6), ip(ipv6), mapName(c.name, false, ipv6)))
	}
	c.rules = append(c.rules, count(counterOutside)+" drop")
	return c
}

// rangeElements turns the elements of a frontend's two lookups, with the verdicts of those who may dial, into elements that
// look at the source first, and one for each source range.
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

// rangesOf returns the sources that may dial. A node to which the load balancer's address is assigned dials with that address as
// its source, so where the node's own address may, so may those.
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
