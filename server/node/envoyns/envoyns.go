// Package envoyns joins one Envoy to its node: a network namespace of its own, three veth pairs to the host (one
// per class of connections), the policy routes of both sides, and the namespace's static rules.
//
// An Envoy instance's number and a namespace come in; links, routes, rules and an nftables table inside the namespace come
// out. The package knows no Service, and changes only links, rules and routing tables with its own names, marks and numbers.
package envoyns

import (
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/translate/frontendpb"
)

// ID is the number of an Envoy instance of a node, from 1 to MaxID. The agent reuses a number once its Envoy has ended.
type ID int

// MaxID is the last Envoy instance number: four bits of the mark hold it.
const MaxID ID = 15

// Fixed names and numbers inside the namespace. Nothing outside can see them.
const (
	localTable  = 100 // Every destination is local: Envoy gets all packets that arrive on a veth.
	keepTable   = 101 // The default route over the veth of class keep.
	ownPref     = 7
	foreignPref = 8
	localPref   = 9
)

// Config has the marks and numbers of the host that a node's Envoy instances use.
type Config struct {
	// Mask is the six adjacent bits of packet and connection marks that belong to Fairlead. kube-proxy uses 0xc000,
	// AWS 0x80, Calico the high half.
	Mask uint32
	// Table is the first of 64 routing tables.
	Table int
	// RulePriority is the priority of the policy rules: after the rule of the local table (0), before those of others.
	RulePriority int
}

// minMTU is what IPv6 requires of every link, in bytes.
const minMTU = 1280

// DefaultConfig returns numbers that no other node software is known to use.
func DefaultConfig() Config {
	return Config{Mask: 0x3f00, Table: 7700, RulePriority: 77}
}

// Validate returns an error that says how to correct the configuration, or nil.
func (c Config) Validate() error {
	if shifted := c.Mask >> bits.TrailingZeros32(c.Mask); shifted != 0x3f {
		return fmt.Errorf("mark mask %#x: six adjacent bits are needed, such as 0x3f00", c.Mask)
	}
	return nil
}

// index is a number of six bits for an Envoy instance's class; never 0.
func index(id ID, class frontendpb.Class) int { return int(id)<<2 | int(class) }

// Mark returns the mark of packets that belong to an Envoy instance's class.
func (c Config) Mark(id ID, class frontendpb.Class) uint32 {
	return uint32(index(id, class)) << bits.TrailingZeros32(c.Mask)
}

// table returns the number of the routing table for an Envoy instance's class.
func (c Config) table(id ID, class frontendpb.Class) int { return c.Table + index(id, class) }

// LinkName returns the name of the host's end of a class's veth, such as fl1k.
func LinkName(id ID, class frontendpb.Class) string {
	return "fl" + strconv.Itoa(int(id)) + class.Label()[:1]
}

// IsLink reports whether name is that of an Envoy instance's link on the host.
func IsLink(name string) bool {
	for _, class := range frontendpb.Classes {
		for id := ID(1); id <= MaxID; id++ {
			if LinkName(id, class) == name {
				return true
			}
		}
	}
	return false
}

// parseLinkName is the reverse of LinkName for the veth of class keep, which exists if and only if the Envoy instance does.
func parseLinkName(name string) (ID, bool) {
	number, ok := strings.CutSuffix(strings.TrimPrefix(name, "fl"), "k")
	id, err := strconv.Atoi(number)
	if !ok || err != nil || id < 1 || ID(id) > MaxID || LinkName(ID(id), frontendpb.Class_KEEP) != name {
		return 0, false
	}
	return ID(id), true
}

// pair is the addresses of a veth's two ends.
type pair struct{ host, proxy netip.Addr }

// addresses returns the addresses of a class's veth. They are link-local (IPv4) or unique local (IPv6), and have routes over the
// veth itself only.
func addresses(id ID, class frontendpb.Class) (v4, v6 pair) {
	base := byte(int(id)<<4 | int(class)<<2)
	four := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 66, base + last}) }
	six := func(last byte) netip.Addr {
		return netip.AddrFrom16([16]byte{0xfd, 0x00, 0x0f, 0xa1, 0, 2, 13: base, 15: last})
	}
	return pair{four(1), four(2)}, pair{six(1), six(2)}
}

// The ends of a veth.
const (
	hostEnd  = 1
	proxyEnd = 2
)

// hardwareAddr returns the hardware address of one end of a class's veth; locally administered.
func hardwareAddr(id ID, class frontendpb.Class, end byte) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0xfa, 0x1e, byte(id), byte(class), end}
}

// ProbeAddresses returns the addresses and ports that the host routes over a class's veth to its listeners, as it does Services'.
func ProbeAddresses(id ID, class frontendpb.Class) []netip.AddrPort {
	v4, v6 := addresses(id, class)
	probes := []netip.AddrPort{netip.AddrPortFrom(v4.proxy, 1)}
	if IPv6() {
		probes = append(probes, netip.AddrPortFrom(v6.proxy, 1))
	}
	return probes
}

// IPv6 reports whether the network namespace of the calling thread has IPv6.
func IPv6() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(b)) == "0"
}

// setSysctl writes one setting of the network namespace of the calling thread, if it has another value: so a setting that is
// already right is no error where /proc/sys is read-only.
func setSysctl(name, value string) error {
	path := "/proc/sys/net/" + name
	if old, err := os.ReadFile(path); err == nil && strings.Join(strings.Fields(string(old)), " ") == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl net/%s to %q: %w", name, value, err)
	}
	return nil
}

// setSysctls writes several settings and returns all errors.
func setSysctls(settings [][2]string) error {
	var errs []error
	for _, s := range settings {
		errs = append(errs, setSysctl(s[0], s[1]))
	}
	return errors.Join(errs...)
}
