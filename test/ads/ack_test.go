package ads

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
)

// TestNackThenGood: a rejected response is remembered and not repeated.
//
//  1. A client rejects an assignment: the observer learns why, the status says so, the publish does not count as
//     applied, and the content is not sent again.
//  2. Another Service changes, which the client accepts: still not everything is applied.
//  3. The assignment changes, and the client accepts it: all is well again.
func TestNackThenGood(t *testing.T) {
	c := serve(t, xds.Config{})
	db := func(ip string) service {
		return service{name: "db", ips: []string{"10.96.0.20"}, endpoints: []endpoint{{ip: ip}}}
	}
	c.publish(units(t, web("10.1.0.1"), db("10.2.0.1")))
	n := c.delta("n1", "z1")
	n.subscribe(assignments, "*")
	n.take(assignments, []string{"default/db:http/TCP", webAssignment}, nil)
	c.wantEvent(event{node: "n1", typeURL: assignments, since: 1, seq: 1})

	c.publish(units(t, web("10.1.0.2")))
	n.nack(n.want(assignments, []string{webAssignment}, nil), "no such locality")
	c.wantEvent(event{node: "n1", typeURL: assignments, nack: "no such locality"})
	n.wantNothing()
	c.wantEvent(event{node: "n1", typeURL: nodes, since: 1, seq: 2})
	c.wantApplied("n1", assignments, 1)
	if s := c.Status()[0]; s.TypeURL != assignments || s.Nack != "no such locality" || s.Sent != 2 || s.Applied != 1 {
		t.Errorf("status %+v", s)
	}

	c.publish(units(t, db("10.2.0.2")))
	n.take(assignments, []string{"default/db:http/TCP"}, nil)
	c.wantEvent(event{node: "n1", typeURL: assignments, since: 3, seq: 1})
	if c.Has("n1", assignments, webAssignment) || !c.Has("n1", assignments, "default/db:http/TCP") {
		t.Error("the client should have one assignment, not the one that it rejected")
	}

	c.publish(units(t, web("10.1.0.3")))
	n.take(assignments, []string{webAssignment}, nil)
	c.wantEvent(event{node: "n1", typeURL: assignments, since: 4, seq: 4})
	if s := c.Status()[0]; s.Nack != "" || s.Applied != 4 {
		t.Errorf("status %+v", s)
	}
	n.wantNothing()
}

// TestNackOfOneClusterAmongMany: Envoy applies the good clusters of a response and names the bad ones.
//
//  1. A client gets two clusters and rejects one by name: the other counts as received.
//  2. The bad one is removed: everything is applied.
func TestNackOfOneClusterAmongMany(t *testing.T) {
	c := serve(t, xds.Config{})
	bad := service{name: "bad", ips: []string{"10.96.0.66"}}
	c.publish(units(t, web("10.1.0.1"), bad))
	n := c.delta("n1", "z1")
	n.subscribe(clusters)
	n.nack(n.want(clusters, []string{webCluster, "10.96.0.66:80"}, nil), "Error adding/updating cluster(s) 10.96.0.66:80: no")
	c.wantEvent(event{node: "n1", typeURL: clusters, nack: "Error adding/updating cluster(s) 10.96.0.66:80: no"})
	if !c.Has("n1", clusters, webCluster) || c.Has("n1", clusters, "10.96.0.66:80") {
		t.Error("the client should have the cluster that it did not name, and only that")
	}
	c.wantApplied("n1", clusters, 0)

	seq := c.publish(map[string]cache.Contribution{"default/bad": nil})
	n.take(clusters, nil, []string{"10.96.0.66:80"})
	c.wantEvent(event{node: "n1", typeURL: clusters, since: seq, seq: seq})
	c.wantApplied("n1", clusters, seq)
}

