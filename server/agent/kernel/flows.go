package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetFlows deletes the kernel's record of the UDP flows to elements that were removed or replaced. A UDP flow lasts as
// long as datagrams follow each other, so one that was decided under the old element would otherwise never meet the new.
func forgetFlows(elements []element) error {
	filter := flowFilter{addresses: map[netip.AddrPort]bool{}, ports: map[uint16]bool{}}
	for _, e := range elements {
		switch {
		case !e.udp:
		case e.addr.Addr().IsValid():
			filter.addresses[e.addr] = true
		default:
			filter.ports[e.addr.Port()] = true
		}
	}
	if len(filter.addresses)+len(filter.ports) == 0 {
		return nil
	}
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter); err != nil {
			errs = append(errs, fmt.Errorf("forget UDP flows: %w", err))
		}
	}
	return errors.Join(errs...)
}

// flowFilter matches UDP flows by where they were addressed to.
type flowFilter struct {
	addresses map[netip.AddrPort]bool
	ports     map[uint16]bool // NodePorts, on any address: one too many forgotten is only looked up again.
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	addr, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	return f.ports[flow.Forward.DstPort] || f.addresses[netip.AddrPortFrom(addr.Unmap(), flow.Forward.DstPort)]
}
