package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/translate/model"
)

// Names that kube-proxy in nftables mode gives in its tables, one of each family.
const (
	kubeProxyTable      = "kube-proxy"
	kubeProxyCheck      = "cluster-ips-check" // Drops addresses of the Service range that are not in:
	kubeProxyClusterIPs = "cluster-ips"
)

// DroppedByKubeProxy returns, in order, the cluster IPs of the table's frontends that the rules of a kube-proxy in nftables mode
// drop, whether it still runs or only left its rules. kube-proxy drops packets to each address of the Service range that it does
// not know, such as that of a Service with the label service.kubernetes.io/service-proxy-name. Its chains hook into forward and
// output, which a packet passes on its way to Envoy.
func (t *Table) DroppedByKubeProxy(ctx context.Context) ([]netip.Addr, error) {
	var dropped []netip.Addr
	for _, ipv6 := range []bool{false, true} {
		family := knftables.IPv4Family
		if ipv6 {
			family = knftables.IPv6Family
		}
		known, there, err := kubeProxyKnows(ctx, family)
		if err != nil {
			return nil, err
		}
		for _, f := range t.wanted {
			a, ok := netip.AddrFromSlice(f.GetAddress())
			if there && ok && a.Is6() == ipv6 && f.GetKind() == string(model.ClusterIP) && !slices.Contains(dropped, a) && !known[a.String()] {
				dropped = append(dropped, a)
			}
		}
	}
	slices.SortFunc(dropped, netip.Addr.Compare)
	return dropped, nil
}

// kubeProxyKnows returns the cluster IPs that kube-proxy's table of a family knows, and whether it drops others.
func kubeProxyKnows(ctx context.Context, family knftables.Family) (known map[string]bool, there bool, err error) {
	nft, err := knftables.New(family, kubeProxyTable)
	if err != nil {
		return nil, false, fmt.Errorf("nftables: %w", err)
	}
	rules, err := nft.ListRules(ctx, kubeProxyCheck)
	if err != nil || len(rules) == 0 {
		return nil, false, notThere(err)
	}
	elements, err := nft.ListElements(ctx, "set", kubeProxyClusterIPs)
	if err != nil {
		return nil, false, notThere(err)
	}
	known = map[string]bool{}
	for _, e := range elements {
		known[e.Key[0]] = true
	}
	return known, true, nil
}

// notThere returns nil for the error of a chain or set that does not exist.
func notThere(err error) error {
	if err == nil || knftables.IsNotFound(err) || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("nftables: look at kube-proxy's table: %w", err)
}
