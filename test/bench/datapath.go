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
	name    string
	network lab.Network
	from    *lab.Host
	to      []netip.AddrPort

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
		s, err := load{from: p.from, to: p.to, network: p.network, workers: l.workers, total: l.total, keep: l.keep}.run()
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
	for _, n := range plain.nodes { // kube-proxy runs on both.
		if err := addDNAT(n, plain.addresses()); err != nil {
			return nil, err
		}
	}
	served, err := addCluster(l, "fairlead")
	if err != nil {
		return nil, err
	}
	services := []service{
		{number: 0, endpoints: served.endpoints()},
		{number: 1, endpoints: served.endpoints(), direct: true},
		{number: 2, endpoints: served.endpoints(), protocol: "UDP"},
		{number: 3, endpoints: served.endpoints(), protocol: "UDP", direct: true},
	}
	f, err := b.start(l, dir, served.nodes, services)
	if err != nil {
		return nil, err
	}
	defer f.Stop()
	if err := ready(f, served.nodes); err != nil {
		return nil, err
	}
	away, here := plain.clients[0], served.clients[0]
	toDNAT := []netip.AddrPort{frontendOfDNAT}
	to := func(i int) []netip.AddrPort { return []netip.AddrPort{services[i].frontend()} }
	connections, err := measured([]*path{
		{name: "direct", network: lab.TCP, from: away, to: plain.addresses()},
		{name: "nftables DNAT", network: lab.TCP, from: away, to: toDNAT},
		{name: "Fairlead", network: lab.TCP, from: here, to: to(0)},
		{name: "Fairlead, class direct", network: lab.TCP, from: here, to: to(1)},
	})
	if err != nil {
		return nil, err
	}
	datagrams, err := measured([]*path{
		{name: "direct", network: lab.UDP, from: away, to: plain.addresses()},
		{name: "nftables DNAT", network: lab.UDP, from: away, to: toDNAT},
		{name: "Fairlead", network: lab.UDP, from: here, to: to(2)},
		{name: "Fairlead, class direct", network: lab.UDP, from: here, to: to(3)},
	})
	if err != nil {
		return nil, err
	}
	const where = "a client and two backends on another node; medians of %d rounds"
	return []table{
		dataPathTable("Data path over TCP: "+where, "requests/s", "new connections/s", connections),
		dataPathTable("Data path over UDP: "+where, "datagrams/s", "new flows/s", datagrams),
	}, nil
}

// measured puts paths under load in turns.
func measured(paths []*path) ([]*path, error) {
	for range rounds {
		for _, p := range paths {
			if err := p.round(); err != nil {
				return nil, err
			}
		}
	}
	return paths, nil
}

// dataPathTable shows the medians of the rounds.
func dataPathTable(title, kept, fresh string, paths []*path) table {
	t := table{
		title: fmt.Sprintf(title, rounds),
		head:  []string{"path", kept, "p50", "p99", "CPU each", fresh, "p50", "p99", "CPU each"},
	}
	for _, p := range paths {
		row := []string{p.name}
		for _, samples := range [][2][]sample{{p.busyRequests, p.quietRequests}, {p.busyConnects, p.quietConnects}} {
			row = append(row,
				fmt.Sprintf("%.0f", median(samples[0], sample.rate)),
				micros(median(samples[1], func(s sample) float64 { return float64(s.quantile(0.50)) })),
				micros(median(samples[1], func(s sample) float64 { return float64(s.quantile(0.99)) })),
				micros(median(samples[0], sample.cost)))
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
    ip daddr %s meta l4proto { tcp, udp } th dport %d dnat ip addr . port to numgen random mod %d map { %s }
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
