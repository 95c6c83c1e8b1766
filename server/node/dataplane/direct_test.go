package dataplane

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// directSet is the set of the direct frontends of these tests.
const directSet = "default/web:http/TCP"

// directFrontend returns a ClusterIP that the kernel forwards, with a client's endpoint kept for some seconds.
func directFrontend(addr, protocol string, seconds uint32) *frontendpb.Frontend {
	f := clusterIP(addr, 80, protocol)
	f.Service = directSet
	f.Direct = &frontendpb.Direct{Endpoints: setOf(f), AffinitySeconds: seconds, Pod: forwardKeep, Node: forwardMasq, Outside: forwardMasq}
	return f
}

func setOf(f *frontendpb.Frontend) string {
	if f.GetIpv6() {
		return directSet + "/ipv6"
	}
	return directSet
}

// backends are servers on the loopback link, each at an address of its own, that answer with their address. Clients are other
// addresses of it. All dial as the node's own processes do.
type backends struct {
	t        *testing.T
	protocol string
	vip      string
	client   func(i int) netip.Addr
	all      []netip.AddrPort
}

// newBackends starts n servers of a family and protocol, and gives the link as many clients' addresses.
func newBackends(t *testing.T, protocol string, ipv6 bool, n, clients int) *backends {
	t.Helper()
	b := &backends{t: t, protocol: protocol, vip: "10.96.9.1"}
	backend := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, 2, byte(i + 1)}) }
	b.client = func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, 3, byte(i + 1)}) }
	route := "10.96.9.0/24"
	if ipv6 {
		b.vip, route = "fd00:96:9::1", "fd00:96:9::/64"
		backend = func(i int) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 9, 2, 15: byte(i + 1)}) }
		b.client = func(i int) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 9, 3, 15: byte(i + 1)}) }
	}
	routeToLoopback(t, route)
	for i := range n {
		addLoopback(t, backend(i))
		b.all = append(b.all, netip.AddrPortFrom(backend(i), 8080))
		b.serve(b.all[i])
	}
	for i := range clients {
		addLoopback(t, b.client(i))
	}
	return b
}

func addLoopback(t *testing.T, a netip.Addr) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrReplace(lo, addr); err != nil {
		t.Fatal(err)
	}
}

// serve answers at an address until the test ends.
func (b *backends) serve(at netip.AddrPort) {
	b.t.Helper()
	if b.protocol == "UDP" {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { c.Close() })
		go func() {
			buffer := make([]byte, 16)
			for {
				_, from, err := c.ReadFromUDPAddrPort(buffer)
				if err != nil {
					return
				}
				_, _ = c.WriteToUDPAddrPort([]byte(at.String()), from)
			}
		}()
		return
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, at.String())
			c.Close()
		}
	}()
}

// dial connects a client to the VIP. A UDP socket is what a client sends from for as long as it likes.
func (b *backends) dial(i int) (net.Conn, error) {
	network := strings.ToLower(b.protocol)
	var local net.Addr = &net.TCPAddr{IP: b.client(i).AsSlice()}
	if b.protocol == "UDP" {
		local = &net.UDPAddr{IP: b.client(i).AsSlice()}
	}
	d := net.Dialer{LocalAddr: local, Timeout: 2 * time.Second}
	return d.Dial(network, net.JoinHostPort(b.vip, "80"))
}

// exchange returns who answers on a connection.
func (b *backends) exchange(c net.Conn) (netip.AddrPort, error) {
	buffer := make([]byte, 100)
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return netip.AddrPort{}, err
	}
	if b.protocol == "UDP" {
		if _, err := c.Write([]byte("?")); err != nil {
			return netip.AddrPort{}, err
		}
	}
	n, err := c.Read(buffer)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(string(buffer[:n]))
}

// ask returns who answers a client's new connection.
func (b *backends) ask(i int) netip.AddrPort {
	b.t.Helper()
	c, err := b.dial(i)
	if err != nil {
		b.t.Fatalf("client %d: %v", i, err)
	}
	defer c.Close()
	answer, err := b.exchange(c)
	if err != nil {
		b.t.Fatalf("client %d: %v", i, err)
	}
	return answer
}

// askAll returns who answers each of n clients, and fails if one client is answered by different ones.
func (b *backends) askAll(n int) []netip.AddrPort {
	b.t.Helper()
	answers := make([]netip.AddrPort, n)
	for i := range answers {
		answers[i] = b.ask(i)
		for range 2 {
			if again := b.ask(i); again != answers[i] {
				b.t.Errorf("client %d is answered by %s, then by %s", i, answers[i], again)
			}
		}
	}
	return answers
}

// moved returns the clients whose answers differ.
func moved(before, after []netip.AddrPort) []int {
	var all []int
	for i := range before {
		if before[i] != after[i] {
			all = append(all, i)
		}
	}
	return all
}

