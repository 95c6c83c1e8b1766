package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

// requestTimeout is how long a client of the tests waits for an answer.
const requestTimeout = 5 * time.Second

// get makes a request from a host, on a connection of its own, and reads its JSON answer into the value, if any.
func get(ctx context.Context, from *lab.Host, url string, into any) error {
	client := &http.Client{Transport: &http.Transport{DialContext: from.DialContext, DisableKeepAlives: true}, Timeout: requestTimeout}
	return getWith(ctx, client, url, into)
}

func getWith(ctx context.Context, client *http.Client, url string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("get %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", url, response.Status)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("get %s: answer %q: %w", url, body, err)
	}
	return nil
}

// load is a client that asks a Service all the time. Not one request may fail.
type load struct {
	name   string
	kept   bool // All requests on one connection.
	dials  atomic.Int64
	cancel context.CancelFunc
	ended  chan struct{}

	mu       sync.Mutex // Guards the following.
	asked    int
	failures []string
	answers  map[string]int // By Pod, since the last call of forget.
}

// interval is the time from one request of a load to its next.
const interval = 20 * time.Millisecond

// loadNew opens a connection for every request.
func loadNew(t *testing.T, name string, from *lab.Host, url string) *load {
	return startLoad(t, name+", new connections", from, url, false)
}

// loadKept makes all requests on one connection, which must stay.
func loadKept(t *testing.T, name string, from *lab.Host, url string) *load {
	return startLoad(t, name+", one connection", from, url, true)
}

func startLoad(t *testing.T, name string, from *lab.Host, url string, keep bool) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{name: name, kept: keep, cancel: cancel, ended: make(chan struct{}), answers: map[string]int{}}
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: !keep,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				l.dials.Add(1)
				return from.DialContext(ctx, network, address)
			},
		},
		Timeout: requestTimeout,
	}
	go func() {
		defer close(l.ended)
		defer client.CloseIdleConnections()
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			l.ask(client, url)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-l.ended })
	return l
}

// ask makes one request. It does not end with the load: a request that is under way at the end still counts.
func (l *load) ask(client *http.Client, url string) {
	var a answer
	started := time.Now()
	err := getWith(context.Background(), client, url, &a)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	if err != nil {
		l.failures = append(l.failures, fmt.Sprintf("%s, after %s: %v", started.Format(time.StampMilli), time.Since(started).Round(time.Millisecond), err))
		return
	}
	l.answers[a.Pod]++
}

// total returns how many requests were made.
func (l *load) total() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
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

// proceed waits until the load has made some more requests.
func (l *load) proceed(t *testing.T, more int) {
	t.Helper()
	want := l.total() + more
	err := eventually(t.Context(), func() error {
		if got := l.total(); got < want {
			return fmt.Errorf("%s: made %d requests, want %d", l.name, got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// stop ends the load and fails the test if a request has failed, or if the one connection was not the only one.
func (l *load) stop(t *testing.T) {
	t.Helper()
	l.cancel()
	<-l.ended
	if n := len(l.failures); n > 0 {
		t.Errorf("%s: %d of %d requests failed, the first: %s; logs are in %s", l.name, n, l.asked, l.failures[0], theCluster.dir)
	}
	if dials := l.dials.Load(); l.kept && dials != 1 {
		t.Errorf("%s: %d connections, want the first to stay; logs are in %s", l.name, dials, theCluster.dir)
	}
}
