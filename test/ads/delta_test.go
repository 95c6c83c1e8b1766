package ads

import (
	"testing"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
)

// TestDeltaFirstSync: what an Envoy and an agent ask for when they start.
//
//  1. A client subscribes to all clusters without a name, the legacy wildcard: it gets them.
//  2. It asks for the assignment that the cluster needs: it gets that one.
//  3. It subscribes to all frontends with the explicit wildcard: it gets them.
//  4. All is acknowledged: the observer is told, and nothing else comes.
func TestDeltaFirstSync(t *testing.T) {
	c := serve(t, xds.Config{})
	seq := c.publish(units(t, web("10.1.0.1")))
	n := c.delta("n1", "z1")

	n.subscribe(clusters)
	n.take(clusters, []string{webCluster}, nil)
	c.wantEvent(event{node: "n1", typeURL: clusters, since: 1, seq: seq})

	n.subscribe(assignments, webAssignment)
	n.wantAddresses(n.take(assignments, []string{webAssignment}, nil), "10.1.0.1")
	c.wantEvent(event{node: "n1", typeURL: assignments, since: 1, seq: seq})

	n.subscribe(frontends, "*")
	n.take(frontends, []string{webFrontend}, nil)
	c.wantEvent(event{node: "n1", typeURL: frontends, since: 1, seq: seq})
	n.wantNothing()
}

// TestNothingBeforeFirstPublish: half a world would take away what clients still have.
//
//  1. A client subscribes to everything, and to names in two requests, before anything is published.
//  2. The first publish comes: the first responses hold it, and what does not exist is removed. Had anything been
//     answered before, it would be first.
func TestNothingBeforeFirstPublish(t *testing.T) {
	c := serve(t, xds.Config{})
	n := c.delta("n1", "z1")
	n.subscribe(clusters)
	n.subscribe(assignments, "absent", "default/db:http/TCP")
	n.subscribe(assignments, "absent too", webAssignment)
	old := c.sotw("n2", "z1")
	old.subscribe(nil, clusters)
	eventually(t, "the cache knows all subscriptions", func() bool {
		all := c.Status()
		return len(all) == 3 && all[0].Subscribed+all[1].Subscribed == 4
	})
	c.wantApplied("n1", clusters, 0)

	c.publish(both(t, "10.1.0.1", "10.2.0.1"))
	n.take(clusters, []string{webCluster, "10.96.0.20:80"}, nil)
	n.take(assignments, []string{"default/db:http/TCP", webAssignment}, []string{"absent", "absent too"})
	old.want(clusters, 2)
}

// TestEmptyWorldIsAnswered: Envoy's initialisation waits for a first CDS and LDS response, also if there is nothing.
//
//  1. A world without Services is published.
//  2. A client subscribes to all clusters and all listeners: an empty response each.
func TestEmptyWorldIsAnswered(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(nil)
	n := c.delta("n1", "z1")
	n.subscribe(clusters)
	n.take(clusters, nil, nil)
	n.subscribe(listeners)
	n.take(listeners, nil, nil)
	n.wantNothing()
}

// TestChangeGoesToThoseWhoSeeIt: an endpoint change is one resource for those who have it, and nothing for others.
//
//  1. Two clients have the clusters; one of them has the assignment too.
//  2. An endpoint is added: the one gets the assignment; both count as having everything after its acknowledgement.
//  3. The same content is published again: nobody gets anything.
func TestChangeGoesToThoseWhoSeeIt(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, web("10.1.0.1")))
	with, without := c.delta("n1", "z1"), c.delta("n2", "z1")
	for _, n := range []delta{with, without} {
		n.subscribe(clusters)
		n.take(clusters, []string{webCluster}, nil)
	}
	with.subscribe(assignments, webAssignment)
	with.take(assignments, []string{webAssignment}, nil)
	with.wantNothing()
	without.wantNothing()

	seq := c.publish(units(t, web("10.1.0.1", "10.1.0.2")))
	c.wantApplied("n2", clusters, seq)
	m := with.want(assignments, []string{webAssignment}, nil)
	with.wantAddresses(m, "10.1.0.1", "10.1.0.2")
	c.wantApplied("n1", assignments, seq-1)
	with.ack(m)
	with.wantNothing()
	without.wantNothing()
	c.wantApplied("n1", assignments, seq)

	seq = c.publish(units(t, web("10.1.0.1", "10.1.0.2")))
	with.wantNothing()
	c.wantApplied("n1", assignments, seq)
}

