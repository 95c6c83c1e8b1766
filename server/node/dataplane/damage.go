package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// Numbers of linux/netfilter/nf_tables.h for lists of rules and elements.
const (
	getRule     = 7  // NFT_MSG_GETRULE
	ruleChain   = 2  // NFTA_RULE_CHAIN
	getElement  = 13 // NFT_MSG_GETSETELEM
	elementsSet = 2  // NFTA_SET_ELEM_LIST_SET
	elementList = 3  // NFTA_SET_ELEM_LIST_ELEMENTS
)

// Damage returns what the kernel's table lacks of what was set, empty if nothing. It compares numbers: of each chain's rules, and
// of the elements of each map and set but those of clients, which the kernel fills. The Monitor hears of what replaces something.
// Before the first Commit, when another agent may have written the table, further elements are no damage.
func (t *Table) Damage() (string, error) {
	if t.complete && t.Dirty() {
		return "", nil // The next Commit would be taken for damage, and follows anyway.
	}
	rules, err := countRules()
	if err != nil {
		return "", err
	}
	wanted := t.wantedRules()
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		if rules[name] != wanted[name] {
			return fmt.Sprintf("chain %s has %d rules and not %d", name, rules[name], wanted[name]), nil
		}
	}
	elements := t.wantedElements()
	for _, name := range slices.Sorted(maps.Keys(elements)) {
		there, err := countElements(name)
		if err != nil {
			return "", err
		}
		if there < elements[name] || t.complete && there != elements[name] {
			return fmt.Sprintf("map %s has %d elements and not %d", name, there, elements[name]), nil
		}
	}
	return "", nil
}

// wantedRules returns how many rules each chain has.
func (t *Table) wantedRules() map[string]int {
	rules := map[string]int{}
	for _, c := range t.chains() {
		rules[c.name] = len(c.rules)
	}
	for set := range t.picks.users {
		rules[pickChain(set)] = len(t.picks.wanted(set).rules(set))
	}
	return rules
}

// wantedElements returns how many elements each map and set has.
func (t *Table) wantedElements() map[string]int {
	count := map[string]int{
		markMap: len(t.instances.Live) * len(frontendpb.Classes), vethMap: len(t.instances.Live) * len(senders), spliceMap: len(t.instances.Live),
	}
	if t.complete {
		count[podLinkSet] = len(t.node.PodLinks) // While there was no agent, pods may have come.
	}
	for _, types := range []map[string]string{mapTypes, directMapTypes()} {
		for name := range types {
			count[name] = 0
		}
	}
	type key struct{ table, key string }
	seen := map[key]bool{}
	for _, f := range t.wanted {
		for _, e := range elementsOf(f, t.node) {
			if k := (key{e.table, e.key}); !seen[k] {
				seen[k] = true
				count[e.table]++
			}
		}
	}
	for set := range t.picks.users {
		slots := t.picks.wanted(set).slots
		count[endpointsMap(set)], count[slotsMap(set)] = len(slots), len(slots)
	}
	return count
}

// countRules returns how many rules each chain of the kernel's table has.
func countRules() (map[string]int, error) {
	rules := map[string]int{}
	found, err := dump(getRule, nl.NewRtAttr(firstAttr, nl.ZeroTerminated(TableName)))
	if err != nil {
		return nil, fmt.Errorf("nftables: list rules: %w", err)
	}
	for _, rule := range found {
		table, chain := "", ""
		for kind, value := range attributes(rule) {
			switch kind {
			case firstAttr:
				table = text(value)
			case ruleChain:
				chain = text(value)
			}
		}
		if table == TableName {
			rules[chain]++
		}
	}
	return rules, nil
}

// countElements returns how many elements a map or set of the kernel's table has; none if it does not exist.
func countElements(name string) (int, error) {
	found, err := dump(getElement, nl.NewRtAttr(firstAttr, nl.ZeroTerminated(TableName)), nl.NewRtAttr(elementsSet, nl.ZeroTerminated(name)))
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("nftables: list the elements of %s: %w", name, err)
	}
	count := 0
	for _, part := range found {
		for kind, list := range attributes(part) {
			if kind != elementList {
				continue
			}
			for range nested(list) {
				count++
			}
		}
	}
	return count, nil
}
