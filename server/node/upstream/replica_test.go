package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/fairlead/fairlead/cache"
	"github.com/fairlead/fairlead/server/xds"
	"github.com/fairlead/fairlead/translate/frontendpb"
	"github.com/fairlead/fairlead/translate/model"
)

// service is a Service with one frontend, the same for all nodes.
type service struct{ frontend cache.Resource }

func (s service) Variant(model.View) string { return "" }
func (s service) Resources(string) ([]cache.Resource, error) {
	return []cache.Resource{s.frontend}, nil
}

func newService(t *testing.T, name string, port uint32) service {
	t.Helper()
	r, err := cache.NewResource(frontends, name, &frontendpb.Frontend{Port: port, Protocol: "TCP"})
	if err != nil {
		t.Fatal(err)
	}
	return service{r}
}

// replica is a control plane as Fairlead runs it: its cache behind its xDS server.
type replica struct {
	*cache.Cache
	address string
	refused chan string // What clients say when they refuse.
	stop    func()
}

// Acked is a part of cache.Observer.
func (r *replica) Acked(_, _ string, _, _ uint64) {}

// Nacked is a part of cache.Observer.
func (r *replica) Nacked(_, _, detail string) { r.refused <- detail }

func newReplica(t *testing.T, address string, services map[string]cache.Contribution) *replica {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{address: listener.Addr().String(), refused: make(chan string, 1)}
	r.Cache = cache.New(cache.Config{Observer: r})
	r.Publish(cache.Update{Contributions: services})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- xds.New(xds.Config{Cache: r.Cache}).Serve(ctx, listener) }()
	r.stop = func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		served <- nil
	}
	t.Cleanup(r.stop)
	return r
}

// The control plane itself: it learns what the node forwards, and a node that moves to another replica is sent what
// differs there and nothing else. The replicas follow each other at one address.
func TestReplicas(t *testing.T) {
	services := map[string]cache.Contribution{}
	for i := range 100 {
		name := fmt.Sprintf("10.96.0.%d:80/TCP", i)
		services[name] = newService(t, name, 80)
	}
	first := newReplica(t, "127.0.0.1:0", services)
	node := start(t, Config{Addresses: []string{first.address}, Types: []string{frontends}})

	u := take(t, node.Updates())
	if len(u.Changed) != 100 || len(u.Removed) != 0 {
		t.Fatalf("first update: %d changed, %d removed, want 100 and 0", len(u.Changed), len(u.Removed))
	}
	if got := first.Applied("n1", frontends); got != 0 {
		t.Errorf("applied up to publish %d while the node is at work", got)
	}
	node.Ack(u)
	eventually(t, "the control plane knows that the node forwards", func() bool { return first.Applied("n1", frontends) == 1 })

	// The second replica has seen a change and a removal that the first has not.
	const changed, removed, added = "10.96.0.1:80/TCP", "10.96.0.2:80/TCP", "10.96.1.1:80/TCP"
	services[changed] = newService(t, changed, 81)
	delete(services, removed)
	first.stop()
	second := newReplica(t, first.address, services)
	u = take(t, node.Updates())
	if len(u.Changed) != 1 || u.Changed[0].Name != changed || len(u.Removed) != 1 || u.Removed[0] != removed {
		t.Fatalf("at the second replica: %d changed, removed %v", len(u.Changed), u.Removed)
	}
	node.Ack(u)
	eventually(t, "second replica knows", func() bool { return second.Applied("n1", frontends) == 1 })

	second.stop() // The third has nothing else than the second.
	third := newReplica(t, first.address, services)
	eventually(t, "third replica knows without sending", func() bool { return third.Applied("n1", frontends) == 1 })
	third.Publish(cache.Update{
		Contributions: map[string]cache.Contribution{added: newService(t, added, 80)},
		Traceparent:   "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	})
	u = take(t, node.Updates())
	if len(u.Changed) != 1 || u.Changed[0].Name != added || len(u.Removed) != 0 {
		t.Fatalf("at the third replica: changed %v, removed %v, want %s alone", u.Changed, u.Removed, added)
	}
	if got, want := u.Changed[0].Traceparent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"; got != want {
		t.Errorf("traceparent = %q, want %q", got, want)
	}
	node.Nack(u, errors.New("the table is full"))
	if got := take(t, third.refused); got != "the table is full" {
		t.Errorf("the control plane was told %q", got)
	}
}
