package dataplane

import (
	"fmt"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

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
