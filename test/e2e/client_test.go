package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

// requestTimeout is how long a client of the tests waits for an answer.
const requestTimeout = 5 * time.Second

// ask makes a request from a host on a connection of its own.
func ask(ctx context.Context, from *lab.Host, to netip.AddrPort) (lab.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return from.Ask(ctx, lab.Request{Network: lab.HTTP, To: to})
}

// conversation makes all requests on one connection and never opens a second.
type conversation struct {
	conn   net.Conn
	reader *bufio.Reader
}

func converse(ctx context.Context, from *lab.Host, to netip.AddrPort) (*conversation, error) {
	conn, err := from.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return &conversation{conn, bufio.NewReader(conn)}, nil
}

// ask makes a request and returns the name of the Pod that answered.
func (c *conversation) ask() (string, error) {
	if err := c.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c.conn, "GET / HTTP/1.1\r\nHost: service\r\n\r\n"); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	pod, _, found := strings.Cut(string(body), " ")
	if response.StatusCode != http.StatusOK || !found {
		return "", fmt.Errorf("%s: %q", response.Status, body)
	}
	return pod, nil
}

// load is a client that asks a Service all the time. One failed request fails the test.
type load struct {
	name   string
	cancel context.CancelFunc
	ended  chan struct{}
	hangUp func() // Closes a connection that was kept; only after stop.

	mu       sync.Mutex // Guards the following.
	asked    int
	failures []string
	answers  map[string]int // By Pod, since the last call of forget.
}

// interval is the time from one request of a load to its next.
const interval = 20 * time.Millisecond

// loadNew opens a connection for every request.
func loadNew(t *testing.T, name string, from *lab.Host, to netip.AddrPort) *load {
	return startLoad(t, name+", new connections", func() (string, error) {
		a, err := ask(context.Background(), from, to) // A request that is under way when the test ends still counts.
		return a.Server, err
	})
}

// loadKept makes all requests on one connection.
func loadKept(t *testing.T, name string, from *lab.Host, to netip.AddrPort) *load {
	t.Helper()
	c, err := converse(t.Context(), from, to)
	if err != nil {
		t.Fatalf("%s: %v; logs are in %s", name, err, theCluster.dir)
	}
	t.Cleanup(func() { c.conn.Close() })
	l := startLoad(t, name+", one connection", c.ask)
	l.hangUp = func() { c.conn.Close() }
	return l
}

func startLoad(t *testing.T, name string, ask func() (string, error)) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{name: name, cancel: cancel, ended: make(chan struct{}), hangUp: func() {}, answers: map[string]int{}}
	go func() {
		defer close(l.ended)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			started := time.Now()
			pod, err := ask()
			l.count(pod, err, started)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		stop(l)
		if _, err := l.progress(); err != nil {
			t.Errorf("%v; logs are in %s", err, theCluster.dir)
		}
	})
	return l
}

func (l *load) count(pod string, err error, started time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	if err == nil {
		l.answers[pod]++
		return
	}
	l.failures = append(l.failures, fmt.Sprintf("at %s, after %s: %v",
		started.Format("15:04:05.000"), time.Since(started).Round(time.Millisecond), err))
}

// forget starts counting answers anew.
func (l *load) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.answers)
}

// pods returns the Pods that have answered since the last call of forget, sorted.
func (l *load) pods() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.answers))
}

// progress returns how many requests were made, and an error as soon as one has failed.
func (l *load) progress() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.failures); n > 0 {
		return l.asked, fmt.Errorf("%s: %d of %d requests failed, the first %s", l.name, n, l.asked, l.failures[0])
	}
	return l.asked, nil
}

// proceed waits until the loads have each made some more requests.
func proceed(t *testing.T, loads ...*load) {
	t.Helper()
	const more = 50
	want := map[*load]int{}
	for _, l := range loads {
		now, _ := l.progress()
		want[l] = now + more
	}
	for l, want := range want {
		err := eventually(t.Context(), func() error {
			if now, _ := l.progress(); now < want {
				return fmt.Errorf("%s: made %d requests, want %d", l.name, now, want)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%v; logs are in %s", err, theCluster.dir)
		}
	}
}

// stop ends the loads when their requests under way have finished.
func stop(loads ...*load) {
	for _, l := range loads {
		l.cancel()
	}
	for _, l := range loads {
		<-l.ended
	}
}

// refused reports whether a connection attempt was turned away, which is not the same as unanswered.
func refused(err error) bool { return lab.FailureOf(err) == lab.Refused }
