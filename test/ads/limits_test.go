package ads

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservicepb "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/fairlead/fairlead/server/xds"
)

// limited starts a control plane that knows its clients by the metadata "client", and limits those that are no agents.
func limited(t *testing.T) *control {
	t.Helper()
	limits := xds.Limits{RequestBytes: 4096, Names: 10, Streams: 2}
	return serve(t, xds.Config{Authenticate: func(ctx context.Context) (xds.Client, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		name := strings.Join(md.Get("client"), "")
		if name == "agent" {
			return xds.Client{Identity: name}, nil
		}
		return xds.Client{Identity: name, Limits: limits}, nil
	}})
}

// deltaOf and sotwOf open a stream of a client by its name.
func (c *control) deltaOf(client string) delta {
	c.t.Helper()
	return delta{newClient(c.t, node(client, ""), func(ctx context.Context, o ...grpc.CallOption) (grpc.BidiStreamingClient[discoverypb.DeltaDiscoveryRequest, discoverypb.DeltaDiscoveryResponse], error) {
		return c.ads().DeltaAggregatedResources(metadata.AppendToOutgoingContext(ctx, "client", client), o...)
	})}
}

func (c *control) sotwOf(client string) sotw {
	c.t.Helper()
	return sotw{newClient(c.t, node(client, ""), func(ctx context.Context, o ...grpc.CallOption) (grpc.BidiStreamingClient[discoverypb.DiscoveryRequest, discoverypb.DiscoveryResponse], error) {
		return c.ads().StreamAggregatedResources(metadata.AppendToOutgoingContext(ctx, "client", client), o...)
	})}
}

// names returns different names, of 20 bytes each.
func names(from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprintf("default/web-%03d:h/TCP", i))
	}
	return all
}

// TestLimits: a client with limits that asks for more is told what it may, and loses the stream.
func TestLimits(t *testing.T) {
	c := limited(t)
	c.publish(units(t, web("10.1.0.1")))
	for _, test := range []struct {
		name string
		ask  func() error
		want string // A part of the reason.
	}{
		{"a large request", func() error {
			n := c.deltaOf("pod")
			n.subscribe(assignments, strings.Repeat("x", 5000))
			return n.wantEnd()
		}, "bytes, and one of a client of this kind may have 4096"},
		{"a large request, state of the world", func() error {
			n := c.sotwOf("pod")
			n.subscribe(nil, assignments, strings.Repeat("x", 5000))
			return n.wantEnd()
		}, "bytes, and one of a client of this kind may have 4096"},
		{"a large request, later", func() error {
			n := c.deltaOf("pod")
			n.subscribe(assignments, webAssignment)
			n.take(assignments, []string{webAssignment}, nil)
			n.subscribe(assignments, strings.Repeat("x", 5000))
			return n.wantEnd()
		}, "bytes, and one of a client of this kind may have 4096"},
		{"requests that are too large to be taken in", func() error {
			others := c.conn
			defer func() { c.conn = others }()
			c.conn = dial(t, others.Target()) // It is closed.
			n := c.deltaOf("pod")
			n.subscribe(assignments, strings.Repeat("x", 12<<20))
			return n.wantEnd()
		}, "under way on one connection"},
		{"many names", func() error {
			n := c.deltaOf("pod")
			n.subscribe(assignments, names(0, 11)...)
			return n.wantEnd()
		}, "may subscribe to 10 resources of a type"},
		{"many names, state of the world", func() error {
			n := c.sotwOf("pod")
			n.subscribe(nil, assignments, names(0, 11)...)
			return n.wantEnd()
		}, "may subscribe to 10 resources of a type"},
		{"many names, one after another", func() error {
			n := c.deltaOf("pod")
			n.subscribe(assignments, names(0, 10)...)
			n.take(assignments, nil, names(0, 10))
			n.subscribe(assignments, names(10, 11)...)
			return n.wantEnd()
		}, "may subscribe to 10 resources of a type"},
		{"many names in a Fetch", func() error {
			ctx := metadata.AppendToOutgoingContext(context.Background(), "client", "pod")
			_, err := endpointservicepb.NewEndpointDiscoveryServiceClient(c.conn).FetchEndpoints(ctx, &discoverypb.DiscoveryRequest{
				Node: node("pod", ""), ResourceNames: names(0, 11),
			})
			return err
		}, "may name 10 resources of a type"},
		{"no acknowledgement", func() error {
			n := c.deltaOf("pod")
			for range 66 {
				n.subscribe(assignments, webAssignment)
			}
			return n.wantEnd()
		}, "responses of " + assignments + " are not acknowledged"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := test.ask(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want ResourceExhausted: …%s…", err, test.want)
			}
		})
	}
	agent := c.deltaOf("agent")
	agent.subscribe(assignments, names(0, 1000)...)
	agent.take(assignments, nil, names(0, 1000))
	large := strings.Repeat("x", 12<<20)
	agent.subscribe(assignments, large)
	agent.take(assignments, nil, []string{large})
	if got := len(c.Status()); got != 1 {
		t.Errorf("the cache has %d subscriptions, want that of the agent alone", got)
	}
}

