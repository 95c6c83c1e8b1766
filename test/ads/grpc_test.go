package ads

import (
	"slices"
	"testing"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routepb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
	"github.com/fairlead/fairlead/translate/grpc"
	"github.com/fairlead/fairlead/translate/model"
)

// serveGRPC starts a control plane that serves proxyless gRPC clients.
func serveGRPC(t *testing.T) *control {
	t.Helper()
	return serveCache(t, xds.Config{}, cache.Config{Derive: func(typeURL, name string) (cache.Resource, bool) {
		r, ok := grpc.DefaultDomain.Derive(typeURL, name)
		if !ok {
			return cache.Resource{}, false
		}
		resource, err := cache.NewResource(r.TypeURL, r.Name, r.Message)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return resource, true
	}})
}

// proxyless opens a stream as a gRPC client in a pod on a node.
func (c *control) proxyless(pod, on string) sotw {
	c.t.Helper()
	n := node(pod, "")
	n.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{grpc.NodeKey: structpb.NewStringValue(on)}}
	return sotw{newClient(c.t, n, c.ads().StreamAggregatedResources)}
}

// cluster returns where the only route of a response leads, which must be for all calls or for none.
func cluster(t *testing.T, m *discoverypb.DiscoveryResponse) string {
	t.Helper()
	var r routepb.RouteConfiguration
	if err := m.GetResources()[0].UnmarshalTo(&r); err != nil {
		t.Fatal(err)
	}
	return r.GetVirtualHosts()[0].GetRoutes()[0].GetRoute().GetCluster()
}

// TestProxyless: a gRPC client asks by name for one resource after the other.
//
//  1. It asks for the Listener of a Service and gets it, with the route, the cluster and the endpoints.
//  2. It asks for another Service, which does not exist: it gets a Listener, and a route that leads nowhere, at once.
//  3. That Service appears: the client is sent the route, and nothing else. It goes: likewise.
//  4. An endpoint of the first changes: the client is sent the endpoints, and nothing else.
func TestProxyless(t *testing.T) {
	c := serveGRPC(t)
	c.publish(units(t, web("10.1.0.1")))
	n := c.proxyless("default/client-1", "n1")
	n.subscribe(nil, listeners, "web.default:80")
	lastListeners := n.want(listeners, 1)
	webRoute, dbRoute := "web.default.svc.cluster.local:80", "db.default.svc.cluster.local:http"
	n.subscribe(nil, routes, webRoute)
	lastRoutes := n.want(routes, 1)
	if got := cluster(t, lastRoutes); got != webAssignment {
		t.Fatalf("the route leads to %s", got)
	}
	n.subscribe(nil, clusters, webAssignment)
	n.subscribe(n.want(clusters, 1), clusters, webAssignment)
	n.subscribe(nil, assignments, webAssignment)
	lastAssignments := n.want(assignments, 1)

	n.subscribe(lastListeners, listeners, "web.default:80", "db.default:http")
	lastListeners = n.want(listeners, 2) // State of the world.
	n.subscribe(lastListeners, listeners, "web.default:80", "db.default:http")
	n.subscribe(lastRoutes, routes, webRoute, dbRoute)
	lastRoutes = n.want(routes, 1)
	nowhere := cluster(t, lastRoutes)
	n.subscribe(lastRoutes, routes, webRoute, dbRoute)

	for _, step := range []struct {
		unit cache.Contribution
		want string
	}{{both(t, "10.1.0.1", "10.2.0.1")["default/db"], "default/db:http/TCP"}, {nil, nowhere}} {
		c.publish(map[string]cache.Contribution{"default/db": step.unit})
		lastRoutes = n.want(routes, 1)
		if got := cluster(t, lastRoutes); got != step.want {
			t.Errorf("the route leads to %s, want %s", got, step.want)
		}
		n.subscribe(lastRoutes, routes, webRoute, dbRoute)
	}

	n.subscribe(lastAssignments, assignments, webAssignment)
	c.publish(units(t, web("10.1.0.2")))
	if got := addresses(t, n.want(assignments, 1).GetResources()[0]); !slices.Equal(got, []string{"10.1.0.2"}) {
		t.Errorf("endpoints %q", got)
	}
}

// TestDerivedIsForThoseWhoNameIt: whoever subscribes to everything is sent what Services contribute, and of what follows
// from names, nothing: not even when it names it besides.
func TestDerivedIsForThoseWhoNameIt(t *testing.T) {
	c := serveGRPC(t)
	c.publish(units(t, web("10.1.0.1")))
	agent := c.delta("n1", "")
	agent.subscribe(clusters)
	agent.take(clusters, []string{webCluster}, nil)
	agent.subscribe(clusters, webAssignment)
	agent.take(clusters, nil, []string{webAssignment})

	byName := c.delta("n2", "")
	byName.subscribe(clusters, webAssignment)
	byName.take(clusters, []string{webAssignment}, nil)
	byName.wantNothing()
}

// TestViewOfAPod: a gRPC client sees what the node sees that it runs on.
//
//  1. Two clients say that they run on n1 and on n2, which the cluster says are in z1 and z2: each gets the endpoint of
//     its zone. One that says nothing gets the endpoints of all.
//  2. n1 moves to z2: the first client alone is sent the endpoint of z2.
func TestViewOfAPod(t *testing.T) {
	c := serveGRPC(t)
	c.Publish(cache.Update{
		Contributions: units(t, zoned()),
		Views:         map[string]*model.View{"n1": {Node: "n1", Zone: "z1"}, "n2": {Node: "n2", Zone: "z2"}},
	})
	take := func(client sotw, want ...string) *discoverypb.DiscoveryResponse {
		t.Helper()
		m := client.want(assignments, 1)
		if got := addresses(t, m.GetResources()[0]); !slices.Equal(got, want) {
			t.Fatalf("endpoints %q, want %q", got, want)
		}
		client.subscribe(m, assignments, webAssignment)
		return m
	}
	first, second := c.proxyless("default/first", "n1"), c.proxyless("default/second", "n2")
	third := sotw{newClient(t, &corepb.Node{Id: "default/third"}, c.ads().StreamAggregatedResources)}
	for _, client := range []sotw{first, second, third} {
		client.subscribe(nil, assignments, webAssignment)
	}
	take(first, "10.1.0.1")
	take(second, "10.1.0.2")
	take(third, "10.1.0.1", "10.1.0.2")

	c.Publish(cache.Update{Views: map[string]*model.View{"n1": {Node: "n1", Zone: "z2"}}})
	take(first, "10.1.0.2")
	second.subscribe(nil, listeners, "web.default:80")
	second.want(listeners, 1)
	third.subscribe(nil, listeners, "web.default:80")
	third.want(listeners, 1)
}
