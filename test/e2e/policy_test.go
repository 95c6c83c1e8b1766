package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// TestNetworkPolicy puts before a Service's only Pod what a CNI makes of an ingress NetworkPolicy: a rule in the node's
// FORWARD hook, on the Pod's own interface, that lets one source in. It must see the real clients, on the same node
// and on another.
func TestNetworkPolicy(t *testing.T) {
	s := deploy(t, "guarded", 1)
	server := s.awaitPods(1)[0]
	for _, allowed := range s.cluster.clients {
		t.Run("allowed from "+allowed.node.Name, func(t *testing.T) {
			s := s.in(t)
			guard := s.guard(server, allowed)
			for _, client := range s.cluster.clients {
				before, dropped := server.asked.Load(), guard.dropped()
				_, err := ask(t.Context(), client.host, s.clusterIP())
				if client == allowed {
					if err != nil {
						t.Errorf("%s, which the policy allows: %v", client.name, err)
					}
					continue
				}
				if err == nil || server.asked.Load() != before {
					t.Errorf("%s, which the policy forbids, reached the pod (error: %v)", client.name, err)
				}
				if guard.dropped() == dropped {
					t.Errorf("%s did not reach the pod, but it was not the policy that prevented it: %v", client.name, err)
				}
			}
		})
	}
}

// guard is a NetworkPolicy's rule on a Pod's node.
type guard struct {
	s    *service
	node *pod
}

// guard lets only packets from one Pod to the other, and answers to what it asked itself.
func (s *service) guard(server, allowed *pod) guard {
	s.t.Helper()
	g := guard{s, server}
	g.nft(fmt.Sprintf(`
		table ip guard {
			counter dropped {}
			chain forward {
				type filter hook forward priority filter
				ct state established,related accept
				oifname %q ip saddr != %s counter name dropped drop
			}
		}`, server.host.Port(), allowed.host.IPv4), "-f", "-")
	s.t.Cleanup(func() { g.nft("", "delete", "table", "ip", "guard") })
	return g
}

// dropped returns what nft says about the packets that the rule has dropped.
func (g guard) dropped() string {
	return g.nft("", "list", "counter", "ip", "guard", "dropped")
}

func (g guard) nft(input string, args ...string) string {
	g.s.t.Helper()
	cmd := exec.Command("nft", args...)
	cmd.Stdin = strings.NewReader(input)
	var out []byte
	err := g.node.node.Do(func() (err error) { out, err = cmd.CombinedOutput(); return err })
	if err != nil {
		g.s.t.Fatalf("nft %q on node %s: %v: %s", args, g.node.node.Name, err, out)
	}
	return string(out)
}
