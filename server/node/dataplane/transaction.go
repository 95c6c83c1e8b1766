package dataplane

import (
	"context"
	"maps"
	"slices"

	"sigs.k8s.io/knftables"
)

// write runs the transaction of a Commit. An existing table is flushed and filled again unless it has to be replaced: the kernel
// detaches a replaced table's chains from their hooks for a moment, and packets would pass without being masqueraded.
func (t *Table) write(ctx context.Context, replace bool) (writeResult, error) {
	tx := t.nft.NewTransaction()
	var left []string
	if !t.complete {
		tx.Add(&knftables.Table{})
		if replace {
			tx.Delete(&knftables.Table{})
			tx.Add(&knftables.Table{})
		} else {
			left = t.left(ctx)
		}
		addMaps(tx)
		addRangeMaps(tx)
		addCounters(tx)
	}
	t.addPodLinks(tx)
	if !t.complete || !t.static {
		t.addChains(tx)
	}
	done := writeResult{picks: t.addPicks(tx, left)}
	done.elements, done.removed, done.added = t.addElements(tx)
	t.removePicks(tx, done.picks)
	return done, t.monitor.Own(func() error { return t.nft.Run(ctx, tx) })
}

// writeResult is what a transaction wrote.
type writeResult struct {
	elements       map[string][]element // Of the frontends that it compared.
	removed, added []element
	picks          pickChange
}

// left returns the names of the chains and maps that the kernel's table already has, if there is one.
func (t *Table) left(ctx context.Context) []string {
	chains, err := t.nft.List(ctx, "chains")
	if err != nil {
		return nil // There is no table, or the transaction fails as well.
	}
	maps, err := t.nft.List(ctx, "maps")
	if err != nil {
		return nil
	}
	return append(chains, maps...)
}

// addElements adds to tx what differs between the wanted frontends and the kernel's. It returns the elements of the
// frontends that it compared, and those that tx removes and adds.
func (t *Table) addElements(tx *knftables.Transaction) (next map[string][]element, removed, added []element) {
	names := slices.Collect(maps.Keys(t.changed))
	if !t.complete {
		names = slices.Collect(maps.Keys(t.wanted))
	}
	slices.Sort(names)
	next = map[string][]element{}
	for _, name := range names {
		var old, elements []element
		if t.complete {
			old = t.applied[name]
		}
		if f := t.wanted[name]; f != nil {
			elements = elementsOf(f, t.node)
			next[name] = elements
		}
		removed = append(removed, missing(old, elements)...)
		added = append(added, missing(elements, old)...)
	}
	// A map accepts no second value for a key: elements are deleted before others are added.
	for _, e := range t.unused(removed) {
		tx.Delete(e.nft())
	}
	for _, e := range added {
		tx.Add(e.nft())
	}
	return next, removed, added
}

// unused returns the elements, each once, that no wanted frontend has. Those of maps are a single frontend's; a cluster IP may
// have several.
func (t *Table) unused(removed []element) []element {
	isSet := func(e element) bool { return e.value == "" }
	if !slices.ContainsFunc(removed, isSet) {
		return removed
	}
	used := map[element]bool{}
	for _, f := range t.wanted {
		for _, e := range elementsOf(f, Node{}) {
			used[e] = isSet(e)
		}
	}
	return slices.DeleteFunc(slices.Clone(removed), func(e element) bool {
		if !isSet(e) {
			return false
		}
		known := used[e]
		used[e] = true
		return known
	})
}

// missing returns the elements of a that are not in b.
func missing(a, b []element) []element {
	return slices.DeleteFunc(slices.Clone(a), func(e element) bool { return slices.Contains(b, e) })
}
