package realnode

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// kernelRules are the priorities of the rules that every network namespace starts with.
var kernelRules = []int{0, 32766, 32767}

// cleanNetwork removes from the node's network what a machine that was switched off has lost: all but its wire, its
// addresses and the routes to its neighbours, which its boot configuration makes again.
func (n *node) cleanNetwork() error {
	return n.Do(func() error {
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
			return fmt.Errorf("nft flush ruleset: %w: %s", err, out)
		}
		if out, err := exec.Command("conntrack", "-F").CombinedOutput(); err != nil {
			return fmt.Errorf("conntrack -F: %w: %s", err, out)
		}
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if name := l.Attrs().Name; name == "lo" || name == "eth0" {
				continue
			}
			// The other end of a pair goes with the first.
			if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.As(err, &netlink.LinkNotFoundError{}) {
				return fmt.Errorf("link %s: %w", l.Attrs().Name, err)
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if slices.Contains(kernelRules, max(r.Priority, 0)) {
					continue
				}
				r.Family = family
				if err := netlink.RuleDel(&r); err != nil {
					return fmt.Errorf("rule %s: %w", r, err)
				}
			}
		}
		return nil
	})
}

// footprint returns what there is on the node that a proxy could have left: links, rules, routes and tables.
func (n *node) footprint() ([]string, error) {
	var lines []string
	err := n.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		names := map[int]string{}
		for _, l := range links {
			names[l.Attrs().Index] = l.Attrs().Name
			if !isPodLink(l.Attrs().Name) {
				lines = append(lines, "link "+l.Attrs().Name)
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				lines = append(lines, "rule "+r.String())
			}
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if !isPodLink(names[r.LinkIndex]) {
					lines = append(lines, "route "+r.String())
				}
			}
		}
		out, err := exec.Command("nft", "list", "tables").CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft list tables: %w: %s", err, out)
		}
		lines = append(lines, strings.Split(strings.TrimSpace(string(out)), "\n")...)
		return nil
	})
	return lines, err
}

// isPodLink tells the links of the CNI plugins, which come and go with pods.
func isPodLink(name string) bool { return strings.HasPrefix(name, "veth") || name == "cni0" }
