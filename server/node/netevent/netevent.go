// Package netevent follows what the kernel tells by netlink of its changes.
//
// Messages of the kernel's multicast groups go out, in order, and word that some may be missing. The package knows no message.
package netevent

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// resubscribeAfter is how long Run waits after an error before it subscribes again: a lasting error must not make it spin.
const resubscribeAfter = time.Second

// bufferSize is how much the kernel keeps of what was not received yet, in bytes. A large commit to nftables is told element by
// element.
const bufferSize = 8 << 20

// receiver is a netlink socket.
type receiver interface {
	Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error)
	Close()
}

// Subscription is a subscription to multicast groups in the network namespace of the thread that made it.
type Subscription struct {
	subscribe func() (receiver, error)
	first     receiver
}

// Subscribe subscribes to groups of a netlink protocol, such as unix.NETLINK_ROUTE. The kernel keeps messages until Run.
func Subscribe(protocol int, groups ...uint) (*Subscription, error) {
	return subscribe(func() (receiver, error) {
		s, err := nl.Subscribe(protocol, groups...)
		if err != nil {
			return nil, fmt.Errorf("subscribe to the kernel's changes: %w", err)
		}
		// The larger buffer is refused outside the machine's own user namespace: then some notifications may be lost.
		_ = s.SetReceiveBufferSize(bufferSize, true)
		return s, nil
	})
}

func subscribe(open func() (receiver, error)) (*Subscription, error) {
	first, err := open()
	if err != nil {
		return nil, err
	}
	return &Subscription{open, first}, nil
}

// Run hands messages over until ctx ends. It calls lost where messages may be missing: at the beginning, since the caller does
// not know what happened before, where the kernel's buffer was full, and after an error, when it has subscribed again.
func (s *Subscription) Run(ctx context.Context, message func(syscall.NetlinkMessage), lost func()) {
	for r, err := s.first, error(nil); ; r, err = s.subscribe() {
		if err == nil {
			lost()
			receive(ctx, r, message, lost)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(resubscribeAfter):
		}
	}
}

// receive hands messages over until Receive fails or ctx ends. It closes r.
func receive(ctx context.Context, r receiver, message func(syscall.NetlinkMessage), lost func()) {
	stop := context.AfterFunc(ctx, r.Close)
	defer func() {
		if stop() {
			r.Close()
		}
	}()
	for {
		messages, _, err := r.Receive()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS):
			lost()
		case err != nil:
			return
		}
		for _, m := range messages {
			message(m)
		}
	}
}
