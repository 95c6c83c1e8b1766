package node

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
	"github.com/fairlead/fairlead/server/node"
)

const (
	nodeMTU = 1500
	podMTU  = 1450 // What VXLAN over IPv4 leaves of it.
)

// TestSmallPods asks with datagrams of which the request or the answer does not fit into a packet of a pod's link, whose MTU
// is smaller than the node's, as in every overlay network.
func TestSmallPods(t *testing.T) {
	c := theCluster
	for _, p := range c.pairs {
		t.Run(p.String(), func(t *testing.T) {
			a := c.newApp(t, p)
			hosts := []*lab.Host{p.clients[0]}
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
					c.replaceEnvoy(t, n) // The one that starts now takes the links as they are.
				}
			}
			shape(podMTU)
			defer shape(nodeMTU)
			for _, family := range families {
				for _, from := range []*lab.Host{p.clients[0], p.nodes[0].Host} {
					for _, size := range []int{1200, 1380, 1400, 1420, 1440, 1472, 8000} {
						r := lab.Request{Network: lab.UDP, To: a.udp.target(clusterIP, family, p.nodes[0]), Size: size}
						for range 2 * len(a.pods) {
							if err := askAgain(t, from, r); err != nil {
								t.Errorf("%s, %d bytes: %v", from.Name, size, err)
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

// replaceEnvoy has a new Envoy take a node over from the one before.
func (c *cluster) replaceEnvoy(t *testing.T, n *lab.Node) {
	t.Helper()
	old := c.fleet.Proxies(n.Name)
	before := c.await(t, n, fleet.Ready).Current
	if _, err := c.fleet.StartProxy(n.Name); err != nil {
		t.Fatal(err)
	}
	c.await(t, n, func(s node.Status) bool { return fleet.Ready(s) && s.Current != before })
	for _, p := range old {
		c.fleet.StopProxy(n.Name, p)
	}
}
