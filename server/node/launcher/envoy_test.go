package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead/fairlead/translate/envoy"
)

func TestAdminSocket(t *testing.T) {
	bootstrap, err := envoy.Bootstrap{Node: "n1/1", Instance: 1, XDSSocket: "/run/x", AdminSocket: "/run/admin-1.sock"}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := adminSocket(arguments(Config{Envoy: "envoy", Concurrency: 2}, bootstrap)); err != nil || got != "/run/admin-1.sock" {
		t.Errorf("of what Run starts: %q, %v", got, err)
	}
	for want, args := range map[string][]string{
		"no --config-yaml":   {"fairlead", "proxy"},
		"no --config-yaml ":  nil,
		"its bootstrap: ":    {"envoy", "--config-yaml", "{"},
		"has no admin socke": {"envoy", "--config-yaml", "{}"},
	} {
		if _, err := adminSocket(args); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("%q: %v, want an error with %q", args, err, want)
		}
	}
	if _, err := FindEnvoy(os.Getpid(), 0); !errors.Is(err, ErrNotEnvoy) {
		t.Errorf("this test passes for an Envoy: %v", err)
	}
}

// admin answers as Envoy's admin interface does, on a socket.
type admin struct {
	*Envoy
	asked, cx atomic.Int64
	ready     atomic.Bool
	stop      func()
}

func newAdmin(t *testing.T) *admin {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	a := &admin{}
	server := &http.Server{Handler: a}
	go server.Serve(l)
	a.stop = func() { server.Close() }
	t.Cleanup(a.stop)
	dial := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }
	a.Envoy = &Envoy{1, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
	return a
}

func (a *admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/ready" {
		if !a.ready.Load() {
			http.Error(w, "PRE_INITIALIZING", http.StatusServiceUnavailable)
		}
		return
	}
	a.asked.Add(1)
	fmt.Fprintf(w, "listener.admin.downstream_cx_active: 1\nlistener.admin.main_thread.downstream_cx_active: 1\n")
	fmt.Fprintf(w, "listener.0.0.0.0_15001.downstream_cx_active: %d\nlistener.0.0.0.0_15001.worker_0.downstream_cx_active: 7\n", a.cx.Load())
	fmt.Fprintf(w, "tcp.keep.downstream_cx_active: 9\n")
}

func TestReady(t *testing.T) {
	a := newAdmin(t)
	if err := a.Alive(t.Context()); err != nil {
		t.Errorf("an Envoy that is not ready yet counts as hung: %v", err)
	}
	if err := a.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "PRE_INITIALIZING") {
		t.Errorf("%v, want the state", err)
	}
	a.ready.Store(true)
	if err := a.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

// Drain waits for connections to end, and for nothing else.
func TestDrain(t *testing.T) {
	a := newAdmin(t)
	a.cx.Store(1)
	done := make(chan error, 1)
	go func() { done <- a.Drain(t.Context()) }()
	for a.asked.Load() < 2 {
		select {
		case err := <-done:
			t.Fatalf("ended with %d connections: %v", a.cx.Load(), err)
		case <-time.After(time.Millisecond):
		}
	}
	a.cx.Store(0)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Drain ends with its time, and with Envoy.
func TestDrainEnds(t *testing.T) {
	a := newAdmin(t)
	a.cx.Store(1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.Drain(ctx); err != nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Errorf("at the end of its time: %v", err)
	}
	a.stop()
	if err := a.Drain(t.Context()); err != nil {
		t.Errorf("without Envoy: %v", err)
	}
}

// FuzzAdminSocket reads the command line of a process that may be anything: it has the path of the admin socket, or there is a
// reason.
func FuzzAdminSocket(f *testing.F) {
	f.Add("envoy\x00" + bootstrapFlag + "\x00{\"admin\":{\"address\":{\"pipe\":{\"path\":\"/run/admin.sock\"}}}}")
	f.Add("envoy\x00" + bootstrapFlag + "\x00{\"admin\":[]}")
	f.Add(bootstrapFlag)
	f.Fuzz(func(t *testing.T, line string) {
		if path, err := adminSocket(strings.Split(line, "\x00")); (path == "") == (err == nil) {
			t.Errorf("path %q, error %v", path, err)
		}
	})
}

// An Envoy whose socket nobody reads hangs; one without a socket does not.
func TestAlive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }
	e := &Envoy{1, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 50 * time.Millisecond}}
	if err := e.Alive(t.Context()); err == nil {
		t.Error("an Envoy that hangs counts as alive")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := e.Alive(t.Context()); err != nil {
		t.Errorf("without a socket: %v", err)
	}
}
