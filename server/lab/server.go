package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// maxDatagram is the largest payload of a UDP datagram over IPv4.
const maxDatagram = 65507

// Answer is the one line that the servers of this package send to every client: their own name, and the client's address
// as they see it.
type Answer struct {
	Server string
	Client netip.AddrPort
}

// String returns the line without its end.
func (a Answer) String() string { return a.Server + " " + a.Client.String() }

func parseAnswer(line string) (Answer, error) {
	server, client, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	addr, err := netip.ParseAddrPort(client)
	if err != nil {
		return Answer{}, fmt.Errorf("not an answer of a lab server: %q", line)
	}
	return Answer{Server: server, Client: addr}, nil
}

func answerTo(name string, client net.Addr) Answer {
	addr := netip.MustParseAddrPort(client.String()) // Sockets have no other kind of address.
	return Answer{Server: name, Client: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}
}

// Server is a server of a host. It ends with its host at the latest.
type Server struct {
	close func() error
	drain func(context.Context) error
}

// Close ends the server and cuts its connections.
func (s *Server) Close() error { return s.close() }

// Drain ends the server as a well-behaved one does on SIGTERM: it accepts no new connections and lets the open ones finish. It
// returns when they have, or with the context's error.
func (s *Server) Drain(ctx context.Context) error { return s.drain(ctx) }

func (h *Host) own(s *Server) *Server {
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	h.servers = append(h.servers, s)
	return s
}

// ServeHTTP answers every HTTP/1.1 request on a port of the host, over IPv4 and IPv6, with the answer line.
func (h *Host) ServeHTTP(name string, port uint16) (*Server, error) {
	l, err := h.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	server := &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			client, err := netip.ParseAddrPort(r.RemoteAddr)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			fmt.Fprintln(w, answerTo(name, net.TCPAddrFromAddrPort(client)))
		}),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l) // It ends only by Close or Shutdown.
	}()
	return h.own(&Server{
		close: func() error {
			err := server.Close()
			<-ended
			return err
		},
		drain: server.Shutdown,
	}), nil
}

// ServeTCP greets every connection to a port of the host, over IPv4 and IPv6, with the answer line, and then sends back
// what it receives.
func (h *Host) ServeTCP(name string, port uint16) (*Server, error) {
	l, err := h.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	s := &echo{name: name, listener: l, conns: map[net.Conn]bool{}}
	s.work.Go(s.accept)
	return h.own(&Server{close: s.close, drain: s.drain}), nil
}

// echo is a TCP server.
type echo struct {
	name     string
	listener net.Listener
	work     sync.WaitGroup // The accepting goroutine and one for each connection.

	mu     sync.Mutex // Guards the following.
	conns  map[net.Conn]bool
	closed bool
}

func (s *echo) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return // Closed.
		}
		s.mu.Lock()
		if s.closed {
			conn.Close()
		} else {
			s.conns[conn] = true
			s.work.Go(func() { s.serve(conn) })
		}
		s.mu.Unlock()
	}
}

func (s *echo) serve(conn net.Conn) {
	if _, err := fmt.Fprintln(conn, answerTo(s.name, conn.RemoteAddr())); err == nil {
		_, _ = io.Copy(conn, conn) // Until the client ends it, in whatever way.
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	conn.Close()
}

func (s *echo) close() error {
	err := s.listener.Close()
	s.mu.Lock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.work.Wait()
	return ignoreClosed(err)
}

func (s *echo) drain(ctx context.Context) error {
	if err := ignoreClosed(s.listener.Close()); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		s.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ServeUDP answers every datagram to a port of the host's two addresses with the answer line, followed by the datagram
// as far as it fits.
func (h *Host) ServeUDP(name string, port uint16) (*Server, error) {
	// One socket for each address, not a wildcard: answers from a wildcard socket would have the address of whichever interface
	// routes to the client.
	var conns []net.PacketConn
	closeAll := func() error {
		var errs []error
		for _, c := range conns {
			errs = append(errs, ignoreClosed(c.Close()))
		}
		return errors.Join(errs...)
	}
	for _, a := range []netip.Addr{h.IPv4, h.IPv6} {
		c, err := h.ListenPacket("udp", netip.AddrPortFrom(a, port).String())
		if err != nil {
			return nil, errors.Join(err, closeAll())
		}
		conns = append(conns, c)
	}
	var work sync.WaitGroup
	for _, c := range conns {
		work.Go(func() { answerDatagrams(name, c) })
	}
	end := func() error {
		err := closeAll()
		work.Wait()
		return err
	}
	return h.own(&Server{close: end, drain: func(context.Context) error { return end() }}), nil
}

func answerDatagrams(name string, c net.PacketConn) {
	in := make([]byte, maxDatagram)
	for {
		n, client, err := c.ReadFrom(in)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // An ICMP error that an earlier answer met.
		}
		out := append([]byte(answerTo(name, client).String()+"\n"), in[:n]...)
		_, _ = c.WriteTo(out[:min(len(out), maxDatagram)], client) // An answer may get lost, as any datagram.
	}
}

// ignoreClosed makes closing twice no error.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
