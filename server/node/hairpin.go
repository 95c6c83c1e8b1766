package node

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/server/node/envoyns"
	"golang.org/x/sys/unix"
)

// reflectors are the ports of bridges that are in hairpin mode: they send a frame back on the port on which it arrived.
type reflectors map[int]bool // By the link's index.

// reflect sets hairpin mode on the bridges' ports, so that pods on bridges reach themselves by a direct frontend. Where netfilter
// sees what a bridge forwards, a packet that is rewritten to a pod of the same bridge does not leave the bridge; and a bridge
// sends a frame back on the port on which it arrived only in hairpin mode. CNI plugins have an option for it (hairpinMode), since
// kube-proxy needs the same.
func (r reflectors) reflect() error {
	links, err := envoyns.Undisturbed(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	bridges := map[int]bool{}
	for _, l := range links {
		bridges[l.Attrs().Index] = l.Type() == "bridge"
	}
	var errs []error
	there := map[int]bool{}
	for _, l := range links {
		index := l.Attrs().Index
		if l.Type() != "veth" || !bridges[l.Attrs().MasterIndex] {
			continue
		}
		there[index] = true
		if r[index] {
			continue
		}
		if err := netlink.LinkSetHairpin(l, true); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("hairpin mode of %s: %w", l.Attrs().Name, err))
			continue
		}
		r[index] = true
	}
	for index := range r {
		if !there[index] {
			delete(r, index)
		}
	}
	return errors.Join(errs...)
}
