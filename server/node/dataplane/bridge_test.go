package dataplane

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// The table is intact once it was written, also where nft knows no protocol by name, as in an image without /etc/protocols;
// new endpoints are added to it, and what is missing is noticed.
func TestBridgesIntact(t *testing.T) {
	for _, names := range []bool{true, false} {
		if !names {
			if err := unix.Mount("/dev/null", "/etc/protocols", "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount("/etc/protocols", 0); err != nil {
					t.Error(err)
				}
			})
		}
		one := []Bridge{{"cni0", "02:00:00:00:00:01", []BridgeEndpoint{{"tcp", netip.MustParseAddrPort("10.244.1.10:80")}}}}
		two := slices.Clone(one)
		two[0].Endpoints = []BridgeEndpoint{one[0].Endpoints[0], {"udp", netip.MustParseAddrPort("[fd00::10]:53")}, {"sctp", netip.MustParseAddrPort("10.244.1.11:9")}}
		if err := SyncBridges(t.Context(), nil, one, nil); err != nil {
			t.Fatal(err)
		}
		if !BridgesIntact(t.Context(), one) || BridgesIntact(t.Context(), two) {
			t.Errorf("protocols by name %t: with one endpoint intact %t, for three %t", names, BridgesIntact(t.Context(), one), BridgesIntact(t.Context(), two))
		}
		if err := SyncBridges(t.Context(), one, two, nil); err != nil {
			t.Fatal(err)
		}
		if !BridgesIntact(t.Context(), two) {
			t.Errorf("protocols by name %t: not intact after more endpoints came", names)
		}
		nft, err := knftables.New(knftables.BridgeFamily, TableName)
		if err != nil {
			t.Fatal(err)
		}
		tx := nft.NewTransaction()
		tx.Delete(&knftables.Element{Set: two[0].setName(endpointsOn, false), Key: one[0].Endpoints[0].key()})
		if err := nft.Run(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
		if BridgesIntact(t.Context(), two) {
			t.Errorf("protocols by name %t: an endpoint that is missing is not noticed", names)
		}
		if err := removeBridge(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
