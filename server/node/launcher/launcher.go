// Package launcher starts Envoy in a network namespace of its own and hands that namespace to the agent.
//
// Run is the command of the Envoy DaemonSet; Listen is the agent's side. They make one exchange over a unix socket: Run sends
// the namespace, and the agent answers with the bootstrap once it has joined the namespace to the node.
package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config configures the Envoy that Run becomes, and the socket of its agent.
type Config struct {
	Socket      string        // Path of the agent's unix socket.
	Envoy       string        // Path of the Envoy binary.
	Concurrency int           // Envoy's worker threads; 0 leaves the number to Envoy (one for each core it may use).
	LogLevel    string        // Envoy's log level.
	User        int           // The user and group that Envoy runs as; 0 changes nothing.
	Wait        time.Duration // How long Run waits for the agent; 0 waits for ever.
}

// reply is the agent's answer.
type reply struct {
	Bootstrap []byte `json:"bootstrap,omitempty"`
	Error     string `json:"error,omitempty"`
}

// Run becomes Envoy. It returns only with an error, also if ctx ends before that.
//
// It unshares the network namespace first, so that every socket of Envoy is inside; the namespace exists exactly as long as
// the Envoy that this process becomes.
func Run(ctx context.Context, c Config) error {
	if _, err := os.Stat(c.Envoy); err != nil {
		return fmt.Errorf("envoy binary: %w", err)
	}
	runtime.LockOSThread() // Namespaces and capabilities belong to a thread; the one that calls exec passes its own on.
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w (CAP_SYS_ADMIN is needed)", err)
	}
	bootstrap, err := join(ctx, c.Socket, c.Wait)
	if err != nil {
		return err
	}
	if err := raiseFileLimit(); err != nil {
		return err
	}
	if err := dropPrivileges(c.User); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("ended before it became Envoy: %w", ctx.Err())
	}
	return fmt.Errorf("start %s: %w", c.Envoy, syscall.Exec(c.Envoy, arguments(c, bootstrap), os.Environ()))
}

// tryAgain is how often a proxy tries to reach its agent.
const tryAgain = 100 * time.Millisecond

// bootstrapFlag is Envoy's flag for a bootstrap in the command line itself.
const bootstrapFlag = "--config-yaml"

// arguments returns the command line of Envoy.
func arguments(c Config, bootstrap []byte) []string {
	args := []string{c.Envoy, bootstrapFlag, string(bootstrap), "--log-level", c.LogLevel,
		// Hot restart shares memory by machine, not by namespace: two Envoy instances would take each other for themselves.
		"--disable-hot-restart"}
	if c.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(c.Concurrency))
	}
	return args
}

// join sends the calling thread's network namespace to the agent and returns the bootstrap, once the agent has joined the
// namespace to the node. It retries until the agent listens, since the two start in any order, or until ctx ends: a proxy that
// is being stopped must not become the Envoy to which the kernel sends the node's new connections.
func join(ctx context.Context, socket string, wait time.Duration) ([]byte, error) {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	defer ns.Close()
	start := time.Now()
	again := time.NewTicker(tryAgain)
	defer again.Stop()
	for {
		bootstrap, err := exchange(ctx, socket, ns)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("ended before the agent joined it to the node: %w", ctx.Err())
		case err == nil, wait > 0 && time.Since(start) > wait, !unreachable(err):
			return bootstrap, err
		}
		select {
		case <-ctx.Done():
		case <-again.C:
		}
	}
}

// unreachable reports whether the agent does not listen, or ended before it answered.
func unreachable(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, errNoAnswer)
}

var errNoAnswer = errors.New("the agent closed the connection before it answered")

// exchange is one attempt of join. It hangs up when ctx ends, so that the agent's answer fails and it removes the links again.
func exchange(ctx context.Context, socket string, ns *os.File) ([]byte, error) {
	dialled, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("reach the agent: %w", err)
	}
	conn := dialled.(*net.UnixConn)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, _, err := conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(ns.Fd())), nil); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	var r reply
	if err := json.NewDecoder(conn).Decode(&r); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	if r.Error != "" {
		return nil, fmt.Errorf("agent: %s", r.Error)
	}
	return r.Bootstrap, nil
}

// raiseFileLimit allows as many open files as the process may have: a connection takes two.
func raiseFileLimit() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise the limit of open files to %d: %w", limit.Max, err)
	}
	return nil
}
