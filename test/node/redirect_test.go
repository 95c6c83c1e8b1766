package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// TestNoRedirects has pods of one bridge talk to each other, through a Service and directly. What an endpoint says is lifted to the
// host, which routes the answers to a client that dialled the endpoint itself back to the bridge that they came from, and must
// not tell the endpoint of a more direct way each time. The host's settings, by which it tells others so, are not touched.
func TestNoRedirects(t *testing.T) {
	c := theCluster
	p := c.pairs[1]
	n := p.nodes[0]
	s := &service{name: "redirect", number: 1500, protocol: corev1.ProtocolTCP, endpoints: []endpoint{{host: p.servers[0], node: n}}}
	u := &service{name: "redirect-udp", number: 1501, protocol: corev1.ProtocolUDP, endpoints: s.endpoints}
	c.apply(t, s, u)
	hosts := []*lab.Host{p.clients[0], p.servers[0]}
	var before []string
	for _, h := range hosts {
		before = append(before, redirects(t, h))
	}
	for _, family := range families {
		for _, r := range []lab.Request{
			{Network: lab.TCP, To: s.target(clusterIP, family, n)}, {Network: lab.TCP, To: netip.AddrPortFrom(addressOf(p.servers[0], family), podTCP)},
			{Network: lab.UDP, To: u.target(clusterIP, family, n)}, {Network: lab.UDP, To: netip.AddrPortFrom(addressOf(p.servers[0], family), podUDP)},
		} {
			for range 5 {
				eventually(t, func(ctx context.Context) error {
					_, err := p.clients[0].Ask(ctx, r)
					return err
				})
			}
		}
	}
	for i, h := range hosts {
		if after := redirects(t, h); after != before[i] {
			t.Errorf("%s was told of a direct way: %s, before %s", h.Name, after, before[i])
		}
	}
	for _, name := range []string{"all", "cni0"} {
		if got := run(t, n, "cat", "/proc/sys/net/ipv4/conf/"+name+"/send_redirects"); strings.TrimSpace(got) != "1" {
			t.Errorf("send_redirects of %s is %s, want what the host had", name, got)
		}
	}
}

// redirects returns how many ICMP redirects a host has received, in both families.
func redirects(t *testing.T, h *lab.Host) string {
	t.Helper()
	var v4, v6 []byte
	err := h.Do(func() (err error) {
		if v4, err = os.ReadFile("/proc/thread-self/net/snmp"); err == nil {
			v6, err = os.ReadFile("/proc/thread-self/net/snmp6")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var names, counts []string
	for line := range strings.Lines(string(v4)) {
		if fields := strings.Fields(line); fields[0] == "Icmp:" {
			names, counts = counts, fields
		}
	}
	text := ""
	for i, name := range names {
		if name == "InRedirects" {
			text = "IPv4 " + counts[i]
		}
	}
	for line := range strings.Lines(string(v6)) {
		if fields := strings.Fields(line); fields[0] == "Icmp6InRedirects" {
			text += ", IPv6 " + fields[1]
		}
	}
	if !strings.Contains(text, "IPv4") || !strings.Contains(text, "IPv6") {
		t.Fatal(fmt.Errorf("no counters of redirects: %q", text))
	}
	return text
}
