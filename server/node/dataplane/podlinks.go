package dataplane

import (
	"fmt"
	"slices"
	"strconv"

	"sigs.k8s.io/knftables"
)

// podLinkSet is the set of the links that pods send by.
const podLinkSet = "pod-links"

// addPodLinks makes the kernel's set of pods' links what the node has. The set changes with each pod, so it is kept by its
// elements, where all else that is known of the node rewrites the chains.
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

// fromPods returns the matches of packets that a pod of this node sent: by its source, or by the link that it came by.
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
	// A link that leads to pods may lead on to others, which a pod that routes for them stands before.
	return append(matches, "iifname @"+podLinkSet+" fib saddr . iif oif exists")
}
