package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves on loopback until the test ends and returns the address.
func start(t *testing.T, cfg Config) string {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// get asks for a path under the given Host header and returns the status code and the body.
func get(t *testing.T, addr, host, path string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	r.Close = true
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestAnswers(t *testing.T) {
	addr := start(t, Config{
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "m 1\n") }),
		Live:    func() error { return nil },
		Ready:   func() error { return errors.New("waiting for the first list of Nodes") },
		Status:  func() any { return map[string]int{"nodes": 3} },
		Agents:  func() any { return map[string]string{"n1": "Forwarding"} },
	})
	for _, test := range []struct {
		name, host, path string
		code             int
		body             string
	}{
		{"alive", addr, "/livez", 200, "ok\n"},
		{"alive by the old name", addr, "/healthz", 200, "ok\n"},
		{"not ready, and why", addr, "/readyz", 503, "waiting for the first list of Nodes\n"},
		{"metrics", addr, "/metrics", 200, "m 1\n"},
		{"status", addr, "/debug/status", 200, "{\n  \"nodes\": 3\n}\n"},
		{"status by name", "localhost", "/debug/status", 200, "{\n  \"nodes\": 3\n}\n"},
		{"status for a web page that renamed this address", "evil.example:80", "/debug/status", 403, "only answered on a loopback address, for instance after kubectl port-forward\n"},
		{"a profile for a web page that renamed this address", "evil.example:80", "/debug/pprof/heap", 403, "only answered on a loopback address, for instance after kubectl port-forward\n"},
		{"health for anyone", "evil.example:80", "/livez", 200, "ok\n"},
		{"other replicas are told of agents", "10.244.1.1:19000", "/agents", 200, "{\n  \"n1\": \"Forwarding\"\n}\n"},
		{"nothing else", addr, "/debug", 404, "404 page not found\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if code, body := get(t, addr, test.host, test.path); code != test.code || body != test.body {
				t.Errorf("%d %q, want %d %q", code, body, test.code, test.body)
			}
		})
	}
}

// A machine's other addresses cannot be counted on in a test, so the connection claims to have arrived on one.
func TestStatusIsNotToldToOtherMachines(t *testing.T) {
	cfg := Config{Metrics: http.NotFoundHandler(), Live: func() error { return nil }, Ready: func() error { return nil }, Status: func() any { return "secret" }}
	for local, want := range map[string]int{"192.0.2.1:19000": 403, "[2001:db8::1]:19000": 403, "[::1]:19000": 200, "[::ffff:127.0.0.1]:19000": 200} {
		a, err := net.ResolveTCPAddr("tcp", local)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequestWithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, a), http.MethodGet, "/debug/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "127.0.0.1:19000"
		w := httptest.NewRecorder()
		Handler(cfg).ServeHTTP(w, r)
		if w.Code != want || (want == 403 && strings.Contains(w.Body.String(), "secret")) {
			t.Errorf("a request that arrived on %s: %d %q, want %d", local, w.Code, w.Body, want)
		}
	}
}
