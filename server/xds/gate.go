package xds

import (
	"context"
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
			StreamName:    m.MethodName,
			ServerStreams: true, // Else gRPC takes the handler for that of a unary method, and leaves out the stream interceptor.
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

// authenticated lets an RPC through if Config.Authenticate does, within the client's limits, and ends it when that no
// longer holds.
func (s *Server) authenticated(impl any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	conn := connOf(stream.Context())
	if s.cfg.Authenticate == nil {
		if conn != nil {
			conn.authenticated()
		}
		return handle(impl, stream)
	}
	from := addressOf(stream.Context())
	who, err := s.cfg.Authenticate(withoutConn(stream.Context()))
	if err != nil {
		s.refusals.report(from, err, "xds client refused", "rpc", info.FullMethod)
		return asStatus(err)
	}
	if conn != nil {
		conn.authenticated()
	}
	err = s.handleWithin(who, stream, func(limited grpc.ServerStream) error { return handle(impl, limited) })
	if status.Code(err) == codes.ResourceExhausted {
		s.refusals.report(from, err, "xds client exceeds its limits", "client", who.Identity, "rpc", info.FullMethod)
	}
	return err
}

// handleWithin handles the stream of a client until the client's time is over, if it has no more streams than it may.
func (s *Server) handleWithin(who Client, stream grpc.ServerStream, handle func(grpc.ServerStream) error) error {
	key := who.Identity
	if key == "" {
		key = hostOf(addressOf(stream.Context()))
	}
	if !s.streams.enter(key, who.Limits.Streams) {
		return status.Errorf(codes.ResourceExhausted, "%s has %d streams, as many as it may: end one, or use it for more types", key, who.Limits.Streams)
	}
	defer s.streams.leave(key)
	conn := connOf(stream.Context())
	if conn != nil && who.Limits.RequestBytes == 0 {
		conn.agent.Store(true)
	}
	ctx, end := context.WithCancelCause(context.WithValue(stream.Context(), limitsKey{}, who.Limits))
	defer end(nil)
	if conn != nil {
		conn.handedOver(streamOverhead)
		stop := context.AfterFunc(conn.ctx, func() { end(context.Cause(conn.ctx)) })
		defer stop()
	}
	if !who.Until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, who.Until, errExpired)
		defer cancel()
	}
	err := handle(limitedStream{stream, ctx, end, conn, who.Limits.RequestBytes})
	if cause := context.Cause(ctx); cause != nil {
		if _, ours := status.FromError(cause); ours { // Not the stream's own end.
			return cause
		}
	}
	return err
}

// authorizeFetch is authorize for a request outside a stream.
func (s *Server) authorizeFetch(ctx context.Context, req *discoverypb.DiscoveryRequest) error {
	if most := limitsOf(ctx).Names; most > 0 && len(req.GetResourceNames()) > most {
		return status.Errorf(codes.ResourceExhausted, "a client of this kind may name %d resources of a type: the request names %d", most, len(req.GetResourceNames()))
	}
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
