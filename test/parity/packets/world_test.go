package packets

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// The nodes' names, in both worlds: the node that is looked at, and the other one.
const nodeHere, nodeThere = "n1", "n2"

// origin is where a client is.
type origin string

// The origins.
const (
	fromPod       origin = "pod"
	fromEndpoint  origin = "the local endpoint's pod"
	fromNode      origin = "node"
	fromOutside   origin = "outside"
	fromOtherPod  origin = "pod on the other node"
	fromOtherNode origin = "other node"
)

var origins = []origin{fromPod, fromEndpoint, fromNode, fromOutside, fromOtherPod, fromOtherNode}

// world is a cluster: two nodes whose pods have links of their own, on each a pod that serves and one that only asks, a host
// outside that takes the first node for its way to Services, and a host for the control plane.
type world struct {
	name    string
	lab     *lab.Lab
	nodes   []*lab.Node
	clients map[origin]*lab.Host
	servers map[place]*lab.Host
	control *lab.Host
}

// newWorld makes hosts. Two worlds of one process have to name them differently, which the suffix does.
func newWorld(name, suffix string) (*world, error) {
	w := &world{name: name, clients: map[origin]*lab.Host{}, servers: map[place]*lab.Host{}}
	err := apart(func() (err error) {
		w.lab, err = lab.New()
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, n := range []struct {
		name           string
		pod, host      place
		client, myself origin
	}{
		{nodeHere, here, hereHost, fromPod, fromNode},
		{nodeThere, there, thereHost, fromOtherPod, fromOtherNode},
	} {
		node, err := w.lab.AddNode(n.name+suffix, lab.Routed)
		if err != nil {
			return w, err
		}
		w.nodes = append(w.nodes, node)
		w.servers[n.host], w.clients[n.myself] = node.Host, node.Host
		if w.servers[n.pod], err = node.AddPod(fmt.Sprintf("server-%d%s", i, suffix), 0); err != nil {
			return w, err
		}
		if w.clients[n.client], err = node.AddPod(fmt.Sprintf("client-%d%s", i, suffix), 0); err != nil {
			return w, err
		}
	}
	w.clients[fromEndpoint] = w.servers[here]
	if w.control, err = w.lab.AddOutside("control-plane" + suffix); err != nil {
		return w, err
	}
	if w.clients[fromOutside], err = w.lab.AddOutside("outside" + suffix); err != nil {
		return w, err
	}
	return w, w.furnish()
}

// apart runs f in a new network namespace. A lab's switch is in that of the thread that makes it.
func apart(f func() error) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // For good: the thread ends with the goroutine, since it is in a strange network.
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		failed <- err
	}()
	return <-failed
}

// furnish starts the servers, and sets routes and limits.
func (w *world) furnish() error {
	var errs []error
	for _, p := range places {
		h := w.servers[p]
		_, errTCP := h.ServeTCP(string(p), targetPort(corev1.ProtocolTCP, p.hostNetwork()))
		_, errUDP := h.ServeUDP(string(p), targetPort(corev1.ProtocolUDP, p.hostNetwork()))
		_, errSCTP := h.ServeSCTP(string(p), targetPort(corev1.ProtocolSCTP, p.hostNetwork()))
		errs = append(errs, errTCP, errUDP, errSCTP, h.Do(unlimitedICMP))
	}
	for _, h := range w.clients {
		errs = append(errs, h.Do(unlimitedICMP))
	}
	for _, prefix := range servicePrefixes {
		errs = append(errs, w.clients[fromOutside].AddRoute(prefix, address(w.nodes[0].Host, familyOf(prefix.Addr()))))
	}
	return errors.Join(errs...)
}

// unlimitedICMP lifts the kernel's limits of ICMP errors, those to one client and those to all: beyond them a refusal looks like
// a packet that was dropped. A type that is not in the mask is not limited; there is no type 200.
func unlimitedICMP() error {
	var errs []error
	for name, value := range map[string]string{
		"net/ipv4/icmp_ratelimit": "0", "net/ipv4/icmp_ratemask": "0",
		"net/ipv6/icmp/ratelimit": "0", "net/ipv6/icmp/ratemask": "200",
	} {
		errs = append(errs, os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644))
	}
	return errors.Join(errs...)
}

// close removes everything.
func (w *world) close() error {
	if w == nil || w.lab == nil {
		return nil
	}
	return w.lab.Close()
}

// source says in a word whose an address is that an endpoint saw.
func (w *world) source(client *lab.Host, seen netip.Addr) string {
	for _, h := range []struct {
		host *lab.Host
		name string
	}{{client, "client"}, {w.nodes[0].Host, "node"}, {w.nodes[1].Host, "other node"}} {
		if seen == h.host.IPv4 || seen == h.host.IPv6 {
			return h.name
		}
	}
	return seen.String()
}

func address(h *lab.Host, family corev1.IPFamily) netip.Addr {
	if family == corev1.IPv6Protocol {
		return h.IPv6
	}
	return h.IPv4
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}
