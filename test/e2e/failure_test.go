package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/lab"
)

// undisturbed asks a Service from everywhere, also on connections that stay, while something happens. No request may
// fail and no connection may be lost.
func (s *service) undisturbed(disturb func(goOn func())) {
	s.t.Helper()
	loads := s.loads()
	for i, n := range s.cluster.nodes {
		client := s.cluster.clients[i]
		loads = append(loads,
			loadKept(s.t, "pod "+client.name, client.host, s.clusterIP()),
			loadKept(s.t, "host "+n.Name, n.Host, s.clusterIP()))
	}
	goOn := func() {
		s.t.Helper()
		proceed(s.t, loads...)
	}
	goOn()
	disturb(goOn)
	goOn()
	stop(loads...)
}

// follows waits until a change made now is forwarded on every node.
func (s *service) follows(replicas int) {
	s.t.Helper()
	started := time.Now()
	pods := s.scale(replicas)
	for i, n := range s.cluster.nodes {
		s.answers(s.cluster.clients[i].host, s.clusterIP(), pods)
		s.answers(s.cluster.outside, s.nodePortOf(n), pods)
	}
	s.t.Logf("a new pod answers on all nodes %s after kubectl scale", time.Since(started).Round(time.Millisecond))
}

// deployToDisturb is deploy for a case that kills programs: whatever does not run at its end is started again, so that a
// failure does not become everybody's.
func deployToDisturb(t *testing.T, name string) *service {
	t.Helper()
	s := deploy(t, name, 2, "--type=NodePort")
	t.Cleanup(func() {
		kube, f := s.cluster.kube, s.cluster.fairlead
		if kube.APIServer().Ended() != nil {
			s.must(kube.StartAPIServer())
			s.must(kube.Ready(context.Background())) // The test's own context has ended.
		}
		if f.Serve().Ended() != nil {
			s.must(f.StartServe())
		}
		for _, n := range s.cluster.nodes {
			if f.Agent(n.Name).Ended() != nil {
				s.must(f.StartAgent(n.Name))
			}
			if len(f.Proxies(n.Name)) == 0 {
				s.startEnvoy(n)
			}
		}
	})
	return s
}

func (s *service) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%v; logs are in %s", err, s.cluster.dir)
	}
}

func (s *service) killEnvoy(n *lab.Node) {
	for _, p := range s.cluster.fairlead.Proxies(n.Name) {
		p.Kill()
		s.cluster.fairlead.StopProxy(n.Name, p) // Nothing is left of it to stop.
	}
}

func (s *service) startEnvoy(n *lab.Node) {
	s.t.Helper()
	_, err := s.cluster.fairlead.StartProxy(n.Name)
	s.must(err)
}

// TestControlPlaneKilled kills the control plane and starts it again.
func TestControlPlaneKilled(t *testing.T) {
	s := deployToDisturb(t, "serve-killed")
	f := s.cluster.fairlead
	s.undisturbed(func(goOn func()) {
		f.Serve().Kill()
		goOn()
		s.must(f.StartServe())
		s.follows(3)
	})
}

// TestAPIServerRestarted kills the API server and starts it again.
func TestAPIServerRestarted(t *testing.T) {
	s := deployToDisturb(t, "api-restarted")
	kube := s.cluster.kube
	s.undisturbed(func(goOn func()) {
		kube.APIServer().Kill()
		goOn()
		s.must(kube.StartAPIServer())
		s.must(kube.Ready(t.Context()))
		s.follows(3)
	})
}

// TestAgentKilled kills each node's agent and starts it again.
func TestAgentKilled(t *testing.T) {
	s := deployToDisturb(t, "agent-killed")
	f := s.cluster.fairlead
	s.undisturbed(func(goOn func()) {
		for _, n := range s.cluster.nodes {
			f.Agent(n.Name).Kill()
			goOn()
			s.must(f.StartAgent(n.Name))
		}
		s.follows(3)
	})
}

// TestNodeAlone kills the control plane and both agents: the nodes forward on. A node whose agent and Envoy then start
// with no control plane to ask forwards what it last knew. When all are back, changes arrive again.
func TestNodeAlone(t *testing.T) {
	s := deployToDisturb(t, "alone")
	f := s.cluster.fairlead
	n := s.cluster.nodes[0]
	s.undisturbed(func(goOn func()) {
		f.Serve().Kill()
		for _, n := range s.cluster.nodes {
			f.Agent(n.Name).Kill()
		}
		goOn()
	})

	s.killEnvoy(n)
	s.must(f.StartAgent(n.Name))
	s.startEnvoy(n)
	s.answers(s.cluster.clients[0].host, s.clusterIP(), s.awaitPods(2))

	s.must(errors.Join(f.StartServe(), f.StartAgent(s.cluster.nodes[1].Name)))
	s.follows(3)
}

// TestEnvoyKilled kills a node's Envoy. Its connections are lost and nothing else is: the other node's go on, and the
// node forwards again as soon as an Envoy is back.
func TestEnvoyKilled(t *testing.T) {
	s := deployToDisturb(t, "envoy-killed")
	n, other := s.cluster.nodes[0], s.cluster.nodes[1]
	loads := []*load{
		loadNew(t, "pod of the other node", s.cluster.clients[1].host, s.clusterIP()),
		loadKept(t, "pod of the other node", s.cluster.clients[1].host, s.clusterIP()),
		loadNew(t, "outside by the other node", s.cluster.outside, s.nodePortOf(other)),
	}
	s.killEnvoy(n)
	killed := time.Now()
	s.startEnvoy(n)
	s.eventually(func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := ask(ctx, s.cluster.clients[0].host, s.clusterIP())
		return err
	})
	t.Logf("node %s forwards %s after its Envoy was killed", n.Name, time.Since(killed).Round(time.Millisecond))
	s.answers(s.cluster.outside, s.nodePortOf(n), s.awaitPods(2))
	proceed(t, loads...)
	stop(loads...)
	s.follows(3)
}
