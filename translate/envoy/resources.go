// Package envoy turns a node's frontends into the resources that Envoy and the agent are served over xDS, and builds
// what never changes with a Service: the catch-all listeners and the bootstrap.
//
// Frontends come in, protobuf messages go out, in a fixed order and with fixed content for equal input. The package
// does no I/O.
package envoy

import (
	"slices"
	"strings"
	"time"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	typepb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// The xDS types that Fairlead serves.
const (
	ClusterType    = gcpresource.ClusterType
	AssignmentType = gcpresource.EndpointType
	ListenerType   = gcpresource.ListenerType
	FrontendType   = "type.googleapis.com/fairlead.v1.Frontend"
	NodeType       = "type.googleapis.com/fairlead.v1.Node"
)

// externalLocal is the prefix of the names of clusters with the endpoints of externalTrafficPolicy Local. A cluster without it
// balances over the endpoints of the cluster set.
const externalLocal = "external-local/"

// Limits of a cluster. Envoy's own defaults (1024 connections) would refuse clients that kube-proxy serves.
const unlimited = 1_000_000_000

// connectTimeout is how long Envoy waits for an endpoint before it tries another. The kernel resends a lost SYN after
// 1 s and 3 s, so 5 s forgives two losses.
const connectTimeout = 5 * time.Second

// Resource is one xDS resource before it is marshalled.
type Resource struct {
	TypeURL, Name string
	Message       proto.Message
}

// Resources returns what one Service contributes on the nodes that see it as frontends: clusters, then assignments,
// then frontends, each in the order of frontends.
func Resources(frontends []model.Frontend) []Resource {
	var clusters, assignments, fronts []Resource
	known := map[string]bool{} // Sets that have their assignment.
	add := func(f *model.Frontend, external bool, set *model.EndpointSet) {
		// What the kernel forwards has clusters, too, where Envoy can have connections from before the Service asked for class
		// direct: Envoy closes the connections of a cluster that is removed.
		if f.Protocol == model.TCP {
			name := clusterName(f.Name(), external)
			clusters = append(clusters, Resource{TypeURL: ClusterType, Name: name, Message: cluster(name, set.Name)})
		}
		if !known[set.Name] {
			known[set.Name] = true
			assignments = append(assignments, Resource{TypeURL: AssignmentType, Name: set.Name, Message: assignment(set)})
		}
	}
	for i := range frontends {
		f := &frontends[i]
		if set := f.Routes[model.FromPod].Set; set != nil {
			add(f, false, set)
		}
		if outside := f.Routes[model.FromOutside]; f.ExternalEndpoints() && outside.Set != nil {
			add(f, true, outside.Set)
		}
		fronts = append(fronts, Resource{TypeURL: FrontendType, Name: f.Name(), Message: frontend(f)})
	}
	return append(append(clusters, assignments...), fronts...)
}

// clusterName returns the name under which a node's listeners look for the cluster of a frontend, by the frontend's name.
func clusterName(frontend string, external bool) string {
	name, _, _ := strings.Cut(frontend, "/")
	if external {
		name = externalLocal + name
	}
	return name
}

// cluster returns the cluster of a frontend. It depends on nothing but its two names: Envoy drains the connections of
// a cluster that changes, so all that changes is in the assignment.
func cluster(name, set string) *clusterpb.Cluster {
	return &clusterpb.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_EDS},
		EdsClusterConfig:     &clusterpb.Cluster_EdsClusterConfig{ServiceName: set, EdsConfig: adsSource()},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LbPolicy:             clusterpb.Cluster_ROUND_ROBIN,
		// A panicking balancer would send to endpoints that are known to be bad.
		CommonLbConfig:                &clusterpb.Cluster_CommonLbConfig{HealthyPanicThreshold: &typepb.Percent{}},
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferLimit),
		UpstreamConnectionOptions:     &clusterpb.UpstreamConnectionOptions{TcpKeepalive: keepalive()},
		CircuitBreakers: &clusterpb.CircuitBreakers{Thresholds: []*clusterpb.CircuitBreakers_Thresholds{{
			MaxConnections:     wrapperspb.UInt32(unlimited),
			MaxPendingRequests: wrapperspb.UInt32(unlimited),
			MaxRequests:        wrapperspb.UInt32(unlimited),
			MaxRetries:         wrapperspb.UInt32(unlimited),
		}}},
	}
}

// adsSource is the config source of a resource that is served over the same stream as the cluster.
func adsSource() *corepb.ConfigSource {
	return &corepb.ConfigSource{
		ResourceApiVersion:    corepb.ApiVersion_V3,
		ConfigSourceSpecifier: &corepb.ConfigSource_Ads{Ads: &corepb.AggregatedConfigSource{}},
	}
}

// keepalive detects dead peers: idle connections are otherwise kept for ever, as kube-proxy keeps them.
func keepalive() *corepb.TcpKeepalive {
	return &corepb.TcpKeepalive{
		KeepaliveTime:     wrapperspb.UInt32(300),
		KeepaliveInterval: wrapperspb.UInt32(30),
		KeepaliveProbes:   wrapperspb.UInt32(4),
	}
}

