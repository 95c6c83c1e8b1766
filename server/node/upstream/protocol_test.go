package upstream

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// The client subscribes to all types; an ACK goes out when the node says so, and not before.
func TestAckWhenTheNodeForwards(t *testing.T) {
	plane := newControlPlane(t)
	node := start(t, Config{Addresses: []string{plane.address}})
	stream := plane.accept(t)
	for typeURL, r := range stream.subscribed(2) {
		if len(r.GetInitialResourceVersions()) != 0 {
			t.Errorf("%s: a new node knows %v, want nothing", typeURL, r.GetInitialResourceVersions())
		}
	}
	stream.send(clusters, "c1", []string{"b", "1", "a", "1"})
	first := node.update(t, clusters, "+a=1 +b=1")
	stream.send(frontends, "f1", []string{"f", "1"})
	second := node.update(t, frontends, "+f=1")

	node.Ack(second)
	stream.wantReply(frontends, "f1", "") // Would be c1, had the client acknowledged on receipt.
	node.Ack(first)
	stream.wantReply(clusters, "c1", "")
	if got := node.status(clusters); got.Resources != 2 || got.Responses != 1 || got.Acked != 1 || got.InProgress {
		t.Errorf("status = %+v", got)
	}
}

// While the node works on an update, later responses become one update, which is answered once per response.
func TestResponsesMergeWhileTheNodeIsBusy(t *testing.T) {
	plane := newControlPlane(t)
	node := start(t, Config{Addresses: []string{plane.address}})
	stream := plane.accept(t)
	stream.subscribed(2)

	stream.send(clusters, "1", []string{"a", "1"})
	working := node.update(t, clusters, "+a=1")
	stream.send(clusters, "2", []string{"b", "1", "c", "1"}, "a")
	stream.send(clusters, "3", []string{"a", "2"}, "b", "x")
	eventually(t, "all responses received", func() bool { return node.status(clusters).Responses == 3 })
	node.Ack(working)
	stream.wantReply(clusters, "1", "")
	node.Ack(node.update(t, clusters, "+a=2 +c=1 -b -x"))
	stream.wantReply(clusters, "2", "")
	stream.wantReply(clusters, "3", "")
	if got := node.Loaded()[clusters]; len(got) != 2 || got["a"].Version != "2" || got["c"].Version != "1" {
		t.Errorf("known = %v, want a=2 and c=1", got)
	}
}

// An empty response is an update too: it means that the control plane has nothing more.
func TestEmptyResponse(t *testing.T) {
	plane := newControlPlane(t)
	node := start(t, Config{Addresses: []string{plane.address}})
	stream := plane.accept(t)
	stream.subscribed(2)
	stream.send(clusters, "1", nil)
	node.Ack(node.update(t, clusters, ""))
	stream.wantReply(clusters, "1", "")
}

// A refused update keeps the old versions known, and a reconnect asks for everything in it again: with a version that
// no resource has, since the node may have taken a part of it.
func TestNack(t *testing.T) {
	plane := newControlPlane(t)
	node := start(t, Config{Addresses: []string{plane.address}})
	stream := plane.accept(t)
	stream.subscribed(2)
	stream.send(clusters, "1", []string{"a", "1", "b", "1", "c", "1"})
	node.Ack(node.update(t, clusters, "+a=1 +b=1 +c=1"))
	stream.wantReply(clusters, "1", "")
	stream.send(clusters, "2", []string{"a", "2", "d", "1"}, "b")
	node.Nack(node.update(t, clusters, "+a=2 +d=1 -b"), errors.New("cluster d: no such thing"))
	stream.wantReply(clusters, "2", "cluster d: no such thing")
	if got := node.Loaded()[clusters]; len(got) != 3 || got["a"].Version != "1" {
		t.Errorf("known = %v, want what it was before", got)
	}
	if got := node.status(clusters); got.Acked != 1 || got.Nacked != 1 {
		t.Errorf("status = %+v", got)
	}

	stream.end <- errors.New("restart")
	stream = plane.accept(t)
	wantVersions(t, stream.subscribed(2)[clusters], "a", "", "b", "", "c", "1", "d", "")
	stream.send(clusters, "1", []string{"a", "3"}, "b", "d")
	node.Ack(node.update(t, clusters, "+a=3 -b -d"))
	stream.wantReply(clusters, "1", "")

	stream.end <- errors.New("restart")
	wantVersions(t, plane.accept(t).subscribed(2)[clusters], "a", "3", "c", "1")
}

