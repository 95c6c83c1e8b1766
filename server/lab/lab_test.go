package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	run := m.Run
	if os.Getenv(visitorVariable) != "" {
		run = visit
	}
	code, err := Isolated(run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

const httpPort, tcpPort, udpPort, sctpPort = 8080, 9000, 5353, 9132

// newLab returns a node with routed pods and one with bridged, two each, which serve all four networks, and a host
// outside.
func newLab(t *testing.T) *Lab {
	t.Helper()
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		left, err := filepath.Glob(namespaceDir + "/*")
		if err != nil || len(left) > 0 {
			t.Errorf("namespaces left behind: %v %v", left, err)
		}
	})
	for _, cni := range []CNI{Routed, Bridged} {
		n, err := l.AddNode([]string{"n1", "n2"}[cni], cni)
		if err != nil {
			t.Fatal(err)
		}
		serve(t, n.Host)
		for _, letter := range []string{"a", "b"} {
			pod, err := n.AddPod([]string{"routed-", "bridged-"}[cni]+letter, 0)
			if err != nil {
				t.Fatal(err)
			}
			serve(t, pod)
		}
	}
	if _, err := l.AddOutside("client"); err != nil {
		t.Fatal(err)
	}
	return l
}

func serve(t *testing.T, h *Host) {
	t.Helper()
	_, errHTTP := h.ServeHTTP(h.Name, httpPort)
	_, errTCP := h.ServeTCP(h.Name, tcpPort)
	_, errUDP := h.ServeUDP(h.Name, udpPort)
	_, errSCTP := h.ServeSCTP(h.Name, sctpPort)
	if err := errors.Join(errHTTP, errTCP, errUDP, errSCTP); err != nil {
		t.Fatal(err)
	}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// requests are one of each kind to a host, in both families.
func requests(to *Host) []Request {
	var all []Request
	for _, a := range []netip.Addr{to.IPv4, to.IPv6} {
		all = append(all,
			Request{Network: HTTP, To: netip.AddrPortFrom(a, httpPort)},
			Request{Network: TCP, To: netip.AddrPortFrom(a, tcpPort), Size: 100_000},
			Request{Network: UDP, To: netip.AddrPortFrom(a, udpPort), Size: 20_000}, // In fragments.
			Request{Network: SCTP, To: netip.AddrPortFrom(a, sctpPort)},
		)
	}
	return all
}

// Every pod and node reaches every pod and node, whichever way the pods are attached, and is seen with its own address.
func TestReach(t *testing.T) {
	l := newLab(t)
	names := []string{"n1", "n2", "routed-a", "routed-b", "bridged-a", "bridged-b"}
	for _, from := range names {
		for _, to := range names {
			for _, r := range requests(l.Host(to)) {
				a, err := l.Host(from).Ask(deadline(t), r)
				if err != nil {
					t.Errorf("%v", err)
					continue
				}
				if a.Server != to {
					t.Errorf("%s asks %s: answered by %s", from, to, a.Server)
				}
				if !seenAs(l, from, to, a.Client.Addr()) {
					t.Errorf("%s asks %s: seen as %s", from, to, a.Client.Addr())
				}
			}
		}
	}
}

// seenAs tells whether a client is seen with its own address. A node is seen by its bridged pods with the bridge's.
func seenAs(l *Lab, from, to string, got netip.Addr) bool {
	h := l.Host(from)
	if got == h.IPv4 || got == h.IPv6 {
		return true
	}
	n := l.Host(to).node
	return n != nil && n.Host == h && (got == withNumber(n.PodCIDR4, 1) || got == withNumber(n.PodCIDR6, 1)) ||
		from == to && got.IsLoopback()
}

func TestOutsideReachesNodesOnly(t *testing.T) {
	l := newLab(t)
	client := l.Host("client")
	for _, r := range requests(l.Host("n2")) {
		if a, err := client.Ask(deadline(t), r); err != nil || a.Server != "n2" || !seenAs(l, "client", "n2", a.Client.Addr()) {
			t.Errorf("answer %v, error %v", a, err)
		}
	}
	for _, to := range []string{"routed-a", "bridged-a"} {
		for _, r := range requests(l.Host(to)) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			a, err := client.Ask(ctx, r)
			cancel()
			if FailureOf(err) != TimedOut {
				t.Errorf("got answer %v, error %v; want a timeout", a, err)
			}
		}
	}
}

