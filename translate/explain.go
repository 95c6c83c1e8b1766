package translate

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/translate/model"
)

// Use says whether an endpoint is in a set and, if not, why. The list is closed. Endpoints with an invalid address never
// become one; the problems of their slice name them.
type Use string

// The uses.
const (
	Used        Use = "used"
	NotReady    Use = "not ready"
	Terminating Use = "terminating"              // And ready ones serve instead, or it does not serve any more.
	OtherNode   Use = "hinted to another node"   // And hints for nodes hold.
	OtherZone   Use = "hinted to another zone"   // And hints for zones hold.
	NotLocal    Use = "not on this node"         // And the traffic policy is Local.
	Duplicate   Use = "duplicate"                // Another entry with the same address and port counts.
	WrongFamily Use = "wrong family"             // The Service has no cluster IP of the endpoint's family.
	NoSuchPort  Use = "no port of the Service's" // Its slice has no port with the name and protocol of the Service's port.
)

// Hints says whether topology hints narrow the cluster set of a view.
type Hints string

// The uses of hints.
const (
	HintsUnused  Hints = ""
	HintsForNode Hints = "node"
	HintsForZone Hints = "zone"
)

// Explanation says which endpoints of one ServicePort a node uses in one family, and why not the others.
type Explanation struct {
	ServicePort model.ServicePort
	PortName    string // By which slices know the port; empty if it has none.
	Family      model.Family

	// Hints are the hints that hold. If ready endpoints have hints, but one has none, the hints are switched off by it.
	Hints                Hints
	NodeHintsSwitchedOff netip.AddrPort // The first ready endpoint without a hint for a node, if others have one.
	ZoneHintsSwitchedOff netip.AddrPort // The same for zones.

	Endpoints []EndpointUse // By slice's name, then in the slice's order.
}

// EndpointUse is one endpoint of a slice, used or not.
type EndpointUse struct {
	Slice    string         // The slice's name.
	Endpoint model.Endpoint // Without a port number if the slice has no such port.
	Cluster  Use            // In the cluster set, for the traffic policy Cluster.
	Local    Use            // In the local set, for the traffic policy Local.

	SlicePorts []model.SlicePort // The slice's.
}

// Explain says, for each ServicePort of a Service and each family, which endpoints a view uses and why not the others.
// It calls choose itself, for Services without frontends too; nil if the Service does not exist.
func (w *World) Explain(k model.ServiceKey, v model.View) []Explanation {
	e := w.services[k]
	if e == nil || e.service == nil {
		return nil
	}
	sorted := sortSlices(e.slices)
	var all []Explanation
	for _, port := range e.service.Ports {
		for _, family := range families {
			p := &pool{id: e.service.ID(port), family: family, candidates: gather(sorted, port, family), usesLocal: true}
			p.summarize()
			x := explain(p, sorted, port, v)
			if !hasFamily(e.service, family) {
				x.refuseAll(WrongFamily)
			}
			if len(x.Endpoints) > 0 || hasFamily(e.service, family) {
				all = append(all, x)
			}
		}
	}
	return all
}

// explain applies choose to each endpoint of a pool's family.
func explain(p *pool, sorted []*model.EndpointSlice, port model.Port, v model.View) Explanation {
	c := choose(p, v)
	x := Explanation{
		ServicePort:          p.id,
		PortName:             port.Name,
		Family:               p.family,
		Hints:                c.hints,
		NodeHintsSwitchedOff: p.nodeHints.switchedOff(),
		ZoneHintsSwitchedOff: p.zoneHints.switchedOff(),
	}
	for _, slice := range sorted {
		if slice.Family != p.family {
			continue
		}
		ports := slices.DeleteFunc(slices.Clone(slice.Ports), func(s model.SlicePort) bool {
			return s.Name != port.Name || s.Protocol != port.Protocol
		})
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if len(ports) == 0 {
				x.add(slice, candidate{netip.AddrPortFrom(e.Address, 0), e}, NoSuchPort, NoSuchPort)
			}
			for _, number := range ports {
				cand := candidate{netip.AddrPortFrom(e.Address, number.Port), e}
				if p.holds(cand) {
					x.add(slice, cand, c.cluster(cand), c.local(cand))
				} else {
					x.add(slice, cand, Duplicate, Duplicate)
				}
			}
		}
	}
	return x
}

// holds reports whether a candidate is in the pool, and not another with its address and port.
func (p *pool) holds(c candidate) bool {
	i, found := slices.BinarySearchFunc(p.candidates, c, func(a, b candidate) int { return a.addrPort.Compare(b.addrPort) })
	return found && p.candidates[i].endpoint == c.endpoint
}

// switchedOff returns the candidate without a hint that switches the hints of others off; the zero AddrPort if there are
// no hints, or all hold.
func (h *hints) switchedOff() netip.AddrPort {
	if h.targets == nil {
		return netip.AddrPort{}
	}
	return h.by
}

func (x *Explanation) add(slice *model.EndpointSlice, c candidate, cluster, local Use) {
	x.Endpoints = append(x.Endpoints, EndpointUse{
		Slice:      slice.Name,
		Endpoint:   model.Endpoint{AddrPort: c.addrPort, SliceEndpoint: *c.endpoint},
		Cluster:    cluster,
		Local:      local,
		SlicePorts: slice.Ports,
	})
}

// refuseAll gives every endpoint the same reason.
func (x *Explanation) refuseAll(why Use) {
	for i := range x.Endpoints {
		x.Endpoints[i].Cluster, x.Endpoints[i].Local = why, why
	}
}
