package translate

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/translate/model"
)

// readiness counts, for a Service's health check, the addresses of each node and family of which an endpoint is ready: an
// endpoint with several ports is one, and one that is draining is none, although connections may still go to it.
type readiness map[model.Family]map[string]int

// summarizeReadiness counts the ready addresses of a Service; nil if it has no healthCheckNodePort. Of an address that several
// slices hold, the entry that gather uses decides whether it is ready.
func summarizeReadiness(s *model.Service, sorted []*model.EndpointSlice) readiness {
	if s.HealthCheckNodePort == 0 {
		return nil
	}
	counts := readiness{model.IPv4: {}, model.IPv6: {}}
	type place struct {
		node    string
		address netip.Addr
	}
	for _, family := range families {
		seen := map[place]bool{}
		for _, port := range portsOf(sorted) {
			for _, c := range gather(sorted, port, family) {
				if at := (place{c.endpoint.Node, c.endpoint.Address}); c.ready() && at.node != "" && !seen[at] {
					seen[at] = true
					counts[family][at.node]++
				}
			}
		}
	}
	return counts
}

// portsOf returns the ports that slices have, each name and protocol once: those that the Service lacks count too.
func portsOf(sorted []*model.EndpointSlice) []model.Port {
	var all []model.Port
	for _, slice := range sorted {
		for _, p := range slice.Ports {
			if port := (model.Port{Name: p.Name, Protocol: p.Protocol}); !slices.Contains(all, port) {
				all = append(all, port)
			}
		}
	}
	return all
}

// holds reports whether a node's count differs from that of a node without endpoints.
func (r readiness) holds(node string) bool { return r[model.IPv4][node] > 0 || r[model.IPv6][node] > 0 }

// check returns the health check that a frontend of a kind and family carries on a node.
func (r readiness) check(s *model.Service, kind model.Kind, family model.Family, node string) *model.HealthCheck {
	if r == nil || kind != model.ClusterIP {
		return nil
	}
	return &model.HealthCheck{Port: s.HealthCheckNodePort, LocalEndpoints: r[family][node]}
}
