package ads

import (
	"maps"
	"testing"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
)

// has is what a client has of each type.
type has struct{ clusters, assignments, frontends map[string]string }

// syncAll subscribes a new client to everything, by name where Envoy does, and returns what it gets.
func syncAll(c *control, id string) (delta, has) {
	c.t.Helper()
	n := c.delta(id, "z1")
	n.subscribe(clusters)
	first := n.take(clusters, []string{webCluster, "192.0.2.1:80"}, nil)
	n.subscribe(assignments, webAssignment)
	second := n.take(assignments, []string{webAssignment}, nil)
	n.subscribe(frontends, "*")
	third := n.take(frontends, []string{webFrontend, "192.0.2.1:80/TCP"}, nil)
	n.wantNothing()
	return n, has{versions(first), versions(second), versions(third)}
}

// resumeAll subscribes a new client to the same, with what it has.
func resumeAll(c *control, id string, h has) delta {
	c.t.Helper()
	n := c.delta(id, "z1")
	n.resume(clusters, maps.Clone(h.clusters))
	n.resume(assignments, maps.Clone(h.assignments), webAssignment)
	n.resume(frontends, maps.Clone(h.frontends), "*")
	return n
}

// TestReconnectWithKnownVersions: a client that has everything gets nothing.
//
//  1. A client syncs and its stream ends.
//  2. It reconnects with the versions that it has: nothing is sent, and it counts as up to date at once.
//  3. A change reaches it as before.
func TestReconnectWithKnownVersions(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, withIPs("192.0.2.1")))
	n, h := syncAll(c, "n1")
	n.cancel()

	again := resumeAll(c, "n1", h)
	again.wantNothing()
	c.wantApplied("n1", clusters, 1)
	c.wantApplied("n1", assignments, 1)

	c.publish(units(t, service{name: "web", ips: []string{"10.96.0.10", "192.0.2.1"}, endpoints: []endpoint{{ip: "10.1.0.2"}}}))
	again.wantAddresses(again.take(assignments, []string{webAssignment}, nil), "10.1.0.2")
	again.wantNothing()
}

// TestReconnectToAnotherReplica: replicas agree on versions, whatever they went through.
//
//  1. A client syncs with one replica.
//  2. Another replica has published other things, in another order, and then the same Services.
//  3. The client reconnects to it: nothing is sent.
func TestReconnectToAnotherReplica(t *testing.T) {
	one, two := serve(t, xds.Config{}), serve(t, xds.Config{})
	db := service{name: "db", ips: []string{"10.96.0.20"}}
	one.publish(units(t, withIPs("192.0.2.1")))
	_, h := syncAll(one, "n1")

	two.publish(units(t, db))
	two.publish(units(t, withIPs("192.0.2.9")))
	two.publish(units(t, withIPs("192.0.2.1")))
	two.publish(map[string]cache.Contribution{"default/db": nil})
	n := resumeAll(two, "n1", h)
	n.wantNothing()
	two.wantApplied("n1", clusters, 4)
}

// TestReconnectAfterChanges: a client is sent what changed while it was away, and told what went.
//
//  1. A client syncs and its stream ends.
//  2. The Service loses an address and gains another.
//  3. The client reconnects: it gets the new cluster, and the assignment since that is shared by the cluster; the old
//     cluster and frontend are removed.
func TestReconnectAfterChanges(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, withIPs("192.0.2.1")))
	n, h := syncAll(c, "n1")
	n.cancel()

	c.publish(units(t, withIPs("192.0.2.2")))
	again := c.delta("n1", "z1")
	again.resume(clusters, h.clusters)
	again.take(clusters, []string{"192.0.2.2:80"}, []string{"192.0.2.1:80"})
	again.resume(assignments, h.assignments, webAssignment)
	again.take(assignments, []string{webAssignment}, nil)
	again.resume(frontends, h.frontends, "*")
	again.take(frontends, []string{"192.0.2.2:80/TCP"}, []string{"192.0.2.1:80/TCP"})
	again.wantNothing()
}

// TestReconnectWithAnOldCluster: a client that had rejected a cluster, but accepted the assignment that came after it, needs
// both: Envoy warms the cluster until an assignment arrives after it, and does not ask for one that it watches already.
//
//  1. A client syncs; its stream ends, and it comes back with an old cluster and the present assignment: it gets the cluster,
//     and the assignment after it.
//  2. The same if it asks for the assignment only when it has acknowledged the cluster.
//  3. The same if it has no cluster at all.
//  4. What it asks for later, a cluster by its name, is followed by the assignment too.
func TestReconnectWithAnOldCluster(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, withIPs("192.0.2.1")))
	n, h := syncAll(c, "n1")
	n.cancel()

	old := maps.Clone(h.clusters)
	old[webCluster] = "old"
	at, late := c.delta("n1", "z1"), c.delta("n1", "z1")
	at.resume(clusters, old)
	at.resume(assignments, h.assignments, webAssignment)
	at.take(clusters, []string{webCluster}, nil)
	at.take(assignments, []string{webAssignment}, nil)
	at.wantNothing()

	late.resume(clusters, old)
	late.take(clusters, []string{webCluster}, nil)
	late.resume(assignments, h.assignments, webAssignment)
	late.take(assignments, []string{webAssignment}, nil)
	late.wantNothing()

	bare := c.delta("n1", "z1")
	bare.subscribe(clusters, webCluster)
	bare.take(clusters, []string{webCluster}, nil)
	bare.resume(assignments, h.assignments, webAssignment)
	bare.take(assignments, []string{webAssignment}, nil)
	bare.wantNothing()

	bare.subscribe(clusters, "192.0.2.1:80")
	bare.take(clusters, []string{"192.0.2.1:80"}, nil)
	bare.take(assignments, []string{webAssignment}, nil)
	bare.wantNothing()
}

// TestReconnectNamesGone: a client that comes back for a name that no longer exists is told.
//
//  1. A client has an assignment, by name; its stream ends, and the Service is removed.
//  2. It reconnects: the assignment is removed.
func TestReconnectNamesGone(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, withIPs("192.0.2.1")))
	n, h := syncAll(c, "n1")
	n.cancel()
	c.publish(map[string]cache.Contribution{"default/web": nil})
	again := c.delta("n1", "z1")
	again.resume(assignments, h.assignments, webAssignment)
	again.take(assignments, nil, []string{webAssignment})
	again.wantNothing()
}

// TestGoneClientsAreForgotten: nothing is kept of a stream that ended.
//
//  1. Delta and SotW clients of several nodes sync; all streams end.
//  2. The status becomes empty.
func TestGoneClientsAreForgotten(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, withIPs("192.0.2.1")))
	one, _ := syncAll(c, "n1")
	two, _ := syncAll(c, "n2")
	old := c.sotw("n3", "")
	old.subscribe(nil, clusters)
	old.want(clusters, 2)
	for _, cancel := range []func(){one.cancel, two.cancel, old.cancel} {
		cancel()
	}
	eventually(t, "the status is empty", func() bool { return len(c.Status()) == 0 })
}
