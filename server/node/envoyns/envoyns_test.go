package envoyns

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/server/lab"
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

// Repair puts back the rules and routes that someone removed.
func TestRepair(t *testing.T) {
	h, config := host(t), DefaultConfig()
	ns := namespace(t, h)
	defer ns.Close()
	if err := h.Do(func() error { return Build(config, 1, int(ns), 1500) }); err != nil {
		t.Fatal(err)
	}
	want := state(t, h)
	err := h.Do(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			if err := removePolicies(config, 1, family); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if slices.Equal(state(t, h), want) {
		t.Fatal("the damage is not there")
	}
	if err := h.Do(func() error { return Repair(config, 1) }); err != nil {
		t.Fatal(err)
	}
	if got := state(t, h); !slices.Equal(got, want) {
		t.Errorf("after the repair:\n%q\nwant:\n%q", got, want)
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
