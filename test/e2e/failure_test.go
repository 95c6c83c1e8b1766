package e2e

import (
	"errors"
	"testing"
	"time"
)

// undisturbed asks a Service from everywhere, also on connections that stay, while something happens. No request may
// fail and no connection may be lost. It returns the loads, still running, when each has gone on for a while.
func (s *service) undisturbed(disturb func()) []*load {
	s.t.Helper()
	loads := s.loads()
	for i, n := range s.cluster.nodes {
		client := s.cluster.clients[i]
		loads = append(loads,
			loadKept(s.t, "pod "+client.name, client.host, s.url()),
			loadKept(s.t, "host "+n.Name, n.Host, s.url()))
	}
	goOn := func() {
		s.t.Helper()
		for _, l := range loads {
			l.proceed(s.t, 50)
		}
	}
	goOn()
	disturb()
	goOn()
	return loads
}

// end stops loads.
func end(t *testing.T, loads []*load) {
	t.Helper()
	for _, l := range loads {
		l.stop(t)
	}
}

// follows waits until a change made now is forwarded on every node.
func (s *service) follows(replicas int) {
	s.t.Helper()
	pods := s.scale(replicas)
	for i, n := range s.cluster.nodes {
		s.answers(s.cluster.clients[i].host, s.url(), pods)
		s.answers(s.cluster.outside, s.outsideURL(n), pods)
	}
}

func (s *service) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%v; logs are in %s", err, s.cluster.dir)
	}
}

// TestControlPlaneKilled kills the control plane and starts it again.
func TestControlPlaneKilled(t *testing.T) {
	s := deploy(t, "serve-killed", 2, "--type=NodePort")
	f := s.cluster.fairlead
	loads := s.undisturbed(func() {
		f.serve.kill()
		for _, l := range s.loads() {
			l.proceed(t, 50)
			l.stop(t)
		}
		s.must(f.startServe())
		s.follows(3)
	})
	end(t, loads)
}

// TestAPIServerRestarted kills the API server and starts it again.
func TestAPIServerRestarted(t *testing.T) {
	s := deploy(t, "api-restarted", 2, "--type=NodePort")
	kube := s.cluster.kube
	loads := s.undisturbed(func() {
		kube.apiServer.kill()
		s.must(kube.startAPIServer())
		s.must(kube.ready(t.Context()))
		s.follows(3)
	})
	end(t, loads)
}

// TestAgentKilled kills each node's agent and starts it again.
func TestAgentKilled(t *testing.T) {
	s := deploy(t, "agent-killed", 2, "--type=NodePort")
	f := s.cluster.fairlead
	loads := s.undisturbed(func() {
		for _, n := range s.cluster.nodes {
			f.agents[n.Name].kill()
			s.must(f.startAgent(n))
		}
		s.follows(3)
	})
	end(t, loads)
}

// TestNodeAlone kills the control plane and both agents: the nodes forward on. A node whose agent and Envoy then start
// with no control plane to ask forwards what it last knew. When all are back, changes arrive again.
func TestNodeAlone(t *testing.T) {
	s := deploy(t, "alone", 2, "--type=NodePort")
	f := s.cluster.fairlead
	n := s.cluster.nodes[0]
	loads := s.undisturbed(func() {
		f.serve.kill()
		for _, n := range s.cluster.nodes {
			f.agents[n.Name].kill()
		}
	})
	end(t, loads)

	f.proxies[n.Name].kill()
	s.must(errors.Join(f.startAgent(n), f.startProxy(n)))
	s.answers(s.cluster.clients[0].host, s.url(), s.awaitPods(2))

	s.must(errors.Join(f.startServe(), f.startAgent(s.cluster.nodes[1])))
	s.follows(3)
}

// TestEnvoyKilled kills a node's Envoy. Its connections are lost and nothing else is: the other node's go on, and the
// node forwards again as soon as an Envoy is back.
func TestEnvoyKilled(t *testing.T) {
	s := deploy(t, "envoy-killed", 2, "--type=NodePort")
	f := s.cluster.fairlead
	n, other := s.cluster.nodes[0], s.cluster.nodes[1]
	loads := []*load{
		loadNew(t, "pod of the other node", s.cluster.clients[1].host, s.url()),
		loadKept(t, "pod of the other node", s.cluster.clients[1].host, s.url()),
		loadNew(t, "outside by the other node", s.cluster.outside, s.outsideURL(other)),
	}
	f.proxies[n.Name].kill()
	killed := time.Now()
	s.must(f.startProxy(n))
	s.answer(s.cluster.clients[0].host, s.url())
	t.Logf("node %s forwards %s after its Envoy was killed", n.Name, time.Since(killed).Round(time.Millisecond))
	s.answers(s.cluster.outside, s.outsideURL(n), s.awaitPods(2))
	for _, l := range loads {
		l.proceed(t, 50)
		l.stop(t)
	}
	s.follows(3)
}
