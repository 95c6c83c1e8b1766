package translate

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/translate/model"
)

// candidate is an endpoint of a ServicePort, whatever its condition. It points into its slice, which is immutable.
type candidate struct {
	addrPort netip.AddrPort
	endpoint *model.SliceEndpoint
}

// ready reports whether new connections may always go to the endpoint.
func (c candidate) ready() bool { return c.endpoint.Ready }

// draining reports whether the endpoint is terminating but still serves: it is used where none is ready.
func (c candidate) draining() bool {
	return !c.endpoint.Ready && c.endpoint.Serving && c.endpoint.Terminating
}

// pool is the candidates of one ServicePort in one family, and the facts about them by which choose decides. The facts
// are gathered once, so that choosing for one more view costs nothing.
type pool struct {
	id         model.ServicePort
	port       model.Port
	family     model.Family
	candidates []candidate // In order of address, then port; each address:port once.
	found      int         // How many candidates there were before bounded, of those that may get connections.
	versions   []model.ObjectVersion

	anyReady, anyDraining bool
	nodeHints, zoneHints  hints // Of the ready candidates.

	// The nodes that hold candidates that are ready (true), or only draining ones (false). Nil if no frontend of the
	// pool has a Local traffic policy.
	locals map[string]bool

	usesCluster, usesLocal bool // Whether a frontend takes the endpoints of the cluster set, of the local set.
}

