package xds

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // The codec that sizeLimitingCodec wraps registers itself.
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// Client is what is known of a client before anything that it sends is read.
type Client struct {
	// Identity is who the client is, such as the pod that its token is bound to: the streams of one identity are counted
	// together, over all connections. If it is empty, those of one address are.
	Identity string
	// Until is when the client's streams end. The zero time means never.
	Until  time.Time
	Limits Limits
}

// Limits are how much a client may ask for. Who asks for more gets ResourceExhausted, and loses the stream. Zero means no
// limit but the server's.
type Limits struct {
	RequestBytes int // The size of one request.
	Names        int // Resources of one type that a stream subscribes to one by one, or a Fetch names.
	Streams      int // Streams of the client's identity at a time.
}

// limitsKey is where the context of a stream has the client's Limits.
type limitsKey struct{}

// limitsOf returns the limits of the client of a stream; none where clients are not authenticated.
func limitsOf(ctx context.Context) Limits {
	limits, _ := ctx.Value(limitsKey{}).(Limits)
	return limits
}

// limitedStream is the stream of a client with limits.
type limitedStream struct {
	grpc.ServerStream
	ctx        context.Context         // Ends when the client's time is over, or a limit is exceeded.
	end        context.CancelCauseFunc // Ends ctx, and so the stream.
	conn       *limitedConn            // Nil if it is not limited.
	maxRequest int                     // In bytes; 0 means no limit.
}

// Context returns the stream's context.
func (s limitedStream) Context() context.Context { return s.ctx }

// RecvMsg receives a request. One that is too large is not decoded, and ends the stream with the reason: go-control-plane's
// servers take every error for the end of what the client sends.
func (s limitedStream) RecvMsg(m any) error {
	sized := &sizedMessage{message: m, most: s.maxRequest}
	err := s.ServerStream.RecvMsg(sized)
	if s.conn != nil {
		s.conn.handedOver(int64(sized.size) + requestOverhead)
	}
	if sized.tooLarge != nil {
		s.end(sized.tooLarge)
		return sized.tooLarge
	}
	if s.conn != nil && err == nil {
		s.conn.unused.Store(0)
	}
	return err
}

// sizedMessage is a message to decode from at most so many bytes; 0 means any number.
type sizedMessage struct {
	message  any
	most     int
	size     int // In bytes, once it was received.
	tooLarge error
}

// sizeLimitingCodec refuses to decode what is too large for a sizedMessage. gRPC has one limit for a server, which is as
// large as the largest request of an agent; what a kind of client may send is known only once it has authenticated.
type sizeLimitingCodec struct{ encoding.CodecV2 }

// Unmarshal decodes a message. It has no error for one that is too large: gRPC would end the stream with a status of its own.
func (c sizeLimitingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	sized, ok := v.(*sizedMessage)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	sized.size = data.Len()
	if sized.most > 0 && sized.size > sized.most {
		sized.tooLarge = status.Errorf(codes.ResourceExhausted,
			"the request has %d bytes, and one of a client of this kind may have %d: subscribe to fewer resources at once", sized.size, sized.most)
		return nil
	}
	return c.CodecV2.Unmarshal(data, sized.message)
}

// tally counts what there is at present under each key. It is safe for concurrent use.
type tally struct {
	mu sync.Mutex // Guards what follows.
	of map[string]int
}

// enter counts one more, unless there are as many as there may be; 0 means any number.
func (t *tally) enter(key string, most int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if most > 0 && t.of[key] >= most {
		return false
	}
	t.of[key]++
	return true
}

// leave counts one less.
func (t *tally) leave(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of[key]--; t.of[key] == 0 {
		delete(t.of, key)
	}
}
