package ads

import (
	"context"
	"slices"
	"testing"

	clusterservicepb "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservicepb "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
)

// both is a Service web and a Service db.
func both(t *testing.T, webIP, dbIP string) map[string]cache.Contribution {
	return units(t, web(webIP), service{name: "db", ips: []string{"10.96.0.20"}, endpoints: []endpoint{{ip: dbIP}}})
}

// TestSotw: state of the world, as an Envoy without delta asks for it.
//
//  1. A client asks for all clusters, then for the two assignments that they need.
//  2. One endpoint changes: the response has the assignment that changed, no other.
//  3. A Service goes: the response has all clusters that are left. There is no way to say that its assignment is gone.
//  4. Equal content has the same version as before, so that replicas agree.
func TestSotw(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(both(t, "10.1.0.1", "10.2.0.1"))
	n := c.sotw("n1", "z1")
	n.subscribe(nil, clusters)
	lastClusters := n.want(clusters, 2)
	n.subscribe(lastClusters, clusters)
	names := []string{webAssignment, "default/db:http/TCP"}
	n.subscribe(nil, assignments, names...)
	last := n.want(assignments, 2)
	n.subscribe(last, assignments, names...)
	first := lastClusters.GetVersionInfo()

	c.wantEvent(event{node: "n1", typeURL: clusters, since: 1, seq: 1})
	c.wantEvent(event{node: "n1", typeURL: assignments, since: 1, seq: 1})
	c.publish(both(t, "10.1.0.2", "10.2.0.1"))
	last = n.want(assignments, 1)
	if got := addresses(t, last.GetResources()[0]); !slices.Equal(got, []string{"10.1.0.2"}) {
		t.Errorf("endpoints %q", got)
	}
	n.subscribe(last, assignments, names...)
	c.wantEvent(event{node: "n1", typeURL: assignments, since: 2, seq: 2})

	c.publish(map[string]cache.Contribution{"default/db": nil})
	lastClusters = n.want(clusters, 1)
	n.subscribe(lastClusters, clusters)
	c.wantEvent(event{node: "n1", typeURL: clusters, since: 3, seq: 3})
	c.wantApplied("n1", assignments, 3)

	c.publish(both(t, "10.1.0.2", "10.2.0.1"))
	if got := n.want(clusters, 2).GetVersionInfo(); got != first {
		t.Errorf("version %s, want %s as for the same clusters before", got, first)
	}
}

// TestSotwByName: how a gRPC client asks: everything by name, and it waits until it is told that a name does not exist.
//
//  1. It asks for two clusters, of which one does not exist: the response has the other. It asks for a listener that
//     does not exist: the response is empty, at once.
//  2. It drops the cluster that exists: nothing to say. It asks for it again: it is sent again.
//  3. The other cluster appears: the response has both, since what is missing counts as removed.
//  4. It asks for a route that does not exist: the response is empty.
//  5. It asks for no names of a type: that is no wildcard, once it asked by name.
func TestSotwByName(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, web("10.1.0.1")))
	n := c.sotw("n1", "z1")
	n.subscribe(nil, clusters, webCluster, "10.96.0.20:80")
	m := n.want(clusters, 1)
	n.subscribe(nil, listeners, "absent")
	noListener := n.want(listeners, 0)

	n.subscribe(m, clusters, "10.96.0.20:80")
	n.subscribe(nil, clusters, "10.96.0.20:80", webCluster)
	m = n.want(clusters, 1)
	n.subscribe(m, clusters, "10.96.0.20:80", webCluster)
	c.wantEvent(event{node: "n1", typeURL: clusters, since: 1, seq: 1})
	c.wantEvent(event{node: "n1", typeURL: clusters, since: 1, seq: 1})

	c.publish(both(t, "10.1.0.1", "10.2.0.1"))
	n.want(clusters, 2)
	n.subscribe(nil, routes, "absent")
	n.want(routes, 0)
	n.subscribe(noListener, listeners)
	n.subscribe(nil, assignments)
	n.want(assignments, 0)
}

// TestSotwNack: a rejected response is not repeated, and counts until something else is accepted.
//
//  1. A client rejects its clusters: the observer learns why.
//  2. It asks for something else: the next response is the answer to that.
//  3. The clusters change, and it accepts them.
func TestSotwNack(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, web("10.1.0.1")))
	n := c.sotw("n1", "z1")
	n.subscribe(nil, clusters)
	m := n.want(clusters, 1)
	n.send(&discoverypb.DiscoveryRequest{TypeUrl: clusters, ResponseNonce: m.GetNonce(), ErrorDetail: status.New(codes.InvalidArgument, "no").Proto()})
	c.wantEvent(event{node: "n1", typeURL: clusters, nack: "no"})
	c.wantApplied("n1", clusters, 0)
	n.subscribe(nil, routes, "absent")
	n.want(routes, 0)

	c.publish(both(t, "10.1.0.1", "10.2.0.1"))
	n.subscribe(n.want(clusters, 2), clusters)
	c.wantEvent(event{node: "n1", typeURL: clusters, since: 2, seq: 2})
}

// TestServicesByType: the services of single types serve what ADS does.
//
//  1. A delta stream of the cluster service needs no type in its requests.
//  2. A SotW stream of the endpoint service gets a change after the first response.
//  3. Fetch returns all clusters at once; of assignments, those that it names.
func TestServicesByType(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, web("10.1.0.1")))
	d := delta{newClient(t, node("n1", ""), clusterservicepb.NewClusterDiscoveryServiceClient(c.conn).DeltaClusters)}
	d.subscribe("")
	d.take(clusters, []string{webCluster}, nil)

	s := sotw{newClient(t, node("n1", ""), endpointservicepb.NewEndpointDiscoveryServiceClient(c.conn).StreamEndpoints)}
	s.subscribe(nil, "", webAssignment)
	m := s.want(assignments, 1)
	s.subscribe(m, "", webAssignment)
	c.publish(units(t, web("10.1.0.2")))
	s.subscribe(s.want(assignments, 1), "", webAssignment)

	fetched, err := clusterservicepb.NewClusterDiscoveryServiceClient(c.conn).FetchClusters(context.Background(), &discoverypb.DiscoveryRequest{Node: node("n1", "")})
	if err != nil || len(fetched.GetResources()) != 1 {
		t.Errorf("fetched %v, error %v", fetched, err)
	}
	fetched, err = endpointservicepb.NewEndpointDiscoveryServiceClient(c.conn).FetchEndpoints(context.Background(), &discoverypb.DiscoveryRequest{Node: node("n1", "")})
	if err != nil || len(fetched.GetResources()) != 0 {
		t.Errorf("fetched %v, error %v", fetched, err)
	}
}

// TestFetchBeforeFirstPublish: a request for the present state fails rather than return an empty world.
func TestFetchBeforeFirstPublish(t *testing.T) {
	c := serve(t, xds.Config{})
	_, err := clusterservicepb.NewClusterDiscoveryServiceClient(c.conn).FetchClusters(context.Background(), &discoverypb.DiscoveryRequest{Node: node("n1", "")})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("error %v, want code Unavailable", err)
	}
}
