// Package lab builds a small cluster's network on one machine: nodes, pods and hosts outside the cluster, each a
// network namespace, connected as in a real cluster. The demo and the tests that need real packets run on it.
//
// In comes a topology, host by host. Out go sockets and processes inside those hosts: a goroutine of this process can be
// a pod's server or client, so a pod needs no process of its own. The package never changes the machine's own network:
// [New] works only in the namespaces that [Isolated] makes. It knows no Services.
//
// Address plan (node N = 1, 2, … in order of creation; pod P = 10, 11, … on its node):
//
//	hosts      172.30.0.0/24    fd00:30::/64     nodes .N and ::N; outside .100, .101 … and ::100, ::101 …
//	pods       10.244.N.0/24    fd00:10:244:N::/64   pod .P and ::P; bridge cni0 .1 and ::1
//	Services   10.96.0.0/16     fd00:96::/112    no route: for the program under test
//	elsewhere  172.30.0.254     fd00:30::fe      every host's default gateway; drops what it is sent
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const (
	firstOutside = 100 // Number of the first host outside the cluster.
	firstPod     = 10  // Number of a node's first pod.
	maxNodes     = firstOutside - 1
	maxOutside   = 250 // Numbers must fit the last byte of an IPv4 address, below those with a meaning.
	maxPod       = 250
	fabricName   = "fabric"
)

var (
	elsewhere4 = netip.MustParseAddr("172.30.0.254")
	elsewhere6 = netip.MustParseAddr("fd00:30::fe")
)

// Lab is one such network. Its methods may be called from any goroutine.
type Lab struct {
	// PID is the process id of the world's first process as seen from outside, for nsenter.
	PID int

	ns     *os.File // The namespace of this process, which holds the switch that joins the hosts.
	nl     *netlink.Handle
	fabric *netlink.Bridge

	mu          sync.Mutex // Guards the following and every change of the topology.
	hosts       map[string]*Host
	nodes       []*Node // Those that are not deleted.
	lastNode    int     // No number is used twice.
	lastOutside int
}

// New returns a lab without hosts. It fails outside the world that Isolated makes.
func New() (*Lab, error) {
	pid := outsidePID()
	if pid == 0 {
		return nil, errors.New("lab: this process has the machine's own network: call lab.Isolated first")
	}
	ns, err := currentNamespace()
	if err != nil {
		return nil, err
	}
	l := &Lab{PID: pid, ns: ns, hosts: map[string]*Host{}, lastOutside: firstOutside - 1}
	if l.nl, err = netlink.NewHandleAt(netns.NsHandle(ns.Fd())); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: netlink: %w", err), ns.Close())
	}
	if err := l.addFabric(); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: %w", err), l.Close())
	}
	return l, nil
}

// addFabric makes the switch. Its address is the hosts' default gateway, which forwards nothing: a connection to an address
// that no host has hangs, as it does behind a real network's edge.
func (l *Lab) addFabric() error {
	err := sysctls{
		"net/ipv4/ip_forward":                "0",
		"net/ipv6/conf/all/disable_ipv6":     "0",
		"net/ipv6/conf/default/disable_ipv6": "0",
		"net/ipv6/conf/default/accept_dad":   "0",
	}.set()
	if err != nil {
		return err
	}
	lo, err := l.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("link lo: %w", err)
	}
	if err := l.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("link lo: %w", err)
	}
	l.fabric, err = addBridge(l.nl, fabricName, netip.PrefixFrom(elsewhere4, 24), netip.PrefixFrom(elsewhere6, 64))
	return err
}

// AddNode adds a node: it forwards, has routes to every other node's pods, and has no pods yet.
func (l *Lab) AddNode(name string, cni CNI) (*Node, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lastNode == maxNodes {
		return nil, fmt.Errorf("node %s: a lab has at most %d nodes", name, maxNodes)
	}
	number := l.lastNode + 1
	host, err := l.addHost(name, number)
	if err != nil {
		return nil, err
	}
	l.lastNode = number
	n := &Node{
		Host:     host,
		PodCIDR4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(number), 0}), 24),
		PodCIDR6: netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", number)),
		lab:      l,
		cni:      cni,
		pods:     map[int]*Host{},
		lastPod:  firstPod - 1,
	}
	err = errors.Join(n.forward(), n.joinNodes(l.nodes))
	if cni == Bridged && err == nil {
		err = n.addBridge()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("node %s: %w", name, err), l.remove(host))
	}
	l.nodes = append(l.nodes, n)
	return n, nil
}

