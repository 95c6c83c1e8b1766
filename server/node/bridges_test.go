package node

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/node/dataplane"
)

// The tests run on the kernel's nftables, in a network namespace that only they see.
func TestMain(m *testing.M) {
	code, err := lab.Isolated(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// addTestBridge adds a bridge with an address and a name that is no name for a set.
func addTestBridge(t *testing.T, name, address string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(bridge); err != nil {
			t.Error(err)
		}
	})
	if err := netlink.AddrAdd(bridge, addr); err != nil {
		t.Fatal(err)
	}
}

func ruleset(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// An endpoint on a bridge gets into the kernel's table however often nft failed, and again after someone took it out; bridges
// of others are left alone.
func TestBridgesAreTriedAgain(t *testing.T) {
	addTestBridge(t, "1br+x", "10.244.1.1/24")
	addTestBridge(t, "docker0", "172.17.0.1/16")
	n := newDesiredState(Config{}, slog.Default())
	endpoint := func(s string) {
		n.bridged.seen = append(n.bridged.seen, dataplane.BridgeEndpoint{Protocol: "tcp", AddrPort: netip.MustParseAddrPort(s)})
	}
	path := os.Getenv("PATH")
	t.Setenv("PATH", "")
	for range 2 {
		endpoint("10.244.1.10:80")
		if err := n.bridges(t.Context()); err == nil {
			t.Fatal("no error without nft")
		}
	}
	t.Setenv("PATH", path)
	repaired := func(when string) {
		t.Helper()
		if err := n.checkBridges(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if err := n.bridges(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := ruleset(t); !strings.Contains(got, "10.244.1.10 . tcp . 80") || strings.Contains(got, "docker0") || n.bridged.stale {
			t.Errorf("%s:\n%s", when, got)
		}
	}
	repaired("after nft failed")
	for _, damage := range []string{
		"flush set bridge fairlead on-1br_2bx-4", "flush chain bridge fairlead prerouting", "flush chain bridge fairlead output", "delete table bridge fairlead",
	} {
		if out, err := exec.Command("nft", damage).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", damage, err, out)
		}
		repaired("after " + damage)
	}
	if redirects, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/send_redirects"); err != nil || strings.TrimSpace(string(redirects)) != "1" {
		t.Errorf("the host's setting for redirects is %q, %v; it is not ours", redirects, err)
	}
}