// TestSilentConnections: connections that say nothing keep out nobody, also not who comes from the same address.
func TestSilentConnections(t *testing.T) {
	c := limited(t)
	c.publish(units(t, web("10.1.0.1")))
	before := c.deltaOf("agent")
	before.subscribe(clusters)
	before.take(clusters, []string{webCluster}, nil)
	for range 1500 {
		conn, err := net.Dial("tcp", c.conn.Target())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	began := time.Now()
	c.conn = dial(t, c.conn.Target())
	n := c.deltaOf("agent")
	n.subscribe(clusters)
	n.take(clusters, []string{webCluster}, nil)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("an agent was served after %v", took)
	}
	before.wantNothing()
}

// TestUnusedStreams: a client that opens streams and resets them, which costs it nothing, loses its connection.
//
//  1. An agent opens many streams, uses and ends them: the connection stays.
//  2. On the same connection a client without a token, or one with, opens and resets as many without a request: the log says
//     that the connection is closed.
//  3. On another one an agent is served.
func TestUnusedStreams(t *testing.T) {
	for _, client := range []string{"", "agent"} {
		t.Run("client "+client, func(t *testing.T) {
			logged := make(logs, 1000)
			c := serve(t, xds.Config{Log: slog.New(slog.NewTextHandler(logged, nil)), Authenticate: func(ctx context.Context) (xds.Client, error) {
				if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("client")) == 0 {
					return xds.Client{}, status.Error(codes.Unauthenticated, "no token")
				}
				return xds.Client{Identity: "agent"}, nil
			}})
			c.publish(units(t, web("10.1.0.1")))
			ctx := context.Background()
			if client != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "client", client)
			}
			for range 250 {
				n := c.deltaOf("agent")
				n.subscribe(clusters)
				n.take(clusters, []string{webCluster}, nil)
				n.cancel()
			}
			for len(logged) > 0 {
				if line := <-logged; strings.Contains(line, "xds connection closed") {
					t.Fatal(line)
				}
			}
			eventually(t, "the connection is closed", func() bool {
				for range 50 { // gRPC does not send a stream that is reset before its turn to be written.
					reset, cancel := context.WithCancel(ctx)
					if _, err := c.ads().DeltaAggregatedResources(reset); err != nil && status.Code(err) != codes.Unavailable {
						t.Error(err)
					}
					cancel()
				}
				for len(logged) > 0 {
					if strings.Contains(<-logged, "too many streams were opened and ended without a request") {
						return true
					}
				}
				return false
			})
			c.conn = dial(t, c.conn.Target())
			n := c.deltaOf("agent")
			n.subscribe(clusters)
			n.take(clusters, []string{webCluster}, nil)
		})
	}
}

// TestStreamLimit: an identity has as many streams as it may, on all connections together.
//
//  1. A client opens two streams, and a third on another connection: that is refused, and the two go on.
//  2. Another client, and an agent with many streams, are served.
//  3. One of the two ends: there is room for another.
func TestStreamLimit(t *testing.T) {
	c := limited(t)
	c.publish(units(t, web("10.1.0.1")))
	open := func(client string) delta {
		n := c.deltaOf(client)
		n.subscribe(clusters)
		return n
	}
	served := func(n delta) { n.take(clusters, []string{webCluster}, nil) }
	one, two := open("pod"), open("pod")
	served(one)
	served(two)
	first := c.conn
	c.conn = dial(t, first.Target())
	if err := open("pod").wantEnd(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "pod has 2 streams") {
		t.Errorf("the third stream ends with %v", err)
	}
	two.wantNothing()
	served(open("other"))
	for range 5 {
		served(open("agent"))
	}
	one.cancel()
	eventually(t, "the server knows that the stream has ended", func() bool {
		n := open("pod")
		select {
		case m := <-n.got:
			n.ack(m)
			return true
		case <-n.failed:
			return false
		}
	})
}
