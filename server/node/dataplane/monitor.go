package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/server/node/envoyns"
	"github.com/fairlead/fairlead/server/node/netevent"
)

// Numbers of linux/netfilter/nfnetlink.h and nf_tables.h that golang.org/x/sys/unix lacks. Attribute 1 of tables, chains, rules,
// sets, elements and counters is the table's name, and of a generation its number.
const (
	tablesGroup   = 7  // NFNLGRP_NFTABLES
	tables        = 10 // NFNL_SUBSYS_NFTABLES
	newGeneration = 15 // NFT_MSG_NEWGEN
	getGeneration = 16 // NFT_MSG_GETGEN
	firstAttr     = 1
)

// Monitor hears of every transaction that touches the agent's tables, by whichever process, and knows which were the agent's
// own: the kernel numbers the transactions of a network namespace, and Own notes the numbers between which the agent wrote.
// One goroutine is in Watch, and one other calls Own and Look.
type Monitor struct {
	Disturbed chan struct{} // Gets a value whenever Look may have news; it has a buffer of one.

	mutex   sync.Mutex // Guards the following.
	touched []uint32   // Transactions that touched the tables since the last Look.
	lost    bool       // The kernel may have told of more.
	seen    uint32     // The last transaction that the kernel told of.
	own     []writes   // The agent's own that the kernel has not told of yet.
}

// writes are the transactions after one and up to another. One of them is the agent's, others may have come between.
type writes struct{ after, last uint32 }

// NewMonitor returns a monitor of the calling thread's network namespace.
func NewMonitor() *Monitor { return &Monitor{Disturbed: make(chan struct{}, 1)} }

// Watch follows the kernel's transactions until ctx ends. An error is that of the first subscription.
func (m *Monitor) Watch(ctx context.Context) error {
	s, err := netevent.Subscribe(unix.NETLINK_NETFILTER, tablesGroup)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	m.follow(ctx, s)
	return nil
}

// follow notes what a subscription tells. The kernel tells of a transaction's changes, and then of its number.
func (m *Monitor) follow(ctx context.Context, s *netevent.Subscription) {
	touches := false
	s.Run(ctx, func(message syscall.NetlinkMessage) {
		if message.Header.Type != tables<<8|newGeneration {
			touches = touches || ofTable(message)
			return
		}
		m.note(generationOf(message.Data), touches)
		touches = false
	}, func() {
		m.mutex.Lock()
		m.lost = true
		m.mutex.Unlock()
		m.tell()
	})
}

// note notes a transaction.
func (m *Monitor) note(number uint32, touches bool) {
	m.mutex.Lock()
	m.seen = number
	if touches {
		m.touched = append(m.touched, number)
	}
	m.mutex.Unlock()
	if touches {
		m.tell()
	}
}

func (m *Monitor) tell() {
	select {
	case m.Disturbed <- struct{}{}:
	default:
	}
}

// Own runs write, which makes one transaction at most, as the agent's own. Without a monitor it only runs it.
func (m *Monitor) Own(write func() error) error {
	if m == nil {
		return write()
	}
	after, err := generation()
	if err != nil {
		return err
	}
	written := write()
	last, err := generation()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if err != nil {
		m.lost = true
	} else if last != after {
		m.own = append(m.own, writes{after, last})
	}
	return errors.Join(written, err)
}

// Disturbance is what others did to the agent's tables.
type Disturbance int

// The disturbances, in order of their weight.
const (
	NoDisturbance Disturbance = iota
	MaybeDisturbed
	Disturbed
)

// Look returns what others did to the agent's tables since the last Look.
func (m *Monitor) Look() Disturbance {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	found := NoDisturbance
	if m.lost {
		found = MaybeDisturbed
	}
	for _, number := range m.touched {
		if i := slices.IndexFunc(m.own, func(w writes) bool { return isAfter(number, w.after) && !isAfter(number, w.last) }); i >= 0 {
			m.own = slices.Delete(m.own, i, i+1)
		} else {
			found = Disturbed
		}
	}
	m.touched, m.lost = nil, false
	m.own = slices.DeleteFunc(m.own, func(w writes) bool { return isAfter(m.seen, w.last) })
	return found
}

// isAfter reports whether one transaction came after another. Their numbers wrap around.
func isAfter(a, b uint32) bool { return int32(a-b) > 0 }

// generation returns the number of the last transaction.
func generation() (uint32, error) {
	request := nl.NewNetlinkRequest(tables<<8|getGeneration, 0)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
	answers, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if err == nil && len(answers) == 0 {
		err = errors.New("no answer")
	}
	if err != nil {
		return 0, fmt.Errorf("nftables: read the number of the last transaction: %w", err)
	}
	return generationOf(answers[0]), nil
}

// generationOf returns the number in a message about a generation.
func generationOf(data []byte) uint32 {
	for kind, value := range attributes(data) {
		if kind == firstAttr && len(value) == 4 {
			return binary.BigEndian.Uint32(value)
		}
	}
	return 0
}

// ofTable reports whether a message is about one of the agent's tables.
func ofTable(m syscall.NetlinkMessage) bool {
	if m.Header.Type>>8 != tables || len(m.Data) < nl.SizeofNfgenmsg || m.Data[0] != unix.NFPROTO_INET && m.Data[0] != unix.NFPROTO_BRIDGE {
		return false
	}
	for kind, value := range attributes(m.Data) {
		if kind == firstAttr {
			return text(value) == TableName
		}
	}
	return false
}

// text returns a string attribute, which ends with a zero byte.
func text(value []byte) string { return strings.TrimRight(string(value), "\x00") }

// attributes returns the attributes of a message of nftables, which follow a header.
func attributes(data []byte) iter.Seq2[uint16, []byte] {
	return nested(data[min(nl.SizeofNfgenmsg, len(data)):])
}

// nested returns attributes: each has its length, type and value, and begins at a multiple of four bytes.
func nested(data []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(data) >= unix.SizeofNlAttr {
			length, kind := int(binary.NativeEndian.Uint16(data)), binary.NativeEndian.Uint16(data[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)
			if length < unix.SizeofNlAttr || length > len(data) || !yield(kind, data[unix.SizeofNlAttr:length]) {
				return
			}
			data = data[min((length+3)&^3, len(data)):]
		}
	}
}

// dump lists objects of the kernel, each as a message. It lists again where a transaction came between, whosever.
func dump(kind uint16, attrs ...*nl.RtAttr) ([][]byte, error) {
	return envoyns.Undisturbed(func() ([][]byte, error) {
		request := nl.NewNetlinkRequest(int(tables<<8|kind), unix.NLM_F_DUMP)
		request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET})
		for _, a := range attrs {
			request.AddData(a)
		}
		return request.Execute(unix.NETLINK_NETFILTER, 0)
	})
}
