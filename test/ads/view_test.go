package ads

import (
	"testing"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
	"github.com/fairlead/fairlead/translate/model"
)

// zoned is a Service with hints: each zone uses its own endpoint.
func zoned() service {
	return service{name: "web", ips: []string{"10.96.0.10"}, endpoints: []endpoint{
		{ip: "10.1.0.1", node: "n1", zone: "z1", hint: "z1"},
		{ip: "10.1.0.2", node: "n2", zone: "z2", hint: "z2"},
	}}
}

// TestNodesSeeTheirVariant: the same name has a different content on another node.
//
//  1. A Service that is local to nodes is published. One client says by its node.id that it is n1, one n2, one a node
//     without endpoints: each gets the endpoints of its node.
//  2. An endpoint of n1 changes: n1 alone gets the assignment.
func TestNodesSeeTheirVariant(t *testing.T) {
	c := serve(t, xds.Config{})
	local := service{name: "web", ips: []string{"10.96.0.10"}, local: true, endpoints: []endpoint{
		{ip: "10.1.0.1", node: "n1"}, {ip: "10.1.0.2", node: "n2"},
	}}
	c.publish(units(t, local))
	n1, n2, n3 := c.delta("n1", ""), c.delta("n2", ""), c.delta("n3", "")
	name := webAssignment + "/local"
	for _, n := range []delta{n1, n2, n3} {
		n.subscribe(assignments, name)
	}
	n1.wantAddresses(n1.take(assignments, []string{name}, nil), "10.1.0.1")
	n2.wantAddresses(n2.take(assignments, []string{name}, nil), "10.1.0.2")
	n3.wantAddresses(n3.take(assignments, []string{name}, nil))

	local.endpoints[0].ip = "10.1.0.11"
	c.publish(units(t, local))
	n1.wantAddresses(n1.take(assignments, []string{name}, nil), "10.1.0.11")
	for _, n := range []delta{n1, n2, n3} {
		n.wantNothing()
	}
}

// TestViewOfANode: what the cluster says about a node counts, not what the client says; but for clients it does not
// know, the latter does.
//
//  1. A client says that it is in z1: it gets the endpoint of z1.
//  2. The cluster says that the node is in z2: the client is sent the endpoint of z2.
//  3. The cluster's node is deleted: the client's own zone counts again.
func TestViewOfANode(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, zoned()))
	n := c.delta("n9", "z1")
	n.subscribe(assignments, webAssignment)
	n.wantAddresses(n.take(assignments, []string{webAssignment}, nil), "10.1.0.1")

	c.Publish(cache.Update{Views: map[string]*model.View{"n9": {Node: "n9", Zone: "z2"}}})
	n.wantAddresses(n.take(assignments, []string{webAssignment}, nil), "10.1.0.2")
	n.wantNothing()

	c.Publish(cache.Update{Views: map[string]*model.View{"n9": nil}})
	n.wantAddresses(n.take(assignments, []string{webAssignment}, nil), "10.1.0.1")
	n.wantNothing()
}

// TestViewAndServiceChangeTogether: one publish changes the zone of a node and the endpoints of the new zone.
//
//  1. A client has the endpoint of z1.
//  2. The node moves to z2, whose endpoint is replaced at the same time: the client gets the new one, once.
func TestViewAndServiceChangeTogether(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(units(t, zoned()))
	n := c.delta("n1", "z1")
	n.subscribe(assignments, webAssignment)
	n.take(assignments, []string{webAssignment}, nil)

	moved := zoned()
	moved.endpoints[1].ip = "10.1.0.22"
	c.Publish(cache.Update{Contributions: units(t, moved), Views: map[string]*model.View{"n1": {Node: "n1", Zone: "z2"}}})
	n.wantAddresses(n.take(assignments, []string{webAssignment}, nil), "10.1.0.22")
	n.wantNothing()
}
