package netevent

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// brokenReceiver fails at once, always.
type brokenReceiver struct{ closed int }

func (r *brokenReceiver) Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error) {
	return nil, nil, unix.EBADF
}

func (r *brokenReceiver) Close() { r.closed++ }

// Run subscribes again after a subscription fails, with pauses, also when that fails, and each time says that messages may be
// missing.
func TestRunAfterErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*resubscribeAfter+time.Millisecond)
		defer cancel()
		broken, tries, lost := &brokenReceiver{}, 0, 0
		s, err := subscribe(func() (receiver, error) {
			if tries++; tries%2 == 0 {
				return nil, errors.New("none now")
			}
			return broken, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Run(ctx, func(syscall.NetlinkMessage) { t.Error("a message of a broken subscription") }, func() { lost++ })
		if tries != 11 || broken.closed != 6 || lost != 6 {
			t.Errorf("%d subscriptions tried in ten times the pause, want 11; %d closed and %d times told of losses, want 6", tries, broken.closed, lost)
		}
	})
}
