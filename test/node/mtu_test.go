package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
)

const (
	nodeMTU = 1500
	podMTU  = 1450 // What VXLAN over IPv4 leaves of it.
)

// TestSmallPods exchanges more than a packet of a pod's link takes, whose MTU is smaller than the node's, as in every overlay network.
func TestSmallPods(t *testing.T) {
	c := theCluster
	for _, p := range c.pairs {
		t.Run(p.String(), func(t *testing.T) {
			a := c.newApp(t, p)
			bulk := &service{name: "small-tcp", number: 1502, protocol: corev1.ProtocolTCP}
			for i, s := range p.servers {
				bulk.endpoints = append(bulk.endpoints, endpoint{host: s, node: p.nodes[i]})
			}
			// Its endpoint is on the client's own bridge, where there is one.
			near := &service{name: "small-near", number: 1503, protocol: corev1.ProtocolUDP, endpoints: []endpoint{{host: p.servers[0], node: p.nodes[0]}}}
			c.apply(t, a.tcp, a.udp, bulk, near)
			hosts := []*lab.Host{p.clients[0], p.servers[0], p.servers[1]}
			for _, pod := range a.pods {
				hosts = append(hosts, pod.Host)
			}
			shape := func(mtu int) {
				for _, h := range hosts {
					setMTU(t, h, mtu, "")
				}
				for _, n := range p.nodes {
					setMTU(t, n.Host, mtu, "pod")
					setMTU(t, n.Host, mtu, "cni")
				}
			}
			shape(podMTU)
			defer shape(nodeMTU)
			for _, n := range p.nodes {
				hideBridges(t, n.Host)
			}
			for _, family := range families {
				requests := []lab.Request{{Network: lab.TCP, To: bulk.target(clusterIP, family, p.nodes[0]), Size: 1 << 20}}
				for _, size := range []int{1200, 1380, 1400, 1420, 1440, 1472, 8000} {
					for _, s := range []*service{a.udp, near} {
						requests = append(requests, lab.Request{Network: lab.UDP, To: s.target(clusterIP, family, p.nodes[0]), Size: size})
					}
				}
				for _, from := range []*lab.Host{p.clients[0], p.nodes[0].Host} {
					for _, r := range requests {
						// Of a node's own datagram over IPv6 that its destination NAT rewrites and a router finds too long the kernel learns
						// nothing: each attempt gets the error, as with kube-proxy's rules.
						if from == p.nodes[0].Host && family == corev1.IPv6Protocol && r.Network == lab.UDP && r.Size > podMTU-48 && r.Size <= nodeMTU-48 {
							continue
						}
						for range 2 * len(a.pods) {
							if err := askAgain(t, from, r); err != nil {
								t.Errorf("%s, %s, %d bytes: %v", from.Name, r.Network, r.Size, err)
							}
						}
					}
				}
			}
		})
	}
}

// askAgain asks up to four times: a datagram may be lost while its sender learns the path's MTU.
func askAgain(t *testing.T, from *lab.Host, r lab.Request) (err error) {
	for range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err = from.Ask(ctx, r)
		cancel()
		if err == nil {
			return nil
		}
	}
	return err
}

// hideBridges keeps what a host's bridges forward from netfilter until the test ends. The module br_netfilter, if it is loaded, joins
// fragments of IPv6 on the way into a bridge and forgets their size, so that a router after it finds them too long, Service or not.
func hideBridges(t *testing.T, h *lab.Host) {
	t.Helper()
	const setting = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
	set := func(value string) {
		err := h.Do(func() error { return os.WriteFile(setting, []byte(value), 0) })
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	set("0")
	t.Cleanup(func() { set("1") })
}

// setMTU sets the MTU of a host's links whose names begin so, other than lo.
func setMTU(t *testing.T, h *lab.Host, mtu int, prefix string) {
	t.Helper()
	err := h.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if name := l.Attrs().Name; name != "lo" && strings.HasPrefix(name, prefix) {
				if err := netlink.LinkSetMTU(l, mtu); err != nil {
					return fmt.Errorf("MTU of %s: %w", name, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