// AddOutside adds a host on the nodes' network that is not part of the cluster: it has no route to pods or Services.
func (l *Lab) AddOutside(name string) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lastOutside == maxOutside {
		return nil, fmt.Errorf("host %s: a lab has at most %d hosts outside", name, maxOutside-firstOutside+1)
	}
	host, err := l.addHost(name, l.lastOutside+1)
	if err != nil {
		return nil, err
	}
	l.lastOutside++
	return host, nil
}

// addHost makes a namespace and plugs it into the switch under a number of the address plan. Caller holds mu.
func (l *Lab) addHost(name string, number int) (*Host, error) {
	h, err := l.newHost(name)
	if err != nil {
		return nil, err
	}
	h.IPv4 = netip.AddrFrom4([4]byte{172, 30, 0, byte(number)})
	// The number is written in decimal digits, so that both addresses of a host end alike.
	h.IPv6 = netip.MustParseAddr(fmt.Sprintf("fd00:30::%d", number))
	h.port = fmt.Sprintf("port%d", number)
	h.portIn = l.nl
	err = l.connect(h)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("host %s: %w", name, err), l.remove(h))
	}
	return h, nil
}

func (l *Lab) connect(h *Host) error {
	if err := addVeth(l.nl, h.port, l.fabric.Index, h); err != nil {
		return err
	}
	eth0, err := h.upWith(netip.PrefixFrom(h.IPv4, 24), netip.PrefixFrom(h.IPv6, 64))
	if err != nil {
		return err
	}
	return errors.Join(
		addRoute(h.nl, eth0, defaultRoute4, elsewhere4),
		addRoute(h.nl, eth0, defaultRoute6, elsewhere6))
}

// Host returns the node, pod or outside host of that name, or nil.
func (l *Lab) Host(name string) *Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hosts[name]
}

// EnterCommand returns the command line that runs a program in a host from outside: the program follows it.
func (l *Lab) EnterCommand(host string) string {
	flags := ""
	if owned, err := os.ReadFile("/proc/self/uid_map"); err == nil && !strings.Contains(string(owned), wholeMachine) {
		flags = " --user --preserve-credentials" // Isolated has made a user namespace, too.
	}
	return fmt.Sprintf("nsenter --target %d%s --net=/proc/%d/root%s/%s", l.PID, flags, l.PID, namespaceDir, host)
}

// wholeMachine is the number of user ids that a process outside all user namespaces sees.
const wholeMachine = "4294967295"

// remove removes a host, a node's pods before it, and closes their servers. Caller holds mu.
func (l *Lab) remove(h *Host) error {
	if l.hosts[h.Name] != h {
		return nil // Deleted before.
	}
	var errs []error
	if i := slices.IndexFunc(l.nodes, func(n *Node) bool { return n.Host == h }); i >= 0 {
		for _, pod := range l.nodes[i].pods {
			errs = append(errs, l.remove(pod))
		}
		l.nodes = slices.Delete(l.nodes, i, i+1)
	}
	if h.node != nil {
		delete(h.node.pods, h.number)
	}
	delete(l.hosts, h.Name)
	return errors.Join(append(errs, h.destroy())...)
}

// Close removes all hosts, their servers and the switch. Processes that still run in a host keep its namespace alive;
// they end with this process at the latest.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for len(l.nodes) > 0 {
		errs = append(errs, l.remove(l.nodes[0].Host))
	}
	for _, h := range l.hosts {
		errs = append(errs, l.remove(h))
	}
	if l.fabric != nil {
		errs = append(errs, l.nl.LinkDel(l.fabric))
		l.fabric = nil
	}
	l.nl.Close()
	return errors.Join(append(errs, l.ns.Close())...)
}
