package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/vishvananda/netlink"
)

const bridgeName = "cni0"

// A routed pod's gateways are the same link-local addresses on every veth: the node answers for the first because it
// has proxy_arp, and has the second.
var (
	podGateway4 = netip.MustParseAddr("169.254.1.1")
	podGateway6 = netip.MustParseAddr("fe80::1")
)

// CNI is how a node attaches its pods.
type CNI int

// The ways that differ for a program that handles the pods' packets.
const (
	// Routed pods have a link of their own to the node, whose end there has no address, and the node has a route to
	// each: as with Calico and others.
	Routed CNI = iota
	// Bridged pods share the node's bridge cni0, as with the CNI's bridge plugin: packets between two of them need not
	// be routed.
	Bridged
)

// Node is a host that forwards for its pods.
type Node struct {
	*Host
	PodCIDR4, PodCIDR6 netip.Prefix

	lab    *Lab
	cni    CNI
	bridge *netlink.Bridge // Nil with Routed.

	pods    map[int]*Host // By number. Guarded by lab.mu, as lastPod is.
	lastPod int           // The number that was assigned last.
}

// forward makes a router of the host.
func (n *Node) forward() error {
	return n.Do(sysctls{
		"net/ipv4/ip_forward":          "1",
		"net/ipv6/conf/all/forwarding": "1",
	}.set)
}

// joinNodes adds the routes between this node's pods and the others'.
func (n *Node) joinNodes(others []*Node) error {
	var errs []error
	for _, o := range others {
		errs = append(errs,
			n.AddRoute(o.PodCIDR4, o.IPv4), n.AddRoute(o.PodCIDR6, o.IPv6),
			o.AddRoute(n.PodCIDR4, n.IPv4), o.AddRoute(n.PodCIDR6, n.IPv6))
	}
	return errors.Join(errs...)
}

// AddPod adds a pod to the node. The number is the last byte of its addresses, 2 to 250; 0 stands for the next free one
// after the last that was given out so, from 10 up. As with a CNI's address management an address is so not used again
// while neighbours remember its last owner's hardware address.
func (n *Node) AddPod(name string, number int) (*Host, error) {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	number, err := n.podNumber(number)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", name, err)
	}
	h, err := n.lab.newHost(name)
	if err != nil {
		return nil, err
	}
	n.pods[number] = h
	h.node, h.number = n, number
	h.IPv4 = withNumber(n.PodCIDR4, number)
	h.IPv6 = withNumber(n.PodCIDR6, number)
	h.port, h.portIn = fmt.Sprintf("pod%d", number), n.nl
	attach := n.attachRouted
	if n.cni == Bridged {
		attach = n.attachBridged
	}
	if err := attach(h); err != nil {
		return nil, errors.Join(fmt.Errorf("pod %s on node %s: %w", name, n.Name, err), n.lab.remove(h))
	}
	return h, nil
}

func (n *Node) podNumber(wanted int) (int, error) {
	if wanted != 0 {
		if wanted < 2 || wanted > maxPod {
			return 0, fmt.Errorf("number %d is not between 2 and %d", wanted, maxPod)
		}
		if n.pods[wanted] != nil {
			return 0, fmt.Errorf("number %d is pod %s's on node %s", wanted, n.pods[wanted].Name, n.Name)
		}
		return wanted, nil
	}
	for i := range maxPod - firstPod + 1 {
		number := firstPod + (n.lastPod-firstPod+1+i)%(maxPod-firstPod+1)
		if n.pods[number] == nil {
			n.lastPod = number
			return number, nil
		}
	}
	return 0, fmt.Errorf("node %s has no free number from %d to %d", n.Name, firstPod, maxPod)
}

// withNumber returns the address of a prefix that ends in the number's decimal digits, for either family.
func withNumber(p netip.Prefix, number int) netip.Addr {
	if p.Addr().Is6() {
		return netip.MustParseAddr(fmt.Sprintf("%s%d", p.Addr(), number))
	}
	b := p.Addr().As4()
	b[3] = byte(number)
	return netip.AddrFrom4(b)
}

// attachRouted gives the pod single addresses and a link of its own.
func (n *Node) attachRouted(h *Host) error {
	if err := addVeth(n.nl, h.port, 0, h); err != nil {
		return err
	}
	port, err := n.nl.LinkByName(h.port)
	if err != nil {
		return fmt.Errorf("link %s: %w", h.port, err)
	}
	err = n.Do(sysctls{
		"net/ipv4/conf/" + h.port + "/proxy_arp":    "1",
		"net/ipv4/neigh/" + h.port + "/proxy_delay": "0", // The default makes the first packet wait up to 0.8 s.
	}.set)
	if err != nil {
		return err
	}
	err = errors.Join(
		addAddress(n.nl, port, netip.PrefixFrom(podGateway6, 64)),
		addRoute(n.nl, port, netip.PrefixFrom(h.IPv4, 32), netip.Addr{}),
		addRoute(n.nl, port, netip.PrefixFrom(h.IPv6, 128), netip.Addr{}))
	if err != nil {
		return err
	}
	eth0, err := h.upWith(netip.PrefixFrom(h.IPv4, 32), netip.PrefixFrom(h.IPv6, 128))
	if err != nil {
		return err
	}
	return errors.Join(
		addRoute(h.nl, eth0, netip.PrefixFrom(podGateway4, 32), netip.Addr{}),
		addRoute(h.nl, eth0, defaultRoute4, podGateway4),
		addRoute(h.nl, eth0, defaultRoute6, podGateway6))
}

// addBridge makes the bridge of the node's pods.
func (n *Node) addBridge() (err error) {
	if err := n.Do(filterBridged); err != nil {
		return err
	}
	n.bridge, err = addBridge(n.nl, bridgeName,
		netip.PrefixFrom(withNumber(n.PodCIDR4, 1), 24), netip.PrefixFrom(withNumber(n.PodCIDR6, 1), 64))
	return err
}

// attachBridged gives the pod addresses in the node's pod network and a port of the bridge.
func (n *Node) attachBridged(h *Host) error {
	if err := addVeth(n.nl, h.port, n.bridge.Index, h); err != nil {
		return err
	}
	eth0, err := h.upWith(netip.PrefixFrom(h.IPv4, 24), netip.PrefixFrom(h.IPv6, 64))
	if err != nil {
		return err
	}
	return errors.Join(
		addRoute(h.nl, eth0, defaultRoute4, withNumber(n.PodCIDR4, 1)),
		addRoute(h.nl, eth0, defaultRoute6, withNumber(n.PodCIDR6, 1)))
}

// filterBridged shows bridged packets to the IP hooks, as Kubernetes asks of nodes whose pods sit on a bridge. Kernels
// without the br_netfilter module cannot; there the packets pass unseen.
func filterBridged() error {
	err := sysctls{
		"net/bridge/bridge-nf-call-iptables":  "1",
		"net/bridge/bridge-nf-call-ip6tables": "1",
	}.set()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
