package upstream

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// Two types stand for all: the client never looks into a resource.
const (
	clusters  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	frontends = "type.googleapis.com/fairlead.v1.Frontend"
)

// deadline bounds every wait of these tests; no test waits for it to pass.
const deadline = 10 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// controlPlane is a delta ADS server on loopback that does only what the test says.
type controlPlane struct {
	discoverypb.UnimplementedAggregatedDiscoveryServiceServer
	address string
	server  *grpc.Server
	streams chan *serverStream // Every stream that a client opens.
}

// serverStream is the server's end of one stream. What the test does not take from requests is not read.
type serverStream struct {
	t        *testing.T
	ads      discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	requests chan *discoverypb.DeltaDiscoveryRequest
	end      chan error
}

func newControlPlane(t *testing.T) *controlPlane {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &controlPlane{
		address: listener.Addr().String(),
		server:  grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage)),
		streams: make(chan *serverStream),
	}
	discoverypb.RegisterAggregatedDiscoveryServiceServer(p.server, p)
	served := make(chan error, 1)
	go func() { served <- p.server.Serve(listener) }()
	t.Cleanup(func() {
		p.server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *controlPlane) DeltaAggregatedResources(
	ads discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer,
) error {
	s := &serverStream{ads: ads, requests: make(chan *discoverypb.DeltaDiscoveryRequest), end: make(chan error)}
	ctx := ads.Context()
	select {
	case p.streams <- s:
	case <-ctx.Done():
		return ctx.Err()
	}
	go func() {
		for {
			request, err := ads.Recv()
			if err != nil {
				return
			}
			select {
			case s.requests <- request:
			case <-ctx.Done():
				return
			}
		}
	}()
	select {
	case err := <-s.end:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// accept waits for a client's stream.
func (p *controlPlane) accept(t *testing.T) *serverStream {
	t.Helper()
	s := take(t, p.streams)
	s.t = t
	return s
}

// subscribed takes one first request per type and returns them by type.
func (s *serverStream) subscribed(n int) map[string]*discoverypb.DeltaDiscoveryRequest {
	s.t.Helper()
	requests := map[string]*discoverypb.DeltaDiscoveryRequest{}
	for range n {
		r := take(s.t, s.requests)
		if names := r.GetResourceNamesSubscribe(); len(names) != 1 || names[0] != "*" || r.GetResponseNonce() != "" {
			s.t.Fatalf("first request = %v, want a wildcard subscription", r)
		}
		if r.GetNode().GetId() != "n1" {
			s.t.Fatalf("node.id = %q, want n1", r.GetNode().GetId())
		}
		requests[r.GetTypeUrl()] = r
	}
	if len(requests) != n {
		s.t.Fatalf("subscribed to %d types, want %d", len(requests), n)
	}
	return requests
}

// send sends a response; changed has name, version, name, version and so on.
func (s *serverStream) send(typeURL, nonce string, changed []string, removed ...string) {
	s.t.Helper()
	response := &discoverypb.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: nonce, RemovedResources: removed}
	for i := 0; i < len(changed); i += 2 {
		response.Resources = append(response.Resources, resource(typeURL, changed[i], changed[i+1]))
	}
	if err := s.ads.Send(response); err != nil {
		s.t.Fatal(err)
	}
}

// wantReply takes the next request and checks that it answers the nonce; message is empty for an ACK.
func (s *serverStream) wantReply(typeURL, nonce, message string) {
	s.t.Helper()
	r := take(s.t, s.requests)
	if r.GetTypeUrl() != typeURL || r.GetResponseNonce() != nonce || r.GetErrorDetail().GetMessage() != message {
		s.t.Fatalf("request = %v, want type %s, nonce %s, error %q", r, typeURL, nonce, message)
	}
	if len(r.GetResourceNamesSubscribe()) != 0 || len(r.GetInitialResourceVersions()) != 0 {
		s.t.Fatalf("reply = %v, want no subscription in it", r)
	}
}

// resource has its version as its body, so that a test sees which one arrived.
func resource(typeURL, name, version string) *discoverypb.Resource {
	metadata, err := structpb.NewStruct(map[string]any{"traceparent": "trace of " + name})
	if err != nil {
		panic(err)
	}
	return &discoverypb.Resource{
		Name: name, Version: version,
		Resource: &anypb.Any{TypeUrl: typeURL, Value: []byte(version)},
		Metadata: &corepb.Metadata{FilterMetadata: map[string]*structpb.Struct{"fairlead": metadata}},
	}
}

// running is a client and what stops it.
type running struct {
	*Client
	stop func() error // Ends Run and returns its error; more calls return the same.
}

// start runs a client of the addresses; adjust, if any, changes it before it runs.
func start(t *testing.T, config Config, adjust ...func(*Client)) *running {
	t.Helper()
	c, err := New(complete(config))
	if err != nil {
		t.Fatal(err)
	}
	c.wait = func(context.Context, time.Duration) {} // Pauses are the subject of one test only.
	for _, f := range adjust {
		f(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- c.Run(ctx) }()
	r := &running{Client: c, stop: func() error {
		cancel()
		err := <-result
		result <- err
		return err
	}}
	t.Cleanup(func() { _ = r.stop() })
	return r
}

func complete(config Config) Config {
	config.Node = "n1"
	if config.Types == nil {
		config.Types = []string{clusters, frontends}
	}
	config.DialOptions = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	config.Logger = slog.New(slog.DiscardHandler)
	return config
}

// update takes the next update and checks its content, written like "+a=1 +b=2 -c".
func (r *running) update(t *testing.T, typeURL, want string) Update {
	t.Helper()
	u := take(t, r.Updates())
	if got := describe(u); u.Type != typeURL || got != want {
		t.Fatalf("update of %s: %q, want of %s: %q", u.Type, got, typeURL, want)
	}
	return u
}

func describe(u Update) string {
	text := ""
	for _, r := range u.Changed {
		if string(r.Any.GetValue()) != r.Version || r.Traceparent != "trace of "+r.Name {
			return "inconsistent resource " + r.Name
		}
		text += " +" + r.Name + "=" + r.Version
	}
	for _, name := range u.Removed {
		text += " -" + name
	}
	if text == "" {
		return ""
	}
	return text[1:]
}

func take[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(deadline):
		t.Fatal("nothing came before the deadline")
		panic("unreachable")
	}
}

// eventually waits for a condition that no channel announces.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(deadline); !condition(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not before the deadline: %s", what)
		}
	}
}

