// Package healthcheck serves the health checks by which load balancers learn whether a node has endpoints of a Service
// (healthCheckNodePort). Its answers are kube-proxy's byte for byte, since load balancers expect those.
//
// In come checks by address and port; out go HTTP responses, and a Problem for each port on which it cannot listen. No Envoy
// takes part, so that a node answers while its Envoy is replaced.
package healthcheck

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead/fairlead/translate/model"
)

// patience bounds how long a client may take to send its request, and how long it may keep an idle connection.
const patience = 10 * time.Second

// Check is the state that one address and port reports.
type Check struct {
	Service        model.ServiceKey
	LocalEndpoints int
}

// Server answers checks. It is safe for concurrent use.
type Server struct {
	healthy func() bool
	log     *slog.Logger

	mu       sync.Mutex // Guards the fields below.
	serving  map[netip.AddrPort]*listener
	problems map[netip.AddrPort]model.Problem // Of the checks that the server cannot serve.
}

// listener listens on one address and port.
type listener struct {
	check  atomic.Pointer[Check]
	server *http.Server
}

// New returns a server without checks. healthy reports whether the node forwards Services at all; the server calls it for every
// request, from any goroutine.
func New(healthy func() bool, log *slog.Logger) *Server {
	return &Server{healthy: healthy, log: log, serving: map[netip.AddrPort]*listener{}, problems: map[netip.AddrPort]model.Problem{}}
}

// Serve sets the checks, and listens on and closes ports accordingly. It retries those on which it could not listen before.
func (s *Server) Serve(checks map[netip.AddrPort]Check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, l := range s.serving {
		if _, wanted := checks[at]; !wanted {
			l.server.Close()
			delete(s.serving, at)
		}
	}
	maps.DeleteFunc(s.problems, func(at netip.AddrPort, _ model.Problem) bool { _, wanted := checks[at]; return !wanted })
	for at, check := range checks {
		if l := s.serving[at]; l != nil {
			l.check.Store(&check)
			continue
		}
		l, err := s.listen(at, &check)
		if err != nil {
			s.note(at, check, err)
			continue
		}
		delete(s.problems, at)
		s.serving[at] = l
	}
}

// listen listens on an address and starts to serve.
func (s *Server) listen(at netip.AddrPort, check *Check) (*listener, error) {
	socket, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	l := &listener{}
	l.check.Store(check)
	l.server = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.answer(w, *l.check.Load()) }),
		ReadHeaderTimeout: patience, IdleTimeout: patience,
	}
	go func() {
		if err := l.server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("cannot serve a health check any more", "address", at, "error", err)
		}
	}()
	return l, nil
}

// note records the problem of a check that cannot be served, and logs it once.
func (s *Server) note(at netip.AddrPort, check Check, err error) {
	p := model.Problem{
		Object: model.ObjectKey{Kind: model.KindService, Namespace: check.Service.Namespace, Name: check.Service.Name}.String(),
		Reason: model.PortUnavailable,
		Message: fmt.Sprintf("spec.healthCheckNodePort: %d is not answered on %s: %v; free the port on the node, or give the Service another one",
			at.Port(), at.Addr(), err),
	}
	if s.problems[at] != p {
		s.log.Error("cannot serve a health check", "object", p.Object, "problem", p.Message)
	}
	s.problems[at] = p
}

// answer answers any request: 200 if the node has ready endpoints and forwards, and else 503.
func (s *Server) answer(w http.ResponseWriter, c Check) {
	healthy := s.healthy()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(c.LocalEndpoints))
	if c.LocalEndpoints == 0 || !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %t\n}",
		c.Service.Namespace, c.Service.Name, c.LocalEndpoints, healthy)
}

// Problems returns, in order, why each check that is not served cannot be.
func (s *Server) Problems() []model.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.problems), model.Problem.Compare)
}

// Close closes all listeners.
func (s *Server) Close() { s.Serve(nil) }
