package ads

import (
	"testing"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
)

// synced returns a client that has all of a Service web, as an agent has it: everything by wildcard.
func synced(c *control) delta {
	c.t.Helper()
	n := c.delta("n1", "z1")
	for typeURL, name := range map[string]string{clusters: webCluster, assignments: webAssignment, frontends: webFrontend} {
		n.subscribe(typeURL, "*")
		n.take(typeURL, []string{name}, nil)
	}
	n.wantNothing()
	return n
}

// withIPs is web with more addresses.
func withIPs(ips ...string) service {
	s := web("10.1.0.1")
	s.ips = append(s.ips, ips...)
	return s
}

// TestSecondClusterOfAnAssignment: Envoy warms a cluster when an assignment arrives after it, and does not ask for one
// that it watches already.
//
//  1. A client has a cluster and its assignment.
//  2. A second cluster appears that shares the assignment, whose endpoints are as before: the cluster comes first, then
//     the assignment once more, then the frontend.
func TestSecondClusterOfAnAssignment(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, withIPs()))
	n := synced(c)

	c.publish(units(t, withIPs("192.0.2.1")))
	n.take(clusters, []string{"192.0.2.1:80"}, nil)
	n.wantAddresses(n.take(assignments, []string{webAssignment}, nil), "10.1.0.1")
	n.take(frontends, []string{"192.0.2.1:80/TCP"}, nil)
	n.wantNothing()
}

// TestAssignmentWaitsForItsCluster: the order holds also when the client is slow to acknowledge.
//
//  1. A client gets a second cluster and has not acknowledged it when a third appears.
//  2. It acknowledges the assignment that came after the second: neither the third cluster, which has to wait, nor the
//     assignment, which must not overtake it, are sent.
//  3. It acknowledges the second cluster: the third comes, then the assignment.
func TestAssignmentWaitsForItsCluster(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, withIPs()))
	n := synced(c)

	c.publish(units(t, withIPs("192.0.2.1")))
	second := n.want(clusters, []string{"192.0.2.1:80"}, nil)
	assignment := n.want(assignments, []string{webAssignment}, nil)
	n.take(frontends, []string{"192.0.2.1:80/TCP"}, nil)
	c.publish(units(t, withIPs("192.0.2.1", "192.0.2.2")))
	n.ack(assignment)
	eventually(t, "the acknowledgement arrives", func() bool { return c.Has("n1", frontends, "192.0.2.1:80/TCP") })

	n.ack(second)
	n.take(clusters, []string{"192.0.2.2:80"}, nil)
	n.take(assignments, []string{webAssignment}, nil)
	n.take(frontends, []string{"192.0.2.2:80/TCP"}, nil)
	n.wantNothing()
}

// TestMakeBeforeBreak: what replaces something is there before that is gone.
//
//  1. A Service gets another address in place of its external one, in one publish.
//  2. The client gets the new cluster, the assignment and the new frontend.
//  3. Then the old frontend is removed, and after that the old cluster.
func TestMakeBeforeBreak(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, withIPs()))
	n := synced(c)
	c.publish(units(t, withIPs("192.0.2.1")))
	n.take(clusters, []string{"192.0.2.1:80"}, nil)
	n.take(assignments, []string{webAssignment}, nil)
	n.take(frontends, []string{"192.0.2.1:80/TCP"}, nil)
	n.wantNothing()

	c.publish(units(t, withIPs("192.0.2.2")))
	n.take(clusters, []string{"192.0.2.2:80"}, nil)
	n.take(assignments, []string{webAssignment}, nil)
	n.take(frontends, []string{"192.0.2.2:80/TCP"}, nil)
	n.take(frontends, nil, []string{"192.0.2.1:80/TCP"})
	n.take(clusters, nil, []string{"192.0.2.1:80"})
	n.wantNothing()
}

// TestContestedName: two units claim a name, and every replica must serve the same.
//
//  1. Two units with the same Service are there, with different endpoints: that with the lower ID is served.
//  2. The other changes: nothing is sent.
//  3. The served one goes: the other's endpoints take its place, with nothing removed in between.
func TestContestedName(t *testing.T) {
	c := serve(t, xds.Config{})
	unit := func(ip string) cache.Contribution { return units(t, web(ip))["default/web"] }
	c.publish(map[string]cache.Contribution{"b": unit("10.1.0.2")})
	c.publish(map[string]cache.Contribution{"a": unit("10.1.0.1")})
	n := c.delta("n1", "z1")
	n.subscribe(assignments, "*")
	n.wantAddresses(n.take(assignments, []string{webAssignment}, nil), "10.1.0.1")

	c.publish(map[string]cache.Contribution{"b": unit("10.1.0.3")})
	n.wantNothing()
	c.publish(map[string]cache.Contribution{"a": nil})
	n.wantAddresses(n.take(assignments, []string{webAssignment}, nil), "10.1.0.3")
	n.wantNothing()
	c.publish(map[string]cache.Contribution{"a": unit("10.1.0.1")})
	n.wantAddresses(n.take(assignments, []string{webAssignment}, nil), "10.1.0.1")
	n.wantNothing()
}
