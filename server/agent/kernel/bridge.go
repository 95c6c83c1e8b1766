package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// Bridge is what the table for pods on a bridge is made from.
type Bridge struct {
	Name string // The interface, such as cni0.
	MAC  string
	// Endpoints of Services that sit on the bridge, as protocol and address:port, sorted.
	Endpoints []BridgeEndpoint
}

// BridgeEndpoint is an endpoint that sits on a bridge.
type BridgeEndpoint struct {
	Protocol string // tcp or udp.
	AddrPort netip.AddrPort
}

// SyncBridges writes the table that lifts the frames of endpoints on bridges to the host. Envoy dials an endpoint under its
// client's address; if both sit on the same bridge, the endpoint's answer would cross the bridge straight to the client,
// which never dialled it.
func SyncBridges(ctx context.Context, bridges []Bridge) error {
	if len(bridges) == 0 {
		return removeBridge(ctx)
	}
	nft, err := knftables.New(knftables.BridgeFamily, TableName)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{
		Name: "prerouting", Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.PreroutingHook),
		Priority: knftables.PtrTo(knftables.BaseChainPriority("dstnat")),
	})
	for i, b := range bridges {
		for _, ipv6 := range []bool{false, true} {
			var keys [][]string
			for _, e := range b.Endpoints {
				if e.AddrPort.Addr().Is6() == ipv6 {
					keys = append(keys, []string{e.AddrPort.Addr().String(), e.Protocol, fmt.Sprint(e.AddrPort.Port())})
				}
			}
			if len(keys) == 0 {
				continue
			}
			set := fmt.Sprintf("endpoints%d-%s", i, ip(ipv6))
			tx.Add(&knftables.Set{Name: set, Type: strings.Replace("ipv4_addr . inet_proto . inet_service", "ipv4", map[bool]string{false: "ipv4", true: "ipv6"}[ipv6], 1)})
			for _, key := range keys {
				tx.Add(&knftables.Element{Set: set, Key: key})
			}
			tx.Add(&knftables.Rule{Chain: "prerouting", Rule: fmt.Sprintf("meta ibrname %q ether daddr != %s %s saddr . meta l4proto . th sport @%s meta pkttype set host ether daddr set %s accept",
				b.Name, b.MAC, ip(ipv6), set, b.MAC)})
		}
	}
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: bridge table: %w", err)
	}
	return nil
}

// EqualBridges reports whether two lists need the same table.
func EqualBridges(a, b []Bridge) bool {
	return slices.EqualFunc(a, b, func(x, y Bridge) bool {
		return x.Name == y.Name && x.MAC == y.MAC && slices.Equal(x.Endpoints, y.Endpoints)
	})
}

// removeBridge deletes the bridge table. Where the kernel has no bridge family there is none to delete.
func removeBridge(ctx context.Context) error {
	nft, err := knftables.New(knftables.BridgeFamily, TableName)
	if err != nil {
		return nil
	}
	tx := nft.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := nft.Run(ctx, tx); err != nil && !knftables.IsNotFound(err) && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("nftables: remove bridge table: %w", err)
	}
	return nil
}
