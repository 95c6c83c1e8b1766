package dataplane

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/envoy"
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

// mapTypes are the maps and the expressions that give them their types. Frontends alone change while nothing else does.
//
// Every map and set of the table is declared by typeof, and no verdict map is anonymous: what nft 1.1 stores beside the
// others makes the nft 1.0.6 of Debian 12 crash when it lists them, and with it a kube-proxy in nftables mode whose image
// has that one.
var mapTypes = map[string]string{
	mapName(incoming, false, false): "ip daddr . meta l4proto . th dport : verdict",
	mapName(incoming, false, true):  "ip6 daddr . meta l4proto . th dport : verdict",
	mapName(incoming, true, false):  "meta l4proto . th dport : verdict",
	mapName(incoming, true, true):   "meta l4proto . th dport : verdict",
	mapName(own, false, false):      "ip daddr . meta l4proto . th dport : verdict",
	mapName(own, false, true):       "ip6 daddr . meta l4proto . th dport : verdict",
	mapName(own, true, false):       "meta l4proto . th dport : verdict",
	mapName(own, true, true):        "meta l4proto . th dport : verdict",
	mapName(aliasMap, false, false): "ip daddr . meta l4proto . th dport : ip daddr",
	mapName(aliasMap, false, true):  "ip6 daddr . meta l4proto . th dport : ip6 daddr",
}

// The maps of the living Envoy instances: from a connection's mark to its veth's chain, and from the veth by which Envoy sends.
const (
	markMap = "marks"
	vethMap = "veths"
)

// instanceMaps are the types of the maps that addChains fills.
var instanceMaps = map[string]string{markMap: "ct mark : verdict", vethMap: "iifname : verdict"}

// addMaps adds the maps of frontends and the sets of pairs of equal addresses. A pod that dials a frontend enters its own
// address in both halves; if Envoy then chooses that very pod, the packet's source and destination are such a pair.
func addMaps(tx *knftables.Transaction) {
	for _, types := range []map[string]string{mapTypes, directMapTypes()} {
		for name, kind := range types {
			tx.Add(&knftables.Map{Name: name, TypeOf: kind})
			tx.Flush(&knftables.Map{Name: name})
		}
	}
	for name, kind := range instanceMaps {
		tx.Add(&knftables.Map{Name: name, TypeOf: kind})
	}
	for _, ipv6 := range []bool{false, true} {
		set := &knftables.Set{Name: mapName(clusterIPSet, false, ipv6), TypeOf: ip(ipv6) + " daddr"}
		tx.Add(set)
		tx.Flush(set)
		tx.Add(&knftables.Set{
			Name: mapName(callerSet, false, ipv6), TypeOf: fmt.Sprintf("%s saddr . %[1]s daddr", ip(ipv6)), Flags: []knftables.SetFlag{knftables.DynamicFlag},
			Timeout: knftables.PtrTo(time.Minute), Size: knftables.PtrTo[uint64](65_535),
		})
	}
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
		for _, class := range envoyns.Classes {
			tx.Add(&knftables.Element{Map: markMap, Key: []string{fmt.Sprintf("%#x", t.config.Mark(id, class))}, Value: []string{goTo(resumeName(id, class))}})
		}
		for _, class := range senders {
			tx.Add(&knftables.Element{Map: vethMap, Key: []string{envoyns.LinkName(id, class)}, Value: []string{goTo(sentName(id, class))}})
		}
	}
}

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

