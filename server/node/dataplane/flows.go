package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/translate/envoy"
)

// The kernel remembers how a UDP flow was decided for as long as datagrams follow each other, so one that was decided before
// the table changed would never meet the new table:
//
//   - Flows to an element that went or was replaced are forgotten.
//   - So are others' flows to an element that came: kube-proxy, from which the Service may come over, has rewritten their
//     destination, and they would reach Envoy's namespace with a pod's address. What Fairlead forwards already is left alone,
//     as after an agent's restart, when all elements come and none is new.
//
// kube-proxy follows the same change some time later than Fairlead, and decides flows by its old rules until then. So others'
// flows are looked for again.

// lookAgainAfter is when others' flows to a new element are looked for again: kube-proxy writes its rules at most once a
// second unless it is told otherwise, and takes longer on a node with many Services.
var lookAgainAfter = []time.Duration{2 * time.Second, 15 * time.Second}

// laterFlows are others' flows that are looked for at a time.
type laterFlows struct {
	at    time.Time
	flows flowFilter
}

// lookAgain plans to look again for others' flows to elements that came at a time. What is planned for the same second is one
// look.
func (t *Table) lookAgain(added []element, now time.Time) {
	if !slices.ContainsFunc(added, func(e element) bool { return e.udp }) {
		return
	}
	for _, after := range lookAgainAfter {
		at := now.Add(after).Truncate(time.Second).Add(time.Second)
		i, planned := slices.BinarySearchFunc(t.later, at, func(l laterFlows, at time.Time) int { return l.at.Compare(at) })
		if !planned {
			t.later = slices.Insert(t.later, i, laterFlows{at: at})
		}
		t.later[i].flows.add(nil, added)
	}
}

// NextLook returns when LookAgain has something to do; the zero time if nothing is planned.
func (t *Table) NextLook() time.Time {
	if len(t.later) == 0 {
		return time.Time{}
	}
	return t.later[0].at
}

// LookAgain has the next Commit forget the flows that were to be looked for again by now.
func (t *Table) LookAgain(now time.Time) {
	for len(t.later) > 0 && !t.later[0].at.After(now) {
		t.stale.merge(t.later[0].flows)
		t.later = t.later[1:]
	}
}

// forgetFlows deletes the kernel's record of the flows that are stale. After an error they still are.
func (t *Table) forgetFlows() error {
	if t.stale.empty() {
		return nil
	}
	match := matcher{
		flowFilter: t.stale, mask: t.config.Mask, addresses: t.node.Addresses,
		aliases: []netip.Addr{envoy.NodePortAlias4, envoy.NodePortAlias6}, endpoints: t.picks.all(),
	}
	for _, a := range t.node.Aliases {
		match.aliases = append(match.aliases, a.Alias)
	}
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, match)
		if errors.Is(err, unix.ENOENT) {
			// A flow ended by itself between being found and being deleted; whether all others were deleted, the error hides.
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, match)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("forget UDP flows: %w", err))
		}
	}
	if len(errs) == 0 {
		t.stale = flowFilter{}
	}
	return errors.Join(errs...)
}

// flowFilter names UDP flows by where they were addressed to. The zero value names none.
type flowFilter struct {
	all    map[netip.AddrPort]bool // Flows to these, and with the zero address to NodePorts.
	others map[netip.AddrPort]bool // Of those to these only what others decided.
	ended  map[netip.AddrPort]bool // Flows that the kernel led to these endpoints.
}

func (f *flowFilter) empty() bool { return len(f.all)+len(f.others)+len(f.ended) == 0 }

// add adds the flows to elements that went, and those of others to elements that came.
func (f *flowFilter) add(removed, added []element) {
	note := func(set *map[netip.AddrPort]bool, elements []element) {
		for _, e := range elements {
			if e.udp && *set == nil {
				*set = map[netip.AddrPort]bool{}
			}
			if e.udp {
				(*set)[e.addr] = true
			}
		}
	}
	note(&f.all, removed)
	note(&f.others, added)
}

// end adds the flows that the kernel led to endpoints.
func (f *flowFilter) end(endpoints map[netip.AddrPort]bool) {
	if f.ended == nil {
		f.ended = map[netip.AddrPort]bool{}
	}
	maps.Copy(f.ended, endpoints)
}

// merge adds the others' flows that another filter names.
func (f *flowFilter) merge(o flowFilter) {
	if f.others == nil {
		f.others = map[netip.AddrPort]bool{}
	}
	maps.Copy(f.others, o.others)
}

// matcher tells which flows a filter names.
type matcher struct {
	flowFilter
	mask      uint32
	addresses []netip.Addr            // The node's, that NodePorts are served on.
	aliases   []netip.Addr            // What Fairlead itself rewrites destinations to on the way to Envoy,
	endpoints map[netip.AddrPort]bool // and without Envoy.
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (m matcher) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to, answering := addrPort(flow.Forward.DstIP, flow.Forward.DstPort), addrPort(flow.Reverse.SrcIP, flow.Reverse.SrcPort)
	named := func(set map[netip.AddrPort]bool) bool {
		return set[to] || set[netip.AddrPortFrom(netip.Addr{}, to.Port())] && slices.Contains(m.addresses, to.Addr())
	}
	return named(m.all) || named(m.others) && !m.ours(flow, to, answering) || to != answering && m.ended[answering]
}

// ours reports whether a flow is one that Fairlead forwards: to Envoy, by its mark and with the destination it had or one of
// Envoy's namespace, or rewritten to an endpoint.
func (m matcher) ours(flow *netlink.ConntrackFlow, to, answering netip.AddrPort) bool {
	byEnvoy := flow.Mark&m.mask != 0 && (answering.Addr() == to.Addr() || slices.Contains(m.aliases, answering.Addr()))
	return byEnvoy || to != answering && m.endpoints[answering]
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}
