package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"sigs.k8s.io/knftables"
)

// Bridge is a bridge that pods sit on.
type Bridge struct {
	Name      string // The interface, such as cni0.
	MAC       string
	Endpoints []BridgeEndpoint // That sit on it and are new.
}

// BridgeEndpoint is an endpoint that sits on a bridge.
type BridgeEndpoint struct {
	Protocol string // tcp or udp.
	AddrPort netip.AddrPort
}

// SyncBridges writes the table that lifts the frames of endpoints on bridges to the host. Envoy dials an endpoint under its
// client's address; if both sit on the same bridge, the endpoint's answer would cross the bridge straight to the client,
// which never dialled it. Endpoints are only ever added: one that left its Service still answers on the connections that
// it has.
func SyncBridges(ctx context.Context, bridges []Bridge) error {
	nft, err := knftables.New(knftables.BridgeFamily, TableName)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	prerouting := &knftables.Chain{
		Name: "prerouting", Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.PreroutingHook),
		Priority: knftables.PtrTo(knftables.DNATPriority),
	}
	tx.Add(prerouting)
	tx.Flush(prerouting)
	for _, b := range bridges {
		// The bridge's own set, since not every kernel can match the bridge that a frame crosses.
		set4, set6 := b.Name+"-4", b.Name+"-6"
		tx.Add(&knftables.Set{Name: set4, TypeOf: "ip saddr . meta l4proto . th sport"})
		tx.Add(&knftables.Set{Name: set6, TypeOf: "ip6 saddr . meta l4proto . th sport"})
		for _, e := range b.Endpoints {
			set := set4
			if e.AddrPort.Addr().Is6() {
				set = set6
			}
			tx.Add(&knftables.Element{Set: set, Key: []string{e.AddrPort.Addr().String(), e.Protocol, strconv.Itoa(int(e.AddrPort.Port()))}})
		}
		for _, match := range []string{"ip saddr . meta l4proto . th sport @" + set4, "ip6 saddr . meta l4proto . th sport @" + set6} {
			tx.Add(&knftables.Rule{Chain: "prerouting", Rule: fmt.Sprintf("ether daddr != %s %s meta pkttype set host ether daddr set %s accept", b.MAC, match, b.MAC)})
		}
	}
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: bridge table: %w", err)
	}
	return nil
}

// BridgesIntact reports whether the kernel still has what SyncBridges wrote for a number of bridges. It does not look at every
// endpoint.
func BridgesIntact(ctx context.Context, bridges int) bool {
	nft, err := knftables.New(knftables.BridgeFamily, TableName)
	if err != nil {
		return false
	}
	rules, err := nft.ListRules(ctx, "prerouting")
	if err != nil || len(rules) != 2*bridges {
		return false
	}
	sets, err := nft.List(ctx, "sets")
	return err == nil && len(sets) >= 2*bridges
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