// assignment returns the endpoints of a set. gRPC ignores a locality without a weight and rejects an assignment
// without localities' names; weights by size keep the balance even over all endpoints.
func assignment(set *model.EndpointSet) *endpointpb.ClusterLoadAssignment {
	cla := &endpointpb.ClusterLoadAssignment{
		ClusterName: set.Name,
		// One healthy endpoint is enough to keep a priority: never spill over because others are not.
		Policy: &endpointpb.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(1_000_000)},
	}
	byZone := map[string]*endpointpb.LocalityLbEndpoints{}
	for i := range set.Endpoints {
		e := &set.Endpoints[i]
		locality := byZone[e.Zone]
		if locality == nil {
			locality = &endpointpb.LocalityLbEndpoints{Locality: &corepb.Locality{Zone: e.Zone}, LoadBalancingWeight: wrapperspb.UInt32(0)}
			byZone[e.Zone] = locality
			cla.Endpoints = append(cla.Endpoints, locality)
		}
		locality.LoadBalancingWeight.Value++
		locality.LbEndpoints = append(locality.LbEndpoints, &endpointpb.LbEndpoint{
			HostIdentifier: &endpointpb.LbEndpoint_Endpoint{Endpoint: &endpointpb.Endpoint{
				Address: address(e.AddrPort.Addr().String(), e.AddrPort.Port(), corepb.SocketAddress_TCP),
			}},
		})
	}
	return cla
}

// address returns a socket address.
func address(ip string, port uint16, protocol corepb.SocketAddress_Protocol) *corepb.Address {
	return &corepb.Address{Address: &corepb.Address_SocketAddress{SocketAddress: &corepb.SocketAddress{
		Protocol:      protocol,
		Address:       ip,
		PortSpecifier: &corepb.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// frontend returns the agent's input for a frontend.
func frontend(f *model.Frontend) *frontendpb.Frontend {
	pb := &frontendpb.Frontend{
		Ipv6:     f.Family == model.IPv6,
		Port:     uint32(f.Port),
		Protocol: string(f.Protocol),
		Kind:     string(f.Kind),
		Service:  f.ServicePort.String(),
		Pod:      route(f, model.FromPod),
		Node:     route(f, model.FromNode),
		Outside:  route(f, model.FromOutside),
	}
	if f.Address.IsValid() {
		pb.Address = f.Address.AsSlice()
	}
	if h := f.HealthCheck; h != nil {
		pb.HealthCheck = &frontendpb.HealthCheck{Port: uint32(h.Port), LocalEndpoints: uint32(h.LocalEndpoints)}
	}
	if f.Direct != nil {
		pb.Direct = direct(f, pb)
		if f.Protocol != model.TCP {
			none := &frontendpb.Route{Verdict: frontendpb.Verdict_REFUSE}
			pb.Pod, pb.Node, pb.Outside = none, none, none
		}
	}
	if r := f.SourceRanges; r != nil {
		pb.Limited = &frontendpb.Limited{Ranges: r.Strings(), Pod: pb.GetPod(), Node: pb.GetNode(), Outside: pb.GetOutside()}
		for _, a := range r.Addresses {
			pb.Limited.Addresses = append(pb.Limited.Addresses, a.AsSlice())
		}
		closed := &frontendpb.Route{Verdict: frontendpb.Verdict_DROP}
		pb.Pod, pb.Node, pb.Outside = closed, closed, closed
	}
	return pb
}

// direct returns how the kernel forwards a frontend with the routes of pb.
func direct(f *model.Frontend, pb *frontendpb.Frontend) *frontendpb.Direct {
	d := &frontendpb.Direct{
		Endpoints: f.Routes[model.FromPod].Set.Name, AffinitySeconds: uint32(f.Direct.Affinity.Seconds()),
		Pod: pb.GetPod(), Node: pb.GetNode(), Outside: pb.GetOutside(),
	}
	if f.ExternalEndpoints() {
		d.External = f.Routes[model.FromOutside].Set.Name
	}
	return d
}

// Routes returns what happens to connections to a frontend, by origin, whether or not everyone may connect.
func Routes(f *frontendpb.Frontend) [model.Origins]*frontendpb.Route {
	if d := f.GetDirect(); d != nil {
		return [model.Origins]*frontendpb.Route{d.GetPod(), d.GetNode(), d.GetOutside()}
	}
	if l := f.GetLimited(); l != nil {
		return [model.Origins]*frontendpb.Route{l.GetPod(), l.GetNode(), l.GetOutside()}
	}
	return [model.Origins]*frontendpb.Route{f.GetPod(), f.GetNode(), f.GetOutside()}
}

// route returns the verdict and the class of one origin's connections.
func route(f *model.Frontend, origin model.Origin) *frontendpb.Route {
	switch f.Routes[origin].Verdict {
	case model.Refuse:
		return &frontendpb.Route{Verdict: frontendpb.Verdict_REFUSE}
	case model.Drop:
		return &frontendpb.Route{Verdict: frontendpb.Verdict_DROP}
	default:
		return &frontendpb.Route{Verdict: frontendpb.Verdict_FORWARD, Class: frontendpb.ClassOf(f, origin)}
	}
}

// ClusterNames returns the clusters by which a node forwards connections to the frontend f of that name; none if the kernel
// forwards them itself.
func ClusterNames(frontend string, f *frontendpb.Frontend) []string {
	if f.GetDirect() != nil {
		return nil
	}
	var names []string
	for _, r := range Routes(f) {
		class := r.GetClass()
		if class == frontendpb.Class_CLASS_UNSPECIFIED {
			continue
		}
		if name := clusterName(frontend, class == frontendpb.Class_EXTERNAL); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
