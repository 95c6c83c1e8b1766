package envoyns

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/server/node/netevent"
)

// tables is the number of routing tables from Config.Table on: one for each mark.
const tables = 64

// Changes are what Watch tells of. Each channel needs a buffer of one, and gets nothing while it is full.
type Changes struct {
	// Links gets a value whenever a veth was added, changed or deleted, as an Envoy instance's is when its Envoy has ended and a
	// pod's with the pod, or a bridge has changed.
	Links chan struct{}
	// Damaged gets a value whenever a policy rule, a route or an address of an Envoy instance was removed, or a link of one was
	// set down, by whichever process.
	Damaged chan struct{}
}

// NewChanges returns the channels.
func NewChanges() Changes { return Changes{make(chan struct{}, 1), make(chan struct{}, 1)} }

// Watch tells of the host's changes until ctx ends. An error is that of the first subscription.
func (c Config) Watch(ctx context.Context, changes Changes) error {
	s, err := subscribe()
	if err != nil {
		return fmt.Errorf("watch links, routes and rules: %w", err)
	}
	s.Run(ctx, func(m syscall.NetlinkMessage) {
		link, damage := c.concerns(m)
		if link {
			tell(changes.Links)
		}
		if damage {
			tell(changes.Damaged)
		}
	}, func() {
		tell(changes.Links)
		tell(changes.Damaged)
	})
	return nil
}

func subscribe() (*netevent.Subscription, error) {
	return netevent.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
}

// concerns reports whether a message is about a veth or a bridge, and whether it is about damage to an Envoy instance's links.
func (c Config) concerns(m syscall.NetlinkMessage) (link, damage bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, err := netlink.LinkDeserialize(nil, m.Data)
		if err != nil || l.Type() != "veth" && l.Type() != "bridge" {
			return false, false
		}
		// A link that is set down loses its IPv4 routes without a word about them.
		return true, m.Header.Type == unix.RTM_NEWLINK && l.Attrs().RawFlags&unix.IFF_UP == 0 && IsLink(l.Attrs().Name)
	case unix.RTM_DELRULE:
		a := attributes(m.Data, unix.SizeofRtMsg) // A rule's header is as long as a route's.
		return false, c.isTable(a[nl.FRA_TABLE])
	case unix.RTM_DELROUTE:
		a := attributes(m.Data, unix.SizeofRtMsg)
		return false, c.isTable(a[unix.RTA_TABLE]) || isOurs(a[unix.RTA_DST])
	case unix.RTM_DELADDR:
		return false, isOurs(attributes(m.Data, unix.SizeofIfAddrmsg)[unix.IFA_ADDRESS])
	}
	return false, false
}

// attributes returns the attributes that follow a message's header.
func attributes(data []byte, header int) map[uint16][]byte {
	found := map[uint16][]byte{}
	list, err := nl.ParseRouteAttr(data[min(header, len(data)):])
	if err != nil {
		return found
	}
	for _, a := range list {
		found[a.Attr.Type] = a.Value
	}
	return found
}

// isTable reports whether an attribute is the number of an Envoy instance's routing table.
func (c Config) isTable(value []byte) bool {
	if len(value) != 4 {
		return false
	}
	number := int(binary.NativeEndian.Uint32(value))
	return number >= c.Table && number < c.Table+tables
}

// isOurs reports whether an attribute is an address of an Envoy instance's veth.
func isOurs(value []byte) bool {
	a, _ := netip.AddrFromSlice(value)
	v4, v6 := addresses(0, 0)
	within := func(first netip.Addr, bits int) bool { return netip.PrefixFrom(first, bits).Contains(a) }
	return within(v4.host, 24) || within(v6.host, 96)
}

// tell sends unless the buffer is full.
func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
