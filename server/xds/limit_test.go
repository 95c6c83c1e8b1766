package xds

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func newRefusals(log io.Writer) *refusals {
	return &refusals{log: slog.New(slog.NewTextHandler(log, nil)), seen: map[refusal]*repetition{}}
}

// Connections that are too many are closed; one that ends makes room for another.
func TestLimitedListener(t *testing.T) {
	for _, test := range []struct {
		name          string
		most, mostOne int
	}{{"in all", 2, 9}, {"from one address", 9, 2}} {
		t.Run(test.name, func(t *testing.T) {
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer inner.Close()
			var log bytes.Buffer
			l := newLimitedListener(inner, newRefusals(&log), test.most, test.mostOne)
			accepted := make(chan net.Conn)
			go func() {
				defer close(accepted)
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					conn.(*limitedConn).authenticated()
					accepted <- conn
				}
			}()
			connect := func() net.Conn {
				conn, err := net.Dial("tcp", inner.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				return conn
			}
			connect()
			first := <-accepted
			connect()
			(<-accepted).SetDeadline(time.Now().Add(time.Minute)) // A connection like any other.

			third := connect()
			third.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, net.ErrClosed) {
				t.Fatalf("one too many is kept: %v", err)
			} else if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
				t.Fatal("one too many is kept")
			}
			first.Close()
			first.Close() // Counts once.
			connect()
			(<-accepted).Close()
			inner.Close()
			<-accepted
			if !strings.Contains(log.String(), "too many connections") {
				t.Errorf("the log says %q", log.String())
			}
			if l.all.count != 1 || len(l.from) != 1 {
				t.Errorf("%d connections from %d addresses are counted, want the one that is open", l.all.count, len(l.from))
			}
		})
	}
}

// Of connections that are too many, the oldest one without an authenticated client makes room for another.
func TestSilentConnectionsMakeRoom(t *testing.T) {
	for _, test := range []struct {
		name          string
		most, mostOne int
	}{{"in all", 3, 9}, {"from one address", 9, 3}} {
		t.Run(test.name, func(t *testing.T) {
			l := newLimitedListener(nil, newRefusals(io.Discard), test.most, test.mostOne)
			connect := func() (conn, replaced *limitedConn, ok bool) {
				conn = &limitedConn{listener: l, from: netip.MustParseAddr("192.0.2.1")}
				replaced, ok = l.enter(conn)
				return conn, replaced, ok
			}
			var conns []*limitedConn
			for range 3 {
				conn, _, _ := connect()
				conns = append(conns, conn)
			}
			conns[0].authenticated()
			conns[0].authenticated() // Each stream says so.
			for i := 1; i < 100; i++ {
				conn, replaced, ok := connect()
				if !ok || replaced != conns[i] {
					t.Fatalf("connection %d: accepted %t, in place of another than the oldest silent one", i, ok)
				}
				conns = append(conns, conn)
				l.mu.Lock()
				l.remove(replaced) // Its reader closes it, too.
				l.mu.Unlock()
			}
			for _, conn := range conns[100:] {
				conn.authenticated()
			}
			if _, _, ok := connect(); ok {
				t.Error("one too many is accepted, though all others have authenticated")
			}
			if l.all.count != 3 || l.all.silent.Len() != 0 {
				t.Errorf("%d connections are counted, %d of them silent, want 3 and 0", l.all.count, l.all.silent.Len())
			}
		})
	}
}

// One reason is logged once in a while, with how often it was left out, and all of them together are bounded.
func TestRefusalsAreBounded(t *testing.T) {
	r := newRefusals(io.Discard)
	now := time.Now()
	key := refusal{"xds client refused", "192.0.2.1", "no token"}
	for i := range 100 {
		if omitted, ok := r.admit(key, now); ok != (i == 0) || omitted != 0 {
			t.Fatalf("refusal %d: logged %t, %d omitted", i, ok, omitted)
		}
	}
	if _, ok := r.admit(refusal{"xds client refused", "192.0.2.1", "another reason"}, now); !ok {
		t.Error("another reason is not logged")
	}
	now = now.Add(refusalInterval)
	if omitted, ok := r.admit(key, now); !ok || omitted != 99 {
		t.Errorf("later: logged %t, %d omitted, want 99", ok, omitted)
	}

	logged := 0
	for i := range 10 * maxRefusals {
		if _, ok := r.admit(refusal{reason: strings.Repeat("x", i)}, now); ok {
			logged++
		}
	}
	if logged >= maxRefusals || len(r.seen) > maxRefusals {
		t.Errorf("%d logged and %d kept, want at most %d", logged, len(r.seen), maxRefusals)
	}
	if _, ok := r.admit(refusal{reason: "new"}, now.Add(refusalInterval)); !ok {
		t.Error("after a flood nothing is logged any more")
	}
}

// The address counts, not the port, which is another one for each connection.
func TestRefusalsByAddress(t *testing.T) {
	var log bytes.Buffer
	r := newRefusals(&log)
	for port := range 3 {
		r.report(&net.TCPAddr{IP: net.IPv6loopback, Port: port}, errors.New("no token"), "xds client refused", "rpc", "/x")
	}
	if got := strings.Count(log.String(), "\n"); got != 1 || !strings.Contains(log.String(), `peer=[::1]:0 error="no token"`) {
		t.Errorf("the log says %q", log.String())
	}
}
