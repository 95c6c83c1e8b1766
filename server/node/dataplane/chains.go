package dataplane

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// chain is a chain with its rules. A chain without a hook is only reached from others.
type chain struct {
	name     string
	kind     knftables.BaseChainType
	hook     knftables.BaseChainHook
	priority knftables.BaseChainPriority
	rules    []string
}

// addChains adds the chains in the order in which they refer to each other, replacing the rules of those that exist.
func (t *Table) addChains(tx *knftables.Transaction) {
	chains := t.chains()
	for _, c := range chains {
		nft := &knftables.Chain{Name: c.name}
		if c.hook != "" {
			nft.Type, nft.Hook, nft.Priority = &c.kind, &c.hook, &c.priority
		}
		tx.Add(nft)
		tx.Flush(nft)
	}
	t.addInstances(tx)
	for _, c := range chains {
		for _, r := range c.rules {
			tx.Add(&knftables.Rule{Chain: c.name, Rule: r})
		}
	}
}

// addInstances fills the maps of the living Envoy instances anew.
func (t *Table) addInstances(tx *knftables.Transaction) {
	for name := range instanceMaps {
		tx.Flush(&knftables.Map{Name: name})
	}
	for _, id := range t.instances.Live {
		for _, class := range frontendpb.Classes {
			tx.Add(&knftables.Element{Map: markMap, Key: []string{fmt.Sprintf("%#x", t.config.Mark(id, class))}, Value: []string{goTo(resumeName(id, class))}})
		}
		for _, class := range senders {
			tx.Add(&knftables.Element{Map: vethMap, Key: []string{envoyns.LinkName(id, class)}, Value: []string{goTo(sentName(id, class))}})
		}
		tx.Add(&knftables.Element{Map: spliceMap, Key: []string{fmt.Sprintf("%#x", t.config.Mark(id, 0))}, Value: []string{goTo(splicedName(id))}})
	}
}

// The way of a packet through the table inet fairlead. Base chains stand as "hook/priority name"; N is the number of an Envoy
// instance, C a class (keep, masq, external), and (N, C) their mark.
//
// A client dials a frontend:
//
//	a pod of the node, or a host outside         a process of the node
//	                │                                      │
//	prerouting/mangle prerouting                 output/mangle output
//	                └──────────────────┬───────────────────┘
//	established        reply, no ct mark of Fairlead's ───────────────▶ accept
//	     │             ct mark (N, C): vmap @marks ──▶ to-N-C ────────▶ meta mark (N, C), accept
//	     │             ct mark of an N that no longer exists ─────────▶ reset
//	     │             another's established TCP connection ──────────▶ accept
//	     ▼
//	lookup-frontends, of the node's processes lookup-node-frontends: vmap by daddr, protocol and dport
//	     │             a frontend with source ranges ──▶ ranged, node-ranged; a source in none ──▶ drop
//	     │             another port of a cluster IP ──▶ refuse
//	     │             no frontend ──▶ accept
//	     ▼
//	A-or-B             A for pods of the node, B for everybody outside; left out where both are one chain
//	     ├─▶ C         ct mark and meta mark (N, C) of the current N, accept; drop while there is none
//	     ├─▶ direct-C  meta mark (0, C), accept
//	     ├─▶ refuse    TCP reset, or ICMP port unreachable
//	     └─▶ none-local, drop
//	accepted
//	     ▼
//	prerouting/dstnat nat-prerouting, output/dstnat nat-output
//	     │             mark (0, C): vmap @direct, @direct-external ──▶ pick-SET: dnat to an endpoint
//	     │             mark (N, C) and an address of the node: dnat to its alias in Envoy's namespace
//	     ▼
//	routing            mark (N, C): policy rule ──▶ veth of class C to Envoy N; all else: the main table
//	     ├─▶ input/srcnat nat-input ──▶ a process of the node
//	     └─▶ forward ──▶ postrouting/srcnat-10 nat-to-envoy ──▶ postrouting/srcnat nat-postrouting ──▶ Envoy, an endpoint
//
// Envoy N dials an endpoint, as the client by its veth of class keep, or as itself by that of class masq:
//
//	prerouting/mangle prerouting: vmap @veths ──▶ from-N-C: ct mark (N, C) if new, accept ──▶ the main table
//	     │             spliced, it comes in by the pod's link with mark (N, 0): vmap @spliced ──▶ spliced-N: the same as class keep
//	     ├─▶ input/srcnat nat-input ──▶ a process of the node
//	     └─▶ forward ──▶ postrouting/srcnat nat-postrouting ──▶ an endpoint
//
// The way back, on which conntrack undoes what the nat chains did:
//
//	endpoint ──▶ prerouting, output: ct mark (N, C): vmap @marks ──▶ to-N-C ──▶ policy rule ──▶ veth of class C ──▶ Envoy N
//	Envoy N ──▶ veth of class keep ──▶ prerouting: vmap @veths ──▶ from-N-keep: accept, no mark ──▶ the main table ──▶ client
//	endpoint of direct-C ──▶ prerouting, output: a reply without a ct mark: accept ──▶ the main table ──▶ client