func mustCommit(t *testing.T, table *Table) {
	t.Helper()
	if err := table.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A client keeps its endpoint as long as the endpoint is there, whatever happens to others and to the agent; the clients of an
// endpoint that goes, and only they, get another.
func TestAffinity(t *testing.T) {
	const clients = 60
	for _, protocol := range []string{"TCP", "UDP"} {
		for _, ipv6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %t", protocol, ipv6), func(t *testing.T) {
				b := newBackends(t, protocol, ipv6, 11, clients)
				f := directFrontend(b.vip, protocol, 10800)
				table := newTestTable(t)
				table.SetFrontend("it", f)
				table.SetEndpoints(setOf(f), b.all[:10])
				mustCommit(t, table)
				first := b.askAll(clients)
				used := map[netip.AddrPort]bool{}
				for _, a := range first {
					used[a] = true
				}
				if len(used) < 8 {
					t.Errorf("%d clients use %d of 10 endpoints", clients, len(used))
				}
				stay := func(what string) {
					t.Helper()
					if m := moved(first, b.askAll(clients)); len(m) != 0 {
						t.Errorf("%s: clients %v moved", what, m)
					}
				}
				table.SetEndpoints(setOf(f), b.all)
				mustCommit(t, table)
				stay("one more endpoint")

				table.Forget()
				mustCommit(t, table)
				stay("the table was filled anew")

				table = newTestTable(t)
				table.SetFrontend("it", f)
				table.SetEndpoints(setOf(f), b.all)
				mustCommit(t, table)
				stay("another agent")

				gone := first[0]
				left := slices.DeleteFunc(slices.Clone(b.all), func(e netip.AddrPort) bool { return e == gone })
				table.SetEndpoints(setOf(f), left)
				mustCommit(t, table)
				second := b.askAll(clients)
				for i := range clients {
					if was, is := first[i], second[i]; (was == gone) == (was == is) {
						t.Errorf("%s went: client %d was answered by %s and is by %s", gone, i, was, is)
					}
				}
			})
		}
	}
}

// A client is forgotten when it has not connected for as long as the Service asks, and not before.
func TestAffinityTimeout(t *testing.T) {
	b := newBackends(t, "TCP", false, 10, 20)
	f := directFrontend(b.vip, "TCP", 1)
	table := newTestTable(t)
	table.SetFrontend("it", f)
	table.SetEndpoints(setOf(f), b.all)
	mustCommit(t, table)
	first := b.askAll(20)
	deadline := time.Now().Add(2 * time.Second)
	for time.Now().Before(deadline) { // Each comes back within its second.
		if m := moved(first, b.askAll(20)); len(m) != 0 {
			t.Fatalf("clients %v moved, although they came back in time", m)
		}
	}
	awaitClients(t, table, clientsMap(f), 0)
	if m := moved(first, b.askAll(20)); len(m) < 10 {
		t.Errorf("%d of 20 clients moved after their time", len(m))
	}
}

// awaitClients waits until a map remembers n clients.
func awaitClients(t *testing.T, table *Table, name string, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		found, err := table.nft.ListElements(ctx, "map", name)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == n {
			return
		}
	}
}

// Clients for whom there is no room are forwarded, and counted.
func TestAffinityWithoutRoom(t *testing.T) {
	b := newBackends(t, "TCP", false, 10, 5)
	f := directFrontend(b.vip, "TCP", 10800)
	table := newTestTable(t)
	table.picks.room = 3
	table.SetFrontend("it", f)
	table.SetEndpoints(setOf(f), b.all)
	mustCommit(t, table)
	for i := range 3 {
		b.ask(i)
	}
	for range 10 {
		b.ask(3)
		b.ask(4)
	}
	counters, err := NewCounters()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := counters.Unremembered(t.Context()); err != nil || n != 20 {
		t.Errorf("%d connections were forwarded without memory, %v; want 20", n, err)
	}
	if packets, err := counters.Read(t.Context()); err != nil || packets[counterUnremembered] != 0 {
		t.Errorf("%v, %v: what is forwarded counts among what is not", packets, err)
	}
}

// A UDP flow to a removed endpoint goes to another one with its next datagram; flows to others stay, and TCP connections stay
// everywhere.
func TestDirectFlows(t *testing.T) {
	b := newBackends(t, "UDP", false, 2, 20)
	f := directFrontend(b.vip, "UDP", 0)
	table := newTestTable(t)
	table.SetFrontend("it", f)
	table.SetEndpoints(setOf(f), b.all)
	mustCommit(t, table)
	flows := map[int]net.Conn{}
	answers := map[int]netip.AddrPort{}
	for i := range 20 {
		c, err := b.dial(i)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		flows[i] = c
		if answers[i], err = b.exchange(c); err != nil {
			t.Fatal(err)
		}
	}
	used := map[netip.AddrPort]bool{}
	for _, a := range answers {
		used[a] = true
	}
	if len(used) != 2 {
		t.Fatalf("20 flows use one of 2 endpoints: %v", answers)
	}
	table.SetEndpoints(setOf(f), b.all[1:])
	mustCommit(t, table)
	for i, c := range flows {
		if got, err := b.exchange(c); err != nil || got != b.all[1] {
			t.Errorf("a flow that was answered by %s is now by %s, %v", answers[i], got, err)
		}
	}
}

