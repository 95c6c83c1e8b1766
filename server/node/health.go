package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// stallTimeout is how long a change may be pending before the node is unhealthy: as for kube-proxy, which waits twice its sync
// period.
const stallTimeout = time.Minute

// proxyHealth is the body of kube-proxy's /healthz and /livez, which load balancers and probes read.
type proxyHealth struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"` // In /healthz only.
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyHealth `json:"status"`
}

// familyHealth is the health of an address family. One commit writes both families, so they do not differ.
type familyHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// proxyHealth returns the node's health at a time. An agent that has not written its first table is starting, which is
// healthy, as it is for kube-proxy: a restart would not make it faster.
func (s *Status) proxyHealth(now time.Time) proxyHealth {
	healthy := s.LastUpdated.IsZero() || s.Pending.IsZero() || now.Sub(s.Pending) < stallTimeout
	h := proxyHealth{LastUpdated: s.LastUpdated, CurrentTime: now, Healthy: healthy, Status: map[string]familyHealth{}}
	if s.LastUpdated.IsZero() {
		return h
	}
	for _, family := range s.families {
		h.Status[family] = familyHealth{s.LastUpdated, healthy}
	}
	if healthy {
		h.LastUpdated = now // kube-proxy reports the present time while it is healthy, as it did when it synced periodically.
	}
	return h
}

// proxyHealthHandler answers as kube-proxy does: /healthz reports whether load balancers may send new connections to the node,
// /livez whether its proxy works. A node that is being deleted, or that the cluster autoscaler has marked for deletion, finishes
// its connections but should get no new ones.
func proxyHealthHandler(status func() *Status) http.Handler {
	answer := func(w http.ResponseWriter, h proxyHealth, good bool) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !good {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(h) // It fails only if the client has disconnected.
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		s := status()
		h := s.proxyHealth(time.Now())
		h.NodeEligible = &s.eligible
		answer(w, h, h.Healthy && s.eligible)
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		h := status().proxyHealth(time.Now())
		answer(w, h, h.Healthy)
	})
	return mux
}

// proxyMetricsHandler answers what kube-proxy's metrics port is asked for: the metrics of whoever forwards, if there are any, and
// its mode. A program that distinguishes kube-proxy's modes has to see that this is none of them.
func proxyMetricsHandler(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	for path, body := range map[string]string{"/proxyMode": "fairlead", "/healthz": "ok"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			_, _ = io.WriteString(w, body) // It fails only if the client has disconnected.
		})
	}
	if metrics != nil {
		mux.Handle("/metrics", metrics)
	}
	return mux
}

// serveAsProxy serves one of kube-proxy's ports until ctx ends. It waits while kube-proxy itself listens there.
func serveAsProxy(ctx context.Context, address string, handler http.Handler, log *slog.Logger) error {
	l, err := listenPatiently(ctx, address, log)
	if l == nil {
		return err
	}
	s := &http.Server{Handler: handler, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s in kube-proxy's place: %w", address, err)
	}
	return nil
}

// listenPatiently listens on a TCP address, and retries each second while another process does. It returns nil once ctx ends.
func listenPatiently(ctx context.Context, address string, log *slog.Logger) (net.Listener, error) {
	again := time.NewTicker(retryInterval)
	defer again.Stop()
	for first := true; ; first = false {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err == nil {
			return l, nil
		}
		if first {
			log.Warn("cannot listen in kube-proxy's place; retrying each second (does it still run?)", "address", address, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-again.C:
		}
	}
}
