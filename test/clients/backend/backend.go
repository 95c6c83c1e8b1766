// Package backend is the gRPC service that the test clients call: it answers every call with its name. There is no
// protobuf in it, so that a client in any language is a few lines and needs no generated code.
package backend

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
)

// Method is what clients call. Requests are empty.
const Method = "/fairlead.test.Backend/Name"

// text is a codec that sends strings as they are.
type text struct{}

func (text) Name() string { return "text" }

func (text) Marshal(v any) ([]byte, error) {
	s, ok := v.(*string)
	if !ok {
		return nil, fmt.Errorf("message is a %T, not a *string", v)
	}
	return []byte(*s), nil
}

func (text) Unmarshal(data []byte, v any) error {
	s, ok := v.(*string)
	if !ok {
		return fmt.Errorf("message is a %T, not a *string", v)
	}
	*s = string(data)
	return nil
}

// New returns a server that answers with a name.
func New(name string) *grpc.Server {
	return grpc.NewServer(grpc.ForceServerCodec(text{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		var request string
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		return stream.SendMsg(&name)
	}))
}

// Ask makes one call and returns the name of the backend that answered.
func Ask(ctx context.Context, conn *grpc.ClientConn) (name string, err error) {
	var request string
	err = conn.Invoke(ctx, Method, &request, &name, grpc.ForceCodec(text{}))
	return name, err
}
