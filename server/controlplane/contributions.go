package controlplane

import (
	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/grpc"
	"github.com/fairlead/fairlead/translate/model"
)

// serviceContribution is what a Service contributes to the cache.
type serviceContribution struct {
	plan   *translate.Plan
	domain grpc.Domain
}

// Variant returns the part of a view that matters to the Service.
func (c serviceContribution) Variant(v model.View) string { return string(c.plan.Variant(v)) }

// Resources returns the Service's resources for a variant. If one of them is not valid there are none, since a frontend
// must not refer to a cluster that is missing.
func (c serviceContribution) Resources(variant string) ([]cache.Resource, error) {
	frontends := c.plan.Frontends(translate.Variant(variant))
	rendered := append(envoy.Resources(frontends), c.domain.Routes(c.plan.Service(), frontends)...)
	resources := make([]cache.Resource, 0, len(rendered))
	for _, r := range rendered {
		resource, err := cache.NewResource(r.TypeURL, r.Name, r.Message)
		if err != nil {
			return nil, err
		}
		resources = append(resources, resource)
	}
	return resources, nil
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

// nodeContribution is what a Node contributes: its description by the cluster, for its own agent alone.
type nodeContribution struct {
	name     string
	resource cache.Resource
}

// newNodeContribution renders a node.
func newNodeContribution(n *model.Node) (nodeContribution, error) {
	pb := &frontendpb.Node{Zone: n.Zone, Ineligible: n.Ineligible}
	for _, a := range n.Addresses {
		pb.Addresses = append(pb.Addresses, a.AsSlice())
	}
	for _, p := range n.PodCIDRs {
		pb.PodCidrs = append(pb.PodCidrs, p.String())
	}
	r, err := cache.NewResource(cache.NodeType, n.Name, pb)
	return nodeContribution{n.Name, r}, err
}

// Variant distinguishes the node itself from all others.
func (c nodeContribution) Variant(v model.View) string {
	if v.Node == c.name {
		return "self"
	}
	return ""
}

// Resources returns the node's description to the node itself, and nothing to others.
func (c nodeContribution) Resources(variant string) ([]cache.Resource, error) {
	if variant == "" {
		return nil, nil
	}
	return []cache.Resource{c.resource}, nil
}

// nodeContributionID names a node's contribution. A Service's is named by its key, which has a slash and no space.
func nodeContributionID(node string) string { return "Node " + node }
