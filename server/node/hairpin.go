package node

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/server/node/envoyns"
	"golang.org/x/sys/unix"
)

// reflectors are the bridges' ports that send a frame back to where it came from.
type reflectors map[int]bool // By the link's index.

// reflect lets pods on bridges reach themselves by a direct frontend. Where netfilter sees what a bridge forwards, a packet
// whose destination becomes a pod of the same bridge does not leave the bridge; and a bridge sends nothing back by the port that
// it came by, unless that port is told to. CNI plugins have an option for it (hairpinMode), since kube-proxy asks for the same.
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
