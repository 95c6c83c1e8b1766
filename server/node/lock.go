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

// lockPath is the file on which a node's agent holds a lock.
func lockPath(runDir string) string { return filepath.Join(runDir, "agent.lock") }

// lockPoll is how often lock retries while another process holds the lock.
const lockPoll = 100 * time.Millisecond

// lock waits until no other agent serves or cleans up this node, and takes the lock. Close releases it, and the kernel does when
// the process ends, in whatever way. The error is ctx's if that ends first.
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
	// cleanup removes the file. A lock on a removed file excludes no other agent.
	held, errHeld := f.Stat()
	there, errThere := os.Stat(path)
	if errHeld != nil || errThere != nil || !os.SameFile(held, there) {
		return nil, errors.Join(errLocked, f.Close())
	}
	return f, nil
}
