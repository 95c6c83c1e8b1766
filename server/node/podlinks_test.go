package node

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// podLinks distinguishes the links of pods from the node's uplink, which in the lab, as in kind, is a veth as well.
func TestPodLinks(t *testing.T) {
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for i, test := range []struct {
		cni    lab.CNI
		links  []string
		routes func(*lab.Node, *lab.Host) []netip.Prefix
	}{
		{lab.Routed, []string{"pod12"}, func(_ *lab.Node, pod *lab.Host) []netip.Prefix {
			return []netip.Prefix{netip.PrefixFrom(pod.IPv4, 32), netip.PrefixFrom(pod.IPv6, 128)}
		}},
		{lab.Bridged, []string{"cni0"}, func(n *lab.Node, _ *lab.Host) []netip.Prefix {
			return []netip.Prefix{n.PodCIDR4, n.PodCIDR6}
		}},
	} {
		n, err := l.AddNode(fmt.Sprintf("n%d", i+1), test.cni)
		if err != nil {
			t.Fatal(err)
		}
		addresses := []netip.Addr{n.IPv4, n.IPv6}
		find := func() (links []string, routes []netip.Prefix) {
			if err := n.Do(func() (err error) {
				if links, err = podLinks(addresses); err != nil {
					return err
				}
				routes, err = routesBy(links)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return links, routes
		}
		if links, _ := find(); len(links) != 0 {
			t.Errorf("node %s without pods: %v lead to pods", n.Name, links)
		}
		pod, err := n.AddPod(fmt.Sprintf("pod-%d", i), 12)
		if err != nil {
			t.Fatal(err)
		}
		links, routes := find()
		if !slices.Equal(links, test.links) {
			t.Errorf("node %s: %v lead to pods, want %v", n.Name, links, test.links)
		}
		if want := test.routes(n, pod); !slices.Equal(routes, want) {
			t.Errorf("node %s: pods are behind %v, want %v", n.Name, routes, want)
		}
	}
}

// A node has a problem if and only if neither links nor prefixes nor configuration identify its pods.
func TestPodProblem(t *testing.T) {
	described := &frontendpb.Node{}
	for _, test := range []struct {
		name    string
		config  Config
		self    *frontendpb.Node
		links   []string
		problem bool
	}{
		{"the Node is not known yet", Config{}, nil, nil, false},
		{"nothing identifies pods", Config{}, described, nil, true},
		{"a link of a pod", Config{}, described, []string{"veth1"}, false},
		{"the Node's podCIDRs", Config{}, &frontendpb.Node{PodCidrs: []string{"10.1.0.0/24"}}, nil, false},
		{"configured prefixes", Config{PodCIDRs: everything}, described, nil, false},
		{"configured links", Config{PodInterfaces: []string{"ipvl"}}, described, nil, false},
	} {
		d := newDesiredState(test.config, slog.New(slog.DiscardHandler))
		d.self, d.podLinks = test.self, test.links
		if p := d.podProblem(); (p != nil) != test.problem {
			t.Errorf("%s: %v", test.name, p)
		}
	}
}
