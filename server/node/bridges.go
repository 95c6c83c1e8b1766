package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/server/node/dataplane"
	"github.com/fairlead/fairlead/server/node/envoyns"
)

// bridged finds the endpoints behind this node's bridges.
type bridged struct {
	seen  []dataplane.BridgeEndpoint // Endpoints that were added since bridges last listed the host's bridges.
	known map[dataplane.BridgeEndpoint]bool
	stale bool               // The kernel's table lacks some of the known endpoints.
	table []dataplane.Bridge // The bridges for which the kernel's table was written.

	monitor *dataplane.Monitor // Knows the agent's own transactions; nil: nobody watches.
}

// add adds the endpoints of an assignment.
func (b *bridged) add(assignment string, endpoints []netip.AddrPort) {
	protocol := "tcp"
	switch {
	case strings.Contains(assignment, "/UDP"):
		protocol = "udp"
	case strings.Contains(assignment, "/SCTP"):
		protocol = "sctp"
	}
	for _, e := range endpoints {
		b.seen = append(b.seen, dataplane.BridgeEndpoint{Protocol: protocol, AddrPort: e})
	}
}

// bridges programs the table for bridges with the endpoints that were added. A node without pods on bridges has no such table.
// After an error the next call retries.
func (d *desiredState) bridges(ctx context.Context) error {
	b := &d.bridged
	if len(b.seen) == 0 && !b.stale {
		return nil
	}
	bridges, subnets, err := hostBridges()
	if err != nil {
		return err
	}
	for _, e := range b.seen {
		if bridgeOf(subnets, e) >= 0 && !b.known[e] {
			b.known[e], b.stale = true, true
		}
	}
	b.seen = nil
	if !b.stale {
		return nil
	}
	bridges = b.occupied(bridges, subnets)
	if err := dataplane.SyncBridges(ctx, b.table, bridges, b.monitor); err != nil {
		b.table = nil
		return err
	}
	b.table, b.stale = bridges, false
	return nil
}

// checkBridges checks whether the table for bridges still is what the bridges need. Another program may have changed it, and a
// bridge without a configured hardware address takes that of a port, and another when that port is removed. It reads the table
// only if table is set, and else only lists the bridges: pods that start and end do not change the table.
func (d *desiredState) checkBridges(ctx context.Context, table bool) error {
	b := &d.bridged
	if len(b.known) == 0 || b.stale {
		return nil
	}
	bridges, subnets, err := hostBridges()
	if err != nil {
		return err
	}
	same := slices.EqualFunc(b.occupied(bridges, subnets), b.table, func(x, y dataplane.Bridge) bool {
		return x.Name == y.Name && x.MAC == y.MAC && len(x.Endpoints) == len(y.Endpoints)
	})
	if !same {
		b.stale = true
	}
	if table && !dataplane.BridgesIntact(ctx, b.table) {
		b.table, b.stale = nil, true
	}
	return nil
}

// occupied returns the bridges that have known endpoints, with these. Fairlead leaves other bridges alone.
func (b *bridged) occupied(bridges []dataplane.Bridge, subnets []subnet) []dataplane.Bridge {
	for e := range b.known {
		if i := bridgeOf(subnets, e); i >= 0 {
			bridges[i].Endpoints = append(bridges[i].Endpoints, e)
		}
	}
	return slices.DeleteFunc(bridges, func(b dataplane.Bridge) bool { return len(b.Endpoints) == 0 })
}

// bridgeOf returns the index of the bridge that has an endpoint's subnet, or -1.
func bridgeOf(subnets []subnet, e dataplane.BridgeEndpoint) int {
	for _, s := range subnets {
		if s.prefix.Contains(e.AddrPort.Addr()) {
			return s.bridge
		}
	}
	return -1
}

// subnet is a subnet of a bridge, which is given by its index in the list.
type subnet struct {
	prefix netip.Prefix
	bridge int
}

// hostBridges returns the host's bridges that have addresses, and the subnets of those.
func hostBridges() ([]dataplane.Bridge, []subnet, error) {
	links, err := envoyns.Undisturbed(netlink.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	var bridges []dataplane.Bridge
	var subnets []subnet
	for _, l := range links {
		if l.Type() != "bridge" {
			continue
		}
		addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, nil, fmt.Errorf("addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addresses {
			if p, err := netip.ParsePrefix(a.IPNet.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
				subnets = append(subnets, subnet{p.Masked(), len(bridges)})
			}
		}
		if len(addresses) > 0 {
			bridges = append(bridges, dataplane.Bridge{Name: l.Attrs().Name, MAC: l.Attrs().HardwareAddr.String()})
		}
	}
	return bridges, subnets, nil
}