// TestAppliedOfSeveralStreams: a node is as far as the last of its streams.
//
//  1. Two streams of one node get an assignment; one acknowledges the change to it.
//  2. The node counts as up to date when the other does too, or is gone.
func TestAppliedOfSeveralStreams(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, web("10.1.0.1")))
	quick, slow := c.delta("n1", "z1"), c.delta("n1", "z1")
	for _, n := range []delta{quick, slow} {
		n.subscribe(assignments, webAssignment)
		n.take(assignments, []string{webAssignment}, nil)
		n.wantNothing()
	}
	c.publish(units(t, web("10.1.0.2")))
	quick.take(assignments, []string{webAssignment}, nil)
	quick.wantNothing()
	slow.want(assignments, []string{webAssignment}, nil)
	c.wantApplied("n1", assignments, 1)
	slow.cancel()
	eventually(t, "the slow stream is gone", func() bool { return c.Applied("n1", assignments) == 2 })
}

// TestSubscriptionsInFlight: a client may send requests before it has acknowledged what it was sent.
//
//  1. A client subscribes to a first name, then to a second before it acknowledges: it gets both.
//  2. It rejects the first response and accepts the second: only the first name counts as lacking.
func TestSubscriptionsInFlight(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, web("10.1.0.1"), service{name: "db", ips: []string{"10.96.0.20"}}))
	n := c.delta("n1", "z1")
	n.subscribe(assignments, webAssignment)
	first := n.want(assignments, []string{webAssignment}, nil)
	n.subscribe(assignments, "default/db:http/TCP")
	second := n.want(assignments, []string{"default/db:http/TCP"}, nil)
	n.nack(first, "no")
	n.ack(second)
	c.wantEvent(event{node: "n1", typeURL: assignments, nack: "no"})
	c.wantEvent(event{node: "n1", typeURL: assignments, since: 1, seq: 0})
	if c.Has("n1", assignments, webAssignment) || !c.Has("n1", assignments, "default/db:http/TCP") {
		t.Error("the client should have the second assignment alone")
	}
	n.wantNothing()
}

// TestNacksInTheLog: what a client rejects is in the log, but a client cannot fill it.
//
//  1. A client rejects responses that it was never sent, with long reasons: nothing is logged.
//  2. It rejects one that it was sent, with a reason of a megabyte: a line of at most some kilobytes is.
//  3. It rejects many more within ten seconds: nothing is logged, and the status has the last reason.
func TestNacksInTheLog(t *testing.T) {
	logged := make(logs, 1000)
	c := serve(t, xds.Config{Log: slog.New(slog.NewTextHandler(logged, nil))})
	c.publish(units(t, web("10.1.0.1")))
	n := c.delta("n1", "z1")
	n.subscribe(assignments, webAssignment)
	m := n.want(assignments, []string{webAssignment}, nil)
	wantLines := func(want int, when string) {
		t.Helper()
		n.wantNothing() // What was said before has been handled.
		got := 0
		for len(logged) > 0 {
			if line := <-logged; strings.Contains(line, "rejected") {
				got++
				if len(line) > 4096 {
					t.Errorf("%s: a line has %d bytes", when, len(line))
				}
			}
		}
		if got != want {
			t.Errorf("%s: %d lines, want %d", when, got, want)
		}
	}
	long := strings.Repeat("long ", 1<<18)
	for i := range 20 {
		n.send(&discoverypb.DeltaDiscoveryRequest{
			TypeUrl: assignments, ResponseNonce: fmt.Sprint("invented ", i), ErrorDetail: status.New(codes.InvalidArgument, long).Proto(),
		})
	}
	wantLines(0, "nonces that were never sent")
	n.nack(m, long)
	wantLines(1, "a response that was sent")
	for i := range 20 {
		c.publish(units(t, web(fmt.Sprintf("10.1.0.%d", 2+i))))
		n.nack(n.want(assignments, []string{webAssignment}, nil), fmt.Sprint("reason ", i))
	}
	wantLines(0, "again and again")
	if got := c.Status()[0]; got.Nack != "reason 19" {
		t.Errorf("status %+v", got)
	}
}
