package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
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
	table []kernel.Bridge // The bridges that the kernel's table was made for.
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
func (n *node) bridges() error {
	b := &n.bridged
	if len(b.seen) == 0 {
		return nil
	}
	bridges, subnets, err := hostBridges()
	if err != nil {
		return err
	}
	var fresh []kernel.BridgeEndpoint
	for _, e := range b.seen {
		for _, s := range subnets {
			if s.Contains(e.AddrPort.Addr()) && !b.known[e] {
				b.known[e] = true
				fresh = append(fresh, e)
			}
		}
	}
	b.seen = nil
	if len(fresh) == 0 {
		return nil
	}
	for _, bridge := range append([]kernel.Bridge{{Name: "all"}}, bridges...) {
		// Between two ports of one bridge the host would tell the pods to talk directly.
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+bridge.Name+"/send_redirects", []byte("0"), 0o644); err != nil {
			return fmt.Errorf("switch off redirects: %w", err)
		}
	}
	return kernel.SyncBridges(context.Background(), bridges, fresh)
}

// hostBridges returns the host's bridges that have addresses, and the subnets of those.
func hostBridges() ([]kernel.Bridge, []netip.Prefix, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	var bridges []kernel.Bridge
	var subnets []netip.Prefix
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
				subnets = append(subnets, p.Masked())
			}
		}
		if len(addresses) > 0 {
			bridges = append(bridges, kernel.Bridge{Name: l.Attrs().Name, MAC: l.Attrs().HardwareAddr.String()})
		}
	}
	return bridges, subnets, nil
}
