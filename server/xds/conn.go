package xds

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpstream "github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// connCredentials are credentials that remember the connection. gRPC has no way to close the connection of a stream
// whose client does not read: a handler that returns has its status queued behind what the client does not read.
type connCredentials struct {
	credentials.TransportCredentials
	refusals *refusals
}

// ServerHandshake is that of the credentials within. A peer that connects and sends nothing, as probes do, is not logged.
func (c connCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			c.refusals.report(raw.RemoteAddr(), err, "xds connection refused")
		}
		return nil, nil, err
	}
	return conn, connInfo{info, raw}, nil
}

// Clone returns a copy.
func (c connCredentials) Clone() credentials.TransportCredentials {
	return connCredentials{c.TransportCredentials.Clone(), c.refusals}
}

// connInfo is the AuthInfo of connCredentials: that of the credentials within, and the connection.
type connInfo struct {
	credentials.AuthInfo
	conn net.Conn
}

// withoutConn returns ctx with the peer as the credentials within know it, for those who check them.
func withoutConn(ctx context.Context) context.Context {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ctx
	}
	info, ok := p.AuthInfo.(connInfo)
	if !ok {
		return ctx
	}
	return peer.NewContext(ctx, &peer.Peer{Addr: p.Addr, LocalAddr: p.LocalAddr, AuthInfo: info.AuthInfo})
}

// guard closes the connection of a client that does not read.
type guard struct {
	timeout time.Duration
	timer   *time.Timer
}

// newGuard returns a guard for the client's connection.
func (c *client) newGuard() guard {
	timeout := c.server.cfg.SendTimeout
	timer := time.AfterFunc(timeout, func() {
		c.server.cfg.Log.Warn("xds connection closed: the client does not read", "peer", addressOf(c.ctx).String(), "timeout", timeout)
		if p, ok := peer.FromContext(c.ctx); ok {
			if info, ok := p.AuthInfo.(connInfo); ok {
				info.conn.Close() // An error changes nothing: the connection is abandoned.
			}
		}
	})
	timer.Stop()
	return guard{timeout, timer}
}

// during runs send, and closes the connection if that takes too long; then send fails.
func (g guard) during(send func() error) error {
	g.timer.Reset(g.timeout)
	defer g.timer.Stop()
	return send()
}

// addressOf returns the address of the client.
func addressOf(ctx context.Context) net.Addr {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr
	}
	return &net.UnixAddr{}
}

type sotwStream struct {
	gcpstream.Stream
	guard guard
}

// Send sends a response.
func (s sotwStream) Send(m *discoverypb.DiscoveryResponse) error {
	return s.guard.during(func() error { return s.Stream.Send(m) })
}

type deltaStream struct {
	gcpstream.DeltaStream
	guard  guard
	client *client
}

// Send sends a response.
func (s deltaStream) Send(m *discoverypb.DeltaDiscoveryResponse) error {
	return s.guard.during(func() error { return s.DeltaStream.Send(m) })
}

// Recv receives a request, and takes out of it what the client has.
func (s deltaStream) Recv() (*discoverypb.DeltaDiscoveryRequest, error) {
	m, err := s.DeltaStream.Recv()
	if err == nil && len(m.GetInitialResourceVersions()) > 0 {
		s.client.returned.Store(m, m.GetInitialResourceVersions())
		m.InitialResourceVersions = nil
	}
	return m, err
}
