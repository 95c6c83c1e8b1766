package clients

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead/fairlead/server/lab/fleet"
)

// TestBalance: ten programs, of which each keeps one channel, load ten backends evenly without a proxy. Beside it, in the
// same run, the same programs dial the cluster IP, where each connection stays with one backend.
//
//  1. Every program makes 1,000 calls, from its first one on.
//  2. An eleventh backend becomes ready. From that moment on, every program makes 1,100 calls.
func TestBalance(t *testing.T) {
	const programs, backends = 10, 10
	c := startCluster(t, true)
	s := &service{cluster: c, t: t, name: "web", address: "10.96.0.10"}
	for i := range backends {
		s.addPod(i % 2)
	}
	s.write()
	_, err := c.fleet.Await(withPatience(t), c.nodes[0].Name, fleet.Ready)
	must(t, err)

	ways := []*way{{name: "xDS, no proxy", target: "xds:///web.default:80"}, {name: "cluster IP", target: s.address + ":80"}}
	for _, w := range ways {
		for i := range programs {
			bootstrap := c.bootstrap(t, fmt.Sprintf("balance-%d", i), "--insecure", "--server", c.address(18000))
			w.channels = append(w.channels, startProgram(t, c.client, "go", bootstrap).dial(t, w.target))
		}
		w.first = w.load(t, 1000)
	}
	added := s.addPod(0)
	s.write()
	text := fmt.Sprintf("%d programs, %d backends\n| way | calls to the busiest backend / mean | calls to a new backend / fair share |\n|---|---|---|\n", programs, backends)
	for _, w := range ways {
		w.second = w.load(t, 1100)
		text += fmt.Sprintf("| %s | %.2f | %.2f |\n", w.name, w.first.busiest(backends), w.second.shareOf(added.Name, backends+1))
	}
	t.Log(strings.TrimSpace(text))
	if got := ways[0].first.busiest(backends); got > 1.05 {
		t.Errorf("the busiest backend had %.2f times as many calls as the mean: %v", got, ways[0].first)
	}
	if got := ways[0].second.shareOf(added.Name, backends+1); got < 0.95 {
		t.Errorf("the new backend had %.2f of its fair share: %v", got, ways[0].second)
	}
}

// way is one way of reaching the backends.
type way struct {
	name, target  string
	channels      []channel
	first, second counts
}

// counts are calls by backend.
type counts map[string]int

// load has all programs make calls at the same time, which have to succeed.
func (w *way) load(t *testing.T, calls int) counts {
	t.Helper()
	reports, errs := make([]report, len(w.channels)), make([]error, len(w.channels))
	var running sync.WaitGroup
	for i, c := range w.channels {
		running.Go(func() { reports[i], errs[i] = c.order(calls) })
	}
	running.Wait()
	must(t, errors.Join(errs...))
	sum := counts{}
	for _, r := range reports {
		if len(r.Errors) > 0 {
			t.Errorf("%s: calls failed: %v", w.name, r.Errors)
		}
		for backend, n := range r.Answers {
			sum[backend] += n
		}
	}
	return sum
}

func (c counts) total() (n int) {
	for _, calls := range c {
		n += calls
	}
	return n
}

// busiest returns how many calls the busiest of all backends had, by the mean.
func (c counts) busiest(backends int) float64 {
	return float64(slices.Max(slices.Collect(maps.Values(c)))*backends) / float64(c.total())
}

// shareOf returns how much of its fair share a backend had.
func (c counts) shareOf(backend string, backends int) float64 {
	return float64(c[backend]*backends) / float64(c.total())
}
