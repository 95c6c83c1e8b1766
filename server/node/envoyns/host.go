package envoyns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// families are the address families of rules and routes, with the destination that matches everything.
var families = []struct {
	family int
	all    *net.IPNet
}{
	{netlink.FAMILY_V4, &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}},
	{netlink.FAMILY_V6, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}},
}

// Build joins the network namespace at ns to the calling process's as Envoy instance id, by links with an MTU in bytes. It first
// removes what an earlier Envoy instance of the same number left, and on an error everything that it built.
func Build(c Config, id ID, ns, mtu int) error {
	if err := Remove(c, id); err != nil {
		return err
	}
	err := build(c, id, ns, mtu)
	if err != nil {
		err = errors.Join(fmt.Errorf("build the links of Envoy instance %d: %w", id, err), Remove(c, id))
	}
	return err
}

func build(c Config, id ID, ns, mtu int) error {
	ipv6 := IPv6()
	for _, class := range frontendpb.Classes {
		if err := addVeth(id, class, ns, mtu); err != nil {
			return fmt.Errorf("veth %s: %w", LinkName(id, class), err)
		}
	}
	if err := inNamespace(ns, func() error { return buildInside(id, ipv6) }); err != nil {
		return fmt.Errorf("inside the namespace: %w", err)
	}
	for _, class := range frontendpb.Classes {
		if _, err := routeTo(c, id, class, ipv6); err != nil {
			return fmt.Errorf("route to %s: %w", LinkName(id, class), err)
		}
	}
	return nil
}

// addVeth makes a class's veth pair, one end in the namespace at ns.
func addVeth(id ID, class frontendpb.Class, ns, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = LinkName(id, class), mtu, hardwareAddr(id, class, hostEnd)
	return netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: class.Label(), PeerMTU: uint32(mtu), PeerHardwareAddr: hardwareAddr(id, class, proxyEnd),
		PeerNamespace: netlink.NsFd(ns),
	})
}

// hostSysctls returns the settings of the host's end of a veth. Packets arrive there with sources that the host routes
// over other links (pods, clients), and, after conntrack has undone a NodePort's NAT, with the host's own.
func hostSysctls(link string, ipv6 bool) [][2]string {
	// The kernel takes the maximum of a link's and all links' rp_filter, and 2 (loose) is the larger number: where all links
	// are strict, loose is the most lenient setting of one.
	lenient := "0"
	if all, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/rp_filter"); err == nil && strings.TrimSpace(string(all)) != "0" {
		lenient = "2"
	}
	settings := [][2]string{{"ipv4/conf/" + link + "/rp_filter", lenient}, {"ipv4/conf/" + link + "/accept_local", "1"}}
	if ipv6 {
		settings = append(settings, [2]string{"ipv6/conf/" + link + "/accept_ra", "0"})
	}
	return settings
}

// Remove deletes an Envoy instance's links, rules and routes on the host. It is no error if they do not exist.
func Remove(c Config, id ID) error {
	var errs []error
	for _, class := range frontendpb.Classes {
		if link, err := netlink.LinkByName(LinkName(id, class)); err == nil {
			errs = append(errs, ignoreGone(netlink.LinkDel(link)))
		}
	}
	for _, f := range families {
		if f.family == netlink.FAMILY_V6 && !IPv6() {
			continue
		}
		errs = append(errs, removePolicies(c, id, f.family))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the links of Envoy instance %d: %w", id, err)
	}
	return nil
}

// Existing returns the Envoy instances whose Envoy is alive, in order: a namespace, and with it the far end of its veths,
// exists as long as a process in it.
func Existing() ([]ID, error) {
	links, err := Undisturbed(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var ids []ID
	for _, l := range links {
		if id, ok := parseLinkName(l.Attrs().Name); ok && l.Type() == "veth" {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// RemoveAll deletes everything of every Envoy instance from the host.
func RemoveAll(c Config) error {
	var errs []error
	for id := ID(1); id <= MaxID; id++ {
		errs = append(errs, Remove(c, id))
	}
	return errors.Join(errs...)
}

// dumps is how often Undisturbed requests a list before it returns the error.
const dumps = 10

// Undisturbed requests a list from the kernel again if it changed during the dump, as links do when several pods start at once.
func Undisturbed[T any](list func() ([]T, error)) (found []T, err error) {
	for range dumps {
		if found, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return found, err
}

// ignoreGone returns nil for the errors of deleting what no longer exists.
func ignoreGone(err error) error {
	for _, gone := range []error{unix.ENOENT, unix.ESRCH, unix.ENODEV} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}

// Repair restores the missing addresses, routes and rules of an Envoy instance on the host, and sets its links up. Network managers
// are known to remove what they did not make. It reports whether something was missing.
func Repair(c Config, id ID) (missing bool, err error) {
	ipv6 := IPv6()
	for _, class := range frontendpb.Classes {
		restored, err := routeTo(c, id, class, ipv6)
		if err != nil {
			return missing, fmt.Errorf("repair the links of Envoy instance %d: %s: %w", id, LinkName(id, class), err)
		}
		missing = missing || restored
	}
	return missing, nil
}

// FindMTU returns the MTU of the link that has one of the addresses, the node's own, in bytes; 1500 where none has. With it on the
// veths, what others send to the node comes in to Envoy. Pods' links are smaller in overlay networks: TCP finds that out from
// its peers.
func FindMTU(addresses []netip.Addr) int {
	for _, a := range addresses {
		family := netlink.FAMILY_V4
		if a.Is6() {
			family = netlink.FAMILY_V6
		}
		assigned, err := netlink.AddrList(nil, family)
		if err != nil {
			continue
		}
		for _, own := range assigned {
			if ip, _ := netip.AddrFromSlice(own.IP); ip.Unmap() != a {
				continue
			}
			if link, err := netlink.LinkByIndex(own.LinkIndex); err == nil && link.Attrs().MTU >= minMTU && link.Attrs().Flags&net.FlagLoopback == 0 {
				return link.Attrs().MTU
			}
		}
	}
	return 1500
}
