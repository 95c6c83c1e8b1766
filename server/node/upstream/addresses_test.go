package upstream

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// A client without addresses waits for some.
func TestAddressesLater(t *testing.T) {
	plane := newControlPlane(t)
	node := start(t, Config{})
	node.SetAddresses([]string{plane.address})
	plane.accept(t).subscribed(2)
	eventually(t, "connected", func() bool { return node.Status().Address == plane.address })
}

// New addresses end a long pause, after a short one: a node that has only the addresses of replicas that have ended is not
// late when it gets the others. The next pauses are short again, too.
func TestAddressesEndAPause(t *testing.T) {
	long := make(chan struct{}, 1)
	var short atomic.Int64
	plane := newControlPlane(t)
	node := start(t, Config{Addresses: []string{closedPort(t)}}, func(c *Client) {
		c.wait = func(ctx context.Context, ceiling time.Duration) {
			if ceiling < maxBackoff {
				short.Add(1)
				return
			}
			long <- struct{}{}
			<-ctx.Done()
		}
	})
	take(t, long)
	before := short.Load()
	node.SetAddresses([]string{plane.address})
	plane.accept(t).subscribed(2)
	if got := short.Load() - before; got != 1 {
		t.Errorf("%d short pauses before the new address was tried, want 1", got)
	}
}

// A stream outlives its address: a replica that stops is taken off the list before it ends its streams. The next one goes
// to an address that is on the list.
func TestAddressesLeaveTheStreamOpen(t *testing.T) {
	old, next := newControlPlane(t), newControlPlane(t)
	node := start(t, Config{Addresses: []string{old.address}})
	stream := old.accept(t)
	stream.subscribed(2)
	node.SetAddresses([]string{next.address})
	stream.send(clusters, "1", []string{"a", "1"})
	node.Ack(node.update(t, clusters, "+a=1"))
	stream.wantReply(clusters, "1", "")
	stream.end <- errors.New("stopped")
	wantVersions(t, next.accept(t).subscribed(2)[clusters], "a", "1")
}

// Nobody is woken for addresses that are the ones that are known, in whatever order.
func TestEqualAddresses(t *testing.T) {
	a := addresses{changed: make(chan struct{})}
	given := []string{"b", "a"}
	a.set(given)
	list, changed := a.get()
	a.set([]string{"a", "b"})
	if closed(changed) {
		t.Error("told of the same addresses again")
	}
	a.set([]string{"a"})
	if !closed(changed) || !slices.Equal(list, []string{"a", "b"}) || given[0] != "b" {
		t.Errorf("told: %v; the first list is now %v, and the caller's %v", closed(changed), list, given)
	}
}
