package envoyns

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
)

// Watch sends to changed whenever a veth was added or deleted, as an Envoy instance's is when its Envoy has ended and a pod's with
// the pod, or a bridge has changed, until ctx ends. changed needs a buffer of one; Watch sends nothing while it is full.
func Watch(ctx context.Context, changed chan<- struct{}) error {
	updates := make(chan netlink.LinkUpdate)
	lost := make(chan struct{}, 1)
	options := netlink.LinkSubscribeOptions{ErrorCallback: func(error) { tell(lost) }}
	if err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), options); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	for {
		select {
		case u, ok := <-updates:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("watch links: the kernel ended the subscription")
			}
			if u.Type() == "veth" || u.Type() == "bridge" {
				tell(changed)
			}
		case <-lost:
			tell(changed)
		}
	}
}

// tell sends unless the buffer is full.
func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
