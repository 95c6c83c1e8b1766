package realnode

import (
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

// requestTimeout is how long a client waits for an answer.
const requestTimeout = 5 * time.Second

// loads are clients that ask a Service all the time. One failed request fails the test.
type loads struct {
	t    *testing.T
	runs []*lab.Load
}

// startLoads asks the Service from a pod on each node, from each node, and from outside through each node, on new connections
// and on kept ones.
func (w workload) startLoads(nodes ...*node) *loads {
	w.t.Helper()
	l := &loads{t: w.t}
	for _, n := range nodes {
		client, err := n.client(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		for _, keep := range []bool{false, true} {
			for from, to := range map[*lab.Host]lab.Request{
				client:            {Network: lab.HTTP, To: w.address()},
				n.Host:            {Network: lab.HTTP, To: w.address()},
				w.cluster.outside: {Network: lab.HTTP, To: w.nodePort(n)},
			} {
				load, err := from.StartLoad(lab.LoadConfig{Request: to, Rate: 40, Workers: 4, Timeout: requestTimeout, KeepAlive: keep})
				if err != nil {
					w.t.Fatal(err)
				}
				l.runs = append(l.runs, load)
			}
		}
	}
	l.more(20)
	return l
}

// more waits until each load has finished n more requests.
func (l *loads) more(n int) {
	l.t.Helper()
	for _, load := range l.runs {
		if _, err := load.WaitMore(l.t.Context(), n); err != nil {
			l.t.Fatal(err)
		}
	}
}

// stop ends the loads and fails the test for each that had a failure.
func (l *loads) stop(what string) {
	l.t.Helper()
	l.more(20)
	requests, failed := 0, 0
	for _, load := range l.runs {
		r := load.Stop()
		requests += r.Requests
		failed += r.Failed()
		if r.Failed() > 0 {
			l.t.Errorf("%s: %d of %d requests failed: %v, the last %v", what, r.Failed(), r.Requests, r.Failures, r.LastError)
		}
	}
	l.t.Logf("%s: %d requests, %d failed", what, requests, failed)
}