// TestRemovalAndReturn: a Service goes, and comes back as it was.
//
//  1. A client has everything of a Service, the assignment by name.
//  2. The Service is removed: frontend first, then cluster, then assignment, each as a removal.
//  3. The Service comes back with equal content: cluster, then assignment, then frontend.
func TestRemovalAndReturn(t *testing.T) {
	c := serve(t, xds.Config{})
	all := units(t, web("10.1.0.1"))
	c.publish(all)
	n := c.delta("n1", "z1")
	n.subscribe(clusters)
	n.take(clusters, []string{webCluster}, nil)
	n.subscribe(assignments, webAssignment)
	n.take(assignments, []string{webAssignment}, nil)
	n.subscribe(frontends, "*")
	n.take(frontends, []string{webFrontend}, nil)
	n.wantNothing()

	c.publish(map[string]cache.Contribution{"default/web": nil})
	n.take(frontends, nil, []string{webFrontend})
	n.take(clusters, nil, []string{webCluster})
	n.take(assignments, nil, []string{webAssignment})
	n.wantNothing()

	c.publish(all)
	n.take(clusters, []string{webCluster}, nil)
	n.take(assignments, []string{webAssignment}, nil)
	n.take(frontends, []string{webFrontend}, nil)
	n.wantNothing()
}

// TestNamesAskedFor: what a client asks for by name is answered, always and at once.
//
//  1. An unknown name is answered as removed.
//  2. When it appears, it is sent; when it disappears, it is removed again.
//  3. A name that the client has is sent again when it asks again, as it does after it has dropped it.
//  4. A name that it no longer subscribes to is not sent when it changes.
func TestNamesAskedFor(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(nil)
	n := c.delta("n1", "z1")
	n.subscribe(assignments, webAssignment)
	n.take(assignments, nil, []string{webAssignment})

	c.publish(units(t, web("10.1.0.1")))
	n.take(assignments, []string{webAssignment}, nil)
	n.wantNothing()
	c.publish(map[string]cache.Contribution{"default/web": nil})
	n.take(assignments, nil, []string{webAssignment})
	n.wantNothing()

	c.publish(units(t, web("10.1.0.1")))
	n.take(assignments, []string{webAssignment}, nil)
	n.subscribe(assignments, webAssignment)
	n.take(assignments, []string{webAssignment}, nil)
	n.wantNothing()

	n.unsubscribe(assignments, webAssignment)
	n.wantNothing()
	c.publish(units(t, web("10.1.0.2")))
	n.wantNothing()
}

// TestWildcardAndNames: the two subscriptions of one type do not get into each other's way.
//
//  1. A client subscribes to all clusters, and to one that does not exist: all, and the removal.
//  2. It unsubscribes from an existing name that the wildcard covers: the protocol has the server say what becomes of
//     it, so it is sent.
//  3. It unsubscribes from the wildcard: a change is no longer sent.
//  4. It subscribes to it again: it gets everything.
func TestWildcardAndNames(t *testing.T) {
	c := serve(t, xds.Config{})
	both := func(ip string) map[string]cache.Contribution {
		return units(t, web("10.1.0.1"), service{name: "db", ips: []string{"10.96.0.20", ip}, endpoints: []endpoint{{ip: "10.1.0.9"}}})
	}
	c.publish(both("192.0.2.1"))
	n := c.delta("n1", "z1")
	n.subscribe(clusters, "*", "absent", webCluster)
	n.take(clusters, []string{webCluster, "10.96.0.20:80", "192.0.2.1:80"}, []string{"absent"})

	n.unsubscribe(clusters, webCluster)
	n.take(clusters, []string{webCluster}, nil)
	n.wantNothing()

	n.unsubscribe(clusters, "*")
	n.wantNothing()
	c.publish(both("192.0.2.2"))
	n.wantNothing()

	n.subscribe(clusters, "*")
	n.take(clusters, []string{webCluster, "10.96.0.20:80", "192.0.2.2:80"}, nil)
	n.wantNothing()
}

// TestTraceOfTheChange: the trace of a change goes with the change, and with nothing else.
//
//  1. A change with a trace is published: the resource has it in its metadata.
//  2. The client asks for the resource again: without the trace, since nothing changed.
//  3. A client that comes later gets the same version without the trace.
func TestTraceOfTheChange(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	c := serve(t, xds.Config{})
	c.publish(units(t, web("10.1.0.1")))
	n := c.delta("n1", "z1")
	n.subscribe(assignments, webAssignment)
	n.take(assignments, []string{webAssignment}, nil)
	n.wantNothing()

	c.Publish(cache.Update{Contributions: units(t, web("10.1.0.2")), Traceparent: trace})
	changed := n.take(assignments, []string{webAssignment}, nil).GetResources()[0]
	if got := changed.GetMetadata().GetFilterMetadata()["fairlead"].GetFields()["traceparent"].GetStringValue(); got != trace {
		t.Errorf("traceparent %q, want %q", got, trace)
	}

	late := c.delta("n2", "z1")
	for _, again := range []delta{n, late} {
		again.subscribe(assignments, webAssignment)
		r := again.take(assignments, []string{webAssignment}, nil).GetResources()[0]
		if r.GetMetadata() != nil || r.GetVersion() != changed.GetVersion() {
			t.Errorf("metadata %v and version %s, want none and %s", r.GetMetadata(), r.GetVersion(), changed.GetVersion())
		}
	}
}