// A commit deletes the chains and maps that no frontend uses any more, also those that another agent left.
func TestDirectLeavesNothing(t *testing.T) {
	objects := func(table *Table) []string {
		var found []string
		for _, name := range table.left(t.Context()) {
			if prefix, _, _ := strings.Cut(name, "-"); slices.Contains([]string{pickPrefix, endpointsPrefix, slotsPrefix, clientsPrefix}, prefix) {
				found = append(found, name)
			}
		}
		slices.Sort(found)
		return found
	}
	endpoint := []netip.AddrPort{netip.MustParseAddrPort("10.9.2.1:8080")}
	f := directFrontend("10.96.9.1", "TCP", 60)
	want := []string{"clients-default/web.http/TCP", "endpoints-default/web.http/TCP", "pick-default/web.http/TCP", "slots-default/web.http/TCP"}
	table := newTestTable(t)
	table.SetFrontend("it", f)
	table.SetEndpoints(setOf(f), endpoint)
	mustCommit(t, table)
	if got := objects(table); !slices.Equal(got, want) || !intact(t, table) {
		t.Errorf("%q, want %q", got, want)
	}
	f = directFrontend("10.96.9.1", "TCP", 0)
	table.SetFrontend("it", f)
	mustCommit(t, table)
	if got := objects(table); !slices.Equal(got, want[1:]) {
		t.Errorf("without affinity: %q, want %q", got, want[1:])
	}
	table.SetFrontend("it", clusterIP("10.96.9.1", 80, "TCP"))
	table.SetEndpoints(setOf(f), nil)
	mustCommit(t, table)
	if got := objects(table); len(got) != 0 {
		t.Errorf("by Envoy: %q, want none", got)
	}
	table.SetFrontend("it", directFrontend("10.96.9.1", "TCP", 60))
	mustCommit(t, table)
	other := newTestTable(t)
	mustCommit(t, other)
	if got := objects(other); len(got) != 0 || !intact(t, other) {
		t.Errorf("after another agent: %q, want none", got)
	}
}

// A change of one endpoint takes as many operations however many there are.
func TestDirectChangesAreSmall(t *testing.T) {
	var endpoints []netip.AddrPort
	for i := range 1000 {
		endpoints = append(endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(4 + i/200), byte(i % 200)}), 80))
	}
	table := newTestTable(t)
	f := directFrontend("10.96.9.1", "TCP", 60)
	table.SetFrontend("it", f)
	table.SetEndpoints(setOf(f), endpoints)
	mustCommit(t, table)
	for _, change := range [][]netip.AddrPort{endpoints[1:], endpoints[5:], append(slices.Clone(endpoints[5:]), endpoints[0])} {
		table.SetEndpoints(setOf(f), change)
		tx := table.nft.NewTransaction()
		table.addPicks(tx, nil)
		if n := tx.NumOperations(); n > 30 {
			t.Errorf("%d operations for a small change", n)
		}
		mustCommit(t, table)
		slots, err := table.nft.ListElements(t.Context(), "map", slotsMap(setOf(f)))
		if err != nil || len(slots) != len(change) {
			t.Errorf("%d slots, %v, want %d", len(slots), err, len(change))
		}
		known, err := table.nft.ListElements(t.Context(), "map", endpointsMap(setOf(f)))
		if err != nil || len(known) != len(change) {
			t.Errorf("%d endpoints, %v, want %d", len(known), err, len(change))
		}
	}
}

// Numbers follow from endpoints, and no two endpoints have one number.
func TestIDs(t *testing.T) {
	one, other := newIDs(), newIDs()
	e := netip.MustParseAddrPort("10.9.2.1:8080")
	other.of(netip.MustParseAddrPort("10.9.2.2:8080"))
	if one.of(e) != other.of(e) {
		t.Error("two agents number an endpoint differently")
	}
	taken := newIDs()
	taken.taken[one.numbers[e]] = true
	if taken.of(e) == one.of(e) {
		t.Error("two endpoints have one number")
	}
	one.keep(map[string]*pick{})
	if len(one.numbers)+len(one.taken) != 0 {
		t.Error("numbers of endpoints that nobody has are kept")
	}
}
