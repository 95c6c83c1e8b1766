package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/lab/fleet"
	"github.com/fairlead/fairlead/server/node"
	"github.com/fairlead/fairlead/server/node/envoyns"
)

// answered returns an error unless some server of the Service answers the pair's first client.
func (p *pair) answered(ctx context.Context, s *service) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := p.clients[0].Ask(ctx, lab.Request{Network: lab.HTTP, To: s.target(clusterIP, corev1.IPv4Protocol, p.nodes[0])})
	return err
}

// TestAgentRestart kills a node's agent. The node goes on without it, and the next agent catches up with what it missed;
// no request fails.
func TestAgentRestart(t *testing.T) {
	c := theCluster
	for _, p := range c.pairs {
		t.Run(p.String(), func(t *testing.T) {
			a := c.newApp(t, p)
			traffic := p.startTraffic(t, a.tcp, a.udp)
			traffic.more(20)
			n := p.nodes[0].Name
			c.fleet.Agent(n).Kill()
			traffic.more(50)
			young := a.start(t)
			c.applyLater(t, a.tcp, a.udp)
			if err := c.fleet.StartAgent(n); err != nil {
				t.Fatal(err)
			}
			traffic.from(young.Name)
			c.settle(t)
			traffic.stop()
		})
	}
}

// TestWithoutControlPlane restarts everything on a node while no control plane answers: it forwards by what it knew. When
// one comes back, the node follows it.
func TestWithoutControlPlane(t *testing.T) {
	c := theCluster
	p := c.pairs[0]
	n := p.nodes[0]
	a := c.newApp(t, p)
	// What a node forwards is on its disk a moment later, one type of resources after the other. The Services' addresses may be
	// there from an earlier test, so the endpoints' are looked for too; in a protobuf, a text has its length before it.
	wanted := []string{a.tcp.target(clusterIP, corev1.IPv4Protocol, n).String() + "/TCP", a.udp.target(clusterIP, corev1.IPv4Protocol, n).String() + "/UDP"}
	for _, pod := range a.pods {
		address := pod.IPv4.String()
		wanted = append(wanted, string(rune(len(address)))+address)
	}
	eventually(t, func(context.Context) error {
		state, err := os.ReadFile(filepath.Join(c.fleet.StateDir(n.Name), "last-good"))
		for _, w := range wanted {
			if err == nil && !strings.Contains(string(state), w) {
				err = fmt.Errorf("the state on disk does not know %q", w)
			}
		}
		return err
	})
	t.Cleanup(func() {
		if c.fleet.Serve().Ended() == nil {
			return
		}
		if err := c.fleet.StartServe(); err != nil { // The other tests need one, also if this one has failed.
			t.Error(err)
		}
	})
	c.fleet.Serve().Kill()
	c.fleet.Agent(n.Name).Kill()
	for _, proxy := range c.fleet.Proxies(n.Name) {
		c.fleet.StopProxy(n.Name, proxy)
	}
	if err := c.fleet.StartAgent(n.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := c.fleet.StartProxy(n.Name); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) error { return p.answered(ctx, a.tcp) })
	if err := c.fleet.StartServe(); err != nil {
		t.Fatal(err)
	}
	young := a.start(t)
	c.apply(t, a.tcp, a.udp)
	traffic := p.startTraffic(t, a.tcp, a.udp)
	traffic.from(young.Name)
	traffic.stop()
}

// TestEnvoyCrash kills a node's Envoy. The next one serves the node.
func TestEnvoyCrash(t *testing.T) {
	c := theCluster
	for _, p := range c.pairs {
		t.Run(p.String(), func(t *testing.T) {
			a := c.newApp(t, p)
			n := p.nodes[0]
			proxy := c.fleet.Proxies(n.Name)[0]
			proxy.Kill()
			c.fleet.StopProxy(n.Name, proxy) // It has ended; the fleet shall forget it.
			if _, err := c.fleet.StartProxy(n.Name); err != nil {
				t.Fatal(err)
			}
			c.await(t, n, fleet.Ready)
			eventually(t, func(ctx context.Context) error { return p.answered(ctx, a.tcp) })
			traffic := p.startTraffic(t, a.tcp, a.udp)
			traffic.more(20)
			traffic.stop()
		})
	}
}

