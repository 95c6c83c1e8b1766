package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/server/lab"
)

// traffic is constant requests along all kinds of paths to a Service over TCP and one over UDP, of the same pods.
type traffic struct {
	t     *testing.T
	fresh map[string]*lab.Load // Each request has a connection or a socket of its own.
	kept  *lab.Load            // A few connections that stay open.

	// takenAway counts the servers that were taken out of the Service. The datagrams that one is answering just then are
	// lost, as they are with kube-proxy; whoever uses UDP asks again.
	takenAway int
}

const (
	workers         = 4 // Requests at a time along each path.
	keptConnections = workers
	requestTimeout  = 5 * time.Second
)

// startTraffic starts traffic that enters by the first node of the pair. It ends with the test at the latest.
func (p *pair) startTraffic(t *testing.T, tcp, udp *service) *traffic {
	t.Helper()
	start := func(from *lab.Host, network lab.Network, to netip.AddrPort, keep bool) *lab.Load {
		l, err := from.StartLoad(lab.LoadConfig{
			Request: lab.Request{Network: network, To: to, Size: 200}, Rate: 100, Workers: workers, Timeout: requestTimeout, KeepAlive: keep,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Stop() })
		return l
	}
	v4, v6 := corev1.IPv4Protocol, corev1.IPv6Protocol
	n := p.nodes[0]
	return &traffic{
		t: t,
		fresh: map[string]*lab.Load{
			"pod":              start(p.clients[0], lab.HTTP, tcp.target(clusterIP, v4, n), false),
			"pod, IPv6":        start(p.clients[0], lab.HTTP, tcp.target(clusterIP, v6, n), false),
			"node":             start(n.Host, lab.HTTP, tcp.target(clusterIP, v4, n), false),
			"outside":          start(p.outside[0], lab.HTTP, tcp.target(nodePort, v4, n), false),
			"pod, UDP":         start(p.clients[0], lab.UDP, udp.target(clusterIP, v4, n), false),
			"outside, UDP, v6": start(p.outside[0], lab.UDP, udp.target(nodePort, v6, n), false),
		},
		kept: start(p.clients[0], lab.HTTP, tcp.target(clusterIP, v4, n), true),
	}
}

// more waits for n more requests along every path.
func (tr *traffic) more(n int) {
	tr.t.Helper()
	tr.moreFresh(n)
	ctx, cancel := context.WithTimeout(tr.t.Context(), patience)
	defer cancel()
	if _, err := tr.kept.WaitMore(ctx, n); err != nil {
		tr.t.Fatal(err)
	}
}

// moreFresh is more without the kept connections, which may have ended.
func (tr *traffic) moreFresh(n int) {
	tr.t.Helper()
	tr.wait("requests end", func(l *lab.Load) func(lab.Report) bool {
		goal := l.Report().Requests + n
		return func(r lab.Report) bool { return r.Requests >= goal }
	})
}

// without waits until a server has got no new connection or datagram for a while.
func (tr *traffic) without(server string) {
	tr.t.Helper()
	const requests = 60 // By chance, with another server to choose, that happens once in 10^18.
	tr.wait(server+" gets no new connection", func(*lab.Load) func(lab.Report) bool { return lab.Silent(server, requests) })
}

// from waits until a server has answered along every path of new connections.
func (tr *traffic) from(server string) {
	tr.t.Helper()
	tr.wait(server+" gets new connections", func(*lab.Load) func(lab.Report) bool {
		return func(r lab.Report) bool { return r.Answers[server] > 0 }
	})
}

// wait waits until a condition holds along every path of new connections.
func (tr *traffic) wait(what string, condition func(*lab.Load) func(lab.Report) bool) {
	tr.t.Helper()
	ctx, cancel := context.WithTimeout(tr.t.Context(), patience)
	defer cancel()
	waits, ctx := errgroup.WithContext(ctx)
	for name, l := range tr.fresh {
		holds := condition(l)
		waits.Go(func() error {
			if r, err := l.Wait(ctx, holds); err != nil {
				return fmt.Errorf("%s: it is not so that %s: %w; %+v", name, what, err, r)
			}
			return nil
		})
	}
	if err := waits.Wait(); err != nil {
		tr.t.Fatal(err)
	}
}

// stop ends the traffic and fails the test if a single request has failed.
func (tr *traffic) stop() {
	tr.t.Helper()
	for name, l := range tr.fresh {
		tr.check(name, l.Stop())
	}
	tr.stopKept()
}

// stopKept ends the traffic on kept connections.
func (tr *traffic) stopKept() lab.Report {
	tr.t.Helper()
	r := tr.kept.Stop()
	tr.check("kept", r)
	return r
}

func (tr *traffic) check(name string, r lab.Report) {
	tr.t.Helper()
	lost := 0
	if strings.Contains(name, "UDP") {
		lost = min(r.Failures[lab.TimedOut], tr.takenAway*workers)
	}
	if r.Failed() > lost {
		tr.t.Errorf("%s: %d of %d requests failed %v, the last with: %v", name, r.Failed(), r.Requests, r.Failures, r.LastError)
	}
}

// conversation is a connection to a server that sends back what it gets.
type conversation struct {
	net.Conn
}

// converse opens a connection and reads the server's greeting.
func converse(t *testing.T, from *lab.Host, to netip.AddrPort) conversation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := errors.Join(conn.SetDeadline(time.Now().Add(requestTimeout)), readLine(conn)); err != nil {
		t.Fatal(err)
	}
	return conversation{conn}
}

func readLine(r io.Reader) error {
	for b := []byte{0}; b[0] != '\n'; {
		if _, err := r.Read(b); err != nil {
			return err
		}
	}
	return nil
}

// goesOn returns an error if the connection no longer works.
func (c conversation) goesOn() error {
	if err := c.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	const said = "are you still there?\n"
	if _, err := io.WriteString(c, said); err != nil {
		return err
	}
	heard := make([]byte, len(said))
	if _, err := io.ReadFull(c, heard); err != nil {
		return err
	}
	if string(heard) != said {
		return fmt.Errorf("said %q, heard %q", said, heard)
	}
	return nil
}
