package hostcheck

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/server/node/envoyns"
)

// link is a link of the node.
type link struct {
	netlink.Link
	name, kind string
	mtu        int  // Bytes.
	up, pod    bool // Pod: a veth to another namespace, that is not Fairlead's.
}

// readLinks reads the links of the network namespace.
func readLinks() ([]link, error) {
	all, err := envoyns.Undisturbed(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var links []link
	for _, l := range all {
		a := l.Attrs()
		links = append(links, link{
			Link: l, name: a.Name, kind: l.Type(), mtu: a.MTU, up: a.OperState != netlink.OperDown,
			pod: l.Type() == "veth" && a.NetNsID >= 0 && !isOurs(a.Name),
		})
	}
	return links, nil
}

// overlays are the types of links over which packets to pods of other nodes leave in other packets.
var overlays = []string{"vxlan", "geneve", "ipip", "gre", "sit", "ip6tnl", "wireguard"}

// mtu finds overlays that are too narrow for what pods send.
func mtu(_ context.Context, h *host) ([]Result, error) {
	var widest link
	for _, l := range h.links {
		if l.pod && l.mtu > widest.mtu {
			widest = l
		}
	}
	var results []Result
	for _, l := range h.links {
		if widest.mtu > 0 && l.up && slices.Contains(overlays, l.kind) && l.mtu < widest.mtu {
			results = append(results, Result{Level: Problem,
				Found: fmt.Sprintf("the pod link %s has an MTU of %d bytes, and %s, over which other nodes' pods are reached, of %d: large answers of pods, and UDP, "+
					"get lost wherever ICMP does", widest.name, widest.mtu, l.name, l.mtu),
				Fix: fmt.Sprintf("set the CNI's MTU for pods to %d", l.mtu),
			})
		}
	}
	return results, nil
}

// reversePath finds Envoy's links on which the kernel drops packets with clients' sources.
func reversePath(_ context.Context, h *host) ([]Result, error) {
	all, err := sysctl("ipv4/conf/all/rp_filter")
	if err != nil {
		return nil, err
	}
	var strict []string
	for _, l := range h.links {
		if !isOurs(l.name) {
			continue
		}
		own, err := sysctl("ipv4/conf/" + l.name + "/rp_filter")
		if err != nil {
			return nil, err
		}
		if max(all, own) == "1" { // The kernel takes the larger; 2 is the loose one.
			strict = append(strict, l.name)
		}
	}
	if len(strict) == 0 {
		return nil, nil
	}
	return []Result{{Level: Problem,
		Found: "rp_filter is strict (1) on " + strings.Join(strict, ", ") + ": the kernel drops what Envoy sends under its clients' addresses, so IPv4 Services do not answer",
		Fix:   "set net.ipv4.conf.LINK.rp_filter of these links to 2, and find what sets it, such as a file in /etc/sysctl.d with conf.*",
	}}, nil
}

// bpf finds programs on pods' links that see packets before nftables does. It does not see those of tcx and netkit.
func bpf(_ context.Context, h *host) ([]Result, error) {
	var found []string
	for _, l := range h.links {
		if !l.pod {
			continue
		}
		if xdp := l.Attrs().Xdp; xdp != nil && xdp.Attached {
			found = append(found, "XDP on "+l.name)
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			filters, err := netlink.FilterList(l.Link, parent)
			if err != nil {
				continue // The link has no clsact, or is gone by now.
			}
			for _, f := range filters {
				if b, ok := f.(*netlink.BpfFilter); ok && !strings.HasPrefix(b.Name, ownTable) {
					found = append(found, strings.TrimSpace("tc "+b.Name)+" on "+l.name)
				}
			}
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	slices.Sort(found)
	more := ""
	if n := len(found) - 3; n > 0 {
		found, more = found[:3], fmt.Sprintf(" and %d more", n)
	}
	return []Result{{Level: Note,
		Found: "BPF programs of others see pods' packets before nftables: " + strings.Join(found, ", ") + more + "; one that forwards Services itself, as Cilium in kube-proxy's place, leaves none to Fairlead",
		Fix:   "if pods' connections to Services do not get to Envoy, turn off the Service load balancing of the CNI, such as Cilium's kubeProxyReplacement",
	}}, nil
}