func (r *running) status(typeURL string) TypeStatus {
	for _, s := range r.Status().Types {
		if s.Type == typeURL {
			return s
		}
	}
	return TypeStatus{}
}

// What the agent says of itself comes with the first request of a stream, and again when it has changed: in a request that
// neither answers a response nor subscribes.
func TestReport(t *testing.T) {
	p := newControlPlane(t)
	began := time.Date(2026, 11, 26, 7, 0, 0, 0, time.UTC)
	client := start(t, Config{Addresses: []string{p.address}, Version: "v1.2.3"}, func(c *Client) {
		c.Report(frontendpb.Report{NotReady: "no Envoy", Since: began})
	})
	s := p.accept(t)
	for typeURL, r := range s.subscribed(2) {
		if got := frontendpb.ReportOf(r.GetNode()); got.NotReady != "no Envoy" || !got.Since.Equal(began) || r.GetNode().GetUserAgentVersion() != "v1.2.3" {
			t.Errorf("%s: the agent says %v", typeURL, r.GetNode())
		}
	}
	for r := range 2 { // The first report may be said once more.
		if r == 0 {
			client.Report(frontendpb.Report{Since: began})
		}
		request := take(t, s.requests)
		if request.GetResponseNonce() != "" || len(request.GetResourceNamesSubscribe()) != 0 || request.GetNode().GetId() != "n1" {
			t.Fatalf("request %v, want no more than a report", request)
		}
		if frontendpb.ReportOf(request.GetNode()).NotReady == "" {
			break
		}
	}
}
