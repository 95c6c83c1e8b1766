package dataplane

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// The tests run on the kernel's nftables, in a network namespace that only they see.
func TestMain(m *testing.M) {
	code, err := lab.Isolated(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

var (
	forwardKeep = &frontendpb.Route{Verdict: frontendpb.Verdict_FORWARD, Class: frontendpb.Class_KEEP}
	forwardMasq = &frontendpb.Route{Verdict: frontendpb.Verdict_FORWARD, Class: frontendpb.Class_MASQ}
	forwardExt  = &frontendpb.Route{Verdict: frontendpb.Verdict_FORWARD, Class: frontendpb.Class_EXTERNAL}
	refused     = &frontendpb.Route{Verdict: frontendpb.Verdict_REFUSE}
	dropped     = &frontendpb.Route{Verdict: frontendpb.Verdict_DROP}
)

// clusterIP returns a frontend that forwards.
func clusterIP(addr string, port uint32, protocol string) *frontendpb.Frontend {
	a := netip.MustParseAddr(addr)
	return &frontendpb.Frontend{
		Address: a.AsSlice(), Ipv6: a.Is6(), Port: port, Protocol: protocol, Kind: "ClusterIP",
		Pod: forwardKeep, Node: forwardMasq, Outside: forwardMasq,
	}
}

// newTestTable returns a table of its own in the kernel, with two Envoy instances.
func newTestTable(t *testing.T) *Table {
	t.Helper()
	table, err := New(envoyns.DefaultConfig(), nil)
	if err != nil {
		t.Fatal(err)
	}
	addresses := []netip.Addr{netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("fd00:30::1")}
	table.SetNode(Node{
		Addresses: addresses, First: addresses,
		Pods: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
	})
	table.SetInstances(Instances{Live: []envoyns.ID{1, 2}, Current: 2})
	t.Cleanup(func() {
		if err := table.Remove(context.Background()); err != nil { // The test's own context has ended.
			t.Error(err)
		}
	})
	return table
}

// commit commits and returns the elements that the kernel then has, as map key value.
func commit(t *testing.T, table *Table) []string {
	t.Helper()
	if err := table.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if table.Dirty() {
		t.Error("the table is dirty after a commit")
	}
	return elements(t, table)
}

func elements(t *testing.T, table *Table) []string {
	t.Helper()
	var all []string
	names := []string{"ranged4", "ranged6", "node-ranged4", "node-ranged6"}
	for _, name := range slices.AppendSeq(names, maps.Keys(mapTypes)) {
		found, err := table.nft.ListElements(t.Context(), "map", name)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range found {
			all = append(all, name+" "+strings.Join(e.Key, " . ")+" "+strings.Join(e.Value, " "))
		}
	}
	slices.Sort(all)
	return all
}

func TestElements(t *testing.T) {
	nodePort := func(protocol string, pod, node, outside *frontendpb.Route) *frontendpb.Frontend {
		return &frontendpb.Frontend{Port: 30080, Protocol: protocol, Kind: "NodePort", Pod: pod, Node: node, Outside: outside}
	}
	tests := map[string]struct {
		frontend *frontendpb.Frontend
		want     []string
	}{
		"ClusterIP": {clusterIP("10.96.0.10", 80, "TCP"), []string{
			"frontends4 10.96.0.10 . tcp . 80 goto keep-or-masq", "node-frontends4 10.96.0.10 . tcp . 80 goto masq",
		}},
		"IPv6": {clusterIP("fd00:96::10", 53, "UDP"), []string{
			"frontends6 fd00:96::10 . udp . 53 goto keep-or-masq", "node-frontends6 fd00:96::10 . udp . 53 goto masq",
		}},
		"no endpoints": {nodePort("TCP", refused, refused, refused), []string{
			"frontends-ports4 tcp . 30080 goto refuse", "node-frontends-ports4 tcp . 30080 goto refuse",
		}},
		"local policy": {nodePort("UDP", forwardKeep, forwardMasq, forwardExt), []string{
			"frontends-ports4 udp . 30080 goto keep-or-external", "node-frontends-ports4 udp . 30080 goto masq",
		}},
		"local policy, none here": {nodePort("TCP", forwardKeep, forwardMasq, dropped), []string{
			"frontends-ports4 tcp . 30080 goto keep-or-none-local", "node-frontends-ports4 tcp . 30080 goto masq",
		}},
		"at the node's address": {clusterIP("172.30.0.1", 80, "TCP"), []string{
			"aliases4 172.30.0.1 . tcp . 80 169.254.67.1",
			"frontends4 172.30.0.1 . tcp . 80 goto keep-or-masq", "node-frontends4 172.30.0.1 . tcp . 80 goto masq",
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			table := newTestTable(t)
			node := table.node
			node.Aliases = []envoy.Alias{envoy.NewAlias(netip.MustParseAddr("172.30.0.1"), 1)}
			table.SetNode(node)
			table.SetFrontend("it", test.frontend)
			if got := commit(t, table); !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

// A cluster IP is known as long as one of its ports is.
func TestClusterIPs(t *testing.T) {
	table := newTestTable(t)
	known := func() int {
		commit(t, table)
		found, err := table.nft.ListElements(t.Context(), "set", "cluster-ips4")
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	for _, port := range []uint32{80, 443} {
		table.SetFrontend(fmt.Sprint(port), clusterIP("10.96.0.10", port, "TCP"))
	}
	if n := known(); n != 1 {
		t.Errorf("%d cluster IPs for two ports of one, want 1", n)
	}
	table.SetFrontend("80", nil)
	if n := known(); n != 1 {
		t.Errorf("%d cluster IPs after one of two ports went, want 1", n)
	}
	table.SetFrontend("443", nil)
	if n := known(); n != 0 {
		t.Errorf("%d cluster IPs after the last port went, want 0", n)
	}
}

// A change of one frontend takes the operations that it needs, whatever else is in the table.
func TestChangesAreSmall(t *testing.T) {
	table := newTestTable(t)
	for i := range 100 {
		name := fmt.Sprintf("10.96.1.%d:80/TCP", i)
		table.SetFrontend(name, clusterIP(fmt.Sprintf("10.96.1.%d", i), 80, "TCP"))
	}
	before := commit(t, table)

	gone := clusterIP("10.96.1.7", 80, "TCP")
	gone.Pod, gone.Node, gone.Outside = refused, refused, refused
	table.SetFrontend("10.96.1.7:80/TCP", gone)
	table.SetFrontend("10.96.1.8:80/TCP", nil)
	table.SetFrontend("10.96.1.9:80/TCP", clusterIP("10.96.1.9", 80, "TCP")) // No change.
	tx := table.nft.NewTransaction()
	table.addElements(tx)
	if got := tx.NumOperations(); got != 7 { // One replaced in two maps; one deleted from two, with its address.
		t.Errorf("the change takes %d operations, want 6:\n%s", got, tx)
	}
	after := commit(t, table)
	if len(after) != len(before)-2 || !slices.Contains(after, "frontends4 10.96.1.7 . tcp . 80 goto refuse") {
		t.Errorf("after the change the kernel has %d elements of %d: %q", len(after), len(before), after[:6])
	}
}

// intact reports whether the kernel lacks nothing of a table.
func intact(t *testing.T, table *Table) bool {
	t.Helper()
	lacks, err := table.Damage()
	if err != nil {
		t.Fatal(err)
	}
	return lacks == ""
}

// What someone deletes is noticed and written anew by the next commit.
func TestRepair(t *testing.T) {
	direct := directFrontend("10.96.9.1", "UDP", 60)
	for name, damage := range map[string]func(*knftables.Transaction){
		"table deleted":       func(tx *knftables.Transaction) { tx.Delete(&knftables.Table{}) },
		"base chain flushed":  func(tx *knftables.Transaction) { tx.Flush(&knftables.Chain{Name: "prerouting"}) },
		"inner chain flushed": func(tx *knftables.Transaction) { tx.Flush(&knftables.Chain{Name: "lookup-" + incoming}) },
		"rule added": func(tx *knftables.Transaction) {
			tx.Insert(&knftables.Rule{Chain: "prerouting", Rule: "accept"})
		},
		"map flushed": func(tx *knftables.Transaction) { tx.Flush(&knftables.Map{Name: mapName(incoming, false, false)}) },
		"element deleted": func(tx *knftables.Transaction) {
			tx.Delete(&knftables.Element{Set: mapName(clusterIPSet, false, false), Key: []string{"10.96.0.10"}})
		},
		"ranges flushed":     func(tx *knftables.Transaction) { tx.Flush(&knftables.Map{Name: mapName(ranged, false, false)}) },
		"Envoys' marks gone": func(tx *knftables.Transaction) { tx.Flush(&knftables.Map{Name: markMap}) },
		"endpoints flushed":  func(tx *knftables.Transaction) { tx.Flush(&knftables.Map{Name: endpointsMap(setOf(direct))}) },
		"pick chain flushed": func(tx *knftables.Transaction) { tx.Flush(&knftables.Chain{Name: pickChain(setOf(direct))}) },
	} {
		t.Run(name, func(t *testing.T) {
			table := newTestTable(t)
			table.SetFrontend("it", clusterIP("10.96.0.10", 80, "TCP"))
			limited := clusterIP("192.0.2.1", 80, "TCP")
			limited.Kind, limited.Limited = "LoadBalancer", &frontendpb.Limited{Ranges: []string{"10.0.0.0/8", "198.51.100.7/32"}}
			table.SetFrontend("limited", limited)
			table.SetFrontend("direct", direct)
			table.SetEndpoints(setOf(direct), []netip.AddrPort{netip.MustParseAddrPort("10.9.2.1:8080"), netip.MustParseAddrPort("10.9.2.2:8080")})
			want := commit(t, table)
			if lacks, err := table.Damage(); lacks != "" || err != nil {
				t.Fatalf("a fresh table lacks something: %s, %v", lacks, err)
			}
			tx := table.nft.NewTransaction()
			damage(tx)
			if err := table.nft.Run(t.Context(), tx); err != nil {
				t.Fatal(err)
			}
			if intact(t, table) {
				t.Fatal("the damage is not noticed")
			}
			table.Forget()
			if got := commit(t, table); !slices.Equal(got, want) || !intact(t, table) {
				t.Errorf("after the repair: %q, want %q", got, want)
			}
		})
	}
}

// A commit that the kernel refuses changes nothing, and the one after it writes everything.
func TestFailedCommit(t *testing.T) {
	table := newTestTable(t)
	table.SetFrontend("good", clusterIP("10.96.0.10", 80, "TCP"))
	want := commit(t, table)
	bad := clusterIP("10.96.0.11", 80, "TCP")
	bad.Protocol = "no protocol"
	table.SetFrontend("bad", bad)
	if err := table.Commit(t.Context()); err == nil {
		t.Fatal("the kernel took a protocol that there is not")
	}
	if got := elements(t, table); !slices.Equal(got, want) {
		t.Errorf("after a failed commit: %q, want %q", got, want)
	}
	table.SetFrontend("bad", nil)
	if got := commit(t, table); !slices.Equal(got, want) {
		t.Errorf("after the next commit: %q, want %q", got, want)
	}
}

// An agent that starts takes over what another one left, whatever is in it.
func TestTakeOver(t *testing.T) {
	older := newTestTable(t)
	for _, name := range []string{"10.96.0.10", "10.96.0.11"} {
		older.SetFrontend(name, clusterIP(name, 80, "TCP"))
	}
	commit(t, older)
	newer := newTestTable(t)
	newer.SetFrontend("10.96.0.10", clusterIP("10.96.0.10", 80, "TCP"))
	want := []string{"frontends4 10.96.0.10 . tcp . 80 goto keep-or-masq", "node-frontends4 10.96.0.10 . tcp . 80 goto masq"}
	if got := commit(t, newer); !slices.Equal(got, want) || !intact(t, newer) {
		t.Errorf("after a table of the same kind: %q, want %q", got, want)
	}

	tx := newer.nft.NewTransaction()
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Map{Name: mapName(incoming, false, false), Type: "ipv4_addr : verdict"})
	if err := newer.nft.Run(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	newer.Forget()
	if got := commit(t, newer); !slices.Equal(got, want) || !intact(t, newer) {
		t.Errorf("after a table of another kind: %q, want %q", got, want)
	}
}

func TestCleanup(t *testing.T) {
	table := newTestTable(t)
	commit(t, table)
	if err := SyncBridges(t.Context(), nil, []Bridge{{"cni0", "02:00:00:00:00:01", []BridgeEndpoint{{"tcp", netip.MustParseAddrPort("10.244.1.10:80")}}}}, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 { // The second time there is nothing left.
		if err := Cleanup(t.Context(), envoyns.DefaultConfig()); err != nil {
			t.Fatal(err)
		}
	}
	for _, family := range []knftables.Family{knftables.InetFamily, knftables.BridgeFamily} {
		nft, err := knftables.New(family, TableName)
		if err != nil {
			t.Fatal(err)
		}
		if chains, err := nft.List(t.Context(), "chains"); !knftables.IsNotFound(err) && len(chains) > 0 {
			t.Errorf("left behind: %v, %v", chains, err)
		}
	}
}

// Packets to a Service without endpoints are counted, and the count is that of the kernel.
func TestCounters(t *testing.T) {
	counters, err := NewCounters()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := counters.Read(t.Context()); err != nil || len(got) != 0 {
		t.Fatalf("without a table: %v, %v", got, err)
	}
	table := newTestTable(t)
	f := clusterIP("10.96.3.1", 80, "TCP")
	f.Pod, f.Node, f.Outside = refused, refused, refused
	table.SetFrontend("f", f)
	if err := table.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	routeToLoopback(t, "10.96.3.1/32")
	if conn, err := net.DialTimeout("tcp", "10.96.3.1:80", time.Second); err == nil {
		conn.Close()
		t.Error("connected to a Service without endpoints")
	}
	got, err := counters.Read(t.Context())
	want := map[string]uint64{"refused": 1, "dropped": 0, "no-envoy": 0, "out-of-range": 0}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}
