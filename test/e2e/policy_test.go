package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestNetworkPolicy puts before a Service's only Pod what a CNI makes of an ingress NetworkPolicy: a rule in the node's
// FORWARD hook that lets one source in. It has to meet the real clients, on the Pod's node and on another.
func TestNetworkPolicy(t *testing.T) {
	for _, n := range theCluster.nodes {
		s, server := deployOn(t, "guarded-"+n.Name, n)
		for _, allowed := range s.cluster.clients {
			t.Run(fmt.Sprintf("pod on %s, client on %s", n.Name, allowed.node.Name), func(t *testing.T) {
				s := s.in(t)
				g := s.guard(server, allowed)
				if _, err := ask(t.Context(), allowed.host, s.clusterIP()); err != nil {
					t.Errorf("%s, which the policy allows: %v", allowed.name, err)
				}
				for _, other := range s.cluster.clients {
					if other != allowed {
						s.denied(g, other)
					}
				}
			})
		}
	}
}

// denied asks the Service from a Pod that the policy forbids to reach the server. Not getting an answer is not enough:
// the server must not have seen the request, and it must have been the policy that dropped it.
func (s *service) denied(g guard, client *pod) {
	s.t.Helper()
	before, dropped := g.server.askedBy(client.host.IPv4), g.dropped()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
	defer cancel()
	_, err := ask(ctx, client.host, s.clusterIP())
	if err == nil || g.server.askedBy(client.host.IPv4) != before {
		s.t.Errorf("%s, which the policy forbids, reached the pod", client.name)
	}
	if g.dropped() == dropped {
		s.t.Errorf("%s did not reach the pod, but it was not the policy that prevented it: %v", client.name, err)
	}
}

// guard is a NetworkPolicy's rule on a Pod's node.
type guard struct {
	s      *service
	server *pod
}

// guard lets in, to the server, packets from one Pod and answers to what the server asked itself. A routed Pod's packets
// leave by its own interface, those for a Pod on a bridge by the bridge.
func (s *service) guard(server, allowed *pod) guard {
	s.t.Helper()
	g := guard{s, server}
	g.nft(fmt.Sprintf(`
		table ip guard {
			counter dropped {}
			chain forward {
				type filter hook forward priority filter
				ct state established,related accept
				oifname { %q, "cni0" } ip daddr %s ip saddr != %s counter name dropped drop
			}
		}`, server.host.Port(), server.host.IPv4, allowed.host.IPv4), "-f", "-")
	s.t.Cleanup(func() { g.nft("", "delete", "table", "ip", "guard") })
	return g
}

// dropped returns what nft says about the packets that the rule has dropped.
func (g guard) dropped() string {
	return g.nft("", "list", "counter", "ip", "guard", "dropped")
}

// nft runs nft on the server's node.
func (g guard) nft(input string, args ...string) string {
	g.s.t.Helper()
	cmd := exec.Command("nft", args...)
	cmd.Stdin = strings.NewReader(input)
	var out []byte
	err := g.server.node.Do(func() (err error) { out, err = cmd.CombinedOutput(); return err })
	if err != nil {
		g.s.t.Fatalf("nft %q on node %s: %v: %s", args, g.server.node.Name, err, out)
	}
	return string(out)
}
