package dataplane

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// Direct frontends: the kernel chooses an endpoint and rewrites the destination to it; no Envoy takes part.
//
// A packet that begins a connection is looked up like any other, and ends in the chain of its route, which sets a mark: it says
// which endpoints the connection may have and which source they see. The nat chains then look the frontend up once more, and
// go to the chain that picks from those endpoints. conntrack applies the choice to all later packets of the connection.

// Names of the maps from a direct frontend to the chain that picks an endpoint: one for the endpoints of the classes keep and
// masq, and one for those of class external.
const (
	directMap         = "direct"
	directExternalMap = "direct-external"
)

// directMapTypes are the types of those maps.
func directMapTypes() map[string]string {
	types := map[string]string{}
	for _, name := range []string{directMap, directExternalMap} {
		for _, ipv6 := range []bool{false, true} {
			types[mapName(name, false, ipv6)] = ip(ipv6) + " daddr . meta l4proto . th dport : verdict"
			types[mapName(name, true, ipv6)] = "meta l4proto . th dport : verdict"
		}
	}
	return types
}

// directName returns the name of the chain of a direct route.
func directName(class frontendpb.Class) string { return "direct-" + class.Label() }

// directMark returns the mark of a packet that begins a direct connection: it has the number 0, which no Envoy instance has.
func (t *Table) directMark(class frontendpb.Class) uint32 { return t.config.Mark(0, class) }

// directChains returns the chains of direct routes. They mark the packet and not the connection, which is decided only once.
func (t *Table) directChains() []chain {
	var all []chain
	for _, class := range frontendpb.Classes {
		c := chain{name: directName(class)}
		if class == frontendpb.Class_KEEP {
			c.rules = noteCaller()
		}
		c.rules = append(c.rules, t.setMark("meta mark", 0, class), "accept")
		all = append(all, c)
	}
	return all
}

// directRules returns the rules by which packets that begin direct connections jump to the chains that pick an endpoint.
func (t *Table) directRules() []string {
	var rules []string
	for _, m := range []struct {
		name    string
		classes []frontendpb.Class
	}{
		{directMap, []frontendpb.Class{frontendpb.Class_KEEP, frontendpb.Class_MASQ}},
		{directExternalMap, []frontendpb.Class{frontendpb.Class_EXTERNAL}},
	} {
		var marks []string
		for _, class := range m.classes {
			marks = append(marks, fmt.Sprintf("%#x", t.directMark(class)))
		}
		marked := fmt.Sprintf("meta mark and %#x == { %s }", t.config.Mask, strings.Join(marks, ", "))
		for _, ipv6 := range []bool{false, true} {
			rules = append(rules, fmt.Sprintf("%s %s daddr . meta l4proto . th dport vmap @%s", marked, ip(ipv6), mapName(m.name, false, ipv6)))
			if addresses := t.addresses(ipv6); addresses != "" {
				rules = append(rules, fmt.Sprintf("%s %s daddr { %s } meta l4proto . th dport vmap @%s", marked, ip(ipv6), addresses, mapName(m.name, true, ipv6)))
			}
		}
	}
	return rules
}

// directSources returns the rules that masquerade direct connections: those of class masq, and those of a pod to itself. A
// connection over lo keeps its source: it is the node's own.
func (t *Table) directSources() []string {
	marked := func(class frontendpb.Class) string {
		return fmt.Sprintf("meta mark and %#x == %#x", t.config.Mask, t.directMark(class))
	}
	rules := []string{marked(frontendpb.Class_MASQ) + " oifname != \"lo\" masquerade fully-random"}
	for _, ipv6 := range []bool{false, true} {
		rules = append(rules, fmt.Sprintf("%s %s saddr . %[2]s daddr @%s masquerade fully-random", marked(frontendpb.Class_KEEP), ip(ipv6), mapName(callerSet, false, ipv6)))
	}
	return rules
}

// directElements returns the elements that map a direct frontend to the chains that pick an endpoint. e has its key.
func directElements(e element, f *frontendpb.Frontend) []element {
	var all []element
	for name, set := range map[string]string{directMap: f.GetDirect().GetEndpoints(), directExternalMap: f.GetDirect().GetExternal()} {
		if set != "" {
			e.table, e.value = mapName(name, len(f.GetAddress()) == 0, f.GetIpv6()), goTo(pickChain(set))
			all = append(all, e)
		}
	}
	return all
}

// SetsOf returns the sets that a frontend picks from; none if it is not direct.
func SetsOf(f *frontendpb.Frontend) []string {
	d := f.GetDirect()
	return slices.DeleteFunc([]string{d.GetEndpoints(), d.GetExternal()}, func(s string) bool { return s == "" })
}

// clientsMap returns the name of the map that remembers the clients of a frontend's ServicePort, in its family.
func clientsMap(f *frontendpb.Frontend) string {
	name := f.GetService()
	if f.GetIpv6() {
		name += "/ipv6"
	}
	return nftName(clientsPrefix, name)
}

// routesOf returns the chains that implement a frontend's routes, by origin.
func routesOf(f *frontendpb.Frontend) [3]string {
	var chains [3]string
	for origin, r := range envoy.Routes(f) {
		chains[origin] = chainOf(r, f.GetDirect() != nil)
	}
	return chains
}
