package ads

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointpb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// client is the other side of a stream with requests Req and responses Resp.
type client[Req, Resp any] struct {
	t       *testing.T
	node    *corepb.Node // For the next request; sent once.
	stream  grpc.BidiStreamingClient[Req, Resp]
	got     chan *Resp
	failed  chan error // Why the stream ended.
	cancel  context.CancelFunc
	barrier int
}

// newClient opens a stream and reads it.
func newClient[Req, Resp any](t *testing.T, n *corepb.Node, open func(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[Req, Resp], error)) *client[Req, Resp] {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := open(ctx, grpc.MaxCallRecvMsgSize(1<<30))
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	c := &client[Req, Resp]{t: t, node: n, stream: stream, got: make(chan *Resp, 1000), failed: make(chan error, 1), cancel: cancel}
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
	})
	go func() {
		defer close(done)
		for {
			m, err := stream.Recv()
			if err != nil {
				c.failed <- err
				return
			}
			c.got <- m
		}
	}()
	return c
}

// send sends a request. That the server has ended the stream already, which gRPC says with io.EOF, is for who receives.
func (c *client[Req, Resp]) send(req *Req) {
	c.t.Helper()
	if err := c.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		c.t.Fatal(err)
	}
}

// next returns the next response.
func (c *client[Req, Resp]) next() *Resp {
	c.t.Helper()
	select {
	case m := <-c.got:
		return m
	case err := <-c.failed:
		c.t.Fatalf("the stream ended: %v", err)
	case <-time.After(deadline):
		c.t.Fatal("no response")
	}
	return nil
}

// wantEnd waits for the stream to end with an error.
func (c *client[Req, Resp]) wantEnd() error {
	c.t.Helper()
	select {
	case err := <-c.failed:
		return err
	case <-time.After(deadline):
		c.t.Fatal("the stream goes on")
	}
	return nil
}

// once returns the node for the first request, nil for others.
func (c *client[Req, Resp]) once() *corepb.Node {
	n := c.node
	c.node = nil
	return n
}

// delta is a client of delta xDS.
type delta struct {
	*client[discoverypb.DeltaDiscoveryRequest, discoverypb.DeltaDiscoveryResponse]
}

// delta opens a delta stream.
func (c *control) delta(id, zone string) delta {
	c.t.Helper()
	return delta{newClient(c.t, node(id, zone), c.ads().DeltaAggregatedResources)}
}

// subscribe subscribes to names of a type; with none, it sends a request without.
func (c delta) subscribe(typeURL string, names ...string) {
	c.t.Helper()
	c.send(&discoverypb.DeltaDiscoveryRequest{Node: c.once(), TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

// unsubscribe ends subscriptions.
func (c delta) unsubscribe(typeURL string, names ...string) {
	c.t.Helper()
	c.send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesUnsubscribe: names})
}

// resume subscribes on a new stream, with what the client has.
func (c delta) resume(typeURL string, has map[string]string, names ...string) {
	c.t.Helper()
	c.send(&discoverypb.DeltaDiscoveryRequest{Node: c.once(), TypeUrl: typeURL, ResourceNamesSubscribe: names, InitialResourceVersions: has})
}

func (c delta) ack(m *discoverypb.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: m.GetTypeUrl(), ResponseNonce: m.GetNonce()})
}

func (c delta) nack(m *discoverypb.DeltaDiscoveryResponse, detail string) {
	c.t.Helper()
	c.send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: m.GetTypeUrl(), ResponseNonce: m.GetNonce(), ErrorDetail: status.New(codes.InvalidArgument, detail).Proto()})
}

// want returns the next response, which must have a type, resources and removed names. It is not acknowledged.
func (c delta) want(typeURL string, resources, removed []string) *discoverypb.DeltaDiscoveryResponse {
	c.t.Helper()
	m := c.next()
	var got []string
	for _, r := range m.GetResources() {
		got = append(got, r.GetName())
	}
	if m.GetTypeUrl() != typeURL || !slices.Equal(got, resources) || !slices.Equal(m.GetRemovedResources(), removed) {
		c.t.Fatalf("response of %s with %q, removed %q; want %s with %q, removed %q",
			m.GetTypeUrl(), got, m.GetRemovedResources(), typeURL, resources, removed)
	}
	return m
}

// take is want, and an acknowledgement.
func (c delta) take(typeURL string, resources, removed []string) *discoverypb.DeltaDiscoveryResponse {
	c.t.Helper()
	m := c.want(typeURL, resources, removed)
	c.ack(m)
	return m
}

// wantNothing makes sure that nothing was sent, and that nothing waits for an acknowledgement: it asks for a Node that
// does not exist, which is answered after all else.
func (c *delta) wantNothing() {
	c.t.Helper()
	c.barrier++
	name := "barrier " + strconv.Itoa(c.barrier)
	c.subscribe(nodes, name)
	c.take(nodes, nil, []string{name})
}

// versions returns what a client has after a response.
func versions(responses ...*discoverypb.DeltaDiscoveryResponse) map[string]string {
	has := map[string]string{}
	for _, m := range responses {
		for _, r := range m.GetResources() {
			has[r.GetName()] = r.GetVersion()
		}
	}
	return has
}

// sotw is a client of state-of-the-world xDS.
type sotw struct {
	*client[discoverypb.DiscoveryRequest, discoverypb.DiscoveryResponse]
}

// sotw opens a SotW stream.
func (c *control) sotw(id, zone string) sotw {
	c.t.Helper()
	return sotw{newClient(c.t, node(id, zone), c.ads().StreamAggregatedResources)}
}

// subscribe subscribes to names and no others. after is the last response of the type, nil for none; it is
// acknowledged along with it.
func (c sotw) subscribe(after *discoverypb.DiscoveryResponse, typeURL string, names ...string) {
	c.t.Helper()
	c.send(&discoverypb.DiscoveryRequest{
		Node: c.once(), TypeUrl: typeURL, ResourceNames: names, VersionInfo: after.GetVersionInfo(), ResponseNonce: after.GetNonce(),
	})
}

// want returns the next response, which must have a type and a number of resources.
func (c sotw) want(typeURL string, resources int) *discoverypb.DiscoveryResponse {
	c.t.Helper()
	m := c.next()
	if m.GetTypeUrl() != typeURL || len(m.GetResources()) != resources {
		c.t.Fatalf("response of %s with %d resources, want %s with %d", m.GetTypeUrl(), len(m.GetResources()), typeURL, resources)
	}
	return m
}

// addresses returns the endpoints in an assignment.
func addresses(t *testing.T, body *anypb.Any) []string {
	t.Helper()
	var a endpointpb.ClusterLoadAssignment
	if err := body.UnmarshalTo(&a); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, l := range a.GetEndpoints() {
		for _, e := range l.GetLbEndpoints() {
			all = append(all, e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
		}
	}
	slices.Sort(all)
	return all
}

// wantAddresses checks the endpoints of the only assignment in a response.
func (c delta) wantAddresses(m *discoverypb.DeltaDiscoveryResponse, want ...string) {
	c.t.Helper()
	if got := addresses(c.t, m.GetResources()[0].GetResource()); !slices.Equal(got, want) {
		c.t.Fatalf("endpoints %q, want %q", got, want)
	}
}
