// Package xds talks xDS: it serves a cache to Envoys, agents and proxyless gRPC clients over gRPC.
package xds

import (
	"context"
	"log/slog"
	"net"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/credentials"

	"github.com/fairlead/fairlead/cache"
)

// Config is what a Server needs.
type Config struct {
	Cache *cache.Cache
	Log   *slog.Logger // Nil discards.

	// Credentials secure the connections. Nil means plaintext, for unix sockets and loopback.
	Credentials credentials.TransportCredentials
	// Authorize decides whether a client may be node. It is called for every request of every stream and Fetch, before
	// anything is answered; ctx has the peer. An error that is no gRPC status becomes PermissionDenied. Nil lets
	// everybody be any node, for unix sockets and loopback.
	Authorize func(ctx context.Context, node *corepb.Node) error

	// MaxConnectionAge is when a client is asked to reconnect, give or take a tenth, so that clients spread over
	// replicas again. 0 means never. It is not used on unix sockets.
	MaxConnectionAge time.Duration
	// SendTimeout is how long a client may leave a response unread before its connection is closed. 0 means 30 s.
	SendTimeout time.Duration
	// StopTimeout is how long Serve waits for streams to end by themselves. 0 means 5 s.
	StopTimeout time.Duration
}

// Server serves one cache, on any number of listeners.
type Server struct {
	cfg Config
}

// New returns a server that does nothing until Serve is called.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Serve accepts connections on l until ctx ends, which returns nil, or l fails. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	<-ctx.Done()
	return l.Close()
}
