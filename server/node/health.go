package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// stallTimeout is how long a change may wait for the node before the node counts as unhealthy: kube-proxy's, which is twice
// its sync period.
const stallTimeout = time.Minute

// proxyHealth is the answer of kube-proxy's /healthz and /livez, which load balancers and probes read.
type proxyHealth struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"` // In /healthz only.
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyHealth `json:"status"`
}

// familyHealth is the health of an address family. A change is written for both at once, so they do not differ.
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
		h.LastUpdated = now // What it always was while all is well, before kube-proxy wrote only changes.
	}
	return h
}

// proxyHealthHandler answers as kube-proxy does: /healthz says whether load balancers may send new connections to the node,
// /livez whether its proxy works. A node that is being deleted, or that the cluster autoscaler has marked for it, finishes
// what it has but should get nothing new.
func proxyHealthHandler(status func() *Status) http.Handler {
	answer := func(w http.ResponseWriter, h proxyHealth, good bool) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !good {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(h) // Only fails when nobody reads any more.
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

// serveProxyHealth answers on kube-proxy's health port until ctx ends. As long as kube-proxy itself has the port it waits.
func serveProxyHealth(ctx context.Context, address string, handler http.Handler, log *slog.Logger) error {
	l, err := listenPatiently(ctx, address, log)
	if l == nil {
		return err
	}
	s := &http.Server{Handler: handler, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answer for the node's health on %s: %w", address, err)
	}
	return nil
}

// listenPatiently listens on a TCP address, and tries again each second while somebody else does. It returns nil once ctx ends.
func listenPatiently(ctx context.Context, address string, log *slog.Logger) (net.Listener, error) {
	again := time.NewTicker(retryInterval)
	defer again.Stop()
	for first := true; ; first = false {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err == nil {
			return l, nil
		}
		if first {
			log.Warn("cannot answer for the node's health yet; trying again each second (does kube-proxy still run?)", "address", address, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-again.C:
		}
	}
}
