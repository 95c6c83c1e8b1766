package upstream

import (
	"context"
	"slices"
	"sync"
	"time"
)

// addresses are the last set addresses of control planes.
type addresses struct {
	mu      sync.Mutex // Guards the fields below.
	list    []string   // Never changed in place.
	changed chan struct{}
}

// get returns the addresses, and a channel that is closed when they change.
func (a *addresses) get() ([]string, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.list, a.changed
}

func (a *addresses) set(list []string) {
	list = slices.Clone(list)
	slices.Sort(list)
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Equal(list, a.list) {
		return
	}
	a.list = list
	close(a.changed)
	a.changed = make(chan struct{})
}

// SetAddresses sets the addresses of the control planes, each as host:port. An open stream stays open: a replica that stops leaves
// the list before it ends its streams, and the client gains nothing by closing its stream earlier. Without addresses the client
// does not connect.
func (c *Client) SetAddresses(list []string) { c.addresses.set(list) }

// pause waits before the next round of attempts. fresh reports that the addresses changed meanwhile. The client tries new ones
// soon, but not at once: every node gets them at the same moment.
func (c *Client) pause(ctx context.Context, ceiling time.Duration, nowhere bool, changed <-chan struct{}) (fresh bool) {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-changed:
			cancel()
		case <-waiting.Done():
		}
	}()
	if nowhere {
		<-waiting.Done()
	} else {
		c.wait(waiting, ceiling)
	}
	if !closed(changed) {
		return false
	}
	c.wait(ctx, baseBackoff)
	return true
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
