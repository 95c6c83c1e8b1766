package lab

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// LoadConfig is a constant, bounded load of one kind of request.
type LoadConfig struct {
	Request
	Rate      int           // Requests a second, at most; a load never catches up.
	Workers   int           // Requests at a time, at most.
	Timeout   time.Duration // For each request.
	KeepAlive bool          // HTTP only: every worker has one connection and keeps it. Else each request makes its own.
}

// Load is a load that runs.
type Load struct {
	host    *Host
	config  LoadConfig
	stop    context.CancelFunc
	workers sync.WaitGroup

	mu        sync.Mutex // Guards the following.
	report    Report
	seen      map[Answer]bool
	latencies []time.Duration
	changed   chan struct{} // Closed and replaced whenever the report changes.
}

// Report is the result of a load.
type Report struct {
	Requests  int                // Finished requests, answered or failed.
	Answers   map[string]int     // By the server that answered.
	Clients   map[netip.Addr]int // By the client address that the servers saw.
	Failures  map[Failure]int
	LastError error // The last failure's; nil when there was none.

	// Connections is the number of different pairs of server and client address and port: of connections to servers.
	Connections int

	// P50 and P99 are latencies of the answered requests; zero before Stop, and when there were none.
	P50, P99 time.Duration
}

// Failed returns the number of failed requests.
func (r Report) Failed() int {
	n := 0
	for _, count := range r.Failures {
		n += count
	}
	return n
}

// StartLoad starts a load from the host. The caller ends it with Stop, before the host is deleted.
func (h *Host) StartLoad(c LoadConfig) (*Load, error) {
	if c.Rate <= 0 || c.Workers <= 0 || c.Timeout <= 0 {
		return nil, fmt.Errorf("load from host %s: rate %d, workers %d and timeout %s must be positive", h.Name, c.Rate, c.Workers, c.Timeout)
	}
	if c.KeepAlive && c.Network != HTTP {
		return nil, fmt.Errorf("load from host %s: only http keeps connections, not %s", h.Name, c.Network)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{host: h, config: c, stop: cancel, seen: map[Answer]bool{}, changed: make(chan struct{})}
	l.report = Report{Answers: map[string]int{}, Clients: map[netip.Addr]int{}, Failures: map[Failure]int{}}
	due := make(chan struct{})
	l.workers.Go(func() { pace(ctx, c.Rate, due) })
	for range c.Workers {
		l.workers.Go(func() { l.work(due) })
	}
	return l, nil
}

// pace sends at the rate and closes the channel at the end. What no worker takes before the next is due is left out.
func pace(ctx context.Context, rate int, due chan<- struct{}) {
	defer close(due)
	ticker := time.NewTicker(time.Second / time.Duration(rate))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		select {
		case <-ctx.Done():
			return
		case due <- struct{}{}:
		}
	}
}

// work makes a request whenever one is due. A request that has begun is finished, so that stopping a load fails none.
func (l *Load) work(due <-chan struct{}) {
	ask := l.host.Ask
	if l.config.KeepAlive {
		client := l.host.httpClient(true)
		defer client.CloseIdleConnections()
		ask = func(ctx context.Context, r Request) (Answer, error) { return askHTTP(ctx, client, r.To) }
	}
	for range due {
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), l.config.Timeout)
		a, err := ask(ctx, l.config.Request)
		cancel()
		l.count(a, err, time.Since(start))
	}
}

func (l *Load) count(a Answer, err error, latency time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report.Requests++
	if err != nil {
		l.report.Failures[FailureOf(err)]++
		l.report.LastError = err
	} else {
		l.report.Answers[a.Server]++
		l.report.Clients[a.Client.Addr()]++
		if !l.seen[a] {
			l.seen[a] = true
			l.report.Connections++
		}
		l.latencies = append(l.latencies, latency)
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Report returns the load's result so far.
func (l *Load) Report() Report {
	r, _ := l.snapshot()
	return r
}

func (l *Load) snapshot() (Report, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.report
	r.Answers, r.Clients, r.Failures = maps.Clone(r.Answers), maps.Clone(r.Clients), maps.Clone(r.Failures)
	return r, l.changed
}

// Wait returns as soon as the condition holds for the report so far, which it then returns too. When the context ends
// first it returns the context's error.
func (l *Load) Wait(ctx context.Context, condition func(Report) bool) (Report, error) {
	for {
		r, changed := l.snapshot()
		if condition(r) {
			return r, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return r, ctx.Err()
		}
	}
}

// WaitMore waits until n more requests have finished.
func (l *Load) WaitMore(ctx context.Context, n int) (Report, error) {
	goal := l.Report().Requests + n
	return l.Wait(ctx, func(r Report) bool { return r.Requests >= goal })
}

// Silent returns a condition for Wait: a server has not answered n requests in a row. Each condition is for one Wait.
func Silent(server string, n int) func(Report) bool {
	answers, since := -1, 0
	return func(r Report) bool {
		if answers != r.Answers[server] {
			answers, since = r.Answers[server], r.Requests
		}
		return r.Requests-since >= n
	}
}

// Stop ends the load, lets the requests under way finish, and returns the whole report.
func (l *Load) Stop() Report {
	l.stop()
	l.workers.Wait()
	r, _ := l.snapshot()
	if n := len(l.latencies); n > 0 { // No worker is left to change them.
		slices.Sort(l.latencies)
		r.P50, r.P99 = l.latencies[n/2], l.latencies[n*99/100]
	}
	return r
}