// verdictChains returns the chains that a frontend's lookup ends in.
func (t *Table) verdictChains() []chain {
	var all []chain
	for _, class := range envoyns.Classes {
		c := chain{name: envoyns.ClassName(class), rules: []string{count(counterWaiting) + " drop"}} // A client tries again until there is an Envoy.
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

// noteCaller returns the rules that add a pair of the caller's address with itself to the callers.
func noteCaller() []string {
	return []string{"update @callers4 { ip saddr . ip saddr }", "update @callers6 { ip6 saddr . ip6 saddr }"}
}

// instanceChains returns the chains of one Envoy instance, for the packets that belong to it and for those that it sends.
// They exist for every possible Envoy instance, so that the rules that lead to them are all that changes.
func (t *Table) instanceChains(id envoyns.ID) []chain {
	var all []chain
	for _, class := range envoyns.Classes {
		all = append(all, chain{name: resumeName(id, class), rules: []string{t.setMark("meta mark", id, class), "accept"}})
	}
	for _, class := range senders {
		set := t.setMark("ct mark", id, class)
		all = append(all, chain{name: sentName(id, class), rules: []string{
			"ct state new " + set,
			// Another Envoy may have had the same port for a flow that the kernel still remembers.
			"meta l4proto udp ct direction original " + set,
			"accept",
		}})
	}
	return all
}

// senders are the classes whose veths Envoy sends by. What it forwards for class external leaves by the veth of keep.
var senders = []frontendpb.Class{frontendpb.Class_KEEP, frontendpb.Class_MASQ}

func resumeName(id envoyns.ID, class frontendpb.Class) string {
	return "to-" + strconv.Itoa(int(id)) + "-" + envoyns.ClassName(class)
}

func sentName(id envoyns.ID, class frontendpb.Class) string {
	return "from-" + strconv.Itoa(int(id)) + "-" + envoyns.ClassName(class)
}

// setMark returns a statement that sets Fairlead's bits of a mark and leaves the others.
func (t *Table) setMark(mark string, id envoyns.ID, class frontendpb.Class) string {
	return fmt.Sprintf("%s set %s and %#x or %#x", mark, mark, ^t.config.Mask, t.config.Mark(id, class))
}

// established leads packets of connections that are decided already to where they were decided to go: of those that Envoy
// has, by their mark, on both legs and in both directions; of others' TCP connections past the frontends, since a
// Service that appears must not take over a connection that was there before it.
//
// A UDP flow moves to a new Envoy with the next datagram of its client. The kernel remembers a flow long after its last
// datagram, and another client may have its port by then: kept by their marks, flows would be lost when the old Envoy goes.
func (t *Table) established(lookups string) []string {
	var current []string
	for _, class := range envoyns.Classes {
		current = append(current, fmt.Sprintf("%#x", t.config.Mark(t.instances.Current, class)))
	}
	return []string{
		// An answer to the node, or to a pod, from a port that is also a NodePort's.
		fmt.Sprintf("ct direction reply ct mark and %#x == 0 accept", t.config.Mask),
		fmt.Sprintf("meta l4proto udp ct direction original ct mark and %#x != { %s } goto %s", t.config.Mask, strings.Join(current, ", "), lookups),
		fmt.Sprintf("ct mark and %#x vmap @%s", t.config.Mask, markMap),
		// Its Envoy is gone: the peers learn at once.
		fmt.Sprintf("ct mark and %#x != 0 meta l4proto tcp reject with tcp reset", t.config.Mask),
		"meta l4proto tcp ct state established,related accept",
		goTo(lookups),
	}
}

// lookups find the frontend that a packet is addressed to. A cluster IP is nobody else's, so what is sent to a port that its
// Service does not have is refused, as kube-proxy does.
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

func (t *Table) prerouting() chain {
	c := chain{name: "prerouting", kind: knftables.FilterType, hook: knftables.PreroutingHook, priority: knftables.ManglePriority}
	c.rules = append(c.rules, "iifname vmap @"+vethMap)
	c.rules = append(c.rules, t.established("lookup-"+incoming)...)
	return c
}

// output sees the packets of the node's own processes. A chain of type route has them routed again when a mark changed.
func (t *Table) output() chain {
	return chain{name: "output", kind: knftables.RouteType, hook: knftables.OutputHook, priority: knftables.ManglePriority,
		rules: t.established("lookup-" + own)}
}

// natPrerouting rewrites the destination of connections to frontends at the node's own addresses, NodePorts and others: a
// node's own address is always delivered to the node, whatever the packet's mark. The mark tells them from connections to the
// node's own servers.
func (t *Table) natPrerouting(name string, hook knftables.BaseChainHook) chain {
	c := chain{name: name, kind: knftables.NATType, hook: hook, priority: knftables.DNATPriority, rules: t.directRules()}
	for _, ipv6 := range []bool{false, true} {
		c.rules = append(c.rules, fmt.Sprintf("meta mark and %#x != 0 dnat %s to %s daddr . meta l4proto . th dport map @%s",
			t.config.Mask, ip(ipv6), ip(ipv6), mapName(aliasMap, false, ipv6)))
		if addresses := t.addresses(ipv6); addresses != "" {
			alias := envoy.NodePortAlias4
			if ipv6 {
				alias = envoy.NodePortAlias6
			}
			c.rules = append(c.rules, fmt.Sprintf("meta mark and %#x != 0 %s daddr { %s } dnat %s to %s", t.config.Mask, ip(ipv6), addresses, ip(ipv6), alias))
		}
	}
	return c
}

// natInput gives connections of class masq to the node's own servers a source that those can know.
func (t *Table) natInput() chain {
	c := chain{name: "nat-input", kind: knftables.NATType, hook: knftables.InputHook, priority: knftables.SNATPriority}
	masqueraded := []string{fmt.Sprintf("meta mark and %#x == %#x", t.config.Mask, t.directMark(frontendpb.Class_MASQ))}
	if veths := t.veths(frontendpb.Class_MASQ); veths != "" {
		masqueraded = append(masqueraded, fmt.Sprintf("iifname { %s }", veths))
	}
	for _, match := range masqueraded {
		for _, ipv6 := range []bool{false, true} {
			if a := sortedByFamily(t.node.Addresses, ipv6); len(a) > 0 {
				c.rules = append(c.rules, fmt.Sprintf("%s snat %s to %s", match, ip(ipv6), a[0]))
			}
		}
	}
	return c
}

func (t *Table) natPostrouting() chain {
	c := chain{name: "nat-postrouting", kind: knftables.NATType, hook: knftables.PostroutingHook, priority: knftables.SNATPriority, rules: t.directSources()}
	if len(t.instances.Live) == 0 {
		return c
	}
	c.rules = append(c.rules, fmt.Sprintf("iifname { %s } masquerade fully-random", t.veths(frontendpb.Class_MASQ)))
	for _, ipv6 := range []bool{false, true} {
		c.rules = append(c.rules, fmt.Sprintf("iifname { %s } %s saddr . %[2]s daddr @%s masquerade fully-random",
			t.veths(frontendpb.Class_KEEP), ip(ipv6), mapName(callerSet, false, ipv6)))
	}
	return c
}

// natToEnvoy decides the source of what goes to Envoy. It comes before the chains of others: a CNI that masquerades what
// pods send out of the pod network takes a cluster IP for an address out there. A source NAT to the packet's own source
// changes nothing, and the kernel asks no later chain.
func (t *Table) natToEnvoy() chain {
	c := chain{name: "nat-to-envoy", kind: knftables.NATType, hook: knftables.PostroutingHook, priority: knftables.SNATPriority + " - 10"}
	for _, class := range []frontendpb.Class{frontendpb.Class_KEEP, frontendpb.Class_EXTERNAL} {
		for _, ipv6 := range []bool{false, true} {
			if veths := t.veths(class); veths != "" {
				c.rules = append(c.rules, fmt.Sprintf("oifname { %s } snat %s to %[2]s saddr", veths, ip(ipv6)))
			}
		}
	}
	// Envoy sends datagrams on under the source that they came with, which must be one that leads back to its namespace.
	for _, id := range t.instances.Live {
		v4, v6 := envoyns.MasqueradeSource(id)
		link := envoyns.LinkName(id, frontendpb.Class_MASQ)
		c.rules = append(c.rules,
			fmt.Sprintf("oifname %q meta l4proto udp meta nfproto ipv4 snat ip to %s", link, v4),
			fmt.Sprintf("oifname %q meta l4proto udp meta nfproto ipv6 snat ip6 to %s", link, v6))
	}
	return c
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
