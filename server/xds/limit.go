package xds

import (
	"errors"
	"net"
	"net/netip"
	"sync"
)

// How many connections there may be, in all and from one address. A node has one, and its pods that speak gRPC xDS may
// share its address. Beyond that, clients hold connections that they do not use, at some 50 KiB each.
const (
	maxConnections           = 32768
	maxConnectionsPerAddress = 1024
)

var errTooMany = errors.New("there are too many connections")

// limitedListener closes the connections that are too many as soon as it has accepted them.
type limitedListener struct {
	net.Listener
	refusals      *refusals
	most, mostOne int // In all, and from one address.

	mu   sync.Mutex // Guards what follows.
	all  int
	from map[netip.Addr]int
}

// limit limits the connections of a listener. Those of a unix socket are not limited: only the node's own processes reach it.
func (s *Server) limit(l net.Listener) net.Listener {
	if l.Addr().Network() == "unix" {
		return l
	}
	return &limitedListener{
		Listener: l, refusals: s.refusals, most: maxConnections, mostOne: maxConnectionsPerAddress, from: map[netip.Addr]int{},
	}
}

// Accept waits for a connection that is not too many.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := sourceOf(conn)
		if l.enter(from) {
			return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
		}
		l.refusals.report(conn.RemoteAddr(), errTooMany, "xds connection refused")
		conn.Close() // Nothing was written that could be lost.
	}
}

func (l *limitedListener) enter(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == l.most || l.from[from] == l.mostOne {
		return false
	}
	l.all++
	l.from[from]++
	return true
}

func (l *limitedListener) leave(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.from[from]--; l.from[from] == 0 {
		delete(l.from, from)
	}
}

// sourceOf returns the address that a connection comes from, without its port.
func sourceOf(conn net.Conn) netip.Addr {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// limitedConn is a connection that is counted until it is closed.
type limitedConn struct {
	net.Conn
	leave func()
}

// Close closes the connection.
func (c *limitedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
