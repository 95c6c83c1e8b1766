package envoyns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/server/node/netevent"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// The tests change links and routes, in a network namespace that only they see.
func TestMain(m *testing.M) {
	code, err := lab.Isolated(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// host returns a lab's node to build Envoy instances on.
func host(t *testing.T) *lab.Node {
	t.Helper()
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	n, err := l.AddNode("n1", lab.Routed)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// state describes what a host has of links, addresses, routes and rules.
func state(t *testing.T, h *lab.Node) []string {
	t.Helper()
	var all []string
	err := h.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			all = append(all, "link "+l.Attrs().Name)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				all = append(all, fmt.Sprint("rule ", family, r))
			}
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Table == unix.RT_TABLE_LOCAL || r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() && r.Dst.IP.To4() == nil || r.Dst.IP.IsMulticast()) {
					continue // The kernel's own, which come some time after their link.
				}
				all = append(all, fmt.Sprint("route ", family, r.Dst, r.Gw, r.Table, r.LinkIndex, r.Type))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// namespace returns a network namespace as a proxy hands it over.
func namespace(t *testing.T, h *lab.Node) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	err := h.Do(func() (err error) {
		before, err := netns.Get()
		if err != nil {
			return err
		}
		defer before.Close()
		if ns, err = netns.New(); err != nil {
			return err
		}
		return netns.Set(before)
	})
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// Building and removing an Envoy instance leaves the host as it was.
func TestRemoveLeavesNothing(t *testing.T) {
	h, config := host(t), DefaultConfig()
	before := state(t, h)
	for _, id := range []ID{1, MaxID} {
		ns := namespace(t, h)
		if err := h.Do(func() error { return Build(config, id, int(ns), 1500) }); err != nil {
			t.Fatal(err)
		}
		if err := ns.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := state(t, h); len(got) <= len(before) {
		t.Errorf("two generations added nothing: %q", got)
	}
	if err := h.Do(func() error { return RemoveAll(config) }); err != nil {
		t.Fatal(err)
	}
	if got := state(t, h); !slices.Equal(got, before) {
		t.Errorf("left behind:\n%q\nbefore:\n%q", got, before)
	}
}

// Existing finds the Envoy instances whose namespace is alive, and Build replaces what is left of a number.
func TestExisting(t *testing.T) {
	h, config := host(t), DefaultConfig()
	ns := namespace(t, h)
	defer ns.Close()
	for range 2 {
		if err := h.Do(func() error { return Build(config, 3, int(ns), 1500) }); err != nil {
			t.Fatal(err)
		}
	}
	var ids []ID
	if err := h.Do(func() (err error) { ids, err = Existing(); return err }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(ids, []ID{3}) {
		t.Errorf("existing generations: %v, want [3]", ids)
	}
}

// damages are what others do to an Envoy instance's links, on its host.
var damages = map[string]func(Config) error{
	"rules": func(c Config) error { return everyRule(c, netlink.RuleDel) },
	"routes of the instance's tables": func(c Config) error {
		return everyRoute(func(r netlink.Route) bool { return r.Table >= c.Table && r.Table < c.Table+tables })
	},
	"routes of the main table": func(Config) error {
		return everyRoute(func(r netlink.Route) bool { return r.Table == unix.RT_TABLE_MAIN && r.Dst != nil && isOurs(r.Dst.IP) })
	},
	"a link set down": func(Config) error {
		link, err := netlink.LinkByName(LinkName(1, frontendpb.Class_MASQ))
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	},
	"addresses": func(Config) error {
		link, err := netlink.LinkByName(LinkName(1, frontendpb.Class_KEEP))
		if err != nil {
			return err
		}
		v4, v6 := addresses(1, frontendpb.Class_KEEP)
		return errors.Join(netlink.AddrDel(link, &netlink.Addr{IPNet: single(v4.host)}), netlink.AddrDel(link, &netlink.Addr{IPNet: single(v6.host)}))
	},
}

// everyRule calls f for the rules of Envoy instances.
func everyRule(c Config, f func(*netlink.Rule) error) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if r.Family = family; r.Priority == c.RulePriority {
				if err := f(&r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// everyRoute deletes the routes for which which is true.
func everyRoute(which func(netlink.Route) bool) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if which(r) {
				if err := netlink.RouteDel(&r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Repair puts back what someone removed, and says so. Watch tells of it, and not of the repair, which would begin anew for ever.
func TestRepair(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			h, config := host(t), DefaultConfig()
			ns := namespace(t, h)
			defer ns.Close()
			if err := h.Do(func() error { return Build(config, 1, int(ns), 1500) }); err != nil {
				t.Fatal(err)
			}
			want := state(t, h)
			damagedNow := watch(t, h, config)
			if damagedNow() {
				t.Fatal("told of damage before there is any")
			}
			if err := h.Do(func() error { return damage(config) }); err != nil {
				t.Fatal(err)
			}
			if slices.Equal(state(t, h), want) && name != "a link set down" {
				t.Fatal("the damage is not there")
			}
			if !damagedNow() {
				t.Fatal("not told of the damage")
			}
			for _, missed := range []bool{true, false} {
				var missing bool
				if err := h.Do(func() (err error) { missing, err = Repair(config, 1); return err }); err != nil || missing != missed {
					t.Fatalf("repaired: %t, %v; want %t", missing, err, missed)
				}
			}
			if got := state(t, h); !slices.Equal(got, want) {
				t.Errorf("after the repair:\n%q\nwant:\n%q", got, want)
			}
			if damagedNow() {
				t.Error("a repair counts as damage")
			}
		})
	}
}

// watch follows the host's changes. The function that it returns says whether there was damage since it was called last.
func watch(t *testing.T, h *lab.Node, c Config) func() bool {
	t.Helper()
	var s *netevent.Subscription
	if err := h.Do(func() (err error) { s, err = subscribe(); return err }); err != nil {
		t.Fatal(err)
	}
	damaged, markers := false, make(chan bool)
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() {
		s.Run(ctx, func(m syscall.NetlinkMessage) {
			_, damage := c.concerns(m)
			damaged = damaged || damage
			if l, err := netlink.LinkDeserialize(nil, m.Data); m.Header.Type == unix.RTM_DELLINK && err == nil && l.Attrs().Name == "marker" {
				markers <- damaged
				damaged = false
			}
		}, func() {})
	})
	t.Cleanup(func() { cancel(); following.Wait() })
	return func() bool {
		t.Helper()
		err := h.Do(func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "marker"
			marker := &netlink.Veth{LinkAttrs: attrs, PeerName: "marker-peer"}
			return errors.Join(netlink.LinkAdd(marker), netlink.LinkDel(marker))
		})
		if err != nil {
			t.Fatal(err)
		}
		return <-markers
	}
}

// A Envoy instance that cannot be built leaves nothing.
func TestFailedBuild(t *testing.T) {
	h, config := host(t), DefaultConfig()
	before := state(t, h)
	if err := h.Do(func() error { return Build(config, 1, -1, 1500) }); err == nil {
		t.Fatal("built with a namespace that there is not")
	}
	if got := state(t, h); !slices.Equal(got, before) {
		t.Errorf("left behind: %q", got)
	}
}

func TestMarks(t *testing.T) {
	seen := map[uint32]bool{}
	config := DefaultConfig()
	for id := ID(1); id <= MaxID; id++ {
		for _, class := range frontendpb.Classes {
			mark := config.Mark(id, class)
			if mark == 0 || mark&^config.Mask != 0 || seen[mark] {
				t.Errorf("generation %d, class %s: mark %#x is zero, outside the mask or another's", id, class, mark)
			}
			seen[mark] = true
			if name := LinkName(id, class); len(name) > 15 {
				t.Errorf("link name %q is longer than the kernel allows", name)
			}
		}
	}
	if id, ok := parseLinkName(LinkName(12, frontendpb.Class_KEEP)); !ok || id != 12 {
		t.Errorf("link of generation 12 read as %d, %t", id, ok)
	}
	for _, foreign := range []string{"fl0k", "fl16k", "fl1m", "flannel.1", "fl", "k", "fl01k"} {
		if id, ok := parseLinkName(foreign); ok {
			t.Errorf("link %s is taken for generation %d", foreign, id)
		}
	}
}

func TestValidate(t *testing.T) {
	for mask, valid := range map[uint32]bool{0x3f00: true, 0x3f: true, 0xfc000000: true, 0: false, 0x1f00: false, 0xff00: false, 0x7e01: false} {
		if err := (Config{Mask: mask}).Validate(); (err == nil) != valid {
			t.Errorf("mask %#x: %v", mask, err)
		}
	}
}
