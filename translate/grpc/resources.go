// Package grpc turns Services into the resources by which gRPC programs balance over their endpoints themselves, without
// a proxy, and builds the bootstrap of such a program.
//
// A Service's frontends come in, protobuf messages go out. The package does no I/O, and decides nothing
// about endpoints: a client gets the assignment that its node's Envoy gets, chosen by the same view.
//
// A client that dials xds:///web.default:80 asks for four resources, each named by the one before:
//
//	Listener               web.default:80                        follows from its name   Domain.Derive
//	RouteConfiguration     web.default.svc.cluster.local:80      part of the Service     Domain.Routes
//	Cluster                default/web:http/TCP                  follows from its name   Domain.Derive
//	ClusterLoadAssignment  default/web:http/TCP                  Envoy's                 translate/envoy
//
// So all that is kept for the sake of gRPC is one small route for each name of a port, however many ways there are to
// write it, and all churn is in an assignment that exists anyway. What follows from a name is made when a client asks
// for it; nobody who asks for everything, as agents do, is sent any of it.
//
// A Listener exists for every name that can be dialled, and a RouteConfiguration too: where there is no such port, it
// matches no call, so that calls fail at once for want of a route. Leaving the resource out would make clients wait for
// 15 s before they call it missing, and those that keep deleted resources (gRFC A88) would go on as if nothing had
// happened when a Service is deleted.
package grpc

import (
	"slices"
	"strconv"
	"strings"

	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerpb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	managerpb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	roundrobinpb "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/model"
)

// unlimited lifts gRPC's limit of 1024 calls at a time to one cluster from one process.
const unlimited = 1_000_000_000

// maxName is the longest name, in bytes, that a resource is derived from: longer than any that can be dialled, and short
// enough that a small request cannot cause a large response.
const maxName = 512

// nowhere is a cluster without endpoints. No call gets there, but a RouteConfiguration has to name a cluster.
const nowhere = "no-such-service"

// Routes returns the RouteConfigurations of a Service, in order of its ports: by number, then by name. The frontends are
// the Service's, as any node sees them: which endpoints there are is not a matter of the route.
func (d Domain) Routes(s *model.Service, frontends []model.Frontend) []envoy.Resource {
	var all []envoy.Resource
	add := func(port, set string) {
		name := d.format(target{s.Key, port})
		all = append(all, envoy.Resource{TypeURL: gcpresource.RouteType, Name: name, Message: route(name, set)})
	}
	for _, p := range s.Ports {
		set := setOf(s, p, frontends)
		if set == nil {
			continue
		}
		add(strconv.Itoa(int(p.Port)), set.Name)
		if p.Name != "" && !numbered(s, p.Name) {
			add(p.Name, set.Name)
		}
	}
	return all
}

// setOf returns the endpoints that a pod gets which connects to a port at the Service's cluster IP; nil if it cannot, or
// the port is not TCP. Of two families it is the first that the Service lists, which is the one that it prefers: the
// families' endpoints are the same pods twice, and a client that had both would count each of them double.
func setOf(s *model.Service, p model.Port, frontends []model.Frontend) *model.EndpointSet {
	if p.Protocol != model.TCP {
		return nil
	}
	for _, ip := range s.ClusterIPs {
		for i := range frontends {
			f := &frontends[i]
			if f.Kind == model.ClusterIP && f.Address == ip && f.Port == p.Port && f.Protocol == p.Protocol {
				return f.Routes[model.FromPod].Set
			}
		}
	}
	return nil
}

// numbered reports whether a port's name is the number of a TCP port, which then has it: Kubernetes lets a port be named
// 80 and have another number.
func numbered(s *model.Service, name string) bool {
	return slices.ContainsFunc(s.Ports, func(p model.Port) bool {
		return p.Protocol == model.TCP && strconv.Itoa(int(p.Port)) == name
	})
}

// Derive returns the resource that follows from its name alone, if one does: the Listener of whatever a client dials,
// the RouteConfiguration of a port that does not exist, and the Cluster of a set of endpoints.
func (d Domain) Derive(typeURL, name string) (envoy.Resource, bool) {
	var m proto.Message
	switch {
	case len(name) > maxName:
		return envoy.Resource{}, false
	case typeURL == gcpresource.ClusterType:
		if !isSet(name) && name != nowhere {
			return envoy.Resource{}, false
		}
		m = cluster(name)
	case strings.ContainsAny(name, "/?"):
		// A resource of a federated control plane (xdstp://…), or the Listener of a gRPC server, which brings its own
		// prefix: neither is dialled.
		return envoy.Resource{}, false
	case typeURL == gcpresource.ListenerType:
		routes := name
		if t, ok := d.parse(name); ok {
			routes = d.format(t)
		}
		m = listener(name, routes)
	case typeURL == gcpresource.RouteType:
		m = noRoute(name)
	case typeURL == gcpresource.EndpointType && name == nowhere:
		m = &endpointpb.ClusterLoadAssignment{ClusterName: name}
	default:
		return envoy.Resource{}, false
	}
	return envoy.Resource{TypeURL: typeURL, Name: name, Message: m}, true
}

