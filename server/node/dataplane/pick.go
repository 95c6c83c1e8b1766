package dataplane

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"
)

// maxClients bounds how many clients of one ServicePort are remembered. Beyond that connections are forwarded without memory.
const maxClients = 1 << 18

// Prefixes of the names of what each set has: the chain that picks, the map from an endpoint's number to the endpoint, the map
// from a place in 0, 1, … to an endpoint's number, and, for a ServicePort, the map from a client to an endpoint's number.
const (
	pickPrefix      = "pick"
	endpointsPrefix = "endpoints"
	slotsPrefix     = "slots"
	clientsPrefix   = "clients"
)

// nftName returns a name that nft takes. Sets are named after a ServicePort, which has no dot.
func nftName(prefix, name string) string { return prefix + "-" + strings.ReplaceAll(name, ":", ".") }

func pickChain(set string) string    { return nftName(pickPrefix, set) }
func endpointsMap(set string) string { return nftName(endpointsPrefix, set) }
func slotsMap(set string) string     { return nftName(slotsPrefix, set) }

// pick is how the kernel picks from a set.
type pick struct {
	protocol string // In nft's spelling.
	ipv6     bool
	clients  string // The map that remembers clients; empty: none does.
	seconds  uint32 // For how long.
	room     uint64 // For how many.
	slots    []netip.AddrPort
}

// place puts the endpoints in the order that changes the fewest places: those that stay keep theirs, if there still is one.
func (p *pick) place(before *pick) {
	if before == nil {
		return
	}
	wanted := map[netip.AddrPort]bool{}
	for _, e := range p.slots {
		wanted[e] = true
	}
	placed := make([]netip.AddrPort, len(p.slots))
	for i, e := range before.slots {
		if i < len(placed) && wanted[e] {
			placed[i] = e
			delete(wanted, e)
		}
	}
	next := 0
	for _, e := range p.slots {
		if !wanted[e] {
			continue
		}
		for placed[next].IsValid() {
			next++
		}
		placed[next] = e
	}
	p.slots = placed
}

// write adds to tx what differs from before, which is nil if the kernel has nothing that can be relied on.
func (p *pick) write(tx *knftables.Transaction, set string, before *pick, ids *ids) {
	old := pick{}
	if before != nil {
		old = *before
	}
	if before == nil {
		p.create(tx, set)
	}
	for _, e := range old.slots {
		if !slices.Contains(p.slots, e) {
			tx.Delete(endpointElement(set, e, ids))
		}
	}
	for i, e := range old.slots {
		if i >= len(p.slots) || p.slots[i] != e {
			tx.Delete(slotElement(set, i, e, ids))
		}
	}
	for _, e := range p.slots {
		if !slices.Contains(old.slots, e) {
			tx.Add(endpointElement(set, e, ids))
		}
	}
	for i, e := range p.slots {
		if i >= len(old.slots) || old.slots[i] != e {
			tx.Add(slotElement(set, i, e, ids))
		}
	}
	if before != nil && len(old.slots) == len(p.slots) && old.clients == p.clients && old.seconds == p.seconds {
		return
	}
	if p.clients != "" && old.clients != p.clients {
		// Another agent's is as good: numbers follow from the endpoints.
		tx.Add(&knftables.Map{
			Name: p.clients, TypeOf: ip(p.ipv6) + " saddr : meta priority",
			Flags: []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag}, Size: knftables.PtrTo(p.room),
		})
	}
	tx.Flush(&knftables.Chain{Name: pickChain(set)})
	for _, r := range p.rules(set) {
		tx.Add(&knftables.Rule{Chain: pickChain(set), Rule: r})
	}
}

// create adds the empty chain and maps of a set.
func (p *pick) create(tx *knftables.Transaction, set string) {
	tx.Add(&knftables.Chain{Name: pickChain(set)})
	for name, kind := range map[string]string{
		// The protocol's own port: nft takes "th" for another protocol than the one that the rule matches.
		endpointsMap(set): fmt.Sprintf("meta priority : %s daddr . %s dport", ip(p.ipv6), p.protocol),
		slotsMap(set):     "meta priority : meta priority",
	} {
		tx.Add(&knftables.Map{Name: name, TypeOf: kind})
		tx.Flush(&knftables.Map{Name: name})
	}
}

// rules pick an endpoint. Its number is kept in the packet's priority while the rules are gone through: of what a packet
// carries, it is what the kernel sets anew when it forwards. A rule whose lookup finds nothing, or whose map is full, ends there.
func (p *pick) rules(set string) []string {
	if len(p.slots) == 0 {
		return []string{count(counterDropped) + " drop"} // Its frontends are about to learn that there is none.
	}
	source := ip(p.ipv6) + " saddr"
	transport := "meta l4proto " + p.protocol
	rewrite := fmt.Sprintf("dnat %s to meta priority map @%s", ip(p.ipv6), endpointsMap(set))
	choose := []string{
		fmt.Sprintf("meta priority set numgen random mod %d", len(p.slots)),
		fmt.Sprintf("meta priority set meta priority map @%s", slotsMap(set)),
	}
	if p.clients == "" {
		return append(choose, transport+" "+rewrite, "drop")
	}
	recall := fmt.Sprintf("meta priority set %s map @%s", source, p.clients)
	remember := fmt.Sprintf("update @%s { %s timeout %ds : meta priority }", p.clients, source, p.seconds)
	rules := []string{
		strings.Join([]string{transport, recall, remember, rewrite}, " "),
		// What is remembered is no endpoint of the set any more. An update would renew it, but not replace it.
		fmt.Sprintf("delete @%s { %s : 0 }", p.clients, source),
	}
	return append(append(rules, choose...),
		remember,
		// Another processor may have remembered another one in between.
		strings.Join([]string{transport, recall, rewrite}, " "),
		strings.Join([]string{count(counterUnremembered), transport, rewrite}, " "),
		"drop")
}

func endpointElement(set string, e netip.AddrPort, ids *ids) *knftables.Element {
	return &knftables.Element{Map: endpointsMap(set), Key: []string{ids.of(e)}, Value: []string{e.Addr().String(), strconv.Itoa(int(e.Port()))}}
}

func slotElement(set string, i int, e netip.AddrPort, ids *ids) *knftables.Element {
	return &knftables.Element{Map: slotsMap(set), Key: []string{fmt.Sprintf("%#x", i)}, Value: []string{ids.of(e)}}
}

// ids are the numbers of endpoints. A number follows from the endpoint, so that another agent, which finds clients remembered
// by their endpoints' numbers, has the same; but for the few of which the same would follow.
type ids struct {
	numbers map[netip.AddrPort]uint32
	taken   map[uint32]bool
}

func newIDs() ids { return ids{map[netip.AddrPort]uint32{}, map[uint32]bool{}} }

// of returns an endpoint's number.
func (d *ids) of(e netip.AddrPort) string {
	number, known := d.numbers[e]
	if !known {
		hash := fnv.New32a()
		hash.Write([]byte(e.String()))
		number = hash.Sum32()
		// To nft 0 and the highest number are words.
		for number == 0 || number == ^uint32(0) || d.taken[number] {
			number++
		}
		d.numbers[e], d.taken[number] = number, true
	}
	return fmt.Sprintf("%#x", number)
}

// keep forgets the numbers of endpoints that no pick has.
func (d *ids) keep(applied map[string]*pick) {
	used := map[netip.AddrPort]bool{}
	for _, p := range applied {
		for _, e := range p.slots {
			used[e] = true
		}
	}
	for e, number := range d.numbers {
		if !used[e] {
			delete(d.numbers, e)
			delete(d.taken, number)
		}
	}
}
