package translate

import (
	"net/netip"

	"github.com/fairlead/fairlead/translate/model"
)

// readiness counts, for a Service's health check, the addresses of each node and family of which an endpoint is ready: an
// endpoint with several ports is one, and one that is draining is none, although connections may still go to it.
type readiness map[model.Family]map[string]int

// surveyReadiness counts the ready addresses of a Service; nil if nobody asks for them.
func surveyReadiness(s *model.Service, sorted []*model.EndpointSlice) readiness {
	if s.HealthCheckNodePort == 0 {
		return nil
	}
	counts := readiness{model.IPv4: {}, model.IPv6: {}}
	type place struct {
		node    string
		address netip.Addr
	}
	seen := map[place]bool{}
	for _, slice := range sorted {
		if len(slice.Ports) == 0 {
			continue // Nothing of it can be connected to.
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if at := (place{e.Node, e.Address}); e.Ready && e.Node != "" && !seen[at] {
				seen[at] = true
				counts[slice.Family][e.Node]++
			}
		}
	}
	return counts
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
