package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

// What is changed, and how often.
const (
	changeServices = 100
	changes        = 200
	lookEvery      = time.Millisecond // How often a client looks for a change: the resolution of its result.
)

// change measures how long it takes from a change of a Service's only endpoint until new connections use the other one,
// on each of two nodes.
func (b *bench) change(l *lab.Lab, dir string) ([]table, error) {
	c, err := addCluster(l, "fairlead")
	if err != nil {
		return nil, err
	}
	ends := c.endpoints()
	var services []service
	for i := range changeServices {
		services = append(services, service{number: i, endpoints: ends[:1]})
	}
	f, err := b.start(l, dir, c.nodes, services)
	if err != nil {
		return nil, err
	}
	defer f.Stop()
	if err := ready(f, c.nodes); err != nil {
		return nil, err
	}
	var first, last sample
	for i := range changes {
		s, target := services[i%len(services)], 1-i/len(services)%2
		s.endpoints = ends[target : target+1]
		start := time.Now()
		if err := writeFile(manifests(dir), s.name()+".yaml", s.manifest()); err != nil {
			return nil, err
		}
		seen, err := untilAnsweredBy(c.clients, s.frontend(), c.backends[target].Name, start.Add(patience))
		if err != nil {
			return nil, errors.Join(err, f.Check())
		}
		first.latencies = append(first.latencies, slices.MinFunc(seen, time.Time.Compare).Sub(start))
		last.latencies = append(last.latencies, slices.MaxFunc(seen, time.Time.Compare).Sub(start))
	}
	t := table{
		title: fmt.Sprintf("One endpoint changes: from writing its manifest until new connections use it; %d changes one after another, %d Services, two nodes", changes, changeServices),
		head:  []string{"", "p50", "p99", "longest"},
		rows: [][]string{
			{"on the first node", millis(first.quantile(0.5)), millis(first.quantile(0.99)), millis(first.quantile(1))},
			{"on both nodes", millis(last.quantile(0.5)), millis(last.quantile(0.99)), millis(last.quantile(1))},
		},
	}
	return []table{t}, nil
}

// untilAnsweredBy connects from every client until a server of that name answers, and returns when each first got its
// answer. The empty name is any server's.
func untilAnsweredBy(clients []*lab.Host, to netip.AddrPort, server string, deadline time.Time) ([]time.Time, error) {
	seen, errs := make([]time.Time, len(clients)), make([]error, len(clients))
	var looking sync.WaitGroup
	for i, client := range clients {
		looking.Go(func() {
			errs[i] = client.Do(func() (err error) {
				seen[i], err = look(to, server, deadline)
				return err
			})
		})
	}
	looking.Wait()
	return seen, errors.Join(errs...)
}

// look connects from the calling thread's network until the server answers.
func look(to netip.AddrPort, server string, deadline time.Time) (time.Time, error) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		c, err := connect(lab.TCP, to, 100*time.Millisecond)
		now := time.Now()
		if err == nil {
			c.close()
			if server == "" || c.server == server {
				return now, nil
			}
			err = fmt.Errorf("%s answers", c.server)
		}
		if now.After(deadline) {
			return now, fmt.Errorf("no answer of %s through %s in time: %w", server, to, err)
		}
		<-ticker.C
	}
}
