package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/fairlead/fairlead/server/lab"
)

// TestSplice counts what a rule of the host's sees of a pod's connections to a Service, at the first hook that there is: with the
// splice no packet to the Service's address, and the pod dialling the endpoints, which an egress policy can then decide about.
// Without it the rule sees the Service's address.
func TestSplice(t *testing.T) {
	c := theCluster
	for _, p := range c.pairs {
		for _, family := range families {
			t.Run(fmt.Sprint(p, " ", family), func(t *testing.T) {
				a := c.newApp(t, p)
				n, client := p.nodes[0], p.clients[0]
				to := a.tcp.target(clusterIP, family, n)
				count := countPackets(t, n, addressOf(client, family), to.Addr())
				ask := func(ctx context.Context) error {
					_, err := client.Ask(ctx, lab.Request{Network: lab.HTTP, To: to})
					return err
				}
				if *spliced { // The agent has the host's table forward before the splice does.
					eventually(t, func(ctx context.Context) error {
						before, _ := count(t)
						if err := ask(ctx); err != nil {
							return err
						}
						if after, _ := count(t); after != before {
							return fmt.Errorf("a rule of the host saw %d packets to the Service's address", after-before)
						}
						return nil
					})
				}
				seen, from := count(t)
				for range 10 {
					eventually(t, ask)
				}
				service, all := count(t)
				service, all = service-seen, all-from
				if *spliced && service != 0 {
					t.Errorf("a rule of the host saw %d packets to the Service's address", service)
				}
				if !*spliced && service == 0 {
					t.Error("a rule of the host saw no packet to the Service's address: does the test count?")
				}
				if all < 10 {
					t.Errorf("a rule of the host saw %d packets of the pod, and so not its connections to the endpoints", all)
				}
			})
		}
	}
}

// countPackets counts, before all others' hooks on a node, the packets of a pod to an address, and to any.
func countPackets(t *testing.T, n *lab.Node, from, to netip.Addr) func(*testing.T) (toAddress, all int) {
	t.Helper()
	ip := "ip"
	if from.Is6() {
		ip = "ip6"
	}
	script := fmt.Sprintf(`table inet watcher {
	counter to-service { }
	counter from-pod { }
	chain prerouting {
		type filter hook prerouting priority -450;
		%[1]s saddr %[2]s %[1]s daddr %[3]s counter name to-service
		%[1]s saddr %[2]s meta l4proto tcp counter name from-pod
	}
}
`, ip, from, to)
	path := filepath.Join(t.TempDir(), "watcher.nft")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, n, "nft", "-f", path)
	t.Cleanup(func() { run(t, n, "nft", "delete", "table", "inet", "watcher") })
	packets := regexp.MustCompile(`packets (\d+)`)
	return func(t *testing.T) (toAddress, all int) {
		t.Helper()
		for name, value := range map[string]*int{"to-service": &toAddress, "from-pod": &all} {
			out := run(t, n, "nft", "list", "counter", "inet", "watcher", name)
			found := packets.FindStringSubmatch(out)
			if found == nil {
				t.Fatalf("no number of packets in %q", out)
			}
			if _, err := fmt.Sscan(found[1], value); err != nil {
				t.Fatal(err)
			}
		}
		return toAddress, all
	}
}