func TestFailures(t *testing.T) {
	l := newLab(t)
	client, n1 := l.Host("client"), l.Host("n1")
	const nobody = 1
	for _, tc := range []struct {
		r    Request
		want Failure
	}{
		{Request{Network: HTTP, To: netip.AddrPortFrom(n1.IPv4, nobody)}, Refused},
		{Request{Network: TCP, To: netip.AddrPortFrom(n1.IPv6, nobody)}, Refused},
		{Request{Network: UDP, To: netip.AddrPortFrom(n1.IPv4, nobody)}, Refused},
		{Request{Network: HTTP, To: netip.MustParseAddrPort("10.96.0.1:80")}, TimedOut},
		{Request{Network: UDP, To: netip.MustParseAddrPort("[fd00:96::1]:53")}, TimedOut},
		{Request{Network: TCP, To: netip.MustParseAddrPort("172.30.0.77:80")}, TimedOut},
		{Request{Network: SCTP, To: netip.AddrPortFrom(n1.IPv6, nobody)}, TimedOut}, // The raw socket of another port.
		{Request{Network: "dccp", To: netip.AddrPortFrom(n1.IPv4, httpPort)}, Other},
		{Request{Network: HTTP, To: netip.AddrPortFrom(n1.IPv4, httpPort)}, ""},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		a, err := client.Ask(ctx, tc.r)
		cancel()
		if got := FailureOf(err); got != tc.want {
			t.Errorf("%v: answer %v, error %v: kind %q, want %q", tc.r, a, err, got, tc.want)
		}
	}
	if _, err := client.DialContext(deadline(t), "tcp", "localhost:80"); err == nil {
		t.Error("a name was looked up outside the host")
	}
}

func TestSilent(t *testing.T) {
	silent := Silent("a", 3)
	for i, tc := range []struct {
		a, requests int
		want        bool
	}{{0, 0, false}, {0, 2, false}, {1, 3, false}, {1, 5, false}, {1, 6, true}} {
		if got := silent(Report{Requests: tc.requests, Answers: map[string]int{"a": tc.a}}); got != tc.want {
			t.Errorf("report %d: got %v, want %v", i, got, tc.want)
		}
	}
}

