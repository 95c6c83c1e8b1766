package launcher

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Envoy queries an Envoy that Run has become over its admin socket, for the probes and hooks of its container.
type Envoy struct {
	process int
	client  *http.Client
}

// ErrNotEnvoy reports that a process is not Envoy, or has not become it yet: a proxy that waits for its agent has no
// connections, and accepts none.
var ErrNotEnvoy = errors.New("not Envoy, or not yet")

// FindEnvoy finds the Envoy that a process has become, in a container process 1. It reads the path of the admin socket from the
// command line; until the process has become Envoy the error is ErrNotEnvoy. With a user other than 0, the one that Envoy runs
// as, the calling process becomes that user: only that user, and root with all capabilities, can connect to the socket.
func FindEnvoy(process, user int) (*Envoy, error) {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(process) + "/cmdline")
	if err != nil {
		return nil, fmt.Errorf("command line of process %d: %w", process, err)
	}
	socket, err := adminSocket(strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00"))
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", process, err)
	}
	if user != 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(user), syscall.Setuid(user)); err != nil {
			return nil, fmt.Errorf("become user %d: %w", user, err)
		}
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Envoy{process, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: answerTimeout}}, nil
}

// adminSocket returns the path of the admin interface from the arguments that Run starts Envoy with.
func adminSocket(args []string) (string, error) {
	i := slices.Index(args, bootstrapFlag)
	if i < 0 || i+1 == len(args) {
		return "", fmt.Errorf("%w: no %s in its command line", ErrNotEnvoy, bootstrapFlag)
	}
	var bootstrap struct {
		Admin struct {
			Address struct{ Pipe struct{ Path string } }
		}
	}
	if err := json.Unmarshal([]byte(args[i+1]), &bootstrap); err != nil {
		return "", fmt.Errorf("its bootstrap: %w", err)
	}
	if bootstrap.Admin.Address.Pipe.Path == "" {
		return "", errors.New("its bootstrap has no admin socket")
	}
	return bootstrap.Admin.Address.Pipe.Path, nil
}

// Ready returns why Envoy cannot accept connections, or nil. It can once it has all resources that its agent had for it.
func (e *Envoy) Ready(ctx context.Context) error {
	_, err := e.ask(ctx, "/ready")
	return err
}

// Alive returns an error if Envoy hangs: it has not answered within 5 s, not even that it is not ready. One whose agent has cleaned
// up the node has no socket any more, and does not hang.
func (e *Envoy) Alive(ctx context.Context) error {
	_, err := e.ask(ctx, "/ready")
	if gone(err) || errors.As(err, new(statusError)) {
		return nil
	}
	return err
}

// statusError is an answer of the admin interface other than 200.
type statusError struct {
	process      int
	status, body string
}

func (e statusError) Error() string {
	return fmt.Sprintf("envoy, process %d: %s: %s", e.process, e.status, e.body)
}

// drainPoll is how often Drain queries Envoy.
const drainPoll = 250 * time.Millisecond

// Drain waits until Envoy has no connections, until Envoy has ended or its socket was removed, or until
// ctx ends, which is no error either. Established connections stay with the Envoy that accepted them, so an Envoy that has been
// replaced must not be stopped before they end.
func (e *Envoy) Drain(ctx context.Context) error {
	for {
		active, err := e.active(ctx)
		switch {
		case ctx.Err() != nil, gone(err), err == nil && active == 0:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(drainPoll):
		}
	}
}

// gone reports whether no process listens at the admin socket any more. An agent that cleans up its node removes the socket.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) }

// active returns the number of connections of clients. The statistics of a listener cover all its workers, and the connections of
// listeners that it has replaced.
func (e *Envoy) active(ctx context.Context) (int, error) {
	stats, err := e.ask(ctx, "/stats?filter=downstream_cx_active$")
	if err != nil {
		return 0, err
	}
	sum := 0
	for lines := bufio.NewScanner(bytes.NewReader(stats)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		if !countsClients(name) {
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil {
			return 0, fmt.Errorf("statistic %s: %w", name, err)
		}
		sum += n
	}
	return sum, nil
}

// countsClients reports whether a statistic counts clients of Services: not the admin interface's, nor a single worker's.
func countsClients(name string) bool {
	return strings.HasPrefix(name, "listener.") && !strings.HasPrefix(name, "listener.admin.") && !strings.Contains(name, ".worker_")
}

// ask sends a request to the admin interface.
func (e *Envoy) ask(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask envoy, process %d: %w", e.process, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("ask envoy, process %d: %w", e.process, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, statusError{e.process, resp.Status, string(bytes.TrimSpace(body))}
	}
	return body, nil
}
