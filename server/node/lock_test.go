package node

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

// One agent at a time holds the lock, and the next gets it as soon as the first lets go.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	first, err := lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*lockPoll)
	defer cancel()
	if _, err := lock(ctx, dir); !errors.Is(err, errLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beside another agent: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		next, err := lock(t.Context(), dir)
		if err == nil {
			err = next.Close()
		}
		got <- err
	}()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the lock was not handed on")
	}
}

// A lock on a file that a cleaning agent has removed keeps nobody out: it is not taken for one.
func TestLockOnARemovedFile(t *testing.T) {
	dir := t.TempDir()
	cleaning, err := lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cleaning.Close()
	if err := os.Remove(lockPath(dir)); err != nil {
		t.Fatal(err)
	}
	next, err := lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if held, there := stat(t, next.Stat), stat(t, func() (os.FileInfo, error) { return os.Stat(lockPath(dir)) }); !os.SameFile(held, there) {
		t.Error("the lock is on a file that nobody else sees")
	}
}

func stat(t *testing.T, of func() (os.FileInfo, error)) os.FileInfo {
	t.Helper()
	info, err := of()
	if err != nil {
		t.Fatal(err)
	}
	return info
}
