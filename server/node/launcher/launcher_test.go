package launcher

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listenAt starts the agent's side and returns the requests that arrive.
func listenAt(t *testing.T, path string) <-chan *Request {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	requests := make(chan *Request)
	done := make(chan error, 1)
	go func() { done <- Listen(ctx, l, requests) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return requests
}

// The namespace that the agent gets is the proxy's, and what it answers arrives whole.
func TestExchange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	requests := listenAt(t, path)
	bootstrap := []byte(strings.Repeat("bootstrap ", 100_000))
	go func() {
		r := <-requests
		got, err := r.Namespace.Stat()
		want, wantErr := os.Stat("/proc/self/ns/net")
		if errors.Join(err, wantErr) != nil || !os.SameFile(got, want) {
			_ = r.Refuse(errors.New("another namespace arrived"))
			return
		}
		_ = r.Accept(bootstrap)
	}()
	got, err := join(t.Context(), path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(bootstrap) {
		t.Errorf("bootstrap of %d bytes arrived as %d bytes", len(bootstrap), len(got))
	}
}

// What the agent refuses is the proxy's error, and is not tried again.
func TestRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	requests := listenAt(t, path)
	go func() { _ = (<-requests).Refuse(errors.New("15 Envoys are still running")) }()
	if _, err := join(t.Context(), path, time.Minute); err == nil || !strings.Contains(err.Error(), "15 Envoys are still running") {
		t.Errorf("error: %v", err)
	}
}

// A proxy that starts before its agent waits for it.
func TestAgentComesLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	done := make(chan error, 1)
	go func() {
		_, err := join(t.Context(), path, time.Minute)
		done <- err
	}()
	requests := listenAt(t, path)
	if err := (<-requests).Accept([]byte("{}")); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A proxy whose agent never comes says so.
func TestNoAgent(t *testing.T) {
	if _, err := join(t.Context(), filepath.Join(t.TempDir(), "s"), time.Millisecond); err == nil || !strings.Contains(err.Error(), "reach the agent") {
		t.Errorf("error: %v", err)
	}
}

// Whoever connects without a namespace disturbs nobody.
func TestGarbage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	requests := listenAt(t, path)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	go func() { _ = (<-requests).Accept([]byte("{}")) }()
	if _, err := join(t.Context(), path, time.Minute); err != nil {
		t.Error(err)
	}
}

// A proxy that is stopped while it waits for its agent, or for the agent's answer, ends at once, and the agent's answer
// fails: nobody is left who could become Envoy.
func TestEndedWhileWaiting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	start := func() (end func() error) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := join(ctx, path, 0)
			done <- err
		}()
		return func() error {
			cancel()
			select {
			case err := <-done:
				return err
			case <-time.After(10 * time.Second):
				return errors.New("still waiting")
			}
		}
	}
	if err := start()(); !errors.Is(err, context.Canceled) {
		t.Errorf("without an agent: %v", err)
	}
	requests := listenAt(t, path)
	end := start()
	r := <-requests
	if err := end(); !errors.Is(err, context.Canceled) {
		t.Errorf("before the agent answered: %v", err)
	}
	if err := r.Accept([]byte("{}")); err == nil {
		t.Error("the agent does not learn that the proxy has hung up")
	}
}
