// Package ads proves what clients may rely on: the xDS protocol, delta and state of the world, over real streams.
//
// Each test serves a cache on loopback and plays the client by hand, message by message. Resources are those of real
// Services. That a client gets nothing is proven by a request which has to be answered: responses keep their order.
package ads

import (
	"context"
	"net"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
)

// deadline is how long anything may take that should happen at once.
const deadline = 10 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// event is a call of the cache's Observer.
type event struct {
	node, typeURL string
	since, seq    uint64
	nack          string
}

// observer hands events to a test.
type observer chan event

func (o observer) Acked(node, typeURL string, since, seq uint64) {
	o <- event{node: node, typeURL: typeURL, since: since, seq: seq}
}
func (o observer) Nacked(node, typeURL, detail string) {
	o <- event{node: node, typeURL: typeURL, nack: detail}
}

// control is a control plane: a cache and its server.
type control struct {
	*cache.Cache
	t      *testing.T
	conn   *grpc.ClientConn
	events observer
	stop   func()
}

// serve starts a control plane with a configuration, whose cache it sets.
func serve(t *testing.T, cfg xds.Config) *control {
	t.Helper()
	return serveCache(t, cfg, cache.Config{})
}

// serveCache is serve with a configuration of the cache, whose observer it sets.
func serveCache(t *testing.T, cfg xds.Config, cached cache.Config) *control {
	t.Helper()
	events := make(observer, 1000)
	cached.Observer = events
	c := &control{t: t, events: events, Cache: cache.New(cached)}
	cfg.Cache = c.Cache

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- xds.New(cfg).Serve(ctx, listener) }()
	c.conn = dial(t, listener.Addr().String())
	c.stop = func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		served <- nil
	}
	t.Cleanup(c.stop)
	return c
}

// dial returns a connection with the smallest windows that gRPC has, so that a client that does not read is noticed
// early.
func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ads returns the aggregated service.
func (c *control) ads() discoverypb.AggregatedDiscoveryServiceClient {
	return discoverypb.NewAggregatedDiscoveryServiceClient(c.conn)
}

// publish publishes units under their IDs.
func (c *control) publish(units map[string]cache.Contribution) uint64 {
	return c.Publish(cache.Update{Contributions: units})
}

// wantEvent waits for the next call of the observer.
func (c *control) wantEvent(want event) {
	c.t.Helper()
	select {
	case got := <-c.events:
		if got != want {
			c.t.Fatalf("observer was told %+v, want %+v", got, want)
		}
	case <-time.After(deadline):
		c.t.Fatalf("observer was not told %+v", want)
	}
}

// wantApplied checks how far the cache thinks that a node is.
func (c *control) wantApplied(node, typeURL string, want uint64) {
	c.t.Helper()
	if got := c.Applied(node, typeURL); got != want {
		c.t.Fatalf("Applied(%s, %s) = %d, want %d", node, typeURL, got, want)
	}
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(deadline)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %v: %s", deadline, what)
		}
	}
}

// node is a client's description of itself.
func node(id, zone string) *corepb.Node {
	return &corepb.Node{Id: id, Locality: &corepb.Locality{Zone: zone}}
}
