package cache

import (
	"slices"
	"strings"

	"github.com/fairlead/fairlead/translate/model"
)

// A name should belong to one unit. Where two have it, views see that of the unit with the lowest ID, whatever came
// first, so that all replicas serve the same.

// change is what becomes of one name when a unit or a view changes.
type change struct {
	resourceName
	had       string // The version that the viewer had, "" for none.
	exists    bool   // Whether the viewer has one now.
	contested bool   // Whether other units have the name too; then had and exists are for asSeen and note to find out.
}

// own enters the names in all variants of u among the owners.
func (c *Cache) own(u *unit) {
	if u == nil {
		return
	}
	for _, v := range u.variants {
		c.ownVariant(u, v)
	}
}

// ownVariant enters the names of one variant of u. Names stay entered when a variant goes, since others mostly have
// them too, and looking up an entry too many costs nothing but time.
func (c *Cache) ownVariant(u *unit, v *variant) {
	for _, e := range v.entries {
		n := e.name()
		owners := c.owners[n]
		i, found := slices.BinarySearchFunc(owners, u.id, func(o *unit, id string) int { return strings.Compare(o.id, id) })
		if found {
			continue
		}
		c.owners[n] = slices.Insert(owners, i, u)
		u.owned = append(u.owned, n)
	}
}

// disown removes u from the owners of all names.
func (c *Cache) disown(u *unit) {
	if u == nil {
		return
	}
	for _, n := range u.owned {
		owners := slices.DeleteFunc(c.owners[n], func(o *unit) bool { return o == u })
		if len(owners) == 0 {
			delete(c.owners, n)
		} else {
			c.owners[n] = owners
		}
	}
}

// lookUp returns what a view sees under a name, nil if nothing. The view must have a viewer.
func (c *Cache) lookUp(view model.View, n resourceName) *entry {
	for _, u := range c.owners[n] {
		if e := u.of(view).find(n); e != nil {
			return e
		}
	}
	return nil
}

// derived returns what follows from a name that no unit has, nil if nothing does. It is made anew each time: it takes
// microseconds, when a client subscribes or the last unit with the name goes.
func (c *Cache) derived(n resourceName) *entry {
	if c.derive == nil {
		return nil
	}
	r, ok := c.derive(n.typeURL, n.name)
	if !ok {
		return nil
	}
	return newEntry(r, nil)
}

// visible calls do with every entry of a type that a view sees, in no order. The view must have a viewer.
func (c *Cache) visible(view model.View, typeURL string, do func(*entry)) {
	for _, u := range c.units {
		for _, e := range u.of(view).ofType(typeURL) {
			if n := e.name(); len(c.owners[n]) == 1 || c.lookUp(view, n) == e {
				do(e)
			}
		}
	}
}

// diff returns the names whose content differs between two variants of the unit u, or of u and the one that will
// replace it.
func (c *Cache) diff(u *unit, old, next *variant) []change {
	var changes []change
	add := func(n resourceName, had string, exists bool) {
		owners := c.owners[n]
		contested := len(owners) > 1 || len(owners) == 1 && owners[0] != u
		changes = append(changes, change{n, had, exists, contested})
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

// asSeen returns changes as a view sees them, which sees contested names of other units too. It is called before the
// owners change.
func (c *Cache) asSeen(view model.View, changes []change) []change {
	if !slices.ContainsFunc(changes, func(ch change) bool { return ch.contested }) {
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
