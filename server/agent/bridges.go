package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/server/agent/kernel"
	"github.com/fairlead/fairlead/server/agent/upstream"
)

// bridged finds the endpoints that sit on this node's bridges.
type bridged struct {
	seen  []kernel.BridgeEndpoint // Endpoints since the last look at the bridges.
	known map[kernel.BridgeEndpoint]bool
	table []kernel.Bridge // The bridges, without endpoints, that the kernel's table was written for.
}

// add takes the endpoints of an assignment in.
func (b *bridged) add(r upstream.Resource) {
	protocol := "tcp"
	if strings.Contains(r.Name, "/UDP") {
		protocol = "udp"
	}
	assignment := &endpointpb.ClusterLoadAssignment{}
	if err := r.Any.UnmarshalTo(assignment); err != nil {
		return // Envoy rejects it, and that is reported.
	}
	for _, locality := range assignment.GetEndpoints() {
		for _, e := range locality.GetLbEndpoints() {
			a := e.GetEndpoint().GetAddress().GetSocketAddress()
			if ip, err := netip.ParseAddr(a.GetAddress()); err == nil {
				b.seen = append(b.seen, kernel.BridgeEndpoint{Protocol: protocol, AddrPort: netip.AddrPortFrom(ip, uint16(a.GetPortValue()))})
			}
		}
	}
}

// bridges brings the table for pods on bridges up to date with the endpoints that were added. A node without such pods has
// none.
func (n *node) bridges(ctx context.Context) error {
	b := &n.bridged
	if len(b.seen) == 0 {
		return nil
	}
	bridges, subnets, err := hostBridges()
	if err != nil {
		return err
	}
	fresh := false
	for _, e := range b.seen {
		if bridgeOf(subnets, e) >= 0 && !b.known[e] {
			b.known[e], fresh = true, true
		}
	}
	b.seen = nil
	if !fresh {
		return nil
	}
	return b.sync(ctx, bridges, subnets)
}

// repairBridges writes the table for pods on bridges anew if someone damaged it.
func (n *node) repairBridges(ctx context.Context) error {
	bridges, subnets, err := hostBridges()
	if err != nil || len(n.bridged.known) == 0 {
		return err
	}
	if sameBridges(bridges, n.bridged.table) && kernel.BridgesIntact(ctx, len(bridges)) {
		return nil
	}
	return n.bridged.sync(ctx, bridges, subnets)
}

// sameBridges reports whether bridges have the names and hardware addresses of others. A bridge without an address of its own
// takes that of a port, and another one when the port goes.
func sameBridges(a, b []kernel.Bridge) bool {
	return slices.EqualFunc(a, b, func(x, y kernel.Bridge) bool { return x.Name == y.Name && x.MAC == y.MAC })
}

// sync writes the table for all endpoints that are known.
func (b *bridged) sync(ctx context.Context, bridges []kernel.Bridge, subnets []subnet) error {
	b.table = slices.Clone(bridges)
	for e := range b.known {
		if i := bridgeOf(subnets, e); i >= 0 {
			bridges[i].Endpoints = append(bridges[i].Endpoints, e)
		}
	}
	for _, name := range append([]string{"all"}, names(bridges)...) {
		// Between two ports of one bridge the host would tell the pods to talk directly.
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/send_redirects", []byte("0"), 0o644); err != nil {
			return fmt.Errorf("switch off redirects: %w", err)
		}
	}
	return kernel.SyncBridges(ctx, bridges)
}

// bridgeOf returns the place of the bridge that an endpoint sits on, or -1.
func bridgeOf(subnets []subnet, e kernel.BridgeEndpoint) int {
	for _, s := range subnets {
		if s.prefix.Contains(e.AddrPort.Addr()) {
			return s.bridge
		}
	}
	return -1
}

// names returns the bridges' names.
func names(bridges []kernel.Bridge) []string {
	var all []string
	for _, b := range bridges {
		all = append(all, b.Name)
	}
	return all
}

// subnet is a subnet of a bridge, by its place in the list.
type subnet struct {
	prefix netip.Prefix
	bridge int
}

// hostBridges returns the host's bridges that have addresses, and the subnets of those.
func hostBridges() ([]kernel.Bridge, []subnet, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	var bridges []kernel.Bridge
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
			bridges = append(bridges, kernel.Bridge{Name: l.Attrs().Name, MAC: l.Attrs().HardwareAddr.String()})
		}
	}
	return bridges, subnets, nil
}