// TestHungEnvoy stops a node's Envoy with SIGSTOP. The agent says so, and another Envoy, if there is one, gets the new connections.
func TestHungEnvoy(t *testing.T) {
	c := theCluster
	p := c.pairs[0]
	a := c.newApp(t, p)
	n := p.nodes[0]
	hung := c.await(t, n, fleet.Ready).Current
	stopped := c.fleet.Proxies(n.Name)[0]
	signal := func(to unix.Signal) {
		if err := unix.Kill(stopped.PID(), to); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { signal(unix.SIGCONT) })

	// Alone: nobody can take its place, and it is named.
	signal(unix.SIGSTOP)
	start := time.Now()
	c.await(t, n, func(s node.Status) bool {
		return slices.Equal(s.Hung, []envoyns.ID{hung}) && strings.Contains(s.Error, "hangs")
	})
	t.Logf("noticed after %s", time.Since(start))
	signal(unix.SIGCONT)
	c.await(t, n, func(s node.Status) bool { return len(s.Hung) == 0 && s.Error == "" })

	// Beside another, which it has replaced. When it goes on, it is the current one again.
	older := stopped
	var err error
	if stopped, err = c.fleet.StartProxy(n.Name); err != nil {
		t.Fatal(err)
	}
	s := c.await(t, n, func(s node.Status) bool { return fleet.Ready(s) && s.Current != hung })
	signal(unix.SIGSTOP)
	start = time.Now()
	eventually(t, func(ctx context.Context) error { return p.answered(ctx, a.tcp) })
	c.await(t, n, func(now node.Status) bool {
		return now.Current == hung && slices.Equal(now.Hung, []envoyns.ID{s.Current})
	})
	eventually(t, func(ctx context.Context) error { return p.answered(ctx, a.tcp) })
	t.Logf("another takes over after %s", time.Since(start))
	signal(unix.SIGCONT)
	c.await(t, n, func(now node.Status) bool { return now.Current == s.Current && len(now.Hung) == 0 })
	c.fleet.StopProxy(n.Name, older)
	c.await(t, n, func(now node.Status) bool { return now.Current == s.Current && fleet.Ready(now) })
}

// heardTime bounds, on a busy machine, what the agent does at once when it hears of damage: it takes some hundred milliseconds on an
// idle one. What it only finds when it compares everything takes up to 30 s.
const heardTime = 15 * time.Second

// TestRepair has someone else remove parts of what the agent built. It puts them back.
func TestRepair(t *testing.T) {
	c := theCluster
	routed, bridged := c.pairs[0], c.pairs[1]
	for _, tc := range []struct {
		what   string
		pair   *pair
		damage func(*testing.T, *lab.Node)
	}{
		{"tables", routed, deleteTables},
		{"tables", bridged, deleteTables},
		{"rules and routes", routed, func(t *testing.T, n *lab.Node) { deleteRules(t, n); deleteRoutes(t, n) }},
		{"rules", bridged, deleteRules},
		{"links set down", routed, setLinksDown},
		{"elements", routed, flushMaps},
		{"elements", bridged, flushMaps},
		{"chains", routed, flushChains},
	} {
		t.Run(fmt.Sprintf("%s %s", tc.pair, tc.what), func(t *testing.T) {
			a := c.newApp(t, tc.pair)
			n := tc.pair.nodes[0]
			before := c.rested(t, n)
			tc.damage(t, n)
			start := time.Now()
			eventually(t, func(ctx context.Context) error {
				after, err := network(n)
				if err != nil {
					return err
				}
				return errors.Join(difference(before, after), tc.pair.answered(ctx, a.tcp))
			})
			took := time.Since(start)
			t.Logf("put back after %s", took)
			if took > heardTime {
				t.Errorf("put back after %s: the agent has not heard of it", took)
			}
			traffic := tc.pair.startTraffic(t, a.tcp, a.udp)
			traffic.more(20)
			traffic.stop()
		})
	}
}

