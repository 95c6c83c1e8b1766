package dataplane

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

// Watch subscribes again after a subscription fails, with pauses, also when that fails, and then reports the table as disturbed.
func TestWatchAfterErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*resubscribeAfter+time.Millisecond)
		defer cancel()
		broken, tries := &brokenReceiver{}, 0
		disturbed := make(chan struct{}, 1)
		err := watch(ctx, disturbed, func() (receiver, error) {
			if tries++; tries%2 == 0 {
				return nil, errors.New("none now")
			}
			return broken, nil
		}, func() {})
		if err != nil || tries != 11 || broken.closed != 6 {
			t.Errorf("%v; %d subscriptions tried in ten times the pause, want 11; %d closed, want 6", err, tries, broken.closed)
		}
		if len(disturbed) != 1 {
			t.Error("nothing was told after the errors")
		}
	})
}
