package dataplane

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// loadBalancer returns a frontend that only the ranges may dial.
func loadBalancer(addr string, route *frontendpb.Route, ranges ...string) *frontendpb.Frontend {
	f := clusterIP(addr, 80, "TCP")
	f.Kind = "LoadBalancer"
	f.Pod, f.Node, f.Outside = dropped, dropped, dropped
	f.Limited = &frontendpb.Limited{Ranges: ranges, Addresses: [][]byte{f.GetAddress()}, Pod: route, Node: route, Outside: route}
	return f
}

// A source range is an element of its own, with the verdict of those who may dial.
func TestRangeElements(t *testing.T) {
	tests := map[string]struct {
		frontend *frontendpb.Frontend
		want     []string
	}{
		"nobody": {loadBalancer("192.0.2.1", forwardMasq), []string{
			"frontends4 192.0.2.1 . tcp . 80 goto ranged", "node-frontends4 192.0.2.1 . tcp . 80 goto node-ranged",
		}},
		"without the node": {loadBalancer("192.0.2.1", forwardMasq, "10.0.0.0/8"), []string{
			"frontends4 192.0.2.1 . tcp . 80 goto ranged", "node-frontends4 192.0.2.1 . tcp . 80 goto node-ranged",
			"node-ranged4 192.0.2.1 . tcp . 80 . 10.0.0.0/8 goto masq", "ranged4 192.0.2.1 . tcp . 80 . 10.0.0.0/8 goto masq",
		}},
		"with the node": {loadBalancer("192.0.2.1", forwardMasq, "172.16.0.0/12"), []string{
			"frontends4 192.0.2.1 . tcp . 80 goto ranged", "node-frontends4 192.0.2.1 . tcp . 80 goto node-ranged",
			"node-ranged4 192.0.2.1 . tcp . 80 . 172.16.0.0/12 goto masq", "node-ranged4 192.0.2.1 . tcp . 80 . 192.0.2.1 goto masq",
			"ranged4 192.0.2.1 . tcp . 80 . 172.16.0.0/12 goto masq", "ranged4 192.0.2.1 . tcp . 80 . 192.0.2.1 goto masq",
		}},
		"IPv6, with the node": {loadBalancer("2001:db8::1", refused, "2001:db8::/32", "fd00:30::/64"), []string{
			"frontends6 2001:db8::1 . tcp . 80 goto ranged", "node-frontends6 2001:db8::1 . tcp . 80 goto node-ranged",
			"node-ranged6 2001:db8::1 . tcp . 80 . 2001:db8::/32 goto refuse", "node-ranged6 2001:db8::1 . tcp . 80 . fd00:30::/64 goto refuse",
			"ranged6 2001:db8::1 . tcp . 80 . 2001:db8::/32 goto refuse", "ranged6 2001:db8::1 . tcp . 80 . fd00:30::/64 goto refuse",
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			table := newTestTable(t)
			table.SetFrontend("it", test.frontend)
			if got := commit(t, table); !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

// Who is in no range is dropped, who is in one meets the Service; a changed range counts at once, also one that contains
// what was there before.
func TestRanges(t *testing.T) {
	routeToLoopback(t, "192.0.2.0/24")
	for _, a := range []string{"10.9.0.1/32", "10.9.1.1/32"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		lo, err := netlink.LinkByName("lo")
		if err := errors.Join(err, netlink.AddrReplace(lo, addr)); err != nil {
			t.Fatal(err)
		}
	}
	counters, err := NewCounters()
	if err != nil {
		t.Fatal(err)
	}
	table := newTestTable(t)
	for _, step := range []struct {
		ranges []string
		want   [2]string // What becomes of 10.9.0.1 and of 10.9.1.1.
	}{
		{nil, [2]string{counterOutside, counterOutside}},
		{[]string{"10.9.0.0/24"}, [2]string{counterRefused, counterOutside}},
		{[]string{"10.9.0.0/16"}, [2]string{counterRefused, counterRefused}},
		{[]string{"10.8.0.0/16", "10.9.1.1/32"}, [2]string{counterOutside, counterRefused}},
		{[]string{"10.9.0.0/16"}, [2]string{counterRefused, counterRefused}},
	} {
		table.SetFrontend("it", loadBalancer("192.0.2.1", refused, step.ranges...))
		commit(t, table)
		for i, from := range []string{"10.9.0.1", "10.9.1.1"} {
			before, err := counters.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			dial(from, "192.0.2.1:80")
			after, err := counters.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			maps.DeleteFunc(after, func(name string, n uint64) bool { return n == before[name] })
			if len(after) != 1 || after[step.want[i]] == 0 {
				t.Errorf("ranges %v, from %s: counted as %v, want %s", step.ranges, from, after, step.want[i])
			}
		}
	}
}

// routeToLoopback makes addresses reachable, so that the node's own processes can dial them.
func routeToLoopback(t *testing.T, prefix string) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	p := netip.MustParsePrefix(prefix)
	route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.RouteReplace(route)); err != nil {
		t.Fatal(err)
	}
}

// dial tries to connect, for as long as a first packet takes to be counted.
func dial(from, to string) {
	d := net.Dialer{Timeout: 50 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: netip.MustParseAddr(from).AsSlice()}}
	if conn, err := d.Dial("tcp", to); err == nil {
		conn.Close()
	}
}