func wantVersions(t *testing.T, request *discoverypb.DeltaDiscoveryRequest, want ...string) {
	t.Helper()
	got := request.GetInitialResourceVersions()
	ok := len(got) == len(want)/2
	for i := 0; i < len(want); i += 2 {
		version, has := got[want[i]]
		ok = ok && has && version == want[i+1]
	}
	if !ok {
		t.Fatalf("initial_resource_versions = %v, want %v", got, want)
	}
}

// A malformed resource costs only itself: the client uses the rest of its response, and sends the control plane a NACK.
func TestMalformedResource(t *testing.T) {
	for name, bad := range map[string]*discoverypb.Resource{
		"resource without a name":     {Version: "1", Resource: &anypb.Any{TypeUrl: clusters}},
		`resource "x" has no body`:    {Name: "x", Version: "1"},
		`resource "x" has no version`: {Name: "x", Resource: &anypb.Any{TypeUrl: clusters}},
		`resource "x" has type "y" `:  {Name: "x", Version: "1", Resource: &anypb.Any{TypeUrl: "y"}},
	} {
		t.Run(name, func(t *testing.T) {
			plane := newControlPlane(t)
			node := start(t, Config{Addresses: []string{plane.address}})
			stream := plane.accept(t)
			stream.subscribed(2)
			err := stream.ads.Send(&discoverypb.DeltaDiscoveryResponse{
				TypeUrl: clusters, Nonce: "1",
				Resources: []*discoverypb.Resource{bad, resource(clusters, "a", "1")},
			})
			if err != nil {
				t.Fatal(err)
			}
			node.Ack(node.update(t, clusters, "+a=1"))
			reply := take(t, stream.requests)
			if !strings.Contains(reply.GetErrorDetail().GetMessage(), name) || reply.GetResponseNonce() != "1" {
				t.Errorf("reply = %v, want a NACK that says %q", reply, name)
			}
			stream.send(clusters, "2", []string{"b", "1"})
			node.Ack(node.update(t, clusters, "+b=1"))
			stream.wantReply(clusters, "2", "")
		})
	}
}

// What is of no use is ignored, and the stream goes on.
func TestUselessMessages(t *testing.T) {
	plane := newControlPlane(t)
	node := start(t, Config{Addresses: []string{plane.address}})
	stream := plane.accept(t)
	stream.subscribed(2)
	stream.send("type.googleapis.com/other", "1", nil)
	node.Ack(Update{Type: clusters})
	node.Ack(Update{Type: "type.googleapis.com/other"})
	stream.send(clusters, "2", []string{"a", "1"})
	u := node.update(t, clusters, "+a=1")
	node.Nack(u, nil)
	stream.wantReply(clusters, "2", "rejected without a reason")
	node.Ack(u) // A second answer.
	stream.send(clusters, "3", []string{"a", "1"})
	node.Ack(node.update(t, clusters, "+a=1"))
	stream.wantReply(clusters, "3", "")

	if err := node.stop(); err != nil {
		t.Fatal(err)
	}
	node.Ack(u) // Returns, though nobody listens.
}

// A response and a first request that are both larger than any window of the transport pass each other. A client that
// waited until its request is read would wait forever for a server that waits until its response is read.
func TestLargeMessagesBothWays(t *testing.T) {
	many := make([]string, 0, 2*12_000)
	padding := strings.Repeat("v", 400) // It is the version, in both directions.
	for i := range 12_000 {
		many = append(many, fmt.Sprintf("resource-%05d", i), padding)
	}
	plane := newControlPlane(t)
	node := start(t, Config{Addresses: []string{plane.address}})
	stream := plane.accept(t)
	stream.subscribed(2)
	stream.send(frontends, "1", many)
	u := take(t, node.Updates())
	if len(u.Changed) != 12_000 {
		t.Fatalf("%d resources, want 12000", len(u.Changed))
	}
	node.Ack(u)
	stream.wantReply(frontends, "1", "")

	stream.end <- errors.New("restart")
	stream = plane.accept(t)
	if r := take(t, stream.requests); r.GetTypeUrl() != clusters {
		t.Fatalf("first request is of %s, want the order of Config.Types", r.GetTypeUrl())
	}
	stream.send(clusters, "1", many) // The request for frontends, 5 MB, is on its way and not read.
	if u := take(t, node.Updates()); u.Type != clusters || len(u.Changed) != 12_000 {
		t.Fatalf("update of %s with %d resources", u.Type, len(u.Changed))
	}
	if r := take(t, stream.requests); len(r.GetInitialResourceVersions()) != 12_000 {
		t.Fatalf("%d versions, want 12000", len(r.GetInitialResourceVersions()))
	}
}
