package dataplane

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// picks are the sets of endpoints from which the kernel picks.
type picks struct {
	endpoints map[string][]netip.AddrPort                // By set's name; wanted.
	users     map[string]map[string]*frontendpb.Frontend // By set's name, the frontends that pick from it, by name.
	dirty     map[string]bool                            // Sets that differ from what the kernel has.
	applied   map[string]*pick                           // What the kernel has.
	ids       ids
	room      uint64 // Clients of a ServicePort that are remembered.
}

func newPicks() picks {
	return picks{
		endpoints: map[string][]netip.AddrPort{}, users: map[string]map[string]*frontendpb.Frontend{},
		dirty: map[string]bool{}, applied: map[string]*pick{}, ids: newIDs(), room: maxClients,
	}
}

// SetEndpoints has the next Commit set the endpoints of a set of direct frontends; none removes it.
func (t *Table) SetEndpoints(set string, endpoints []netip.AddrPort) {
	if slices.Equal(t.picks.endpoints[set], endpoints) {
		return
	}
	if len(endpoints) == 0 {
		delete(t.picks.endpoints, set)
	} else {
		t.picks.endpoints[set] = endpoints
	}
	t.picks.dirty[set] = true
}

// use records that a frontend, nil if it was removed, picks from other sets than before.
func (p *picks) use(name string, before, after *frontendpb.Frontend) {
	for _, set := range SetsOf(before) {
		delete(p.users[set], name)
		if len(p.users[set]) == 0 {
			delete(p.users, set)
		}
		p.dirty[set] = true
	}
	for _, set := range SetsOf(after) {
		if p.users[set] == nil {
			p.users[set] = map[string]*frontendpb.Frontend{}
		}
		p.users[set][name] = after
		p.dirty[set] = true
	}
}

// wanted returns how the kernel has to pick from a set, without the order of the endpoints; nil if no frontend uses the set. A
// Service's frontends agree; while only some of them have changed, the first by name counts.
func (p *picks) wanted(set string) *pick {
	users := p.users[set]
	if len(users) == 0 {
		return nil
	}
	f := users[slices.Min(slices.Collect(maps.Keys(users)))]
	w := &pick{protocol: strings.ToLower(f.GetProtocol()), ipv6: f.GetIpv6(), seconds: f.GetDirect().GetAffinitySeconds()}
	if w.seconds > 0 {
		w.clients, w.room = clientsMap(f), p.room
	}
	for _, e := range p.endpoints[set] {
		if e.Addr().Is6() == w.ipv6 {
			w.slots = append(w.slots, e)
		}
	}
	return w
}

// all returns the endpoints from which the kernel picks.
func (p *picks) all() map[netip.AddrPort]bool {
	all := map[netip.AddrPort]bool{}
	for _, a := range p.applied {
		for _, e := range a.slots {
			all[e] = true
		}
	}
	return all
}

// pickChange is what a commit changes of the picks.
type pickChange struct {
	next  map[string]*pick        // Nil: no frontend picks from the set any more.
	ended map[netip.AddrPort]bool // Endpoints to which UDP flows must not go any more.
	left  []string                // Chains that an earlier agent left and no frontend uses.
	maps  []string                // Maps of that kind.
}

// addPicks adds to tx the chains and maps of direct frontends. left are the names of chains and maps of an earlier agent.
func (t *Table) addPicks(tx *knftables.Transaction, left []string) pickChange {
	p := &t.picks
	names := slices.Collect(maps.Keys(p.dirty))
	if !t.complete {
		names = slices.Collect(maps.Keys(p.users))
		p.applied = map[string]*pick{}
	}
	slices.Sort(names)
	c := pickChange{next: map[string]*pick{}, ended: map[netip.AddrPort]bool{}}
	for _, name := range names {
		before, after := p.applied[name], p.wanted(name)
		c.next[name] = after
		c.end(before, after)
		if after != nil {
			after.place(before)
			after.write(tx, name, before, &p.ids)
		}
	}
	c.leftovers(p, left)
	return c
}

// end records the endpoints to which UDP flows may still go, although the set no longer has them.
func (c *pickChange) end(before, after *pick) {
	if before == nil || before.protocol != "udp" {
		return
	}
	for _, e := range before.slots {
		if after == nil || !slices.Contains(after.slots, e) {
			c.ended[e] = true
		}
	}
}

// leftovers finds the chains and maps of an earlier agent that no frontend uses.
func (c *pickChange) leftovers(p *picks, left []string) {
	known := map[string]bool{}
	for set, users := range p.users {
		known[pickChain(set)], known[endpointsMap(set)], known[slotsMap(set)] = true, true, true
		for _, f := range users {
			known[clientsMap(f)] = known[clientsMap(f)] || f.GetDirect().GetAffinitySeconds() > 0
		}
	}
	for _, name := range left {
		switch prefix, _, _ := strings.Cut(name, "-"); {
		case known[name]:
		case prefix == pickPrefix:
			c.left = append(c.left, name)
		case prefix == endpointsPrefix || prefix == slotsPrefix || prefix == clientsPrefix:
			c.maps = append(c.maps, name)
		}
	}
}

// removePicks adds to tx the deletion of chains and maps that no frontend uses any more.
func (t *Table) removePicks(tx *knftables.Transaction, c pickChange) {
	chains, gone := slices.Clone(c.left), slices.Clone(c.maps)
	forgotten := map[string]bool{}
	for name, after := range c.next {
		before := t.picks.applied[name]
		if before == nil {
			continue
		}
		if after == nil {
			chains, gone = append(chains, pickChain(name)), append(gone, endpointsMap(name), slotsMap(name))
		}
		if before.clients != "" && (after == nil || after.clients != before.clients) {
			forgotten[before.clients] = true
		}
	}
	if len(forgotten) > 0 {
		for name := range t.picks.users {
			if w := t.picks.wanted(name); w != nil {
				delete(forgotten, w.clients)
			}
		}
	}
	gone = slices.AppendSeq(gone, maps.Keys(forgotten))
	slices.Sort(chains)
	slices.Sort(gone)
	for _, name := range chains {
		tx.Flush(&knftables.Chain{Name: name})
		tx.Delete(&knftables.Chain{Name: name})
	}
	for _, name := range gone {
		tx.Delete(&knftables.Map{Name: name})
	}
}

// commit records that the kernel has a change.
func (p *picks) commit(c pickChange) {
	for name, after := range c.next {
		if after == nil {
			delete(p.applied, name)
		} else {
			p.applied[name] = after
		}
	}
	clear(p.dirty)
	if len(c.next) > 0 {
		p.ids.keep(p.applied)
	}
}
