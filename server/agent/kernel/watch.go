package kernel

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Numbers of linux/netfilter/nfnetlink.h and nf_tables.h that the system-call package lacks.
const (
	tablesGroup = 7  // NFNLGRP_NFTABLES
	tables      = 10 // NFNL_SUBSYS_NFTABLES
	tableName   = 1  // NFTA_TABLE_NAME; of chains, rules, sets and elements, too, attribute 1 is the table's name.
	deleteTable = 2  // NFT_MSG_DELTABLE
	deleteChain = 5  // NFT_MSG_DELCHAIN
	deleteRule  = 8  // NFT_MSG_DELRULE
	deleteSet   = 11 // NFT_MSG_DELSET
)

// Watch sends to disturbed whenever something was deleted from the agent's table, be it by the agent itself, until ctx
// ends. disturbed needs room for one; what is already told is not told again.
func Watch(ctx context.Context, disturbed chan<- struct{}) error {
	return watch(ctx, disturbed, func() {})
}

// watch calls ready when nothing can escape it any more.
func watch(ctx context.Context, disturbed chan<- struct{}, ready func()) error {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER, tablesGroup)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer socket.Close()
	stop := context.AfterFunc(ctx, socket.Close)
	defer stop()
	ready()
	for {
		messages, _, err := socket.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			// The kernel drops news when there are too many; any of them may have been about the table.
			tell(disturbed)
			continue
		}
		for _, m := range messages {
			if deletes(m.Header.Type) && ofTable(m.Data) {
				tell(disturbed)
			}
		}
	}
}

// tell sends unless there is word waiting already.
func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// deletes reports whether a message's type is a deletion that makes the table incomplete.
func deletes(kind uint16) bool {
	if kind>>8 != tables {
		return false
	}
	switch kind & 0xff {
	case deleteTable, deleteChain, deleteRule, deleteSet:
		return true
	}
	return false
}

// ofTable reports whether a message is about a table of the agent's name: after a header of four bytes come attributes,
// each with its length, type and value.
func ofTable(data []byte) bool {
	for data = data[min(4, len(data)):]; len(data) >= 4; {
		length, kind := int(binary.NativeEndian.Uint16(data)), binary.NativeEndian.Uint16(data[2:])
		if length < 4 || length > len(data) {
			return false
		}
		if kind == tableName {
			return strings.TrimRight(string(data[4:length]), "\x00") == TableName
		}
		data = data[min((length+3)&^3, len(data)):]
	}
	return false
}