// deleteTables deletes the node's nftables tables. The pod network, too, puts back what is its own.
func deleteTables(t *testing.T, n *lab.Node) {
	t.Helper()
	defer func() {
		if err := masquerade(n); err != nil {
			t.Error(err)
		}
	}()
	for line := range strings.Lines(run(t, n, "nft", "list", "tables")) {
		run(t, n, "nft", append([]string{"delete"}, strings.Fields(line)...)...)
	}
}

// flushMaps removes all elements of the maps and sets of Fairlead's table.
func flushMaps(t *testing.T, n *lab.Node) { flush(t, n, "map", "set") }

// flushChains removes all rules of the chains of Fairlead's table.
func flushChains(t *testing.T, n *lab.Node) { flush(t, n, "chain") }

func flush(t *testing.T, n *lab.Node, kinds ...string) {
	t.Helper()
	var script strings.Builder
	for line := range strings.Lines(run(t, n, "nft", "list", "table", "inet", "fairlead")) {
		if words := strings.Fields(line); len(words) == 3 && slices.Contains(kinds, words[0]) {
			fmt.Fprintf(&script, "flush %s inet fairlead %s\n", words[0], words[1])
		}
	}
	path := filepath.Join(t.TempDir(), "flush.nft")
	if err := os.WriteFile(path, []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, n, "nft", "-f", path)
}

// setLinksDown sets the host's ends of the Envoys' links down.
func setLinksDown(t *testing.T, n *lab.Node) {
	t.Helper()
	err := n.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if !envoyns.IsLink(l.Attrs().Name) {
				continue
			}
			if err := netlink.LinkSetDown(l); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// deleteRules deletes the node's policy routing rules.
func deleteRules(t *testing.T, n *lab.Node) {
	t.Helper()
	err := n.Do(func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if r.Mark == 0 {
					continue // The system's own.
				}
				r.Family = family
				if err := netlink.RuleDel(&r); err != nil {
					return fmt.Errorf("delete %s: %w", r, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// deleteRoutes empties the node's routing tables other than the system's own.
func deleteRoutes(t *testing.T, n *lab.Node) {
	t.Helper()
	err := n.Do(func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Table == unix.RT_TABLE_MAIN || r.Table == unix.RT_TABLE_LOCAL {
					continue
				}
				if err := netlink.RouteDel(&r); err != nil {
					return fmt.Errorf("delete %s: %w", r, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCleanup takes Fairlead off a node: nothing of it is left there. It can come back.
func TestCleanup(t *testing.T) {
	c := theCluster
	for _, p := range c.pairs {
		t.Run(p.String(), func(t *testing.T) {
			n := p.nodes[1]
			s := &service{name: "after", number: 1003, protocol: corev1.ProtocolTCP, endpoints: []endpoint{{host: p.servers[0], node: p.nodes[0]}}}
			c.apply(t, s)
			c.fleet.Agent(n.Name).Stop()
			for _, proxy := range c.fleet.Proxies(n.Name) {
				c.fleet.StopProxy(n.Name, proxy)
			}
			clean(t, c, n)
			after, err := network(n)
			if err != nil {
				t.Fatal(err)
			}
			if err := difference(c.clean[n.Name], after); err != nil {
				t.Errorf("left behind on %s:\n%v", n.Name, err)
			}
			if err := c.fleet.StartAgent(n.Name); err != nil {
				t.Fatal(err)
			}
			if _, err := c.fleet.StartProxy(n.Name); err != nil {
				t.Fatal(err)
			}
			c.await(t, n, fleet.Ready)
			path := path{pair: p, service: s, from: podB, kind: clusterIP, family: corev1.IPv4Protocol}
			if err := path.expect(t.Context(), outcome{"a", own}); err != nil {
				t.Error(err)
			}
		})
	}
}

func clean(t *testing.T, c *cluster, n *lab.Node) {
	t.Helper()
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(c.binary, "agent", "--cleanup", "--state-dir", c.fleet.StateDir(n.Name), "--run-dir", c.fleet.RunDir(n.Name)).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("clean up %s: %v\n%s", n.Name, err, out)
	}
}
