package parity

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/model"
)

// frontend is what a client dials. The address of a node port is the node's.
type frontend struct {
	address  netip.Addr
	port     uint16
	protocol string
	nodePort bool
}

func (f frontend) String() string {
	name := netip.AddrPortFrom(f.address, f.port).String()
	if f.nodePort {
		name = "node port of " + name
	}
	return name + "/" + f.protocol
}

// probe is a client that dials a frontend.
type probe struct {
	frontend
	origin model.Origin
	source netip.Addr
}

// clients are where the first connection of each origin comes from.
var clients = map[corev1.IPFamily][model.Origins]netip.Addr{
	corev1.IPv4Protocol: {netip.MustParseAddr("10.244.1.7"), nodeAddress[corev1.IPv4Protocol], netip.MustParseAddr("198.51.100.7")},
	corev1.IPv6Protocol: {netip.MustParseAddr("fd00:10:244:1::7"), nodeAddress[corev1.IPv6Protocol], netip.MustParseAddr("2001:db8:9::7")},
}

// probesOf returns who dials what: each frontend that either program knows from each origin, and where source ranges bind,
// from both sides of every edge of a range.
func probesOf(c *cluster, rules map[corev1.IPFamily]*ruleset, table translate.Table) []probe {
	targets := map[frontend]map[netip.Addr]bool{}
	for i := range table.Frontends {
		f := &table.Frontends[i]
		edges := map[netip.Addr]bool{}
		if f.SourceRanges != nil {
			for _, p := range f.SourceRanges.Prefixes {
				addEdges(edges, p)
			}
			edges[f.Address] = true
		}
		targets[frontendOf(c, f)] = edges
	}
	for _, family := range families {
		for f, edges := range rules[family].frontends(c.address(family)) {
			if targets[f] == nil {
				targets[f] = map[netip.Addr]bool{}
			}
			maps.Copy(targets[f], edges)
		}
	}
	var probes []probe
	for f, edges := range targets {
		for origin, source := range clients[familyOf(f.address)] {
			probes = append(probes, probe{f, model.Origin(origin), source})
		}
		for source := range edges {
			if source == f.address { // A node that has the load balancer's address itself.
				probes = append(probes, probe{f, model.FromNode, source})
			} else if origin := originOf(source); origin != model.FromNode {
				probes = append(probes, probe{f, origin, source})
			}
		}
	}
	return probes
}

// originOf returns where an address is.
func originOf(a netip.Addr) model.Origin {
	switch {
	case netip.MustParsePrefix(podRange[familyOf(a)]).Contains(a):
		return model.FromPod
	case a == nodeAddress[familyOf(a)]:
		return model.FromNode
	}
	return model.FromOutside
}

// addEdges adds the first address of a prefix, the last one, and those on the other side.
func addEdges(edges map[netip.Addr]bool, p netip.Prefix) {
	last := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 1 << (7 - i%8)
	}
	end, _ := netip.AddrFromSlice(last)
	for _, a := range []netip.Addr{p.Masked().Addr(), p.Masked().Addr().Prev(), end, end.Next()} {
		if a.IsValid() {
			edges[a] = true
		}
	}
}

// frontends returns what the rules know, each with the edges of the ranges that bind it.
func (r *ruleset) frontends(node netip.Addr) map[frontend]map[netip.Addr]bool {
	all := map[frontend]map[netip.Addr]bool{}
	for _, name := range []string{"service-ips", "no-endpoint-services", "firewall-ips"} {
		for key, verdict := range r.elements[name] {
			words := strings.Fields(key)
			address, err := netip.ParseAddr(words[0])
			if err != nil {
				continue // Nobody can dial it.
			}
			f := frontend{address, portOf(words[4]), words[2], false}
			if all[f] == nil {
				all[f] = map[netip.Addr]bool{}
			}
			if name == "firewall-ips" {
				all[f][address] = true
				for _, word := range slices.Concat(r.chains[strings.Fields(verdict)[1]]...) {
					if p, err := netip.ParsePrefix(word); err == nil {
						addEdges(all[f], p)
					}
				}
			}
		}
	}
	for _, name := range []string{"service-nodeports", "no-endpoint-nodeports"} {
		for key := range r.elements[name] {
			words := strings.Fields(key)
			all[frontend{node, portOf(words[2]), words[0], true}] = map[netip.Addr]bool{}
		}
	}
	return all
}

// portOf reads a port; those that are none become 0, which nobody dials.
func portOf(text string) uint16 {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}
