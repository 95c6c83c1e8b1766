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
	for _, class := range frontendpb.Classes {
		c := chain{name: class.Label(), rules: []string{count(counterWaiting) + " drop"}} // A client tries again until there is an Envoy.
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
	for _, class := range frontendpb.Classes {
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
	return "to-" + strconv.Itoa(int(id)) + "-" + class.Label()
}

func sentName(id envoyns.ID, class frontendpb.Class) string {
	return "from-" + strconv.Itoa(int(id)) + "-" + class.Label()
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
	for _, class := range frontendpb.Classes {
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