// chains returns all chains.
func (t *Table) chains() []chain {
	all := t.verdictChains()
	for id := envoyns.ID(1); id <= envoyns.MaxID; id++ {
		all = append(all, t.instanceChains(id)...)
	}
	return append(all, rangeChain(incoming), rangeChain(own), t.lookups(incoming), t.lookups(own), t.prerouting(), t.output(),
		t.natPrerouting("nat-prerouting", knftables.PreroutingHook), t.natPrerouting("nat-output", knftables.OutputHook),
		t.natInput(), t.natToEnvoy(), t.natPostrouting())
}

// verdictChains returns the chains in which a frontend's lookup ends.
func (t *Table) verdictChains() []chain {
	var all []chain
	for _, class := range frontendpb.Classes {
		c := chain{name: class.Label(), rules: []string{count(counterWaiting) + " drop"}} // The client retries until an Envoy is current.
		if id := t.instances.Current; id != 0 {
			c.rules = []string{t.setMark("ct mark", id, class), goTo(resumeName(id, class))}
			if class == frontendpb.Class_KEEP {
				c.rules = append(noteCaller(), c.rules...)
			}
		}
		all = append(all, c)
	}
	all = append(all, t.directChains()...)
	all = append(all,
		chain{name: refuse, rules: []string{count(counterRefused), "meta l4proto tcp reject with tcp reset", "reject with icmpx port-unreachable"}},
		chain{name: drop, rules: []string{count(counterDropped) + " drop"}})
	for _, o := range origins() {
		c := chain{name: byOrigin(o[0], o[1])}
		for _, match := range t.fromPods() {
			c.rules = append(c.rules, match+" "+goTo(o[0]))
		}
		c.rules = append(c.rules, goTo(o[1]))
		all = append(all, c)
	}
	return all
}

// noteCaller returns the rules that add the pair of a caller's address with itself to the set of callers, see addMaps.
func noteCaller() []string {
	return []string{"update @callers4 { ip saddr . ip saddr }", "update @callers6 { ip6 saddr . ip6 saddr }"}
}

// instanceChains returns the chains of one Envoy instance, for the packets that belong to it and for those that it sends.
// They exist for every possible Envoy instance, so that a new one changes only the map elements that jump to them.
func (t *Table) instanceChains(id envoyns.ID) []chain {
	var all []chain
	for _, class := range frontendpb.Classes {
		all = append(all, chain{name: resumeName(id, class), rules: []string{t.setMark("meta mark", id, class), "accept"}})
	}
	for _, class := range senders {
		all = append(all, chain{name: sentName(id, class), rules: []string{"ct state new " + t.setMark("ct mark", id, class), "accept"}})
	}
	// The pod's first leg has not come by here, so the pod is noted as a caller by its second; the mark must not route the packet.
	spliced := []string{"ct state new " + t.setMark("ct mark", id, frontendpb.Class_KEEP)}
	for _, note := range noteCaller() {
		spliced = append(spliced, "ct state new "+note)
	}
	return append(all, chain{name: splicedName(id), rules: append(spliced, fmt.Sprintf("meta mark set meta mark and %#x", ^t.config.Mask), "accept")})
}

// senders are the classes over whose veths Envoy sends. Connections of class external leave over the veth of class keep.
var senders = []frontendpb.Class{frontendpb.Class_KEEP, frontendpb.Class_MASQ}

func resumeName(id envoyns.ID, class frontendpb.Class) string {
	return "to-" + strconv.Itoa(int(id)) + "-" + class.Label()
}

func sentName(id envoyns.ID, class frontendpb.Class) string {
	return "from-" + strconv.Itoa(int(id)) + "-" + class.Label()
}

