package lab

import (
	"encoding/binary"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// keepErrors has the kernel keep the packets to which an ICMP error came.
func keepErrors(raw syscall.RawConn) (err error) {
	control := raw.Control(func(fd uintptr) {
		// The socket is of one of the two families, and takes one of the two.
		if err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1); err != nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
		}
	})
	if control != nil {
		return control
	}
	return err
}

// refusals empties the queue of errors. It returns whether a packet from the port was refused, and how many errors there were.
// Others, such as that there is no route, are a network's passing trouble, of which other sockets do not hear either.
func refusals(raw syscall.RawConn, port uint16) (mine bool, queued int) {
	packet, control := make([]byte, 64), make([]byte, 256)
	_ = raw.Control(func(fd uintptr) { // It fails on a closed socket, which has no errors.
		for {
			n, controlled, _, _, err := unix.Recvmsg(int(fd), packet, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			queued++
			mine = mine || n >= 2 && binary.BigEndian.Uint16(packet) == port && refusal(control[:controlled])
		}
	})
	return mine, queued
}

// refusal reports whether a queued error is ECONNREFUSED, with which its sock_extended_err begins.
func refusal(control []byte) bool {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(messages, func(m unix.SocketControlMessage) bool {
		return len(m.Data) >= 4 && syscall.Errno(binary.NativeEndian.Uint32(m.Data)) == unix.ECONNREFUSED &&
			(m.Header.Type == unix.IP_RECVERR || m.Header.Type == unix.IPV6_RECVERR)
	})
}
