package dataplane

import (
	"net/netip"
	"slices"
	"testing"

	"sigs.k8s.io/knftables"
)

// The cluster IPs that kube-proxy does not know are found, and only where its check stands.
func TestDroppedByKubeProxy(t *testing.T) {
	table := newTestTable(t)
	for _, a := range []string{"10.96.0.11", "10.96.0.10", "fd00:96::10"} {
		table.SetFrontend(a, clusterIP(a, 80, "TCP"))
	}
	check := func(want ...string) {
		t.Helper()
		got, err := table.DroppedByKubeProxy(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var addresses []netip.Addr
		for _, w := range want {
			addresses = append(addresses, netip.MustParseAddr(w))
		}
		if !slices.Equal(got, addresses) {
			t.Errorf("dropped: %v, want %v", got, want)
		}
	}
	check()
	nft, err := knftables.New(knftables.IPv4Family, kubeProxyTable)
	if err != nil {
		t.Fatal(err)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	t.Cleanup(func() {
		tx := nft.NewTransaction()
		tx.Delete(&knftables.Table{})
		if err := nft.Run(t.Context(), tx); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	tx.Add(&knftables.Set{Name: kubeProxyClusterIPs, Type: "ipv4_addr"})
	tx.Add(&knftables.Element{Set: kubeProxyClusterIPs, Key: []string{"10.96.0.10"}})
	tx.Add(&knftables.Chain{Name: kubeProxyCheck})
	if err := nft.Run(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	check() // An empty check drops nothing.
	tx = nft.NewTransaction()
	tx.Add(&knftables.Rule{Chain: kubeProxyCheck, Rule: "ip daddr 10.96.0.0/16 drop"})
	if err := nft.Run(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	check("10.96.0.11")
}
