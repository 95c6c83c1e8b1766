package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/server/node/envoyns"
)

// nft runs an nft script.
func nft(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("nft", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// ownAddress gives the host an address.
func ownAddress(t *testing.T, address string) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(address)
	if err == nil {
		err = errors.Join(netlink.LinkSetUp(lo), netlink.AddrReplace(lo, addr))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// answer answers datagrams to an address with a text.
func answer(t *testing.T, at, text string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo([]byte(text), from)
		}
	}()
}

// ask sends a datagram and returns the answer to it.
func ask(t *testing.T, conn net.Conn) string {
	t.Helper()
	b := make([]byte, 64)
	if err := errors.Join(conn.SetDeadline(time.Now().Add(10*time.Second)), func() error { _, err := conn.Write([]byte("?")); return err }()); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// A UDP flow that kube-proxy decided reaches Fairlead as soon as its Service has come over, also when kube-proxy still writes
// its old decision once more; one that Fairlead has decided is never forgotten, not even by an agent that starts.
func TestFlowsOfAnother(t *testing.T) {
	// Half a minute by default, in which a busy machine may not get on.
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", []byte("600"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.96.8.1/32", "10.96.8.2/32"} {
		ownAddress(t, a)
	}
	answer(t, "127.0.0.1:5354", "fairlead")
	answer(t, "127.0.0.1:5353", "kube-proxy")
	nft(t, "add table ip kube-proxy; add chain ip kube-proxy output { type nat hook output priority -101; }") // Of chains of one priority either may come first.
	t.Cleanup(func() { nft(t, "delete table ip kube-proxy") })
	nft(t, "add rule ip kube-proxy output ip daddr 10.96.8.1 udp dport 80 dnat to 127.0.0.1:5353")

	one, two := directFrontend("10.96.8.1", "UDP", 0), directFrontend("10.96.8.2", "UDP", 0)
	table := newTestTable(t)
	table.SetEndpoints(setOf(two), []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:5354")})
	table.SetFrontend("two", two)
	commit(t, table)
	dial := func(to string) net.Conn {
		conn, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	moving, kept := dial("10.96.8.1:80"), dial("10.96.8.2:80")
	expect := func(conn net.Conn, want string) {
		t.Helper()
		if got := ask(t, conn); got != want {
			t.Errorf("%s answers, want %s", got, want)
		}
	}
	expect(moving, "kube-proxy")
	expect(kept, "fairlead")
	since := flowID(t, kept)

	table.SetFrontend("one", one)
	commit(t, table)
	if id := flowID(t, moving); id != "" {
		t.Errorf("kube-proxy's flow is still there: %s", id)
	}
	expect(moving, "kube-proxy") // It has not let go yet, and decides once more.
	nft(t, "flush chain ip kube-proxy output")
	expect(moving, "kube-proxy") // By the decision from before.
	table.LookAgain(time.Now().Add(time.Minute))
	commit(t, table)
	expect(moving, "fairlead")
	if !table.NextLook().IsZero() {
		t.Error("still looking")
	}

	moved := flowID(t, moving)
	restarted := newTestTable(t)
	restarted.SetEndpoints(setOf(two), []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:5354")})
	restarted.SetFrontend("one", one)
	restarted.SetFrontend("two", two)
	commit(t, restarted)
	restarted.LookAgain(time.Now().Add(time.Minute))
	commit(t, restarted)
	if got := flowID(t, kept); got != since || since == "" {
		t.Errorf("Fairlead's flow was cut: %q, before %q", got, since)
	}
	if got := flowID(t, moving); got != moved || moved == "" {
		t.Errorf("the flow that came over was cut by a restart: %q, before %q", got, moved)
	}
	restarted.SetFrontend("one", nil)
	commit(t, restarted)
	if got := flowID(t, moving); got != "" {
		t.Errorf("the flow of a Service that is gone is still there: %s", got)
	}
}

// flowID describes a connected socket's flow in the kernel's memory, "" if there is none.
func flowID(t *testing.T, conn net.Conn) string {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	local, remote := netip.MustParseAddrPort(conn.LocalAddr().String()), netip.MustParseAddrPort(conn.RemoteAddr().String())
	for _, f := range flows {
		if f.Forward.Protocol == unix.IPPROTO_UDP && f.Forward.SrcPort == local.Port() && f.Forward.DstIP.Equal(remote.Addr().AsSlice()) {
			return fmt.Sprint(f.Forward.DstIP, f.Reverse.SrcIP, f.Mark&envoyns.DefaultConfig().Mask, f.TimeStart)
		}
	}
	return ""
}

// Looks at the same second are one, and each element is looked for the planned number of times.
func TestLooksArePlannedTogether(t *testing.T) {
	table := &Table{}
	now := time.Unix(1000, 0)
	for i := range 100 {
		table.lookAgain([]element{{addr: netip.MustParseAddrPort("10.96.0.1:53"), udp: true}}, now.Add(time.Duration(i)*time.Millisecond))
	}
	table.lookAgain([]element{{addr: netip.MustParseAddrPort("10.96.0.1:80")}}, now)
	if len(table.later) != len(lookAgainAfter) {
		t.Errorf("%d looks, want %d", len(table.later), len(lookAgainAfter))
	}
	table.LookAgain(table.NextLook())
	if len(table.later) != len(lookAgainAfter)-1 || table.stale.empty() || !table.Dirty() {
		t.Errorf("after the first look %d are left; flows to forget: %v", len(table.later), table.stale)
	}
}