func splicedName(id envoyns.ID) string { return "spliced-" + strconv.Itoa(int(id)) }

// setMark returns a statement that sets Fairlead's bits of a mark and keeps the others.
func (t *Table) setMark(mark string, id envoyns.ID, class frontendpb.Class) string {
	return fmt.Sprintf("%s set %s and %#x or %#x", mark, mark, ^t.config.Mask, t.config.Mark(id, class))
}

// established returns the rules for packets of connections that are already decided. A connection through Envoy follows its
// ct mark, on both legs and in both directions. Others' TCP connections are accepted before the lookup, since a Service that
// appears must not take over a connection that existed before it.
func (t *Table) established(lookups string) []string {
	return []string{
		// A reply to the node, or to a pod, may come from a port that is also a NodePort.
		fmt.Sprintf("ct direction reply ct mark and %#x == 0 accept", t.config.Mask),
		fmt.Sprintf("ct mark and %#x vmap @%s", t.config.Mask, markMap),
		// The Envoy instance no longer exists: the reset lets both peers notice at once.
		fmt.Sprintf("ct mark and %#x != 0 meta l4proto tcp reject with tcp reset", t.config.Mask),
		"meta l4proto tcp ct state established,related accept",
		goTo(lookups),
	}
}

// lookups returns the chain that looks up the frontend of a packet's destination. A cluster IP belongs to its Service alone, so
// a packet to a port that the Service does not have is refused, as kube-proxy does.
func (t *Table) lookups(prefix string) chain {
	c := chain{name: "lookup-" + prefix}
	for _, ipv6 := range []bool{false, true} {
		c.rules = append(c.rules, fmt.Sprintf("%s daddr . meta l4proto . th dport vmap @%s", ip(ipv6), mapName(prefix, false, ipv6)))
		if addresses := t.addresses(ipv6); addresses != "" {
			c.rules = append(c.rules, fmt.Sprintf("%s daddr { %s } meta l4proto . th dport vmap @%s", ip(ipv6), addresses, mapName(prefix, true, ipv6)))
		}
	}
	for _, ipv6 := range []bool{false, true} {
		c.rules = append(c.rules, fmt.Sprintf("%s daddr @%s goto %s", ip(ipv6), mapName(clusterIPSet, false, ipv6), refuse))
	}
	return c
}

// prerouting decides each packet that enters the node: it marks it for Envoy or for a direct endpoint, refuses it, drops it or
// accepts it unchanged. Packets from Envoy's veths come first, since they must not be looked up again.
func (t *Table) prerouting() chain {
	c := chain{name: "prerouting", kind: knftables.FilterType, hook: knftables.PreroutingHook, priority: knftables.ManglePriority}
	c.rules = append(c.rules, fmt.Sprintf("meta mark and %#x vmap @%s", t.config.Mask, spliceMap), "iifname vmap @"+vethMap)
	c.rules = append(c.rules, t.established("lookup-"+incoming)...)
	return c
}

// output decides each packet of the node's own processes, as prerouting does. It is of type route: the kernel routes a packet
// again when its mark has changed.
func (t *Table) output() chain {
	return chain{name: "output", kind: knftables.RouteType, hook: knftables.OutputHook, priority: knftables.ManglePriority,
		rules: t.established("lookup-" + own)}
}

// veths returns the live Envoy instances' veths of a class, quoted and separated by commas.
func (t *Table) veths(class frontendpb.Class) string {
	var names []string
	for _, id := range t.instances.Live {
		names = append(names, strconv.Quote(envoyns.LinkName(id, class)))
	}
	return strings.Join(names, ", ")
}

// addresses returns the node's addresses of a family, separated by commas.
func (t *Table) addresses(ipv6 bool) string {
	var list []string
	for _, a := range sortedByFamily(t.node.Addresses, ipv6) {
		list = append(list, a.String())
	}
	return strings.Join(list, ", ")
}

// prefixesOf returns the prefixes of a family, separated by commas.
func prefixesOf(prefixes []netip.Prefix, ipv6 bool) string {
	var list []string
	for _, p := range prefixes {
		if p.Addr().Is6() == ipv6 {
			list = append(list, p.Masked().String())
		}
	}
	return strings.Join(list, ", ")
}

// ip returns the keyword of a family.
func ip(ipv6 bool) string {
	if ipv6 {
		return "ip6"
	}
	return "ip"
}
