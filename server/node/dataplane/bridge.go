package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"sigs.k8s.io/knftables"
)

// Bridge is a bridge of the host that has pods as ports.
type Bridge struct {
	Name      string // The interface, such as cni0.
	MAC       string
	Endpoints []BridgeEndpoint // All that are behind its ports.
}

// Prefixes of the names of a bridge's sets, one of each family: of its endpoints, and of the addresses of those of UDP.
const (
	endpointsOn = "on-"
	udpOn       = "udp-on-"
)

// setName returns the name of a set of the bridge. It escapes the characters that a link's name may have and a set's may not.
func (b Bridge) setName(prefix string, ipv6 bool) string {
	var name strings.Builder
	for _, r := range mapName(prefix+b.Name+"-", false, ipv6) {
		if r == '-' || r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
			name.WriteRune(r)
		} else {
			fmt.Fprintf(&name, "_%x", r)
		}
	}
	return name.String()
}

// elements returns the elements of an endpoint in the bridge's sets.
func (b Bridge) elements(e BridgeEndpoint) []*knftables.Element {
	ipv6 := e.AddrPort.Addr().Is6()
	all := []*knftables.Element{{Set: b.setName(endpointsOn, ipv6), Key: e.key()}}
	if e.Protocol == "udp" {
		all = append(all, &knftables.Element{Set: b.setName(udpOn, ipv6), Key: e.key()[:1]})
	}
	return all
}

// BridgeEndpoint is an endpoint behind a port of a bridge.
type BridgeEndpoint struct {
	Protocol string // tcp, udp or sctp.
	AddrPort netip.AddrPort
}

// key returns the endpoint as an element of a set. The protocol is a number: nft lists it so on systems without /etc/protocols,
// such as the agent's image.
func (e BridgeEndpoint) key() []string {
	protocol := protocolNumbers[e.Protocol]
	if protocol == "" {
		protocol = e.Protocol
	}
	return []string{e.AddrPort.Addr().String(), protocol, strconv.Itoa(int(e.AddrPort.Port()))}
}

// protocolNumbers are the numbers of the protocols that nft lists by name on systems with /etc/protocols.
var protocolNumbers = map[string]string{"tcp": "6", "udp": "17", "sctp": "132"}

// same reports whether two lists have bridges of the same names and hardware addresses. A bridge without a configured address
// takes that of a port, and another when that port is removed.
func same(a, b []Bridge) bool {
	return slices.EqualFunc(a, b, func(x, y Bridge) bool { return x.Name == y.Name && x.MAC == y.MAC })
}

// SyncBridges updates the table for bridges, which was last written for before, or never. It adds the new endpoints, and writes
// chains and rules only if the bridges differ. For the monitor, which may be nil, the transaction is the agent's own.
func SyncBridges(ctx context.Context, before, bridges []Bridge, monitor *Monitor) error {
	return monitor.Own(func() error {
		if len(before) == 0 || !same(before, bridges) {
			return writeBridges(ctx, bridges)
		}
		return addToBridges(ctx, before, bridges)
	})
}

// addToBridges adds the endpoints that the bridges did not have before.
func addToBridges(ctx context.Context, before, bridges []Bridge) error {
	nft, err := knftables.New(knftables.BridgeFamily, TableName)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tx := nft.NewTransaction()
	for i, b := range bridges {
		for _, e := range b.Endpoints {
			if slices.Contains(before[i].Endpoints, e) {
				continue
			}
			for _, element := range b.elements(e) {
				tx.Add(element)
			}
		}
	}
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: bridge table: %w", err)
	}
	return nil
}

// writeBridges writes the table fairlead of family bridge, with two base chains:
//
//   - prerouting/dstnat delivers the frames of endpoints on bridges to the host. Envoy dials an endpoint under its client's
//     address; if both are on the same bridge, the bridge would forward the endpoint's answer straight to the client, which
//     never dialled it. Only the first fragment of a datagram has its ports, so all fragments that an endpoint of UDP sends go
//     by the host, its others' too. Endpoints are only ever added: one that left its Service still answers on the connections
//     that it has.
//   - output/filter drops ICMP redirects. The host routes such an answer back to the bridge on which it arrived, and would send
//     the endpoint a redirect to the client. The sysctl send_redirects covers IPv4 only, and only where it is off for the
//     whole host.
func writeBridges(ctx context.Context, bridges []Bridge) error {
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
	output := &knftables.Chain{
		Name: "output", Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.OutputHook),
		Priority: knftables.PtrTo(knftables.FilterPriority),
	}
	for _, c := range []*knftables.Chain{prerouting, output} {
		tx.Add(c)
		tx.Flush(c)
	}
	for _, b := range bridges {
		// Each bridge has its own sets, since not every kernel can match the bridge that a frame crosses.
		for _, ipv6 := range []bool{false, true} {
			endpoints, udp := b.setName(endpointsOn, ipv6), b.setName(udpOn, ipv6)
			source, fragment := ip(ipv6)+" saddr", "ip frag-off & 0x3fff != 0" // More fragments, or an offset.
			if ipv6 {
				fragment = "exthdr frag exists"
			}
			tx.Add(&knftables.Set{Name: endpoints, TypeOf: source + " . meta l4proto . th sport"})
			tx.Add(&knftables.Set{Name: udp, TypeOf: source})
			for _, match := range []string{source + " . meta l4proto . th sport @" + endpoints, source + " @" + udp + " " + fragment} {
				tx.Add(&knftables.Rule{Chain: "prerouting", Rule: fmt.Sprintf("ether daddr != %s %s meta pkttype set host ether daddr set %s accept", b.MAC, match, b.MAC)})
			}
		}
		for _, e := range b.Endpoints {
			for _, element := range b.elements(e) {
				tx.Add(element)
			}
		}
		for _, redirect := range []string{"icmp type redirect", "icmpv6 type nd-redirect"} {
			tx.Add(&knftables.Rule{Chain: "output", Rule: fmt.Sprintf("ether saddr %s %s drop", b.MAC, redirect)})
		}
	}
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nftables: bridge table: %w", err)
	}
	return nil
}

// BridgesIntact reports whether the kernel has what SyncBridges wrote for these bridges. Further elements are an earlier agent's,
// of endpoints that may still answer.
func BridgesIntact(ctx context.Context, bridges []Bridge) bool {
	nft, err := knftables.New(knftables.BridgeFamily, TableName)
	if err != nil {
		return false
	}
	for chain, rules := range map[string]int{"prerouting": 4, "output": 2} {
		if there, err := nft.ListRules(ctx, chain); err != nil || len(there) != rules*len(bridges) {
			return false
		}
	}
	for _, b := range bridges {
		there := map[string]bool{}
		for _, set := range []string{b.setName(endpointsOn, false), b.setName(endpointsOn, true), b.setName(udpOn, false), b.setName(udpOn, true)} {
			elements, err := nft.ListElements(ctx, "set", set)
			if err != nil {
				return false
			}
			for _, e := range elements {
				if len(e.Key) > 1 && protocolNumbers[e.Key[1]] != "" {
					e.Key[1] = protocolNumbers[e.Key[1]]
				}
				there[fmt.Sprint(set, e.Key)] = true
			}
		}
		for _, e := range b.Endpoints {
			if slices.ContainsFunc(b.elements(e), func(e *knftables.Element) bool { return !there[fmt.Sprint(e.Set, e.Key)] }) {
				return false
			}
		}
	}
	return true
}

// removeBridge deletes the bridge table. A kernel without the bridge family has none to delete.
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