// gather returns the candidates for one port of a Service: the endpoints of all its slices of a family that have a port
// of that name and protocol. The number of the port is the slice's, so a named targetPort may differ between endpoints.
//
// An address:port that several slices hold (an endpoint on its way from one slice to another, or the address of a
// terminating pod that a new one got already) counts once: the one that is not terminating, as in kube-proxy, and of
// several such the first by name of slice, which kube-proxy leaves open.
func gather(sorted []*model.EndpointSlice, port model.Port, family model.Family) []candidate {
	var all []candidate
	for _, slice := range sorted {
		if slice.Family != family {
			continue
		}
		for _, p := range slice.Ports {
			if p.Name != port.Name || p.Protocol != port.Protocol {
				continue
			}
			all = slices.Grow(all, len(slice.Endpoints))
			for i := range slice.Endpoints {
				e := &slice.Endpoints[i]
				all = append(all, candidate{netip.AddrPortFrom(e.Address, p.Port), e})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		if c := a.addrPort.Compare(b.addrPort); c != 0 {
			return c
		}
		return compareBool(a.endpoint.Terminating, b.endpoint.Terminating)
	})
	return slices.CompactFunc(all, func(a, b candidate) bool { return a.addrPort == b.addrPort })
}

// hints is what one sort of topology hints, for nodes or for zones, says.
type hints struct {
	targets  map[string]bool // What at least one candidate is hinted to. Nil if there are no hints.
	switched bool            // A candidate has no hint, so none holds.
	by       netip.AddrPort  // The first such candidate.
}

// add adds one candidate's hints.
func (h *hints) add(c candidate, targets []string) {
	none := true
	for _, t := range targets {
		if t == "" {
			continue
		}
		if h.targets == nil {
			h.targets = map[string]bool{}
		}
		h.targets[t] = true
		none = false
	}
	if none && !h.switched {
		h.switched, h.by = true, c.addrPort
	}
}

// hold reports whether the hints narrow the endpoints for a node or zone.
func (h *hints) hold(name string) bool { return !h.switched && h.targets[name] }

// summarize gathers the pool's facts.
func (p *pool) summarize() {
	if p.usesLocal {
		p.locals = map[string]bool{}
	}
	for _, c := range p.candidates {
		switch {
		case c.ready():
			p.anyReady = true
			p.nodeHints.add(c, c.endpoint.NodeHints)
			p.zoneHints.add(c, c.endpoint.ZoneHints)
		case c.draining():
			p.anyDraining = true
		default:
			continue
		}
		if node := c.endpoint.Node; p.usesLocal && node != "" {
			p.locals[node] = p.locals[node] || c.ready()
		}
	}
}

// choice is what choose decided: which candidates of a pool a view uses.
type choice struct {
	view  model.View
	hints Hints

	clusterDraining, localDraining bool // Nothing is ready, so the draining endpoints serve.
}

// choose decides which endpoints a node uses. It is the only place that does; what the forwarding table holds and what
// explain reports both come from it. The rules are kube-proxy's:
//
// An endpoint is ready (it may take new connections), or draining (terminating, but still serving), or of no use.
// EndpointSlices of a Service with publishNotReadyAddresses call all endpoints ready, so it needs no rule here.
//
// The cluster set serves the traffic policy Cluster:
//
//  1. the ready endpoints, narrowed by topology hints if they hold for this node:
//     if every ready endpoint of the cluster has hints for nodes and one of them names this node, those that name it;
//     else if every ready endpoint has hints for zones and one of them names this node's zone, those that name it;
//     else all of them. All or nothing: a single ready endpoint without a hint switches that sort of hints off,
//     because nobody knows which nodes count on it.
//  2. If no endpoint of the cluster is ready: the draining ones, regardless of hints.
//
// The local set serves the traffic policy Local: the ready endpoints on this node; if there are none, the draining ones
// on this node. Hints do not matter, and what other nodes hold does not either: the two sets fall back to draining
// endpoints independently. An endpoint without a node is on none, and nothing is local to a view without one.
//
// If both sets could be empty on every node, the Service has no endpoints at all (pool.anywhere), which is a different thing
// from having none here: the first is refused, the second dropped.
//
// spec.trafficDistribution is not read: the EndpointSlice controller turns it into hints.
func choose(p *pool, v model.View) choice {
	return choice{
		view:            v,
		hints:           p.hintsFor(v),
		clusterDraining: !p.anyReady,
		localDraining:   !p.locals[v.Node],
	}
}

// anywhere reports whether any node has endpoints of use.
func (p *pool) anywhere() bool { return p.anyReady || p.anyDraining }

// hintsFor returns the hints that narrow the cluster set for a view. Only the hints of ready candidates count, so where none is
// ready there are no hints.
func (p *pool) hintsFor(v model.View) Hints {
	switch {
	case p.nodeHints.hold(v.Node):
		return HintsForNode
	case p.zoneHints.hold(v.Zone):
		return HintsForZone
	default:
		return HintsUnused
	}
}

// cluster returns whether an endpoint is in the cluster set, and if not, why.
func (c choice) cluster(e candidate) Use {
	if use := usable(e, c.clusterDraining); use != Used {
		return use
	}
	switch {
	case c.hints == HintsForNode && !slices.Contains(e.endpoint.NodeHints, c.view.Node):
		return OtherNode
	case c.hints == HintsForZone && !slices.Contains(e.endpoint.ZoneHints, c.view.Zone):
		return OtherZone
	default:
		return Used
	}
}

// local returns whether an endpoint is in the local set, and if not, why.
func (c choice) local(e candidate) Use {
	if c.view.Node == "" || e.endpoint.Node != c.view.Node {
		return NotLocal
	}
	return usable(e, c.localDraining)
}

// usable returns whether an endpoint's condition lets it serve, given that ready ones or draining ones do.
func usable(e candidate, draining bool) Use {
	switch {
	case e.ready() && !draining, e.draining() && draining:
		return Used
	case e.endpoint.Terminating:
		return Terminating
	default:
		return NotReady
	}
}

// compareBool orders false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// sortSlices returns slices in order of their names, so that no result depends on the order in which they came.
func sortSlices(byName map[string]*model.EndpointSlice) []*model.EndpointSlice {
	sorted := make([]*model.EndpointSlice, 0, len(byName))
	for _, s := range byName {
		sorted = append(sorted, s)
	}
	slices.SortFunc(sorted, func(a, b *model.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	return sorted
}
