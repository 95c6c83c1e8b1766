package envoy

import (
	"fmt"
	"time"

	bootstrappb "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterpb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	metricspb "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	httppb "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherpb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// GenerationKey is the field of Envoy's node metadata that holds the number of the Envoy instance.
const GenerationKey = "generation"

// How long a thread of Envoy may hang before Envoy ends itself.
const (
	workerKill     = 10 * time.Second
	mainThreadKill = time.Minute
)

// Bootstrap is the configuration that one Envoy instance starts with.
type Bootstrap struct {
	Node        string // The node's name, which Envoy reports as its id.
	Instance    int    // Counts the Envoys of a node; two may run while one replaces the other.
	XDSSocket   string // Path of the agent's unix socket.
	AdminSocket string // Path at which Envoy serves its admin interface.
}

// JSON returns the bootstrap in the form that Envoy reads from a file.
func (b Bootstrap) JSON() ([]byte, error) {
	xds, err := b.xdsCluster()
	if err != nil {
		return nil, err
	}
	out := &bootstrappb.Bootstrap{
		Node: &corepb.Node{
			Id: b.Node, Cluster: "fairlead",
			Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{GenerationKey: structpb.NewNumberValue(float64(b.Instance))}},
		},
		Admin: &bootstrappb.Admin{Address: pipe(b.AdminSocket, 0o600)},
		DynamicResources: &bootstrappb.Bootstrap_DynamicResources{
			AdsConfig: &corepb.ApiConfigSource{
				ApiType: corepb.ApiConfigSource_DELTA_GRPC, TransportApiVersion: corepb.ApiVersion_V3, SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corepb.GrpcService{{TargetSpecifier: &corepb.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corepb.GrpcService_EnvoyGrpc{ClusterName: "agent"}}}},
			},
			CdsConfig: adsSource(), LdsConfig: adsSource(),
		},
		StaticResources: &bootstrappb.Bootstrap_StaticResources{Clusters: []*clusterpb.Cluster{xds}},
		// A worker builds a cluster when it first uses it: most of ten thousand Services are never used by one node.
		ClusterManager: &bootstrappb.ClusterManager{EnableDeferredClusterCreation: true},
		StatsConfig:    &metricspb.StatsConfig{StatsMatcher: statsMatcher()},
		// Envoy ends itself when one of its threads hangs, and its container starts anew: nobody else sees that one worker of
		// several does. The main thread may be busy for seconds with the resources of a large cluster.
		Watchdogs: &bootstrappb.Watchdogs{
			WorkerWatchdog:     &bootstrappb.Watchdog{KillTimeout: durationpb.New(workerKill)},
			MainThreadWatchdog: &bootstrappb.Watchdog{KillTimeout: durationpb.New(mainThreadKill)},
		},
	}
	if err := out.ValidateAll(); err != nil {
		return nil, fmt.Errorf("bootstrap of node %q: %w", b.Node, err)
	}
	return protojson.MarshalOptions{UseProtoNames: true, Multiline: true}.Marshal(out)
}

// xdsCluster is the static cluster of the agent's xDS server.
func (b Bootstrap) xdsCluster() (*clusterpb.Cluster, error) {
	options, err := anypb.New(&httppb.HttpProtocolOptions{UpstreamProtocolOptions: &httppb.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httppb.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httppb.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corepb.Http2ProtocolOptions{
				ConnectionKeepalive: &corepb.KeepaliveSettings{Interval: durationpb.New(10 * time.Second), Timeout: durationpb.New(5 * time.Second)},
			}},
		},
	}})
	if err != nil {
		return nil, err
	}
	return &clusterpb.Cluster{
		Name: "agent", ClusterDiscoveryType: &clusterpb.Cluster_Type{Type: clusterpb.Cluster_STATIC}, ConnectTimeout: durationpb.New(time.Second),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
		LoadAssignment: &endpointpb.ClusterLoadAssignment{ClusterName: "agent", Endpoints: []*endpointpb.LocalityLbEndpoints{{
			LbEndpoints: []*endpointpb.LbEndpoint{{HostIdentifier: &endpointpb.LbEndpoint_Endpoint{Endpoint: &endpointpb.Endpoint{Address: pipe(b.XDSSocket, 0)}}}},
		}}},
	}, nil
}

// pipe returns the address of a unix socket.
func pipe(path string, mode uint32) *corepb.Address {
	return &corepb.Address{Address: &corepb.Address_Pipe{Pipe: &corepb.Pipe{Path: path, Mode: mode}}}
}

// statsMatcher keeps the statistics whose number does not grow with the number of Services: a cluster's own cost
// about half of its 44 KB.
func statsMatcher() *metricspb.StatsMatcher {
	prefix := func(s string) *matcherpb.StringMatcher {
		return &matcherpb.StringMatcher{MatchPattern: &matcherpb.StringMatcher_Prefix{Prefix: s}}
	}
	return &metricspb.StatsMatcher{StatsMatcher: &metricspb.StatsMatcher_InclusionList{InclusionList: &matcherpb.ListStringMatcher{
		Patterns: []*matcherpb.StringMatcher{
			prefix("cluster.agent."), prefix("cluster_manager."), prefix("listener."), prefix("listener_manager."),
			prefix("server."), prefix("tcp."), prefix("control_plane."),
		},
	}}}
}
