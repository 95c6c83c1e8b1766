package envoyns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/fairlead/fairlead/translate/envoy"
	"github.com/fairlead/fairlead/translate/frontendpb"
)

// inNamespace runs f in the network namespace at ns, on this goroutine's thread, which then returns to its own namespace. A thread
// that cannot return stays locked to the goroutine, so that no other uses it. Ending the thread in the namespace instead would
// not work: a process's first thread cannot end, and would keep the namespace, and so the Envoy instance, alive.
func inNamespace(ns int, f func() error) (err error) {
	runtime.LockOSThread()
	before, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer func() {
		back := netns.Set(before)
		if back == nil {
			runtime.UnlockOSThread()
		}
		err = errors.Join(err, back, before.Close())
	}()
	if err := netns.Set(netns.NsHandle(ns)); err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	return f()
}

// buildInside configures the namespace so that every destination is local: the kernel delivers packets that arrive on a veth to
// Envoy, whatever their destination, and sends Envoy's packets with the source of another over the veth of class keep.
func buildInside(id ID, ipv6 bool) error {
	if err := setSysctls(insideSysctls(ipv6)); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, class := range frontendpb.Classes {
		if err := linkInside(id, class, ipv6); err != nil {
			return fmt.Errorf("link %s: %w", class.Label(), err)
		}
	}
	for i, f := range families {
		if f.family == netlink.FAMILY_V6 && !ipv6 {
			continue
		}
		if err := routesInside(id, i, lo); err != nil {
			return err
		}
	}
	return tableInside(ipv6)
}

// insideSysctls returns the namespace's settings. The ports from which Envoy connects are below those of pods (32768 and
// up), so that a connection with a pod's address never has the ports of one that the pod itself has open.
func insideSysctls(ipv6 bool) [][2]string {
	settings := [][2]string{
		{"ipv4/conf/all/rp_filter", "0"}, {"ipv4/conf/default/rp_filter", "0"}, {"ipv4/conf/all/accept_local", "1"},
		{"ipv4/ip_local_port_range", "1024 32767"}, {"ipv4/tcp_tw_reuse", "1"}, {"core/somaxconn", "16384"},
	}
	for _, class := range frontendpb.Classes {
		settings = append(settings, [2]string{"ipv4/conf/" + class.Label() + "/rp_filter", "0"})
		if ipv6 {
			settings = append(settings, [2]string{"ipv6/conf/" + class.Label() + "/accept_ra", "0"})
		}
	}
	return settings
}

// linkInside configures the namespace's end of a class's veth.
func linkInside(id ID, class frontendpb.Class, ipv6 bool) error {
	link, err := netlink.LinkByName(class.Label())
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	v4, v6 := addresses(id, class)
	host := hardwareAddr(id, class, hostEnd)
	if _, err := connect(link, v4.proxy, v4.host, host); err != nil {
		return err
	}
	if !ipv6 {
		return nil
	}
	_, err = connect(link, v6.proxy, v6.host, host)
	return err
}

// routesInside adds the policy routes of one family.
func routesInside(id ID, family int, lo netlink.Link) error {
	end := func(class frontendpb.Class) pair {
		v4, v6 := addresses(id, class)
		return [2]pair{v4, v6}[family]
	}
	f := families[family]
	byMasq, byKeep := end(frontendpb.Class_MASQ), end(frontendpb.Class_KEEP)
	masq, err := netlink.LinkByName(frontendpb.Class_MASQ.Label())
	if err != nil {
		return err
	}
	keep, err := netlink.LinkByName(frontendpb.Class_KEEP.Label())
	if err != nil {
		return err
	}
	for _, r := range []*netlink.Route{
		{LinkIndex: masq.Attrs().Index, Dst: f.all, Gw: byMasq.host.AsSlice(), Src: byMasq.proxy.AsSlice(), Flags: int(netlink.FLAG_ONLINK)},
		{LinkIndex: keep.Attrs().Index, Dst: f.all, Gw: byKeep.host.AsSlice(), Table: keepTable, Flags: int(netlink.FLAG_ONLINK)},
		{LinkIndex: lo.Attrs().Index, Dst: f.all, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: localTable},
	} {
		r.Family = f.family
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("route in table %d: %w", r.Table, err)
		}
	}
	return rulesInside(family)
}

// sources are the sources of packets that start in the namespace, by family. Its own addresses, and none yet, lead to the main
// table; every other is that of a client or of a Service, and leads to the table of class keep. That a rule has a source keeps
// it from IPv6 look-ups without one: hence two halves, for a rule of all sources would count as one without.
var sources = []struct{ own, foreign []string }{
	{[]string{"0.0.0.0/32", "169.254.66.0/24"}, []string{"0.0.0.0/1", "128.0.0.0/1"}},
	{[]string{"fe80::/10", "fd00:fa1:2::/64"}, []string{"::/1", "8000::/1"}},
}

// rulesInside adds the policy rules of one family. Rules by source, not by a mark that nftables sets, spare each packet of
// Envoy's a chain and a second route look-up, and let the kernel find the right route when it learns a path's MTU.
func rulesInside(family int) error {
	var rules []*netlink.Rule
	from := func(prefixes []string, table, priority int) {
		for _, p := range prefixes {
			r := netlink.NewRule()
			r.IifName, r.Src, r.Table, r.Priority = "lo", prefix(netip.MustParsePrefix(p)), table, priority
			rules = append(rules, r)
		}
	}
	from(sources[family].own, unix.RT_TABLE_MAIN, ownPref)
	from(sources[family].foreign, keepTable, foreignPref)
	for _, class := range frontendpb.Classes {
		local := netlink.NewRule()
		local.IifName, local.Table, local.Priority = class.Label(), localTable, localPref
		rules = append(rules, local)
	}
	for _, r := range rules {
		r.Family = families[family].family
		if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("rule %v: %w", r, err)
		}
	}
	return nil
}

// tableInside writes the namespace's table fairlead. Its one base chain leaves alone the packets of connections that have a socket,
// and redirects every other TCP packet by tproxy to the listener of the class on whose veth it arrives. It matches no TCP flag:
// the first packet after a SYN cookie has no SYN.
func tableInside(ipv6 bool) error {
	nft, err := knftables.New(knftables.InetFamily, "fairlead")
	if err != nil {
		return err
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Flush(&knftables.Table{})
	tx.Add(&knftables.Chain{Name: "prerouting", Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(knftables.PreroutingHook), Priority: knftables.PtrTo(knftables.ManglePriority)})
	tx.Add(&knftables.Rule{Chain: "prerouting", Rule: "meta l4proto tcp socket wildcard 0 accept"})
	for _, class := range frontendpb.Classes {
		port := envoy.ListenerPort(class)
		iif := `iifname "` + class.Label() + `"`
		tx.Add(&knftables.Rule{Chain: "prerouting", Rule: knftables.Concat(iif, "meta nfproto ipv4 meta l4proto tcp tproxy ip to", fmt.Sprintf("127.0.0.1:%d", port), "accept")})
		if ipv6 {
			tx.Add(&knftables.Rule{Chain: "prerouting", Rule: knftables.Concat(iif, "meta nfproto ipv6 meta l4proto tcp tproxy ip6 to", fmt.Sprintf("[::1]:%d", port), "accept")})
		}
	}
	return nft.Run(context.Background(), tx)
}
