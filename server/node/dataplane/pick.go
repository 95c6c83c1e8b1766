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

// maxClients bounds how many clients of one ServicePort the kernel remembers. It forwards further ones without sessionAffinity.
const maxClients = 1 << 18

// Prefixes of names. Each set has a chain that picks an endpoint, a map from an endpoint's number to the endpoint, and a map
// from a slot 0, 1, … to an endpoint's number. A ServicePort has a map from a client to an endpoint's number.
const (
	pickPrefix      = "pick"
	endpointsPrefix = "endpoints"
	slotsPrefix     = "slots"
	clientsPrefix   = "clients"
)

// nftName returns a name that nft accepts. Sets are named after a ServicePort, which has no dot.
func nftName(prefix, name string) string { return prefix + "-" + strings.ReplaceAll(name, ":", ".") }

func pickChain(set string) string    { return nftName(pickPrefix, set) }
func endpointsMap(set string) string { return nftName(endpointsPrefix, set) }
func slotsMap(set string) string     { return nftName(slotsPrefix, set) }

// pick is how the kernel picks from a set.
type pick struct {
	protocol string // As nft writes it.
	ipv6     bool
	clients  string // The map of clients; empty: no sessionAffinity.
	seconds  uint32 // How long a client is remembered.
	room     uint64 // How many clients are remembered.
	slots    []netip.AddrPort
}

// place orders the endpoints so that the fewest slots change: an endpoint that stays keeps its slot, if that still exists.
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

// write adds to tx what differs from before, which is nil if the kernel's content is unknown.
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
		// A map that an earlier agent left stays valid: numbers are derived from the endpoints.
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
		// The protocol's own port: nft resolves "th" to another protocol than the one that the rule matches.
		endpointsMap(set): fmt.Sprintf("meta priority : %s daddr . %s dport", ip(p.ipv6), p.protocol),
		slotsMap(set):     "meta priority : meta priority",
	} {
		tx.Add(&knftables.Map{Name: name, TypeOf: kind})
		tx.Flush(&knftables.Map{Name: name})
	}
}

// rules returns the rules that pick an endpoint. They keep its number in the packet's priority, since the kernel sets that field
// again when it forwards the packet. A rule ends at a lookup that finds nothing, or at an update of a map that is full.
func (p *pick) rules(set string) []string {
	if len(p.slots) == 0 {
		return []string{count(counterDropped) + " drop"} // A change of its frontends, which have no endpoint any more, follows.
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
		// The remembered number is of no endpoint of the set any more. An update would renew the element, but not replace its value.
		fmt.Sprintf("delete @%s { %s : 0 }", p.clients, source),
	}
	return append(append(rules, choose...),
		remember,
		// Another CPU may have remembered another endpoint in between.
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

// ids are the numbers of endpoints. A number is the endpoint's hash, so that the next agent, which finds clients remembered by
// the numbers of their endpoints, has the same ones. Only endpoints whose hashes collide may get others.
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
		// nft writes 0 and the highest number as words.
		for number == 0 || number == ^uint32(0) || d.taken[number] {
			number++
		}
		d.numbers[e], d.taken[number] = number, true
	}
	return fmt.Sprintf("%#x", number)
}

// keep deletes the numbers of endpoints that no pick has.
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
