package translate

import (
	"slices"
	"strings"

	"github.com/fairlead/fairlead/translate/model"
)

// Plan is how one Service is forwarded on all nodes. It is immutable and safe for concurrent use.
type Plan struct {
	service   *model.Service
	frontends []plannedFrontend // In order of claim.
	pools     []*pool
	ready     readiness
}

// plannedFrontend is a frontend and the pool that it takes its endpoints from.
type plannedFrontend struct {
	frontendSpec
	pool int // Index in Plan.pools.
}

// newPlan plans the frontends that a Service was granted.
func newPlan(s *model.Service, sorted []*model.EndpointSlice, granted []frontendSpec) *Plan {
	type poolKey struct {
		port   int
		family model.Family
	}
	p := &Plan{service: s, ready: summarizeReadiness(s, sorted)}
	index := map[poolKey]int{}
	for _, w := range granted {
		key := poolKey{w.port, w.family}
		i, ok := index[key]
		if !ok {
			i = len(p.pools)
			index[key] = i
			p.pools = append(p.pools, &pool{id: s.ID(s.Ports[w.port]), port: s.Ports[w.port], family: w.family, versions: latest(s, sorted, w.family)})
		}
		inside, outside := policies(s, w.kind)
		p.pools[i].usesCluster = p.pools[i].usesCluster || inside == model.Cluster || outside == model.Cluster
		p.pools[i].usesLocal = p.pools[i].usesLocal || inside == model.Local || outside == model.Local
		p.frontends = append(p.frontends, plannedFrontend{w, i})
	}
	for _, pool := range p.pools {
		pool.candidates, pool.found = bounded(gather(sorted, pool.port, pool.family), MaxServiceEndpoints/len(p.pools))
	}
	for _, pool := range p.pools {
		pool.summarize()
	}
	slices.SortFunc(p.frontends, func(a, b plannedFrontend) int { return a.claim.compare(b.claim) })
	return p
}

// latest returns the change of the Service or of one of its slices of a family that came last.
func latest(s *model.Service, sorted []*model.EndpointSlice, family model.Family) []model.ObjectVersion {
	changes := []model.ObjectVersion{s.Version}
	for _, slice := range sorted {
		switch c := slice.Version.At.Compare(changes[0].At); {
		case slice.Family != family || c < 0:
		case c > 0:
			changes = append(changes[:0], slice.Version)
		default:
			changes = append(changes, slice.Version)
		}
	}
	return changes
}

// Service returns the Service that is planned. It must not be changed.
func (p *Plan) Service() *model.Service { return p.service }

// Size returns how many frontends the Service has; as many on every node.
func (p *Plan) Size() int { return len(p.frontends) }

// Variant is the part of a view that matters for one Service. Views with the same variant see the same frontends.
// Empty when neither the view's node nor its zone matters; else node/zone, each empty where it does not matter.
type Variant string

// Variant returns the part of a view that matters: the node where it holds endpoints of a Local traffic policy, or
// such that its health check counts, or is hinted to, the zone where zone hints decide. All other nodes share what is left.
func (p *Plan) Variant(v model.View) Variant {
	var matters model.View
	if p.ready.holds(v.Node) {
		matters.Node = v.Node
	}
	for _, pool := range p.pools {
		if pool.usesLocal {
			if _, held := pool.locals[v.Node]; held {
				matters.Node = v.Node
			}
		}
		if !pool.usesCluster {
			continue
		}
		switch pool.hintsFor(v) {
		case HintsForNode:
			matters.Node = v.Node
		case HintsForZone:
			matters.Zone = v.Zone
		}
	}
	if matters == (model.View{}) {
		return ""
	}
	return Variant(matters.Node + "/" + matters.Zone)
}

// view returns the view that a variant stands for. A node's name holds no slash.
func (v Variant) view() model.View {
	node, zone, _ := strings.Cut(string(v), "/")
	return model.View{Node: node, Zone: zone}
}

// Frontends returns the Service's frontends as the views of a variant see them, in order of address (NodePorts last),
// port, protocol and family. Frontends and routes that use the same endpoints share one set.
func (p *Plan) Frontends(v Variant) []model.Frontend { return p.frontendsOf(v.view()) }

// frontendsOf returns the frontends of one view.
func (p *Plan) frontendsOf(v model.View) []model.Frontend {
	sets := make([]sets, len(p.pools))
	for i, pool := range p.pools {
		sets[i] = pool.sets(v)
	}
	ranges := map[model.Family]*model.SourceRanges{}
	for _, family := range families {
		ranges[family] = sourceRanges(p.service, family)
	}
	frontends := make([]model.Frontend, len(p.frontends))
	for i, f := range p.frontends {
		port := p.service.Ports[f.port]
		frontends[i] = model.Frontend{
			Address:     f.address,
			Family:      f.family,
			Port:        f.frontendSpec.claim.port,
			Protocol:    f.protocol,
			Kind:        f.kind,
			ServicePort: p.service.ID(port),
			PortName:    port.Name,
			Routes:      routes(p.service, f.kind, sets[f.pool]),
			Direct:      direct(p.service, f.protocol),
			HealthCheck: p.ready.check(p.service, f.kind, f.family, v.Node),
		}
		// Only a load balancer's address is limited: a client that reaches the Service by another way has not come through it.
		if f.kind == model.LoadBalancer {
			frontends[i].SourceRanges = ranges[f.family]
		}
	}
	return frontends
}

// sets are the endpoint sets of a pool for one view.
type sets struct {
	cluster, local *model.EndpointSet
	anywhere       bool // Whether any node has endpoints.
}

// sets returns the pool's sets for a view; nil for one that no frontend uses.
func (p *pool) sets(v model.View) sets {
	c := choose(p, v)
	s := sets{anywhere: p.anywhere()}
	if p.usesCluster {
		s.cluster = p.set("", c.cluster)
	}
	if p.usesLocal {
		s.local = p.set("/local", c.local)
	}
	return s
}

// set returns the set of the candidates that are used, at most MaxEndpoints.
func (p *pool) set(suffix string, use func(candidate) Use) *model.EndpointSet {
	name := p.id.String()
	if p.family == model.IPv6 {
		name += "/ipv6"
	}
	n := min(p.count(use), MaxEndpoints)
	set := &model.EndpointSet{Name: name + suffix, Endpoints: make([]model.Endpoint, 0, n), Versions: p.versions}
	for _, c := range p.candidates {
		if len(set.Endpoints) == n {
			break
		}
		if use(c) == Used {
			set.Endpoints = append(set.Endpoints, model.Endpoint{AddrPort: c.addrPort, SliceEndpoint: *c.endpoint})
		}
	}
	return set
}

// count returns how many candidates are used.
func (p *pool) count(use func(candidate) Use) int {
	n := 0
	for _, c := range p.candidates {
		if use(c) == Used {
			n++
		}
	}
	return n
}
