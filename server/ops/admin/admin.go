// Package admin serves a process's health, readiness, metrics and state over HTTP, to the people and programs that operate it.
//
// In come functions that return the answers, out goes HTTP. It never changes anything. Health and metrics are served
// on any address, for the kubelet and Prometheus, and so are the names of the nodes whose agents are connected, for other
// replicas. What is under /debug names Services and says why, so it is served on loopback addresses only.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"net/url"
	"time"
)

// Config is what the server needs.
type Config struct {
	Metrics http.Handler
	Live    func() error // Why the process should be restarted; nil if it should not.
	Ready   func() error // Why it cannot do its work yet; nil if it can.
	Status  func() any   // Its state, for encoding/json.
	Log     *slog.Logger

	// Agents returns the states of the nodes whose agents are connected, for other replicas; nil in a process that has none.
	Agents func() any

	// Explain returns what nodes (none: all) do with a Service and why, and Service which nodes have its newest change. Nil
	// in a process that holds neither.
	Explain func(service string, nodes []string) (any, error)
	Service func(service string) (any, error)
}

// stopTimeout is how long a request may still take when the process stops.
const stopTimeout = 2 * time.Second

// Handler serves /livez, /healthz (the same, by its older name), /readyz, /metrics, /debug/status, /debug/pprof/ (Go's profiler)
// and, where there are answers, /agents, /debug/explain?service=NAMESPACE/NAME&node=NAME and /debug/service?service=NAMESPACE/NAME.
func Handler(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /livez", health(cfg.Live))
	mux.Handle("GET /healthz", health(cfg.Live))
	mux.Handle("GET /readyz", health(cfg.Ready))
	mux.Handle("GET /metrics", cfg.Metrics)
	mux.Handle("GET /debug/status", loopbackOnly(answer(func(url.Values) (any, error) { return cfg.Status(), nil })))
	mux.Handle("GET /debug/pprof/", loopbackOnly(http.HandlerFunc(pprof.Index)))
	mux.Handle("GET /debug/pprof/profile", loopbackOnly(http.HandlerFunc(pprof.Profile)))
	if cfg.Agents != nil {
		mux.Handle("GET /agents", answer(func(url.Values) (any, error) { return cfg.Agents(), nil }))
	}
	if cfg.Explain != nil {
		mux.Handle("GET /debug/explain", loopbackOnly(answer(func(q url.Values) (any, error) { return cfg.Explain(q.Get("service"), q["node"]) })))
	}
	if cfg.Service != nil {
		mux.Handle("GET /debug/service", loopbackOnly(answer(func(q url.Values) (any, error) { return cfg.Service(q.Get("service")) })))
	}
	return mux
}

// health answers 200 with ok, or 503 with the reason.
func health(check func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}

// answer answers with JSON, or 404 and the error.
func answer(get func(url.Values) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		value, err := get(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		body, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(body, '\n')) // Only fails when the client has disconnected.
	})
}

// loopbackOnly refuses requests that did not arrive on a loopback address, whatever the address listened on, and those
// that a web page made under a name of its own (DNS rebinding).
func loopbackOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if local == nil || !loopback(local.String()) || !loopback(r.Host) {
			http.Error(w, "only answered on a loopback address, for instance after kubectl port-forward", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// loopback reports whether host or host:port is localhost or a loopback address.
func loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// Serve serves requests to the listener until the context ends. It closes the listener.
func Serve(ctx context.Context, l net.Listener, cfg Config) error {
	s := &http.Server{
		Handler:        Handler(cfg),
		ReadTimeout:    5 * time.Second, // Requests are a few lines; a client that takes longer holds a connection for nothing.
		WriteTimeout:   30 * time.Second,
		IdleTimeout:    time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		BaseContext:    func(net.Listener) context.Context { return ctx },
	}
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("answer admin requests on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	err := s.Shutdown(stopping)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.Close()
	}
	<-failed
	return err
}
