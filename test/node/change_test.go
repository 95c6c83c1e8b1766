package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/node"
)

// app is a set of pods behind a TCP and a UDP Service.
type app struct {
	pair     *pair
	tcp, udp *service
	pods     []*appPod // In order of their start.
	started  int
}

// appPod is a pod that serves HTTP and UDP.
type appPod struct {
	*lab.Host
	node    *lab.Node
	servers [2]*lab.Server
}

// newApp starts an app with a pod on each node of the pair and applies its Services.
func (c *cluster) newApp(t *testing.T, p *pair) *app {
	t.Helper()
	a := &app{
		pair: p,
		tcp:  &service{name: "app-tcp", number: 1000, protocol: corev1.ProtocolTCP},
		udp:  &service{name: "app-udp", number: 1001, protocol: corev1.ProtocolUDP},
	}
	t.Cleanup(func() {
		for _, pod := range a.pods {
			if err := pod.Delete(); err != nil {
				t.Error(err)
			}
		}
	})
	a.start(t)
	a.start(t)
	c.apply(t, a.tcp, a.udp)
	return a
}

// start starts a pod on the nodes in turn, and makes it an endpoint of what is applied next.
func (a *app) start(t *testing.T) *appPod {
	t.Helper()
	pod := &appPod{node: a.pair.nodes[a.started%2]}
	a.started++
	var err error
	if pod.Host, err = pod.node.AddPod(fmt.Sprintf("app-%d", a.started), 0); err != nil {
		t.Fatal(err)
	}
	a.pods = append(a.pods, pod)
	var errHTTP, errUDP error
	pod.servers[0], errHTTP = pod.ServeHTTP(pod.Name, podTCP)
	pod.servers[1], errUDP = pod.ServeUDP(pod.Name, podUDP)
	if err := errors.Join(errHTTP, errUDP); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*service{a.tcp, a.udp} {
		s.endpoints = append(s.endpoints, endpoint{host: pod.Host, node: pod.node})
	}
	return pod
}

// terminate marks a pod's endpoints as a controller does when the pod is told to end.
func (a *app) terminate(pod *appPod) {
	for _, s := range []*service{a.tcp, a.udp} {
		for i := range s.endpoints {
			if s.endpoints[i].host == pod.Host {
				s.endpoints[i].conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)}
			}
		}
	}
}

// remove has a pod finish and takes it away.
func (a *app) remove(t *testing.T, pod *appPod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, s := range pod.servers {
		if err := s.Drain(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := pod.Delete(); err != nil {
		t.Fatal(err)
	}
	a.pods = slices.DeleteFunc(a.pods, func(p *appPod) bool { return p == pod })
	for _, s := range []*service{a.tcp, a.udp} {
		s.endpoints = slices.DeleteFunc(s.endpoints, func(e endpoint) bool { return e.host == pod.Host })
	}
}

// TestRollingChange replaces every pod of an app twice, as a Deployment's rollout does, while requests come in along all
// kinds of paths. None may fail, but for the datagrams that a pod is answering when it is taken out.
func TestRollingChange(t *testing.T) {
	c := theCluster
	for _, p := range c.pairs {
		t.Run(p.String(), func(t *testing.T) {
			a := c.newApp(t, p)
			traffic := p.startTraffic(t, a.tcp, a.udp)
			traffic.more(20)
			for range 4 {
				old := a.pods[0]
				young := a.start(t)
				c.applyLater(t, a.tcp, a.udp)
				traffic.from(young.Name)
				a.terminate(old)
				c.applyLater(t, a.tcp, a.udp)
				traffic.takenAway++
				traffic.without(old.Name)
				a.remove(t, old)
				c.applyLater(t, a.tcp, a.udp)
				traffic.more(20)
			}
			traffic.stop()
		})
	}
}

// TestReplacement puts a second Envoy beside a node's first, lets it take over and stops the first once its connections
// have ended. No request may fail and no connection may be cut.
func TestReplacement(t *testing.T) {
	c := theCluster
	for _, p := range c.pairs {
		t.Run(p.String(), func(t *testing.T) {
			a := c.newApp(t, p)
			talk := &service{name: "talk", number: 1002, protocol: corev1.ProtocolTCP, endpoints: []endpoint{{host: p.servers[1], node: p.nodes[1]}}}
			c.apply(t, a.tcp, a.udp, talk)
			n := p.nodes[0]
			traffic := p.startTraffic(t, a.tcp, a.udp)
			conversations := []conversation{
				converse(t, p.clients[0], talk.target(clusterIP, corev1.IPv4Protocol, n)),
				converse(t, n.Host, talk.target(clusterIP, corev1.IPv6Protocol, n)),
				converse(t, p.outside[0], talk.target(nodePort, corev1.IPv4Protocol, n)),
			}
			traffic.more(20)

			old := c.fleet.Proxies(n.Name)[0]
			before := c.await(t, n, func(s node.Status) bool { return s.Current != 0 })
			if _, err := c.fleet.StartProxy(n.Name); err != nil {
				t.Fatal(err)
			}
			c.await(t, n, func(s node.Status) bool { return s.Current != 0 && s.Current != before.Current })
			traffic.more(50)
			for i, talk := range conversations {
				if err := talk.goesOn(); err != nil {
					t.Errorf("connection %d from before: %v", i, err)
				}
				talk.Close()
			}
			if r := traffic.stopKept(); r.Connections != keptConnections {
				t.Errorf("requests on kept connections took %d connections, want %d: some were cut", r.Connections, keptConnections)
			}
			c.fleet.StopProxy(n.Name, old)
			traffic.moreFresh(50)
			traffic.stop()
		})
	}
}
