package main

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/fairlead/fairlead/server/lab"
)

// The loads of one round. They are small enough for one client's ports to suffice and for the paths to take turns often:
// what else the machine does at a moment then meets all of them. Rates are taken with several workers, which keep the
// processors busy, and latencies with one, which finds them idle.
const (
	rounds        = 7
	busyRequests  = 16000
	busyConnects  = 2000
	busyWorkers   = 16
	quietRequests = 2000
	quietConnects = 500
)

// frontendOfDNAT is what the peer forwards.
var frontendOfDNAT = netip.MustParseAddrPort("10.96.0.80:80")

// A path is a way from a client to the backends.
type path struct {
	name string
	from *lab.Host
	to   []netip.AddrPort

	busyRequests, quietRequests, busyConnects, quietConnects []sample // One for each round.
}

// round puts the path under each load once.
func (p *path) round() error {
	for _, l := range []struct {
		samples        *[]sample
		workers, total int
		keep           bool
	}{
		{&p.busyRequests, busyWorkers, busyRequests, true},
		{&p.quietRequests, 1, quietRequests, true},
		{&p.busyConnects, busyWorkers, busyConnects, false},
		{&p.quietConnects, 1, quietConnects, false},
	} {
		s, err := load{from: p.from, to: p.to, workers: l.workers, total: l.total, keep: l.keep}.run()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		*l.samples = append(*l.samples, s)
	}
	return nil
}

// dataPath compares the paths. The peers' nodes are like Fairlead's, but without it.
func (b *bench) dataPath(l *lab.Lab, dir string) ([]table, error) {
	plain, err := addCluster(l, "plain")
	if err != nil {
		return nil, err
	}
	if err := addDNAT(plain.nodes[0], plain.addresses()); err != nil {
		return nil, err
	}
	served, err := addCluster(l, "fairlead")
	if err != nil {
		return nil, err
	}
	web := service{number: 0, endpoints: served.endpoints()}
	f, err := b.start(l, dir, served.nodes, []service{web})
	if err != nil {
		return nil, err
	}
	defer f.Stop()
	if err := ready(f, served.nodes); err != nil {
		return nil, err
	}
	paths := []*path{
		{name: "direct", from: plain.clients[0], to: plain.addresses()},
		{name: "nftables DNAT", from: plain.clients[0], to: []netip.AddrPort{frontendOfDNAT}},
		{name: "Fairlead", from: served.clients[0], to: []netip.AddrPort{web.frontend()}},
	}
	for range rounds {
		for _, p := range paths {
			if err := p.round(); err != nil {
				return nil, err
			}
		}
	}
	return []table{dataPathTable(paths)}, nil
}

// dataPathTable shows the medians of the rounds.
func dataPathTable(paths []*path) table {
	t := table{
		title: fmt.Sprintf("Data path: a client and two backends on another node; medians of %d rounds", rounds),
		head:  []string{"path", "requests/s", "p50", "p99", "new connections/s", "p50", "p99"},
	}
	for _, p := range paths {
		row := []string{p.name}
		for _, samples := range [][2][]sample{{p.busyRequests, p.quietRequests}, {p.busyConnects, p.quietConnects}} {
			row = append(row,
				fmt.Sprintf("%.0f", median(samples[0], sample.rate)),
				micros(median(samples[1], func(s sample) float64 { return float64(s.quantile(0.50)) })),
				micros(median(samples[1], func(s sample) float64 { return float64(s.quantile(0.99)) })))
		}
		t.rows = append(t.rows, row)
	}
	return t
}

// addDNAT makes a node forward a Service address with the kernel's destination NAT alone, as kube-proxy's nftables mode
// does, without its many other Services.
func addDNAT(node *lab.Node, backends []netip.AddrPort) error {
	var choices []string
	for i, b := range backends {
		choices = append(choices, fmt.Sprintf("%d : %s . %d", i, b.Addr(), b.Port()))
	}
	rules := fmt.Sprintf(`table ip peer {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    ip daddr %s tcp dport %d dnat ip addr . port to numgen random mod %d map { %s }
  }
}`, frontendOfDNAT.Addr(), frontendOfDNAT.Port(), len(backends), strings.Join(choices, ", "))
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(rules)
	var output strings.Builder
	nft.Stdout, nft.Stderr = &output, &output
	if err := node.Do(nft.Run); err != nil {
		return fmt.Errorf("nft: %w: %s", err, output.String())
	}
	return nil
}
