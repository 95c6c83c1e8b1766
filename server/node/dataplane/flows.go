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
)

// conntrack keeps the decision for a UDP flow for as long as datagrams follow each other, so a flow that was decided before the
// table changed would never be looked up in the new table:
//
//   - Commit deletes flows to an element that was removed or replaced.
//   - It deletes others' flows to an element that was added: kube-proxy, from which the Service may come over, has rewritten their
//     destination by its own rules. Flows that Fairlead already forwards stay, as after an agent's restart, when every element is
//     added and none is new.
//
// kube-proxy applies the same change some time later than Fairlead, and decides flows by its old rules until then. So the agent
// looks for others' flows again.

// lookAgainAfter is when the agent looks again for others' flows to a new element: kube-proxy writes its rules at most once a
// second by default, and takes longer on a node with many Services.
var lookAgainAfter = []time.Duration{2 * time.Second, 15 * time.Second}

// laterFlows are others' flows to look for at one time.
type laterFlows struct {
	at    time.Time
	flows flowFilter
}

// lookAgain plans to look again for others' flows to elements that were added now. Plans for the same second are one look.
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

// NextLook returns when LookAgain is due; the zero time if nothing is planned.
func (t *Table) NextLook() time.Time {
	if len(t.later) == 0 {
		return time.Time{}
	}
	return t.later[0].at
}

// LookAgain has the next Commit delete the flows whose planned look is due.
func (t *Table) LookAgain(now time.Time) {
	for len(t.later) > 0 && !t.later[0].at.After(now) {
		t.stale.merge(t.later[0].flows)
		t.later = t.later[1:]
	}
}

// forgetFlows deletes stale flows from conntrack. After an error they stay stale, so that the next Commit tries again.
func (t *Table) forgetFlows() error {
	if t.stale.empty() {
		return nil
	}
	match := matcher{flowFilter: t.stale, addresses: t.node.Addresses, endpoints: t.picks.all()}
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, match)
		if errors.Is(err, unix.ENOENT) {
			// A flow ended by itself between the listing and its deletion; the error hides whether all others were deleted.
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, match)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("conntrack: delete UDP flows: %w", err))
		}
	}
	if len(errs) == 0 {
		t.stale = flowFilter{}
	}
	return errors.Join(errs...)
}

// flowFilter selects UDP flows by their original destination. The zero value selects none.
type flowFilter struct {
	all    map[netip.AddrPort]bool // Flows to these; the zero address stands for NodePorts.
	others map[netip.AddrPort]bool // Only those flows to these that others decided.
	ended  map[netip.AddrPort]bool // Flows that the kernel forwards to these endpoints.
}

func (f *flowFilter) empty() bool { return len(f.all)+len(f.others)+len(f.ended) == 0 }

// add adds the flows to removed elements, and others' flows to added elements.
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

// end adds the flows that the kernel forwards to endpoints.
func (f *flowFilter) end(endpoints map[netip.AddrPort]bool) {
	if f.ended == nil {
		f.ended = map[netip.AddrPort]bool{}
	}
	maps.Copy(f.ended, endpoints)
}

// merge adds the others' flows that another filter selects.
func (f *flowFilter) merge(o flowFilter) {
	if f.others == nil {
		f.others = map[netip.AddrPort]bool{}
	}
	maps.Copy(f.others, o.others)
}

// matcher matches the flows that a filter selects.
type matcher struct {
	flowFilter
	addresses []netip.Addr            // Those of the node on which NodePorts are served.
	endpoints map[netip.AddrPort]bool // From which the kernel picks.
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
	ours := to != answering && m.endpoints[answering]
	return named(m.all) || named(m.others) && !ours || to != answering && m.ended[answering]
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}
