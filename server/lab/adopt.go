package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Adopt returns a host for a network namespace that somebody else has made, such as a container runtime for a pod, given
// by a file that stands for it. The lab changes nothing in it, and Delete only forgets it. Names need not be unique.
func (l *Lab) Adopt(name, file string, ipv4, ipv6 netip.Addr) (*Host, error) {
	ns, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	nl, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("host %s: netlink: %w", name, err), ns.Close())
	}
	return &Host{Name: name, IPv4: ipv4, IPv6: ipv6, lab: l, ns: ns, nl: nl, adopted: true}, nil
}

// Holds reports whether one of the host's links has the address.
func (h *Host) Holds(a netip.Addr) (bool, error) {
	all, err := h.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return false, fmt.Errorf("host %s: %w", h.Name, err)
	}
	for _, have := range all {
		if ip, ok := netip.AddrFromSlice(have.IP); ok && ip.Unmap() == a {
			return true, nil
		}
	}
	return false, nil
}

// forget releases an adopted host.
func (h *Host) forget() error {
	h.nl.Close()
	return h.ns.Close()
}
