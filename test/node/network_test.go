package node

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/node"
)

// network returns all that is configured in a node's network, as text: tables, links, rules and routes.
func network(n *lab.Node) (string, error) {
	var lines []string
	err := n.Do(func() error {
		tables, err := exec.Command("nft", "--stateless", "list", "tables").CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft: %w: %s", err, tables)
		}
		lines = append(lines, string(tables))
		links, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("links: %w", err)
		}
		for _, l := range links {
			lines = append(lines, fmt.Sprintf("link %s %s", l.Attrs().Name, l.Type()))
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return fmt.Errorf("rules: %w", err)
			}
			for _, r := range rules {
				lines = append(lines, "rule "+r.String())
			}
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return fmt.Errorf("routes: %w", err)
			}
			for _, r := range routes {
				if r.Dst == nil || !r.Dst.IP.IsMulticast() { // The kernel makes and forgets those by itself.
					lines = append(lines, "route "+r.String())
				}
			}
		}
		return nil
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n"), err
}

// rested returns a node's network once nothing in it belongs to an Envoy that has ended. The kernel keeps such an Envoy's
// namespace, and so its links, for as long as a connection of its is still being closed: up to 90 s in LAST-ACK.
func (c *cluster) rested(t *testing.T, n *lab.Node) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := c.fleet.Await(ctx, n.Name, func(s node.Status) bool { return len(s.Generations) == len(c.fleet.Proxies(n.Name)) }); err != nil {
		t.Fatal(err)
	}
	is, err := network(n)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

// masquerade does to what the node's pods send out of the cluster's networks what most CNIs do. Cluster IPs are in none of
// those networks.
func masquerade(n *lab.Node) error {
	return n.Do(func() error {
		nft := exec.Command("nft", "-f", "-")
		nft.Stdin = strings.NewReader(fmt.Sprintf(`table inet cni {
			chain postrouting {
				type nat hook postrouting priority srcnat; policy accept;
				ip saddr %s ip daddr != { 10.244.0.0/16, %s/16 } masquerade
				ip6 saddr %s ip6 daddr != { fd00:10:244::/48, %s/64 } masquerade
			}
		}`, n.PodCIDR4, n.IPv4, n.PodCIDR6, n.IPv6))
		if out, err := nft.CombinedOutput(); err != nil {
			return fmt.Errorf("masquerade on %s: %w: %s", n.Name, err, out)
		}
		return nil
	})
}

// run runs a program in a node's network and returns what it printed.
func run(t *testing.T, n *lab.Node, name string, args ...string) string {
	t.Helper()
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s %v on %s: %v\n%s", name, args, n.Name, err, out)
	}
	return string(out)
}

// difference returns the lines that only one of two texts has.
func difference(before, after string) error {
	lines := func(s string) []string { return strings.Split(s, "\n") }
	var errs []error
	for _, l := range lines(after) {
		if !slices.Contains(lines(before), l) {
			errs = append(errs, fmt.Errorf("more: %s", l))
		}
	}
	for _, l := range lines(before) {
		if !slices.Contains(lines(after), l) {
			errs = append(errs, fmt.Errorf("less: %s", l))
		}
	}
	return errors.Join(errs...)
}
