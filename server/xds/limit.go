package xds

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// How many connections there may be, in all and from one address. A node has one, and its pods that speak gRPC xDS may
// share its address. Beyond that, clients hold connections that they do not use, at some 50 KiB each.
const (
	maxConnections           = 32768
	maxConnectionsPerAddress = 1024
)

// maxUnusedStreams is how many streams a connection may open without a request of an authenticated client on any of them.
// gRPC starts a goroutine for each stream, also for one that is reset at once, which costs its client nothing. It is twice
// what may be open at a time, so that a client whose streams all wait to be authenticated stays.
const maxUnusedStreams = 2 * maxStreams

const (
	// maxUnread is what a connection may have sent that was not handed over to a stream's handler, in bytes, while its clients
	// have a limit of their requests' size. gRPC has one limit for all, and receives a request of that size completely
	// before anybody is asked. A client may send one window before it is authenticated.
	maxUnread = 2 * window

	// requestOverhead is more than the frames take that a client sends for a request, and to receive the answer to it;
	// streamOverhead more than the metadata of a stream, with its token.
	requestOverhead = 1 << 10
	streamOverhead  = 4 << 10

	// unreadGrace is how long a connection that has sent too much stays, not read, for its clients to be told.
	unreadGrace = time.Second
)

var (
	errTooMany = errors.New("there are too many connections")
	errSilent  = errors.New("there are too many connections, and this one has been without an authenticated client for the longest time")
	errUnread  = status.Errorf(codes.ResourceExhausted, "requests of more than %d bytes are under way on one connection: subscribe to fewer resources at once", maxUnread)
	errUnused  = errors.New("too many streams were opened and ended without a request of an authenticated client")
)

// limitedListener closes connections when there are too many: the one of those without an authenticated client that has
// existed for the longest time, so that connections that say nothing keep out nobody; or the new one if there is none.
type limitedListener struct {
	net.Listener
	refusals      *refusals
	most, mostOne int  // In all, and from one address.
	authenticates bool // Clients are authenticated, and may have limits.

	mu   sync.Mutex // Guards what follows.
	all  connections
	from map[netip.Addr]*connections
}

// connections are those of an address, or all.
type connections struct {
	count  int
	silent list.List // Of *limitedConn, those without an authenticated client, the oldest first.
}

// limit limits the connections of a listener. Those of a unix socket are not limited: only the node's own processes reach it.
func (s *Server) limit(l net.Listener) net.Listener {
	if l.Addr().Network() == "unix" {
		return l
	}
	limited := newLimitedListener(l, s.refusals, maxConnections, maxConnectionsPerAddress)
	limited.authenticates = s.cfg.Authenticate != nil
	return limited
}

func newLimitedListener(l net.Listener, r *refusals, most, mostOne int) *limitedListener {
	return &limitedListener{Listener: l, refusals: r, most: most, mostOne: mostOne, from: map[netip.Addr]*connections{}}
}

// Accept waits for a connection that is not too many.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		conn := &limitedConn{Conn: accepted, listener: l, from: sourceOf(accepted)}
		conn.open, conn.closed = context.WithCancel(context.Background())
		conn.ctx, conn.end = context.WithCancelCause(conn.open)
		replaced, ok := l.enter(conn)
		if replaced != nil {
			l.refusals.report(replaced.RemoteAddr(), errSilent, "xds connection closed")
			replaced.Conn.Close() // Nothing was written that could be lost.
		}
		if ok {
			return conn, nil
		}
		l.refusals.report(accepted.RemoteAddr(), errTooMany, "xds connection refused")
		accepted.Close() // The same.
	}
}

// enter counts a connection, if there is room, or if there is one in whose place it comes.
func (l *limitedListener) enter(c *limitedConn) (replaced *limitedConn, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.from[c.from]
	if of == nil {
		of = &connections{}
	}
	var full *connections
	switch {
	case of.count == l.mostOne:
		full = of
	case l.all.count == l.most:
		full = &l.all
	}
	if full != nil {
		oldest := full.silent.Front()
		if oldest == nil {
			return nil, false
		}
		replaced = oldest.Value.(*limitedConn)
		l.remove(replaced)
	}
	l.from[c.from] = of // Also if the one that was replaced was its last.
	for _, in := range []*connections{of, &l.all} {
		in.count++
	}
	c.inAddress, c.inAll = of.silent.PushBack(c), l.all.silent.PushBack(c)
	return replaced, true
}

// remove forgets a connection.
func (l *limitedListener) remove(c *limitedConn) {
	if c.left {
		return
	}
	c.left = true
	l.speaks(c)
	l.all.count--
	of := l.from[c.from]
	if of.count--; of.count == 0 {
		delete(l.from, c.from)
	}
}

// speaks takes a connection out of those without an authenticated client.
func (l *limitedListener) speaks(c *limitedConn) {
	if c.inAddress == nil {
		return
	}
	l.from[c.from].silent.Remove(c.inAddress)
	l.all.silent.Remove(c.inAll)
	c.inAddress, c.inAll = nil, nil
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
	listener *limitedListener
	from     netip.Addr
	open     context.Context // Ends with the connection.
	closed   context.CancelFunc
	ctx      context.Context // Ends with the connection, or when it has sent too much.
	end      context.CancelCauseFunc
	unused   atomic.Int32 // Streams since the last request of an authenticated client.
	unread   atomic.Int64 // Bytes that were received and not handed over.
	agent    atomic.Bool  // There is a client without a limit of its requests' size.

	// The listener's lock guards what follows.
	left             bool
	inAddress, inAll *list.Element // In connections.silent; nil once there is an authenticated client.
}

// Close closes the connection.
func (c *limitedConn) Close() error {
	c.listener.mu.Lock()
	c.listener.remove(c)
	c.listener.mu.Unlock()
	c.end(net.ErrClosed)
	c.closed()
	return c.Conn.Close()
}

// Read reads what clients send. When that is too much, the connection's streams end with the reason, and then the
// connection.
func (c *limitedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if !c.listener.authenticates || c.agent.Load() || c.unread.Add(int64(n)) <= maxUnread {
		return n, err
	}
	c.listener.refusals.report(c.RemoteAddr(), errUnread, "xds connection closed")
	c.end(errUnread)
	select {
	case <-c.open.Done():
	case <-time.After(unreadGrace):
	}
	return 0, errUnread
}

// handedOver records that a handler has got so many bytes.
func (c *limitedConn) handedOver(n int64) {
	for {
		before := c.unread.Load()
		if c.unread.CompareAndSwap(before, max(0, before-n)) {
			return
		}
	}
}

// authenticated records that the connection has an authenticated client.
func (c *limitedConn) authenticated() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.listener.speaks(c)
}

// connOf returns the connection of an RPC, nil if it is not limited.
func connOf(ctx context.Context) *limitedConn {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(connInfo); ok {
			conn, _ := info.conn.(*limitedConn)
			return conn
		}
	}
	return nil
}

// tap counts the streams of connections, before gRPC starts a goroutine for each.
func (s *Server) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	if c := connOf(ctx); c != nil && s.cfg.Authenticate != nil && c.unused.Add(1) > maxUnusedStreams {
		s.refusals.report(c.RemoteAddr(), errUnused, "xds connection closed")
		c.Close()
	}
	return ctx, nil
}
