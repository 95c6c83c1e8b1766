package node

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
)

// affinityClients are who dials in TestAffinity, and by what.
var affinityClients = []struct {
	from place
	kind kind
}{
	{podA, clusterIP}, {podB, clusterIP}, {podB, loadBalancer}, {serverA, clusterIP}, {nodeA, clusterIP}, {nodeB, nodePort},
	{outsideA, nodePort}, {outsideA, loadBalancer}, {outsideB, externalIP},
}

// TestAffinity has clients of every sort come back again and again, while endpoints come and go and the agents are replaced. A
// client keeps its endpoint until that goes, whatever it dials the Service by; and only then it gets another.
func TestAffinity(t *testing.T) {
	c := theCluster
	for i, p := range c.pairs {
		for j, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
			t.Run(fmt.Sprintf("%s %s", p, protocol), func(t *testing.T) {
				pods := []endpoint{{host: p.servers[0], node: p.nodes[0]}, {host: p.servers[1], node: p.nodes[1]}}
				s := &service{name: "sticky", number: 1020 + 2*i + j, protocol: protocol, affinity: 10800, endpoints: pods}
				c.apply(t, s)
				first := p.keepsEndpoints(t, s)

				hosts := []endpoint{{host: p.nodes[0].Host, node: p.nodes[0], hostNetwork: true}, {host: p.nodes[1].Host, node: p.nodes[1], hostNetwork: true}}
				s.endpoints = append(slices.Clone(pods), hosts...)
				c.apply(t, s)
				p.expectSame(t, "more endpoints", first, p.keepsEndpoints(t, s))

				for _, n := range p.nodes {
					c.fleet.Agent(n.Name).Stop()
					if err := c.fleet.StartAgent(n.Name); err != nil {
						t.Fatal(err)
					}
					c.await(t, n, fleet.Ready)
				}
				c.settle(t)
				p.expectSame(t, "other agents", first, p.keepsEndpoints(t, s))

				s.endpoints = append(pods[1:2:2], hosts...)
				c.apply(t, s)
				after := p.keepsEndpoints(t, s)
				for client, server := range first {
					if gone := p.servers[0].Name; (server == gone) == (after[client] == server) {
						t.Errorf("%s went: %s had %s and has %s", gone, client, server, after[client])
					}
				}
			})
		}
	}
}

// keepsEndpoints has each client come back several times, and returns who answers, by client and family.
func (p *pair) keepsEndpoints(t *testing.T, s *service) map[string]string {
	t.Helper()
	answers := map[string]string{}
	for _, family := range families {
		for _, by := range affinityClients {
			host, entry := by.from.client(p)
			r := lab.Request{Network: lab.TCP, To: s.target(by.kind, family, p.nodes[entry])}
			if s.protocol == corev1.ProtocolUDP {
				r.Network = lab.UDP
			}
			client := fmt.Sprint(by.from, " ", family)
			for range 8 {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				a, err := host.Ask(ctx, r)
				cancel()
				if err != nil {
					t.Fatalf("%s of %s from %s: %v", by.kind, s.name, client, err)
				}
				if before := answers[client]; before != "" && before != a.Server {
					t.Errorf("%s is answered by %s, then by %s", client, before, a.Server)
				}
				answers[client] = a.Server
			}
		}
	}
	return answers
}

func (p *pair) expectSame(t *testing.T, what string, before, after map[string]string) {
	t.Helper()
	for client, server := range before {
		if after[client] != server {
			t.Errorf("%s: %s had %s and has %s", what, client, server, after[client])
		}
	}
}
