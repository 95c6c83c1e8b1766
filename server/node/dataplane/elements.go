package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// Names of the maps from a frontend to its verdict: for packets that enter the node, and for those of the node's own
// processes. Both exist for addresses and for NodePorts, in both families.
const (
	incoming = "frontends"
	own      = "node-frontends"
	ports    = "-ports"

	// aliasMap is the map from a frontend at an address of the node to the alias of that address in Envoy's namespace.
	aliasMap = "aliases"

	// clusterIPSet is the set of cluster IPs: packets to their other ports are refused.
	clusterIPSet = "cluster-ips"

	// callerSet is the set of pairs of a caller's address with itself, see addMaps.
	callerSet = "callers"
)

// mapName returns the name of a map.
func mapName(prefix string, nodePort, ipv6 bool) string {
	name := prefix
	if nodePort {
		name += ports
	}
	if ipv6 {
		return name + "6"
	}
	return name + "4"
}

// element is one entry of a map. It is comparable.
type element struct {
	table string // The map's name.
	key   string // Parts joined by " . ".
	value string // A verdict or an address; empty in a set.

	addr netip.AddrPort // The destination of UDP flows to it; the zero Addr for a NodePort.
	udp  bool
}

// nft returns the element in knftables' form.
func (e element) nft() *knftables.Element {
	if e.value == "" {
		return &knftables.Element{Set: e.table, Key: []string{e.key}}
	}
	return &knftables.Element{Map: e.table, Key: strings.Split(e.key, " . "), Value: []string{e.value}}
}

// elementsOf returns the elements of a frontend.
func elementsOf(f *frontendpb.Frontend, node Node) []element {
	address, port := f.Addr(), uint16(f.GetPort())
	key := fmt.Sprintf("%s . %d", strings.ToLower(f.GetProtocol()), port)
	if address.IsValid() {
		key = address.String() + " . " + key
	}
	e := element{key: key, addr: netip.AddrPortFrom(address, port), udp: f.GetProtocol() == string(model.UDP)}
	in, out := e, e
	nodePort, routes := !address.IsValid(), routesOf(f)
	in.table, in.value = mapName(incoming, nodePort, f.GetIpv6()), goTo(byOrigin(routes[model.FromPod], routes[model.FromOutside]))
	out.table, out.value = mapName(own, nodePort, f.GetIpv6()), goTo(routes[model.FromNode])
	elements := []element{in, out}
	if f.GetLimited() != nil {
		elements = rangeElements(elements, f, node)
	}
	if f.GetKind() == string(model.ClusterIP) {
		elements = append(elements, element{table: mapName(clusterIPSet, false, f.GetIpv6()), key: address.String()})
	}
	elements = append(elements, directElements(e, f)...)
	for _, a := range node.Aliases {
		if a.Address == address {
			e.table, e.value = mapName(aliasMap, false, f.GetIpv6()), a.Alias.String()
			elements = append(elements, e)
		}
	}
	return elements
}

// Names of the chains that end a lookup, beside those of the classes.
const (
	refuse = "refuse"
	drop   = "none-local"
)

// chainOf returns the chain that implements a route. A class of a newer control plane, which this agent does not know, is
// refused: with a jump to a chain that does not exist the kernel would refuse the whole transaction.
func chainOf(r *frontendpb.Route, direct bool) string {
	switch {
	case r.GetVerdict() == frontendpb.Verdict_DROP:
		return drop
	case r.GetVerdict() == frontendpb.Verdict_FORWARD && slices.Contains(frontendpb.Classes, r.GetClass()):
		if direct {
			return directName(r.GetClass())
		}
		return r.GetClass().Label()
	default:
		return refuse
	}
}

// byOrigin returns the name of the chain that goes to one chain for pods and to another for everybody else.
func byOrigin(pod, outside string) string {
	if pod == outside {
		return pod
	}
	return pod + "-or-" + outside
}

// origins returns the pairs of different chains in which a frontend's routes from pods and from outside can end: all of them,
// so that no frontend can refer to a chain that does not exist.
func origins() [][2]string {
	var pairs [][2]string
	for _, name := range []func(frontendpb.Class) string{frontendpb.Class.Label, directName} {
		ends := []string{refuse, drop}
		for _, class := range frontendpb.Classes {
			ends = append(ends, name(class))
		}
		for _, pod := range ends {
			for _, outside := range ends {
				if pair := [2]string{pod, outside}; pod != outside && !slices.Contains(pairs, pair) {
					pairs = append(pairs, pair)
				}
			}
		}
	}
	return pairs
}

// goTo returns the verdict that ends in a chain.
func goTo(chain string) string { return "goto " + chain }
