package ads

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoverypb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
)

// large is a Service with so many endpoints that a few responses fill every buffer between server and client.
func large(round int) service {
	s := service{name: "web", ips: []string{"10.96.0.10"}}
	for i := range 3000 {
		s.endpoints = append(s.endpoints, endpoint{ip: fmt.Sprintf("10.%d.%d.%d", round+1, i/250, i%250+1)})
	}
	return s
}

// idle opens a stream that subscribes but does not read.
func (c *control) idle(id string, subscriptions int) discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c.t.Cleanup(cancel)
	stream, err := discoverypb.NewAggregatedDiscoveryServiceClient(dial(c.t, c.conn.Target())).DeltaAggregatedResources(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	for range subscriptions {
		req := &discoverypb.DeltaDiscoveryRequest{Node: node(id, ""), TypeUrl: assignments, ResourceNamesSubscribe: []string{webAssignment}}
		if err := stream.Send(req); err != nil {
			c.t.Fatal(err)
		}
	}
	return stream
}

// drain reads a stream to its end.
func drain(stream discoverypb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) {
	for {
		if _, err := stream.Recv(); err != nil {
			return
		}
	}
}

// TestSlowReader: a client that does not read holds up nobody, and costs one response for each type.
//
//  1. A client subscribes again and again to a large assignment, each of which is answered, and does not read: soon the
//     server cannot send to it.
//  2. The endpoints change a dozen times: another client gets each change.
//  3. The slow client reads at last: the last thing that it gets is the present content, and it did not get them all.
func TestSlowReader(t *testing.T) {
	const changes = 12
	c := serve(t, xds.Config{})
	c.publish(units(t, large(0)))
	stuck := c.idle("slow", 5)
	quick := c.delta("quick", "")
	quick.subscribe(assignments, webAssignment)
	quick.take(assignments, []string{webAssignment}, nil)

	var last string
	for i := range changes {
		c.publish(units(t, large(i+1)))
		last = quick.take(assignments, []string{webAssignment}, nil).GetResources()[0].GetVersion()
	}
	c.wantApplied("slow", assignments, 0)

	for got := 0; ; got++ {
		m, err := stuck.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got > changes/2 {
			t.Fatalf("the slow client got %d responses: the cache keeps all of them", got)
		}
		if m.GetResources()[0].GetVersion() == last {
			break
		}
		if err := stuck.Send(&discoverypb.DeltaDiscoveryRequest{TypeUrl: assignments, ResponseNonce: m.GetNonce()}); err != nil {
			t.Fatal(err)
		}
	}
}

// logs hands the lines of a log to a test.
type logs chan string

func (l logs) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

// want waits for a line with a text.
func (l logs) want(t *testing.T, text string) {
	t.Helper()
	late := time.After(deadline)
	for {
		select {
		case line := <-l:
			if strings.Contains(line, text) {
				return
			}
		case <-late:
			t.Fatalf("no log line with %q", text)
		}
	}
}

// TestStuckClientIsCutOff: a client that does not read for long loses its connection.
//
//  1. A client does not read its responses, as above.
//  2. The server says so in its log, the stream ends, and the cache forgets it; another client goes on.
func TestStuckClientIsCutOff(t *testing.T) {
	logged := make(logs, 100)
	c := serve(t, xds.Config{SendTimeout: 50 * time.Millisecond, Log: slog.New(slog.NewTextHandler(logged, nil))})
	c.publish(units(t, large(0)))
	quick := c.delta("quick", "")
	quick.subscribe(clusters)
	quick.take(clusters, []string{webCluster}, nil)
	stuck := c.idle("slow", 5)
	logged.want(t, "the client does not read")
	drain(stuck)
	eventually(t, "the cache forgets the client", func() bool { return len(c.Status()) == 1 })
	quick.wantNothing()
}

// TestAuthorize: one place decides who may be which node.
//
//  1. A client that may be its node is served.
//  2. One that may not is refused before it gets anything, with the reason, on streams and on Fetch.
//  3. A client that becomes another node within a stream is refused, and so is one that is no node at all.
func TestAuthorize(t *testing.T) {
	c := serve(t, xds.Config{Authorize: func(_ context.Context, n *corepb.Node, _ string) error {
		if strings.HasPrefix(n.GetId(), "forged") {
			return errors.New("the token is of another node")
		}
		return nil
	}})
	c.publish(units(t, web("10.1.0.1")))
	good := c.delta("n1", "")
	good.subscribe(clusters)
	good.take(clusters, []string{webCluster}, nil)

	bad := c.delta("forged", "")
	bad.subscribe(clusters)
	old := c.sotw("forged", "")
	old.subscribe(nil, clusters)
	for _, err := range []error{bad.wantEnd(), old.wantEnd()} {
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "the token is of another node") {
			t.Errorf("error %v, want PermissionDenied and the reason", err)
		}
	}

	good.node = node("n2", "")
	good.subscribe(assignments, webAssignment)
	nobody := c.delta("", "")
	nobody.subscribe(clusters)
	for _, err := range []error{good.wantEnd(), nobody.wantEnd()} {
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "node.id") {
			t.Errorf("error %v, want InvalidArgument about node.id", err)
		}
	}
}

// TestTooManyTypes: a client cannot have the server keep state without bound.
func TestTooManyTypes(t *testing.T) {
	c := serve(t, xds.Config{})
	c.publish(nil)
	n := c.delta("n1", "")
	for i := range 11 {
		n.subscribe(fmt.Sprintf("type.googleapis.com/example.Type%d", i), "name")
	}
	if err := n.wantEnd(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("error %v, want ResourceExhausted", err)
	}
}

// TestStop: a server that stops ends its streams, and does not wait for those that do not read.
//
//  1. A client is served, and another does not read.
//  2. The server stops: both streams end, in time.
func TestStop(t *testing.T) {
	c := serve(t, xds.Config{StopTimeout: 50 * time.Millisecond})
	c.publish(units(t, large(0)))
	n := c.delta("n1", "")
	n.subscribe(clusters)
	n.take(clusters, []string{webCluster}, nil)
	stuck := c.idle("slow", 5)
	eventually(t, "the cache knows the client", func() bool { return len(c.Status()) == 2 })

	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.stop()
	}()
	select {
	case <-stopped:
	case <-time.After(deadline):
		t.Fatal("the server does not stop")
	}
	n.wantEnd()
	drain(stuck)
	if got := c.Status(); len(got) != 0 {
		t.Errorf("the cache still has %+v", got)
	}
	c.Publish(cache.Update{}) // And can be used on.
}
