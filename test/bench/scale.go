package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
)

const (
	scaleServices  = 10000
	scaleEndpoints = 10  // Of each Service.
	scaleStep      = 100 // Every one of so many Services is connected to.
)

// scaleEndpointNet holds the addresses of all endpoints.
var scaleEndpointNet = netip.MustParsePrefix("10.128.0.0/12")

// scale measures how long it takes from the start of all programs until one node forwards 10,000 Services, and the memory
// of each program then.
func (b *bench) scale(l *lab.Lab, dir string) ([]table, error) {
	node, err := l.AddNode("node", lab.Routed)
	if err != nil {
		return nil, err
	}
	client, err := node.AddPod("client", 0)
	if err != nil {
		return nil, err
	}
	if err := addEndpoints(l, node); err != nil {
		return nil, err
	}
	services := manyServices()
	f, err := b.start(l, dir, []*lab.Node{node}, services)
	if err != nil {
		return nil, err
	}
	defer f.Stop()
	start := time.Now() // The programs have started this instant.
	var first, last time.Time
	for i := 0; i < len(services); i += scaleStep {
		seen, err := untilAnsweredBy([]*lab.Host{client}, services[i].frontend(), "", start.Add(time.Minute))
		if err != nil {
			return nil, errors.Join(err, f.Check())
		}
		if last = seen[0]; i == 0 {
			first = last
		}
	}
	times := table{
		title: fmt.Sprintf("Scale: %d Services with %d endpoints each, from the start of all programs to one node", scaleServices, scaleEndpoints),
		head:  []string{"the first Service answers", fmt.Sprintf("every %dth has answered", scaleStep)},
		rows:  [][]string{{seconds(first.Sub(start)), seconds(last.Sub(start))}},
	}
	memory, err := memoryTable(f, node.Name)
	return []table{times, memory}, err
}

func memoryTable(f *fleet.Fleet, node string) (table, error) {
	t := table{title: "Resident memory then", head: []string{"", "now", "highest"}}
	for _, row := range []struct {
		name    string
		process *lab.Process
	}{{"control plane", f.Serve()}, {"agent", f.Agent(node)}, {"Envoy", f.Proxies(node)[0]}} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", row.process.PID()))
		if err != nil {
			return table{}, fmt.Errorf("memory of the %s: %w", row.name, err)
		}
		t.rows = append(t.rows, []string{row.name, statusMemory(string(status), "VmRSS"), statusMemory(string(status), "VmHWM")})
	}
	return t, nil
}

// statusMemory returns one of the sizes in a process's /proc status.
func statusMemory(status, name string) string {
	for line := range strings.Lines(status) {
		var kB float64
		if n, _ := fmt.Sscanf(line, name+": %f kB", &kB); n == 1 {
			return fmt.Sprintf("%.0f MiB", kB/1024)
		}
	}
	return "unknown"
}

// manyServices returns the Services, each with endpoints of its own.
func manyServices() []service {
	next := scaleEndpointNet.Addr()
	services := make([]service, 0, scaleServices)
	for i := range scaleServices {
		s := service{number: i}
		for range scaleEndpoints {
			next = next.Next()
			s.endpoints = append(s.endpoints, endpoint{next, "elsewhere"})
		}
		services = append(services, s)
	}
	return services
}

// addEndpoints adds a host that answers at every endpoint's address: all of them are local to it.
func addEndpoints(l *lab.Lab, node *lab.Node) error {
	host, err := l.AddOutside("endpoints")
	if err != nil {
		return err
	}
	err = host.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{
			LinkIndex: lo.Attrs().Index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
			Dst: &net.IPNet{IP: scaleEndpointNet.Addr().AsSlice(), Mask: net.CIDRMask(scaleEndpointNet.Bits(), 32)},
		})
	})
	if err != nil {
		return fmt.Errorf("make all endpoints local to one host: %w", err)
	}
	if _, err := host.ServeTCP(host.Name, backendPort); err != nil {
		return err
	}
	return errors.Join(
		host.AddRoute(node.PodCIDR4, node.IPv4),
		node.AddRoute(scaleEndpointNet, host.IPv4),
	)
}
