package controlplane

import (
	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/grpc"
	"github.com/fairlead/fairlead/translate/model"
)

// serviceUnit is what a Service contributes to the cache.
type serviceUnit struct {
	key    model.ServiceKey
	plan   *translate.Plan
	domain grpc.Domain
	ledger *ledger
	unit   uint64 // Differs from those of all other units.
}

// Variant returns the part of a view that matters to the Service.
func (u serviceUnit) Variant(v model.View) string { return string(u.plan.Variant(v)) }

// Resources returns the Service's resources for a variant. If one of them is not valid there are none, since a frontend
// must not lead to a cluster that is missing, and the ledger knows why.
func (u serviceUnit) Resources(variant string) []cache.Resource {
	frontends := u.plan.Frontends(translate.Variant(variant))
	rendered := append(envoy.Resources(frontends), u.domain.Routes(u.plan.Service(), frontends)...)
	resources := make([]cache.Resource, 0, len(rendered))
	for _, r := range rendered {
		resource, err := cache.NewResource(r.TypeURL, r.Name, r.Message)
		if err != nil {
			u.ledger.leftOut(u.key, u.unit, err)
			return nil
		}
		resources = append(resources, resource)
	}
	return resources
}

// derive returns, for the cache, how resources for proxyless gRPC clients follow from their names.
func derive(domain grpc.Domain) func(typeURL, name string) (cache.Resource, bool) {
	return func(typeURL, name string) (cache.Resource, bool) {
		r, ok := domain.Derive(typeURL, name)
		if !ok {
			return cache.Resource{}, false
		}
		resource, err := cache.NewResource(r.TypeURL, r.Name, r.Message)
		return resource, err == nil
	}
}

// nodeUnit is what a Node contributes: what the cluster says about it, for its own agent alone.
type nodeUnit struct {
	name     string
	resource cache.Resource
}

// newNodeUnit renders a node.
func newNodeUnit(n *model.Node) (nodeUnit, error) {
	pb := &frontendpb.Node{Zone: n.Zone, Ineligible: n.Ineligible}
	for _, a := range n.Addresses {
		pb.Addresses = append(pb.Addresses, a.AsSlice())
	}
	for _, p := range n.PodCIDRs {
		pb.PodCidrs = append(pb.PodCidrs, p.String())
	}
	r, err := cache.NewResource(cache.NodeType, n.Name, pb)
	return nodeUnit{n.Name, r}, err
}

// Variant tells the node itself from all others.
func (u nodeUnit) Variant(v model.View) string {
	if v.Node == u.name {
		return "self"
	}
	return ""
}

// Resources returns the node's description to the node itself, and nothing to others.
func (u nodeUnit) Resources(variant string) []cache.Resource {
	if variant == "" {
		return nil
	}
	return []cache.Resource{u.resource}
}

// nodeUnitID names a node's unit. A Service's unit is named by its key, which has a slash and no space.
func nodeUnitID(node string) string { return "Node " + node }