// isSet reports whether a name has the form of a model.EndpointSet's for TCP: namespace/name:port/TCP, and what follows.
// The clusters of frontends, whose names are addresses, have not.
func isSet(name string) bool {
	service, rest, found := strings.Cut(name, ":")
	if !found || strings.Count(service, "/") != 1 {
		return false
	}
	_, rest, found = strings.Cut(rest, "/")
	protocol, _, _ := strings.Cut(rest, "/")
	return found && protocol == string(model.TCP)
}

// listener returns the Listener of a name that a client dials.
func listener(name, routes string) *listenerpb.Listener {
	manager := &managerpb.HttpConnectionManager{
		StatPrefix: "grpc",
		RouteSpecifier: &managerpb.HttpConnectionManager_Rds{
			Rds: &managerpb.Rds{RouteConfigName: routes, ConfigSource: ads()},
		},
		HttpFilters: []*managerpb.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &managerpb.HttpFilter_TypedConfig{TypedConfig: packed(&routerpb.Router{})},
		}},
	}
	return &listenerpb.Listener{Name: name, ApiListener: &listenerpb.ApiListener{ApiListener: packed(manager)}}
}

// route returns a RouteConfiguration that routes all calls to one set of endpoints, whatever form of the name was dialled.
func route(name, set string) *routepb.RouteConfiguration {
	return routeIf(&routepb.RouteMatch{PathSpecifier: &routepb.RouteMatch_Prefix{}}, name, set)
}

// noRoute returns a RouteConfiguration that matches no call: every method has a name after the slash.
//
// Less would do for grpc-go and the C++ core. But without a virtual host, Node.js lets calls wait for their deadlines,
// and without a route Java reports a mistake of its own.
func noRoute(name string) *routepb.RouteConfiguration {
	return routeIf(&routepb.RouteMatch{PathSpecifier: &routepb.RouteMatch_Path{Path: "/"}}, name, nowhere)
}

func routeIf(match *routepb.RouteMatch, name, set string) *routepb.RouteConfiguration {
	return &routepb.RouteConfiguration{
		Name: name,
		VirtualHosts: []*routepb.VirtualHost{{
			Name:    name,
			Domains: []string{"*"},
			Routes: []*routepb.Route{{
				Match: match,
				Action: &routepb.Route_Route{Route: &routepb.RouteAction{
					ClusterSpecifier: &routepb.RouteAction_Cluster{Cluster: set},
				}},
			}},
		}},
	}
}

// cluster returns the Cluster of a set of endpoints.
//
// Its policy takes turns over all endpoints. The older field lb_policy, which clients from before gRFC A52 read, takes
// turns within a zone only, and picks the zone by chance, in proportion to its endpoints.
func cluster(set string) *clusterpb.Cluster {
	return &clusterpb.Cluster{
		Name:                 set,
		ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_EDS},
		EdsClusterConfig:     &clusterpb.Cluster_EdsClusterConfig{EdsConfig: ads()},
		LbPolicy:             clusterpb.Cluster_ROUND_ROBIN,
		LoadBalancingPolicy: &clusterpb.LoadBalancingPolicy{Policies: []*clusterpb.LoadBalancingPolicy_Policy{{
			TypedExtensionConfig: &corepb.TypedExtensionConfig{
				Name:        "envoy.load_balancing_policies.round_robin",
				TypedConfig: packed(&roundrobinpb.RoundRobin{}),
			},
		}}},
		CircuitBreakers: &clusterpb.CircuitBreakers{Thresholds: []*clusterpb.CircuitBreakers_Thresholds{{
			MaxRequests: wrapperspb.UInt32(unlimited),
		}}},
	}
}

// ads is the config source of a resource that is served over the same stream as the one that refers to it.
func ads() *corepb.ConfigSource {
	return &corepb.ConfigSource{
		ResourceApiVersion:    corepb.ApiVersion_V3,
		ConfigSourceSpecifier: &corepb.ConfigSource_Ads{Ads: &corepb.AggregatedConfigSource{}},
	}
}

// packed wraps a message in an Any. Packing fails only for text that is
// not valid UTF-8; such a name never gets here, neither from the API server nor from a client.
func packed(m proto.Message) *anypb.Any {
	value, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return &anypb.Any{TypeUrl: gcpresource.APITypePrefix + string(m.ProtoReflect().Descriptor().FullName()), Value: value}
}
