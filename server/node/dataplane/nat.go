package dataplane

import (
	"fmt"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// natPrerouting returns nat-prerouting or nat-output, which rewrite the destination of new connections: those of direct
// frontends to an endpoint, and those to NodePorts and other frontends at the node's own addresses to an alias. The kernel
// delivers packets to a node's own address to the node, whatever their mark, so Envoy would not get them without the alias.
// The mark distinguishes these connections from those to the node's own servers.
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

// natInput rewrites the source of connections of class masq to the node's own servers, to an address of the node, which
// those servers can know.
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

// natPostrouting masquerades connections that leave for an endpoint: those of class masq, and those of a pod to itself (see
// addMaps).
func (t *Table) natPostrouting() chain {
	c := chain{name: "nat-postrouting", kind: knftables.NATType, hook: knftables.PostroutingHook, priority: knftables.SNATPriority, rules: t.directSources()}
	if len(t.instances.Live) == 0 {
		return c
	}
	c.rules = append(c.rules, fmt.Sprintf("iifname { %s } masquerade fully-random", t.veths(frontendpb.Class_MASQ)))
	var kept []string // By the connection's mark: spliced, it comes in by the pod's link.
	for _, id := range t.instances.Live {
		kept = append(kept, fmt.Sprintf("%#x", t.config.Mark(id, frontendpb.Class_KEEP)))
	}
	for _, ipv6 := range []bool{false, true} {
		c.rules = append(c.rules, fmt.Sprintf("ct mark and %#x { %s } %s saddr . %[3]s daddr @%s masquerade fully-random",
			t.config.Mask, strings.Join(kept, ", "), ip(ipv6), mapName(callerSet, false, ipv6)))
	}
	return c
}

// natToEnvoy sets the source of connections that go to Envoy, before the nat chains of others can: a CNI plugin that masquerades
// what pods send out of the pod network takes a cluster IP for an address outside it. A source NAT to the packet's own source
// changes nothing, and the kernel evaluates no later nat chain of the hook.
func (t *Table) natToEnvoy() chain {
	c := chain{name: "nat-to-envoy", kind: knftables.NATType, hook: knftables.PostroutingHook, priority: knftables.SNATPriority + " - 10"}
	for _, class := range []frontendpb.Class{frontendpb.Class_KEEP, frontendpb.Class_EXTERNAL} {
		for _, ipv6 := range []bool{false, true} {
			if veths := t.veths(class); veths != "" {
				c.rules = append(c.rules, fmt.Sprintf("oifname { %s } snat %s to %[2]s saddr", veths, ip(ipv6)))
			}
		}
	}
	return c
}
