package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// SCTP is spoken by raw packets, since kernels without its module have no sockets for it: a client sends INIT and the server
// answers INIT ACK, whose cookie is the answer line (RFC 9260). That is all that a network sees of whether, and with whom, an
// association comes to be. Nobody echoes the cookie.

// The protocol's number, and types of its chunks and parameters.
const (
	sctpProtocol = 132
	sctpInit     = 1
	sctpInitAck  = 2
	sctpCookie   = 7
)

// Sizes in bytes: the common header, and INIT or INIT ACK without parameters.
const (
	sctpHeader = 12
	sctpSetUp  = 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// setUp is a packet with one INIT or INIT ACK.
type setUp struct {
	from, to uint16 // Ports.
	tag      uint32 // Of the receiver; 0 in a packet with INIT.
	kind     byte
	initiate uint32 // The tag that the sender wants to find in what it is sent.
	cookie   []byte // Of INIT ACK.
}

// marshal returns the packet without its IP header.
func (s setUp) marshal() []byte {
	length := sctpSetUp
	if s.kind == sctpInitAck {
		length += 4 + len(s.cookie)
	}
	b := make([]byte, sctpHeader+(length+3)/4*4)
	binary.BigEndian.PutUint16(b, s.from)
	binary.BigEndian.PutUint16(b[2:], s.to)
	binary.BigEndian.PutUint32(b[4:], s.tag)
	chunk := b[sctpHeader:]
	chunk[0] = s.kind
	binary.BigEndian.PutUint16(chunk[2:], uint16(length))
	binary.BigEndian.PutUint32(chunk[4:], s.initiate)
	binary.BigEndian.PutUint32(chunk[8:], 1<<16) // The receiver's window.
	binary.BigEndian.PutUint16(chunk[12:], 1)    // Streams out, and in.
	binary.BigEndian.PutUint16(chunk[14:], 1)
	binary.BigEndian.PutUint32(chunk[16:], s.initiate) // The first sequence number is as random as the tag.
	if s.kind == sctpInitAck {
		binary.BigEndian.PutUint16(chunk[20:], sctpCookie)
		binary.BigEndian.PutUint16(chunk[22:], uint16(4+len(s.cookie)))
		copy(chunk[24:], s.cookie)
	}
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

// parseSetUp reads such a packet. It is none, too, if its checksum is wrong.
func parseSetUp(b []byte) (setUp, bool) {
	if len(b) < sctpHeader+sctpSetUp {
		return setUp{}, false
	}
	b = append([]byte(nil), b...)
	sum := binary.LittleEndian.Uint32(b[8:])
	clear(b[8:sctpHeader])
	chunk := b[sctpHeader:]
	s := setUp{
		from: binary.BigEndian.Uint16(b), to: binary.BigEndian.Uint16(b[2:]), tag: binary.BigEndian.Uint32(b[4:]),
		kind: chunk[0], initiate: binary.BigEndian.Uint32(chunk[4:]),
	}
	if crc32.Checksum(b, castagnoli) != sum || s.kind != sctpInit && s.kind != sctpInitAck {
		return setUp{}, false
	}
	parameter := chunk[sctpSetUp:]
	if s.kind == sctpInitAck && len(parameter) >= 4 && binary.BigEndian.Uint16(parameter) == sctpCookie {
		end := int(binary.BigEndian.Uint16(parameter[2:]))
		if end < 4 || end > len(parameter) {
			return setUp{}, false
		}
		s.cookie = parameter[4:end]
	}
	return s, true
}

// rawNetwork is what package net calls raw SCTP to or from an address.
func rawNetwork(a netip.Addr) string {
	if a.Is4() {
		return fmt.Sprintf("ip4:%d", sctpProtocol)
	}
	return fmt.Sprintf("ip6:%d", sctpProtocol)
}

// ServeSCTP answers every INIT to a port of the host's two addresses.
func (h *Host) ServeSCTP(name string, port uint16) (*Server, error) {
	var conns []net.PacketConn
	var work sync.WaitGroup
	end := func() error {
		var errs []error
		for _, c := range conns {
			errs = append(errs, ignoreClosed(c.Close()))
		}
		work.Wait()
		return errors.Join(errs...)
	}
	for _, a := range []netip.Addr{h.IPv4, h.IPv6} {
		c, err := h.ListenPacket(rawNetwork(a), a.String())
		if err != nil {
			return nil, errors.Join(err, end())
		}
		conns = append(conns, c)
		work.Go(func() { answerInits(name, port, c) })
	}
	return h.own(&Server{close: end, drain: func(context.Context) error { return end() }}), nil
}

func answerInits(name string, port uint16, c net.PacketConn) {
	in := make([]byte, maxDatagram)
	for {
		n, client, err := c.ReadFrom(in)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		init, ok := parseSetUp(in[:n])
		address, isIP := client.(*net.IPAddr)
		if err != nil || !ok || !isIP || init.kind != sctpInit || init.to != port {
			continue // Somebody else's: a raw socket hears all that its host is sent.
		}
		seen := &net.TCPAddr{IP: address.IP, Zone: address.Zone, Port: int(init.from)}
		ack := setUp{from: port, to: init.from, tag: init.initiate, kind: sctpInitAck, initiate: rand.Uint32() | 1,
			cookie: []byte(answerTo(name, seen).String())}
		_, _ = c.WriteTo(ack.marshal(), client) // An answer may get lost, as any packet.
	}
}

// askSCTP sends an INIT and waits for its answer.
func (h *Host) askSCTP(ctx context.Context, to netip.AddrPort) (Answer, error) {
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, rawNetwork(to.Addr()), to.Addr().String())
		return err
	})
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	init := setUp{from: uint16(1024 + rand.IntN(1<<16-1024)), to: to.Port(), kind: sctpInit, initiate: rand.Uint32() | 1}
	a, err := associate(conn.(*net.IPConn), init)
	if err != nil && ctx.Err() != nil {
		return Answer{}, ctx.Err()
	}
	return a, err
}

// associate makes the exchange on a raw socket, which hears also what belongs to other exchanges between the same addresses.
func associate(conn *net.IPConn, init setUp) (Answer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Answer{}, err
	}
	if err := keepErrors(raw); err != nil {
		return Answer{}, err
	}
	packet := init.marshal()
	for {
		_, err := conn.Write(packet)
		if err == nil {
			break
		}
		if err := mine(raw, init.from, err); err != nil {
			return Answer{}, err
		}
	}
	in := make([]byte, maxDatagram)
	for {
		n, _, err := conn.ReadFromIP(in)
		if err != nil {
			if err := mine(raw, init.from, err); err != nil {
				return Answer{}, err
			}
			continue
		}
		ack, ok := parseSetUp(in[:n])
		if ok && ack.kind == sctpInitAck && ack.to == init.from && ack.tag == init.initiate {
			return parseAnswer(string(ack.cookie))
		}
	}
}

// mine returns an error of the socket's if it is about the exchange from that port, and nil if the kernel only told the socket what
// came of another's packet. A refusal of which the queue has nothing any more is another's: several may have been read at once.
func mine(raw syscall.RawConn, port uint16, err error) error {
	refused, queued := refusals(raw, port)
	switch {
	case errors.Is(err, unix.EPERM): // Refused where it was sent.
		return err
	case refused:
		return unix.ECONNREFUSED
	case queued > 0 || errors.Is(err, unix.ECONNREFUSED):
		return nil
	}
	return err
}
