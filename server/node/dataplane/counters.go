package dataplane

import (
	"context"
	"fmt"

	"sigs.k8s.io/knftables"
)

// Names of the counters of what is not forwarded.
const (
	counterRefused      = "refused"      // No endpoint: the client gets a reset or an ICMP error.
	counterDropped      = "dropped"      // No endpoint on this node, as the Service's Local policy requires.
	counterWaiting      = "no-envoy"     // No Envoy is ready on this node.
	counterUnremembered = "unremembered" // Forwarded, but sessionAffinity has no room for the client.
	counterOutside      = "out-of-range" // From a source outside the Service's source ranges.
)

var counterNames = []string{counterRefused, counterDropped, counterWaiting, counterOutside, counterUnremembered}

// count returns a statement that counts a packet.
func count(name string) string { return fmt.Sprintf("counter name %q", name) }

// addCounters adds the counters; those that exist keep their values.
func addCounters(tx *knftables.Transaction) {
	for _, name := range counterNames {
		tx.Add(&knftables.Counter{Name: name})
	}
}

// Counters reads the host's table of what was not forwarded. It is safe for concurrent use, beside a Table.
type Counters struct{ nft knftables.Interface }

// NewCounters fails when nft is missing or too old.
func NewCounters() (*Counters, error) {
	nft, err := knftables.New(knftables.InetFamily, TableName)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w (is the nft program installed?)", err)
	}
	return &Counters{nft}, nil
}

// Read returns how many packets were not forwarded since the table was created, by reason: refused, dropped, no-envoy or
// out-of-range. A client that retries counts again. Without a table it returns none.
func (c *Counters) Read(ctx context.Context) (map[string]uint64, error) {
	counters, err := c.nft.ListCounters(ctx)
	if knftables.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nftables: read counters: %w", err)
	}
	packets := map[string]uint64{}
	for _, counter := range counters {
		if counter.Packets != nil && counter.Name != counterUnremembered {
			packets[counter.Name] = *counter.Packets
		}
	}
	return packets, nil
}

// Unremembered returns how many connections were forwarded without sessionAffinity, because the map of their ServicePort's
// clients is full. Without a table it returns 0.
func (c *Counters) Unremembered(ctx context.Context) (uint64, error) {
	counters, err := c.nft.ListCounters(ctx)
	if err != nil && !knftables.IsNotFound(err) {
		return 0, fmt.Errorf("nftables: read counters: %w", err)
	}
	for _, counter := range counters {
		if counter.Name == counterUnremembered && counter.Packets != nil {
			return *counter.Packets, nil
		}
	}
	return 0, nil
}
