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
		cni   lab.CNI
		links []string
	}{
		{lab.Routed, []string{"pod12"}},
		{lab.Bridged, []string{"cni0"}},
	} {
		n, err := l.AddNode(fmt.Sprintf("n%d", i+1), test.cni)
		if err != nil {
			t.Fatal(err)
		}
		addresses := []netip.Addr{n.IPv4, n.IPv6}
		find := func() (links []string) {
			if err := n.Do(func() (err error) { links, _, err = podLinks(addresses); return err }); err != nil {
				t.Fatal(err)
			}
			return links
		}
		if links := find(); len(links) != 0 {
			t.Errorf("node %s without pods: %v lead to pods", n.Name, links)
		}
		if _, err := n.AddPod(fmt.Sprintf("pod-%d", i), 12); err != nil {
			t.Fatal(err)
		}
		if links := find(); !slices.Equal(links, test.links) {
			t.Errorf("node %s: %v lead to pods, want %v", n.Name, links, test.links)
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
