package e2e

import (
	"fmt"
	"slices"
	"testing"
)

// loads asks a Service from everywhere at once: from a Pod and the host of each node, and from outside by each node's
// port.
func (s *service) loads() []*load {
	var loads []*load
	for i, n := range s.cluster.nodes {
		client := s.cluster.clients[i]
		loads = append(loads,
			loadNew(s.t, "pod "+client.name, client.host, s.clusterIP()),
			loadNew(s.t, "host "+n.Name, n.Host, s.clusterIP()),
			loadNew(s.t, "outside by "+n.Name, s.cluster.outside, s.nodePortOf(n)))
	}
	return loads
}

// spread waits until all the Pods, and only these, have answered every load since a moment after the call.
func (s *service) spread(loads []*load, pods []*pod) {
	s.t.Helper()
	want := names(pods)
	for _, l := range loads {
		s.eventually(func() error {
			got := l.pods()
			if slices.ContainsFunc(got, func(name string) bool { return !slices.Contains(want, name) }) {
				l.forget() // Answers from before the change are among them.
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("%s: %q answer, want %q", l.name, got, want)
			}
			return nil
		})
	}
}

// TestScale changes the number of Pods, and then all the Pods, under constant load without a failed request.
func TestScale(t *testing.T) {
	s := deploy(t, "scale", 3, "--type=NodePort")
	loads := s.loads()
	for _, replicas := range []int{6, 2, 4} {
		s.spread(loads, s.scale(replicas))
	}
	s.kubectl("rollout", "restart", "deployment", s.name)
	s.kubectl("rollout", "status", "deployment", s.name, "--timeout", patience.String())
	s.spread(loads, s.awaitPods(4))
	stop(loads...)
}
