package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	defaultRoute4 = netip.MustParsePrefix("0.0.0.0/0")
	defaultRoute6 = netip.MustParsePrefix("::/0")
)

// sysctls maps paths under /proc/sys to values.
type sysctls map[string]string

// hostSysctls are set in every namespace before it has links, which inherit the defaults.
var hostSysctls = sysctls{
	"net/ipv6/conf/all/disable_ipv6":     "0",
	"net/ipv6/conf/default/disable_ipv6": "0",
	"net/ipv6/conf/default/accept_dad":   "0", // An address that is checked for duplicates is unusable for a second.
	"net/ipv6/conf/default/accept_ra":    "0",
	// The kernel takes the stricter of all and the interface's own, so both are needed.
	"net/ipv4/conf/all/rp_filter":     "0",
	"net/ipv4/conf/default/rp_filter": "0",
}

// set writes the values in the calling thread's network namespace.
func (s sysctls) set() error {
	var errs []error
	for name, value := range s {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
			errs = append(errs, fmt.Errorf("sysctl: %w", err))
		}
	}
	return errors.Join(errs...)
}

// addVeth makes the host's eth0 and its other end, called port, in the namespace of nl and on the switch of that index
// there; 0 is none.
func addVeth(nl *netlink.Handle, port string, master int, h *Host) error {
	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name, veth.MasterIndex = port, master
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(h.ns.Fd())
	if err := nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("link %s: %w", port, err)
	}
	if err := nl.LinkSetUp(veth); err != nil {
		return fmt.Errorf("link %s up: %w", port, err)
	}
	return nil
}

// addBridge makes a switch that forwards from the first moment, with addresses of its own.
func addBridge(nl *netlink.Handle, name string, addresses ...netip.Prefix) (*netlink.Bridge, error) {
	snooping := false // Without a multicast router it would only delay neighbour discovery.
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &snooping}
	bridge.Name = name
	if err := nl.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	// A bridge whose hardware address is not set takes the lowest of its ports', a different one as they come and go, and
	// those who remember the last one no longer reach it.
	created, err := nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	if err := nl.LinkSetHardwareAddr(bridge, created.Attrs().HardwareAddr); err != nil {
		return nil, fmt.Errorf("bridge %s: hardware address: %w", name, err)
	}
	if err := nl.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("bridge %s up: %w", name, err)
	}
	for _, a := range addresses {
		if err := addAddress(nl, bridge, a); err != nil {
			return nil, err
		}
	}
	return bridge, nil
}

// upWith brings the host's loopback and eth0 up, gives eth0 its addresses, and waits until packets pass.
func (h *Host) upWith(addresses ...netip.Prefix) (eth0 netlink.Link, err error) {
	for _, name := range []string{"lo", "eth0"} {
		if eth0, err = h.nl.LinkByName(name); err != nil {
			return nil, fmt.Errorf("link %s: %w", name, err)
		}
		if err := h.nl.LinkSetUp(eth0); err != nil {
			return nil, fmt.Errorf("link %s up: %w", name, err)
		}
	}
	for _, a := range addresses {
		if err := addAddress(h.nl, eth0, a); err != nil {
			return nil, err
		}
	}
	return eth0, errors.Join(waitUp(h.nl, "eth0"), waitUp(h.portIn, h.port))
}

// patience bounds the waits for what the kernel does in the background; each takes milliseconds.
const patience = 5 * time.Second

// waitFor polls a condition on a link until it holds.
func waitFor(nl *netlink.Handle, name, what string, condition func(netlink.Link) bool) error {
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for end := time.Now().Add(patience); ; <-poll.C {
		link, err := nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		if condition(link) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("link %s is not %s after %s", name, what, patience)
		}
	}
}

// waitUp waits until a link is operational. The kernel notices in the background that both ends of a veth are up; what
// is sent before is lost, and with it a second until neighbour discovery tries again.
func waitUp(nl *netlink.Handle, name string) error {
	return waitFor(nl, name, "up", func(l netlink.Link) bool { return l.Attrs().OperState == netlink.OperUp })
}

// addAddress adds an address to a link that is up, and returns when it can be used.
func addAddress(nl *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	name := link.Attrs().Name
	if err := nl.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, name, err)
	}
	// An IPv6 address is used as a source at once, but its local route comes in the background, and until then an
	// answer to it, such as a neighbour's advertisement, is lost.
	return waitFor(nl, name, "ready for "+p.String(), func(l netlink.Link) bool {
		routes, err := nl.RouteGetWithOptions(p.Addr().AsSlice(), &netlink.RouteGetOptions{OifIndex: l.Attrs().Index})
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	})
}

// addRoute sends a prefix by a link: to a neighbour on it, or without one to whoever on the link has the address.
func addRoute(nl *netlink.Handle, link netlink.Link, dst netip.Prefix, via netip.Addr) error {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst)}
	if via.IsValid() {
		route.Gw = via.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if err := nl.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s via %s %s: %w", dst, link.Attrs().Name, via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
