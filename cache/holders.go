package cache

import (
	"slices"
	"strings"

	"github.com/fairlead/fairlead/translate/model"
)

// A name should belong to one contribution. Where two have it, views see that of the contribution with the lowest ID, whatever
// came first, so that all replicas serve the same.

// delta is the change of one name when a contribution or a view changes.
type delta struct {
	resourceName
	had       string // The version that the viewer had, "" for none.
	exists    bool   // Whether the viewer has one now.
	contested bool   // Whether other contributions have the name too; then had and exists are for asSeen and note to find out.
}

// hold enters the slot in Cache.holders under the names of all its variants.
func (c *Cache) hold(u *slot) {
	if u == nil {
		return
	}
	for _, v := range u.variants {
		c.holdVariant(u, v)
	}
}

// holdVariant does so for the names of one variant. Names stay entered when a variant is released, since others mostly have
// them too, and looking up an entry too many costs nothing but time.
func (c *Cache) holdVariant(u *slot, v *variant) {
	for _, e := range v.entries {
		n := e.name()
		holders := c.holders[n]
		i, found := slices.BinarySearchFunc(holders, u.id, func(o *slot, id string) int { return strings.Compare(o.id, id) })
		if found {
			continue
		}
		c.holders[n] = slices.Insert(holders, i, u)
		u.held = append(u.held, n)
	}
}

// drop removes the slot from the holders of all names.
func (c *Cache) drop(u *slot) {
	if u == nil {
		return
	}
	for _, n := range u.held {
		holders := slices.DeleteFunc(c.holders[n], func(o *slot) bool { return o == u })
		if len(holders) == 0 {
			delete(c.holders, n)
		} else {
			c.holders[n] = holders
		}
	}
}

// lookUp returns what a view sees under a name, nil if nothing. The view must have a viewer.
func (c *Cache) lookUp(view model.View, n resourceName) *entry {
	for _, u := range c.holders[n] {
		if e := u.of(view).find(n); e != nil {
			return e
		}
	}
	return nil
}

// deriveAll returns what follows from names alone, by name, nil where nothing does; before is what it returned for the
// subscription's names until now. It is called without the cache's lock: each name is marshalled, and a client has many.
// Neither
// map is altered afterwards.
func (c *Cache) deriveAll(typeURL string, names map[string]struct{}, before map[string]*entry) map[string]*entry {
	if c.derive == nil {
		return nil
	}
	derived, same := make(map[string]*entry, len(names)), len(names) == len(before)
	for name := range names {
		e, ok := before[name]
		same = same && ok
		if !ok {
			if r, follows := c.derive(typeURL, name); follows {
				e = newEntry(r, nil)
			}
		}
		derived[name] = e
	}
	if same {
		return before
	}
	return derived
}

// visible calls do with every entry of a type that a view sees, in no order. The view must have a viewer.
func (c *Cache) visible(view model.View, typeURL string, do func(*entry)) {
	for _, u := range c.slots {
		for _, e := range u.of(view).ofType(typeURL) {
			if n := e.name(); len(c.holders[n]) == 1 || c.lookUp(view, n) == e {
				do(e)
			}
		}
	}
}

// diff returns the names whose content differs between two variants of the slot u, or of u and the one that will
// replace it.
func (c *Cache) diff(u *slot, old, next *variant) []delta {
	var changes []delta
	add := func(n resourceName, had string, exists bool) {
		holders := c.holders[n]
		contested := len(holders) > 1 || len(holders) == 1 && holders[0] != u
		changes = append(changes, delta{n, had, exists, contested})
	}
	if old != nil {
		for _, e := range old.entries {
			if f := next.find(e.name()); f != e && (f == nil || f.version() != e.version()) {
				add(e.name(), e.version(), f != nil)
			}
		}
	}
	if next != nil {
		for _, e := range next.entries {
			if old.find(e.name()) == nil {
				add(e.name(), "", true)
			}
		}
	}
	return changes
}

// asSeen returns changes as a view sees them, which sees contested names of other contributions too. It is called before the
// holders change.
func (c *Cache) asSeen(view model.View, changes []delta) []delta {
	if !slices.ContainsFunc(changes, func(ch delta) bool { return ch.contested }) {
		return changes
	}
	changes = slices.Clone(changes)
	for i := range changes {
		if ch := &changes[i]; ch.contested {
			ch.had = ""
			if e := c.lookUp(view, ch.resourceName); e != nil {
				ch.had = e.version()
			}
		}
	}
	return changes
}
