package upstream

import (
	"context"
	"slices"
	"sync"
	"time"
)

// addresses is where control planes are, as was told last.
type addresses struct {
	mu      sync.Mutex // Guards the fields below.
	list    []string   // Never changed in place.
	changed chan struct{}
}

// get returns the addresses, and a channel that is closed when they are others.
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

// SetAddresses says where control planes are from now on, each as host:port. A stream that is open stays open: a replica
// that stops is no longer announced before it ends its streams, and nothing is gained by leaving it early. With no
// addresses nothing is connected to.
func (c *Client) SetAddresses(list []string) { c.addresses.set(list) }

// pause waits before the next round of attempts. fresh says that other addresses came meanwhile. These are tried soon, but
// not at once: every node hears of them in the same moment.
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
