// Package xds serves xDS over gRPC: it serves a cache to agents, Envoys and proxyless gRPC clients.
//
// In come connections and requests, delta and state of the world, aggregated or by type; out go the responses that the
// cache hands over, through go-control-plane's server. Config.Authenticate decides who a client is, before any
// request of it is read, and Config.Authorize what it may ask for, for each request. Both hold for every RPC; a refused
// client gets the reason as its error, and the log has it too. Client.Limits bound what one may ask for. The package
// never decides what is sent, nor keeps it.
//
// A client that does not keep up delays no other: each stream has a goroutine of its own, and the cache keeps
// at most one response for each type of it, and the names of what has changed since. A connection that is dead is
// found by keepalive within 25 s. One that is alive, but whose client does not read, is closed after
// Config.SendTimeout; HTTP/2's own pings do not notice, since the client's transport answers them.
package xds

import (
	"context"
	"log/slog"
	"net"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	clusterservicepb "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservicepb "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	listenerservicepb "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	routeservicepb "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	gcprest "github.com/envoyproxy/go-control-plane/pkg/server/rest/v3"
	gcpserver "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"

	"github.com/fairlead/fairlead/cache"
)

const (
	// maxRequest is the largest request of any client, in bytes. The first one on a stream names everything that an agent has, with
	// its version: 0.6 MiB for 10,000 resources. gRPC's own limit of 4 MiB leaves too little room above that.
	maxRequest = 16 << 20

	// window is the flow-control window of streams and connections, in bytes. A static one does without gRPC's
	// estimation of the bandwidth, which sends pings along with the data, and lets a first request arrive in one go.
	window = 1 << 20

	// maxStreams is how many streams one connection may have. Clients need one; by type and protocol, ten at most.
	maxStreams = 100

	// ageGrace is how long a connection lives after the client was asked to reconnect: long enough for it to have a
	// stream elsewhere, as subscriptions never end by themselves.
	ageGrace = 10 * time.Second

	// handshakeTimeout is how long a connection may take to speak TLS and HTTP/2, and idleTimeout how long it may then
	// exist without a stream: a client that does not authenticate gets no more than that.
	handshakeTimeout = 10 * time.Second
	idleTimeout      = time.Minute

	// maxHeader is the largest metadata of an RPC, in bytes. A token has about 1,200.
	maxHeader = 32 << 10
)

// Config is what a Server needs.
type Config struct {
	Cache *cache.Cache
	Log   *slog.Logger // Nil discards.

	// Credentials secure the connections. Nil means plaintext, for unix sockets and loopback.
	Credentials credentials.TransportCredentials
	// Authenticate decides, for each stream and each Fetch before anything of it is read, whether the client is known,
	// and how much it may ask for. Nil accepts every client without limits, for unix sockets and loopback.
	Authenticate func(ctx context.Context) (Client, error)
	// Authorize decides whether a client may be a node and ask for a type, which is empty if it is that of the RPC. It is
	// called for each request on each stream and each Fetch, before the request has any effect. Nil lets everybody be
	// any node, for unix sockets and loopback.
	//
	// Both find the peer and its credentials in ctx. Their errors reach the client as they are if they are a gRPC status,
	// and as PermissionDenied if they are not.
	Authorize func(ctx context.Context, node *corepb.Node, typeURL string) error

	// MaxConnectionAge is when a client is asked to reconnect, give or take a tenth, so that clients spread over
	// replicas again. 0 means never. Connections over unix sockets have no other replica to go to and stay.
	MaxConnectionAge time.Duration
	// SendTimeout is how long a client may leave what was sent unread before its connection is closed. 0 means 30 s.
	SendTimeout time.Duration
	// StopTimeout is how long Serve waits for streams to end before it cuts them. 0 means 5 s.
	StopTimeout time.Duration
}

// Server serves a cache, on any number of listeners.
type Server struct {
	cfg      Config
	refusals *refusals
	streams  *tally
}

// New returns a server that does nothing until Serve is called.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Credentials == nil {
		cfg.Credentials = insecure.NewCredentials()
	}
	if cfg.SendTimeout == 0 {
		cfg.SendTimeout = 30 * time.Second
	}
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = 5 * time.Second
	}
	return &Server{cfg: cfg, refusals: &refusals{log: cfg.Log, seen: map[refusal]*repetition{}}, streams: &tally{of: map[string]int{}}}
}

// Serve accepts connections on l, which it closes, until ctx ends or l fails. When ctx ends, it asks clients to
// reconnect elsewhere, ends their streams and returns nil, after StopTimeout at the latest.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	streams, endStreams := context.WithCancel(context.WithoutCancel(ctx))
	defer endStreams()
	g := grpc.NewServer(s.options(l.Addr().Network())...)
	register(gated{g}, gcpserver.NewServerAdvanced(
		gcprest.NewServer(s.cfg.Cache, gcpserver.CallbackFuncs{FetchRequestFunc: s.authorizeFetch}),
		handler{s, streams}, handler{s, streams},
	))

	stopped := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(stopped)
		cut := time.AfterFunc(s.cfg.StopTimeout, g.Stop)
		defer cut.Stop()
		endStreams()
		g.GracefulStop()
	})
	err := g.Serve(s.limit(l))
	if cancel() {
		endStreams()
		g.Stop()
		return err
	}
	<-stopped
	return nil
}

// options returns the settings of a server on a network.
func (s *Server) options(network string) []grpc.ServerOption {
	// A node that has lost its power counts as connected until then.
	alive := keepalive.ServerParameters{Time: 15 * time.Second, Timeout: 10 * time.Second}
	if network != "unix" {
		alive.MaxConnectionIdle = idleTimeout
	}
	if network != "unix" && s.cfg.MaxConnectionAge > 0 {
		alive.MaxConnectionAge = s.cfg.MaxConnectionAge // gRPC adds the jitter.
		alive.MaxConnectionAgeGrace = ageGrace
	}
	return []grpc.ServerOption{
		grpc.Creds(connCredentials{s.cfg.Credentials, s.refusals}),
		grpc.InTapHandle(s.tap),
		grpc.StreamInterceptor(s.authenticated),
		grpc.ForceServerCodecV2(sizeLimitingCodec{encoding.GetCodecV2("proto")}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.KeepaliveParams(alive),
		// Clients may ping as often as Envoy's and gRPC's examples do, also before the first stream.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
	}
}

// register offers the aggregated service, and those of the types that clients ask for one by one.
func register(g grpc.ServiceRegistrar, s gcpserver.Server) {
	discoverypb.RegisterAggregatedDiscoveryServiceServer(g, s)
	clusterservicepb.RegisterClusterDiscoveryServiceServer(g, s)
	endpointservicepb.RegisterEndpointDiscoveryServiceServer(g, s)
	listenerservicepb.RegisterListenerDiscoveryServiceServer(g, s)
	routeservicepb.RegisterRouteDiscoveryServiceServer(g, s)
}
