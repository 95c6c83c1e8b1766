package xds

import (
	"context"
	"errors"
	"slices"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// gated registers services whose every RPC goes through Server.authenticated before it is read.
type gated struct{ *grpc.Server }

// RegisterService registers a service's unary methods as streams of one message each way, which is the same on the
// wire. gRPC reads the request of a unary method before its sender can be authenticated; that of a stream is read by its
// handler.
func (g gated) RegisterService(desc *grpc.ServiceDesc, impl any) {
	streamed := *desc
	streamed.Methods, streamed.Streams = nil, slices.Clone(desc.Streams)
	for _, m := range desc.Methods {
		streamed.Streams = append(streamed.Streams, grpc.StreamDesc{
			StreamName: m.MethodName,
			Handler: func(impl any, stream grpc.ServerStream) error {
				response, err := m.Handler(impl, stream.Context(), stream.RecvMsg, nil)
				if err != nil {
					return err
				}
				return stream.SendMsg(response)
			},
		})
	}
	g.Server.RegisterService(&streamed, impl)
}

// errExpired ends the streams of a client whose token has expired.
var errExpired = status.Error(codes.Unauthenticated, "the token of this stream has expired: connect again with the one that replaced it")

// authenticated lets an RPC through if Config.Authenticate does, and ends it when that no longer holds.
func (s *Server) authenticated(impl any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if s.cfg.Authenticate == nil {
		return handle(impl, stream)
	}
	until, err := s.cfg.Authenticate(withoutConn(stream.Context()))
	if err != nil {
		s.refusals.report(addressOf(stream.Context()), err, "xds client refused", "rpc", info.FullMethod)
		return asStatus(err)
	}
	if until.IsZero() {
		return handle(impl, stream)
	}
	ctx, cancel := context.WithDeadlineCause(stream.Context(), until, errExpired)
	defer cancel()
	err = handle(impl, expiring{stream, ctx})
	if cause := context.Cause(ctx); errors.Is(cause, errExpired) {
		return cause
	}
	return err
}

// expiring is a stream with a context that ends earlier.
type expiring struct {
	grpc.ServerStream
	ctx context.Context
}

// Context returns the context.
func (e expiring) Context() context.Context { return e.ctx }

// authorizeFetch is authorize for a request outside a stream.
func (s *Server) authorizeFetch(ctx context.Context, req *discoverypb.DiscoveryRequest) error {
	return s.authorize(ctx, req.GetNode(), req.GetTypeUrl())
}

// authorize asks Config.Authorize whether the peer in ctx may be node and ask for a type.
func (s *Server) authorize(ctx context.Context, node *corepb.Node, typeURL string) error {
	if s.cfg.Authorize == nil {
		return nil
	}
	err := s.cfg.Authorize(withoutConn(ctx), node, typeURL)
	if err == nil {
		return nil
	}
	s.refusals.report(addressOf(ctx), err, "xds request refused", "node", node.GetId(), "type", typeURL)
	return asStatus(err)
}

func asStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.PermissionDenied, err.Error())
}