// A server that is closed cuts its connections; one that is drained lets them finish.
func TestServerEnds(t *testing.T) {
	l := newLab(t)
	pod, client := l.Host("routed-a"), l.Host("routed-b")
	for _, port := range []uint16{2000, 2001} {
		s, err := pod.ServeTCP("web", port)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := client.DialContext(deadline(t), "tcp", netip.AddrPortFrom(pod.IPv4, port).String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if port == 2000 {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if _, err := conn.Read(make([]byte, 1)); FailureOf(err) != Closed && FailureOf(err) != Reset {
				t.Errorf("read from a closed server: %v", err)
			}
			conn.Close()
			continue
		}
		over := make(chan error)
		go func() { over <- s.Drain(deadline(t)) }()
		echo := make([]byte, 5)
		if _, err := conn.Write([]byte("still")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(conn, echo); err != nil || string(echo) != "still" {
			t.Errorf("a draining server's connection: %q, %v", echo, err)
		}
		conn.Close()
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
}

func TestLoad(t *testing.T) {
	l := newLab(t)
	pod, client := l.Host("routed-a"), l.Host("bridged-b")
	server, err := pod.ServeHTTP("late", 7000)
	if err != nil {
		t.Fatal(err)
	}
	for _, keepAlive := range []bool{false, true} {
		load, err := client.StartLoad(LoadConfig{
			Request: Request{Network: HTTP, To: netip.AddrPortFrom(pod.IPv4, 7000)},
			Rate:    500, Workers: 4, Timeout: time.Second, KeepAlive: keepAlive,
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := load.WaitMore(deadline(t), 50); err != nil {
			t.Fatal(err)
		}
		if keepAlive {
			if err := server.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := load.Wait(deadline(t), func(r Report) bool { return r.Failures[Refused] > 0 }); err != nil {
				t.Fatalf("a closed server went unnoticed: %v", err)
			}
		}
		if _, err := load.Wait(deadline(t), Silent("nobody", 10)); err != nil {
			t.Error(err)
		}
		r := load.Stop()
		if kept := r.Connections <= 4; kept != keepAlive {
			t.Errorf("keep-alive %v: %d connections", keepAlive, r.Connections)
		}
		if r.Answers["late"] < 50 || r.Clients[client.IPv4] != r.Answers["late"] || r.P50 <= 0 || r.P99 < r.P50 ||
			r.Requests != r.Answers["late"]+r.Failed() || (r.Failed() > 0) != keepAlive || (r.LastError != nil) != keepAlive {
			t.Errorf("keep-alive %v: report %+v", keepAlive, r)
		}
	}
	if _, err := client.StartLoad(LoadConfig{Rate: 1, Workers: 1}); err == nil {
		t.Error("a load without a timeout was started")
	}
}

func TestProcessRunsInHost(t *testing.T) {
	l := newLab(t)
	pod := l.Host("routed-a")
	log := filepath.Join(t.TempDir(), "log")
	p, err := pod.Run("reader", log, exec.Command("cat", "/proc/net/fib_trie", "/proc/self/net/dev"))
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	out, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), pod.IPv4.String()) || strings.Contains(string(out), fabricName) {
		t.Errorf("not the pod's network:\n%s", out)
	}
	if err := p.Ended(); err == nil || !strings.Contains(err.Error(), "exit status 0") || !strings.Contains(err.Error(), log) {
		t.Errorf("got %v, want how it ended and where its log is", err)
	}
	for name, end := range map[string]func(*Process){"terminated": (*Process).Stop, "killed": (*Process).Kill} {
		p, err := pod.Run("sleeper", log, exec.Command("sleep", "3600"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(p.Ended(), unix.Kill(p.PID(), 0)); err != nil {
			t.Error(err)
		}
		end(p)
		if err := p.Ended(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %s", err, name)
		}
	}
	if _, err := pod.Run("nothing", log, exec.Command("/does/not/exist")); err == nil {
		t.Error("a program that does not exist was started")
	}
}

func TestDo(t *testing.T) {
	pod := newLab(t).Host("routed-a")
	want := errors.New("from inside")
	if err := pod.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

// Names and numbers can be used again after a deletion, and a deleted host's neighbours are not disturbed.
func TestDelete(t *testing.T) {
	l := newLab(t)
	pod := l.Host("routed-a")
	node := pod.node
	for range 3 {
		if err := pod.Delete(); err != nil {
			t.Fatal(err)
		}
		if err := pod.Delete(); err != nil {
			t.Errorf("second deletion: %v", err)
		}
		var err error
		if pod, err = node.AddPod("routed-a", 0); err != nil {
			t.Fatal(err)
		}
		serve(t, pod)
		for _, r := range requests(pod) {
			if _, err := l.Host("bridged-b").Ask(deadline(t), r); err != nil {
				t.Error(err)
			}
		}
	}
	if err := node.Delete(); err != nil {
		t.Fatal(err)
	}
	if l.Host("n1") != nil || l.Host("routed-a") != nil || l.Host("routed-b") != nil || l.Host("n2") == nil {
		t.Error("deleting a node must take its pods with it, and only those")
	}
	n3, err := l.AddNode("n1", Routed)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := n3.IPv4.String(), "172.30.0.3"; got != want {
		t.Errorf("a new node has the address %s, want %s", got, want)
	}
}

// The gateway of bridged pods stays who it is while pods come: a bridge takes a new hardware address from its ports unless
// it has one that was set.
func TestBridgeKeepsItsAddress(t *testing.T) {
	l := newLab(t)
	pod := l.Host("bridged-a")
	node := pod.node
	for i := range 20 {
		for _, r := range requests(node.Host) {
			if _, err := pod.Ask(deadline(t), r); err != nil {
				t.Fatalf("after %d more pods: %v", i, err)
			}
		}
		if _, err := node.AddPod(fmt.Sprintf("more-%d", i), 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadNames(t *testing.T) {
	l := newLab(t)
	n1 := l.Host("routed-a").node
	for name, make := range map[string]func() error{
		"name of another host": func() error { _, err := l.AddNode("client", Routed); return err },
		"bad name":             func() error { _, err := l.AddOutside("a/b"); return err },
		"number taken":         func() error { _, err := n1.AddPod("x", 10); return err },
		"number too large":     func() error { _, err := n1.AddPod("y", 251); return err },
		"number of the bridge": func() error { _, err := n1.AddPod("z", 1); return err },
	} {
		if err := make(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
