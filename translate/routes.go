package translate

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/translate/model"
)

// policies returns the traffic policies that apply to connections to a frontend of a kind: from inside the cluster
// (pods and nodes), and from outside. The way back in that pods and nodes take to an external address is subject to
// neither policy: it stands for going out to a load balancer and coming back.
func policies(s *model.Service, kind model.Kind) (inside, outside model.TrafficPolicy) {
	if kind == model.ClusterIP {
		return s.InternalTrafficPolicy, s.InternalTrafficPolicy
	}
	return model.Cluster, s.ExternalTrafficPolicy
}

// routes decides what happens to connections to a frontend, for each origin. The rules are kube-proxy's, nftables mode:
//
//	frontend               origin   endpoints                           source
//	ClusterIP              pod      of internalTrafficPolicy            preserve
//	                       node     of internalTrafficPolicy            preserve
//	                       outside  of internalTrafficPolicy            masquerade
//	others, eTP Cluster    all      cluster set                         masquerade
//	others, eTP Local      pod      cluster set                         preserve
//	                       node     cluster set                         masquerade
//	                       outside  local set                           preserve
//
// Masquerading brings replies back to this node. What comes from outside to a ClusterIP needs it because the endpoint
// would answer the client directly; so does eTP Cluster, since the endpoint may be on another node. Under eTP Local a
// node's own connections need it because the load balancer's address may be one of the node's, and would be the source.
func routes(s *model.Service, kind model.Kind, sets sets) [model.Origins]model.Route {
	inside, outside := policies(s, kind)
	pod, node, far := model.Preserve, model.Preserve, model.Masquerade
	switch {
	case kind == model.ClusterIP:
	case outside == model.Cluster:
		pod, node = model.Masquerade, model.Masquerade
	default:
		node, far = model.Masquerade, model.Preserve
	}
	return [model.Origins]model.Route{
		model.FromPod:     sets.route(inside, pod),
		model.FromNode:    sets.route(inside, node),
		model.FromOutside: sets.route(outside, far),
	}
}

// route forwards to the set of a policy. If that is empty, a connection is refused where the Service has no endpoints
// at all, so that the client gets the error at once; and dropped where other nodes have some, so that a client that was sent
// here while endpoints moved tries again.
func (s sets) route(policy model.TrafficPolicy, source model.Source) model.Route {
	set := s.cluster
	if policy == model.Local {
		set = s.local
	}
	switch {
	case len(set.Endpoints) > 0:
		return model.Route{Verdict: model.Forward, Source: source, Set: set}
	case s.anywhere:
		return model.Route{Verdict: model.Drop, Set: set}
	default:
		return model.Route{Verdict: model.Refuse, Set: set}
	}
}

// sourceRanges returns who may dial the frontends of a Service's load balancer in a family; nil if everybody may. All of them
// share the value.
func sourceRanges(s *model.Service, family model.Family) *model.SourceRanges {
	prefixes, bound := s.SourceRanges[family]
	if !bound {
		return nil
	}
	other := func(a netip.Addr) bool { return model.FamilyOf(a) != family }
	addresses := slices.DeleteFunc(addressesOf(s)[model.LoadBalancer], other)
	slices.SortFunc(addresses, netip.Addr.Compare)
	most := entriesOf(s, family)
	return &model.SourceRanges{Prefixes: prefixes[:min(len(prefixes), most)], Addresses: addresses[:min(len(addresses), most)]}
}

// direct decides whether the kernel forwards a port of a Service by itself. Envoy forgets which client had which endpoint when
// it is replaced, and each of its workers chooses for itself. It does not speak SCTP, and UDP costs it a listener for every
// address and port.
func direct(s *model.Service, protocol model.Protocol) *model.Direct {
	if !s.Direct && s.Affinity == 0 && protocol == model.TCP {
		return nil
	}
	return &model.Direct{Affinity: s.Affinity}
}
