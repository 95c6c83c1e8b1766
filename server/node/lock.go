package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockPath is the file whose lock a node's agent holds.
func lockPath(runDir string) string { return filepath.Join(runDir, "agent.lock") }

// lockPoll is how often a lock that another holds is tried again.
const lockPoll = 100 * time.Millisecond

// lock waits until no other agent serves or cleans this node. The kernel gives the lock back when its process ends, in
// whatever way. Close gives it back before. The error is ctx's when that ends first.
func lock(ctx context.Context, runDir string) (*os.File, error) {
	for {
		f, err := tryLock(lockPath(runDir))
		if err == nil || !errors.Is(err, errLocked) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

var errLocked = errors.New("another agent runs on this node")

func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the node: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(errLocked, f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the node: %w", err), f.Close())
	}
	// Who cleans up removes the file. A lock on one that is no longer there keeps nobody out.
	held, errHeld := f.Stat()
	there, errThere := os.Stat(path)
	if errHeld != nil || errThere != nil || !os.SameFile(held, there) {
		return nil, errors.Join(errLocked, f.Close())
	}
	return f, nil
}
