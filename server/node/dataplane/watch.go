package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Numbers of linux/netfilter/nfnetlink.h and nf_tables.h that golang.org/x/sys/unix lacks.
const (
	tablesGroup = 7  // NFNLGRP_NFTABLES
	tables      = 10 // NFNL_SUBSYS_NFTABLES
	tableName   = 1  // NFTA_TABLE_NAME; of chains, rules, sets and elements, too, attribute 1 is the table's name.
	deleteTable = 2  // NFT_MSG_DELTABLE
	deleteChain = 5  // NFT_MSG_DELCHAIN
	deleteRule  = 8  // NFT_MSG_DELRULE
	deleteSet   = 11 // NFT_MSG_DELSET
)

// resubscribeAfter is how long Watch waits after an error before it subscribes again: a lasting error must not make it spin.
const resubscribeAfter = time.Second

// receiver is a subscription to the kernel's netlink notifications.
type receiver interface {
	Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error)
	Close()
}

// subscribe subscribes to the notifications of nftables.
func subscribe() (receiver, error) { return nl.Subscribe(unix.NETLINK_NETFILTER, tablesGroup) }

// Watch sends to disturbed whenever something was deleted from the agent's table, by whichever process, until ctx ends.
// disturbed needs a buffer of one; Watch sends nothing while it is full. An error is that of the first subscription.
func Watch(ctx context.Context, disturbed chan<- struct{}) error {
	return watch(ctx, disturbed, subscribe, func() {})
}

// watch calls ready once it is subscribed.
func watch(ctx context.Context, disturbed chan<- struct{}, subscribe func() (receiver, error), ready func()) error {
	r, err := subscribe()
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	ready()
	for {
		if err == nil {
			follow(ctx, disturbed, r)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(resubscribeAfter):
		}
		if r, err = subscribe(); err == nil {
			tell(disturbed) // Deletions may have happened while there was no subscription.
		}
	}
}

// follow reports the deletions that r receives until Receive fails or ctx ends. It closes r.
func follow(ctx context.Context, disturbed chan<- struct{}, r receiver) {
	stop := context.AfterFunc(ctx, r.Close)
	defer func() {
		if stop() {
			r.Close()
		}
	}()
	for {
		messages, _, err := r.Receive()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS):
			tell(disturbed) // The kernel drops notifications that do not fit the buffer; any of them may have been about the table.
		case err != nil:
			return
		}
		for _, m := range messages {
			if deletes(m.Header.Type) && ofTable(m.Data) {
				tell(disturbed)
			}
		}
	}
}

// tell sends unless the buffer is full.
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
