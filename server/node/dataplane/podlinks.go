package dataplane

import (
	"fmt"
	"slices"
	"strconv"

	"sigs.k8s.io/knftables"
)

// podLinkSet is the set of the links over which pods send.
const podLinkSet = "pod-links"

// addPodLinks brings the kernel's set of pods' links up to date. The set changes with each pod, so a change updates its elements,
// whereas every other change of the node rewrites the chains.
func (t *Table) addPodLinks(tx *knftables.Transaction) {
	set := &knftables.Set{Name: podLinkSet, TypeOf: "iifname"}
	old := t.podLinks
	if !t.complete {
		tx.Add(set)
		tx.Flush(set)
		old = nil
	}
	for _, name := range old {
		if !slices.Contains(t.node.PodLinks, name) {
			tx.Delete(&knftables.Element{Set: podLinkSet, Key: []string{name}})
		}
	}
	for _, name := range t.node.PodLinks {
		if !slices.Contains(old, name) {
			tx.Add(&knftables.Element{Set: podLinkSet, Key: []string{name}})
		}
	}
}

// fromPods returns the matches of packets that a pod of this node sent: by their source, or by the link that they arrive on.
func (t *Table) fromPods() []string {
	var matches []string
	for _, ipv6 := range []bool{false, true} {
		if pods := prefixesOf(t.node.Pods, ipv6); pods != "" {
			matches = append(matches, fmt.Sprintf("%s saddr { %s }", ip(ipv6), pods))
		}
	}
	for _, pattern := range t.node.PodInterfaces {
		matches = append(matches, "iifname "+strconv.Quote(pattern))
	}
	// A pod may route for others, whose packets arrive on its link too: the node must also route the source back over the link.
	return append(matches, "iifname @"+podLinkSet+" fib saddr . iif oif exists")
}
