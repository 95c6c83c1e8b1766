package xds

import (
	"context"
	"log/slog"
	"sync"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpcache "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	gcpconfig "github.com/envoyproxy/go-control-plane/pkg/server/config"
	gcpdelta "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	gcpsotw "github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	gcpstream "github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	gcpserver "github.com/envoyproxy/go-control-plane/pkg/server/v3"

	"github.com/fairlead/fairlead/cache"
)

// namedTypes are the types of which a request without names asks for nothing. Of the others, Listeners and Clusters,
// it asks for everything: the legacy wildcard, which Envoy relies on.
var namedTypes = []string{
	cache.NodeType, cache.FrontendType,
	gcpresource.EndpointType, gcpresource.RouteType, gcpresource.ScopedRouteType, gcpresource.VirtualHostType,
	gcpresource.SecretType, gcpresource.RuntimeType, gcpresource.ExtensionConfigType, gcpresource.RateLimitConfigType,
}

// handler gives each stream a server of go-control-plane's of its own, over the stream's own part of the cache.
type handler struct {
	server *Server
	ctx    context.Context // Ends when streams have to.
}

// StreamHandler serves one SotW stream; typeURL is empty for ADS.
func (h handler) StreamHandler(str gcpstream.Stream, typeURL string) error {
	c := h.server.newClient(str.Context(), "sotw")
	defer c.close()
	guarded := sotwStream{str, c.newGuard()}
	ctx, cancel := h.both(str.Context())
	defer cancel()
	return gcpsotw.NewServer(ctx, c.stream, c.callbacks(), gcpsotw.WithOrderedADS(), legacyWildcard()).StreamHandler(guarded, typeURL)
}

// DeltaStreamHandler serves one delta stream; typeURL is empty for ADS.
func (h handler) DeltaStreamHandler(str gcpstream.DeltaStream, typeURL string) error {
	c := h.server.newClient(str.Context(), "delta")
	defer c.close()
	guarded := deltaStream{str, c.newGuard(), c}
	ctx, cancel := h.both(str.Context())
	defer cancel()
	return gcpdelta.NewServer(ctx, returning{c.stream, c}, c.callbacks(), legacyWildcard()).DeltaStreamHandler(guarded, typeURL)
}

// both returns a context that ends when streams have to, or when the given one of a stream does: go-control-plane's
// server looks at one alone while the client is silent.
func (h handler) both(stream context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(h.ctx)
	stop := context.AfterFunc(stream, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

func legacyWildcard() gcpconfig.XDSOption {
	return gcpdelta.DeactivateLegacyWildcardForTypes(namedTypes)
}

// client is the other side of one stream. It belongs to the goroutine of the stream.
type client struct {
	server *Server
	ctx    context.Context
	stream *cache.Stream
	log    *slog.Logger
	node   *corepb.Node // From the last request that had one; clients mostly send it once.
	nacks  repetition   // Of all types together.

	// returned has the initial_resource_versions of delta requests on their way to the cache, by request. The goroutine that
	// receives them enters them.
	returned sync.Map
}

// returning is the cache's part of a delta stream. It hands the cache what a client has beside go-control-plane's server, which
// would keep that map, of megabytes for an agent, until it sends a response of the type: to a client that lacks nothing, never.
type returning struct {
	*cache.Stream
	client *client
}

// CreateDeltaWatch is that of the stream.
func (r returning) CreateDeltaWatch(req *discoverypb.DeltaDiscoveryRequest, sub gcpcache.Subscription, responses chan gcpcache.DeltaResponse) (func(), error) {
	if versions, ok := r.client.returned.LoadAndDelete(req); ok {
		sub = returned{sub, versions.(map[string]string)}
	}
	return r.Stream.CreateDeltaWatch(req, sub, responses)
}

// returned is a subscription of a client that has resources already.
type returned struct {
	gcpcache.Subscription
	versions map[string]string
}

// ReturnedResources returns the versions that the client has, by name.
func (r returned) ReturnedResources() map[string]string { return r.versions }

// newClient enters a stream in the cache.
func (s *Server) newClient(ctx context.Context, protocol string) *client {
	log := s.cfg.Log.With("protocol", protocol, "peer", addressOf(ctx).String())
	c := &client{server: s, ctx: ctx, log: log}
	c.stream = s.cfg.Cache.OpenStream(cache.StreamConfig{MaxNames: limitsOf(ctx).Names, Nacked: c.nacked})
	return c
}

// close ends the client's stream in the cache.
func (c *client) close() {
	c.stream.Close()
	if c.node != nil {
		c.log.Info("xds stream closed")
	}
}

// callbacks are called on the goroutine of the stream, before the cache is.
func (c *client) callbacks() gcpserver.CallbackFuncs {
	return gcpserver.CallbackFuncs{
		StreamRequestFunc: func(_ int64, req *discoverypb.DiscoveryRequest) error {
			return c.request(req.GetNode(), req.GetTypeUrl())
		},
		StreamDeltaRequestFunc: func(_ int64, req *discoverypb.DeltaDiscoveryRequest) error {
			return c.request(req.GetNode(), req.GetTypeUrl())
		},
	}
}

// request decides whether a request may have an effect. An error ends the stream.
func (c *client) request(node *corepb.Node, typeURL string) error {
	first := c.node == nil
	if node != nil {
		c.node = node
	}
	if err := c.server.authorize(c.ctx, c.node, typeURL); err != nil {
		return err
	}
	if first && c.node != nil {
		c.log = c.log.With("node", c.node.GetId())
		c.log.Info("xds stream opened")
	}
	return nil
}

// nacked logs that the client has rejected a response, once in refusalInterval, with how often that was left out: the status
// of the node has the last reason. The cache calls it for responses that it has sent, with an excerpt of the reason.
func (c *client) nacked(typeURL, detail string) {
	omitted, ok := c.nacks.admit(time.Now())
	if !ok {
		return
	}
	args := []any{
		"type", typeURL, "detail", detail,
		"effect", "the client goes on with what it had for the resources named in the detail; they are not sent again until they change",
	}
	if omitted > 0 {
		args = append(args, "omitted", omitted)
	}
	c.log.Error("client rejected resources", args...)
}
