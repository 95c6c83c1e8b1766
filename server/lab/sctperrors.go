package lab

import (
	"encoding/binary"
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

// refusals empties the queue of errors. It returns whether one came to a packet from the port, and how many there were.
func refusals(raw syscall.RawConn, port uint16) (mine bool, queued int) {
	packet, control := make([]byte, 64), make([]byte, 256)
	_ = raw.Control(func(fd uintptr) { // It fails on a closed socket, which has no errors.
		for {
			n, _, _, _, err := unix.Recvmsg(int(fd), packet, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			queued++
			mine = mine || n >= 2 && binary.BigEndian.Uint16(packet) == port
		}
	})
	return mine, queued
}
