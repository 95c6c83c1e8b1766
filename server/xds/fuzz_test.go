package xds

import (
	"context"
	"io"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	gcpresource "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/translate/model"
)

// assignment is a contribution of one assignment.
type assignment struct{ resource cache.Resource }

func (assignment) Variant(model.View) string { return "" }
func (a assignment) Resources(string) ([]cache.Resource, error) {
	return []cache.Resource{a.resource}, nil
}

// frames is a stream of a client that sends bytes and then nothing more.
type frames struct {
	grpc.ServerStream
	ctx  context.Context
	left [][]byte
}

func (f *frames) Context() context.Context { return f.ctx }

func (f *frames) next(m proto.Message) error {
	if len(f.left) == 0 {
		return io.EOF
	}
	frame := f.left[0]
	f.left = f.left[1:]
	return proto.Unmarshal(frame, m)
}

type deltaFrames struct{ *frames }

func (deltaFrames) Send(*discoverypb.DeltaDiscoveryResponse) error { return nil }
func (f deltaFrames) Recv() (*discoverypb.DeltaDiscoveryRequest, error) {
	m := &discoverypb.DeltaDiscoveryRequest{}
	return m, f.next(m)
}

type sotwFrames struct{ *frames }

func (sotwFrames) Send(*discoverypb.DiscoveryResponse) error { return nil }
func (f sotwFrames) Recv() (*discoverypb.DiscoveryRequest, error) {
	m := &discoverypb.DiscoveryRequest{}
	return m, f.next(m)
}

// FuzzRequests sends the first requests of a stream, whatever they are, in both protocols: the stream ends with a status or
// without error, and nothing is left of it.
func FuzzRequests(f *testing.F) {
	resource, err := cache.NewResource(gcpresource.EndpointType, "default/web:http/TCP", &endpointpb.ClusterLoadAssignment{ClusterName: "default/web:http/TCP"})
	if err != nil {
		f.Fatal(err)
	}
	c := cache.New(cache.Config{Derive: func(_, name string) (cache.Resource, bool) {
		return cache.Resource{Name: name, TypeURL: resource.TypeURL, Version: "1", Body: resource.Body}, len(name) == 1
	}})
	c.Publish(cache.Update{Contributions: map[string]cache.Contribution{"default/web": assignment{resource}}})
	server := New(Config{Cache: c})
	add := func(requests ...proto.Message) {
		var frames [2][]byte
		for i, m := range requests {
			if frames[i], err = proto.Marshal(m); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(frames[0], frames[1])
	}
	node := &corepb.Node{Id: "n1", Locality: &corepb.Locality{Zone: "a"}}
	for _, typeURL := range []string{gcpresource.EndpointType, gcpresource.ClusterType, cache.FrontendType, ""} {
		add(&discoverypb.DeltaDiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNamesSubscribe: []string{"*", "default/web:http/TCP"}},
			&discoverypb.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: "1", ResourceNamesUnsubscribe: []string{"*"}, ErrorDetail: status.New(codes.Internal, "bad").Proto()})
		add(&discoverypb.DeltaDiscoveryRequest{Node: node, TypeUrl: typeURL, InitialResourceVersions: map[string]string{"a": "", "": "1"}})
		add(&discoverypb.DiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNames: []string{"a", "a", ""}},
			&discoverypb.DiscoveryRequest{Node: &corepb.Node{Id: "n2"}, TypeUrl: typeURL, VersionInfo: "1", ResponseNonce: "1"})
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		h := handler{server, t.Context()}
		for _, typeURL := range []string{"", gcpresource.EndpointType} {
			stream := func() *frames { return &frames{ctx: t.Context(), left: [][]byte{first, second}} }
			for protocol, err := range map[string]error{
				"delta": h.DeltaStreamHandler(deltaFrames{stream()}, typeURL), "sotw": h.StreamHandler(sotwFrames{stream()}, typeURL),
			} {
				if _, ok := status.FromError(err); !ok {
					t.Errorf("%s: error %v, which is no status", protocol, err)
				}
			}
		}
		if left := c.Status(); len(left) != 0 {
			t.Errorf("the cache still has %+v", left)
		}
	})
}
